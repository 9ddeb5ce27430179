"""Data-parallel shares of one update: each rank takes some rows, and gradients are summed, never averaged.

The weights of the rows were made over the whole update, so the sum of the shares is the gradient of the update, however
many ranks there are and whatever each holds.  A mean over ranks would weigh ranks instead of tokens.
"""

import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Protocol

import torch
import torch.distributed as distributed
from torch import Tensor

from forkpoint.batching import Row
from forkpoint.policies.protocol import Policy
from forkpoint.training.components import Objective, accumulate

BUCKET = 1 << 22
"""Most numbers that are reduced at once; as float64 they take 32 MiB."""


class Ranks(Protocol):
    """The processes of one data-parallel run, as one of them sees them."""

    rank: int
    """Which of them this is, from 0."""
    size: int
    """How many they are."""

    def add(self, numbers: Tensor) -> None:
        """Replaces the numbers by their sum over the ranks, in place, alike to the last bit on every rank."""
        ...

    def gather(self, text: str) -> list[str]:
        """The text of every rank, in the order of the ranks."""
        ...


class Alone:
    """A single process: needs no communication."""

    rank = 0
    size = 1

    def add(self, numbers: Tensor) -> None:
        """Nothing: the sum over one rank."""

    def gather(self, text: str) -> list[str]:
        """The one text."""
        return [text]


class ProcessGroup:
    """The ranks of a process group of `torch.distributed` that was initialized before (gloo, or nccl on GPUs)."""

    def __init__(self, group: distributed.ProcessGroup | None = None, *, device: torch.device | str = "cpu") -> None:
        """`group` is the default group without one; `device` is where the backend communicates."""
        self._group, self._device = group, torch.device(device)
        self.rank = distributed.get_rank(group)
        self.size = distributed.get_world_size(group)

    def add(self, numbers: Tensor) -> None:
        """Sums over the ranks, in place."""
        distributed.all_reduce(numbers, op=distributed.ReduceOp.SUM, group=self._group)

    def gather(self, text: str) -> list[str]:
        """The text of every rank: lengths first, then padded bytes."""
        data = text.encode()
        lengths = torch.zeros(self.size, dtype=torch.int64, device=self._device)
        lengths[self.rank] = len(data)
        self.add(lengths)
        table = torch.zeros((self.size, int(lengths.max())), dtype=torch.int32, device=self._device)
        table[self.rank, : len(data)] = torch.tensor(list(data), dtype=torch.int32, device=self._device)
        self.add(table)
        return [bytes(row[:length].tolist()).decode() for row, length in zip(table, lengths.tolist(), strict=True)]


def accumulate_share(
    policy: Policy, rows: Sequence[Row], objective: Objective, *, max_tokens: int, ranks: Ranks
) -> dict[str, float]:
    """Adds the gradient of the whole update to the parameters of every rank; returns the sums of the whole update.

    Every rank calls it with *all* rows and works on its share of them, also on an empty one.  Gradients must be empty
    before: what stands in them is summed too.  Afterwards gradients and returned sums are alike on all ranks; the sums
    are those of `accumulate`, and `padding_share` is the mean over the ranks.

    The sum is taken in float64, so for float32 gradients the number and order of the ranks change no more than one
    rounding of each share.
    """
    mine = [rows[place] for place in shares(rows, ranks.size)[ranks.rank]]
    sums = accumulate(policy, mine, objective, max_tokens=max_tokens)
    trained = [parameter for parameter in policy.model.parameters() if parameter.requires_grad]
    if ranks.size > 1:
        add_gradients(trained, ranks)
    return combined([json.loads(text) for text in ranks.gather(json.dumps(sums))])


def shares(rows: Sequence[Row], size: int) -> list[list[int]]:
    """The places of the rows of each rank: runs in the order given, of about equal numbers of tokens.

    Rows that share a prompt stand side by side in an update, so most of them stay together.  A share may be empty.

    Raises:
        ValueError: `size` below 1.
    """
    if size < 1:
        raise ValueError(f"shares: size = {size} must be at least 1.")
    costs = [len(row.prompt) + len(row.tokens) for row in rows]
    total, before = sum(costs), 0
    parts: list[list[int]] = [[] for _ in range(size)]
    for place, cost in enumerate(costs):
        # The rank in whose equal part of all tokens the middle of the row lies, in whole numbers: the same everywhere.
        parts[(2 * before + cost) * size // (2 * total)].append(place)
        before += cost
    return parts


def add_gradients(parameters: Iterable[Tensor], ranks: Ranks) -> None:
    """Replaces every gradient by its sum over the ranks, in float64; a parameter that no row reached counts as 0.

    All ranks must name the same parameters in the same order: gradients travel in buckets of several.
    """
    bucket: list[Tensor] = []
    room = BUCKET
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        if bucket and parameter.numel() > room:
            _add_bucket(bucket, ranks)
            bucket, room = [], BUCKET
        bucket.append(parameter.grad)
        room -= parameter.numel()
    if bucket:
        _add_bucket(bucket, ranks)


def _add_bucket(gradients: Sequence[Tensor], ranks: Ranks) -> None:
    flat = torch.cat([gradient.reshape(-1).double() for gradient in gradients])
    ranks.add(flat)
    for gradient, summed in zip(gradients, flat.split([gradient.numel() for gradient in gradients]), strict=True):
        gradient.copy_(summed.view_as(gradient))


def combined(found: Sequence[dict[str, float]]) -> dict[str, float]:
    """The sums of the whole update from those of its shares, added in the order of the ranks.

    `mismatch_max` is the largest, `padding_share` the mean.

    >>> combined([{"loss": 1.0, "mismatch_max": 0.1}, {"mismatch_max": 0.3}])
    {'loss': 1.0, 'mismatch_max': 0.3}
    """
    sums: dict[str, float] = defaultdict(float)
    for share in found:
        for name, value in share.items():
            if name == "mismatch_max":
                sums[name] = max(sums[name], value)
            else:
                sums[name] += value / len(found) if name == "padding_share" else value
    return dict(sums)
