"""Curricula in the loop: what is drawn, filtered, remembered, reported, and found again after a stop."""

import itertools
import sqlite3
from dataclasses import replace

import numpy as np
import pytest
from tiny_runs import RL, After, differences, fingerprint, finished, make_run, resume, status, tiny_recipe

from forkpoint.cli.worker import work
from forkpoint.config.curriculum import Curriculum as Settings
from forkpoint.curricula.state import FILE
from forkpoint.errors import CheckpointError, RecipeError, TaskError
from forkpoint.records import Group, Outcome, Problem, Verdict
from forkpoint.seeds import Key, content_hash
from forkpoint.store import checkpoint_path, latest_checkpoint, load_state, save_checkpoint, stage_folder
from forkpoint.training.candidates import Candidates
from forkpoint.training.curriculum import Curriculum
from forkpoint.training.rl import usable
from forkpoint.verifiers.outside import written_rollout

RATES = {0.0: 1.0, 0.5: 0.5, 1.0: 0.0}
"""True pass rate by difficulty."""


class Dial:
    """An endless task whose difficulty is what was asked for."""

    name = "dial"

    def problem(self, key, difficulty=None):
        level = 0.5 if difficulty is None else difficulty
        metadata = {"kind": "even" if int(key.hex, 16) % 2 else "odd"}
        return Problem(
            task="dial", key=content_hash(key.hex), prompt="?", answer="", difficulty=level, metadata=metadata
        )


class Fixed(Dial):
    """A task of forty problems without a dial."""

    def __init__(self, count=40):
        self._problems = [
            replace(super(Fixed, self).problem(Key.root(place)), metadata={"rate": RATES[place % 3 / 2]})
            for place in range(count)
        ]

    def problems(self):
        return self._problems

    def problem(self, key, difficulty=None):
        return self._problems[int(key.hex, 16) % len(self._problems)]


def judged(problems, number, *, key, size=4):
    """Groups whose rollouts are correct with the rate of their problem."""
    groups = []
    for place, problem in enumerate(problems):
        rate = problem.metadata.get("rate", RATES[problem.difficulty])
        draws = key.child(number, place, problem.key).uniforms(size)
        verdicts = tuple(
            Verdict(outcome=Outcome.CORRECT if draw < rate else Outcome.WRONG, correct=bool(draw < rate))
            for draw in draws
        )
        groups.append(
            Group(problem=problem, rollouts=tuple(written_rollout(problem, "x") for _ in draws), verdicts=verdicts)
        )
    return groups


def batches(made, updates, count=6, seed=0):
    """What the curriculum makes of so many updates, one after another."""
    for update in range(1, updates + 1):
        key = Key.root(seed).child("rollouts", update)
        yield made.batch(update, count, lambda problems, number, key=key: judged(problems, number, key=key), trim)


def trim(group):
    return usable(group, drop_truncated=False)


def build(task=None, seed=0, **settings):
    return Curriculum(Settings(**settings), task or Dial(), Key.root(seed).child("curriculum"))


def share_mixed(selected):
    groups = [group for each in selected for group in each.sampled]
    return np.mean([group.problem.metadata.get("rate", RATES[group.problem.difficulty]) == 0.5 for group in groups])


LEVELS = (0.0, 0.0, 0.5, 1.0, 1.0)


@pytest.mark.parametrize(("task", "settings"), [(Dial(), {"levels": LEVELS}), (Fixed(), {})])
def test_selection_finds_the_problems_that_are_neither_hopeless_nor_trivial(task, settings):
    chosen = list(batches(build(task, **settings), 60))[30:]
    drawn = list(batches(build(task, oversample=1, **settings), 60))[30:]
    # In the mix they are one in five and one in three.
    assert share_mixed(drawn) == pytest.approx(0.2 if settings else 0.33, abs=0.09)
    assert share_mixed(chosen) > (2 if settings else 1.6) * share_mixed(drawn)
    # The floor still looks at the others.
    assert share_mixed(chosen) < 1


@pytest.mark.parametrize("refill", [0, 2])
def test_the_pass_rate_that_is_reported_is_that_of_the_mix_under_selection(refill):
    # Levels 0, 0.5, 0.5, 1, 1, 1: rates 1, .5, .5, 0, 0, 0, with mean 1/3.
    levels = (0.0, 0.5, 0.5, 1.0, 1.0, 1.0)
    found = [
        each.metrics["pass_rate_unfiltered"]
        for seed in range(8)
        for each in batches(build(levels=levels, refill=refill, seed=seed), 40, seed=seed)
    ]
    error = np.std(found) / len(found) ** 0.5
    assert np.mean(found) == pytest.approx(1 / 3, abs=4 * error)
    assert error < 0.02
    # The groups that are trained on would say something else.
    kept = [group for each in batches(build(levels=levels, refill=2), 40) for group in each.groups]
    assert np.mean([verdict.correct for group in kept for verdict in group.verdicts]) > 0.43


