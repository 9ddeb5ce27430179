"""Fixes against resampled steps: trials by hand, refusals, error rates over thousands of nulls, the winner's curse."""

import math

import numpy as np
import pytest
from coin_examples import CoinProbe, Steps, fix, group, written

from forkpoint.records import Span, SpanKind
from forkpoint.review import verify as verifying
from forkpoint.review.arms import Arm, draw
from forkpoint.review.contrasts import discoveries
from forkpoint.review.postmortem import make_edit
from forkpoint.review.steps import Blamed, fixed_prefix
from forkpoint.review.verify import Trials, Tried, accepted, confirmed, tried, verify
from forkpoint.seeds import Key

KEY = Key.root(1)
ROLLOUT = written("ab;cd;ef;#0\n")
GROUP = group(ROLLOUT)
START, END = 3, 6


def settings(**changes):
    return Trials(**({"max_new_tokens": 40} | changes))


def probe_of(values, *, base=0.0, **changes):
    """Values by the text of the fix that the prefix ends with; `base` for a step of the policy's own."""

    def value(before, purpose):
        found = [number for text, number in values.items() if before.endswith(text)]
        number = found[0] if found else base
        return number(purpose) if callable(number) else number

    return CoinProbe(value, **changes)


def one(text, values, *, base=0.0, start=START, end=END, rollout=ROLLOUT, probe=None, **changes):
    probe = probe or probe_of(values, base=base)
    edits = [fix(rollout, start, end, text)]
    return verify(edits, [group(rollout)], probe, settings=settings(**changes), key=KEY)[0]


def test_a_certain_fix_by_hand():
    probe = probe_of({"xy;": 1.0})
    found = one("xy;", {}, probe=probe)
    # 16 of 16 against 0 of 16: Boschloo's p is its value at a common share of 1/2, 2^-32; there are three looks.
    assert found.fixed == (16, 16)
    assert found.resampled == (0, 16)
    assert found.p_value == pytest.approx(3 * 2.0**-32, rel=1e-6)
    assert found.accepted
    assert found.reason == ""
    # Newcombe for 64 of 64 against 0 of 64: both Wilson limits are z^2 / (64 + z^2) away.
    away = 1.959963985**2 / (64 + 1.959963985**2)
    assert found.lift == 1.0
    assert found.interval == pytest.approx((1 - math.sqrt(2) * away, 1.0))
    # After the fix come `#1\n`, 3 tokens; after a resampled step 7: `own;` and those.
    assert found.cost == {"sampled_tokens": (16 + 64) * (3 + 7), "verifier_calls": 2 * (16 + 64)}
    assert probe.sampled == found.cost["sampled_tokens"]


def test_what_is_asked_of_the_probe():
    spans = tuple(Span(start=a, end=b, kind=SpanKind.ACTION, policy_version=0) for a, b in ((0, 3), (3, 5), (5, 12)))
    rollout = written("ab;cd;ef;#0\n", spans=spans)
    probe = probe_of({"xy;": 1.0})
    verify([fix(rollout, START, END, "xy;")], [group(rollout)], probe, settings=settings(), key=KEY)
    own = [request for request in probe.asked if request.prefix is None]
    put = [request for request in probe.asked if request.prefix is not None]
    assert {request.prefix_length for request in own} == {3}
    assert {request.prefix_length for request in put} == {6}
    # What came after the step in the rollout is no part of the prefix with the fix.
    assert {request.rollout.spans for request in put} == {spans[:1]}
    assert {request.rollout.spans for request in own} == {spans}
    assert {request.purpose for request in probe.asked} == {"verify.test", "verify.fresh"}
    # Both arms of both looks at once: one branch each.
    assert probe.branches == 2


@pytest.mark.parametrize(
    ("text", "start", "end", "reason"),
    [
        ("", 3, 6, "it is empty"),
        ("ÄÖ;", 3, 6, "the policy cannot read it"),
        ("cd;", 3, 6, "it is the step as it was"),
        ("xy;zz;", 3, 6, "it is more than one step"),
        ("#1\nab", 3, 6, "it goes on after the end"),
        ("x" * 37, 3, 6, "it leaves no room in a budget of 40 tokens"),
        ("xy;", 6, 3, "the step 6 to 3 is not within the rollout's 12 tokens"),
        ("xy;", 3, 13, "the step 3 to 13 is not within the rollout's 12 tokens"),
        ("bad;", 3, 6, "the task finds the step wrong"),
    ],
)
def test_refusals(text, start, end, reason):
    probe = CoinProbe(lambda before, purpose: 1.0, task=Steps(wrong=("bad",)))
    found = one(text, {}, start=start, end=end, probe=probe)
    assert not found.accepted
    assert found.reason == reason
    assert found.p_value == 1.0
    assert found.cost == {"sampled_tokens": 0.0, "verifier_calls": 0.0}
    assert probe.asked == []


