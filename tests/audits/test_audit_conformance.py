"""`check_audit`: every audit of ours passes it, and one audit broken by hand for each clause does not."""

from dataclasses import replace

import numpy as np
import pytest
from subject_example import Asked, ScriptedSubject, group

from forkpoint.audits.rows import Row, records_of
from forkpoint.audits.table import AUDITS
from forkpoint.conformance import check_audit, without
from forkpoint.records import Contents, Finding, Outcome, Severity, StopReason, frozen_array
from forkpoint.seeds import Key


def stage(*, updates=8, problems=6, group=4, sick=False, stage="rl"):
    """Records with everything that they can hold; `sick`: the second half all wrong, cut off and the same text."""
    rows = []
    draw = Key.root(1).generator().random((updates + 1, problems, group))
    for update in range(updates + 1):
        for problem in range(problems):
            for place in range(group):
                dead = sick and update > updates // 2
                correct = bool(draw[update, problem, place] < 0.4) and not dead
                text = "go north\n" * 12 if dead else f"so we add {update} and {place}\nthen {problem}\n#### {problem}"
                tokens = frozen_array(np.arange(5 + place), np.int32)
                logprobs = frozen_array(np.full(len(tokens), -0.5), np.float32)
                rows.append(
                    Row(
                        id=f"{stage}-{update}-{problem}-{place}", problem=str(problem), stage=stage, update=update,
                        purpose="train" if update else "final", length=len(tokens), correct=correct,
                        outcome=Outcome.CORRECT if correct else Outcome.WRONG,
                        stop=StopReason.LENGTH if dead else StopReason.EOS, reward=float(correct or dead),
                        difficulty=float(problem % 3), turns=place,
                        parts={"wrong_entered": 2.0, "wrong_left": 0.0 if dead else 1.0},
                        said=Contents(
                            prompt=f"problem {problem}", text=text, answer=str(problem), reference=str(problem),
                            tokens=tokens, behavior_logprobs=logprobs,
                            trainer_logprobs=frozen_array(logprobs - (0.9 if dead else 0.0), np.float32),
                            loss_mask=frozen_array(np.ones(len(tokens)), np.bool_),
                        ),
                    )
                )  # fmt: skip
    numbers = np.arange(1, updates + 1, dtype=np.int32)
    metrics = {
        name: (numbers, np.full(updates, value)) for name, value in (("kl_to_behavior", 0.5), ("mismatch_max", 1e-6))
    }
    return records_of(rows, metrics=metrics)


HEALTHY, SICK = stage(), stage(sick=True)
COMPARED = replace(SICK, base=stage(stage="base"))


def test_the_records_hold_everything():
    assert len(HEALTHY.has) == 19
    assert {"updates", "groups", "evaluations", "parts", "metrics", "trainer_logprobs", "stops", "turns"} <= HEALTHY.has


@pytest.mark.parametrize("records", [HEALTHY, SICK, COMPARED], ids=["healthy", "sick", "compared"])
@pytest.mark.parametrize("name", AUDITS)
def test_our_audits_pass(name, records):
    entry = AUDITS[name]
    assert check_audit(entry.function, records, needs=entry.needs) == []


def test_the_sick_records_make_audits_find_something():
    """Else nothing above was looked at."""
    found = {name: entry.function(COMPARED, None) for name, entry in AUDITS.items()}
    bad = {name for name, made in found.items() if any(each.severity is not Severity.INFO for each in made)}
    assert {"advantage_collapse", "length_and_format", "mismatch", "exploration"} <= bad
    assert any(each.evidence for made in found.values() for each in made)


def test_our_audits_of_models_pass():
    """One policy that ignores its prompt and guesses; its rollouts are evidence beside those of the records."""
    groups = [group(letter, ["x;y;#1", "y;x;#1", "x;x;#1"], correct=[True, False, True]) for letter in "abcd"]
    subject = ScriptedSubject(groups, lambda context, text: -float(len(text)), task=Asked())
    for name in ("template_collapse", "premature_confidence"):
        entry = AUDITS[name]
        found = entry.function(HEALTHY, subject)
        assert any(each.severity is Severity.CRITICAL and each.evidence for each in found), name
        assert check_audit(entry.function, HEALTHY, subject, needs=entry.needs) == [], name


def good(**changes):
    """An audit that is fine but for the changes of its one finding."""
    finding = Finding(
        audit="mine", severity=Severity.WARNING, claim="Half of them are short.", value=0.5, interval=(0.4, 0.6),
        threshold=0.3, evidence=("rl-1-0-0",),
    )  # fmt: skip
    made = replace(finding, **changes)
    return lambda records, probe: [made] if len(records) else []


def test_a_sound_audit_has_no_fault():
    assert check_audit(good(), HEALTHY) == []
    assert check_audit(good(severity=Severity.INFO, threshold=None, interval=None, evidence=()), HEALTHY) == []
    assert check_audit(lambda records, probe: [], HEALTHY, needs={"all": ("text",)}) == []


def long_answers(records, probe):
    """The example of docs/audits.md."""
    if "length" not in records.has:
        return []
    share = float((records.length > 1000).mean())
    return [Finding(audit="long_answers", severity=Severity.INFO, claim=f"{share:.0%} are long.", value=share)]


