"""The gradients of the ordinary trainer on the lab against exact expectations: every estimator, and imitation."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from lab_walks import enumerate_walks, gae_by_definition, group_expectation, joint_p_value, step_expectation

from forkpoint.batching import sampled_row
from forkpoint.credit import CREDIT_RULES
from forkpoint.losses import LOSSES, token_weights
from forkpoint.policies.tabular import OFFSET, from_theory
from forkpoint.probing.local import LocalProbe
from forkpoint.records import Batch, SampledExample
from forkpoint.rewards import outcome_rewards
from forkpoint.sampling.tabular import TabularSampler
from forkpoint.seeds import Key
from forkpoint.tasks.lab import Settings, build
from forkpoint.tasks.protocol import split_problems
from forkpoint.theory.classes import golden_policy, imitation_limit
from forkpoint.theory.gradients import imitation_gradient, table_gradient
from forkpoint.theory.graphs import Kind, edge_states
from forkpoint.theory.tables import softmax_policy, spread_policy
from forkpoint.training.components import Objective, accumulate
from forkpoint.training.imitation import demonstration_example, weighted_rows
from forkpoint.training.rollouts import SamplePlan, judged_groups
from forkpoint.verifiers.guard import guarded

LAB = build(Settings(branches=2, depth=1, lanes=2, fork="trained"))
STATES = edge_states(LAB.graph)
BUDGET, PENALTY, SIZE, BLOCKS, GROUPS = 7, 0.4, 4, 128, 40
"""Tokens of a rollout, length penalty, size of a group, blocks of independent groups: 20480 rollouts in all."""


def random_table(seed=0, lab=LAB):
    draw = np.random.Generator(np.random.Philox(key=seed))
    return softmax_policy(lab.graph, 0.8 * draw.standard_normal(len(edge_states(lab.graph).successors)))


TABLE = random_table()
VALUES = np.random.Generator(np.random.Philox(key=9)).random(STATES.count)


class Fixed:
    """A critic that knows these values and learns nothing."""

    def values(self, rollouts):
        walks = [np.concatenate([rollout.prompt_tokens[-1:], rollout.tokens[:-1]]) - OFFSET for rollout in rollouts]
        return [VALUES[walk].astype(np.float32) for walk in walks]


@pytest.fixture(scope="module")
def policy():
    torch.set_num_threads(1)
    return from_theory(TABLE, fork="trained", dtype=torch.float64)


@pytest.fixture(scope="module")
def probe(policy):
    return LocalProbe(policy, TabularSampler(policy, slots=1024), guarded(LAB.verify), critic=Fixed().values)


@pytest.fixture(scope="module")
def groups(policy, probe):
    problems = split_problems(LAB, Key.root(3).child("problems"), BLOCKS * GROUPS, evaluation=False)
    plan = SamplePlan(
        key=Key.root(3).child("rollouts"), stage="s", update=1, group_size=SIZE, max_new_tokens=BUDGET, temperature=1.0
    )
    return judged_groups(probe, LAB, policy.texts, problems, plan)


def rewarded(groups, penalty):
    batch = Batch(groups=tuple(groups), update=1)
    rewards = iter(outcome_rewards(batch, None, length_penalty=penalty, max_new_tokens=BUDGET))
    return [replace(group, rewards=tuple(next(rewards) for _ in group.rollouts)) for group in batch.groups]


def block_gradient(policy, probe, groups, rule, loss, *, aggregation, options):
    """The mean gradient of the updates that take one group each, through the parts that the trainer is made of."""
    batch = Batch(groups=tuple(groups), update=1)
    credits = iter(CREDIT_RULES[rule](batch, probe, **options))
    rows = []
    for group in groups:
        masks = [rollout.loss_mask for rollout in group.rollouts]
        weights = token_weights(masks, [0] * SIZE, aggregation=aggregation, constant_length=BUDGET)
        for rollout, weight in zip(group.rollouts, weights, strict=True):
            row = sampled_row(SampledExample(rollout=rollout, credit=next(credits)))
            rows.append(replace(row, policy_weights=weight / np.float32(len(groups))))
    accumulate(policy, rows, Objective(policy_loss=LOSSES[loss]), max_tokens=1 << 16)
    gradient = -policy.model.logits.grad.numpy().copy()
    policy.model.zero_grad()
    return gradient


def sampled_gradients(policy, probe, groups, rule, loss="reinforce", *, penalty, aggregation="constant", **options):
    made = rewarded(groups, penalty)
    return np.stack(
        [
            block_gradient(
                policy, probe, made[start : start + GROUPS], rule, loss, aggregation=aggregation, options=options
            )
            for start in range(0, len(made), GROUPS)
        ]
    )


@pytest.fixture(scope="module")
def walks():
    return [enumerate_walks(TABLE, target, BUDGET) for target in range(2)]


def over_targets(walks, expectation):
    return np.mean([expectation(each) for each in walks], axis=0)


def reward(hits, lengths, penalty):
    return hits - penalty * lengths / BUDGET


def gap(hits, lengths, penalty=PENALTY):
    """My reward over the mean of the others."""
    rewards = reward(hits, lengths, penalty)
    return rewards[0] - rewards[1:].mean()


def standardized(hits, lengths, penalty=PENALTY):
    rewards = reward(hits, lengths, penalty)
    return (rewards[0] - rewards.mean()) / (np.sqrt(((rewards - rewards.mean()) ** 2).sum() / (SIZE - 1)) + 1e-4)


def relative(hits, lengths):
    return hits[0] / hits.mean() - 1 if hits.any() else 0.0


def grouped(coefficient):
    return lambda walks: group_expectation(walks, coefficient, SIZE)


def stepwise(lam):
    return lambda walks: step_expectation(walks, gae_by_definition(walks, VALUES, PENALTY, lam)) / BUDGET


EXPECTED = {
    "leave_one_out": grouped(lambda h, n: gap(h, n) / (SIZE * BUDGET)),
    "group_mean_std": grouped(lambda h, n: standardized(h, n, 0.0) / (SIZE * BUDGET)),
    "group_mean_std, graded": grouped(lambda h, n: standardized(h, n) / (SIZE * BUDGET)),
    "max_rl": grouped(lambda h, n: relative(h, n) / (SIZE * BUDGET)),
    "leave_one_out, token_mean": grouped(lambda h, n: gap(h, n) / n.sum()),
    "group_mean_std, sequence_mean": grouped(lambda h, n: standardized(h, n) / (SIZE * n[0])),
    "critic": stepwise(1.0),
    "critic, lam": stepwise(0.7),
}
"""The expected gradient of each estimator, enumerated."""

SAMPLED = {
    "leave_one_out": {"rule": "leave_one_out", "penalty": PENALTY},
    "leave_one_out, dppo_tv": {"rule": "leave_one_out", "penalty": PENALTY, "loss": "dppo_tv"},
    "survivors": {"rule": "survivors", "penalty": PENALTY},
    "batch_baseline": {"rule": "batch_baseline", "penalty": PENALTY},
    "group_mean_std": {"rule": "group_mean_std", "penalty": 0.0},
    "group_mean_std, graded": {"rule": "group_mean_std", "penalty": PENALTY},
    "max_rl": {"rule": "max_rl", "penalty": 0.0},
    "leave_one_out, token_mean": {"rule": "leave_one_out", "penalty": PENALTY, "aggregation": "token_mean"},
    "group_mean_std, sequence_mean": {"rule": "group_mean_std", "penalty": PENALTY, "aggregation": "sequence_mean"},
    "critic": {"rule": "critic", "penalty": PENALTY, "lam": 1.0},
    "critic, lam": {"rule": "critic", "penalty": PENALTY, "lam": 0.7, "loss": "clipped_surrogate"},
}
UNBIASED = ("leave_one_out", "leave_one_out, dppo_tv", "survivors", "batch_baseline", "critic")


def exact_gradient():
    """The exact policy gradient of the theory, over the constant that `constant` divides by."""
    return table_gradient(TABLE, horizon=BUDGET + 1, beta=PENALTY / BUDGET, fork="trained") / BUDGET


@pytest.mark.parametrize("name", [name for name in UNBIASED if name in EXPECTED])
def test_the_enumerated_expectation_of_an_unbiased_estimator_is_the_theory_s_gradient(name, walks):
    np.testing.assert_allclose(over_targets(walks, EXPECTED[name]), exact_gradient(), rtol=1e-9, atol=1e-12)
    assert sum(each.probabilities.sum() for each in walks) == pytest.approx(2, abs=1e-12)


@pytest.mark.parametrize("name", sorted(SAMPLED))
def test_the_mean_gradient_is_the_estimator_s_own_expectation(name, policy, probe, groups, walks):
    samples = sampled_gradients(policy, probe, groups, **SAMPLED[name])
    expected = exact_gradient() if name in UNBIASED else over_targets(walks, EXPECTED[name])
    assert joint_p_value(samples, expected, TABLE) > 0.001
    # The test has the power to tell a factor, and a biased estimator's expectation from the true gradient.
    assert joint_p_value(samples, 0.7 * expected, TABLE) < 1e-6
    if name not in UNBIASED:
        assert joint_p_value(samples, exact_gradient(), TABLE) < 1e-5


def distinct_texts(lab, name, count):
    """The different texts of a corpus: a uniform mixture of them is what the corpus draws from."""
    found = {(text.prompt, text.text): text for text in itertools.islice(lab.corpus(name, Key.root(0)), count)}
    return list(found.values())


def imitation_of(lab, texts):
    """The trainer's gradient on the texts, taken back to the sum over them."""
    policy = from_theory(random_table(1, lab), fork="trained", dtype=torch.float64)
    rows = weighted_rows([demonstration_example(policy.texts, text) for text in texts])
    accumulate(policy, rows, Objective(imitation=True), max_tokens=64)
    trained = sum(int(row.loss_mask.sum()) for row in rows)
    return -trained * policy.model.logits.grad.numpy()


