"""Findings on the page: the worst first, with rollouts to look at that the run kept."""

from dataclasses import replace

import pytest
import report_examples as examples
from test_page import HOSTILE, page_of

from forkpoint.records import Finding, Severity
from forkpoint.report.health import MAX_EXEMPLARS, MAX_FINDINGS, health
from forkpoint.store import RunReader, RunWriter

BAD = Finding(
    audit="reward_hacking", severity=Severity.CRITICAL, claim="Half of them are paid.", value=0.5, threshold=0.1
)


@pytest.fixture
def run(tmp_path):
    return examples.small_run(tmp_path / "backtrack")


def found(run, *findings):
    with RunWriter.open(run) as writer:
        writer.record_findings(findings, audits=sorted({one.audit for one in findings}), stage="rlvr")
    with RunReader(run) as reader:
        return health(reader, {"base": 0, "rlvr": 1}, {}, "run1-")


def kept(run, count):
    with RunReader(run) as reader:
        return [rollout.id for rollout, _ in zip(reader.rollouts("rlvr"), range(count), strict=False)]


def test_a_bad_finding_shows_the_first_of_its_rollouts_that_were_kept(run):
    names = kept(run, 3)
    (row,) = found(run, replace(BAD, evidence=("drawn-for-the-audit", *names)))
    (view,) = row.findings
    assert [one.view.id for one in view.exemplars] == names[:MAX_EXEMPLARS]
    assert (row.name, row.slot, row.more) == ("rlvr", 1, 0)
    with RunReader(run) as reader:
        group = reader.group_of(names[0])
    one = view.exemplars[0]
    assert one.answer == group.problem.answer
    assert one.prompt
    assert f"reward {group.rewards[0].total:.2f}".replace("-", "\N{MINUS SIGN}") in one.view.facts
    page, html = page_of(run)
    assert "rollouts behind it" in page.shown
    assert html.count('class="exemplars"') == 1
    assert {"finding-1-0-0", "finding-1-0-1"} <= set(page.ids)


def test_without_kept_rollouts_and_for_what_is_fine_there_are_none(run):
    fine = replace(BAD, audit="sabotage", severity=Severity.INFO, threshold=None, evidence=tuple(kept(run, 1)))
    (row,) = found(run, replace(BAD, evidence=("gone",)), fine)
    assert [view.exemplars for view in row.findings] == [(), ()]
    assert [view.finding.severity for view in row.findings] == [Severity.CRITICAL, Severity.INFO]
    assert "behind it" not in page_of(run)[0].shown


def test_the_worst_come_first_and_the_rest_is_counted(run):
    many = [replace(BAD, severity=Severity.WARNING, claim=f"Claim {place}.") for place in range(MAX_FINDINGS)]
    (row,) = found(run, *many, BAD)
    assert row.findings[0].finding.severity is Severity.CRITICAL
    assert (len(row.findings), row.more) == (MAX_FINDINGS, 1)
    assert "1 more of rlvr are not shown." in page_of(run)[0].shown


def test_a_hostile_claim_and_a_hostile_rollout_stay_text(run, tmp_path):
    folder = tmp_path / "hostile"
    with examples.new_run(folder) as writer:
        stage = "rl"
        writer.add_stage(stage, kind="rl", parent=None, updates_total=1)
        problem = replace(examples.problems(1)[0], prompt=HOSTILE.replace("\ud800", ""), answer=HOSTILE)
        made = examples.group(problem, [HOSTILE.replace("\ud800", "")], stage=stage, update=1)
        writer.record(examples.UpdateRecord(stage=stage, update=1, metrics={}, seconds=1.0, tokens=1), [made])
        claim = " ".join(HOSTILE.split())
        writer.record_findings(
            [replace(BAD, claim=claim, evidence=(made.rollouts[0].id,))], audits=[BAD.audit], stage=stage
        )
    page, html = page_of(folder)
    assert "a rollout behind it" in page.shown
    assert "<script" not in html