def test_refill_replaces_flat_groups_counts_them_and_draws_anew():
    plain = next(batches(build(levels=LEVELS), 1))
    filled = next(batches(build(levels=LEVELS, refill=3), 1))
    flat = sum(len({verdict.correct for verdict in group.verdicts}) == 1 for group in plain.sampled)
    assert flat
    assert filled.sampled[:6] == filled.sampled[: len(plain.sampled)]
    assert len(filled.groups) == 6
    assert filled.metrics["refilled_groups"] == len(filled.sampled) - 6 >= flat
    assert sum(len({v.correct for v in group.verdicts}) == 2 for group in filled.groups) >= 6 - flat
    assert len({group.problem.key for group in filled.sampled}) == len(filled.sampled)
    assert filled.metrics["selected_share"] == 6 / (4 * len(filled.sampled))


def test_what_cannot_be_replaced_stays_in_the_denominator():
    selected = next(batches(build(levels=(0.0, 1.0), refill=2), 1))
    assert len(selected.groups) == 6
    assert len(selected.sampled) == 18
    assert selected.metrics["refilled_groups"] == 12


def test_the_largest_variances_stay():
    made = build(levels=LEVELS, keep_variance=0.9, oversample=1)
    for selected in batches(made, 20):
        mixed = [group for group in selected.sampled if len({v.correct for v in group.verdicts}) == 2]
        allowed = {group.problem.key for group in mixed or selected.sampled}
        assert selected.groups
        assert {group.problem.key for group in selected.groups} <= allowed


def test_the_staircase_climbs_to_where_the_policy_stands():
    settings = {"up": 0.7, "down": 0.3, "window": 32}
    made = build(levels=(0.0, 0.5, 1.0), staircase=settings)
    found = list(batches(made, 40))
    levels = [each.metrics["level"] for each in found]
    assert levels[0] == 0
    assert max(levels[-10:]) == 1
    assert {group.problem.difficulty for each in found[:2] for group in each.sampled} <= {0.0, 0.5}
    # Easier levels stay in the mix.
    assert 0.0 in {group.problem.difficulty for each in found[-10:] for group in each.sampled}
    alone = build(levels=(0.0, 0.5, 1.0), staircase={**settings, "inclusive": False}, oversample=1)
    for selected in batches(alone, 20):
        assert len({group.problem.difficulty for group in selected.sampled}) == 1


@pytest.mark.parametrize("task", [Dial(), Fixed()])
def test_rarely_solved_problems_come_back_after_the_cool_down(task):
    replay = {"cooldown": 4, "max_reuse": 2, "below": 0.5, "share": 0.5}
    levels = {} if isinstance(task, Fixed) else {"levels": LEVELS}
    made = build(task, replay=replay, **levels)
    last, came_back = {}, 0
    for update, selected in enumerate(batches(made, 30), start=1):
        back = int(selected.metrics["replayed_groups"])
        came_back += back
        assert back <= 3
        for group in selected.sampled[:back]:
            assert update - last[group.problem.key] >= 4
        last.update({group.problem.key: update for group in selected.sampled})
    assert came_back > 5


def test_what_comes_back_tells_nothing_of_its_bucket():
    replay = {"cooldown": 1, "max_reuse": 1000, "below": 0.9, "share": 0.9}
    made = build(levels=(0.5, 0.0), replay=replay, half_life=0)
    fresh = 0
    for selected in batches(made, 20):
        fresh += 4 * sum(1 for _ in selected.sampled[int(selected.metrics["replayed_groups"]) :])
    assert sum(tally.judged for tally in made.state.tallies.values()) == fresh


def test_the_next_batch_is_a_function_of_key_update_and_state(tmp_path):
    settings = {"levels": (0.0, 0.5, 1.0), "refill": 1, "replay": {"cooldown": 2}, "staircase": {"window": 8}}
    whole = build(**settings)
    expected = [[group.problem.key for group in each.sampled] for each in batches(whole, 12)]
    broken, found = build(**settings), []
    for update in range(1, 13):
        key = Key.root(0).child("rollouts", update)
        found.append(broken.batch(update, 6, lambda problems, number, key=key: judged(problems, number, key=key), trim))
        broken.save(tmp_path, update=update)
        broken = build(**settings)
        broken.load(tmp_path, update=update)
    assert [[group.problem.key for group in each.sampled] for each in found] == expected
    assert broken.state == whole.state
    with pytest.raises(CheckpointError, match=FILE):
        broken.load(tmp_path, update=11)


