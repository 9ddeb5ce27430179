"""Localisation: known value curves, the level under the null, budgets, sharing, independence of the batch."""

import math
from dataclasses import replace

import numpy as np
import pytest
from value_examples import STEP, Chain, CoinProbe, alone, group, problem, rollout

from forkpoint.errors import RecipeError
from forkpoint.records import Outcome, Verdict
from forkpoint.review.hinge_search import Localisation, Steps, hinge_search
from forkpoint.review.localise import localise, step_cuts
from forkpoint.seeds import Key

ROOM = 200


def review(values, correct=False, *, seed=0, **settings):
    made = localise(
        [alone(values, correct)], CoinProbe(seed=seed), settings=Localisation(**settings), max_new_tokens=ROOM
    )
    assert len(made) == 1
    return made[0]


def place(claim):
    return None if claim is None else claim.start // STEP


def searched(values, correct, draw, settings, *, free=None):
    """The search alone, its continuations drawn by a binomial: fast, and the same as with a probe."""
    count = len(values)
    steps = Steps(
        cuts=tuple(range(count)), length=count, correct=correct, free=free or ((0, 0),) * count,
    )  # fmt: skip
    search, sent = hinge_search(steps, settings), None
    while True:
        try:
            asks = search.send(sent)
        except StopIteration as stop:
            return stop.value
        sent = [(int(draw.binomial(ask.count, values[ask.place])), ask.count) for ask in asks]


def test_certain_curves_are_read_exactly():
    # Values of 0 and 1 leave no chance: the value falls over step 2 of five, at token 6.
    found = review([1, 1, 1, 0, 0])
    assert (found.hinge.start, found.hinge.end, found.hinge.change) == (6, 9, -1.0)
    assert found.first_error == found.hinge
    assert found.hinge.interval[0] == -1.0
    assert -1 < found.hinge.interval[1] < 0
    # 8 of 8 against 0 of 8; the worst common share is 1/2: p = 2^-16, times 5 looks.
    assert found.hinge.p_value == pytest.approx(5 * 2**-16, rel=1e-6)
    assert found.cuts == (0, 3, 6, 9, 12)
    assert {each.cut: each.value for each in found.values} == {0: 1, 3: 1, 6: 1, 9: 0, 12: 0}
    rise = review([0, 0, 1, 1], correct=True)
    assert (rise.hinge.start, rise.hinge.end, rise.hinge.change) == (3, 6, 1.0)
    assert rise.first_error is None
    assert rise.correct
    assert 0 < rise.hinge.interval[0] < 1
    assert rise.hinge.interval[1] == 1.0


def test_the_last_step_is_compared_with_the_verdict():
    for correct, change in ((False, -1.0), (True, 1.0)):
        found = review([float(not correct)] * 4, correct=correct)
        assert (found.hinge.start, found.hinge.end, found.hinge.change) == (9, 12, change)


def test_cost_and_values_are_those_of_the_continuations():
    probe = CoinProbe()
    found = localise([alone([0.4, 0.4, 0.4, 0, 0])], probe, max_new_tokens=ROOM)[0]
    assert found.cost == {"sampled_tokens": probe.sampled, "verifier_calls": len(probe.requests)}
    assert probe.verified == len(probe.requests) == sum(each.trials for each in found.values)
    # No draw serves both the search and a test, and none is drawn twice.
    names = [(each.purpose, each.rollout.id, each.prefix_length, each.index) for each in probe.requests]
    assert len(set(names)) == len(names)
    assert {each.purpose for each in probe.requests} >= {"review-search", "review-hinge-0"}
    tested = [each for each in probe.requests if each.purpose == "review-hinge-0"]
    assert {each.prefix_length for each in tested} == {found.hinge.start, found.hinge.end}


def place_of(claim):
    return None if claim is None else claim.start


@pytest.mark.parametrize(
    ("values", "correct", "where"),
    [
        ([0.4] * 5 + [0.0] * 3, False, 4),
        ([0.16] * 3 + [0.4] * 3 + [0.0] * 2, False, 5),
        ([0.6] * 12 + [0.05] * 12, False, 11),
        ([0.4] * 4 + [1.0] * 4, True, 3),
        ([0.1] * 2 + [0.3] * 3 + [0.95] * 3, True, 4),
    ],
)
def test_large_changes_are_found(values, correct, where):
    draw = Key.root(1).child(len(values), where).generator()
    found = [searched(values, correct, draw, Localisation()) for _ in range(60)]
    hits = [place_of(each.hinge) == where for each in found]
    assert np.mean(hits) > 0.8
    assert all((each.first_error is None) == (correct or each.hinge is None) for each in found)


