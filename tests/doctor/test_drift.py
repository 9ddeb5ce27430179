"""The guard of dense credit: synthetic stages whose course is known, healthy ones, noise, and a tiny real run."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_runs import After, fingerprint, finished, make_run, resume, tiny_recipe

from forkpoint.cli.worker import work
from forkpoint.doctor import drift as guard
from forkpoint.doctor.drift import AUDIT, DriftError, DriftHook, Limits, drift, history, stored_batches
from forkpoint.records import Severity
from forkpoint.seeds import Key
from forkpoint.store import RunReader
from forkpoint.training.hooks import Inspection
from forkpoint.training.unit import Step

PROBLEMS, GROUP = 8, 8
DENSE = """
[[stage]]
name = "rl"
kind = "rl"
updates = 8
problems_per_update = 6
group_size = 6
max_new_tokens = 6
checkpoint_every = 2
[stage.credit]
rule = "batch_baseline"
wrap = ["fork_mask"]
"""


def course(rates, idle, key, *, share=0.9, noise=0.02):
    """Batches of 8 groups of 8, problems of unequal difficulty; `idle` is the mean log-probability without credit."""
    draw = key.generator()
    batches = {}
    for update, (rate, level) in enumerate(zip(rates, idle, strict=True), start=1):
        chances = draw.beta(8 * rate, 8 * (1 - rate), size=PROBLEMS)
        found = draw.binomial(GROUP, chances) / GROUP
        batches[update] = {
            "drift_spread": float((found * (1 - found)).mean() * GROUP / (GROUP - 1)),
            "drift_correct": float(found.mean()),
            "drift_correct_error": float(found.std(ddof=1) / np.sqrt(PROBLEMS)),
            "drift_idle_share": share,
            "drift_idle_logprob": float(level + noise * draw.standard_normal()),
            "drift_credited_logprob": -1.0,
        }
    return batches


def named(batches):
    """The first update of each severity, as a stage would name them."""
    first = {}
    for update in batches:
        found = drift(history({known: batches[known] for known in range(1, update + 1)}))
        if found is not None:
            first.setdefault(found.severity, (update, found))
    return first


def fallen(*, peak=0.64, end=0.40, over=150):
    """The course of variant F: up in 60 updates, then down while the filler moves."""
    rates = np.concatenate([np.linspace(0.35, peak, 60), np.linspace(peak, end, over)])
    return rates, -0.8 + 0.7 * np.clip(np.arange(len(rates)) / 120, 0, 1)


def test_drift_is_named_before_the_collapse():
    rates, idle = fallen()
    found = named(course(rates, idle, Key.root(0)))
    moved, watched, sick = (found[severity][0] for severity in (Severity.INFO, Severity.WARNING, Severity.CRITICAL))
    assert moved < 60 < watched < sick
    assert rates[watched - 1] > 0.48
    assert rates[sick - 1] > 0.42


def test_a_finding_says_what_fell_from_where_and_what_moved():
    rates, idle = fallen()
    found = named(course(rates, idle, Key.root(1)))
    told = found[Severity.WARNING][1]
    assert told.audit == AUDIT
    assert told.interval[0] < told.value < told.interval[1]
    assert told.value >= told.threshold > 0.05
    assert "tokens without credit (90% of those trained on) moved by +0." in told.claim
    assert "correct rollouts fell from 0.6" in told.claim
    assert "outcome_floor" in told.claim
    assert "\n" not in told.claim
    moved = found[Severity.INFO][1]
    assert moved.value == pytest.approx(0.1, abs=0.05)
    assert "harmless unless" in moved.claim


def test_the_movement_is_that_between_the_first_and_the_last_window():
    batches = course([0.5] * 40, [-1.0] * 10 + [-0.7] * 20 + [-0.4] * 10, Key.root(2), noise=0.0)
    found = drift(history(batches))
    assert found is not None
    assert found.value == pytest.approx(0.6)
    assert found.interval == pytest.approx((0.6, 0.6))
    falling = drift(history(course([0.5] * 40, [-1.0] * 30 + [-1.6] * 10, Key.root(2), noise=0.0)))
    assert falling is not None
    assert falling.value == pytest.approx(-0.6)


@pytest.mark.parametrize("seed", range(4))
def test_healthy_stages_give_no_alarm(seed):
    key = Key.root(seed).child("healthy")
    count = np.arange(200)
    rise = 0.3 + 0.6 * (1 - np.exp(-count / 60))
    # Whatever moves while the rate rises, stays, or is high: it is named as moving at most.
    for number, rates in enumerate((rise, np.full(200, 0.5), np.full(200, 0.95))):
        found = named(course(rates, -0.8 + 0.003 * count, key.child(number)))
        assert set(found) <= {Severity.INFO}
        still = named(course(rates, np.full(200, -0.8), key.child("still", number)))
        assert not still


def test_rollouts_that_end_alike_are_named_while_the_rate_still_holds():
    rates, idle = np.full(80, 0.7), -0.8 + 0.01 * np.arange(80)
    batches = course(rates, idle, Key.root(8))
    draw = Key.root(9).generator()
    for update in range(41, 81):
        # As many correct rollouts as before, but each problem is solved always or never.
        share = float(draw.binomial(PROBLEMS, 0.7) / PROBLEMS)
        batches[update] |= {"drift_correct": share, "drift_spread": 0.005,
                            "drift_correct_error": float(np.sqrt(share * (1 - share) / (PROBLEMS - 1)))}  # fmt: skip
    found = named(batches)
    update, told = found[Severity.WARNING]
    assert set(found) == {Severity.INFO, Severity.WARNING}
    assert 44 < update <= 52
    assert told.claim.startswith("rollouts of a problem end alike: ")
    assert told.value <= told.threshold
    assert told.interval[0] < told.value < told.interval[1]
    high = {known: {**metrics, "drift_correct": 0.5 + metrics["drift_correct"] / 2 if known < 31 else 0.97}
            for known, metrics in batches.items()}  # fmt: skip
    assert Severity.WARNING not in named(high)


def test_a_fall_of_rollouts_that_end_alike_is_sick_at_once():
    rates, idle = fallen()
    batches = course(rates, idle, Key.root(0))
    first = named(batches)[Severity.CRITICAL][0]
    for update in range(80, len(batches) + 1):
        batches[update]["drift_spread"] = 0.01
    found = named(batches)
    assert found[Severity.WARNING][1].claim.startswith("rollouts of a problem end alike")
    assert found[Severity.CRITICAL][0] < first


def test_a_fall_without_movement_is_another_disease():
    rates, idle = fallen()
    assert not named(course(rates, np.full_like(idle, -0.8), Key.root(4)))
    uniform = {update: {k: v for k, v in metrics.items() if k in ("drift_spread", "drift_correct",
               "drift_correct_error")} for update, metrics in course(rates, idle, Key.root(4)).items()}  # fmt: skip
    assert not named(uniform)


@pytest.mark.parametrize("left_out", [0.0, 0.05])
def test_a_fall_is_named_where_hardly_a_token_is_without_credit(left_out):
    """A critic or a floor: no token can be seen to drift, so the solve rate is judged alone, and nothing is an info."""
    rates, _ = fallen()
    batches = course(rates, np.full(len(rates), -0.8), Key.root(4), share=left_out)
    if not left_out:
        batches = {update: {k: v for k, v in metrics.items() if "idle_logprob" not in k}
                   for update, metrics in batches.items()}  # fmt: skip
    found = named(batches)
    assert set(found) == {Severity.WARNING, Severity.CRITICAL}
    assert 60 < found[Severity.WARNING][0] <= found[Severity.CRITICAL][0]
    assert rates[found[Severity.CRITICAL][0] - 1] > 0.42
    claim = found[Severity.CRITICAL][1].claim
    assert "while hardly a token is without credit" in claim
    assert "Lower the learning rate; go back" in claim
    assert "outcome_floor" not in claim


@pytest.mark.parametrize("seed", range(4))
def test_no_alarm_where_every_token_has_credit_and_the_rate_holds(seed):
    count = np.arange(200)
    for number, rates in enumerate((0.3 + 0.6 * (1 - np.exp(-count / 60)), np.full(200, 0.5), np.full(200, 0.95))):
        assert not named(course(rates, -0.8 + 0.003 * count, Key.root(seed).child("credited", number), share=0.0))


def test_it_also_sees_a_collapse_after_which_nothing_has_credit():
    rates, idle = fallen(end=0.05, over=60)
    batches = course(rates, idle, Key.root(5))
    for update in range(130, 160):
        batches[update] = {"drift_spread": 0.0, "drift_correct": 0.0, "drift_correct_error": 0.0}
    found = drift(history(batches))
    assert found is not None
    assert found.severity is Severity.CRITICAL


def test_batches_that_hang_together_are_no_fall():
    """Ten batches of hard problems after ten of easy ones: their own errors see no problem, successive ones do."""
    rates = [0.9, 0.1] * 10 + [0.7, 0.1] * 10
    batches = course([0.5] * 40, [-1.0] * 20 + [-0.5] * 20, Key.root(6))
    for update, rate in enumerate(rates, start=1):
        batches[update] |= {"drift_correct": rate, "drift_correct_error": 0.0}
    found = drift(history(batches))
    assert found is not None
    assert found.severity is Severity.INFO


def test_the_two_windows_of_a_fall_do_not_overlap():
    batches = course([0.5] * 20, [-1.0] * 10 + [-0.5] * 10, Key.root(6))
    for update, rate in enumerate([0.5] * 5 + [0.9] * 10 + [0.1] * 5, start=1):
        batches[update] |= {"drift_correct": rate, "drift_correct_error": 0.01}
    loose = guard.Fall(errors=0.0, share=0.0)
    found = drift(history(batches), Limits(windows=(10,), watch=loose, sick=loose))
    assert found is not None
    assert found.claim.startswith("correct rollouts fell from 0.700 (updates 1 to 10) to 0.500 (updates 11 to 20)")
    assert found.value == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("end", "severity"), [(0.72, Severity.INFO), (0.64, Severity.WARNING), (0.56, Severity.CRITICAL)]
)
def test_a_fall_is_weighed_by_its_size_however_certain_it_is(end, severity):
    batches = course([0.5] * 80, [-1.0] * 40 + [-0.5] * 40, Key.root(6))
    for update, rate in enumerate([0.8] * 40 + [end] * 40, start=1):
        batches[update] |= {"drift_correct": rate, "drift_correct_error": 0.002, "drift_spread": rate * (1 - rate)}
    found = drift(history(batches))
    assert found is not None
    assert found.severity is severity


def test_thresholds_can_be_replayed():
    rates, idle = fallen()
    past = history(course(rates, idle, Key.root(7)))
    assert drift(past).severity is Severity.CRITICAL
    strict = Limits(watch=guard.Fall(errors=5.0, share=0.9), sick=guard.Fall(errors=6.0, share=0.95))
    assert drift(past, strict).severity is Severity.INFO
    assert drift(past, replace(strict, moved=3.0)) is None


def walked(hook, batches, loop):
    """What the hook returned at each update."""
    found = []
    for update, metrics in batches.items():
        step = Step(update=update, metrics=metrics, seconds=0.0, tokens=0)
        found.append((update, hook(replace(loop, steps=(step,), previous=update - 1, done=update))))
    return [(update, each) for update, each in found if each is not None]


@pytest.fixture(scope="module")
def dense(tmp_path_factory):
    torch.set_num_threads(1)
    return finished(tmp_path_factory.mktemp("dense") / "run", tiny_recipe(DENSE))


def test_each_severity_is_named_once_and_the_stage_goes_on(dense):
    lines = []
    hook = DriftHook(tell=lines.append)
    rates, idle = fallen(over=120)
    found = walked(hook, course(rates, idle, Key.root(0)), dense.loop("rl"))
    assert [each.findings[0].severity for _, each in found] == [Severity.INFO, Severity.WARNING, Severity.CRITICAL]
    assert all(isinstance(each, Inspection) and each.stop is None for _, each in found)
    assert [line.split(":")[0] for line in lines] == [f"update {update}" for update, _ in found]


def test_it_stops_only_if_told_to(dense):
    rates, idle = fallen(over=120)
    hook = DriftHook(tell=lambda line: None, stop=True)
    found = walked(hook, course(rates, idle, Key.root(0)), dense.loop("rl"))
    assert [type(each.stop) for _, each in found] == [type(None), type(None), DriftError]
    assert str(found[-1][1].stop).startswith("drift: correct rollouts fell from")


def test_a_curriculum_has_no_guard(dense):
    loop = dense.loop("rl")
    stage = loop.stage.model_copy(update={"curriculum": object()})
    rates, idle = fallen(over=120)
    assert not walked(DriftHook(tell=pytest.fail), course(rates, idle, Key.root(0)), replace(loop, stage=stage))


def test_a_run_keeps_the_metrics_and_a_resume_takes_them_up(dense, tmp_path, monkeypatch):
    with RunReader(dense.run) as reader:
        batches = stored_batches(reader, "rl")
    assert list(batches) == [1, 2, 3, 4, 5, 6, 7, 8]
    some = [metrics for metrics in batches.values() if "drift_idle_share" in metrics]
    assert some
    # fork_mask keeps a fifth of the tokens, ties at the edge included.
    assert all(0.3 < metrics["drift_idle_share"] < 0.95 for metrics in some)
    # Windows of two batches, and any change counts.
    short = Limits(window=2, windows=(2,), moved=0.0, errors=0.0, watch=guard.Fall(errors=0.0, share=0.0),
                   sick=guard.Fall(errors=0.0, share=0.0))  # fmt: skip
    monkeypatch.setattr(DriftHook, "__init__", _short_init(DriftHook.__init__, short))
    whole = finished(tmp_path / "whole", tiny_recipe(DENSE))
    broken = make_run(tmp_path / "broken", whole.recipe)
    work(broken, After(4))
    resume(broken)
    assert fingerprint(broken) == fingerprint(whole)
    with RunReader(whole.run) as reader:
        found = [finding for finding in reader.findings("rl") if finding.audit == AUDIT]
        lines = [event.message for event in reader.events() if event.kind == "drift"]
    assert len(found) == len(lines) > 0
    assert len({finding.severity for finding in found}) == len(found)


def _short_init(made, limits):
    def init(self, **fields):
        made(self, **{**fields, "limits": limits})

    return init


def test_a_recipe_can_turn_it_off(tmp_path):
    def hooks(*overrides):
        assembly = make_run(tmp_path / str(len(overrides)), tiny_recipe(DENSE, overrides=overrides))
        from_writer = type("Writer", (), {"event": print})()
        return [type(hook).__name__ for hook in assembly.stage_context("rl", from_writer, lambda: False).hooks]

    assert hooks() == ["DoctorHook", "DriftHook", "HealthHook"]
    assert hooks("doctor.drift=off") == ["DoctorHook", "HealthHook"]
    assert Path(tmp_path / "0").is_dir()
