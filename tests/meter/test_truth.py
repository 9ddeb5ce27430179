"""The three tiers of the truth agree with each other, and with what must hold of any advantage."""

from dataclasses import replace

import numpy as np
import pytest
from meter_examples import KEY, decoder_subject, lab_subject

from forkpoint.credit.group import leave_one_out_advantages
from forkpoint.errors import TaskError
from forkpoint.meter.enumeration import enumerated_tree
from forkpoint.meter.measures import pearson
from forkpoint.meter.truth import (
    Tier,
    drawn_truth,
    every_place,
    final_value,
    key_labels,
    sampled_places,
    sampled_truth,
    table_truth,
    truth_credits,
)
from forkpoint.records import Outcome, Verdict


def lab_batch(**changes):
    subject = lab_subject(problems=3, group_size=4, **changes)
    return subject, subject.batch(subject.probe("batch"), "a")


@pytest.mark.parametrize("budget", [6, 7])  # A walk reaches the leaf at one parity only.
def test_table_and_enumeration_agree_on_every_token(budget):
    subject, batch = lab_batch(budget=budget)
    exact = table_truth(subject.policy.to_theory(), batch, budget=subject.max_new_tokens)
    listed = subject.whole_truth(batch, subject.probe("truth"), Tier.ENUMERATION)
    assert subject.best_tier is Tier.EXACT
    assert len(exact.advantages) > 40
    assert np.abs(exact.advantages).max() > 0.2
    np.testing.assert_allclose(exact.advantages, listed.advantages, atol=2e-6)


def test_nested_monte_carlo_agrees_with_the_table():
    subject, batch = lab_batch()
    exact = table_truth(subject.policy.to_theory(), batch, budget=subject.max_new_tokens)
    drawn = sampled_truth(batch, subject.probe("truth"), every_place(batch), continuations=64)
    known = drawn.variances > 0
    z = (drawn.advantages - exact.advantages)[known] / np.sqrt(drawn.variances[known])
    assert known.sum() > 30
    assert np.abs(z).max() < 5
    assert 0.6 < (z**2).mean() < 1.6
    np.testing.assert_allclose(drawn.advantages[~known], exact.advantages[~known], atol=0.06)


def test_nested_monte_carlo_agrees_with_enumeration_of_a_decoder():
    subject = decoder_subject(positions=2, problems=1, group_size=4)
    batch = subject.batch(subject.probe("batch"), "a")
    assert subject.best_tier is Tier.ENUMERATION
    listed = subject.whole_truth(batch, subject.probe("truth"), Tier.ENUMERATION)
    drawn = sampled_truth(batch, subject.probe("truth"), every_place(batch), continuations=400)
    error = np.sqrt(drawn.variances + 1e-5)
    assert (np.abs(drawn.advantages - listed.advantages) / error).max() < 4.5


def test_true_advantages_sum_to_the_surprise_of_the_end():
    subject, batch = lab_batch(budget=12)
    credits = truth_credits(batch, subject.whole_truth(batch, subject.probe("truth"), Tier.EXACT))
    sums = np.array([credit.advantages.sum() for credit in credits])
    ends = np.array([final_value(verdict) for group in batch.groups for verdict in group.verdicts])
    assert np.ptp(ends) == 1.0
    np.testing.assert_allclose(np.ptp(ends - sums), 0.0, atol=1e-6)


def test_values_of_a_tree_are_means_over_what_follows():
    subject = decoder_subject(problems=1, group_size=2)
    batch = subject.batch(subject.probe("batch"), "a")
    tree = enumerated_tree(batch.groups[0], subject.probe("truth"), subject.language)
    whole = np.exp([sum(score) for score in tree.logprobs])
    assert whole.sum() == pytest.approx(1.0, abs=1e-5)
    assert tree.values[()] == pytest.approx(float(whole @ np.asarray(tree.rewards)), rel=1e-6)
    first = {}
    for words, score in zip(tree.sequences, tree.logprobs, strict=True):
        first[words[:1]] = float(np.exp(score[0]))
    assert sum(chance * tree.values[words] for words, chance in first.items()) == pytest.approx(tree.values[()])