def test_a_search_that_recovers_misleads_bisection_and_not_us():
    # Down at step 2, up again at 5, down for good at step 9.
    values = [0.7] * 3 + [0.1] * 3 + [0.7] * 4 + [0.0] * 3
    low, high = 0, len(values)
    while high - low > 1:
        middle = (low + high) // 2
        # Even with the exact values, "still as good as at the beginning?" goes wrong on the first dip.
        low, high = (middle, high) if values[middle] > 0.35 else (low, middle)
    assert low == 9
    settings = Localisation(most=240)
    draw = Key.root(2).generator()
    found = [searched(values, False, draw, settings) for _ in range(40)]
    firsts, hinges = ([place_of(getattr(each, name)) for each in found] for name in ("first_error", "hinge"))
    # Bisection never sees the dip; here it is the first error in most, and nothing else is ever blamed.
    assert np.mean([first == 2 for first in firsts]) > 0.5
    assert {*firsts, *hinges} <= {2, 9}


@pytest.mark.parametrize(
    ("values", "direction", "correct"),
    [
        ([0.5] * 8, "down", True),
        ([0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 0.9, 0.95], "down", True),
        ([0.0] * 8, "outcome", False),
        ([0.9, 0.7, 0.5, 0.4, 0.3, 0.2, 0.1, 0.05], "up", False),
    ],
)
def test_sound_steps_are_hardly_ever_blamed(values, direction, correct):
    draw = Key.root(3).child(direction, values[0] == 0.5).generator()
    settings = Localisation(direction=direction)
    found = [searched(values, correct, draw, settings) for _ in range(100)]
    false = sum(each.hinge is not None for each in found)
    assert false <= 0.05 * 100 + 2 * math.sqrt(100 * 0.05 * 0.95)


def test_the_level_holds_where_the_search_is_sure_and_wrong(monkeypatch):
    # The search is told that step 1 is a drop; in truth nothing changes.  Only the test stands between it and a claim.
    monkeypatch.setattr("forkpoint.review.hinge_search._candidate", always_step_one)
    monkeypatch.setattr("forkpoint.review.hinge_search._earlier", lambda notes, hinge: iter(()))
    for value in (0.1, 0.5):
        draw = Key.root(4).child(str(value)).generator()
        claims = 0
        for _ in range(500):
            found = searched([value] * 4, False, draw, Localisation(alpha=0.1, min_drop=0.1))
            claims += found.hinge is not None and found.hinge.change < 0
        assert claims <= 0.1 * 500 + 2.5 * math.sqrt(500 * 0.1 * 0.9)
        assert claims > 0


def always_step_one(notes, *, reserve):
    del notes, reserve
    return 1
    yield


def test_claims_cover_the_true_change():
    values = [0.6] * 4 + [0.1] * 4
    draw = Key.root(5).generator()
    claims = [searched(values, False, draw, Localisation()).hinge for _ in range(100)]
    covered = [low <= -0.5 <= high for claim in claims if claim is not None for low, high in [claim.interval]]
    assert len(covered) > 80
    assert np.mean(covered) > 0.88


def test_a_lucky_success_shows_its_error_when_asked():
    values = [0.9, 0.9, 0.9, 0.1, 0.1, 0.1, 0.9, 0.9]
    assert review(values, correct=True, seed=1).first_error is None
    found = review(values, correct=True, seed=1, direction="down")
    assert place(found.first_error) == 2
    assert found.first_error.change < -0.4


def test_nothing_is_claimed_below_half_of_the_least_drop(monkeypatch):
    # 64 continuations on each side show a fall of 0.13 well; whether it is worth a claim, `min_drop` says.
    monkeypatch.setattr("forkpoint.review.hinge_search._candidate", always_step_one)
    monkeypatch.setattr("forkpoint.review.hinge_search._earlier", lambda notes, hinge: iter(()))
    draw = Key.root(6).generator()
    values = [0.13] * 2 + [0.0] * 4
    settings = Localisation(looks=2, most=400, batch=64, min_drop=0.5)
    assert all(searched(values, False, draw, settings).hinge is None for _ in range(15))
    smaller = replace(settings, min_drop=0.2)
    assert sum(searched(values, False, draw, smaller).hinge is not None for _ in range(15)) > 7


@pytest.mark.parametrize("budget", [0, 50, 400, 1500])
@pytest.mark.parametrize("length", [24, 60])
def test_the_budget_is_never_passed(budget, length):
    groups = [alone([0.5] * 5 + [0.0] * 3, name=f"r{number}") for number in range(6)]
    probe = CoinProbe(length=length)
    found = localise(groups, probe, settings=Localisation(budget=budget), max_new_tokens=60)
    assert probe.sampled <= budget
    assert len(found) == 6
    assert sum(each.cost["sampled_tokens"] for each in found) == probe.sampled
    if budget < 60:
        assert probe.sampled == 0
        assert all(each.hinge is None and each.values == () for each in found)
    if budget == 1500:
        # What is there is used: another round of one rollout could not have been afforded.
        assert probe.sampled > 0


