"""Prompts computed once for all rollouts that continue them, in chunks, as the engine gets to them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers.cache_utils import Cache

from forkpoint.policies.causal import CausalPolicy
from forkpoint.probe import SampleRequest

CHUNK_ROWS = 32
MIN_ROWS = 8
"""Below 8 rows the CPU's matrix products change their last bits with the number of rows."""


def round_up(value: int, multiple: int) -> int:
    """The least multiple that is not below the value."""
    return multiple * -(-value // multiple)


@dataclass(slots=True, kw_only=True)
class _Chunk:
    cache: Cache
    logits: Tensor
    waiting: int
    """Requests that still need it; its memory goes when none does."""


class Prefill:
    """The contexts (prompt and parent's prefix) of a list of requests."""

    def __init__(self, policy: CausalPolicy, requests: Sequence[SampleRequest]) -> None:
        self._policy = policy
        contexts: dict[tuple[bytes, int], int] = {}
        self.context_of = [contexts.setdefault(self._context(request), len(contexts)) for request in requests]
        self._tokens = [np.frombuffer(data, np.int32) for data, _ in contexts]
        self._heads = [head for _, head in contexts]
        self._uses = np.bincount(self.context_of, minlength=len(contexts))
        self.width = round_up(max(map(len, self._tokens)), 16)
        self._chunks: dict[int, _Chunk] = {}

    def _context(self, request: SampleRequest) -> tuple[bytes, int]:
        """The tokens, and where the prompt among them ends as far as that matters."""
        prefix = (
            request.parent.tokens[: request.prefix_length] if request.parent is not None else request.prompt_tokens[:0]
        )
        tokens = np.concatenate([request.prompt_tokens, prefix]).astype(np.int32)
        return tokens.tobytes(), len(tokens) if self._policy.sees_outputs else len(request.prompt_tokens)

    def length(self, request: int) -> int:
        """Tokens of the request's context."""
        return len(self._tokens[self.context_of[request]])

    def get(self, requests: Sequence[int]) -> list[tuple[Cache, Tensor, list[int], list[int]]]:
        """For each chunk that the requests touch: cache, first logits, places in `requests`, rows in the chunk."""
        found: dict[int, tuple[list[int], list[int]]] = {}
        for place, request in enumerate(requests):
            number, row = divmod(self.context_of[request], CHUNK_ROWS)
            places, rows = found.setdefault(number, ([], []))
            places.append(place)
            rows.append(row)
        result = []
        for number, (places, rows) in found.items():
            chunk = self._chunks.get(number) or self._compute(number)
            self._chunks[number] = chunk
            chunk.waiting -= len(places)
            result.append((chunk.cache, chunk.logits[rows], places, rows))
            if chunk.waiting == 0:
                del self._chunks[number]
        return result

    def _compute(self, number: int) -> _Chunk:
        tokens = self._tokens[number * CHUNK_ROWS : (number + 1) * CHUNK_ROWS]
        table = np.zeros((round_up(max(len(tokens), MIN_ROWS), 8), self.width), np.int64)
        for row, context in enumerate(tokens):
            table[row, : len(context)] = context
        device = self._policy.device
        heads = np.zeros(len(table), np.int64)
        heads[: len(tokens)] = self._heads[number * CHUNK_ROWS : (number + 1) * CHUNK_ROWS]
        hidden, cache = self._policy.prefill(torch.from_numpy(table).to(device), torch.from_numpy(heads).to(device))
        ends = torch.tensor([len(context) - 1 for context in tokens] + [0] * (len(table) - len(tokens)), device=device)
        logits = self._policy.logits(hidden[torch.arange(len(table), device=device), ends])
        uses = int(self._uses[number * CHUNK_ROWS : (number + 1) * CHUNK_ROWS].sum())
        return _Chunk(cache=cache, logits=logits, waiting=uses)
