"""Bias and noise of gradients: planted vectors, and the lab where the truth is exact."""

import numpy as np
import pytest
from meter_examples import KEY, lab_subject, rule

from forkpoint.meter.gradients import (
    Coordinates,
    batch_gradient,
    coordinates,
    gradient_score,
    jackknife,
    noise,
    own_noise,
    products,
    signal,
)
from forkpoint.meter.subject import give_credit
from forkpoint.meter.truth import Tier, truth_credits
from forkpoint.policies.tabular import OFFSET
from forkpoint.theory.graphs import edge_states

EVERY = Coordinates(chosen=None)


def planted(mean, power, count, *name):
    """Gradients around a mean with a given power of their noise."""
    size = len(mean)
    drawn = KEY.child("planted", *name).generator().standard_normal((count, size))
    return (mean + drawn * np.sqrt(power / size)).astype(np.float32)


def test_signal_and_noise_by_hand():
    table = products(np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]), np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]))
    # Products of different pairs: 0, 1, 1.  Squares: 1, 1, 2.
    assert signal(table) == pytest.approx(2 / 3)
    assert noise(table) == pytest.approx(4 / 3 - 2 / 3)


def test_signal_is_without_bias_where_the_mean_is_zero():
    found = [signal(products(*[planted(np.zeros(50), 4.0, 6, trial)] * 2)) for trial in range(300)]
    assert abs(np.mean(found)) < 4 * np.std(found) / np.sqrt(300)
    naive = [float((planted(np.zeros(50), 4.0, 6, trial).mean(axis=0) ** 2).sum()) for trial in range(300)]
    assert np.mean(naive) == pytest.approx(4 / 6, rel=0.1)


def test_planted_noise_bias_and_cosine_come_back():
    mean = np.zeros(400)
    mean[0] = 2.0
    turned = np.zeros(400)
    turned[:2] = 2.0, 1.0
    truth = planted(mean, 1.0, 200, "truth")
    score = gradient_score(planted(turned, 8.0, 200, "mine"), (truth, truth))
    assert score.bias.value == pytest.approx(0.5, abs=0.1)
    assert score.bias.interval[0] < 0.5 < score.bias.interval[1]
    assert score.cosine.value == pytest.approx(2 / np.sqrt(5), abs=0.05)
    assert score.noise.value == pytest.approx(8 / 5, rel=0.15)
    assert score.over_oracle.value == pytest.approx((8 / 5) / (1 / 4), rel=0.2)


def test_the_same_gradients_have_no_bias():
    truth = planted(np.ones(20), 3.0, 12, "same")
    score = gradient_score(truth, (truth, truth))
    assert score.bias.value == 0.0
    assert score.cosine.value == pytest.approx(1.0)
    assert score.over_oracle.value == pytest.approx(1.0)


def test_two_draws_of_the_oracle_take_out_the_error_of_drawing():
    mean = np.ones(30)
    exact = planted(mean, 20.0, 150, "exact")
    one, two = (exact + planted(np.zeros(30), 90.0, 150, half) for half in ("one", "two"))
    wanted = own_noise(exact, exact).value
    assert own_noise(one, two).value == pytest.approx(wanted, rel=0.4)
    assert own_noise(one, one).value > 4 * wanted
    assert gradient_score(exact, (one, two)).over_oracle.value == pytest.approx(1.0, rel=0.4)


def test_without_an_oracle_only_the_noise_is_known():
    mine = planted(np.ones(20), 3.0, 12, "same")
    score = gradient_score(mine, None)
    assert np.isnan([score.bias.value, score.cosine.value, score.over_oracle.value]).all()
    assert score.noise.value > 0
    with pytest.raises(ValueError, match="3 or more"):
        gradient_score(mine[:2], (mine[:2], mine[:2]))


def test_the_jackknife_of_a_mean_is_its_standard_error():
    values = KEY.child("jackknife").generator().standard_normal(40)
    found = jackknife(lambda some: float(values[some].mean()), 40)
    half = 1.96 * values.std(ddof=1) / np.sqrt(40)
    assert found.interval == pytest.approx((values.mean() - half, values.mean() + half))


