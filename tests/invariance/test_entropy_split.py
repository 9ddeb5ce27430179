"""The entropy bonus is that of its definition, by autograd and by finite differences, and the same for every split."""

import zlib
from dataclasses import replace
from functools import cache, partial

import numpy as np
import pytest
import torch
from hypothesis import given, seed, settings
from invariance_cases import (
    AGGREGATIONS,
    GRAPH,
    LIMITS,
    LOSSES,
    distance,
    frozen_rows,
    gradient,
    plain_logprobs,
    policy_of,
    update_gradient,
    weighted,
)
from invariance_ledger import module_ledger  # noqa: F401
from invariance_oracle import exact_weights
from test_split_invariance import COUNT, splits

from forkpoint.batching import PromptTable, pad_prompts, pad_rows
from forkpoint.losses import reinforce
from forkpoint.policies import causal
from forkpoint.policies.causal import CausalPolicy
from forkpoint.policies.tabular import OFFSET
from forkpoint.records import frozen_array
from forkpoint.theory.graphs import edge_states
from forkpoint.training.components import Objective, accumulate

BONUS = 0.4
TEMPERATURE = 1.3
CASES = [
    (kind, aggregation, alone) for kind in ("decoder", "table") for aggregation in AGGREGATIONS for alone in (0, 1)
]


@cache
def paid_rows(kind, aggregation):
    """Rows with policy weights, and the bonus over the count of all trained tokens."""
    rows = frozen_rows(kind, "token", even=False)
    count = sum(int(row.loss_mask.sum()) for row in rows)
    return tuple(
        replace(row, entropy_weights=frozen_array(BONUS / count * row.loss_mask, np.float32))
        for row in weighted(rows, LOSSES["reinforce"], aggregation)
    )


def objective_of(alone):
    return Objective(policy_loss=None if alone else reinforce, entropy=True, temperature=TEMPERATURE)


@cache
def whole_gradient(dtype, case):
    kind, aggregation, alone = case
    found = update_gradient(
        policy_of(kind, dtype), paid_rows(kind, aggregation), objective_of(alone), split=[list(range(COUNT))]
    )
    assert float(found.norm()) > 1e-3
    return found


@pytest.mark.parametrize("case", CASES, ids=str)
def test_no_split_changes_the_gradient(case, ledger):
    kind, aggregation, alone = case

    @seed(zlib.crc32(str(case).encode()))
    @settings(max_examples=3, database=None)
    @given(splits())
    def holds(split):
        budget, plan = split
        for dtype, limit in LIMITS.items():
            rows, policy = paid_rows(kind, aggregation), policy_of(kind, dtype)
            parts = [
                update_gradient(
                    policy, [rows[place] for place in share], objective_of(alone), max_tokens=budget, split=parts
                )
                for share, parts in plan
            ]
            found = distance(sum(parts[1:], parts[0]), whole_gradient(dtype, case))
            ledger.add(dtype, (case, repr(split)), found)
            assert found <= limit

    holds()


def entropies(policy, row):
    """The entropy before each token of a row, from the model's own logits, one row at a time."""
    tokens = torch.tensor(np.concatenate([row.prompt, row.tokens]).astype(np.int64))
    start, count = len(row.prompt), len(row.tokens)
    if isinstance(policy, CausalPolicy):
        logits = policy.model(input_ids=tokens[None], use_cache=False).logits[0][start - 1 : start + count - 1]
        table = torch.log_softmax(logits / TEMPERATURE, -1)
        return -(table.exp() * table).sum(-1)
    states, logits, found = edge_states(GRAPH), policy.model.logits, []
    for before in (tokens[start - 1 : start + count - 1] - OFFSET).tolist():
        table = torch.log_softmax(logits[states.offsets[before] : states.offsets[before + 1]] / TEMPERATURE, 0)
        found.append(-(table.exp() * table).sum())
    return torch.stack(found)


@pytest.mark.parametrize("case", [case for case in CASES if case[2]], ids=str)
def test_the_gradient_is_that_of_the_definition(case, ledger):
    kind, aggregation, _ = case
    policy, rows = policy_of(kind, "float64"), paid_rows(kind, aggregation)
    charge = float(np.float32(BONUS / sum(int(row.loss_mask.sum()) for row in rows)))
    for row in rows:
        if len(row.tokens):
            (-charge * entropies(policy, row)[torch.from_numpy(row.loss_mask.copy())].sum()).backward()
    found = distance(whole_gradient("float64", case), gradient(policy))
    ledger.add("oracle", case, found)
    assert found <= LIMITS["float64"]
    assert distance(whole_gradient("float32", case), whole_gradient("float64", case)) <= 1e-5