def test_a_step_that_the_task_finds_wrong_is_tried_where_it_is_not_asked():
    probe = probe_of({"bad;": 1.0}, task=Steps(wrong=("bad",)))
    assert one("bad;", {}, probe=probe, check_steps=False).accepted
    # An error before the fix is not the fix's.
    assert one("xy;", {}, probe=probe_of({"xy;": 1.0}, task=Steps(wrong=("ab", "ef")))).accepted


def test_the_largest_text_that_leaves_room():
    assert one("x" * 36, {"x" * 36: 1.0}).accepted


def test_an_unknown_rollout_and_foreign_kinds():
    edit = fix(written("ab;", name="gone"), 0, 3, "xy;")
    probe = probe_of({})
    assert verify([edit], [GROUP], probe, settings=settings(), key=KEY)[0].reason == "its rollout is not here"
    prune = make_edit("r", "prune", 0, 3, "", "review")
    with pytest.raises(ValueError, match="kind fix"):
        verify([prune], [GROUP], probe, settings=settings(), key=KEY)
    with pytest.raises(ValueError, match="each of them once"):
        verify([edit, edit], [GROUP], probe, settings=settings(), key=KEY)
    assert verify([], [GROUP], probe, settings=settings(), key=KEY) == []


@pytest.mark.parametrize("changes", [{"looks": ()}, {"looks": (8, 8)}, {"looks": (16, 8)}, {"looks": (0, 8)}])
def test_looks_that_do_not_ascend_are_refused(changes):
    with pytest.raises(ValueError, match="verify: "):
        settings(**changes)


def test_a_fix_that_ends_the_rollout_has_one_outcome():
    probe = probe_of({}, base=0.25)
    found = one("#1\n", {}, start=9, end=12, probe=probe)
    trials = found.resampled[1]
    assert found.fixed == (trials, trials)
    assert found.accepted
    assert found.lift == pytest.approx(1 - 0.25, abs=0.2)
    assert all(request.prefix is None for request in probe.asked)
    assert found.cost["verifier_calls"] == trials + 64 + 2
    # It may use the budget up: nothing has to follow.
    assert one("#1\n", {}, base=0.25, start=9, end=12, max_new_tokens=12).accepted
    wrong = one("#3\n", {}, base=0.25, start=9, end=12)
    assert wrong.fixed == (0, 16)
    assert not wrong.accepted


class Doubled(Steps):
    def stop(self, problem):
        return ("##",)


def test_where_a_rollout_ends():
    def ended(text, start, put, task):
        rollout = written(text)
        step = Blamed(group=group(rollout), rollout=rollout, start=start, end=start + 1)
        found = fixed_prefix(step, put, CoinProbe(None, task=task), max_new_tokens=40)
        return found if isinstance(found, str) else found.ended

    # A stop string before the step, such as in an environment's reply, ends nothing; one may begin there.
    assert ended("a\nb;cd;", 4, "x", Steps()) is False
    assert ended("ab;#cd;", 4, "#", Doubled()) is True
    assert ended("ab;#cd;", 4, "#x", Doubled()) == "it goes on after the end"
    assert ended("a##;cd;", 4, "x", Doubled()) is False
    assert ended("a##;cd;", 3, "#", Doubled()) is True


def test_unusable_verdicts_do_not_count():
    odd = probe_of({"xy;": 1.0}, unusable=lambda index: index % 2 == 1)
    found = one("xy;", {}, probe=odd)
    assert found.fixed == (8, 8)
    assert found.resampled == (0, 8)
    assert found.accepted
    # Half of 64.
    away = 1.959963985**2 / (32 + 1.959963985**2)
    assert found.interval == pytest.approx((1 - math.sqrt(2) * away, 1.0))
    none = one("xy;", {}, probe=probe_of({"xy;": 1.0}, unusable=lambda index: True))
    assert none.reason == "no usable verdict"
    assert (none.fixed, none.resampled, none.p_value) == ((0, 0), (0, 0), 1.0)


def test_looks_grow_and_stop_at_the_first_that_decides():
    certain = one("xy;", {"xy;": 0.98}, base=0.02)
    assert certain.fixed[1] == 16
    hopeless = one("xy;", {"xy;": 0.1}, base=0.9)
    assert hopeless.fixed[1] == 16
    assert hopeless.reason.startswith("no better than a resampled step (p = 1")
    assert hopeless.lift is None
    slow = one("xy;", {"xy;": 0.6}, base=0.35)
    assert slow.fixed[1] > 16


