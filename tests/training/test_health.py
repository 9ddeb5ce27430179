"""Audits within a run: what they read, what they cost, and that nothing of the run changes."""

import sqlite3
from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_runs import BASE, HEAD, RL, After, fingerprint, finished, make_run, resume, tiny_recipe

from forkpoint.assembly import Assembly
from forkpoint.audits.template_collapse import CrossScores, collapse, cross_scores, findings
from forkpoint.cli.worker import work
from forkpoint.config.watching import Audits
from forkpoint.errors import ModelError
from forkpoint.records import Finding, Outcome, Reward, Severity, Verdict
from forkpoint.seeds import Key
from forkpoint.store import RunReader, RunWriter, checkpoint_path, stage_folder
from forkpoint.store.columns import stage_records
from forkpoint.training.health import (
    HealthHook,
    affordable_pairs,
    batch_records,
    collapse_metrics,
    fitting,
    gist,
)
from forkpoint.training.unit import Step

OFF = ("audits.every=0",)
OFTEN = ("audits.every=2", "audits.share=1", "doctor.before=false", "doctor.every=0")
AUDIT_METRICS = ("audit_", "template_")


def apart_from_audits(assembly):
    """The fingerprint without what audits add."""
    found = fingerprint(assembly)
    del found["findings"]
    found["metrics"] = [row for row in found["metrics"] if not row["name"].startswith(AUDIT_METRICS)]
    return found


def untimed(assembly):
    found = fingerprint(assembly)
    found["metrics"] = [row for row in found["metrics"] if row["name"] != "audit_seconds"]
    return found


@pytest.fixture(scope="module")
def audited(tmp_path_factory):
    torch.set_num_threads(1)
    return finished(tmp_path_factory.mktemp("audited") / "run", tiny_recipe(BASE, RL, overrides=OFTEN))


def test_weights_and_rows_are_the_same_with_and_without_audits(audited, tmp_path):
    plain = finished(tmp_path / "run", tiny_recipe(BASE, RL, overrides=(*OFTEN[2:], *OFF)))
    assert apart_from_audits(plain) == apart_from_audits(audited)
    with RunReader(plain.run) as reader:
        assert reader.findings() == []


def test_audits_come_every_n_updates_with_their_cost(audited):
    with RunReader(audited.run) as reader:
        updates, seconds = reader.metrics("rl", "audit_seconds")
        scored = reader.metrics("rl", "audit_scored_tokens")[1]
        names = {finding.audit for finding in reader.findings("rl")}
        assert reader.findings("base") == []
        assert "audit_seconds" not in reader.metric_names("base")
    assert updates.tolist() == [2, 4, 6]
    assert (seconds > 0).all()
    assert (scored > 0).all()
    assert {"advantage_collapse", "length_and_format", "mismatch", "template_collapse"} <= names


@pytest.mark.parametrize("count", [3, 5])
def test_a_run_that_was_stopped_finds_the_same(audited, tmp_path, count):
    assembly = make_run(tmp_path / "run", audited.recipe)
    work(assembly, After(5 + count))
    with RunReader(assembly.run) as reader:
        assert 0 < reader.stage("rl").updates_done < 6
    resume(assembly)
    assert untimed(assembly) == untimed(audited)


def test_the_spread_is_a_moving_average_that_the_store_holds(audited):
    """Each stored z-score is I over 0.9 of the spread before and 0.1 of its own."""
    with RunReader(audited.run) as reader:
        spread, z, information = (
            reader.metrics("rl", f"template_{name}")[1] for name in ("spread", "z_score", "information")
        )
    assert len(spread) == 3
    assert z == pytest.approx(information / (spread + 1e-3))
    loop = loop_of(audited)
    found = collapse(cross_scores(loop.steps[0].groups, loop.probe, loop.key.child("audits", 6), pairs=16),
                     loop.key.child("audits", 6).child("interval"))  # fmt: skip
    # The loop has the last weights and the hook had those too.
    assert information[2] == pytest.approx(found.information)
    assert spread[2] == pytest.approx(0.9 * spread[1] + 0.1 * found.spread)


def loop_of(assembly, name="rl"):
    """The loop of a finished stage after its last update, with the batch that the store kept of it."""
    stage = assembly.recipe.get_stage(name)
    loop = assembly.loop(name, checkpoint_path(stage_folder(assembly.run, name), stage.updates))
    with RunReader(assembly.run) as reader:
        groups = tuple(reader.groups(name, stage.updates))
    step = Step(update=stage.updates, metrics={}, seconds=1.0, tokens=0, groups=groups)
    return replace(loop, run=assembly.run, previous=stage.updates - 1, steps=(step,))


