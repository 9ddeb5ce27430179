"""The policy gradient under a credit: its bias and its noise against those of the oracle's.

Letters: N independent batches, D coordinates.  `constant` aggregation, so that a credit without bias gives a gradient
without bias.  Every square is estimated without bias from products of different batches, or, where the oracle itself
is drawn, of two independent draws of it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from forkpoint.batching import sampled_row
from forkpoint.losses import reinforce, token_weights
from forkpoint.meter.measures import Measured
from forkpoint.policies.protocol import Policy
from forkpoint.records import Batch, Credit, SampledExample
from forkpoint.seeds import Key
from forkpoint.training.components import Objective, accumulate

Matrix: TypeAlias = NDArray[np.float32]
Table: TypeAlias = NDArray[np.float64]
MOST_COORDINATES = 200_000
"""Of larger models a fixed random subset is looked at: ratios of squares stay what they are on average."""
MAX_TOKENS = 8192
"""Most padded positions of one forward."""


UNKNOWN = Measured(value=float("nan"), interval=(float("nan"), float("nan")))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Coordinates:
    """Which entries of the flat gradient are kept; None: all."""

    chosen: NDArray[np.int64] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class GradientScore:
    """A rule's gradient; nan where the batches do not tell."""

    bias: Measured
    """Norm of the difference of the means over the norm of the oracle's mean, its noise floor subtracted."""
    cosine: Measured
    """Of the two means."""
    noise: Measured
    """Noise-to-signal power E|g - mean|^2 / |mean|^2 of one batch."""
    over_oracle: Measured
    """The same over the oracle's."""


def coordinates(policy: Policy, key: Key) -> Coordinates:
    """All entries of the gradient, or a fixed random subset of a large one."""
    size = sum(parameter.numel() for parameter in _trained(policy))
    if size <= MOST_COORDINATES:
        return Coordinates(chosen=None)
    chosen = key.child("coordinates").generator().choice(size, MOST_COORDINATES, replace=False)
    return Coordinates(chosen=np.sort(chosen).astype(np.int64))


def batch_gradient(
    policy: Policy, batch: Batch, credits: Sequence[Credit], kept: Coordinates, *, budget: int
) -> Matrix:
    """The gradient of the REINFORCE loss of a batch, [D]: minus the estimate of the gradient of the success rate.

    Every token weighs 1 / (rollouts x budget).  The policy's own gradients are cleared.
    """
    rollouts = batch.rollouts
    weights = token_weights(
        [rollout.loss_mask for rollout in rollouts], range(len(rollouts)), aggregation="constant",
        constant_length=budget,
    )  # fmt: skip
    rows = []
    for rollout, credit, weight in zip(rollouts, credits, weights, strict=True):
        row = sampled_row(SampledExample(rollout=rollout, credit=credit))
        rows.append(replace(row, policy_weights=weight))
    policy.model.zero_grad(set_to_none=True)
    objective = Objective(policy_loss=reinforce, temperature=rollouts[0].temperature)
    accumulate(policy, rows, objective, max_tokens=MAX_TOKENS)
    flat = torch.cat(
        [
            (torch.zeros_like(p) if p.grad is None else p.grad).detach().reshape(-1).float().cpu()
            for p in _trained(policy)
        ]
    ).numpy()
    policy.model.zero_grad(set_to_none=True)
    return flat if kept.chosen is None else flat[kept.chosen]


def _trained(policy: Policy) -> list[torch.nn.Parameter]:
    return [parameter for parameter in policy.model.parameters() if parameter.requires_grad]


def products(first: Matrix, second: Matrix) -> Table:
    """The inner products of the gradients of all pairs of batches, [N, N]."""
    return first.astype(np.float64) @ second.astype(np.float64).T


def signal(table: Table) -> float:
    """The square of the mean gradient, without bias: the mean product of different batches."""
    count = len(table)
    return float((table.sum() - np.trace(table)) / (count * (count - 1)))


def noise(table: Table) -> float:
    """The power of one batch around the mean, without bias: E|g|^2 - |E g|^2."""
    return float(np.trace(table) / len(table)) - signal(table)


