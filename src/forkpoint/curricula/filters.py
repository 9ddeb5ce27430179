"""Which sampled groups carry a signal: judged groups in, places of the groups to keep out.

Only `correct` is read.  A shaped reward varies between rollouts that are all wrong, so a filter on it would keep
hopeless problems for the sake of the shaping.
"""

from collections.abc import Sequence

import numpy as np

from forkpoint.records import Group


def judged_outcomes(group: Group) -> list[bool]:
    """`correct` of the rollouts that the verifier could judge."""
    return [verdict.correct for verdict in group.verdicts if verdict.correct is not None]


def outcome_variance(group: Group) -> float:
    """The sample variance of `correct`, G p (1 - p) / (G - 1); 0 for fewer than two judged rollouts."""
    outcomes = judged_outcomes(group)
    return float(np.var(outcomes, ddof=1)) if len(outcomes) > 1 else 0.0


def is_mixed(group: Group) -> bool:
    """Whether some judged rollouts are correct and some are not."""
    return len(set(judged_outcomes(group))) == 2


def largest_variances(variances: Sequence[float], share: float) -> list[int]:
    """The fewest places whose variances sum to `share` of the total, ascending (RAGEN-2, arXiv 2604.06268).

    Places without variance go, ties go to the earlier place.  Without any variance all stay: there is nothing to
    choose by, and they keep their place in the denominator.

    >>> largest_variances([0.1, 0.0, 0.6, 0.3], 0.9)
    [2, 3]
    """
    if not 0 < share <= 1:
        raise ValueError(f"share = {share} must lie in (0, 1]")
    values = np.asarray(variances, np.float64)
    total = values.sum()
    if total <= 0:
        return list(range(len(values)))
    order = np.argsort(-values, kind="stable")
    reached = np.cumsum(values[order])
    # A sum that misses its bound by rounding alone has reached it.
    needed = int(np.searchsorted(reached, share * total - 1e-9 * total)) + 1
    return sorted(int(place) for place in order[:needed] if values[place] > 0)
