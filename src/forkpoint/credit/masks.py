"""What goes around any credit rule: credits in, credits out, in the order that the recipe lists.

A wrapper changes advantages only.  The loss mask and the denominators stay, so a token without advantage still counts.
All but `outcome_floor` change the objective; docs/credit/masks.md says how.  Log-probabilities are in nats.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import repeat
from types import MappingProxyType
from typing import Any, Literal, Protocol, TypeAlias, get_args, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from forkpoint.credit.answer_progress import answer_probabilities
from forkpoint.credit.group import leave_one_out
from forkpoint.credit.transcripts import Cut, batch_cuts, spread_over_steps
from forkpoint.errors import unknown_name
from forkpoint.probe import Probe
from forkpoint.records import Batch, Credit, Floats, Problem, Rollout, frozen_array

Array = NDArray[np.float64]
Measure = Literal["surprisal", "entropy"]
Wrapper: TypeAlias = Callable[..., list[Credit]]
"""(credits, batch, probe, *, knobs) -> one `Credit` for each rollout, in the order of `batch.rollouts`."""

PENALTY_SLOPE = (0.5, 0.3, 0.1, -0.1, -0.3, -0.5)
"""Weights of the confidence at 0, 20, ..., 100 % of the steps (arXiv 2605.24396); they sum to 0."""


@runtime_checkable
class Entropic(Protocol):
    """A probe that knows the entropy of every next-token distribution."""

    def entropies(self, rollouts: Sequence[Rollout]) -> list[Floats]:
        """The entropy before each token of each rollout, nats."""
        ...


@runtime_checkable
class StepChecked(Protocol):
    """A task that can tell which written steps are wrong, without a model."""

    def wrong_steps(self, problem: Problem, text: str) -> Sequence[int]:
        """Indices of the wrong steps, ascending; step k begins at cut point k."""
        ...


def fork_mask(
    credits: Sequence[Credit], batch: Batch, probe: Probe | None, *, keep: float = 0.2, measure: Measure = "surprisal"
) -> list[Credit]:
    """The credits with advantages only on the `keep` share of the batch's trained tokens that were the most open.

    The 80/20 rule of arXiv 2506.01939, the quantile over all trained tokens of the batch; ties at it are kept.
    `entropy` is the paper's measure and needs a probe that knows it; `surprisal`, -log pi of the token that was drawn,
    has the entropy as its mean.

    Raises:
        ValueError: `keep` outside (0, 1], an unknown measure, a probe that knows no entropies.
    """
    if not 0 < keep <= 1:
        raise ValueError(f"fork_mask: keep = {keep} must lie above 0 and be at most 1.")
    rollouts = batch.rollouts
    if measure == "surprisal":
        openness = [-rollout.behavior_logprobs for rollout in rollouts]
    elif measure == "entropy":
        if not isinstance(probe, Entropic):
            raise ValueError("fork_mask: measure = 'entropy' needs a probe that knows entropies; take 'surprisal'.")
        openness = probe.entropies(rollouts)
    else:
        raise ValueError(f"fork_mask: measure = '{measure}' must be one of {', '.join(get_args(Measure))}.")
    trained = [found[rollout.loss_mask] for found, rollout in zip(openness, rollouts, strict=True)]
    values = np.sort(np.concatenate([np.zeros(0), *trained]))
    if not len(values):
        return list(credits)
    least = values[len(values) - max(1, round(keep * len(values)))]
    return _masked(credits, [found >= least for found in openness])


def confident_mask(credits: Sequence[Credit], batch: Batch, probe: Probe | None, *, below: float = 0.9) -> list[Credit]:
    """The credits with advantages only on tokens that were drawn with a probability under `below`.

    pi(y_t) < below    (the probability mask of SPO, arXiv 2505.23564)

    Raises:
        ValueError: `below` outside (0, 1].
    """
    del probe
    if not 0 < below <= 1:
        raise ValueError(f"confident_mask: below = {below} must lie above 0 and be at most 1.")
    return _masked(credits, [rollout.behavior_logprobs < np.log(below) for rollout in batch.rollouts])


def positive_only(credits: Sequence[Credit], batch: Batch, probe: Probe | None) -> list[Credit]:
    """The credits with max(A, 0): what did worse than its baseline is not learned from."""
    del batch, probe
    return [_changed(credit, np.maximum(credit.advantages, 0.0)) for credit in credits]


def progressive_confidence(
    credits: Sequence[Credit], batch: Batch, probe: Probe, *, penalty: float = 1.0
) -> list[Credit]:
    """The credits less a penalty on rollouts that knew the answer before they had reasoned.

    A'_t = A_t - penalty sum_j w_j c_j, w = (.5, .3, .1, -.1, -.3, -.5)    (arXiv 2605.24396)

    c_j is the probability of the right answer at 0, 20, ..., 100 % of the cut points, scored as in `answer_progress`
    (the paper counts 10 samples).  Confidence that stays the same costs nothing, one that grows is rewarded.
    `details` holds `premature`, the penalty.

    Raises:
        ValueError: a task without `early_answer` or `cut_points`.
    """
    cuts = batch_cuts(batch, probe)
    checkpoints = [_checkpoints(mine) for mine in cuts]
    made = []
    for credit, rollout, confidence in zip(
        credits, batch.rollouts, answer_probabilities(batch, probe, checkpoints), strict=True
    ):
        charge = penalty * float(confidence @ np.array(PENALTY_SLOPE))
        taken = np.where(rollout.loss_mask, credit.advantages - charge, 0.0)
        made.append(_changed(credit, taken, premature=charge))
    return made


def _checkpoints(cuts: Sequence[Cut]) -> list[Cut]:
    """The cuts at equal shares of the way, the first and the last among them; some more than once where few are."""
    last = len(PENALTY_SLOPE) - 1
    return [cuts[round(j * (len(cuts) - 1) / last)] for j in range(last + 1)]


def step_check(credits: Sequence[Credit], batch: Batch, probe: Probe, *, penalty: float = 0.5) -> list[Credit]:
    """The credits less `penalty` on every token of a step that the task's check calls wrong.

    Only wrong steps pay and right ones earn nothing, so writing more steps cannot farm it.
    `details` holds `wrong_steps`, their number.

    Raises:
        ValueError: a task without `wrong_steps` or `cut_points`; a negative penalty.
    """
    if penalty < 0:
        raise ValueError(f"step_check: penalty = {penalty} must be at least 0.")
    task = probe.task
    if not isinstance(task, StepChecked):
        raise ValueError("step_check: the task has no wrong_steps.")
    problems = [problem for group in batch.groups for problem in repeat(group.problem, len(group.rollouts))]
    made = []
    for credit, problem, rollout, cuts in zip(credits, problems, batch.rollouts, batch_cuts(batch, probe), strict=True):
        found = task.wrong_steps(problem, rollout.text)
        wrong = np.isin(np.arange(len(cuts)), found).astype(np.float64)
        taken = credit.advantages - penalty * spread_over_steps(wrong, cuts, len(rollout.tokens))
        made.append(_changed(credit, np.where(rollout.loss_mask, taken, 0.0), wrong_steps=float(len(found))))
    return made


def outcome_floor(credits: Sequence[Credit], batch: Batch, probe: Probe, *, share: float = 0.25) -> list[Credit]:
    """The credits mixed with leave-one-out over all tokens: (1 - share) A + share A_outcome.

    Tokens that a rule gives nothing still feel the outcome, so they cannot drift without a price.  A mixture of two
    credits without bias has none.

    Raises:
        ValueError: `share` outside [0, 1].
    """
    if not 0 <= share <= 1:
        raise ValueError(f"outcome_floor: share = {share} must lie in [0, 1].")
    return [
        _changed(credit, (1 - share) * credit.advantages.astype(np.float64) + share * smeared.advantages)
        for credit, smeared in zip(credits, leave_one_out(batch, probe), strict=True)
    ]


def _masked(credits: Sequence[Credit], kept: Sequence[NDArray[np.bool_]]) -> list[Credit]:
    return [
        _changed(credit, np.where(mine, credit.advantages, 0.0)) for credit, mine in zip(credits, kept, strict=True)
    ]


def _changed(credit: Credit, advantages: NDArray[Any], **details: float) -> Credit:
    return replace(credit, advantages=frozen_array(advantages, np.float32), details={**credit.details, **details})


WRAPPERS: Mapping[str, Wrapper] = MappingProxyType(
    {
        "outcome_floor": outcome_floor,
        "fork_mask": fork_mask,
        "confident_mask": confident_mask,
        "positive_only": positive_only,
        "progressive_confidence": progressive_confidence,
        "step_check": step_check,
    }
)
"""The wrappers by the name that a recipe uses."""


def wrapped(
    credits: Sequence[Credit],
    batch: Batch,
    probe: Probe,
    *,
    wrap: Sequence[str],
    options: Mapping[str, Mapping[str, Any]],
) -> list[Credit]:
    """The credits with the wrappers around them, the first innermost.

    Raises:
        ValueError: an unknown wrapper; as the wrappers.
    """
    for name in wrap:
        if name not in WRAPPERS:
            raise ValueError(unknown_name("credit.wrap", name, WRAPPERS))
        credits = WRAPPERS[name](credits, batch, probe, **options.get(name, {}))
    return list(credits)


def credit_metrics(credits: Sequence[Credit]) -> dict[str, float]:
    """The mean of each number in the credits' details, over the credits that have it; names begin with `credit_`.

    >>> made = [Credit(advantages=np.zeros(1), rule="r", details={"gate_open": found, "cuts": [0]}) for found in (0, 1)]
    >>> credit_metrics(made)
    {'credit_gate_open': 0.5}
    """
    found: dict[str, list[float]] = {}
    for credit in credits:
        for name, value in credit.details.items():
            if isinstance(value, int | float):
                found.setdefault(f"credit_{name}", []).append(float(value))
    return {name: float(np.mean(values)) for name, values in found.items()}
