"""Two published bugs as a switch, for teaching and as negative controls (arXiv 2604.23747).

Both change which weight a token has in an update, and nothing else, so a bug is a function from rows to rows.
The rows are cut in their order into `ranks` equal shares, and each share into `micro_batches`.

**Lost micro-batches** (DeepSpeed's ZeRO-1 and ZeRO-2 with an optimizer on the CPU, until April 2026): gradients
accumulated between the first micro-batch and the last never reach the optimizer.  `first_and_last` is what the code
did, `first` what the paper says that it did.  With M micro-batches it bites from M = 3, `first` from M = 2.

**Mean of means**: the loss of a micro-batch is divided by its own count, and the update is the mean of these means.
`micro_batch` does so for each micro-batch, `rank` for each rank alone.  It bites where parts have unequal counts, and
cannot where they have equal ones: a token of a part with few tokens weighs more.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from forkpoint.batching import Row
from forkpoint.config.recipe import Bugs
from forkpoint.losses.aggregation import Aggregation, token_weights
from forkpoint.records import frozen_array

__all__ = ["Bugs", "micro_batch_parts", "with_bugs"]


def micro_batch_parts(count: int, bugs: Bugs) -> list[list[list[int]]]:
    """Places of the rows by rank and micro-batch; parts may be empty where there are few rows.

    >>> micro_batch_parts(5, Bugs(micro_batches=2, ranks=2))
    [[[0, 1], [2]], [[3], [4]]]
    """
    shares = np.array_split(np.arange(count), bugs.ranks)
    return [[part.tolist() for part in np.array_split(share, bugs.micro_batches)] for share in shares]


def with_bugs(
    rows: Sequence[Row],
    bugs: Bugs,
    *,
    aggregation: Aggregation = "token_mean",
    constant_length: int = 1,
    token_divergence: bool = False,
) -> list[Row]:
    """The rows with the weights that they would have under the bugs; the same rows where none is on.

    `aggregation` and `constant_length` are those that made the weights of the rows.  With `token_divergence` the
    divergence weight is a factor of the token weights (`token_k2`), else the share of the row (`sequence_k2`).
    """
    parts = micro_batch_parts(len(rows), bugs)
    changed = list(rows)
    if bugs.averaging != "none":
        means = [part for share in parts for part in share]
        if bugs.averaging == "rank":
            means = [[place for part in share for place in part] for share in parts]
        changed = _mean_of_means(changed, means, aggregation, constant_length)
        changed = changed if token_divergence else _mean_of_rows(changed, means)
    for share in parts:
        for part in _lost(share, bugs.accumulation):
            for place in part:
                changed[place] = _scaled(changed[place], 0.0)
    return changed


def _lost(share: list[list[int]], accumulation: str) -> list[list[int]]:
    """The micro-batches of a rank whose gradient never reaches the optimizer."""
    if accumulation == "first":
        return share[1:]
    return share[1:-1] if accumulation == "first_and_last" else []


def _mean_of_means(rows: list[Row], parts: list[list[int]], aggregation: Aggregation, length: int) -> list[Row]:
    """Every part with denominators of its own, divided by the number of parts."""
    prompts: dict[bytes, int] = {}
    for row in rows:
        prompts.setdefault(row.prompt.tobytes(), len(prompts))
    changed = list(rows)
    for part in parts:
        masks = [rows[place].loss_mask for place in part]
        ids = [prompts[rows[place].prompt.tobytes()] for place in part]
        own = token_weights(masks, ids, aggregation=aggregation, constant_length=length)
        for place, weights in zip(part, own, strict=True):
            weights = frozen_array(weights / len(parts), np.float32)
            row = rows[place]
            changed[place] = replace(
                row,
                policy_weights=weights if len(row.policy_weights) else row.policy_weights,
                expert_weights=weights if len(row.expert_weights) else row.expert_weights,
                imitation_weights=weights if len(row.imitation_weights) else row.imitation_weights,
            )
    return changed


def _mean_of_rows(rows: list[Row], parts: list[list[int]]) -> list[Row]:
    """Every row's share in a divergence of sequences as one of its part's rows, divided by the number of parts."""
    changed = list(rows)
    for part in parts:
        for place in part:
            share = rows[place].divergence_weight * len(rows) / (len(parts) * len(part))
            changed[place] = replace(rows[place], divergence_weight=share)
    return changed


def _scaled(row: Row, factor: float) -> Row:
    return replace(
        row,
        policy_weights=frozen_array(row.policy_weights * factor, np.float32),
        expert_weights=frozen_array(row.expert_weights * factor, np.float32),
        imitation_weights=frozen_array(row.imitation_weights * factor, np.float32),
        divergence_weight=row.divergence_weight * factor,
        entropy_weights=frozen_array(row.entropy_weights * factor, np.float32),
    )