def test_a_gradient_is_the_sum_of_credit_times_score():
    """Of a table, d log pi(a|s) is the indicator of a minus the probabilities of s."""
    subject = lab_subject(budget=12, problems=1, group_size=6)
    batch = subject.batch(subject.probe("batch"), "a")
    assert len({len(rollout.tokens) for rollout in batch.rollouts}) > 1
    credits = truth_credits(batch, subject.whole_truth(batch, subject.probe("truth"), Tier.EXACT))
    found = batch_gradient(subject.policy, batch, credits, EVERY, budget=12)
    table, states = subject.policy.to_theory(), edge_states(subject.policy.graph)
    wanted = np.zeros(len(found))
    for rollout, credit in zip(batch.rollouts, credits, strict=True):
        walk = np.concatenate([rollout.prompt_tokens, rollout.tokens]) - OFFSET
        for t, value in enumerate(credit.advantages):
            row = slice(states.offsets[walk[t]], states.offsets[walk[t] + 1])
            chosen = row.start + states.moves(walk[t]).index(walk[t + 1])
            wanted[row] += value * table.probabilities[row]
            wanted[chosen] -= value
    trained = ~states.frozen_rows
    np.testing.assert_allclose(found[trained], wanted[trained] / (6 * 12), atol=1e-6)
    assert np.abs(found[trained]).max() > 1e-3


def test_rules_against_the_exact_oracle_on_the_lab():
    subject = lab_subject(budget=8, problems=4, group_size=8)
    names, count = ("leave_one_out", "group_mean_std"), 32
    mine = {name: [] for name in (*names, "twice")}
    oracle = []
    for number in range(count):
        batch = subject.batch(subject.probe("batch"), number)
        for name in names:
            given = give_credit(rule(name), batch, subject.probe("rule"))
            mine[name].append(batch_gradient(subject.policy, batch, given.credits, EVERY, budget=8))
        credits = truth_credits(batch, subject.whole_truth(batch, subject.probe("truth"), Tier.EXACT))
        oracle.append(batch_gradient(subject.policy, batch, credits, EVERY, budget=8))
        mine["twice"].append(2 * oracle[-1])
    halves = (np.stack(oracle),) * 2
    found = {name: gradient_score(np.stack(rows), halves) for name, rows in mine.items()}
    assert found["leave_one_out"].bias.interval[0] == 0.0
    assert found["leave_one_out"].bias.value < 0.25
    assert found["group_mean_std"].bias.value > 0.5
    assert found["twice"].bias.value == pytest.approx(1.0)
    assert found["twice"].cosine.value == pytest.approx(1.0)
    # Only the sampling of states is left to the oracle; a reward smeared over all tokens adds its own noise.
    assert found["leave_one_out"].over_oracle.interval[0] > 1.5
    assert found["twice"].over_oracle.value == pytest.approx(1.0)


def test_of_large_models_a_fixed_subset_is_kept(monkeypatch):
    subject = lab_subject(problems=1, group_size=4)
    batch = subject.batch(subject.probe("batch"), "a")
    credits = truth_credits(batch, subject.whole_truth(batch, subject.probe("truth"), Tier.EXACT))
    whole = batch_gradient(subject.policy, batch, credits, coordinates(subject.policy, KEY), budget=6)
    monkeypatch.setattr("forkpoint.meter.gradients.MOST_COORDINATES", 5)
    kept = coordinates(subject.policy, KEY)
    some = batch_gradient(subject.policy, batch, credits, kept, budget=6)
    assert kept.chosen is not None
    assert len(some) == 5
    assert (some == whole[kept.chosen]).all()
    assert (coordinates(subject.policy, KEY).chosen == kept.chosen).all()


def test_without_a_signal_the_noise_over_the_oracles_is_not_known():
    signless = np.array([[1.0], [-1.0], [1.0], [-1.0]])
    truth = np.ones((4, 1)) + 0.1 * signless
    assert np.isnan(gradient_score(signless, (truth, truth)).over_oracle.value)
