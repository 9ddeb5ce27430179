"""The legal moves of a lab graph as tensors, and the table of logits over them.

Letters: S edge states, E legal moves in compressed rows, M the most moves of a state, N scored positions, W the edges
that a model sees.  A window holds the last W edge states, the newest last, -1 before the beginning.  Nats.
"""

from typing import Protocol

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from forkpoint.errors import ModelError
from forkpoint.theory.gradients import check_fork
from forkpoint.theory.graphs import Array, EdgeStates, PathStar, edge_states


class EdgeModel(Protocol):
    """A distribution over the legal moves that may depend on the last `window` edges."""

    moves: "Moves"
    window: int

    def rows(self, recent: Int[Tensor, "N W"]) -> Float[Tensor, "N M"]:
        """Logits of the legal moves of each window's newest state; -inf where it has fewer than M."""
        ...

    def score(
        self, recent: Int[Tensor, "N W"], entries: Int[Tensor, " N"], temperature: float
    ) -> tuple[Float[Tensor, " N"], Float[Tensor, " N"]]:
        """Log-probability of each move and entropy of its distribution, which carries no gradient."""
        ...


class Moves(nn.Module):
    """The legal moves of a graph; rows that choose a branch are `frozen` unless the fork is trained."""

    offsets: Tensor
    successors: Tensor
    padded: Tensor
    """The moves of each state [S, M]; 0 where it has fewer."""
    frozen: Tensor
    """Whether a state's row is never trained [S]."""
    targets: Tensor
    _places: Tensor
    _numbers: Tensor
    _frozen_moves: Tensor

    def __init__(self, graph: PathStar, *, fork: str = "frozen") -> None:
        super().__init__()
        states = edge_states(graph)
        self.graph, self.fork = graph, check_fork(fork)
        self.count, self.width = states.count, int(np.diff(states.offsets).max())
        places = states.sources * self.width + np.arange(len(states.successors)) - states.offsets[states.sources]
        padded = np.zeros(states.count * self.width, np.int64)
        padded[places] = states.successors
        arrays = {
            "offsets": states.offsets,
            "successors": states.successors,
            "padded": padded.reshape(states.count, self.width),
            "targets": states.targets,
            "frozen": _frozen(states) & (fork == "frozen"),
            "_frozen_moves": states.frozen_rows & (fork == "frozen"),
            "_places": places,
            "_numbers": states.sources * states.count + states.successors,
        }
        for name, array in arrays.items():
            self.register_buffer(name, torch.from_numpy(array.copy()), persistent=False)

    def spread(self, flat: Float[Tensor, " E"]) -> Float[Tensor, "S M"]:
        """One row of logits for each state, -inf where it has fewer than M moves."""
        blank = flat.new_full((self.count * self.width,), -torch.inf)
        return blank.scatter(0, self._places, flat).view(self.count, self.width)

    def flatten(self, rows: Float[Tensor, "S M"]) -> Float[Tensor, " E"]:
        """The inverse of `spread`."""
        return rows.reshape(-1).index_select(0, self._places)

    def entries(self, sources: Int[Tensor, " N"], states: Int[Tensor, " N"]) -> Int[Tensor, " N"]:
        """The place among the E moves of each step from a source to a state.

        Raises ModelError for a step that is no legal move: it has no probability to train.
        """
        known = (sources >= 0) & (sources < self.count) & (states >= 0) & (states < self.count)
        numbers = torch.where(known, sources * self.count + states, -1)
        places = torch.searchsorted(self._numbers, numbers).clamp(max=len(self._numbers) - 1)
        if not bool((self._numbers[places] == numbers).all()):
            raise ModelError("a text or a rollout holds a step that is no legal move of the policy's graph.")
        return places

    def held(self, flat: Float[Tensor, " E"]) -> Float[Tensor, " E"]:
        """The logits, without a gradient in frozen rows."""
        return torch.where(self._frozen_moves, flat.detach(), flat)


def _frozen(states: EdgeStates) -> np.ndarray:
    rows = np.zeros(states.count, np.bool_)
    rows[states.sources[states.frozen_rows]] = True
    return rows


class TableModel(nn.Module):
    """One logit for each legal move: pi(a|s) = softmax of the logits of s (arXiv 2606.22938, section 2)."""

    window = 1

    def __init__(self, moves: Moves, logits: Array, *, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.moves = moves
        # One dimension, so weight decay leaves it alone: frozen rows stay where they are.
        self.logits = nn.Parameter(torch.tensor(logits, dtype=dtype))

    def rows(self, recent: Int[Tensor, "N W"]) -> Float[Tensor, "N M"]:
        """Logits of the legal moves of the newest state."""
        return self.table()[recent[:, -1]]

    def table(self) -> Float[Tensor, "S M"]:
        """The logits of all states."""
        return self.moves.spread(self.moves.held(self.logits))

    def score(
        self, recent: Int[Tensor, "N W"], entries: Int[Tensor, " N"], temperature: float
    ) -> tuple[Float[Tensor, " N"], Float[Tensor, " N"]]:
        """Log-probability of each move and entropy of its distribution; the softmax is taken once for each state."""
        rows = torch.log_softmax(self.table() / temperature, dim=-1)
        return self.moves.flatten(rows).index_select(0, entries), entropies(rows)[recent[:, -1]]


def entropies(logprobs: Float[Tensor, "N M"]) -> Float[Tensor, " N"]:
    """The entropy of each row, nats; moves of probability 0 count nothing."""
    return -(logprobs.exp() * logprobs.masked_fill(logprobs == -torch.inf, 0.0)).sum(-1)
