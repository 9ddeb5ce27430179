"""The order of texts: log-probabilities under the starting policy in, places out."""

import math
from collections.abc import Sequence

import numpy as np

from forkpoint.records import Bools, Floats


def mean_nll(logprobs: Floats, mask: Bools) -> float:
    """Minus the mean log-probability of the tokens that are trained on, in nats; its exponential is the perplexity.

    0.0 for a text without such a token.

    >>> mean_nll(np.array([-9.0, -1.0, -3.0]), np.array([False, True, True]))
    2.0
    """
    chosen = np.asarray(logprobs, np.float64)[mask]
    return float(-chosen.mean()) if len(chosen) else 0.0


def descending_perplexity(nlls: Sequence[float]) -> list[int]:
    """Places of the texts, the most surprising first; ties keep their order.

    Raises ValueError where one is not a number: it would have no place.

    >>> descending_perplexity([0.5, 2.0, 0.5, 1.0])
    [1, 3, 0, 2]
    """
    if any(math.isnan(nll) for nll in nlls):
        raise ValueError("a text has no perplexity: its log-probability is not a number")
    return sorted(range(len(nlls)), key=lambda place: -nlls[place])
