"""How much each token counts in the loss of one update.

The weights are made once over all rows of an update, before any split into micro-batches or ranks.
The loss is then `sum(per_token_loss * weight)`: accumulation is a plain sum, and no split can change the gradient.
"""

from collections.abc import Sequence
from typing import Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray

from forkpoint.records import Bools, Floats, frozen_array

Aggregation: TypeAlias = Literal["token_mean", "constant", "sequence_mean", "prompt_mean"]
"""The names of the four ways to weigh tokens."""


def token_weights(
    masks: Sequence[Bools], prompt_ids: Sequence[int], *, aggregation: Aggregation, constant_length: int
) -> list[Floats]:
    """The weight of every token of one update, one read-only array for each row.

    With n_i the trained tokens of row i, N their sum, n_g the sum over the rows of prompt g, B the number of rows,
    B_v and P_v the number of rows and of prompts that have a trained token, a trained token weighs:

    - `token_mean`     1 / N                    (DAPO, arXiv 2503.14476)
    - `constant`       1 / (B constant_length)  (Dr. GRPO, arXiv 2503.20783; the one that adds no bias)
    - `sequence_mean`  1 / (B_v n_i)            (GRPO, arXiv 2402.03300)
    - `prompt_mean`    1 / (P_v n_g)            (ScaleRL, arXiv 2510.13786)

    Other tokens weigh 0.  `constant` counts the rows given, trained or not, so its scale does not depend on luck.
    Rows may differ in length.  `constant_length` is in tokens and must not depend on the batch.

    Args:
        masks: for each row, True on trained tokens, shape [T_i].
        prompt_ids: for each row, which prompt it answers; only `prompt_mean` reads it.
        aggregation: one of the four names.
        constant_length: the divisor of `constant`; the budget of new tokens is a good choice.

    Raises:
        ValueError: unequal numbers of masks and prompts, `constant_length` below 1, an unknown name.

    >>> rows = [np.array([True, True, False]), np.array([True])]
    >>> [row.tolist() for row in token_weights(rows, [0, 1], aggregation="sequence_mean", constant_length=8)]
    [[0.25, 0.25, 0.0], [0.5]]
    """
    if len(masks) != len(prompt_ids):
        raise ValueError(f"token_weights: {len(masks)} masks but {len(prompt_ids)} prompt ids.")
    if constant_length < 1:
        raise ValueError(f"token_weights: constant_length = {constant_length} must be at least 1.")
    counts = np.array([np.count_nonzero(mask) for mask in masks], dtype=np.int64)
    denominators = _denominators(counts, np.asarray(prompt_ids, dtype=np.int64), aggregation, constant_length)
    return [
        # A row without a trained token has only zeros, whatever its denominator.
        frozen_array(np.asarray(mask, dtype=np.bool_) / max(int(denominator), 1), np.float32)
        for mask, denominator in zip(masks, denominators, strict=True)
    ]


def _denominators(
    counts: NDArray[np.int64], prompts: NDArray[np.int64], aggregation: Aggregation, constant_length: int
) -> NDArray[np.int64]:
    """What divides each row's trained tokens, shape [B]; 0 only where the row has none."""
    rows = len(counts)
    if aggregation == "token_mean":
        return np.full(rows, counts.sum(), dtype=np.int64)
    if aggregation == "constant":
        return np.full(rows, rows * constant_length, dtype=np.int64)
    if aggregation == "sequence_mean":
        return np.count_nonzero(counts) * counts
    if aggregation == "prompt_mean":
        _, place = np.unique(prompts, return_inverse=True)
        per_prompt = np.zeros(rows, dtype=np.int64)
        np.add.at(per_prompt, place, counts)
        return np.count_nonzero(per_prompt) * per_prompt[place]
    raise ValueError(f"aggregation = {aggregation!r} is not known. Known: {', '.join(get_args(Aggregation))}.")
