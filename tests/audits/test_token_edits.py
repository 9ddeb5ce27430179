"""Token edits by hand, from written comparisons; the models themselves are tried in tests/probing."""

import numpy as np
import pytest
from subject_example import ScriptedSubject, group

from forkpoint.audits.rows import records_of
from forkpoint.audits.subject import Compared, Edited, attempts, spread
from forkpoint.audits.token_edits import (
    EDITED,
    SHIFTED,
    Ratio,
    causal_check,
    edits,
    of_few,
    planned_cost,
    random_places,
    recovery,
    token_edits,
)
from forkpoint.probe import Probe
from forkpoint.records import Outcome, Severity, Verdict, frozen_array
from forkpoint.seeds import Key

KEY, RECORDS = Key.root(2), records_of([])


def compared(ranks, entropies, divergences=None, tops=None):
    ranks = np.array(ranks)
    return Compared(
        tops=frozen_array(np.zeros(len(ranks)) if tops is None else tops, np.int32),
        ranks=frozen_array(ranks, np.int32),
        entropies=frozen_array(entropies, np.float32),
        divergences=frozen_array(np.zeros(len(ranks)) if divergences is None else divergences, np.float32),
    )


def numbers(*values):
    return np.array(values, dtype=np.uint64)


def test_two_rollouts_by_hand():
    # The second token of the first one was not sampled.
    first = compared([1, 0, 2, 7], [0.1, 0.0, 1.0, 1.5], [0.0, 0.0, 0.2, 0.6])
    second = compared([1, 1, 3], [0.2, 0.2, 0.6], [0.0, 0.1, 0.3])
    found = edits([first, second], numbers(0, 1), KEY)
    assert (found.positions, found.rollouts) == (6, 2)
    assert found.different.value == pytest.approx(3 / 6)
    assert found.shifted.value == pytest.approx(1 / 3)
    assert (found.second.value, found.rank) == (pytest.approx(1 / 3), 4)
    assert found.entropy == pytest.approx(3.6 / 6)
    assert found.entropy_ratio.value == pytest.approx((3.1 / 3) / 0.6)
    assert found.divergence.value == pytest.approx(1.2 / 6)
    assert found.different.interval == pytest.approx((1 / 3, 2 / 3))


@pytest.mark.parametrize(
    ("count", "severity"), [(1, Severity.WARNING), (2, Severity.CRITICAL), (40, Severity.CRITICAL)]
)
def test_a_share_of_few_tokens_is_not_certain(count, severity):
    # All of them are shifted; Wilson's lower ends are 0.207, 0.342 and 0.912, the bootstrap's is 1 of every one.
    rollouts = [compared([1] * 50 + [9], [0.1] * 51) for _ in range(count)] + [compared([1] * 51, [0.1] * 51)]
    found = edits(rollouts, np.arange(count + 1, dtype=np.uint64), KEY)
    assert found.differing == count
    assert found.shifted.interval == (1, 1)
    low, high = of_few(found.shifted, found.differing)
    assert (low, high) == (pytest.approx({1: 0.2065, 2: 0.3424, 40: 0.9124}[count], abs=1e-4), 1)
    assert SHIFTED.grade(low) is severity


def test_a_wider_bootstrap_stays():
    assert of_few(Ratio(value=0.5, interval=(0.01, 0.99)), 100) == (0.01, 0.99)


def test_the_same_model_has_no_edits_and_no_ratio():
    found = edits([compared([1, 1], [0.5, 0.5])], numbers(0), KEY)
    assert found.different.value == found.divergence.value == 0
    assert found.shifted is found.second is found.rank is found.entropy_ratio is None
    assert edits([compared([0, 0], [0, 0])], numbers(0), KEY) is None
    assert edits([], numbers(), KEY) is None


def test_the_interval_is_over_problems_not_tokens():
    one = [compared([2] * 50, [1.0] * 50), compared([1] * 50, [1.0] * 50)] * 4
    apart = edits(one, numbers(*range(8)), KEY).different
    together = edits(one, numbers(0, 0, 1, 1, 2, 2, 3, 3), KEY).different
    assert apart.value == together.value == 0.5
    assert together.interval == (0.5, 0.5)
    assert apart.interval[0] < 0.3 < 0.7 < apart.interval[1]