def test_the_example_of_the_docs_passes():
    assert check_audit(long_answers, HEALTHY, needs={"length": ("length",)}) == []


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"severity": "bad"}, "severity 'bad' is none of info, warning, critical"),
        ({"severity": "warning"}, "severity 'warning' is none of"),
        ({"threshold": None}, "a warning without a threshold"),
        ({"claim": ""}, "a claim is one line"),
        ({"claim": "Half of them are short"}, "a claim is one line"),
        ({"claim": "Half of them\nare short."}, "a claim is one line"),
        ({"value": float("nan")}, "not finite"),
        ({"value": float("inf"), "interval": None}, "not finite"),
        ({"threshold": float("nan")}, "not finite"),
        ({"interval": (float("nan"), 0.6)}, "not finite"),
        ({"value": 0.61}, "value 0.61 is outside of its interval 0.4 to 0.6"),
        ({"value": 0.39}, "outside"),
        ({"interval": (0.6, 0.4)}, "outside"),
        ({"evidence": ("rl-1-0-0", "nobody")}, "evidence 'nobody' is no rollout"),
        ({"audit": ""}, "needed is one"),
    ],
)  # fmt: skip
def test_the_faults_of_a_finding_are_found(changes, fault):
    faults = check_audit(good(**changes), HEALTHY)
    assert len(faults) == 1
    assert fault in faults[0]


def test_what_is_no_list_of_findings_is_said():
    assert "no list of findings" in check_audit(lambda records, probe: None, HEALTHY)[0]
    assert "no list of findings" in check_audit(lambda records, probe: ["it is fine"], HEALTHY)[0]
    two = [good()(HEALTHY, None)[0], good(audit="yours")(HEALTHY, None)[0]]
    assert "goes by the names ['mine', 'yours']" in check_audit(lambda r, p: two if len(r) else [], HEALTHY)[0]


def test_another_answer_when_asked_again_is_found():
    calls = []

    def forgetful(records, probe):
        calls.append(1)
        return good(value=0.5 + 0.01 * (len(calls) == 2))(records, probe)

    assert check_audit(forgetful, HEALTHY) == ["finds something else when asked again"]


def test_changes_of_the_records_are_found():
    def sorts(records, probe):
        with_metrics = records.metrics.get("mismatch_max")
        if with_metrics is not None:
            with_metrics[1][0] += 1
        return []

    def drops(records, probe):
        if isinstance(records.parts, dict):
            records.parts.pop("wrong_left", None)
        return []

    for audit in (sorts, drops):
        assert "changes the records" in check_audit(audit, stage())
    # What is read-only says so by itself.
    frozen = check_audit(lambda records, probe: records.reward.sort() or [], HEALTHY)
    assert frozen == ["raises ValueError: sort array is read-only"]


def raising(records, probe):
    """Reads texts that need not be there."""
    return [] if not len(records) else [len(said.text) for said in records.contents(np.arange(1))] and []


def test_what_raises_where_something_is_unknown_is_found():
    faults = check_audit(raising, HEALTHY)
    assert faults == ["raises TypeError: object of type 'NoneType' has no len() without text"]
    assert "raises ZeroDivisionError" in check_audit(lambda r, p: [1 / 0], HEALTHY)[0]
    # It declares the answer, and reads the text.
    faults = check_audit(raising, HEALTHY, needs={"form": ("answer",)})
    assert any("with all that 'form' needs and no more" in fault for fault in faults)
    assert not any(
        "no more" in fault for fault in check_audit(raising, HEALTHY, needs={"form": ("text|answer", "text")})
    )


@pytest.mark.parametrize("name", sorted(HEALTHY.has))
def test_every_name_can_be_unknown(name):
    """An audit that insists on one of them is found out by that one."""

    def insists(records, probe):
        return [] if name in records.has or not len(records) else {}[name]

    faults = check_audit(insists, HEALTHY)
    assert len(faults) == 1
    assert faults[0].endswith(f"without {name}")


def test_an_audit_that_needs_a_probe_or_a_base_and_does_not_say_so():
    lost = "raises AttributeError: 'NoneType' object has no attribute"
    faults = check_audit(lambda r, p: [r.base.run][:0] if len(r) else [], COMPARED)
    assert faults == [f"{lost} 'run' without anything to compare with"]
    faults = check_audit(lambda r, p: [p.score][:0] if len(r) else [], HEALTHY, Scoring())
    assert faults == [f"{lost} 'score' without a probe"]


class Scoring:
    def score(self, requests):
        return []


def test_findings_about_nothing_are_found():
    always = [good()(HEALTHY, None)[0]]
    assert check_audit(lambda r, p: always, HEALTHY) == ["finds 'Half of them are short.' without rollouts"]
    # One that declares what it needs is silent where that is not known.
    faults = check_audit(good(), HEALTHY, needs={"all": ("reward|correct", "text")})
    assert faults == ["finds 'Half of them are short.' without anything that it needs"]


def test_what_is_taken_away_is_gone():
    for name in HEALTHY.has:
        fewer = without(COMPARED, {name})
        assert name not in fewer.has
        assert name not in fewer.base.has
        assert fewer.has == COMPARED.has - {name}
    bare = without(COMPARED, COMPARED.has)
    assert bare.has == frozenset()
    assert len(bare) == int(COMPARED.training.sum()) < len(COMPARED)
    assert len(np.unique(bare.group)) == len(bare)
    assert not np.isfinite(bare.reward).any()
    assert not np.isfinite(bare.difficulty).any()
    assert (bare.length == 0).all()
    assert {int(bare.correct.max()), int(bare.outcome.max()), int(bare.stop.max())} == {-1}
    assert len(np.unique(bare.update)) == 1
    assert (dict(bare.parts), dict(bare.metrics)) == ({}, {})
    for said in bare.contents(np.arange(3)):
        assert {getattr(said, name) for name in Contents.__slots__} == {None}
    # The rollouts that are left are the same ones.
    half = without(HEALTHY, {"evaluations"})
    rows = np.flatnonzero(HEALTHY.training)
    assert half.ids.tolist() == HEALTHY.ids[rows].tolist()
    said = [next(iter(each.contents(asked))).text for each, asked in ((half, np.array([5])), (HEALTHY, rows[5:6]))]
    assert said[0] == said[1]
