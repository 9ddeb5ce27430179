"""The distillation term is that of its definition, and the same for every split, alone and beside policy gradient."""

import zlib
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, seed, settings
from invariance_cases import (
    AGGREGATIONS,
    BUDGET,
    LIMITS,
    LOSSES,
    distance,
    frozen_rows,
    gradient,
    plain_logprobs,
    policy_of,
    prompt_ids,
    update_gradient,
    weighted,
)
from invariance_ledger import module_ledger  # noqa: F401
from invariance_oracle import exact_weights
from test_split_invariance import COUNT, splits

from forkpoint.batching import TeacherTargets
from forkpoint.losses import reinforce, token_weights
from forkpoint.losses.distillation import bucket_divergence
from forkpoint.records import frozen_array
from forkpoint.seeds import Key
from forkpoint.training.components import Objective, accumulate

COEFFICIENT = 0.7
DIRECTIONS = ("reverse", "forward", "jsd")
CASES = [
    (direction, aggregation, alone)
    for direction in DIRECTIONS
    for aggregation in AGGREGATIONS
    for alone in (True, False)
]
VOCABULARY = 12


def has_teacher(row):
    """Every third row has none, whatever the order: a count of its own."""
    return int(row.tokens.sum()) % 3 != 0


def teacher_of(row, named):
    """A random teacher that names some tokens and leaves the others in a bucket, or names all."""
    draw = Key.root(11).child(row.tokens.tobytes().hex()).generator()
    logprobs = np.log(draw.dirichlet(np.ones(VOCABULARY), size=len(row.tokens)).reshape(-1, VOCABULARY))
    order = np.argsort(-logprobs, axis=-1)
    ids, rest = order[:, :named], np.take_along_axis(logprobs, order[:, named:], -1)
    with np.errstate(divide="ignore"):
        tails = np.log(np.exp(rest).sum(-1))
    return TeacherTargets(
        ids=frozen_array(ids, np.int32),
        logprobs=frozen_array(np.take_along_axis(logprobs, ids, -1), np.float32),
        tails=frozen_array(tails, np.float32),
    )


@cache
def taught_rows(aggregation, alone, named):
    rows = frozen_rows("decoder", "token", even=False)
    masks = [row.loss_mask & has_teacher(row) for row in rows]
    weights = token_weights(masks, prompt_ids(rows), aggregation=aggregation, constant_length=BUDGET)
    rows = weighted(rows, LOSSES["cross_entropy" if alone else "reinforce"], aggregation)
    none = frozen_array([], np.float32)
    return tuple(
        replace(
            row,
            imitation_weights=none,
            teacher=teacher_of(row, named) if has_teacher(row) else None,
            distillation_weights=frozen_array(COEFFICIENT * weight, np.float32),
        )
        for row, weight in zip(rows, weights, strict=True)
    )


def objective_of(direction, alone):
    return Objective(policy_loss=None if alone else reinforce, distillation=direction)


@cache
def whole_gradient(dtype, case, named):
    direction, aggregation, alone = case
    rows = taught_rows(aggregation, alone, named)
    return update_gradient(
        policy_of("decoder", dtype), rows, objective_of(direction, alone), split=[list(range(COUNT))]
    )


@pytest.mark.parametrize("case", CASES, ids=str)
def test_no_split_changes_the_gradient(case, ledger):
    direction, aggregation, alone = case

    @seed(zlib.crc32(str(case).encode()))
    @settings(max_examples=2, database=None)
    @given(splits())
    def holds(split):
        budget, plan = split
        for dtype, limit in LIMITS.items():
            for named in (3, VOCABULARY):
                rows, policy = taught_rows(aggregation, alone, named), policy_of("decoder", dtype)
                parts = [
                    update_gradient(
                        policy,
                        [rows[place] for place in share],
                        objective_of(direction, alone),
                        max_tokens=budget,
                        split=micro_batches,
                    )
                    for share, micro_batches in plan
                ]
                found = distance(sum(parts[1:], parts[0]), whole_gradient(dtype, case, named))
                ledger.add(dtype, (case, named, repr(split)), found)
                assert found <= limit

    holds()


