"""Which candidates are sampled: weights in, inclusion probabilities, picks and an unbiased mean out.

Letters: N candidates, P picks.  Systematic sampling has the inclusion probabilities that it is given, exactly, so what
was picked still tells the mean over all candidates.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

CERTAIN = 1 - 1e-9
"""From this probability on a candidate is taken without a draw."""


def pick_probabilities(weights: Sequence[float], count: int, *, floor: float) -> NDArray[np.float64]:
    """The probability pi_i with which each candidate is picked, summing to `count`; shape [N].

        pi_i = min(1, c v_i),   v_i = (1 - floor) w_i / sum(w) + floor / N,   c such that they sum to `count`

    So pi_i >= floor count / N: a bucket that looks hopeless is looked at again.  All weights 0 is as all equal.

    Raises:
        ValueError: more picks than candidates, a negative weight, or a floor outside [0, 1].
    """
    values = np.asarray(weights, np.float64)
    if not 0 <= count <= len(values):
        raise ValueError(f"{count} of {len(values)} candidates cannot be picked")
    if not 0 <= floor <= 1 or (values < 0).any():
        raise ValueError(f"floor = {floor} must lie in [0, 1], and no weight below 0")
    total = values.sum()
    even = np.full(len(values), 1 / max(1, len(values)))
    shares = (1 - floor) * values / total + floor * even if total > 0 else even
    return _capped(shares, count)


def _capped(shares: NDArray[np.float64], count: int) -> NDArray[np.float64]:
    """`count` times the shares; what would be above 1 is 1, and the others share the rest."""
    certain = np.zeros(len(shares), np.bool_)
    while True:
        rest = shares[~certain].sum()
        if rest <= 0:
            # Candidates without any share are taken only where the others do not suffice.
            left = max(1, int((~certain).sum()))
            return np.where(certain, 1.0, (count - certain.sum()) / left)
        scaled = np.where(certain, 1.0, shares * ((count - certain.sum()) / rest))
        above = ~certain & (scaled >= CERTAIN)
        if not above.any():
            return scaled
        certain |= above


def systematic_picks(probabilities: NDArray[np.float64], offset: float) -> list[int]:
    """The picked places, ascending; place i with exactly its probability when `offset` is uniform in [0, 1).

    The candidates lie side by side, each as wide as its probability; the points offset, offset + 1, ... pick
    (Madow 1949).  Candidates of probability 1 are always picked.

    >>> systematic_picks(np.array([0.5, 1.0, 0.25, 0.25]), 0.6)
    [1, 2]
    """
    certain = probabilities >= CERTAIN
    others = np.flatnonzero(~certain)
    edges = np.cumsum(probabilities[others])
    points = offset + np.arange(round(edges[-1]) if len(edges) else 0)
    # Rounding may leave the last edge just below the last point.
    places = np.minimum(np.searchsorted(edges, points, side="right"), len(others) - 1)
    return sorted([*np.flatnonzero(certain).tolist(), *others[places].tolist()])


def mean_of_all(
    expected: Sequence[float], probabilities: NDArray[np.float64], found: Sequence[tuple[int, float]]
) -> float:
    """The mean pass rate over all N candidates, from the rates of the picked ones.

        (1/N) [sum_i m_i + sum_{i picked} (x_i - m_i) / pi_i]

    m: what was expected before; x: what was found.  Unbiased whatever m is, and the less noisy the better m
    (the difference estimator, Saerndal et al. 1992), so it may lie a little outside [0, 1].
    """
    correction = sum((rate - expected[place]) / probabilities[place] for place, rate in found)
    return float((sum(expected) + correction) / max(1, len(expected)))