def test_recovery_by_hand():
    arms = [
        np.array(values, dtype=np.float64) for values in ([0, 0, 0.5, 0], [1, 1, 0.5, 0.5], [1, 0.5, 0.5, 0.5], [0] * 4)
    ]
    found = recovery(*arms, KEY)
    assert (found.base, found.trained, found.edited, found.random) == (0.125, 0.75, 0.625, 0)
    assert found.recovered.value == pytest.approx(0.5 / 0.625)
    assert found.recovered_random.value == pytest.approx(-0.125 / 0.625)
    assert recovery(np.ones(2), np.ones(2), np.ones(2), np.ones(2), KEY).recovered is None


def test_random_places_are_as_many_and_each_once():
    (start,) = attempts([group("a", ["0123456789"])])
    made = [Edited(rollout=start.rollout, places=places, unfinished=False) for places in ((), (3,), tuple(range(10)))]
    drawn = random_places(made, KEY)
    assert [len(each) for each in drawn] == [0, 1, 10]
    assert drawn[2].tolist() == list(range(10))
    assert random_places(made, KEY.child("x"))[1].dtype == np.int32


def test_the_spread_takes_every_problem_before_any_twice():
    found = attempts([group(letter, ["x"] * 5) for letter in "abcdef"])
    assert sorted(one.problem.key for one in spread(found, 6, KEY)) == list("abcdef")
    assert len(spread(found, 100, KEY)) == 30
    chosen = [one.rollout.id for one in spread(found, 9, KEY)]
    assert chosen == [one.rollout.id for one in spread(found, 9, KEY)]
    assert chosen != [one.rollout.id for one in spread(found, 9, KEY.child(1))]


class Pair(ScriptedSubject):
    """Two models of which the trained one writes `R` at its third token, and only then is right."""

    def __init__(self, groups, *, helps=True, base=True):
        super().__init__(groups, None, base=object() if base else None)
        self.helps, self.random = helps, []

    def compared(self, rollouts):
        return [compared([1, 1, 2, 1] * 5, [0.1, 0.1, 0.9, 0.1] * 5, [0.0, 0.0, 0.3, 0.0] * 5) for _ in rollouts]

    def edited(self, starts, chosen):
        made = []
        for place, start in enumerate(starts):
            places = (2,) if chosen is None else tuple(chosen[place].tolist())
            if chosen is not None:
                self.random.append(places)
            made.append(Edited(rollout=start.rollout, places=places, unfinished=False))
        self.last = [self.helps and each.places == (2,) for each in made]
        self.arms = [*getattr(self, "arms", []), *self.last]
        return made

    def verify(self, problem, rollouts):
        right = self.arms.pop(0)
        return [Verdict(outcome=Outcome.CORRECT if right else Outcome.WRONG, correct=right)]


def groups_of(count=30):
    return [group(chr(300 + number), ["abcd" * 5]) for number in range(count)]


def test_the_audit_tells_edits_that_matter_from_random_ones():
    subject = Pair(groups_of())
    assert isinstance(subject, Probe)
    different, shifted, second, ratio, check = token_edits(RECORDS, subject)
    assert different.value == 0.25
    assert different.severity is Severity.WARNING
    assert different.threshold == EDITED.watch
    assert len(different.evidence) == 8
    assert (shifted.value, shifted.severity) == (0, Severity.INFO)
    # All of the 150 tokens; Wilson's lower end of 150 of 150.
    assert (second.value, second.severity) == (1, Severity.INFO)
    assert second.interval == (pytest.approx(0.9750, abs=1e-4), 1)
    assert second.claim == (
        "Of the tokens that differ 100% are the base's second choice; their mean rank under it is 2.00."
    )
    assert ratio.value == pytest.approx(3, rel=1e-6)
    assert check.value == 1
    assert check.severity is Severity.INFO
    assert {len(places) for places in subject.random} == {0, 1}
    assert "recover 100%" in check.claim


def test_edits_that_gain_nothing_are_watched_where_training_gained():
    check = token_edits(RECORDS, Pair(groups_of(), helps=False))[-1]
    assert check.value == 0
    assert check.severity is Severity.WARNING


def test_without_base_rollouts_or_verdicts():
    assert token_edits(RECORDS) == []
    assert token_edits(RECORDS, Pair(groups_of(), base=False)) == []
    assert token_edits(RECORDS, Pair([])) == []
    bare = [type(each)(problem=each.problem, rollouts=each.rollouts, verdicts=()) for each in groups_of(3)]
    subject = Pair(bare)
    assert len(token_edits(RECORDS, subject)) == 4
    assert causal_check(subject, subject, KEY) is None
    assert planned_cost(groups_of(3)) == {"scored_tokens": 120 + 22 * 60, "sampled_tokens": 660}