@pytest.mark.parametrize("named", [3, VOCABULARY])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_gradient_is_that_of_the_definition(case, named, ledger):
    """Row by row in float64, from the model's own logits, each weight as its definition."""
    direction, aggregation, alone = case
    policy, rows = policy_of("decoder", "float64"), taught_rows(aggregation, alone, named)
    masked = [replace(row, loss_mask=row.loss_mask & has_teacher(row)) for row in rows]
    total = torch.zeros((), dtype=torch.float64)
    for row, mine, theirs in zip(
        rows, exact_weights(masked, aggregation), exact_weights(rows, aggregation), strict=True
    ):
        if not len(row.tokens):
            continue
        mask = torch.from_numpy(row.loss_mask.copy())
        if row.teacher is not None:
            charge = float(np.float32(COEFFICIENT * np.float32(mine)))
            total = total + charge * divergences(policy, row, direction)[mask].sum()
        if not alone:
            advantages = torch.from_numpy(row.advantages.astype(np.float64))
            total = total - theirs * (advantages * plain_logprobs(policy, row))[mask].sum()
    total.backward()
    found = distance(whole_gradient("float64", case, named), gradient(policy))
    ledger.add("oracle", (case, named), found)
    assert found <= LIMITS["float64"]
    assert distance(whole_gradient("float32", case, named), whole_gradient("float64", case, named)) <= 1e-5


def divergences(policy, row, direction):
    """From each position's buckets: the named tokens by sums of probabilities, and what is left of 1."""
    tokens = torch.tensor(np.concatenate([row.prompt, row.tokens]).astype(np.int64))
    logits = policy.model(input_ids=tokens[None], use_cache=False).logits[0][len(row.prompt) - 1 : -1]
    chances = logits.softmax(-1)
    mine = chances.gather(-1, torch.from_numpy(row.teacher.ids.astype(np.int64)))
    theirs = torch.from_numpy(row.teacher.logprobs.astype(np.float64))
    if row.teacher.ids.shape[1] < VOCABULARY:
        mine = torch.cat([mine, chances.sum(-1, keepdim=True) - mine.sum(-1, keepdim=True)], -1)
        theirs = torch.cat([theirs, torch.from_numpy(row.teacher.tails.astype(np.float64))[:, None]], -1)
    return bucket_divergence(mine.log(), theirs, direction)


def test_the_decoder_has_as_many_tokens_as_the_teacher_names_at_most():
    assert policy_of("decoder", "float64").model.get_output_embeddings().weight.shape[0] == VOCABULARY


def test_a_mean_over_micro_batches_would_be_caught():
    case = ("reverse", "token_mean", True)
    rows, policy = taught_rows("token_mean", True, 3), policy_of("decoder", "float64")
    halves = [rows[: COUNT // 2], rows[COUNT // 2 :]]
    wrong = torch.zeros_like(whole_gradient("float64", case, 3))
    for half in halves:
        masks = [row.loss_mask & has_teacher(row) for row in half]
        own = token_weights(masks, prompt_ids(half), aggregation="token_mean", constant_length=BUDGET)
        parts = [
            replace(row, distillation_weights=frozen_array(COEFFICIENT * weight / 2, np.float32))
            for row, weight in zip(half, own, strict=True)
        ]
        wrong += update_gradient(policy, parts, objective_of("reverse", True))
    assert distance(wrong, whole_gradient("float64", case, 3)) > 1e-3


def test_a_table_of_moves_has_no_teacher():
    rows = frozen_rows("table", "token", even=False)
    with pytest.raises(TypeError, match="no teacher"):
        accumulate(policy_of("table", "float64"), rows, objective_of("reverse", False), max_tokens=64)
