"""Example rollouts: which are chosen, that their numbers are those of the rules and of the truth."""

from dataclasses import replace

import numpy as np
import pytest
from meter_examples import decoder_subject, lab_subject, rule

from forkpoint.meter.document import planned_tokens, reading_document
from forkpoint.meter.examples import Plan, chosen_rollouts, planned_examples, take_examples
from forkpoint.meter.reading import Extent, take_reading
from forkpoint.meter.subject import give_credit
from forkpoint.meter.truth import Tier, sampled_places, sampled_truth
from forkpoint.records import Batch, Group, Outcome, Verdict


def quiet(*_):
    pass


def flagged(batch, flags):
    """The batch with verdicts of our own, one list for each group."""
    verdicts = {
        True: Verdict(outcome=Outcome.CORRECT, correct=True),
        False: Verdict(outcome=Outcome.WRONG, correct=False),
    }
    groups = tuple(
        Group(problem=group.problem, rollouts=group.rollouts, verdicts=tuple(verdicts[flag] for flag in mine))
        for group, mine in zip(batch.groups, flags, strict=True)
    )
    return Batch(groups=groups, update=0)


def test_the_group_nearest_half_solved_gives_the_first_of_each_kind():
    subject = lab_subject(problems=3, group_size=4)
    batch = subject.batch(subject.probe("batch"), "a")
    made = flagged(batch, [[True] * 4, [False, True, False, False], [False, False, True, True]])
    assert chosen_rollouts(made, 1) == [10, 8]
    assert chosen_rollouts(made, 2) == [10, 11, 8, 9]
    assert chosen_rollouts(made, 0) == []
    alike = flagged(batch, [[False] * 4, [True] * 4, [False] * 4])
    assert chosen_rollouts(alike, 1) == [0]


def test_an_exact_truth_and_the_credits_are_those_of_the_batch():
    subject = lab_subject(budget=8, problems=4, group_size=6)
    rules = [rule("leave_one_out"), rule("survivors")]
    document = reading_document(take_reading(subject, rules, Extent(tier=Tier.EXACT, batches=0), quiet))
    batch = subject.batch(subject.probe("batch"), "truth", 0)
    credits = {each.name: give_credit(each, batch, subject.probe("rule")).credits for each in rules}
    assert [each["correct"] for each in document["examples"]] == [True, False]
    for found in document["examples"]:
        (row,) = (i for i, rollout in enumerate(batch.rollouts) if rollout.id == found["rollout"])
        assert "".join(found["tokens"]) == batch.rollouts[row].text
        for shown in found["rules"]:
            assert shown["advantages"] == credits[shown["rule"]][row].advantages.tolist()
        assert set(found["errors"]) == {0.0}
        assert found["keys"] is None
        # V of the whole problem plus all advantages is the verdict, the same start for both rollouts.
    starts = [each["correct"] - sum(each["truth"]) for each in document["examples"]]
    assert starts[0] == pytest.approx(starts[1])
    assert 0 < starts[0] < 1


def test_a_drawn_truth_is_completed_and_what_was_known_stays():
    subject = decoder_subject(positions=6, problems=3, group_size=4)
    batch = subject.batch(subject.probe("batch"), "a")
    places = sampled_places(batch, 40, subject.key)
    truth = sampled_truth(batch, subject.probe("truth"), places, continuations=20)
    known = {
        (int(row), int(t)): value for row, t, value in zip(places.rows, places.positions, truth.advantages, strict=True)
    }
    plan = Plan(each=1, continuations=8)
    made = take_examples(subject, batch, truth, {}, plan)
    again = take_examples(subject, batch, truth, {}, plan)
    rows = chosen_rollouts(batch, 1)
    assert made == again
    assert len(made) == len(rows) > 0
    assert any((row, t) in known for row in rows for t in range(6))
    for row, found in zip(rows, made, strict=True):
        assert None not in found.truth
        assert [found.truth[t] for t in range(6) if (row, t) in known] == [
            known[row, t] for t in range(6) if (row, t) in known
        ]
        assert found.keys == tuple(batch.groups[row // 4].problem.metadata["positions"])
    bare = take_examples(subject, batch, truth, {}, replace(plan, continuations=0))
    assert [[value is None for value in each.truth] for each in bare] == [
        [(row, t) not in known for t in range(6)] for row in rows
    ]


def test_errors_are_those_of_fresh_draws():
    subject = decoder_subject(positions=3, problems=2, group_size=4)
    batch = subject.batch(subject.probe("batch"), "a")
    nothing = sampled_truth(batch, subject.probe("truth"), sampled_places(batch, 1, subject.key), continuations=4)
    (found, *_) = take_examples(subject, batch, nothing, {}, Plan(each=1, continuations=400))
    exact = subject.whole_truth(batch, subject.probe("exact"), Tier.ENUMERATION)
    row = chosen_rollouts(batch, 1)[0]
    true = exact.advantages[exact.places.rows == row]
    known = nothing.places.positions[nothing.places.rows == row]
    for t in set(range(3)) - set(known.tolist()):
        assert abs(found.truth[t] - true[t]) <= 4 * found.errors[t] + 0.02
    assert np.isfinite(found.errors).all()


def test_examples_are_planned_and_can_be_left_out():
    subject = decoder_subject(positions=6, problems=2, group_size=2)
    extent = Extent(tier=Tier.MONTE_CARLO, positions=4, continuations=4, batches=0, examples=Plan(each=0))
    assert planned_tokens(subject, extent)["examples"] == 0
    assert planned_examples(subject, Plan(each=1, continuations=8)) == 2 * 6 * 16 * 7 // 2
    assert planned_tokens(subject, replace(extent, tier=Tier.ENUMERATION, examples=Plan()))["examples"] == 0
    assert take_reading(subject, [rule("leave_one_out")], extent, quiet).examples == ()