@pytest.mark.parametrize("group_size", [2, 5])
def test_leave_one_out_lets_through_what_enumeration_says(group_size):
    """With T tokens in every rollout its correlation with the truth is sqrt((G - 1) / (G T)), whatever the policy."""
    subject = decoder_subject(problems=1, group_size=2, scale=3.0)
    batch = subject.batch(subject.probe("batch"), "a")
    tree = enumerated_tree(batch.groups[0], subject.probe("truth"), subject.language)
    chance = tree.values[()]
    counts = np.array([1.0])
    for _ in range(group_size - 1):
        counts = np.convolve(counts, [1 - chance, chance])
    credits, truths, weights = [], [], []
    kept = 0.0
    for words, score, reward in zip(tree.sequences, tree.logprobs, tree.rewards, strict=True):
        if len(words) < subject.max_new_tokens:
            continue
        course = np.diff([tree.values[words[:t]] for t in range(len(words) + 1)])
        kept += float(np.exp(sum(score)))
        for others, share in enumerate(counts):
            group = np.array([reward] + [1.0] * others + [0.0] * (group_size - 1 - others))
            credits += [leave_one_out_advantages(group)[0]] * len(course)
            truths += course.tolist()
            weights += [float(np.exp(sum(score))) * share] * len(course)
    found = pearson(np.array(credits), np.array(truths), np.array([weights]))[0]
    # Rollouts that end early are left out: the policy seldom writes the end.
    assert kept > 0.8
    assert found == pytest.approx(np.sqrt((group_size - 1) / (group_size * subject.max_new_tokens)), rel=0.05)


def test_drawn_truth_telescopes_and_is_without_bias():
    subject, batch = lab_batch()
    exact = table_truth(subject.policy.to_theory(), batch, budget=subject.max_new_tokens)
    draws = [
        drawn_truth(batch, subject.probe("oracle"), continuations=8, purpose=str(number)).advantages
        for number in range(8)
    ]
    assert np.isnan(drawn_truth(batch, subject.probe("oracle"), continuations=1, purpose="x").variances).all()
    error = np.std(draws, axis=0) / np.sqrt(8) + 0.02
    assert (np.abs(np.mean(draws, axis=0) - exact.advantages) / error).max() < 4.5
    assert np.std(draws, axis=0).max() > 0.05


def test_sampled_places_weigh_back_to_all_tokens():
    subject = decoder_subject(positions=3, problems=4, group_size=4)
    batch = subject.batch(subject.probe("batch"), "a")
    whole = every_place(batch)
    labels = key_labels(batch, whole)
    some = sampled_places(batch, 12, KEY)
    chosen = key_labels(batch, some)
    assert labels is not None
    assert chosen is not None
    assert chosen.sum() == 6
    assert some.weights.sum() == pytest.approx(len(whole.rows))
    assert some.weights[chosen].sum() == pytest.approx(labels.sum())
    assert len({*zip(some.rows.tolist(), some.positions.tolist(), strict=True)}) == 12
    assert len(sampled_places(batch, 10_000, KEY).rows) == len(whole.rows)


def test_without_known_keys_places_are_uniform():
    _, batch = lab_batch()
    assert key_labels(batch, every_place(batch)) is None
    assert len(set(sampled_places(batch, 10, KEY).weights.tolist())) == 1


def test_what_cannot_be_told_is_refused():
    subject, batch = lab_batch()
    with pytest.raises(ValueError, match="has no value"):
        final_value(Verdict(outcome=Outcome.ABSTAINED, correct=None))
    with pytest.raises(ValueError, match="at least 1"):
        sampled_truth(batch, subject.probe("truth"), every_place(batch), continuations=0)
    cooler = replace(
        batch,
        groups=tuple(
            replace(group, rollouts=tuple(replace(rollout, temperature=0.5) for rollout in group.rollouts))
            for group in batch.groups
        ),
    )
    with pytest.raises(TaskError, match="temperature 1"):
        table_truth(subject.policy.to_theory(), cooler, budget=subject.max_new_tokens)
    long = decoder_subject(positions=8, problems=1, group_size=2)
    with pytest.raises(TaskError, match="sequences"):
        long.whole_truth(long.batch(long.probe("batch"), "a"), long.probe("truth"), Tier.ENUMERATION)