def many(count, *, spread=4):
    """`count` proposals on each of some rollouts, their texts apart."""
    rollouts = [written("ab;cd;ef;#0\n", name=f"r{number}") for number in range(spread)]
    letters = "ghijklmnop"
    edits = [
        fix(rollout, START, END, f"{letters[k // 10]}{letters[k % 10]};") for rollout in rollouts for k in range(count)
    ]
    return edits, [group(*rollouts)]


def test_every_number_but_the_acceptance_is_the_same_in_any_company():
    edits, groups = many(5)
    probe = probe_of({"gg;": 0.9, "gh;": 0.5, "gi;": 0.3}, base=0.3)
    together = verify(edits, groups, probe, settings=settings(), key=KEY)
    backwards = verify(edits[::-1], groups, probe, settings=settings(), key=KEY)[::-1]
    alone = [verify([edit], groups, probe, settings=settings(), key=KEY)[0] for edit in edits]
    assert len({found.fixed[1] for found in together}) > 1
    for found, again, lonely in zip(together, backwards, alone, strict=True):
        expected = (found.fixed, found.resampled, found.p_value)
        assert (again.fixed, again.resampled, again.p_value) == expected
        assert (lonely.fixed, lonely.resampled, lonely.p_value) == expected
        if found.accepted and lonely.accepted:
            assert (found.lift, found.interval) == (lonely.lift, lonely.interval)


def test_controls_are_drawn_once_for_a_cut():
    edits, groups = many(5, spread=2)
    probe = CoinProbe(lambda before, purpose: 0.9 * (before == "ab;"))
    found = verify(edits, groups, probe, settings=settings(), key=KEY)
    own = [request for request in probe.asked if request.prefix is None]
    assert len(own) == 2 * max(each.resampled[1] for each in found) == 2 * 16
    assert sum(each.cost["sampled_tokens"] for each in found) == probe.sampled
    assert [each.cost["verifier_calls"] for each in found] == [32, 16, 16, 16, 16] * 2


def test_one_text_from_two_sources_is_drawn_once():
    edits = [fix(ROLLOUT, START, END, "xy;", source) for source in ("policy", "solver")]
    probe = probe_of({"xy;": 1.0})
    first, second = verify(edits, [GROUP], probe, settings=settings(), key=KEY)
    assert first.accepted
    assert second.accepted
    assert first.fixed == second.fixed
    assert second.cost["sampled_tokens"] == 0
    # The same prefix by another way: the old step and a new one, in the place of both.
    twice = [fix(ROLLOUT, START, END, "xy;"), fix(ROLLOUT, 0, END, "ab;xy;")]
    assert len(verify(twice, [GROUP], CoinProbe(probe.value, task=object()), settings=settings(), key=KEY)) == 2


@pytest.mark.parametrize("budget", [0, 500, 2000, 9000, 10**6])
def test_the_budget_is_never_exceeded(budget):
    edits, groups = many(6)
    probe = probe_of({"gg;": 0.9, "gh;": 0.6}, base=0.4, length=20)
    found = verify(edits, groups, probe, settings=settings(budget=budget), key=KEY)
    assert probe.sampled <= budget
    ended = [each for each in found if each.reason.startswith("the budget ended")]
    assert bool(ended) == (budget < 10**6)
    assert all(each.accepted == (each.interval is not None) for each in found)


def test_what_was_accepted_by_luck_is_withdrawn_where_it_is_worse():
    probe = CoinProbe(lambda before, purpose: 0.9 if before.endswith("xy;") == (purpose == "verify.test") else 0.1)
    found = one("xy;", {}, probe=probe)
    assert not found.accepted
    assert found.reason == "worse than a resampled step on its fresh rollouts"
    assert found.lift < 0
    assert found.interval[1] < 0


def test_a_winner_without_a_lift_on_fresh_rollouts_keeps_its_honest_numbers():
    probe = CoinProbe(lambda before, purpose: 0.5 if purpose != "verify.test" else float(before.endswith("xy;")))
    found = one("xy;", {}, probe=probe)
    assert found.interval[0] < 0 < found.interval[1]
    assert abs(found.lift) < 0.35
    assert found.accepted


def test_an_arm_grows_by_what_it_lacks():
    probe = probe_of({}, base=0.5)
    step = Blamed(group=GROUP, rollout=ROLLOUT, start=START, end=END)
    arm = Arm(step=step, fixed=None, purpose="p")
    draw([arm, arm], 4, probe)
    assert (len(arm.outcomes), len(arm.steps)) == (4, 4)
    draw([arm], 7, probe)
    draw([arm], 5, probe)
    assert [request.index for request in probe.asked] == list(range(7))
    assert len(arm.outcomes) == 7
    assert arm.counts(0) == (0, 0)


