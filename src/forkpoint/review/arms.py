"""Continuations of a prefix, drawn in rounds: the two arms of a trial."""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import numpy as np

from forkpoint.probe import Continuation, Probe
from forkpoint.records import Problem, Rollout, StopReason
from forkpoint.review.steps import Blamed, Fixed, first_step, rewritten
from forkpoint.review.testing_values import Counts


@dataclass(slots=True, kw_only=True, eq=False)
class Arm:
    """A prefix and what its continuations came to; grows by `draw`."""

    step: Blamed
    fixed: Fixed | None
    """None: the policy draws the step itself."""
    purpose: str
    """Names the random stream: arms of one purpose and prefix draw the same."""
    outcomes: list[bool | None] = field(default_factory=list)
    """Right or not, in order of drawing; None: the verifier could not tell."""
    steps: list[str] = field(default_factory=list)
    """The first step of each continuation; kept where the policy draws it."""
    sampled_tokens: int = 0
    verifier_calls: int = 0

    @property
    def start(self) -> int:
        """Tokens before the continuation."""
        return self.step.start if self.fixed is None else len(self.fixed.tokens)

    @property
    def ended(self) -> bool:
        """Whether nothing can follow: one verdict says it all."""
        return self.fixed is not None and self.fixed.ended

    def counts(self, trials: int | None = None) -> Counts:
        """Successes and usable trials among the first `trials` drawn."""
        usable = [outcome for outcome in self.outcomes[:trials] if outcome is not None]
        return sum(usable), len(usable)

    def most_tokens(self, trials: int, max_new_tokens: int) -> int:
        """What growing to so many trials costs at most."""
        return 0 if self.ended else max(0, trials - len(self.outcomes)) * max(0, max_new_tokens - self.start)


def draw(arms: Iterable[Arm], trials: int, probe: Probe) -> None:
    """Grows each arm, named once or more often, to so many trials.

    One `branch` for all of them, one `verify` for each problem.
    A fix that ends its rollout has one outcome, which is verified once and counts as often as it is asked for.
    """
    waiting: dict[str, tuple[Problem, list[tuple[Arm, Rollout, int]]]] = {}
    requests, owners = [], []
    for arm in dict.fromkeys(arms):
        problem = arm.step.problem
        row = waiting.setdefault(problem.key, (problem, []))[1]
        missing = range(len(arm.outcomes), trials)
        if arm.ended and missing:
            row.append((arm, _whole(arm), len(missing)))
            continue
        requests += [_continuation(arm, index) for index in missing]
        owners += [(arm, row)] * len(missing)
    for (arm, row), made in zip(owners, probe.branch(requests) if requests else [], strict=True):
        arm.sampled_tokens += int(np.count_nonzero(made.loss_mask))
        row.append((arm, made, 1))
    for problem, row in waiting.values():
        verdicts = probe.verify(problem, [made for _, made, _ in row]) if row else []
        for (arm, made, times), verdict in zip(row, verdicts, strict=True):
            arm.verifier_calls += 1
            arm.outcomes += [verdict.correct is True if verdict.usable else None] * times
            if arm.fixed is None:
                width = arm.step.end - arm.step.start
                arm.steps.append(first_step(probe, problem, made, arm.start, width=width))


def _whole(arm: Arm) -> Rollout:
    if arm.fixed is None:
        raise AssertionError("only a fix can end a rollout")
    fixed = arm.fixed
    made = rewritten(arm.step.rollout, fixed.tokens, fixed.before + fixed.text, StopReason.STOP)
    return replace(made, id=f"{made.id}~fix", parent_id=made.id)


def _continuation(arm: Arm, index: int) -> Continuation:
    rollout, fixed = arm.step.rollout, arm.fixed
    if fixed is not None:
        # What the environment said after the blamed step does not follow from the fix.
        kept = tuple(span for span in rollout.spans if span.end <= arm.step.start)
        rollout = replace(rollout, spans=kept)
    return Continuation(
        problem=arm.step.problem, rollout=rollout, prefix_length=arm.start, index=index, purpose=arm.purpose,
        prefix=None if fixed is None else fixed.tokens,
    )  # fmt: skip
