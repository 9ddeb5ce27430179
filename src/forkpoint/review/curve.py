"""Where the value of a rollout changed, as far as some continuations tell: a posterior that chooses what to draw next.

Nothing here makes a claim; claims are tested on continuations of their own (`testing_values`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from scipy.special import betainc

Row = NDArray[np.float64]
LEVELS: Row = np.array([0.0, 0.02, *(round(0.05 * level, 2) for level in range(1, 20)), 0.98, 1.0])
"""What a value may be."""
LEVELS.flags.writeable = False
CHANGES = 3.0
"""Changes of the value that a rollout is expected to have."""
SPREAD = 2.0
"""Concentration of the value after a change about the one before it."""
SURPRISE = 0.01
"""Share of changes to just any value: room for what the other assumptions leave out."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Curve:
    """The posterior of the values at S cuts, and of the S steps between them and the end."""

    mean: Row
    """[S] of the value at each cut."""
    variance: Row
    """[S]."""
    large: Row
    """[S] probability that the step lowers the value by `drop` or more."""
    loss: Row
    """[S] expected size of such a drop, 0 where there is none."""
    first: Row
    """[S] probability that it is the first such step."""


def value_curve(successes: Sequence[int], trials: Sequence[int], *, end: int, drop: float) -> Curve:
    """The posterior given the continuations at each cut; `end`, 0 or 1, is the value after the last step.

    The value is a martingale along rollouts of the policy that is asked: V_k = E[V_{k+1}].  So the chain is taken as

        V_{k+1} = V_k with probability 1 - h, else ~ Beta(c V_k, c (1 - V_k)),   h = min(1/2, 3 / S), c = 2,

    on the grid `LEVELS`, 0 and 1 almost absorbing, the first value uniform.  Forward-backward sums are exact, so cuts
    that nobody looked at are filled in from those beside them, and the value may fall and recover.
    """
    seen = len(trials)
    s, n = np.asarray(successes)[:, None], np.asarray(trials)[:, None]
    likely = np.vstack([LEVELS**s * (1 - LEVELS) ** (n - s), np.equal(LEVELS, end)])
    likely /= likely.max(axis=1, keepdims=True)
    moves = _moves(min(0.5, CHANGES / seen))
    falls = np.subtract.outer(LEVELS, LEVELS)
    large = falls >= drop - 1e-9
    backward = np.ones((seen + 1, len(LEVELS)))
    for k in reversed(range(seen)):
        backward[k] = moves @ (likely[k + 1] * backward[k + 1])
        backward[k] /= backward[k].max()
    forward = likely[0] / likely[0].sum()
    unbroken = forward.copy()
    rows = []
    for k in range(seen):
        here = forward * backward[k] / (forward @ backward[k])
        after = moves * (likely[k + 1] * backward[k + 1])
        pairs = forward[:, None] * after
        total = pairs.sum()
        mean = here @ LEVELS
        rows.append(
            (
                mean,
                here @ (LEVELS - mean) ** 2,
                pairs[large].sum() / total,
                (pairs * falls)[large].sum() / total,
                (unbroken[:, None] * after)[large].sum() / total,
            )
        )
        unbroken = (unbroken @ np.where(large, 0.0, moves)) * likely[k + 1]
        forward = (forward @ moves) * likely[k + 1]
        unbroken, forward = unbroken / forward.sum(), forward / forward.sum()
    mean, variance, sizes, loss, first = np.array(rows).T
    return Curve(mean=mean, variance=variance, large=sizes, loss=loss, first=first)


@cache
def _moves(change: float) -> Row:
    """[L, L] probability of each value after a step, given the one before it."""
    count = len(LEVELS)
    edges = np.array([0.0, *((LEVELS[1:] + LEVELS[:-1]) / 2), 1.0])
    inner = LEVELS[1:-1, None]
    table = np.eye(count)
    table[1:-1] = np.diff(betainc(SPREAD * inner, SPREAD * (1 - inner), edges[None, :]), axis=1)
    table = (1 - SURPRISE) * table + SURPRISE / count
    return np.asarray((1 - change) * np.eye(count) + change * table)


def next_cuts(curve: Curve, targets: Sequence[Row], *, most: int) -> list[int]:
    """The cuts that tell most about where the targets are, the best first, at most one for each target and `most`.

    With m_k the share of a target's probability at step k, cut c splits it into M = sum_{k < c} m_k and 1 - M; what
    a look there can tell is about M (1 - M) Var(V_c).  Where one step holds nearly all, the less known of its two ends.
    """
    chosen: list[int] = []
    for target in targets:
        if target.sum() <= 0 or len(chosen) >= most:
            continue
        shares = target / target.sum()
        before = np.cumsum(shares) - shares
        gain = before * (1 - before) * curve.variance
        step = int(np.argmax(shares))
        ends = [cut for cut in (step, step + 1) if cut < len(shares)]
        gain[ends] = np.maximum(gain[ends], shares[step] * (1 - curve.large[step]) * curve.variance[ends])
        gain[chosen] = -1.0
        best = int(np.argmax(gain))
        if gain[best] > 0:
            chosen.append(best)
    return chosen
