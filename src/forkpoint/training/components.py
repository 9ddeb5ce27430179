"""One update's gradient: components summed over micro-batches, each already divided by its global count.

The trainer sums components and knows no algorithm: a row's streams of weights say which terms it enters.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial

import torch

from forkpoint.batching import (
    PromptTable,
    Row,
    TokenBatch,
    length_buckets,
    pad_prompts,
    pad_rows,
    padding_share,
    prompt_chunks,
)
from forkpoint.errors import RecipeError
from forkpoint.losses import Loss
from forkpoint.losses.distillation import Direction, distillation
from forkpoint.losses.divergence import sequence_k2, token_k2
from forkpoint.losses.entropy import entropy_bonus
from forkpoint.losses.imitation import cross_entropy
from forkpoint.policies.causal import CausalPolicy
from forkpoint.policies.protocol import Policy, Scorer
from forkpoint.policies.teachers import TokenScores, students_once
from forkpoint.records import LossOutput

_Score = Callable[[TokenBatch], TokenScores]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """A frozen policy to stay near, and how the distance is charged."""

    policy: Policy
    kind: str
    where: str = "all"
    """`uncredited`: only at tokens whose advantage is 0 (`token_k2`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Objective:
    """What an update minimizes: a policy-gradient loss, cross-entropy, divergences, or a sum of them."""

    policy_loss: Loss | None = None
    experts: bool = False
    """Whether `policy_loss` takes the tokens of an expert too."""
    imitation: bool = False
    reference: Reference | None = None
    distillation: Direction | None = None
    """How the distance to the rows' teachers is measured."""
    entropy: bool = False
    """Whether tokens are paid for the entropy of their distributions."""
    temperature: float = 1.0


def accumulate(
    policy: Policy,
    rows: Sequence[Row],
    objective: Objective,
    *,
    max_tokens: int,
    split: Sequence[Sequence[int]] | None = None,
) -> dict[str, float]:
    """Adds the gradient of the whole update to the parameters; returns sums over the micro-batches.

    Rows that carry no weight and no advantage are skipped: their gradient is zero, and the denominators already
    count them.  Rows that share a prompt share its computation.  Returned: `loss`, `trained_tokens`, `padding_share`,
    `entropy_sum` (nats) and the losses' own sums; `mismatch_max` is the largest |log pi - log mu| (nats), 0 for text.

    `split` names the rows of each micro-batch by their places, instead of buckets of at most `max_tokens` padded
    positions; a micro-batch may be empty.  No split changes the gradient: the rows hold their global weights.

    Raises:
        ValueError: `split` leaves a row out or names one twice.
        TypeError: a distillation of a policy that is no causal language model.
    """
    places = [place for place, row in enumerate(rows) if len(row.tokens) and _has_gradient(row, objective)]
    sums: dict[str, float] = defaultdict(float)
    done: list[list[int]] = []
    for chunk, buckets in _chunks(rows, places, max_tokens=max_tokens, split=split):
        table = pad_prompts([rows[place] for place in chunk], device=policy.device)
        with _scores(policy, objective, table) as score, _reference_scores(objective, table) as anchor:
            for bucket in buckets:
                batch = pad_rows(rows, bucket, table=table, device=policy.device)
                found = _backward(batch, score, anchor, objective)
                worst = max(sums["mismatch_max"], found.pop("mismatch_max"))
                for name, value in found.items():
                    sums[name] += value
                sums["mismatch_max"] = worst
        done += buckets
    lengths = [len(row.tokens) for row in rows]
    return {"mismatch_max": 0.0, **sums, "padding_share": padding_share(lengths, done) if done else 0.0}


def _chunks(
    rows: Sequence[Row], places: Sequence[int], *, max_tokens: int, split: Sequence[Sequence[int]] | None
) -> Iterator[tuple[list[int], list[list[int]]]]:
    """The places that share one table of prompts, and their micro-batches."""
    if split is None:
        for chunk in prompt_chunks(rows, places, max_tokens=max_tokens):
            buckets = length_buckets([len(rows[place].tokens) for place in chunk], max_tokens=max_tokens)
            yield chunk, [[chunk[place] for place in bucket] for bucket in buckets]
        return
    if sorted(place for part in split for place in part) != list(range(len(rows))):
        raise ValueError(f"accumulate: split must name each of the {len(rows)} rows once.")
    kept = set(places)
    for part in split:
        chunk = [place for place in part if place in kept]
        if chunk:
            yield chunk, [chunk]


@contextmanager
def _scores(policy: Policy, objective: Objective, table: PromptTable) -> Iterator[_Score]:
    """What scores the batches of one table of prompts."""
    if objective.distillation is None:
        with policy.prompts_once(table) as score:
            yield partial(_untaught, score, objective)
    elif isinstance(policy, CausalPolicy):
        with students_once(policy, table, objective.distillation) as students:
            yield partial(students, temperature=objective.temperature, entropy_gradient=objective.entropy)
    else:
        raise TypeError(f"a {type(policy).__name__} has no teacher")


def _untaught(score: Scorer, objective: Objective, batch: TokenBatch) -> TokenScores:
    logprobs, entropy = score(batch, temperature=objective.temperature, entropy_gradient=objective.entropy)
    return TokenScores(logprobs=logprobs, entropy=entropy)


def _reference_scores(objective: Objective, table: PromptTable) -> AbstractContextManager[Scorer | None]:
    return nullcontext() if objective.reference is None else objective.reference.policy.prompts_once(table)


def _backward(batch: TokenBatch, score: _Score, anchor: Scorer | None, objective: Objective) -> dict[str, float]:
    """Back-propagates one micro-batch; its sums, all to be added but `mismatch_max`."""
    sums: dict[str, float] = defaultdict(float)
    scores = score(batch)
    logprobs = scores.logprobs
    total = logprobs.sum() * 0.0
    for name, output in _components(batch, scores, anchor, objective):
        total = total + output.loss
        sums[f"{name}_loss"] += float(output.loss.detach())
        for key, value in output.diagnostics.items():
            sums[key] += value
    if total.requires_grad:
        total.backward()
    sums["loss"] = float(total.detach())
    sums["entropy_sum"] = float(scores.entropy.detach().sum())
    sums["trained_tokens"] = float(batch.loss_mask.sum())
    sums["mismatch_max"] = 0.0
    if objective.policy_loss is not None:
        # An expert's tokens have no behavior policy.
        sampled = batch.loss_mask & (batch.expert_weights == 0)
        gap = (logprobs.detach() - batch.behavior_logprobs).abs().masked_fill(~sampled, 0.0)
        sums["mismatch_max"] = float(gap.max())
    return sums


def _has_gradient(row: Row, objective: Objective) -> bool:
    charged = objective.reference is not None
    credited = objective.policy_loss is not None and bool(row.advantages.any())
    imitated = objective.imitation and bool(row.imitation_weights.any())
    taught = objective.distillation is not None and bool(row.distillation_weights.any())
    paid = objective.entropy and bool(row.entropy_weights.any())
    return charged or credited or imitated or taught or paid


def _components(
    batch: TokenBatch, scores: TokenScores, anchor: Scorer | None, objective: Objective
) -> list[tuple[str, LossOutput]]:
    parts: list[tuple[str, LossOutput]] = []
    logprobs = scores.logprobs
    if objective.policy_loss is not None:
        terms = (logprobs, batch.behavior_logprobs, batch.advantages, batch.policy_weights)
        output = objective.policy_loss(*terms, *([batch.expert_weights] if objective.experts else []))
        if not isinstance(output, LossOutput):
            raise RecipeError(f"the loss of the stage gave no LossOutput but {type(output).__name__}")
        parts.append(("policy", output))
    if objective.imitation:
        parts.append(("imitation", cross_entropy(logprobs, batch.imitation_weights)))
    if scores.divergence is not None:
        parts.append(("distillation", distillation(scores.divergence, batch.distillation_weights)))
    if objective.entropy:
        parts.append(("entropy", entropy_bonus(scores.entropy, batch.entropy_weights)))
    if objective.reference is not None and anchor is not None:
        with torch.no_grad():
            kept, _ = anchor(batch, temperature=objective.temperature)
        if objective.reference.kind == "token_k2":
            weights = batch.divergence_weights[:, None] * batch.policy_weights
            if objective.reference.where == "uncredited":
                weights = weights * (batch.advantages == 0)
            parts.append(("divergence", token_k2(logprobs, kept, weights)))
        else:
            parts.append(("divergence", sequence_k2(logprobs, kept, batch.loss_mask, batch.divergence_weights)))
    return parts
