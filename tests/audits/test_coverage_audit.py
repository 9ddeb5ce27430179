"""Coverage: pass@k against enumeration, the pair that is compared, gains and losses by hand."""

from itertools import combinations

import numpy as np
import pytest
from audit_examples import example
from hypothesis import given
from hypothesis import strategies as st

from forkpoint.audits.coverage import coverage, differ, pair_of, pass_at_k
from forkpoint.audits.rows import Row, records_of
from forkpoint.records import Contents, Severity


@given(st.integers(1, 9), st.data())
def test_pass_at_k_is_the_share_of_subsets_that_hold_a_correct_one(n, data):
    c, k = data.draw(st.integers(0, n)), data.draw(st.integers(1, n))
    tries = [place < c for place in range(n)]
    subsets = list(combinations(tries, k))
    expected = sum(any(subset) for subset in subsets) / len(subsets)
    assert pass_at_k(np.array([n]), np.array([c]), k)[0] == pytest.approx(expected, abs=1e-12)


def test_pass_at_k_is_stable_and_does_not_guess():
    assert np.isnan(pass_at_k(np.array([3]), np.array([1]), 4))[0]
    many = pass_at_k(np.array([100_000]), np.array([1]), 256)[0]
    assert many == pytest.approx(256 / 100_000, rel=1e-9)
    assert pass_at_k(np.array([10]), np.array([10]), 1)[0] == 1.0


def evaluated(counts, samples, stage):
    return records_of(
        Row(id=f"{problem}-{place}", problem=str(problem), stage=stage, purpose="final", correct=place < right)
        for problem, right in enumerate(counts)
        for place in range(samples)
    )


def audited(before, after, samples):
    base = evaluated(before, samples, "base")
    rows = [
        Row(id=f"{problem}-{place}", problem=str(problem), stage="rl", purpose="final", correct=place < right)
        for problem, right in enumerate(after)
        for place in range(samples)
    ]
    return coverage(records_of(rows, base=base))


def test_contraction_is_named_and_graded():
    # 40 problems of 8 samples: 30 solved now and then before, 10 always after, the others never.
    curve, solvable = audited([2] * 30 + [0] * 10, [8] * 10 + [0] * 30, 8)
    assert "contraction" in curve.claim
    assert solvable.severity is Severity.CRITICAL
    assert solvable.value == pytest.approx(20 / 30)
    assert "0 gained, 20 lost" in solvable.claim
    # pass@1 by hand: (30 * 2/8) / 40 = 18.75 % and 25 %.
    assert "@1 18.8% to 25.0%" in curve.claim
    assert "The base is as good from k = 2." in curve.claim


def test_expansion_and_calibration():
    curve, solvable = audited([1] * 10 + [0] * 30, [2] * 40, 8)
    assert "expansion" in curve.claim
    assert (curve.severity, solvable.severity) == (Severity.INFO, Severity.INFO)
    curve, _ = audited([7] * 40, [8] * 40, 8)
    assert "calibration" in curve.claim


def test_few_tries_are_watched_at_most_and_one_lost_problem_is_chance():
    _, solvable = audited([1] * 40, [0] * 20 + [1] * 20, 1)
    assert solvable.severity is Severity.WARNING
    _, solvable = audited([8] * 40, [8] * 39 + [0], 8)
    assert solvable.severity is Severity.INFO


def test_without_a_base_the_windows_of_training_are_compared():
    pair = pair_of(example())
    assert pair is not None
    assert "training problems" in pair.about
    assert pair.base.samples.tolist() == [8] * 24
    assert pair_of(example(updates=1)) is None


def test_two_solutions_differ():
    assert differ(["a", "a", "b"]) == pytest.approx(2 / 3)
    assert differ(["a", "b"]) == 1.0
    assert np.isnan(differ(["a"]))


def test_a_single_strategy_at_the_end_is_sick():
    found = coverage(example(lambda update, problem, _: {"text": f"always {problem}"} if update > 6 else {}, rate=0.9))
    assert [finding.severity for finding in found if "differ" in finding.claim] == [Severity.CRITICAL]
    found = coverage(example(rate=0.9))
    assert [finding.severity for finding in found if "differ" in finding.claim] == [Severity.INFO]


def test_unknown_outcomes_do_not_count_as_tries():
    rows = [Row(id=str(i), problem="a", update=i, correct=None if i % 2 else True, said=Contents()) for i in range(8)]
    pair = pair_of(records_of(rows))
    assert pair is not None
    assert pair.base.samples.tolist() == [1]


def with_rounds(tries, stage):
    """Records of one problem for each list of (correct, tool rounds)."""
    return [
        Row(id=f"{problem}-{place}", problem=str(problem), stage=stage, purpose="final", correct=right, turns=turns)
        for problem, samples in enumerate(tries)
        for place, (right, turns) in enumerate(samples)
    ]


def by_rounds(before, after):
    records = records_of(with_rounds(after, "rl"), base=records_of(with_rounds(before, "base")))
    return [finding for finding in coverage(records) if "tool rounds" in finding.claim]


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 4)), min_size=3, max_size=3))
def test_within_a_budget_of_tool_rounds_pass_at_k_is_the_share_of_subsets_that_solve_within_it(samples):
    (found,) = by_rounds([samples], [[(True, 4)] * 3])
    told = found.claim.split(": ", 1)[1].split(", before")[0].split(", ")
    assert [part.split()[0] for part in told] == ["0", "1", "2", "3", "4"]
    for limit, part in enumerate(told):
        solved = any(right and rounds <= limit for right, rounds in samples)
        assert part.split()[1] == f"{float(solved):.1%}", part
        assert part.split()[3] == ("100.0%" if limit == 4 else "0.0%")


def test_tool_rounds_tell_where_more_is_solved_and_where_less():
    # Per problem before: one of two samples solved without a tool; after: both, with three rounds each.
    (found,) = by_rounds([[(True, 0), (False, 3)]] * 6, [[(True, 3), (True, 3)]] * 6)
    assert "pass@2 by the tool rounds that count: 0 100.0% to 0.0%" in found.claim
    assert "3 100.0% to 100.0%" in found.claim
    assert found.claim.endswith("less at 0, 1, 2.")
    assert (found.value, found.severity) == (0.0, Severity.INFO)
    (found,) = by_rounds([[(False, 1), (False, 1)]] * 6, [[(False, 1), (True, 2)]] * 6)
    assert found.claim.endswith("more at 2.")
    assert found.value == 1.0


def test_tool_rounds_that_nobody_told_are_no_tries():
    assert by_rounds([[(True, 1)]], [[(True, None)]]) == []
    (found,) = by_rounds([[(True, 1), (False, None)]], [[(True, 1), (True, 1)]])
    assert "pass@1 " in found.claim
    assert by_rounds([[(True, 0)]], [[(True, 0)]]) == []


def test_a_policy_that_stopped_using_tools_is_seen_and_the_problems_are_those_whose_rounds_are_known():
    (found,) = by_rounds([[(True, 2)]] * 3, [[(True, 0)]] * 3)
    assert "0 0.0% to 100.0%" in found.claim
    (found,) = by_rounds([[(True, 2)], [(True, None)]], [[(True, 0)], [(True, 0)]])
    assert "on 1 problems" in found.claim
