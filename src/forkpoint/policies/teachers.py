"""A policy as its own teacher: what it says of each token with more in its prompt, and how far it is from that without.

Letters: P prompts, B rows, T positions after the prompt, N scored positions, D hidden, V tokens, K named tokens.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from forkpoint.batching import (
    PromptTable,
    Row,
    TeacherTargets,
    TokenBatch,
    length_buckets,
    pad_prompts,
    pad_rows,
    prompt_chunks,
)
from forkpoint.losses.distillation import Direction, bucket_divergence
from forkpoint.policies.cache import PromptStates
from forkpoint.policies.causal import MAX_LOGITS, CausalPolicy
from forkpoint.records import frozen_array

FULL, FEW = 256, 100
"""Vocabularies up to FULL are named whole; of larger ones the FEW most probable tokens."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TokenScores:
    """What a policy says of the tokens of a batch; all 0 outside the loss mask."""

    logprobs: Float[Tensor, "B T"]
    """Nats."""
    entropy: Float[Tensor, "B T"]
    """Nats, without a gradient."""
    divergence: Float[Tensor, "B T"] | None = None
    """To the teacher, nats; 0 where the weight is 0.  None: no row of the batch has a teacher."""


StudentScorer = Callable[..., TokenScores]
"""(batch, *, temperature) -> TokenScores."""


def named_tokens(vocabulary: int, top_k: int | None) -> int:
    """How many tokens a teacher names.

    >>> named_tokens(40, None), named_tokens(40, 100), named_tokens(50_000, None)
    (40, 40, 100)
    """
    if top_k is None:
        return vocabulary if vocabulary <= FULL else FEW
    return min(top_k, vocabulary)


@torch.no_grad()
def teacher_targets(
    policy: CausalPolicy, rows: Sequence[Row], *, top_k: int | None, temperature: float, max_tokens: int
) -> list[TeacherTargets]:
    """What the policy would say at each token of each row, by the row's own prompt: log-probabilities in nats.

    The K most probable tokens by name and the rest as one bucket; K as `named_tokens` says.  Never more than
    MAX_LOGITS logits at once; the answer takes 8 K bytes for each token.
    """
    targets: dict[int, TeacherTargets] = {}
    for chunk in prompt_chunks(rows, range(len(rows)), max_tokens=max_tokens):
        table = pad_prompts([rows[place] for place in chunk], device=policy.device)
        states = policy.prompt_states(table.prompts, table.lengths)
        for bucket in length_buckets([len(rows[place].tokens) for place in chunk], max_tokens=max_tokens):
            places = [chunk[place] for place in bucket]
            batch = pad_rows(rows, places, table=table, device=policy.device)
            hidden = policy.hidden(batch, states)
            for line, place in zip(hidden, places, strict=True):
                targets[place] = _targets(policy, line[: len(rows[place].tokens)], top_k, temperature)
    return [targets[place] for place in range(len(rows))]


def _targets(policy: CausalPolicy, hidden: Tensor, top_k: int | None, temperature: float) -> TeacherTargets:
    """The targets of one row from its hidden states [T, D]."""
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    for part in hidden.split(_chunk(policy)):
        logprobs = torch.log_softmax(policy.logits(part) / temperature, dim=-1)
        found, ids = logprobs.topk(named_tokens(logprobs.shape[-1], top_k), dim=-1)
        parts.append((ids, found, _tail(logprobs, ids)))
    whole = [torch.cat(each).cpu().numpy() for each in zip(*parts, strict=True)]
    return TeacherTargets(
        ids=frozen_array(whole[0], np.int32),
        logprobs=frozen_array(whole[1], np.float32),
        tails=frozen_array(whole[2], np.float32),
    )


def _chunk(policy: CausalPolicy) -> int:
    """Positions whose logits may be held at once."""
    return max(1, MAX_LOGITS // int(policy.model.get_output_embeddings().weight.shape[0]))


def _tail(logprobs: Float[Tensor, "N V"], ids: Int[Tensor, "N K"]) -> Float[Tensor, " N"]:
    """Log of the probability of all tokens that are not named; -inf where all are."""
    return logprobs.scatter(-1, ids, float("-inf")).logsumexp(-1)


@contextmanager
def students_once(policy: CausalPolicy, table: PromptTable, direction: Direction) -> Iterator[StudentScorer]:
    """Scores batches that share the prompts of a table, with their divergence from their teachers."""
    with policy.shared_states(table) as states:
        yield partial(student_scores, policy, states=states, direction=direction)


def student_scores(
    policy: CausalPolicy,
    batch: TokenBatch,
    *,
    direction: Direction,
    temperature: float = 1.0,
    states: PromptStates | None = None,
    entropy_gradient: bool = False,
) -> TokenScores:
    """The log-probability of each token, its entropy, and the divergence from its teacher, from one forward.

    The divergence is over the tokens that the teacher names and, unless these are all, a bucket of the others.
    Never more than MAX_LOGITS logits at once: more are computed again, chunk by chunk, in the backward pass.
    """
    where = batch.loss_mask
    terms = [policy.hidden(batch, states)[where], batch.tokens[where]]
    if batch.teacher is not None:
        terms += [named[where] for named in (batch.teacher.ids, batch.teacher.logprobs, batch.teacher.tails)]
    reduce = partial(_reduce, policy, temperature, direction, entropy_gradient)
    chunk = _chunk(policy)
    if terms[0].shape[0] <= chunk:
        parts = [reduce(*terms)]
    else:
        cut = zip(*(term.split(chunk) for term in terms), strict=True)
        parts = [checkpoint(reduce, *some, use_reentrant=False) for some in cut]
    blank = torch.zeros(batch.tokens.shape, dtype=parts[0][0].dtype, device=policy.device)
    logprobs, entropy, *rest = (blank.masked_scatter(where, torch.cat(each)) for each in zip(*parts, strict=True))
    divergence = rest[0].masked_fill(batch.distillation_weights == 0, 0.0) if rest else None
    return TokenScores(logprobs=logprobs, entropy=entropy, divergence=divergence)


def _reduce(
    policy: CausalPolicy,
    temperature: float,
    direction: Direction,
    entropy_gradient: bool,
    hidden: Tensor,
    tokens: Tensor,
    *teacher: Tensor,
) -> tuple[Tensor, ...]:
    """Log-probability, entropy and, where `teacher` holds ids, log-probabilities and tails, divergence; each [N]."""
    logprobs = torch.log_softmax(policy.logits(hidden) / temperature, dim=-1)
    chosen = logprobs.gather(-1, tokens[:, None])[:, 0]
    with torch.set_grad_enabled(entropy_gradient and torch.is_grad_enabled()):
        entropy = -(logprobs.exp() * logprobs).sum(-1)
    if not teacher:
        return chosen, entropy
    ids, theirs, tails = teacher
    mine, theirs = logprobs.gather(-1, ids), theirs.to(logprobs.dtype)
    if ids.shape[-1] < logprobs.shape[-1]:
        mine = torch.cat([mine, _tail(logprobs, ids)[:, None]], dim=-1)
        theirs = torch.cat([theirs, tails[:, None].to(logprobs.dtype)], dim=-1)
    return chosen, entropy, bucket_divergence(mine, theirs, direction)
