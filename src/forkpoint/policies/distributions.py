"""Two causal policies side by side at the same positions: whole next-token distributions, never a whole table of them.

Everything is computed from hidden states in chunks of at most `causal.MAX_LOGITS` logits, also in the backward pass.
Letters: N positions, D hidden, V tokens.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from forkpoint.batching import Row, length_buckets, pad_rows
from forkpoint.policies import causal
from forkpoint.policies.causal import CausalPolicy
from forkpoint.records import Floats, Ints, Rollout, frozen_array

_Part = tuple[Tensor, ...]


def token_logprobs(
    policy: CausalPolicy, hidden: Float[Tensor, "N D"], tokens: Int[Tensor, " N"], *, temperature: float = 1.0
) -> Float[Tensor, " N"]:
    """The log-probability of each token at its position, in nats."""

    def chunk(states: Tensor, targets: Tensor) -> _Part:
        table = torch.log_softmax(policy.logits(states) / temperature, dim=-1)
        return (table.gather(-1, targets[:, None])[:, 0],)

    return _in_chunks(chunk, hidden, tokens, size=_chunk_size(policy, tables=1))[0]


def forward_kl(
    policy: CausalPolicy,
    hidden: Float[Tensor, "N D"],
    base: CausalPolicy,
    base_hidden: Float[Tensor, "N D"],
    *,
    temperature: float = 1.0,
) -> Float[Tensor, " N"]:
    """The exact KL(base || policy) of the next token at each position, in nats; no gradient reaches the base.

    KL = sum_v base(v) (log base(v) - log policy(v)), over the whole vocabulary.
    """

    def chunk(states: Tensor, base_states: Tensor) -> _Part:
        with torch.no_grad():
            reference = torch.log_softmax(base.logits(base_states) / temperature, dim=-1)
        mine = torch.log_softmax(policy.logits(states) / temperature, dim=-1)
        return ((reference.exp() * (reference - mine)).sum(dim=-1),)

    return _in_chunks(chunk, hidden, base_hidden, size=_chunk_size(policy, tables=2))[0]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TopTokens:
    """What the base says of the policy's most probable token, at each token of one rollout."""

    ranks: Ints
    """Rank under the base, 1: the same top token; 0 where the token was not sampled."""
    entropies: Floats
    """Entropy of the base, nats; 0 where the token was not sampled."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """How often two policies would say the same, along the rollouts of one of them."""

    positions: int
    same: int
    """Positions with the same top token."""
    entropy: float
    """Mean entropy of the base over all positions, nats."""
    entropy_different: float | None
    """Mean entropy of the base where the top tokens differ, nats; None where they never do."""
    rank_different: float | None
    """Mean rank of the policy's top token under the base where the top tokens differ."""

    @property
    def share(self) -> float:
        """Share of the positions with the same top token; 1 where there is no position."""
        return self.same / self.positions if self.positions else 1.0


def top_tokens(
    policy: CausalPolicy, base: CausalPolicy, rollouts: Sequence[Rollout], *, max_batch_tokens: int = 8192
) -> list[TopTokens]:
    """For each rollout, teacher-forced: the base's rank of the policy's top token, and the base's entropy.

    Two policies of the same tokenizer.  Temperature 1; tokens that are tied under the base share the best rank.
    """
    rows = [
        Row(prompt=rollout.prompt_tokens, tokens=rollout.tokens, loss_mask=rollout.loss_mask) for rollout in rollouts
    ]
    ranks = [np.zeros(len(row.tokens), np.int32) for row in rows]
    entropies = [np.zeros(len(row.tokens), np.float32) for row in rows]
    filled = [place for place, row in enumerate(rows) if row.loss_mask.any()]
    for bucket in length_buckets([len(rows[place].tokens) for place in filled], max_tokens=max_batch_tokens):
        places = [filled[place] for place in bucket]
        found = _compared(policy, base, [rows[place] for place in places])
        ends = np.cumsum([int(rows[place].loss_mask.sum()) for place in places])[:-1]
        for place, rank, entropy in zip(places, np.split(found[0], ends), np.split(found[1], ends), strict=True):
            ranks[place][rows[place].loss_mask] = rank
            entropies[place][rows[place].loss_mask] = entropy
    return [
        TopTokens(ranks=frozen_array(rank, np.int32), entropies=frozen_array(entropy, np.float32))
        for rank, entropy in zip(ranks, entropies, strict=True)
    ]


def agreement(found: Sequence[TopTokens]) -> Agreement:
    """The agreement over all sampled tokens of some rollouts (arXiv 2605.06241: 0.96 to 0.99 for RL on large models).

    >>> one = TopTokens(ranks=np.array([1, 0, 3, 1]), entropies=np.array([0.0, 0.0, 1.5, 0.3]))
    >>> result = agreement([one])
    >>> result.positions, result.same, round(result.entropy, 6), result.entropy_different, result.rank_different
    (3, 2, 0.6, 1.5, 3.0)
    """
    ranks = np.concatenate([np.zeros(0, np.int32), *(each.ranks for each in found)])
    entropies = np.concatenate([np.zeros(0), *(each.entropies.astype(np.float64) for each in found)])
    sampled, different = ranks > 0, ranks > 1
    return Agreement(
        positions=int(sampled.sum()),
        same=int((ranks == 1).sum()),
        entropy=float(entropies[sampled].mean()) if sampled.any() else 0.0,
        entropy_different=float(entropies[different].mean()) if different.any() else None,
        rank_different=float(ranks[different].mean()) if different.any() else None,
    )


def _compared(policy: CausalPolicy, base: CausalPolicy, rows: Sequence[Row]) -> tuple[Ints, Floats]:
    """Ranks and entropies at the sampled tokens of the rows, row by row."""

    def chunk(states: Tensor, base_states: Tensor) -> _Part:
        top = policy.logits(states).argmax(dim=-1)
        table = torch.log_softmax(base.logits(base_states), dim=-1)
        above = table > table.gather(-1, top[:, None])
        return above.sum(dim=-1) + 1, -(table.exp() * table).sum(dim=-1)

    with torch.no_grad():
        batch = pad_rows(rows, range(len(rows)), device=policy.device)
        theirs = pad_rows(rows, range(len(rows)), device=base.device)
        hidden, base_hidden = policy.hidden(batch)[batch.loss_mask], base.hidden(theirs)[theirs.loss_mask]
        ranks, entropies = _in_chunks(chunk, hidden, base_hidden.to(hidden.device), size=_chunk_size(policy, tables=2))
    return ranks.cpu().numpy(), entropies.cpu().numpy()


def _chunk_size(policy: CausalPolicy, *, tables: int) -> int:
    """Positions of one chunk, so that `tables` tables of logits together stay within the limit."""
    return max(1, causal.MAX_LOGITS // (tables * policy.model.get_output_embeddings().weight.shape[0]))


def _in_chunks(function: Callable[..., _Part], *inputs: Tensor, size: int) -> _Part:
    """The function's results over chunks of the positions; each chunk is recomputed in the backward pass."""
    if inputs[0].shape[0] <= size:
        return function(*inputs)
    pieces = zip(*(tensor.split(size) for tensor in inputs), strict=True)
    parts = [checkpoint(function, *piece, use_reentrant=False) for piece in pieces]
    return tuple(torch.cat(column) for column in zip(*parts, strict=True))