def test_a_batch_reads_like_its_stored_rows(audited):
    with RunReader(audited.run) as reader:
        groups = [group for update in reader.kept_updates("rl") for group in reader.groups("rl", update)]
    made, stored = batch_records(groups, stage="rl"), stage_records(audited.run, "rl")
    rows = np.flatnonzero(stored.training)
    for name in ("ids", "update", "length", "correct", "outcome", "stop", "reward", "difficulty", "kept"):
        assert np.array_equal(getattr(made, name), getattr(stored, name)[rows]), name
    for name in ("problem", "group"):
        pair = getattr(made, name), getattr(stored, name)[rows]
        one, two = (np.unique(values, return_inverse=True)[1] for values in pair)
        assert len({*zip(one.tolist(), two.tolist(), strict=True)}) == len({*one.tolist()}) == len({*two.tolist()})
    places = np.arange(0, len(rows), 7)
    for ours, theirs in zip(made.contents(places), stored.contents(rows[places]), strict=True):
        assert (ours.prompt, ours.text, ours.answer, ours.reference) == (
            theirs.prompt, theirs.text, theirs.answer, theirs.reference,
        )  # fmt: skip
        assert np.array_equal(ours.tokens, theirs.tokens)
        assert np.array_equal(ours.behavior_logprobs, theirs.behavior_logprobs)
        assert np.array_equal(ours.loss_mask, theirs.loss_mask)


@pytest.mark.parametrize(
    ("settings", "problems", "rollouts", "pairs"),
    [
        # 0.02 x 50 x 4 x 512 = 2048 = 64 x 32; one rollout fewer is not enough for 64.
        ({}, 32, 512, 64),
        ({}, 32, 511, 63),
        ({}, 256, 512, 45),  # 45^2 <= 2048 < 46^2
        ({}, 32, 64, 16),  # 256 = 16^2
        ({"every": 100}, 32, 64, 22),
        ({"pairs": 10}, 32, 512, 10),
        ({"pairs": 0}, 32, 512, 0),
        ({"share": 0.0}, 32, 512, 0),
        ({}, 4, 8, 8),  # 32 / 4
        ({}, 4, 7, 0),  # 7 are too few
    ],
)  # fmt: skip
def test_scoring_takes_its_share_of_the_stage_at_most(settings, problems, rollouts, pairs):
    made = Audits(**settings)
    assert affordable_pairs(made, problems=problems, rollouts=rollouts) == pairs
    assert pairs * min(pairs, problems) <= made.share * made.every * 4 * rollouts


def watched(assembly, **settings):
    """The hook of a loop, and the lines that it told."""
    told = []
    return HealthHook(tell=told.append, settings=Audits(**{"every": 1, "share": 1.0, **settings})), told


def with_batch(loop, change):
    """The loop with its last batch changed, group by group."""
    (step,) = loop.steps
    groups = tuple(change(group) for group in step.groups)
    return replace(loop, steps=(replace(step, groups=groups),))


def hopeless(group):
    wrong = tuple(Verdict(outcome=Outcome.WRONG, correct=False) for _ in group.rollouts)
    return replace(group, verdicts=wrong, rewards=tuple(Reward(total=0.0) for _ in wrong))


def many(loop, times):
    """The batch so often, as other problems."""

    def again(group, number):
        renamed = [
            replace(r, id=f"{r.id}{number}", group_id=f"{r.group_id}{number}", problem_key=f"{r.problem_key}{number}")
            for r in group.rollouts
        ]
        problem = replace(group.problem, key=f"{group.problem.key}{number}")
        return replace(group, problem=problem, rollouts=tuple(renamed))

    (step,) = loop.steps
    groups = tuple(again(group, number) for number in range(times) for group in step.groups)
    return replace(loop, steps=(replace(step, groups=groups),))


def test_a_bad_finding_is_told_and_stored_once_and_keeps_its_evidence(audited):
    loop = many(with_batch(loop_of(audited), hopeless), 12)
    hook, told = watched(audited, pairs=0)
    found = hook(loop)
    dead = [finding for finding in found.findings if finding.severity is Severity.CRITICAL]
    # The tiny policy has not learned to end its rollouts either.
    assert [finding.audit for finding in dead] == ["advantage_collapse", "length_and_format"]
    assert dead[0].value == 1.0
    lines = [line for line in told if "advantage_collapse" in line]
    assert lines == [f"update 6: sick, advantage_collapse: {dead[0].claim}"]
    cited = {rollout.id for group in found.evidence for rollout in group.rollouts}
    # The stage keeps every batch, so nothing is evidence beside it...
    assert cited == set()
    # What else a sick audit says is no news as long as it is sick; the others say theirs each time.
    assert {finding.audit for finding in found.findings if finding.severity is Severity.INFO} == {
        "mismatch", "exploration",
    }  # fmt: skip
    again = hook(replace(loop, previous=6, done=7))
    assert {finding.audit for finding in again.findings} == {"mismatch", "exploration"}
    assert len(told) == len(set(told))
    assert [line for line in told if "advantage_collapse" in line] == lines
    # ... but one that keeps every fourth has to be asked to.
    hook, _ = watched(audited, pairs=0)
    rare = hook(replace(loop, stage=loop.stage.model_copy(update={"keep_rollouts": "every:4"})))
    named = {name for finding in rare.findings for name in finding.evidence}
    assert set(dead[0].evidence) <= {rollout.id for group in rare.evidence for rollout in group.rollouts} == named


