"""Policies, rows and objectives of the invariance suite, and the two numbers it is about: a gradient and a distance."""

import itertools
import math
from dataclasses import dataclass, replace
from functools import cache, partial

import numpy as np
import torch
from torch import nn

from forkpoint.batching import Row
from forkpoint.losses import clipped_surrogate, dppo_tv, mixed_policy, reinforce, token_weights
from forkpoint.policies.causal import CausalPolicy
from forkpoint.policies.tabular import OFFSET, from_theory
from forkpoint.policies.texts import Texts, alphabet_tokenizer
from forkpoint.policies.tiny import build_decoder
from forkpoint.records import frozen_array
from forkpoint.seeds import Key
from forkpoint.theory.graphs import PathStar, edge_states
from forkpoint.theory.tables import softmax_policy
from forkpoint.training.components import Objective, Reference, accumulate

ALPHABET = "abcdefghij"
GRAPH = PathStar.regular(branches=2, depth=1, lanes=2)
LIMITS = {"float32": 1e-6, "float64": 1e-12}
BUDGET = 12
CLIP_LOW, CLIP_HIGH, DUAL = 0.2, 0.5, 3.0
DELTA_LOW, DELTA_HIGH, CAP, SHAPING = 0.05, 0.07, 3.0, 0.1
APART = 1e-3
COEFFICIENT = 0.3
AGGREGATIONS = ("token_mean", "constant", "sequence_mean", "prompt_mean")
BROADCASTS = ("sequence", "token", "sparse")
RATIOS = (0.4, 0.65, 0.93, 1.07, 1.3, 2.2, 4.5)


@dataclass(frozen=True)
class Recipe:
    """A loss of the suite: its policy-gradient part, whether texts are imitated, which divergence is added."""

    policy_loss: object = None
    imitation: bool = False
    divergence: str | None = None
    experts: bool = False
    """Whether every fourth row is an expert's."""


CLIPPED = partial(clipped_surrogate, clip_low=CLIP_LOW, clip_high=CLIP_HIGH)
LOSSES = {
    "reinforce": Recipe(reinforce),
    "clipped_surrogate": Recipe(CLIPPED),
    "dual_clip": Recipe(partial(CLIPPED, dual_clip=DUAL)),
    "dppo_tv": Recipe(partial(dppo_tv, delta_low=DELTA_LOW, delta_high=DELTA_HIGH, ratio_cap=CAP)),
    "cross_entropy": Recipe(imitation=True),
    "reinforce+cross_entropy": Recipe(reinforce, imitation=True),
    "reinforce+sequence_k2": Recipe(reinforce, divergence="sequence_k2"),
    "clipped_surrogate+token_k2": Recipe(CLIPPED, False, "token_k2"),
    "mixed_policy": Recipe(partial(mixed_policy, shaping=SHAPING), experts=True),
}  # fmt: skip
POLICIES = tuple((kind, dtype) for kind in ("decoder", "table") for dtype in LIMITS)


