"""Key-value caches in the Hugging Face shape, for what the stock ones cannot do.

`PrefixCache` lets many rows share prompts that were computed once, with gradients.  `SlotCache` is a preallocated
cache whose rows stand at different lengths, so that a finished row can be replaced while the others go on.
Letters: R rows, H key-value heads, W cache width, D head size.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin


class _Layer(CacheLayerMixin):
    """What every layer here shares: masks and positions are explicit, so the sizes are never asked for."""

    is_sliding = False
    keys: Tensor
    values: Tensor

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing: layers are made with their storage."""

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return query_length + self.get_seq_length(), 0

    def get_seq_length(self) -> int:
        return 0

    def get_max_length(self) -> int:
        return -1


class CaptureLayer(_Layer):
    """Keeps the keys and values of one forward, gradients included."""

    def update(self, key_states: Tensor, value_states: Tensor, *_args: Any, **_kwargs: Any) -> tuple[Tensor, Tensor]:  # noqa: ANN401
        self.keys, self.values = key_states, value_states
        return key_states, value_states


class PrefixLayer(_Layer):
    """Puts given keys and values before those of the forward."""

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        super().__init__()
        self.keys, self.values = keys, values

    def update(self, key_states: Tensor, value_states: Tensor, *_args: Any, **_kwargs: Any) -> tuple[Tensor, Tensor]:  # noqa: ANN401
        return torch.cat([self.keys, key_states], dim=2), torch.cat([self.values, value_states], dim=2)


class SlotLayer(_Layer):
    """Preallocated keys and values [R, H, W, D]; one forward writes one token a row, each at its own place."""

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        super().__init__()
        self.keys, self.values = keys, values
        self.positions = torch.zeros(0, dtype=torch.long)
        self.rows = torch.zeros(0, dtype=torch.long)
        self.width = 0

    def update(self, key_states: Tensor, value_states: Tensor, *_args: Any, **_kwargs: Any) -> tuple[Tensor, Tensor]:  # noqa: ANN401
        rows = key_states.shape[0]
        self.keys[self.rows, :, self.positions] = key_states[:, :, 0]
        self.values[self.rows, :, self.positions] = value_states[:, :, 0]
        return self.keys[:rows, :, : self.width], self.values[:rows, :, : self.width]


def capture_cache(num_layers: int) -> Cache:
    """An empty cache that keeps what one forward writes."""
    return _cache([CaptureLayer() for _ in range(num_layers)])


def _cache(layers: Sequence[_Layer]) -> Cache:
    return Cache(layers=list(layers))


def _layers(cache: Cache) -> list[_Layer]:
    """The layers of a cache that was made here."""
    return cast(list[_Layer], cache.layers)


def prefix_cache(captured: Cache, rows: Tensor) -> Cache:
    """A cache whose row i continues prompt `rows[i]` of a captured forward."""
    return _cache(
        [
            PrefixLayer(layer.keys.index_select(0, rows), layer.values.index_select(0, rows))
            for layer in _layers(captured)
        ]
    )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PromptStates:
    """Prompts as rows see them: the last hidden state of each, and the keys and values of all their positions."""

    last: Tensor
    """[P, D]: predicts the first token of a row."""
    cache: Cache

    def tensors(self) -> list[Tensor]:
        """Everything that may carry a gradient."""
        return [self.last, *(states for layer in _layers(self.cache) for states in (layer.keys, layer.values))]

    def detached(self) -> "PromptStates":
        """Copies without a past, which collect gradients of their own."""
        layers = []
        for layer in _layers(self.cache):
            fresh = CaptureLayer()
            fresh.keys, fresh.values = (states.detach().requires_grad_() for states in (layer.keys, layer.values))
            layers.append(fresh)
        return PromptStates(last=self.last.detach().requires_grad_(), cache=_cache(layers))


class SlotCache:
    """A cache of R slots and W positions for every layer; the first rows are the live ones."""

    def __init__(self, captured: Cache, slots: int, width: int) -> None:
        self.width = width

        def storage(states: Tensor) -> Tensor:
            return states.new_zeros(slots, states.shape[1], width, states.shape[3])

        self.layers = [SlotLayer(storage(layer.keys), storage(layer.values)) for layer in _layers(captured)]
        self.cache = _cache(self.layers)

    def fill(self, slots: Tensor, captured: Cache, rows: Tensor, length: int) -> None:
        """Copies the first `length` positions of captured rows into slots."""
        for mine, theirs in zip(self.layers, _layers(captured), strict=True):
            mine.keys[slots, :, :length] = theirs.keys[rows, :, :length]
            mine.values[slots, :, :length] = theirs.values[rows, :, :length]

    def move(self, sources: Tensor, targets: Tensor) -> None:
        """Copies slots over others."""
        for layer in self.layers:
            layer.keys[targets] = layer.keys[sources]
            layer.values[targets] = layer.values[sources]

    def at(self, positions: Tensor, view: int) -> Cache:
        """The cache for one forward that writes row i at `positions[i]` and sees the first `view` positions."""
        rows = torch.arange(positions.shape[0], device=positions.device)
        for layer in self.layers:
            layer.positions, layer.rows, layer.width = positions, rows, view
        return self.cache
