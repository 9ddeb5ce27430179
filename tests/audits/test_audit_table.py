"""The table: what runs on what there is, what the others lack, and the windows that all of them use."""

import math
from dataclasses import replace

import numpy as np
import pytest
from audit_examples import example
from subject_example import ScriptedSubject, group

from forkpoint.audits import token_edits
from forkpoint.audits.part import Bounds, with_evidence
from forkpoint.audits.rows import BATCH, Row, records_of
from forkpoint.audits.table import AUDITS, run_audits
from forkpoint.audits.windows import change, estimate, sample, windows
from forkpoint.errors import ContextError, ForkpointError
from forkpoint.records import Contents, Finding, Severity

ASKING = {"token_edits", "premature_confidence", "template_collapse"}
"""Audits that say nothing without models."""
EMPTY = {"text": None, "prompt": None, "answer": None, "reference": None}


@pytest.mark.parametrize(
    ("lost", "not_run"),
    [
        ({}, {"mismatch"}),
        (EMPTY, {"mismatch", "sabotage", "exploration"}),
        ({"correct": None, "outcome": None}, {"mismatch", "sabotage", "coverage"}),
        (
            {"correct": None, "outcome": None, "reward": None},
            {"mismatch", "sabotage", "coverage", "advantage_collapse"},
        ),
        (
            {**EMPTY, "stop": None, "outcome": None, "length": None},
            {"mismatch", "sabotage", "exploration", "length_and_format"},
        ),
    ],
)  # fmt: skip
def test_what_can_run_does_and_the_others_say_what_they_lack(lost, not_run):
    results = {result.audit: result for result in run_audits(example(lambda *_: dict(lost)))}
    assert set(results) == set(AUDITS)
    # Nothing here was evaluated on another task.
    assert {name for name, result in results.items() if not result.ran} == not_run | ASKING | {"transfer"}
    for result in results.values():
        assert result.ran or all(result.lacks.values())
        assert all(finding.audit == result.audit for finding in result.findings)


def test_audits_that_ask_models_run_with_them_and_say_what_else_they_lack():
    subject = ScriptedSubject([group(letter, [letter * 3]) for letter in "abcd"], lambda _context, _text: -1.0)
    results = {result.audit: result for result in run_audits(example(), only=sorted(ASKING), probe=subject)}
    assert {name for name, result in results.items() if result.ran} == ASKING - {token_edits.NAME}
    assert results[token_edits.NAME].lacks == {"edits": ("base",)}
    assert len(results["template_collapse"].findings) == 2


def test_one_update_and_no_rollout_at_all():
    assert all(math.isfinite(f.value) for result in run_audits(example(updates=1)) for f in result.findings)
    results = list(run_audits(records_of([])))
    assert not any(result.ran or result.findings for result in results)


def test_names_are_checked():
    assert [result.audit for result in run_audits(example(), only=["coverage"])] == ["coverage"]
    with pytest.raises(ForkpointError, match="Did you mean 'coverage'"):
        list(run_audits(example(), only=["coverag"]))


def test_windows_are_quarters_of_the_updates():
    records = example(updates=8, problems=1, group=1)
    found = windows(records)
    assert found is not None
    assert records.update[found.first].tolist() == [1, 2]
    assert records.update[found.last].tolist() == [7, 8]
    assert windows(example(updates=1)) is None
    two = windows(example(updates=2, problems=1, group=1))
    assert two is not None
    assert (int(two.first.sum()), int(two.last.sum())) == (1, 1)


def test_estimate_by_hand():
    # Problems of 2 and 1 values: mean 2/3, sums less mean times count: 2 - 4/3 and 0 - 2/3.
    found = estimate(np.array([1.0, 1.0, 0.0, np.nan]), np.array([1, 1, 2, 2], dtype=np.uint64))
    assert found is not None
    assert found.value == pytest.approx(2 / 3)
    assert found.error == pytest.approx(math.sqrt((4 / 9 + 4 / 9) * 2) / 3)
    assert (found.problems, found.rollouts) == (2, 3)
    alone = estimate(np.ones(5), np.arange(5, dtype=np.uint64))
    assert alone is not None
    # Wilson, 5 of 5.
    assert alone.interval == pytest.approx((0.5655175, 1.0))
    assert estimate(np.array([np.nan]), np.array([1], dtype=np.uint64)) is None


def test_the_interval_of_an_estimate_covers():
    rng = np.random.Generator(np.random.Philox(key=1))
    problems = np.repeat(np.arange(60, dtype=np.uint64), 4)
    inside = 0
    for _ in range(300):
        rates = rng.beta(2, 2, 60)
        found = estimate((rng.random(240) < np.repeat(rates, 4)).astype(float), problems)
        assert found is not None
        inside += found.interval[0] <= 0.5 <= found.interval[1]
    assert 0.91 <= inside / 300 <= 0.985


def test_a_change_knows_its_sign():
    records = example()
    found = windows(records)
    assert found is not None
    moved = change(np.where(found.last, 1.0, 0.0), records, found)
    assert moved is not None
    assert (moved.value, moved.rises, moved.falls) == (1.0, True, False)
    assert moved.interval[0] == pytest.approx(1 - math.hypot(*2 * [1 - estimate_low(24)]), abs=1e-3)


def estimate_low(problems: int) -> float:
    found = estimate(np.ones(problems), np.arange(problems, dtype=np.uint64))
    assert found is not None
    return found.interval[0]


def test_samples_are_spread_and_bounded():
    records = example()
    rows = sample(records, records.training, 10)
    assert (len(rows), rows[0], rows[-1]) == (10, 0, len(records) - 1)


def test_rows_are_ordered_by_update_and_contents_follow():
    count = BATCH + 3
    rows = [
        Row(
            id=f"r{i}",
            problem="p",
            update=(count - i) // 2,
            said=Contents(text=str(i)),
            parts={"a": 1.0} if i == 5 else {},
        )
        for i in range(count)
    ]
    records = records_of(rows)
    assert (np.diff(records.update) >= 0).all()
    places = np.array([0, count - 1, 7])
    texts = [said.text for said in records.contents(places)]
    assert [f"r{text}" for text in texts] == [name.decode() for name in records.ids[places]]
    assert np.isfinite(records.parts["a"]).sum() == 1
    assert records.unit == "characters"


def test_bounds():
    bounds = Bounds(watch=0.1, sick=0.5, source="ours")
    assert [bounds.grade(low) for low in (0.09, 0.1, 0.5)] == [Severity.INFO, Severity.WARNING, Severity.CRITICAL]


def test_evidence_names_those_first_that_can_be_read():
    records = replace(example(updates=1, problems=3, group=4), kept=np.arange(12) >= 10)
    made = with_evidence(Finding(audit="a", severity=Severity.INFO, claim="", value=0.0), records, records.training)
    assert made.evidence[:3] == ("1-2-2", "1-2-3", "1-0-0")
    assert len(made.evidence) == 8


def test_an_audit_that_stops_says_why_and_the_others_go_on():
    groups = [group(letter, [letter * 3]) for letter in "abcd"]

    class Full(ScriptedSubject):
        def score(self, requests):
            if any(len(request.tokens) > 2 for request in requests):
                raise ContextError("scoring: it does not fit.")
            return super().score(requests)

    subject = Full(groups, lambda _context, _text: -1.0)
    results = list(run_audits(example(), only=["template_collapse", "coverage"], probe=subject))
    assert [(one.ran, one.why) for one in results] == [(False, "scoring: it does not fit."), (True, "")]
    assert results[0].findings == ()
    assert results[1].findings
