"""The doctor within a run: nothing of the run changes, findings are stored, a sick loop is stopped in one line."""

import hashlib
from dataclasses import replace

import doctor_examples as examples
import pytest
import torch
from doctor_examples import healthy_loop, subject_of
from tiny_runs import BASE, RL, After, fingerprint, finished, make_run, resume, tiny_recipe

from forkpoint.cli.worker import work
from forkpoint.doctor import DoctorError, DoctorHook, examine
from forkpoint.doctor.check import AUDIT, Check, findings, line, sickness
from forkpoint.doctor.hook import alive, try_verifier
from forkpoint.doctor.subject import units
from forkpoint.doctor.table import attempt
from forkpoint.errors import ModelError
from forkpoint.records import Outcome, Reward, Severity
from forkpoint.store import RunReader
from forkpoint.training import rl
from forkpoint.training.unit import Step

OFF = ("doctor.before=false", "doctor.every=0")
OFTEN = ("doctor.every=3",)
IN_WRITING = ("findings",)


def rows_apart_from_findings(assembly):
    return {name: value for name, value in fingerprint(assembly).items() if name not in IN_WRITING}


@pytest.fixture(scope="module")
def watched(tmp_path_factory):
    torch.set_num_threads(1)
    return finished(tmp_path_factory.mktemp("watched") / "run", tiny_recipe(BASE, RL, overrides=OFTEN))


def test_weights_and_rows_are_the_same_with_and_without_the_doctor(watched, tmp_path):
    plain = finished(tmp_path / "run", tiny_recipe(BASE, RL, overrides=OFF))
    assert rows_apart_from_findings(plain) == rows_apart_from_findings(watched)


def test_findings_are_stored_before_the_first_update_and_every_n(watched, tmp_path):
    with RunReader(watched.run) as reader:
        found = {stage: reader.findings(stage) for stage in ("base", "rl")}
    assert [finding.severity for finding in found["base"]] == [Severity.INFO] * 2
    assert [finding.severity for finding in found["rl"]] == [Severity.INFO] * 3
    assert all(finding.audit == AUDIT for finding in found["rl"])
    assert found["rl"][0].value == found["rl"][0].threshold >= 27
    assert "gradient invariance" in found["rl"][0].claim
    without = finished(tmp_path / "run", tiny_recipe(BASE, overrides=OFF))
    with RunReader(without.run) as reader:
        assert reader.findings() == []


def test_a_run_that_was_stopped_ends_with_the_same_rows(watched, tmp_path):
    assembly = make_run(tmp_path / "run", watched.recipe)
    work(assembly, After(6))
    resume(assembly)
    assert fingerprint(assembly) == fingerprint(watched)


def test_no_weight_and_no_gradient_changes_under_the_checks():
    loop = healthy_loop()
    parameters = list(loop.policy.model.parameters())
    parameters[0].grad = torch.full_like(parameters[0], 0.5)

    def digest():
        data = b"".join(parameter.detach().numpy().tobytes() for parameter in parameters)
        return hashlib.sha256(data).hexdigest()

    before = digest()
    examine(subject_of(loop))
    assert digest() == before
    assert bool((parameters[0].grad == 0.5).all())
    assert all(parameter.grad is None for parameter in parameters[1:])


def test_a_sick_loop_stops_the_stage_in_one_line(tmp_path, monkeypatch):
    def flipped(batch, probe, **options):
        return [Reward(total=-float(v.correct is True)) for g in batch.groups for v in g.verdicts]

    monkeypatch.setattr(rl, "outcome_rewards", flipped)
    assembly = make_run(tmp_path / "run", tiny_recipe(RL.replace('from = "base"\n', "")))
    assert work(assembly, After(100)) == 2
    with RunReader(assembly.run) as reader:
        (stage,) = reader.stages()
        claims = [finding.claim for finding in reader.findings("rl") if finding.severity is Severity.CRITICAL]
    assert stage.updates_done == 0
    assert stage.message.startswith("doctor: reward sign = 0 (bound 0.5): ")
    assert "flipped sign" in stage.message
    assert "\n" not in stage.message
    assert len(claims) == 1
    assert claims[0] in stage.message
    monkeypatch.undo()
    resume(assembly)
    with RunReader(assembly.run) as reader:
        assert [finding.severity for finding in reader.findings("rl")] == [Severity.INFO]