@cache
def policy_of(kind, dtype, seed=0):
    """A policy that is far from uniform, so that every position matters."""
    draw = Key.root(seed).child("policy").generator()
    if kind == "table":
        logits = draw.normal(size=len(edge_states(GRAPH).successors))
        return from_theory(softmax_policy(GRAPH, logits), fork="trained", dtype=getattr(torch, dtype))
    tokenizer = alphabet_tokenizer(ALPHABET)
    model = build_decoder(
        shape="llama", vocabulary=len(tokenizer), layers=1, width=16, heads=2, context=64, key=Key.root(seed)
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(8.0 if parameter.ndim >= 2 else 1.0)
    return CausalPolicy(exact_norms(model.double()) if dtype == "float64" else model, Texts(tokenizer))


def exact_norms(model):
    """The model with norms that stay in float64: the stock ones round to float32 on the way, in both directions."""
    for name, module in list(model.named_modules()):
        if type(module).__name__ == "LlamaRMSNorm":
            fresh = nn.RMSNorm(len(module.weight), eps=module.variance_epsilon, dtype=torch.float64)
            fresh.weight.data.copy_(module.weight.data)
            owner, _, last = name.rpartition(".")
            setattr(model.get_submodule(owner), last, fresh)
    return model


def walk(draw, start, length):
    """Random legal moves of the graph, as tokens."""
    states, at, found = edge_states(GRAPH), start, []
    for _ in range(length):
        moves = states.successors[states.offsets[at] : states.offsets[at + 1]]
        at = int(draw.choice(moves))
        found.append(at + OFFSET)
    return found


def texts_of(kind, lengths):
    """Prompts that rows share, of ragged lengths, and the tokens of each row."""
    draw = Key.root(3).child("texts", kind).generator()
    prompts, tokens = [], []
    for place, length in enumerate(lengths):
        if kind == "table":
            if place < 3:
                prompts.append([OFFSET, *walk(draw, 0, (1, 3, 2)[place])])
            tokens.append(walk(draw, prompts[place % 3][-1] - OFFSET, length))
        else:
            if place < 3:
                prompts.append(draw.integers(2, 2 + len(ALPHABET), (2, 5, 3)[place]).tolist())
            tokens.append(draw.integers(2, 2 + len(ALPHABET), length).tolist())
    return prompts, tokens


def plain_logprobs(policy, row):
    """Log-probabilities of a row's tokens in float64, one row at a time, by none of our own scoring."""
    tokens = torch.tensor(np.concatenate([row.prompt, row.tokens]).astype(np.int64))
    start, count = len(row.prompt), len(row.tokens)
    if isinstance(policy, CausalPolicy):
        logits = policy.model(input_ids=tokens[None], use_cache=False).logits[0]
        return torch.log_softmax(logits, -1)[torch.arange(start - 1, start + count - 1), tokens[start:]]
    states, logits = edge_states(GRAPH), policy.model.logits
    found = [logits.sum() * 0.0]
    for before, after in itertools.pairwise((tokens[start - 1 :] - OFFSET).tolist()):
        first, last = states.offsets[before], states.offsets[before + 1]
        place = int(np.flatnonzero(states.successors[first:last] == after)[0])
        found.append(torch.log_softmax(logits[first:last], 0)[place])
    return torch.stack(found)[1:]


@cache
def frozen_rows(kind, broadcast, even):
    """Rows without weights: ragged with holes, rejected tokens, a row without any, an empty one; or `even` ones."""
    draw = Key.root(5).child("rows", kind, broadcast).generator()
    lengths = [6] * 12 if even else [4, 9, 1, 7, 12, 5, 3, 8, 10, 2, 6, 0]
    prompts, tokens = texts_of(kind, lengths)
    rows = []
    for place, length in enumerate(lengths):
        mask = np.ones(length, bool)
        if not even:
            mask = draw.random(length) < 0.85
            # An observation of the environment, and a rollout of which every token was rejected.
            mask[3:5] = mask[3:5] & (place % 3 != 1)
            mask &= place != 9
        one, many = draw.normal(), draw.normal(size=length)
        advantage = {"sequence": one, "token": many, "sparse": one * (place % 2)}[broadcast]
        row = Row(
            prompt=frozen_array(prompts[place % 3], np.int32),
            tokens=frozen_array(tokens[place], np.int32),
            loss_mask=frozen_array(mask, np.bool_),
            advantages=frozen_array(np.where(mask, advantage, 0.0), np.float32),
        )
        rows.append(replace(row, behavior_logprobs=behavior_of(kind, row, draw)))
    return rows


def behavior_of(kind, row, draw):
    """Behavior log-probabilities on both sides of every threshold, but never near one."""
    if not len(row.tokens):
        return frozen_array([], np.float32)
    with torch.no_grad():
        logprobs = plain_logprobs(policy_of(kind, "float64"), row).tolist()
    found = []
    for logp in logprobs:
        while True:
            behavior = logp - math.log(draw.choice(RATIOS)) + draw.uniform(-0.02, 0.02)
            if behavior < -1e-3 and distance_to_thresholds(logp, behavior) > 2 * APART:
                break
        found.append(behavior)
    return frozen_array(np.where(row.loss_mask, found, 0.0), np.float32)


def distance_to_thresholds(logp, behavior):
    """How far a token is from the nearest threshold of a clip or a trust region."""
    ratio, change = math.exp(logp - behavior), math.exp(logp) - math.exp(behavior)
    thresholds = [ratio - 1 - CLIP_HIGH, ratio - 1 + CLIP_LOW, ratio - DUAL, ratio - CAP]
    thresholds += [change - DELTA_HIGH, change + DELTA_LOW]
    return min(map(abs, thresholds))


@cache
def rows_of(kind, loss, aggregation, broadcast, even=False):
    """The rows of an update with their global weights."""
    return tuple(weighted(frozen_rows(kind, broadcast, even), LOSSES[loss], aggregation))


def weighted(rows, recipe, aggregation):
    """Weights over all the rows given, before any split."""
    weights = token_weights(
        [row.loss_mask for row in rows], prompt_ids(rows), aggregation=aggregation, constant_length=BUDGET
    )
    none = frozen_array([], np.float32)
    charge = {None: 0.0, "token_k2": COEFFICIENT, "sequence_k2": COEFFICIENT / len(rows)}[recipe.divergence]
    return [
        replace(
            row,
            policy_weights=weight if recipe.policy_loss and not (recipe.experts and is_expert(row)) else none,
            expert_weights=weight if recipe.experts and is_expert(row) else none,
            imitation_weights=weight if recipe.imitation else none,
            divergence_weight=charge,
        )
        for row, weight in zip(rows, weights, strict=True)
    ]


def is_expert(row):
    """Whether a row plays the expert in the mixed loss: a property of its tokens, so it survives any order."""
    return int(row.tokens.sum()) % 4 == 1


def prompt_ids(rows):
    known = {}
    return [known.setdefault(row.prompt.tobytes(), len(known)) for row in rows]


def objective_of(loss, kind, dtype):
    recipe = LOSSES[loss]
    reference = None
    if recipe.divergence:
        reference = Reference(policy=policy_of(kind, dtype, seed=1), kind=recipe.divergence)
    return Objective(
        policy_loss=recipe.policy_loss, experts=recipe.experts, imitation=recipe.imitation, reference=reference
    )


def gradient(policy):
    """The accumulated gradient as one float64 vector; it is cleared."""
    parts = [
        torch.zeros(parameter.numel()) if parameter.grad is None else parameter.grad.flatten()
        for parameter in policy.model.parameters()
    ]
    policy.model.zero_grad(set_to_none=True)
    return torch.cat([part.double() for part in parts])


def distance(one, other):
    return float((one - other).norm() / other.norm())


def update_gradient(policy, rows, objective, *, max_tokens=1 << 20, split=None):
    accumulate(policy, rows, objective, max_tokens=max_tokens, split=split)
    return gradient(policy)


@cache
def whole_gradient(kind, dtype, loss, aggregation, broadcast, even=False):
    """The gradient of all rows in one micro-batch."""
    rows = rows_of(kind, loss, aggregation, broadcast, even)
    found = update_gradient(
        policy_of(kind, dtype), rows, objective_of(loss, kind, dtype), split=[list(range(len(rows)))]
    )
    assert float(found.norm()) > 1e-3
    return found
