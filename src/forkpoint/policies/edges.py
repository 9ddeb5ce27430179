"""A single-layer transformer over edge tokens that begins as the table.

An attention-only layer with one head on one-hot tokens, in its full-rank circuit form (Elhage et al. 2021, "A
mathematical framework for transformer circuits"): the residual stream carries the newest edge x_t straight to the
unembedding, which is the table Theta, and the head adds what it reads from the last W edges,

    logits_t = Theta x_t + sum_{s in window} alpha_ts V x_s,   alpha_ts = softmax_s(x_t^T A x_s + p_{t-s}),

over the legal moves of x_t.  A (query and key), V (value, output and unembedding) and the positions p begin at 0, so
the head adds exactly 0 and the logits are the table's to the last bit.  From there it can learn what no table can:
where the walk was before.  Letters as in `moves`.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from forkpoint.policies.moves import Moves, entropies
from forkpoint.theory.graphs import Array


class EdgeTransformer(nn.Module):
    """The table with one attention head over the last `window` edges; frozen rows see the table alone."""

    def __init__(self, moves: Moves, logits: Array, *, window: int, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.moves, self.window = moves, window
        self.logits = nn.Parameter(torch.tensor(logits, dtype=dtype))
        self.attention = nn.Parameter(torch.zeros(moves.count, moves.count, dtype=dtype))
        self.positions = nn.Parameter(torch.zeros(window, dtype=dtype))
        self.values = nn.Parameter(torch.zeros(moves.count, moves.count, dtype=dtype))

    def rows(self, recent: Int[Tensor, "N W"]) -> Float[Tensor, "N M"]:
        """Logits of the legal moves of the newest state of each window."""
        newest, seen = recent[:, -1], recent.clamp(min=0)
        scores = _lookup(self.attention, newest[:, None], seen) + self.positions
        shares = torch.softmax(scores.masked_fill(recent < 0, -torch.inf), dim=-1)
        read = _lookup(self.values, seen[:, :, None], self.moves.padded[newest][:, None, :])
        added = (shares[:, :, None] * read).sum(1).masked_fill(self.moves.frozen[newest][:, None], 0.0)
        return self.moves.spread(self.moves.held(self.logits)).index_select(0, newest) + added

    def score(
        self, recent: Int[Tensor, "N W"], entries: Int[Tensor, " N"], temperature: float
    ) -> tuple[Float[Tensor, " N"], Float[Tensor, " N"]]:
        """Log-probability of each move and entropy of its distribution."""
        logprobs = torch.log_softmax(self.rows(recent) / temperature, dim=-1)
        places = entries - self.moves.offsets[recent[:, -1]]
        return logprobs.gather(-1, places[:, None])[:, 0], entropies(logprobs)


def _lookup(matrix: Float[Tensor, "S S"], rows: Tensor, columns: Tensor) -> Tensor:
    """`matrix[rows, columns]`, whose backward pass is one addition for each entry."""
    places = rows * matrix.shape[1] + columns
    return matrix.reshape(-1).index_select(0, places.reshape(-1)).view(places.shape)