MISTAKES = {
    "no dial": (Fixed(), {"levels": (0.0, 1.0)}, "has no dial"),
    "problems of an endless task": (Dial(), {"by": "problem"}, "comes twice"),
    "no such name": (Dial(), {"by": "kinds"}, "Did you mean 'kind'"),
    "one bucket": (Dial(), {}, "nothing to select by"),
    "no training problem": (Fixed(0), {}, "no training problem"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_what_the_task_lacks_is_said_before_the_first_update(case):
    task, settings, message = MISTAKES[case]
    with pytest.raises(TaskError, match=message):
        build(task, **settings)


def test_metadata_may_name_the_bucket():
    made = build(by="kind")
    list(batches(made, 3))
    assert made.state.tallies.keys() == {"even", "odd"}


def test_candidates_of_a_fixed_list_are_all_different_and_of_the_training_split():
    task = Fixed(100)
    drawn = Candidates(Settings(), task, Key.root(0)).draw(1, 0, 5, oversample=4, levels=())
    assert len({each.problem.key for each in drawn}) == 20
    drawn = Candidates(Settings(), task, Key.root(0)).draw(1, 0, 200, oversample=4, levels=())
    assert len(drawn) == 200
    assert {each.problem.key for each in drawn} == {each.key for each in task.problems() if not each.is_evaluation}


@pytest.mark.parametrize("signal", ["reward", "score"])
def test_a_shaped_signal_is_refused_with_the_reason(signal):
    with pytest.raises(RecipeError, match=r"all wrong.*0\.75 to 0\.04") as caught:
        tiny_recipe(RL, overrides=(f"stage.rl.curriculum.signal={signal}", "stage.rl.from=policy"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("signal=correc",), "Did you mean 'correct'"),
        (("staircase.up=0.5", "levels=[0.5]"), "two or more difficulties"),
        (("staircase.up=0.5", "levels=[0.5, 0.1]"), "ascending"),
        (("staircase.up=0.2", "levels=[0.1, 0.5]"), "must be below up"),
        (("floor=0",), "floor"),
    ],
)
def test_settings_that_cannot_be_are_refused(overrides, message):
    text = tuple(f"stage.rl.curriculum.{each}" for each in overrides)
    with pytest.raises(RecipeError, match=message):
        tiny_recipe(RL, overrides=(*text, "stage.rl.from=policy"))


CURRICULUM = """
[stage.curriculum]
levels = [0.0, 1.0]
oversample = 3
refill = 1
keep_variance = 0.95
half_life = 3
[stage.curriculum.staircase]
window = 4
up = 0.2
down = 0.1
[stage.curriculum.replay]
cooldown = 1
below = 0.9
"""
OVERRIDES = (
    "stage.rl.from=policy", "task.depth=2", "policy.context=96", "stage.rl.evaluate_every=0",
    "evaluation.final_problems=4", "doctor.every=0", "doctor.before=false",
)  # fmt: skip


def test_a_stopped_run_gives_the_same_bytes_and_the_curriculum_too(tmp_path):
    recipe = tiny_recipe(RL + CURRICULUM, overrides=OVERRIDES)
    whole = finished(tmp_path / "whole", recipe)
    pieces = make_run(tmp_path / "pieces", recipe)
    for count in itertools.count(1):
        if status(pieces.run)["rl"] == "done":
            break
        if count == 1:
            work(pieces, After(1))
        else:
            resume(pieces, After(count))
    assert count > 3
    assert differences(fingerprint(pieces), fingerprint(whole)) == []
    files = [checkpoint_path(stage_folder(run.run, "rl"), 6) / FILE for run in (whole, pieces)]
    assert files[0].read_bytes() == files[1].read_bytes()
    with sqlite3.connect(whole.run / "run.db") as connection:
        names = {name for (name,) in connection.execute("SELECT DISTINCT name FROM metrics")}
    assert {"pass_rate_unfiltered", "selected_share", "refilled_groups", "difficulty", "level"} <= names


def test_the_rollouts_of_a_refill_are_new_ones_even_for_the_same_problem(tmp_path):
    assembly = make_run(tmp_path / "run", tiny_recipe(RL + CURRICULUM, overrides=OVERRIDES))
    training = assembly.loop("rl").training
    problem = assembly.task(training.stage).problem(Key.root(0))
    ids = [{r.id for group in training._sampled(1, [problem], number) for r in group.rollouts} for number in (0, 0, 1)]
    assert ids[0] == ids[1]
    assert not ids[0] & ids[2]


@pytest.mark.parametrize("change", ["missing", "foreign"])
def test_a_checkpoint_without_its_curriculum_is_refused_by_name(change, tmp_path):
    assembly = make_run(tmp_path / "run", tiny_recipe(RL + CURRICULUM, overrides=OVERRIDES))
    work(assembly, After(3))
    path = latest_checkpoint(stage_folder(assembly.run, "rl"))
    state = load_state(path)
    kept = {file.name: file.read_bytes() for file in path.iterdir() if file.name not in ("state.json", "manifest.json")}
    if change == "missing":
        del kept[FILE]
    else:
        kept[FILE] = kept[FILE].replace(b'"oversample": 3', b'"oversample": 2')

    def write(folder):
        for name, data in kept.items():
            (folder / name).write_bytes(data)

    save_checkpoint(path, write, state=state)
    resume(assembly)
    assert status(assembly.run)["rl"] == "failed"
    with sqlite3.connect(assembly.run / "run.db") as connection:
        (message,) = connection.execute("SELECT message FROM stages").fetchone()
    assert FILE in message
    assert ("cannot be read" if change == "missing" else "other settings") in message
