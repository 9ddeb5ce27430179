"""Hindsight magnitude: a token counts more where knowing the answer would have made it more likely.

Delta_t = log pi(y_t | x, c, y_<t) - log pi(y_t | x, y_<t), nats, for knowledge c in the prompt.  If the policy with c
is the policy conditioned on success, Bayes' rule says exp(Delta_t) = Q(s_t, y_t) / V(s_t).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol, get_args, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from forkpoint.credit.group import leave_one_out
from forkpoint.errors import ForkpointError
from forkpoint.probe import Privileged, Probe, ScoreRequest, fits
from forkpoint.records import Batch, Credit, Group, Ints, Problem, Rollout, frozen_array

Array = NDArray[np.float64]
Knowledge = Literal["answer", "solution", "sibling", "feedback", "lessons", "wrong_answer"]
"""What the prompt is given; `wrong_answer`, the answer of another problem, is the control: it should open no gate."""
Told = Mapping[str, str]
"""What the prompt of a problem is given, by the key of the problem: what a stage makes of `lessons`."""

_FAR = 50.0
"""Nats."""


@runtime_checkable
class Solvable(Protocol):
    """A task that knows a text which its verifier accepts."""

    def solve(self, problem: Problem) -> str:
        """The text."""
        ...


def hindsight_advantages(advantages: Array, log_ratios: Array, *, strength: float = 0.5, clip: float = 0.2) -> Array:
    """The advantages with magnitudes by hindsight and the signs that they had, same shape.

    A'_t = A_t ((1 - strength) + strength clip(exp(sign(A_t) Delta_t), 1 - clip, 1 + clip))    (RLSD, arXiv 2604.03128)

    Raises:
        ValueError: a strength outside [0, 1], or a clip outside [0, 1).

    >>> hindsight_advantages(np.array([1.0, -1.0, 0.0]), np.array([5.0, 5.0, 5.0])).tolist()
    [1.1, -0.9, 0.0]
    """
    _check(strength, clip)
    # The inner bound keeps exp finite; what lies beyond it is clipped anyway.
    ratios = np.exp(np.clip(np.sign(advantages) * log_ratios, -_FAR, _FAR))
    return advantages * ((1 - strength) + strength * np.clip(ratios, 1 - clip, 1 + clip))


def _check(strength: float, clip: float) -> None:
    if not (0 <= strength <= 1 and 0 <= clip < 1):
        raise ValueError(f"privileged: strength = {strength} must lie in [0, 1] and clip = {clip} in [0, 1).")


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """Whether the policy can use the knowledge at all."""

    open: bool
    gain: float | None
    """Mean rise of the log-probability of a correct rollout, nats; None: there was no correct rollout to ask about."""


def gate_of(gains: Sequence[float], *, threshold: float) -> Gate:
    """The gate for the gains of some correct rollouts, in nats for each whole rollout.

    For the Bayes posterior the gain of a correct rollout is -log V(s_0), never negative; a policy that ignores the
    knowledge has gain 0, and one that it confuses less.  Without a correct rollout the gate stays shut.

    >>> gate_of([0.5, 0.1], threshold=0.1), gate_of([], threshold=0.1)
    (Gate(open=True, gain=0.3), Gate(open=False, gain=None))
    """
    if not gains:
        return Gate(open=False, gain=None)
    gain = float(np.mean(gains))
    return Gate(open=gain > threshold, gain=gain)


def knowledge_of(batch: Batch, task: object, *, knowledge: Knowledge | Told) -> list[str | None]:
    """What each rollout of `batch.rollouts` is told; None where there is nothing to tell.

    `answer`: the reference answer.  `solution`: what the task's `solve` gives.  `sibling`: the text of the next
    correct rollout of the group.  `feedback`: what the verifier said of the rollout.  `wrong_answer`: the answer of the
    next problem of the batch that has another one.  A mapping: what it holds for the problem.  `lessons` alone, which
    a stage makes a mapping: nothing.
    """
    known: list[str | None] = []
    for number, group in enumerate(batch.groups):
        for place, verdict in enumerate(group.verdicts):
            if not isinstance(knowledge, str):
                known.append(knowledge.get(group.problem.key))
            elif knowledge == "answer":
                known.append(group.problem.answer)
            elif knowledge == "solution":
                known.append(task.solve(group.problem) if isinstance(task, Solvable) else None)
            elif knowledge == "sibling":
                known.append(_sibling(group, place))
            elif knowledge == "feedback":
                known.append(verdict.reason or None)
            elif knowledge == "lessons":
                known.append(None)
            else:
                known.append(_foreign_answer(batch.groups, number))
    return known


def _sibling(group: Group, place: int) -> str | None:
    """The text of the next correct rollout of the group, around its end."""
    count = len(group.rollouts)
    for step in range(1, count):
        other = (place + step) % count
        if group.verdicts[other].correct:
            return group.rollouts[other].text
    return None


def _foreign_answer(groups: Sequence[Group], number: int) -> str | None:
    mine = groups[number].problem.answer
    order = [groups[(number + step) % len(groups)].problem.answer for step in range(1, len(groups))]
    return next((answer for answer in order if answer != mine), None)


def privileged(
    batch: Batch,
    probe: Probe,
    *,
    knowledge: Knowledge | Told = "answer",
    strength: float = 0.5,
    clip: float = 0.2,
    gate: float = 0.1,
    decay_updates: int = 0,
) -> list[Credit]:
    """The credit of each rollout of `batch.rollouts`: leave-one-out, with magnitudes by `hindsight_advantages`.

    One scoring pass of the rollouts that have an advantage, with the knowledge in the prompt; without it the
    behavior log-probabilities serve, which are the same policy's.  The pass also opens or shuts the gate: if it
    raises the log-probability of a correct rollout by `gate` nats or less on average, the credit is leave-one-out.
    `strength` falls to 0 over `decay_updates` updates; 0 keeps it.
    `details` holds `gate_open` (0 or 1) and `gate_gain` (nats; absent without a correct rollout).

    Raises:
        ValueError: a task without `privileged_prompt`; options out of bounds; as `leave_one_out`.
    """
    _check(strength, clip)
    if isinstance(knowledge, str) and knowledge not in get_args(Knowledge):
        raise ValueError(f"privileged: knowledge = '{knowledge}' must be one of {', '.join(get_args(Knowledge))}.")
    if decay_updates < 0:
        raise ValueError(f"privileged: decay_updates = {decay_updates} must be at least 0.")
    base = leave_one_out(batch, probe)
    left = max(0.0, 1 - batch.update / decay_updates) if decay_updates else 1.0
    prompts = told_prompts(batch, probe, knowledge) if strength * left > 0 else [None] * len(base)
    ratios = _log_ratios(batch, probe, base, prompts)
    correct = [verdict.correct is True for group in batch.groups for verdict in group.verdicts]
    found = gate_of([float(ratio.sum()) for place, ratio in ratios.items() if correct[place]], threshold=gate)
    details = {"gate_open": float(found.open)} | ({} if found.gain is None else {"gate_gain": found.gain})
    made = []
    for place, credit in enumerate(base):
        numbers = credit.advantages.astype(np.float64)
        if found.open and place in ratios:
            numbers = hindsight_advantages(numbers, ratios[place], strength=strength * left, clip=clip)
        made.append(
            replace(
                credit,
                advantages=frozen_array(numbers, np.float32),
                rule="privileged",
                cost={"scored_tokens": float(len(numbers)) if place in ratios else 0.0},
                details=details,
            )
        )
    return made


def _log_ratios(batch: Batch, probe: Probe, base: Sequence[Credit], prompts: Sequence[Ints | None]) -> dict[int, Array]:
    """Delta of each token of the rollouts that have an advantage and something to be told, by place."""
    places = [place for place, credit in enumerate(base) if prompts[place] is not None and credit.advantages.any()]
    rollouts: Sequence[Rollout] = batch.rollouts
    requests = [
        ScoreRequest(prompt_tokens=told, tokens=rollouts[place].tokens, temperature=rollouts[place].temperature)
        for place in places
        if (told := prompts[place]) is not None
    ]
    scores = probe.score(requests)
    return {
        place: np.where(rollouts[place].loss_mask, score.astype(np.float64) - rollouts[place].behavior_logprobs, 0.0)
        for place, score in zip(places, scores, strict=True)
    }


def told_prompts(batch: Batch, probe: Probe, knowledge: Knowledge | Told) -> list[Ints | None]:
    """The prompt tokens of each rollout of `batch.rollouts` with its knowledge; None where there is nothing to tell.

    A sibling that the task's prompts cannot hold, or that leaves a rollout no room in the context, tells nothing.

    Raises:
        ValueError: a task without `privileged_prompt`.
        TaskError: the task's prompts cannot hold other knowledge.
    """
    task, written = probe.task, knowledge == "sibling"
    if not isinstance(task, Privileged):
        raise ValueError("privileged: the task has no privileged_prompt.")
    problems = [group.problem for group in batch.groups for _ in group.rollouts]
    known = knowledge_of(batch, task, knowledge=knowledge)
    prompts: list[Ints | None] = []
    for problem, rollout, text in zip(problems, batch.rollouts, known, strict=True):
        told = None if text is None else _told(task, probe, problem, text, written=written)
        # What a policy wrote may be longer than any text that a dry run saw.
        room = told is None or not written or fits(probe, len(told), len(rollout.tokens))
        prompts.append(told if room else None)
    return prompts


def _told(task: Privileged, probe: Probe, problem: Problem, text: str, *, written: bool) -> Ints | None:
    """The prompt with a text in it; None for what a policy has `written` and no prompt can hold."""
    try:
        return probe.encode_prompt(task.privileged_prompt(problem, text))
    except ForkpointError:
        if written:
            return None
        raise
