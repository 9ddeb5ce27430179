"""The rules that continue rollouts, on the lab through the real probe and the trainer's loss, against exact values.

The gradient of 20,480 rollouts is compared with the theory's in one Hotelling test, all parameters at once.
"""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from lab_walks import joint_p_value

from forkpoint.batching import sampled_row
from forkpoint.conformance import check_credit_rule
from forkpoint.credit.branch import branch
from forkpoint.credit.counterfactual import counterfactual
from forkpoint.credit.tree import tree
from forkpoint.losses import LOSSES, token_weights
from forkpoint.policies.tabular import OFFSET, from_theory
from forkpoint.probing.local import BranchPlan, LocalProbe
from forkpoint.records import Batch, SampledExample
from forkpoint.rewards import outcome_rewards
from forkpoint.sampling.tabular import TabularSampler
from forkpoint.seeds import Key
from forkpoint.tasks.lab import Settings, build
from forkpoint.tasks.protocol import split_problems
from forkpoint.theory.gradients import table_gradient
from forkpoint.theory.graphs import edge_states
from forkpoint.theory.horizon import solve_horizon
from forkpoint.theory.tables import softmax_policy
from forkpoint.training.components import Objective, accumulate
from forkpoint.training.rollouts import SamplePlan, judged_groups
from forkpoint.verifiers.guard import guarded

LAB = build(Settings(branches=2, depth=1, lanes=2, fork="trained"))
STATES = edge_states(LAB.graph)
BUDGET, PENALTY, SIZE, BLOCKS, GROUPS = 7, 0.4, 8, 64, 40
"""Tokens of a rollout, length penalty, size of a group, blocks of independent groups: 20,480 rollouts in all."""


def random_table():
    draw = np.random.Generator(np.random.Philox(key=0))
    return softmax_policy(LAB.graph, 0.8 * draw.standard_normal(len(STATES.successors)))


TABLE = random_table()


@pytest.fixture(scope="module")
def policy():
    torch.set_num_threads(1)
    return from_theory(TABLE, fork="trained", dtype=torch.float64)


@pytest.fixture(scope="module")
def probe(policy):
    plan = BranchPlan(task=LAB, key=Key.root(3).child("s"), max_new_tokens=BUDGET)
    return LocalProbe(policy, TabularSampler(policy, slots=2048), guarded(LAB.verify), plan=plan)


def sampled(policy, probe, *, groups, size):
    """Rewarded groups, with a price for length."""
    problems = split_problems(LAB, Key.root(3).child("problems"), groups, evaluation=False)
    plan = SamplePlan(
        key=Key.root(3).child("rollouts"), stage="s", update=1, group_size=size, max_new_tokens=BUDGET, temperature=1.0
    )
    batch = Batch(groups=tuple(judged_groups(probe, LAB, policy.texts, problems, plan)), update=1)
    rewards = iter(outcome_rewards(batch, None, length_penalty=PENALTY, max_new_tokens=BUDGET))
    made = tuple(replace(group, rewards=tuple(next(rewards) for _ in group.rollouts)) for group in batch.groups)
    return replace(batch, groups=made)


def gradient(policy, groups, credits):
    """The mean gradient of updates of one group each, through the parts that the trainer is made of."""
    rows, given = [], iter(credits)
    for group in groups:
        masks = [rollout.loss_mask for rollout in group.rollouts]
        weights = token_weights(masks, [0] * len(masks), aggregation="constant", constant_length=BUDGET)
        for rollout, weight in zip(group.rollouts, weights, strict=True):
            row = sampled_row(SampledExample(rollout=rollout, credit=next(given)))
            rows.append(replace(row, policy_weights=weight / np.float32(len(groups))))
    accumulate(policy, rows, Objective(policy_loss=LOSSES["reinforce"]), max_tokens=1 << 16)
    found = -policy.model.logits.grad.numpy().copy()
    policy.model.zero_grad()
    return found


@pytest.fixture(scope="module")
def batch(policy, probe):
    return sampled(policy, probe, groups=BLOCKS * GROUPS, size=SIZE)


def block_gradients(policy, probe, batch, rule):
    blocks = [batch.groups[start : start + GROUPS] for start in range(0, len(batch.groups), GROUPS)]
    return np.stack([gradient(policy, groups, rule(Batch(groups=groups, update=1), probe)) for groups in blocks])


RULES = {
    "branch": partial(branch, cuts="every:3", continuations=1),
    "tree": partial(tree, cuts="steps", max_cuts=2, continuations=1),
}


def exact_gradient():
    return table_gradient(TABLE, horizon=BUDGET + 1, beta=PENALTY / BUDGET, fork="trained") / BUDGET


def often_reached(samples, expected):
    """Both without the parameters that some blocks never moved, which hardly have a gradient: means of few are no
    normal ones."""
    kept = (samples != 0).sum(0) >= 0.9 * BLOCKS
    assert np.linalg.norm(expected[~kept]) < 0.02 * np.linalg.norm(expected)
    assert kept.sum() > 20
    return np.where(kept, samples, 0.0), np.where(kept, expected, 0.0)


@pytest.mark.parametrize("name", sorted(RULES))
def test_the_mean_gradient_is_the_theory_s(name, policy, probe, batch):
    samples, expected = often_reached(block_gradients(policy, probe, batch, RULES[name]), exact_gradient())
    assert joint_p_value(samples, expected, TABLE) > 0.001
    # The test has the power to tell a factor.
    assert joint_p_value(samples, 0.8 * expected, TABLE) < 1e-6


def test_values_are_the_theory_s_and_credit_is_the_advantage_on_average(policy, probe):
    """One cut at every token: with many continuations each token's credit is its exact advantage."""
    batch = sampled(policy, probe, groups=2, size=2)
    credits = branch(batch, probe, cuts="every:1", continuations=400)
    exact = solve_horizon(TABLE, horizon=BUDGET + 1, beta=PENALTY / BUDGET).values
    rollouts = [(group, rollout) for group in batch.groups for rollout in group.rollouts]
    errors = []
    for (group, rollout), credit in zip(rollouts, credits, strict=True):
        target, count = int(group.problem.metadata["target"]), len(rollout.tokens)
        walk = rollout.tokens - OFFSET
        assert credit.details["cuts"] == list(range(count))
        for cut in range(1, count):
            # The theory counts what is still to come; the tokens written so far are paid for already.
            true = exact[BUDGET - cut, walk[cut - 1], target] - PENALTY / BUDGET * cut
            errors.append((credit.details["values"][cut] - true) * np.sqrt(400) / 0.5)
        rises = np.diff([*credit.details["values"], group.rewards[rollout.index].total])
        np.testing.assert_allclose(credit.advantages, rises, atol=1e-6)
    assert len(errors) > 10
    assert np.abs(errors).max() < 4
    assert np.std(errors) > 0.2


@pytest.mark.parametrize(
    "rule",
    [
        *RULES.values(),
        partial(counterfactual, cuts="every:1"),
        partial(counterfactual, cuts="every:2", rest="resample"),
    ],
)
def test_the_cost_of_the_credits_is_what_the_probe_spent(rule, policy, probe):
    batch = sampled(policy, probe, groups=12, size=4)
    before = probe.cost
    credits = rule(batch, probe)
    for name in ("sampled_tokens", "verifier_calls"):
        spent = probe.cost[name] - before[name]
        assert sum(credit.cost[name] for credit in credits) == spent
    assert probe.cost["verifier_calls"] > before["verifier_calls"]
    assert check_credit_rule(lambda again, _: rule(again, probe), batch) == []