def test_the_refused_are_no_part_of_the_family():
    edit = fix(ROLLOUT, START, END, "xy;")
    tested = [Tried(edit=edit, p_value=0.04), *(Tried(edit=edit, reason="no") for _ in range(9))]
    assert accepted(tested, level=0.05) == [True] + [False] * 9
    assert accepted([*tested, Tried(edit=edit, p_value=1.0)], level=0.05) == [False] * 11


def test_a_third_of_the_budget_is_kept_for_the_fresh_rollouts():
    edits, groups = many(6)
    for budget in (3000, 9000):
        probe = probe_of({}, base=0.4, length=20)
        tried(edits, groups, probe, settings=settings(budget=budget), key=KEY)
        assert 0 < probe.sampled <= budget * 2 / 3


def test_discoveries_step_up():
    # p_(3) = 0.03 <= 3 * 0.05 / 4 carries the two before it; 0.02 > 1 * 0.05 / 4 alone.
    assert discoveries([0.03, 0.02, 0.025, 0.5], 0.05) == [True, True, True, False]
    assert discoveries([0.03], 0.05) == [True]
    assert discoveries([0.03, 1.0], 0.05) == [False, False]
    assert discoveries([], 0.05) == []


def tossed(fixed, resampled, coins, rules):
    """Proposals at one cut, through the looks of `tried`, from coins of given chances; the control is shared."""
    most = rules.looks[-1]
    control = Arm(step=None, fixed=None, purpose="t", outcomes=(coins.random(most) < resampled).tolist())
    made = []
    for share in fixed:
        arm = Arm(step=None, fixed=None, purpose="t", outcomes=(coins.random(most) < share).tolist())
        each = Tried(edit=None, arm=arm, control=control)
        for trials in rules.looks:
            if not each.stopped:
                verifying._look(each, trials, rules)
        made.append(each)
    return made


def test_false_acceptances_over_thousands_of_nulls():
    coins = np.random.Generator(np.random.Philox(key=5))
    rules, calls = settings(), 400
    any_false, small = 0, 0
    for number in range(calls):
        share = (0.1, 0.3, 0.5, 0.8)[number % 4]
        found = [each for _ in range(2) for each in tossed([share] * 5, share, coins, rules)]
        any_false += any(accepted(found, level=0.05))
        small += sum(each.p_value <= 0.05 for each in found)
    # All are null, so the false discovery rate is the chance of any; 4000 p-values of growing data stay valid.
    assert any_false / calls <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / calls)
    assert small / (10 * calls) <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 400)
    assert small > 0


def test_the_share_of_false_acceptances_among_true_ones():
    coins = np.random.Generator(np.random.Philox(key=6))
    rules, shares, power = settings(), [], []
    for _ in range(150):
        found = [each for _ in range(2) for each in tossed([0.3] * 6 + [0.8] * 2, 0.3, coins, rules)]
        passed = np.array(accepted(found, level=0.05)).reshape(2, 8)
        shares.append(passed[:, :6].sum() / max(1, passed.sum()))
        power.append(passed[:, 6:].mean())
    assert np.mean(shares) <= 0.05 + 3 * np.std(shares) / math.sqrt(150)
    assert np.mean(power) > 0.9


def test_the_winners_are_cursed_and_the_fresh_numbers_are_not():
    # 0.5 against 0.3 with 16 trials each: what is accepted looks far better than it is.
    rollouts = [written("ab;cd;ef;#0\n", name=f"r{number}") for number in range(200)]
    edits = [fix(rollout, START, END, "gg;") for rollout in rollouts]
    rules = settings(looks=(16,), fresh=32)
    probe = probe_of({"gg;": 0.5}, base=0.3)
    found = tried(edits, [group(*rollouts)], probe, settings=rules, key=KEY)
    chosen = [each.p_value <= 0.05 for each in found]
    kept = [each for each in confirmed(found, chosen, probe, settings=rules) if each.lift is not None]
    tested = [each.fixed[0] / 16 - each.resampled[0] / 16 for each in kept]
    fresh = [each.lift for each in kept]
    assert len(kept) > 25
    assert np.mean(tested) > 0.2 + 0.15
    assert abs(np.mean(fresh) - 0.2) < 3 * math.sqrt((0.25 + 0.21) / 32 / len(kept))
    covered = np.mean([each.interval[0] <= 0.2 <= each.interval[1] for each in kept])
    assert covered > 0.95 - 3 * math.sqrt(0.95 * 0.05 / len(kept))