def test_what_is_due_when():
    loop = healthy_loop()
    hook = DoctorHook(before=False, every=4)
    assert hook(loop) is None
    step = Step(update=1, metrics={}, seconds=1.0, tokens=0)
    assert hook(replace(loop, steps=(step,), previous=2, done=3)) is None
    changed = loop.training.weights_changed
    changed(5)
    found = hook(replace(loop, steps=(step,), previous=3, done=5))
    assert found is not None
    assert found.stop is None
    assert [finding.severity for finding in found.findings] == [Severity.INFO]


def test_a_resume_is_checked_but_stores_nothing():
    loop = healthy_loop()
    loop.training.weights_changed(3)
    found = DoctorHook(before=True, every=0)(replace(loop, done=3))
    assert found is not None
    assert (found.findings, found.stop) == ((), None)
    sick = DoctorHook(before=True, every=0)(replace(loop, done=4))
    assert isinstance(sick.stop, DoctorError)
    assert "weights version" in str(sick.stop)


def test_the_unit_that_the_run_has_made_is_checked_too():
    loop = healthy_loop()
    steps = tuple(loop.training.unit(1))
    whole = replace(loop, steps=steps, done=1)
    assert [check for check in examine(subject_of(whole)) if not check.ok] == []
    (group, *others) = steps[0].groups
    short = replace(group, rollouts=group.rollouts[:-1], verdicts=group.verdicts[:-1], rewards=group.rewards[:-1])
    credits = (*steps[0].credits[: len(group.rollouts) - 1], *steps[0].credits[len(group.rollouts) :])
    torn = replace(steps[0], groups=(short, *others), credits=credits)
    found = {check.name for check in examine(subject_of(replace(whole, steps=(torn,)))) if not check.ok}
    assert "groups complete" in found
    dropped = replace(torn, metrics={**torn.metrics, "unusable": 0.1})
    found = {check.name for check in examine(subject_of(replace(whole, steps=(dropped,)))) if not check.ok}
    assert "groups complete" not in found


@pytest.mark.parametrize(("truncated", "size"), [("wrong", 4), ("drop", None)])
def test_groups_that_lost_truncated_rollouts_are_not_incomplete(truncated, size):
    loop = healthy_loop(f"stage.rl.truncated={truncated}")
    group = subject_of(loop).judged[0].groups[0]
    step = Step(update=1, metrics={"unusable": 0.0, "truncated": 0.5}, seconds=1.0, tokens=0, groups=(group,))
    assert [judged.group_size for judged in units(replace(loop, steps=(step,)))] == [size]


def test_a_verifier_is_tried_once_in_a_process(monkeypatch):
    loop, asked = healthy_loop(), []
    monkeypatch.setattr("forkpoint.doctor.hook.try_verifier", lambda *a, **k: asked.append(1) or examples.tried(loop))
    trials = {}
    for _ in range(2):
        DoctorHook(before=True, every=0, task_name="[task]", trials=trials)(loop)
    assert asked == [1]
    assert try_verifier(loop, problems=1).ended == ""
    reference, *others = [judgement.outcome for judgement in alive(loop).judgements]
    assert reference is Outcome.CORRECT
    assert others
    assert Outcome.CORRECT not in others


def test_a_check_that_the_loop_refuses_is_sick():
    def illegal_move(subject):
        raise ModelError("a rollout holds a step that is no legal move.")

    check = attempt(illegal_move, subject_of(healthy_loop()))
    assert (check.name, check.status) == ("illegal move", "sick")
    assert "no legal move" in check.did


def check_of(status, value=1.0):
    severity = Severity.WARNING if status == "watch" else Severity.CRITICAL
    return Check(name=f"a {status}", did="looked", value=value, bound=0.5, ok=status == "ok", remedy="Mend it.",
                 severity=severity)  # fmt: skip


def test_checks_become_one_line_and_findings():
    checks = [check_of("ok"), check_of("watch"), check_of("sick", float("nan")), check_of("sick", 2.0)]
    assert [check.status for check in checks] == ["ok", "watch", "sick", "sick"]
    assert line(checks[1]) == "a watch = 1 (bound 0.5): looked. Mend it."
    error = sickness(checks)
    assert str(error) == "doctor: a sick = nan (bound 0.5): looked. Mend it. Also sick: a sick."
    assert sickness(checks[:2]) is None
    made = findings(checks)
    assert [finding.severity for finding in made] == [
        Severity.WARNING, Severity.CRITICAL, Severity.CRITICAL, Severity.INFO,
    ]  # fmt: skip
    assert made[-1].claim == "1 of 4 checks passed: a ok"
