"""The gradient of one update is that of its definition, and the same for every split of its rows.

Splits are micro-batches (empty ones too), packing budgets, data-parallel shares and orders, drawn by hypothesis.
"""

import itertools
import zlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, seed, settings
from hypothesis import strategies as st
from invariance_cases import (
    AGGREGATIONS,
    APART,
    BROADCASTS,
    LIMITS,
    LOSSES,
    POLICIES,
    distance,
    distance_to_thresholds,
    frozen_rows,
    objective_of,
    plain_logprobs,
    policy_of,
    rows_of,
    update_gradient,
    weighted,
    whole_gradient,
)
from invariance_ledger import module_ledger  # noqa: F401
from invariance_oracle import oracle_gradient, policy_slope

COUNT = len(frozen_rows("table", "sequence", even=False))
CASES = [
    (loss, aggregation, broadcast)
    for loss in LOSSES
    for aggregation in AGGREGATIONS
    # Texts have no credit to broadcast.
    for broadcast in (BROADCASTS if loss != "cross_entropy" else BROADCASTS[:1])
]


def cut(places, edges):
    """The places in runs that end at the edges; runs may be empty."""
    ends = [0, *sorted(edges), len(places)]
    return [places[start:end] for start, end in itertools.pairwise(ends)]


@st.composite
def splits(draw):
    """Shares of the ranks; of each its rows in order, and its micro-batches or a packing budget."""
    order = draw(st.permutations(range(COUNT)))
    ranks = draw(st.integers(1, 3))
    shares = cut(order, draw(st.lists(st.integers(0, COUNT), min_size=ranks - 1, max_size=ranks - 1)))
    budget = draw(st.sampled_from([1, 16, 40]))
    plan = []
    for share in shares:
        edges = draw(st.lists(st.integers(0, len(share)), max_size=8) | st.just(None))
        micro_batches = None if edges is None else cut(list(range(len(share))), edges)
        plan.append((tuple(share), micro_batches))
    return budget, plan


def gradient_of_split(kind, dtype, case, split):
    """The sum of the shares' gradients, each share accumulated over its micro-batches."""
    loss, aggregation, broadcast = case
    budget, plan = split
    rows, policy = rows_of(kind, loss, aggregation, broadcast), policy_of(kind, dtype)
    parts = [
        update_gradient(
            policy,
            [rows[place] for place in share],
            objective_of(loss, kind, dtype),
            max_tokens=budget,
            split=micro_batches,
        )
        for share, micro_batches in plan
    ]
    return sum(parts[1:], parts[0])


@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_no_split_changes_the_gradient(case, ledger):
    @seed(zlib.crc32("-".join(case).encode()))
    @settings(max_examples=3, database=None)
    @given(splits())
    def holds(split):
        for kind, dtype in POLICIES:
            found = distance(gradient_of_split(kind, dtype, case, split), whole_gradient(kind, dtype, *case))
            ledger.add(dtype, (kind, *case, repr(split)), found)
            assert found <= LIMITS[dtype]

    holds()


@pytest.mark.parametrize("kind", ["decoder", "table"])
@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_the_gradient_is_that_of_the_definition(case, kind, ledger):
    loss, aggregation, broadcast = case
    rows = frozen_rows(kind, broadcast, even=False)
    exact = oracle_gradient(policy_of(kind, "float64"), policy_of(kind, "float64", seed=1), rows, loss, aggregation)
    found = distance(whole_gradient(kind, "float64", *case), exact)
    ledger.add("oracle", (kind, *case), found)
    assert found <= LIMITS["float64"]
    # Rounding of the forward pass, not of the sum: a looser limit.
    assert distance(whole_gradient(kind, "float32", *case), exact) <= 1e-5


@pytest.mark.parametrize("aggregation", ["token_mean", "sequence_mean", "prompt_mean"])
@pytest.mark.parametrize("kind", ["decoder", "table"])
def test_an_abstained_rollout_leaves_no_trace(kind, aggregation):
    # Rejected to the last token, or gone before the weights were made: the denominators are the same.
    rows, policy = list(frozen_rows(kind, "token", even=False)), policy_of(kind, "float64")
    rows[2] = replace(rows[2], loss_mask=np.zeros_like(rows[2].loss_mask))
    objective = objective_of("reinforce", kind, "float64")
    there = update_gradient(policy, weighted(rows, LOSSES["reinforce"], aggregation), objective)
    gone = update_gradient(policy, weighted(rows[:2] + rows[3:], LOSSES["reinforce"], aggregation), objective)
    assert distance(there, gone) <= LIMITS["float64"]


def test_a_split_names_every_row_once():
    rows, objective = (
        rows_of("table", "reinforce", "token_mean", "token"),
        objective_of("reinforce", "table", "float64"),
    )
    for split in ([list(range(COUNT - 1))], [list(range(COUNT)), [0]], [[-1, *range(COUNT - 1)]]):
        with pytest.raises(ValueError, match="each of the 12 rows once"):
            update_gradient(policy_of("table", "float64"), rows, objective, split=split)


@pytest.mark.parametrize("broadcast", ["sequence", "token"])
@pytest.mark.parametrize("kind", ["decoder", "table"])
def test_tokens_lie_on_both_sides_of_every_threshold_and_near_none(kind, broadcast):
    sides = set()
    for row in frozen_rows(kind, broadcast, even=False):
        with torch.no_grad():
            logprobs = plain_logprobs(policy_of(kind, "float64"), row).tolist() if len(row.tokens) else []
        for place, logp in enumerate(logprobs):
            if row.loss_mask[place]:
                advantage, behavior = float(row.advantages[place]), float(row.behavior_logprobs[place])
                assert distance_to_thresholds(logp, behavior) > APART
                for loss in ("clipped_surrogate", "dppo_tv"):
                    sides.add((loss, advantage > 0, policy_slope(loss, advantage, logp, behavior) == 0))
    assert len(sides) == 8
