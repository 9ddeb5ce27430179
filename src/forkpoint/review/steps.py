"""A blamed step of a rollout, and what a text in its place would be."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import numpy as np

from forkpoint.errors import ForkpointError
from forkpoint.probe import Probe, Stepped
from forkpoint.records import Group, Ints, Problem, Rollout, StopReason, frozen_array
from forkpoint.review.postmortem import Review


@runtime_checkable
class Ending(Protocol):
    """A task whose rollouts end at a string."""

    def stop(self, problem: Problem) -> tuple[str, ...]:
        """The strings."""
        ...


@runtime_checkable
class Checkable(Protocol):
    """A task that knows which steps are wrong in themselves, as `arithmetic`."""

    def wrong_steps(self, problem: Problem, text: str) -> Sequence[int]:
        """Their places among the steps of a text, from 0."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Blamed:
    """Tokens `start` to `end` (exclusive) of a rollout: the step that a fix would take the place of."""

    group: Group
    rollout: Rollout
    start: int
    end: int
    feedback: str = ""
    """What a chat model is told of the failure."""
    reason: str = ""
    """What the verifier said of it."""

    @property
    def problem(self) -> Problem:
        """The rollout's problem."""
        return self.group.problem


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Fixed:
    """A prefix with a text after it."""

    tokens: Ints
    before: str
    """The text of the prefix."""
    text: str
    """What was put after it."""
    ended: bool
    """Whether the rollout is over with it."""


def blamed_step(review: Review, group: Group) -> Blamed | None:
    """The step that a failure's review blames: the first error, else the hinge; None where it blames none."""
    claim = review.first_error or review.hinge
    if review.correct or claim is None or claim.change >= 0:
        return None
    for rollout, verdict in zip(group.rollouts, group.verdicts, strict=True):
        if rollout.id == review.rollout_id:
            said = f" The verifier said: {verdict.reason}." if verdict.reason else ""
            return Blamed(
                group=group, rollout=rollout, start=claim.start, end=claim.end,
                feedback=f"This step changes the share of right outcomes by {claim.change:+.2f}.{said}",
                reason=verdict.reason or "",
            )  # fmt: skip
    return None


def stops_of(task: object, problem: Problem) -> tuple[str, ...]:
    """The strings that end a rollout of the problem."""
    return task.stop(problem) if isinstance(task, Ending) else ()


def rewritten(rollout: Rollout, tokens: Ints, text: str, reason: StopReason) -> Rollout:
    """The rollout as if it held these tokens, none of them sampled."""
    count = len(tokens)
    return replace(
        rollout, tokens=frozen_array(tokens, np.int32), text=text, stop_reason=reason, spans=(),
        behavior_logprobs=frozen_array(np.zeros(count), np.float32),
        loss_mask=frozen_array(np.zeros(count), np.bool_),
    )  # fmt: skip


def step_end(task: object, problem: Problem, rollout: Rollout, start: int, *, width: int) -> int:
    """Where the step that begins at `start` ends: the next cut, else the end of the rollout.

    `width` tokens after `start` for a task without steps.
    """
    count = len(rollout.tokens)
    if not isinstance(task, Stepped):
        return min(start + width, count)
    return min((cut for cut in task.cut_points(problem, rollout) if start < cut < count), default=count)


def first_step(probe: Probe, problem: Problem, rollout: Rollout, start: int, *, width: int) -> str:
    """The text of the step that begins at `start`."""
    return probe.decode(rollout.tokens[start : step_end(probe.task, problem, rollout, start, width=width)])


def fixed_prefix(step: Blamed, text: str, probe: Probe, *, max_new_tokens: int) -> Fixed | str:
    """The prefix of a rollout with a text in the place of its step; in words why not, where it cannot be.

    Refused: a text that is empty, that the policy cannot read, that is the step as it was, that is more than one step,
    that goes on after the rollout's end, or that leaves no room to go on.
    """
    rollout, start = step.rollout, step.start
    if not 0 <= start < step.end <= len(rollout.tokens):
        return f"the step {start} to {step.end} is not within the rollout's {len(rollout.tokens)} tokens"
    try:
        added = probe.encode(text)
    except (ForkpointError, ValueError, TypeError):
        return "the policy cannot read it"
    if len(added) == 0:
        return "it is empty"
    if np.array_equal(added, rollout.tokens[start : step.end]):
        return "it is the step as it was"
    tokens = frozen_array(np.concatenate([rollout.tokens[:start], added]), np.int32)
    before = probe.decode(rollout.tokens[:start])
    end = _end_of(before, text, stops_of(probe.task, step.problem))
    if end is not None and end < len(text):
        return "it goes on after the end"
    whole = rewritten(rollout, tokens, before + text, StopReason.LENGTH if end is None else StopReason.STOP)
    if isinstance(probe.task, Stepped) and step_end(probe.task, step.problem, whole, start, width=0) < len(tokens):
        return "it is more than one step"
    if len(tokens) + (end is None) > max_new_tokens:
        return f"it leaves no room in a budget of {max_new_tokens} tokens"
    return Fixed(tokens=tokens, before=before, text=text, ended=end is not None)


def _end_of(before: str, text: str, stops: Sequence[str]) -> int | None:
    """How many characters of `text` a rollout would have written until it ended; None: it goes on."""
    whole = before + text
    found = []
    for stop in stops:
        # A stop string may have begun in the prefix, but must end in the text.
        place = whole.find(stop, max(0, len(before) - len(stop) + 1))
        if place >= 0:
            found.append(place + len(stop) - len(before))
    return min(found, default=None)


def is_wrong_step(task: object, step: Blamed, fixed: Fixed) -> bool:
    """Whether the task finds the text wrong in itself; False for a task that cannot tell."""
    if not isinstance(task, Checkable) or not isinstance(task, Stepped):
        return False
    whole = rewritten(step.rollout, fixed.tokens, fixed.before + fixed.text, StopReason.LENGTH)
    place = sum(cut < step.start for cut in task.cut_points(step.problem, whole))
    return place in task.wrong_steps(step.problem, whole.text)