def jackknife(statistic: Callable[[NDArray[np.int64]], float], count: int) -> Measured:
    """A statistic of batches with the interval of the jackknife, one batch left out at a time (Tukey 1958).

    `statistic` takes the places of the batches that are looked at.
    """
    every = np.arange(count)
    value = statistic(every)
    parts = np.array([statistic(np.delete(every, left)) for left in range(count)])
    error = float(np.sqrt((count - 1) / count * ((parts - parts.mean()) ** 2).sum()))
    return Measured(value=value, interval=(value - 1.96 * error, value + 1.96 * error))


def gradient_score(mine: Matrix, oracle: tuple[Matrix, Matrix] | None) -> GradientScore:
    """The score of a rule's gradients [N, D] against two independent draws of the oracle's, on the same batches.

    With an exact oracle both draws are the same matrix; without one only the noise is known.
    bias^2 = |E d|^2 / |E o|^2 with d the difference on each batch, both squares without bias; what is below 0 by
    chance counts as 0.

    Raises:
        ValueError: fewer than three batches, or not the same number of them.
    """
    if oracle is None:
        return GradientScore(bias=UNKNOWN, cosine=UNKNOWN, noise=own_noise(mine, mine), over_oracle=UNKNOWN)
    one, two = oracle
    count = len(mine)
    if count < 3 or len(one) != count or len(two) != count:
        raise ValueError(f"gradient_score: needs the same 3 or more batches, got {count}, {len(one)} and {len(two)}.")
    own, truth, cross = products(mine, mine), products(one, two), (products(mine, one) + products(mine, two)) / 2
    gap = products(mine - one, mine - two)
    bias = jackknife(lambda some: _ratio(_part(gap, some), _part(truth, some), signal, signal), count)
    cosine = jackknife(lambda some: _cosine(_part(own, some), _part(truth, some), _part(cross, some)), count)
    clear = jackknife(lambda some: _clearness(_part(own, some)), count)
    over = jackknife(lambda some: _log_quotient(_clearness(_part(truth, some)), _clearness(_part(own, some))), count)
    return GradientScore(
        bias=_root(bias), cosine=_within(cosine), noise=_inverse(clear), over_oracle=_exponential(over)
    )


def own_noise(one: Matrix, two: Matrix) -> Measured:
    """Noise-to-signal power of gradients, from two independent draws of them; twice the same where they are exact."""
    table = products(one, two)
    return _inverse(jackknife(lambda some: _clearness(_part(table, some)), len(table)))


def _part(table: Table, some: NDArray[np.int64]) -> Table:
    return table[np.ix_(some, some)]


def _ratio(above: Table, below: Table, over: Callable[[Table], float], under: Callable[[Table], float]) -> float:
    bottom = under(below)
    return over(above) / bottom if bottom > 0 else float("nan")


def _log_quotient(above: float, below: float) -> float:
    return float(np.log(above / below)) if above > 0 and below > 0 else float("nan")


def _exponential(logarithm: Measured) -> Measured:
    """The quotient of a logarithm; what is not known stays nan, which `min` would turn into a number."""
    low, value, high = (
        float(np.exp(np.minimum(700.0, x))) for x in (logarithm.interval[0], logarithm.value, logarithm.interval[1])
    )
    return Measured(value=value, interval=(low, high))


def _clearness(table: Table) -> float:
    """Signal over noise, which has a finite error where its inverse has none."""
    return _ratio(table, table, signal, noise)


def _cosine(own: Table, truth: Table, cross: Table) -> float:
    power = signal(own) * signal(truth)
    return signal(cross) / float(np.sqrt(power)) if power > 0 and signal(own) > 0 else float("nan")


def _root(square: Measured) -> Measured:
    low, high = (float(np.sqrt(max(0.0, end))) if np.isfinite(end) else end for end in square.interval)
    value = square.value
    return Measured(value=float(np.sqrt(max(0.0, value))) if np.isfinite(value) else value, interval=(low, high))


def _within(cosine: Measured) -> Measured:
    low, value, high = (
        float(np.clip(number, -1.0, 1.0)) for number in (cosine.interval[0], cosine.value, cosine.interval[1])
    )
    return Measured(value=value, interval=(low, high))


def _inverse(clear: Measured) -> Measured:
    """Noise over signal from signal over noise; without a signal it is infinite."""
    low, high = clear.interval
    if not np.isfinite(clear.value):
        return clear
    return Measured(value=_flip(clear.value), interval=(_flip(high), _flip(low)))


def _flip(value: float) -> float:
    return 1.0 / value if value > 0 else float("inf")