def golden_visits(lab):
    """Visits of golden paths: the start once, each connector inward 1 / W, each lane 1 / (W L)."""
    visits = np.zeros(lab.states.count)
    for state, label in enumerate(lab.states.labels):
        if label.kind is Kind.START:
            visits[state] = 1.0
        elif label.kind is Kind.LEFT_IN:
            visits[state] = 1 / lab.graph.branches
        elif label.kind is Kind.RIGHT_IN:
            visits[state] = 1 / (lab.graph.branches * lab.graph.lanes[label.branch])
    return visits


def test_imitation_of_golden_paths_has_the_theory_s_gradient():
    lab = build(Settings(branches=2, depth=2, lanes=2, fork="trained"))
    texts = distinct_texts(lab, "golden", 400)
    assert len(texts) == 8
    expected = imitation_gradient(
        random_table(1, lab), spread_policy(golden_policy(lab.graph)), visits=golden_visits(lab)
    )
    np.testing.assert_allclose(imitation_of(lab, texts) / 8, expected, rtol=1e-5, atol=1e-7)


def test_imitation_with_supervised_backward_states_has_the_theory_s_gradient():
    lab = build(Settings(branches=2, depth=2, lanes=2, fork="trained", supervised=0.5))
    texts = [text for text in distinct_texts(lab, "corrected", 2000) if len(text.text) == 1]
    teacher = spread_policy(imitation_limit(lab.graph, lab.supervised))
    visits, count = np.zeros(lab.states.count), 0
    for state, label in enumerate(lab.states.labels):
        row = {Kind.RIGHT_BACK: 0, Kind.LEFT_BACK: 1}.get(label.kind)
        if row is not None and lab.supervised[0][row, label.depth - 1]:
            # One text for each lane: a state `R-` has two, and a state `L-` is one of two.
            visits[state] = 2 if row == 0 else 1
            count += int(visits[state])
    assert len(texts) == count
    expected = imitation_gradient(random_table(1, lab), teacher, visits=visits)
    np.testing.assert_allclose(imitation_of(lab, texts), expected, rtol=1e-5, atol=1e-6)