def test_the_sum_with_a_policy_gradient_is_the_sum_of_both():
    policy, rows = policy_of("decoder", "float64"), paid_rows("decoder", "token_mean")
    plain = Objective(policy_loss=reinforce, temperature=TEMPERATURE)
    both = update_gradient(policy, rows, objective_of(0))
    parts = update_gradient(policy, rows, plain) + update_gradient(policy, rows, objective_of(1))
    assert distance(both, parts) <= LIMITS["float64"]
    weights = exact_weights(rows, "token_mean")
    for row, weight in zip(rows, weights, strict=True):
        if len(row.tokens):
            mask = torch.from_numpy(row.loss_mask.copy())
            advantages = torch.from_numpy(row.advantages.astype(np.float64))
            # The policy's own temperature is 1 in `plain_logprobs`.
            (-weight * (advantages * plain_logprobs(policy, row))[mask].sum()).backward()
    at_one = gradient(policy)
    assert distance(update_gradient(policy, rows, replace(plain, temperature=1.0)), at_one) <= LIMITS["float64"]


def test_the_gradient_is_that_of_finite_differences():
    """Along ten directions of the parameters, central differences of the loss in float64."""
    policy, rows = policy_of("decoder", "float64"), paid_rows("decoder", "token_mean")
    whole = whole_gradient("float64", ("decoder", "token_mean", 1))
    parameters = list(policy.model.parameters())
    draw = torch.Generator().manual_seed(1)

    def moved(direction, step):
        with torch.no_grad():
            for parameter, change in zip(parameters, direction, strict=True):
                parameter.add_(change, alpha=step)

    for _ in range(10):
        direction = [torch.randn(p.shape, generator=draw, dtype=torch.float64) for p in parameters]
        flat = torch.cat([part.flatten() for part in direction])
        losses = []
        for step in (1e-5, -2e-5):
            moved(direction, step)
            losses.append(accumulate(policy, rows, objective_of(1), max_tokens=64)["loss"])
            gradient(policy)
        moved(direction, 1e-5)
        # Sums are told as float32 in no place: they are floats of float64 losses.
        assert (losses[0] - losses[1]) / 2e-5 == pytest.approx(float(whole @ flat), rel=1e-4)


def test_chunks_of_logits_change_nothing(monkeypatch):
    policy, rows = policy_of("decoder", "float64"), paid_rows("decoder", "token_mean")
    whole = whole_gradient("float64", ("decoder", "token_mean", 0))
    formed = []
    plain = CausalPolicy.logits
    monkeypatch.setattr(causal, "MAX_LOGITS", 24)
    monkeypatch.setattr(CausalPolicy, "logits", lambda self, hidden: formed.append(len(hidden)) or plain(self, hidden))
    assert distance(update_gradient(policy, rows, objective_of(0)), whole) <= LIMITS["float64"]
    assert max(formed) <= 2  # 12 tokens of vocabulary, 24 logits


def test_no_bonus_no_gradient_of_the_entropy():
    policy, rows = policy_of("decoder", "float64"), paid_rows("decoder", "token_mean")
    table: PromptTable = pad_prompts(rows)
    batch = pad_rows(rows, range(COUNT - 1), table=table)
    assert not policy.logprobs(batch)[1].requires_grad
    score = partial(policy.logprobs, entropy_gradient=True)
    assert score(batch)[1].requires_grad
    assert torch.equal(score(batch)[1], policy.logprobs(batch)[1])
    assert not policy_of("table", "float64").logprobs(pad_rows(paid_rows("table", "constant"), [0]))[1].requires_grad


def test_a_row_without_advantage_is_paid_too():
    policy, rows = policy_of("decoder", "float64"), paid_rows("decoder", "token_mean")
    still = [replace(row, advantages=frozen_array(np.zeros(len(row.tokens)), np.float32)) for row in rows]
    found = update_gradient(policy, still, objective_of(0))
    assert distance(found, whole_gradient("float64", ("decoder", "token_mean", 1))) <= LIMITS["float64"]
