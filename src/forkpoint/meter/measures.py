"""Agreement of a credit with the true advantage, token by token, with intervals over rollouts.

Letters: N tokens, R rollouts, D resamples.  Every measure takes a weight for each token, so that tokens which were
sampled more densely than others count no more than they should.  What has no variance gives nan.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from forkpoint.seeds import Key

Array: TypeAlias = NDArray[np.float64]
Flags: TypeAlias = NDArray[np.bool_]
CONFIDENCE = 0.95
DRAWS = 400
"""Resamples of a bootstrap."""
_CHUNK = 2_000_000
"""Most weights held at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """A number with its 95 % interval; nan where the tokens do not tell."""

    value: float
    interval: tuple[float, float]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Sample:
    """The tokens that are compared, all arrays [N]."""

    credit: Array
    truth: Array
    """The true advantage, or an estimate of it without bias."""
    variance: Array
    """Of the error of `truth`; 0 where it is exact."""
    weights: Array
    rollout: NDArray[np.int64]
    """Which rollout a token is of: what the bootstrap draws."""


def pearson(credit: Array, truth: Array, weights: Array) -> Array:
    """Weighted correlation for each row of `weights` [D, N], shape [D].

    >>> pearson(np.array([1.0, 2.0, 3.0]), np.array([2.0, 4.0, 6.0]), np.ones((1, 3))).round(12).tolist()
    [1.0]
    """
    # Centred on the whole sample first: the moments below then lose no digits.
    x, y = credit - credit.mean(), truth - truth.mean()
    total = weights.sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean_x, mean_y = weights @ x / total, weights @ y / total
        cross = weights @ (x * y) / total - mean_x * mean_y
        spread_x, spread_y = weights @ (x * x) / total - mean_x**2, weights @ (y * y) / total - mean_y**2
        tiny_x, tiny_y = 1e-12 * float((x * x).max(initial=0.0)), 1e-12 * float((y * y).max(initial=0.0))
        dead = (spread_x <= tiny_x) | (spread_y <= tiny_y)
        found: Array = np.where(dead, np.nan, cross / np.sqrt(np.where(dead, np.nan, spread_x * spread_y)))
    return found


def midranks(values: Array, weights: Array) -> Array:
    """The weight below each value plus half of the weight at it, [N]; for weights of 1 the usual ranks less 1/2.

    >>> midranks(np.array([5.0, 1.0, 5.0]), np.ones(3)).tolist()
    [2.0, 0.5, 2.0]
    """
    _, place = np.unique(values, return_inverse=True)
    held = np.bincount(place, weights=weights)
    ranks: Array = (np.cumsum(held) - held / 2)[place]
    return ranks


def spearman(credit: Array, truth: Array, weights: Array) -> Array:
    """Weighted correlation of the midranks for each row of `weights` [D, N], shape [D].

    Ranks are those under the first row: a bootstrap draws tokens with their ranks.
    """
    return pearson(midranks(credit, weights[0]), midranks(truth, weights[0]), weights)


def auroc(score: Array, positive: Flags, weights: Array) -> Array:
    """P(score of a positive token > that of another), ties half, for each row of `weights` [D, N], shape [D].

    >>> auroc(np.array([3.0, 1.0, 1.0]), np.array([True, False, True]), np.ones((1, 3))).tolist()
    [0.75]
    """
    order = np.argsort(score, kind="stable")
    starts = np.flatnonzero(np.diff(score[order], prepend=np.nan) != 0)
    ordered, hits = weights[:, order], positive[order]
    above = np.add.reduceat(ordered * hits, starts, axis=1)
    below = np.add.reduceat(ordered * ~hits, starts, axis=1)
    wins = (above * (np.cumsum(below, axis=1) - below / 2)).sum(axis=1)
    pairs = above.sum(axis=1) * below.sum(axis=1)
    return np.where(pairs > 0, wins / np.where(pairs > 0, pairs, 1.0), np.nan)


def reliability(truth: Array, variance: Array, weights: Array) -> Array:
    """The share of the variance of `truth` that is no error, for each row of `weights` [D, N], shape [D].

    r = 1 - mean(se^2) / var(truth)    (Spearman 1904); nan where nothing is left
    """
    total = weights.sum(axis=1)
    centred = truth - truth.mean()
    with np.errstate(invalid="ignore", divide="ignore"):
        spread = weights @ centred**2 / total - (weights @ centred / total) ** 2
        share: Array = 1.0 - (weights @ variance / total) / spread
    return np.where((spread > 0) & (share > 0), share, np.nan)


def true_pearson(sample: Sample, weights: Array) -> Array:
    """The correlation with the true advantage itself: that with its estimate, over the root of the reliability."""
    found = pearson(sample.credit, sample.truth, weights)
    return found / np.sqrt(reliability(sample.truth, sample.variance, weights))


def straw(sample: Sample, weights: Array) -> Array:
    """The share of the variance of the true advantage that a positive multiple of the credit explains, 0 to 1, [D].

    R^2 = 1 - (1 - rho^2)(n - 1) / (n - 2), over the reliability, with n = (sum w)^2 / sum w^2; 0 where rho <= 0: a
    credit of the wrong sign, or one that never varies, lets nothing through, and chance alone must not fill the straw.
    """
    found = pearson(sample.credit, sample.truth, weights)
    size = weights.sum(axis=1) ** 2 / (weights**2).sum(axis=1)
    adjusted = 1.0 - (1.0 - found**2) * (size - 1) / np.maximum(size - 2, 1e-9)
    known = reliability(sample.truth, sample.variance, weights)
    return np.where(np.isnan(known), np.nan, np.where(found > 0, np.clip(adjusted / known, 0.0, 1.0), 0.0))


def bootstrap_weights(sample: Sample, key: Key, draws: int = DRAWS) -> Array:
    """The weights of the sample itself and of its resamples, rollouts drawn with replacement, [1 + D, N]."""
    _, place = np.unique(sample.rollout, return_inverse=True)
    count = int(place.max()) + 1
    draws = max(50, min(draws, _CHUNK // max(1, len(place))))
    drawn = key.generator().integers(count, size=(draws, count))
    times = np.stack([np.bincount(row, minlength=count) for row in drawn])
    weights: Array = np.concatenate([sample.weights[None], times[:, place] * sample.weights])
    return weights


def measured(values: Array) -> Measured:
    """The first value, with the percentiles of the others as its interval; resamples that do not tell are left out."""
    rest = values[1:][np.isfinite(values[1:])]
    tail = (1 - CONFIDENCE) / 2
    if not np.isfinite(values[0]) or not len(rest):
        return Measured(value=float("nan"), interval=(float("nan"), float("nan")))
    low, high = np.quantile(rest, [tail, 1 - tail])
    return Measured(value=float(values[0]), interval=(float(low), float(high)))


MEASURES: dict[str, Callable[[Sample, Array], Array]] = {
    "pearson": true_pearson,
    "pearson_seen": lambda sample, weights: pearson(sample.credit, sample.truth, weights),
    "spearman": lambda sample, weights: spearman(sample.credit, sample.truth, weights),
    "straw": straw,
}
"""What is said of each rule; `pearson_seen` and `spearman` are with the estimate of the truth, not corrected."""


def agreement(sample: Sample, key: Key) -> dict[str, Measured]:
    """Every measure of `MEASURES` with its interval, from the same resamples."""
    weights = bootstrap_weights(sample, key)
    return {name: measured(measure(sample, weights)) for name, measure in MEASURES.items()}