@pytest.mark.parametrize("most", [0, 1, 4, 30, 100])
def test_no_rollout_gets_more_than_its_share(most):
    probe = CoinProbe()
    localise([alone([0.5] * 5 + [0.0] * 3)], probe, settings=Localisation(most=most), max_new_tokens=ROOM)
    assert len(probe.requests) <= most


def test_a_test_ends_where_the_share_is_spent(monkeypatch):
    monkeypatch.setattr("forkpoint.review.hinge_search._candidate", always_step_one)
    for seed in range(5):
        probe = CoinProbe(seed=seed)
        localise([alone([0.6, 0.6, 0.3, 0.3, 0, 0])], probe, settings=Localisation(most=60), max_new_tokens=ROOM)
        # 20 of the first look, then 16 for each look of the test.
        assert len(probe.requests) in (36, 52)


def siblings():
    """Three rollouts that begin alike for two steps, and one that does not."""
    values = [0.6] * 4 + [0.0] * 4
    shared = list(range(6))
    rows = [[*shared, *range(10 * row, 10 * row + 18)] for row in (1, 2, 3)] + [list(range(500, 524))]
    rollouts = [rollout(f"s{number}", tokens) for number, tokens in enumerate(rows)]
    return group(values, rollouts, [False, False, True, False])


def test_reviews_do_not_depend_on_what_else_is_reviewed():
    first, second = siblings(), alone([0.4] * 5 + [0.0] * 3, name="other")
    together = localise([first, second], CoinProbe(), max_new_tokens=ROOM)
    alone_each = [
        localise([one], CoinProbe(), max_new_tokens=ROOM, only={each.id})[0]
        for one in (second, first)
        for each in one.rollouts
    ]
    found = {each.rollout_id: each for each in alone_each}
    for each in together:
        assert replace(each, cost={}) == replace(found[each.rollout_id], cost={})
    # What was shared was paid for once.
    assert sum(each.cost["sampled_tokens"] for each in together) < sum(
        each.cost["sampled_tokens"] for each in alone_each
    )
    assert localise([first, second], CoinProbe(), max_new_tokens=ROOM) == together


def test_equal_prefixes_are_drawn_once_and_each_round_is_one_call():
    probe = CoinProbe()
    localise([siblings()], probe, max_new_tokens=ROOM)
    seen = [(each.rollout.tokens[: each.prefix_length].tobytes(), each.purpose, each.index) for each in probe.requests]
    assert len(set(seen)) == len(seen)
    # All that share a prefix continue the first rollout that has it.
    assert {each.rollout.id for each in probe.requests if each.prefix_length <= 6} <= {"s0", "s3"}
    many = [alone([0.4] * 5 + [0.0] * 3, name=f"m{number}") for number in range(8)]
    alone_rounds = []
    for one in many:
        single = CoinProbe()
        localise([one], single, max_new_tokens=ROOM)
        alone_rounds.append(single.branches)
    side_by_side = CoinProbe()
    localise(many, side_by_side, max_new_tokens=ROOM)
    assert side_by_side.branches == max(alone_rounds)


def test_siblings_are_evidence_that_costs_nothing():
    # At 0 the three others count, at 3 and 6 the two that began alike; its own outcome never does.
    found = localise([siblings()], CoinProbe(), settings=Localisation(most=0), max_new_tokens=ROOM)
    seen = {each.rollout_id: {value.cut: (value.successes, value.trials) for value in each.values} for each in found}
    assert seen["s0"] == {0: (1, 3), 3: (1, 2), 6: (1, 2)}
    assert seen["s2"] == {0: (0, 3), 3: (0, 2), 6: (0, 2)}
    assert seen["s3"] == {0: (1, 3)}
    # One that was itself continued from a later cut is no draw from an earlier one; nor is one at another temperature.
    first = siblings()
    changed = (
        first.rollouts[0], replace(first.rollouts[1], prefix_length=5), replace(first.rollouts[2], temperature=0.5),
        first.rollouts[3],
    )  # fmt: skip
    found = localise(
        [replace(first, rollouts=changed)], CoinProbe(), settings=Localisation(most=0), max_new_tokens=ROOM, only={"s0"}
    )
    assert [(value.cut, value.trials) for value in found[0].values] == [(0, 1), (6, 1)]