def test_evidence_is_kept_and_goes_with_a_rewind(tmp_path):
    rare = (*OFTEN, "stage.rl.keep_rollouts=every:100", "stage.rl.checkpoint_every=3")
    assembly = finished(tmp_path / "run", tiny_recipe(BASE, RL, overrides=rare))
    with RunReader(assembly.run) as reader:
        named = {name for finding in reader.findings("rl") for name in finding.evidence}
        kept = {rollout.id for rollout in reader.rollouts("rl", purpose=None)}
        assert reader.kept_updates("rl") == [1]
        beside = reader.kept_updates("rl", "evidence")
    assert named
    assert named <= kept
    assert set(beside) <= {2, 4, 6}
    assert beside
    with RunWriter.open(assembly.run) as writer:
        writer.rewind("rl", beside[0] - 1)
    with RunReader(assembly.run) as reader:
        assert reader.kept_updates("rl", "evidence") == []
        assert all(update < beside[0] for update in reader.metrics("rl", "audit_seconds")[0])


def test_the_last_batch_is_seen_beside_the_first_one(audited):
    hook, _ = watched(audited, pairs=0)
    claims = [finding.claim for finding in hook(loop_of(audited)).findings]
    assert any("(updates 1 to 1 against 6 to 6)" in claim for claim in claims)
    # The first batch is compared with nothing.
    loop = loop_of(audited)
    with RunReader(audited.run) as reader:
        step = replace(loop.steps[0], update=1, groups=tuple(reader.groups("rl", 1)))
    claims = [finding.claim for finding in hook(replace(loop, steps=(step,), done=1, previous=0)).findings]
    assert claims
    assert not any("against" in claim for claim in claims)


def test_which_reasonings_are_scored_depends_on_the_update(audited):
    loop, key = loop_of(audited), Key.root(0).child("rl").child("audits", 6)
    hook, _ = watched(audited, pairs=8)
    made = [finding for finding in hook(loop).findings if finding.audit == "template_collapse"]
    scores = cross_scores(loop.steps[0].groups, loop.probe, key, pairs=8)
    told = findings(collapse(scores, key.child("interval"), earlier=last_spread(audited)), scores.ids)
    assert made == [told[0]]
    assert told[0].severity is not Severity.INFO
    hook, _ = watched(audited, pairs=8)
    other = [f for f in hook(replace(loop, done=7)).findings if f.audit == "template_collapse"]
    assert [finding.value for finding in other] != [finding.value for finding in made]


def last_spread(assembly):
    with RunReader(assembly.run) as reader:
        return float(reader.metrics("rl", "template_spread")[1][-1])


def test_a_resumed_stage_does_not_tell_again(audited):
    loop = many(with_batch(loop_of(audited), hopeless), 12)
    hook, _ = watched(audited, pairs=0)
    first = hook(loop)
    bad = [finding for finding in first.findings if finding.severity is not Severity.INFO]
    assert bad
    fresh, quiet = watched(audited, pairs=0)
    fresh.named.update(gist(finding) for finding in bad)
    assert [f for f in fresh(loop).findings if f.severity is not Severity.INFO] == []
    assert quiet == []
    # What it takes up is what the store holds.
    fresh(replace(loop, steps=()))
    with RunReader(audited.run) as reader:
        stored = {gist(f) for f in reader.findings("rl") if f.severity is not Severity.INFO}
    assert fresh.named == stored


def test_findings_that_differ_in_numbers_alone_are_one():
    one = Finding(audit="a", severity=Severity.WARNING, claim="51.5% of 32 are short, -1e-3.", value=0.5)
    assert gist(one) == gist(replace(one, claim="7% of 9 are short, +2.", value=0.1))
    for other in ({"severity": Severity.CRITICAL}, {"audit": "b"}, {"claim": "51.5% of 32 are long, -1e-3."}):
        assert gist(replace(one, **other)) != gist(one)