def test_continuations_that_nobody_could_judge_do_not_count():
    probe = CoinProbe(unusable=0.5)
    found = localise([alone([1, 1, 1, 0, 0])], probe, max_new_tokens=ROOM)[0]
    assert sum(each.trials for each in found.values) < len(probe.requests)
    assert place(found.hinge) == 2
    assert {each.value for each in found.values} <= {0.0, 1.0}
    nothing = localise([alone([1, 1, 1, 0, 0])], CoinProbe(unusable=1.0), max_new_tokens=ROOM)[0]
    assert nothing.hinge is None
    assert nothing.values == ()


def test_degenerate_rollouts_have_clear_reviews():
    probe = CoinProbe()
    empty, short = rollout("empty", []), rollout("short", [1, 2])
    masked = rollout("masked", range(9), mask=np.zeros(9))
    whole = group([0.5] * 3, [empty, short, masked], [False, True, False])
    found = localise([whole], probe, max_new_tokens=ROOM)
    assert [(each.cuts, each.hinge, each.values) for each in found] == [((0,), None, ())] * 3
    assert [each.correct for each in found] == [False, True, False]
    assert probe.requests == []
    assert probe.branches == 0
    assert localise([], probe, max_new_tokens=ROOM) == []
    # No verdict, no review; nobody can say what it should be.
    error = Verdict(outcome=Outcome.ERROR, correct=None)
    assert localise([replace(whole, verdicts=(error,) * 3)], probe, max_new_tokens=ROOM) == []
    # A rollout that is longer than the budget is cut within it.
    long = localise([alone([0.5] * 8)], probe, max_new_tokens=10)[0]
    assert long.cuts == (0, 3, 6, 9)


def test_cuts_are_steps_or_strides_and_fall_on_trained_tokens():
    made, one = rollout("r", range(12)), problem([0.5] * 4)
    assert step_cuts(one, made, Chain(), stride=5) == (0, 3, 6, 9)
    assert step_cuts(one, made, object(), stride=5) == (0, 5, 10)
    assert step_cuts(one, made, object(), stride=12) == (0,)

    class Blank:
        def cut_points(self, problem, rollout):
            return []

    assert step_cuts(one, made, Blank(), stride=5) == (0, 5, 10)
    observed = rollout("o", range(12), mask=[0, 0, 1, 0, 0, 1, 1, 1, 0, 0, 0, 0])
    # 3 moves to 5, 6 stays, 9 has nothing trained after it.
    assert step_cuts(one, observed, Chain(), stride=2) == (0, 5, 6)
    assert step_cuts(one, observed, object(), stride=2) == (0, 6)


def test_mistakes_are_one_clear_line():
    for name, value in {
        "coarse": 1, "per_round": 0, "batch": 1, "looks": 0, "most": -1, "stride": 0, "budget": -1, "min_drop": 0.0,
        "alpha": 1.0, "direction": "sideways",
    }.items():  # fmt: skip
        with pytest.raises(RecipeError, match=rf"^localise: {name} = '?{value}'? must "):
            Localisation(**{name: value})


def test_a_first_error_that_is_larger_is_the_hinge_too(monkeypatch):
    def step(number):
        def chosen(notes, *rest, **more):
            del notes, rest, more
            return number
            yield

        return chosen

    monkeypatch.setattr("forkpoint.review.hinge_search._candidate", step(3))
    monkeypatch.setattr("forkpoint.review.hinge_search._earlier", step(1))
    draw = Key.root(7).generator()
    found = searched([1.0, 1.0, 0.4, 0.4, 0.0, 0.0], False, draw, Localisation(most=400))
    assert place_of(found.first_error) == place_of(found.hinge) == 1
    # The other way round the later one stays.
    found = searched([1.0, 1.0, 0.7, 0.7, 0.0, 0.0], False, draw, Localisation(most=400))
    assert place_of(found.hinge) == 3
    assert place_of(found.first_error) in (1, 3)


def test_the_hopeless_cost_little():
    probe = CoinProbe()
    found = localise([alone([0.0] * 12)], probe, max_new_tokens=ROOM)[0]
    assert found.hinge is None
    assert len(probe.requests) <= 32


def test_a_rollout_that_ended_at_the_cut_says_nothing_of_what_follows():
    short, long = rollout("short", range(6)), rollout("long", range(12))
    whole = group([0.5] * 4, [short, long], [True, False])
    probe = CoinProbe()
    found = localise([whole], probe, settings=Localisation(most=20, coarse=4), max_new_tokens=ROOM, only={"long"})[0]
    drawn = {cut: sum(each.prefix_length == cut for each in probe.requests) for cut in (0, 3, 6, 9)}
    assert {each.cut: each.trials - drawn[each.cut] for each in found.values} == {0: 1, 3: 1, 6: 0, 9: 0}
    # It cannot be continued from its end either.
    assert {each.rollout.id for each in probe.requests if each.prefix_length >= 6} == {"long"}
    assert {each.rollout.id for each in probe.requests if each.prefix_length < 6} == {"short"}