def test_nothing_is_due_between_and_without_a_batch(audited):
    loop = loop_of(audited)
    hook, _ = watched(audited, every=4)
    assert hook(loop) is None  # 6 // 4 == 5 // 4
    assert hook(replace(loop, previous=3)) is not None
    assert hook(replace(loop, previous=3, steps=(replace(loop.steps[0], groups=()),))) is None
    assert hook(replace(loop, previous=3, stage=audited.recipe.get_stage("base"))) is None
    assert watched(audited, every=0)[0](loop) is None


def test_a_policy_that_cannot_score_is_said_once_and_stops_nothing(audited):
    class Refusing:
        def __init__(self, probe):
            self.probe = probe

        def __getattr__(self, name):
            return getattr(self.probe, name)

        def score(self, requests):
            raise ModelError(f"no legal move among {len(requests)}.")

    loop = loop_of(audited)
    hook, told = watched(audited)
    refusing = replace(loop, probe=Refusing(loop.probe))
    found = hook(refusing)
    assert found.stop is None
    assert found.metrics["audit_scored_tokens"] == 0
    hook(replace(refusing, done=7, previous=6))
    said = [line for line in told if "could not score" in line]
    assert len(said) == 1
    assert "no legal move" in said[0]


def test_texts_that_do_not_fit_after_the_longest_prompt_are_left_out(audited):
    groups = loop_of(audited).steps[0].groups
    assert fitting(groups, None) == list(groups)
    first = groups[0].rollouts[0]
    longest = max(len(r.prompt_tokens) for g in groups for r in g.rollouts)
    sizes = sorted({len(r.tokens) for g in groups for r in g.rollouts})
    assert len(sizes) > 1
    kept = fitting(groups, longest + sizes[0])
    assert {len(r.tokens) for g in kept for r in g.rollouts} == {sizes[0]}
    for group in kept:
        assert len(group.rollouts) == len(group.verdicts) == len(group.rewards) > 0
        whole = next(g for g in groups if g.problem.key == group.problem.key)
        for rollout, verdict in zip(group.rollouts, group.verdicts, strict=True):
            assert whole.verdicts[[r.id for r in whole.rollouts].index(rollout.id)] is verdict
    assert fitting(groups, 1) == []
    assert first.tokens.size


def test_a_table_is_not_asked_for_other_prompts(tmp_path):
    """The moves of one problem need not be legal in another one."""
    recipe = tiny_recipe(BASE, RL)
    with RunWriter.create(tmp_path / "run", name="x", identity={}) as writer:
        hooks = Assembly(recipe=recipe, origin=tmp_path, run=tmp_path)._hooks(recipe.get_stage("rl"), writer)
        assert [hook.crossing for hook in hooks if isinstance(hook, HealthHook)] == [True]
        hooks = Assembly(recipe=recipe, origin=tmp_path, run=tmp_path)._hooks(recipe.get_stage("base"), writer)
        assert [hook for hook in hooks if isinstance(hook, HealthHook)] == []
        off = tiny_recipe(BASE, RL, overrides=OFF)
        hooks = Assembly(recipe=off, origin=tmp_path, run=tmp_path)._hooks(off.get_stage("rl"), writer)
        assert [hook for hook in hooks if isinstance(hook, HealthHook)] == []


def test_what_is_stored_of_an_estimate():
    scores = CrossScores(
        table=np.log([[0.8, 0.2], [0.4, 0.4]]), own=np.array([0, 1]), lengths=np.array([4, 4]),
        problems=np.array([0, 1], dtype=np.uint64),
    )  # fmt: skip
    found = collapse_metrics(collapse(scores, Key.root(0)))
    assert found["template_information"] == pytest.approx(np.log(1.6) / 2)
    assert found["template_share"] == pytest.approx(np.log(1.6) / 2 / np.log(2))
    assert found["template_entropy"] == pytest.approx(-np.log(0.32) / 2)
    assert found["template_retrieval"] == pytest.approx(0.75)
    assert found["template_spread"] == pytest.approx(abs(np.log(0.5 / 0.4)) / 2)


def test_an_event_stands_in_the_log_of_the_run(tmp_path):
    assembly = finished(tmp_path / "run", tiny_recipe(BASE, RL, overrides=OFTEN, head=HEAD))
    with sqlite3.connect(assembly.run / "run.db") as connection:
        told = [row[0] for row in connection.execute("SELECT message FROM events WHERE kind = 'audit'")]
    with RunReader(assembly.run) as reader:
        bad = [f for f in reader.findings("rl") if f.severity is not Severity.INFO]
    assert len(told) == len(bad)
    assert all(any(finding.claim in line for line in told) for finding in bad)
