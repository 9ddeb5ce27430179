"""Stages that learn from reviewed rollouts: what their texts are, what the store keeps, and an exact resume."""

import re
import sqlite3
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from tiny_runs import (
    BASE,
    HEAD,
    RL,
    After,
    Never,
    differences,
    fingerprint,
    finished,
    make_run,
    resume,
    status,
    tiny_recipe,
)
from walker_recipes import LEARN, PATHS, QUICK, REVIEW, WALKER, WALKER_HEAD, recipe_of

from forkpoint.assembly import Assembly
from forkpoint.assembly.checks import check_recipe
from forkpoint.assembly.pools import TextSource, text_draw
from forkpoint.cli.worker import work
from forkpoint.errors import RecipeError, TaskError
from forkpoint.review.lessons import make_lesson
from forkpoint.store import RunReader, StoredLesson
from forkpoint.training.imitation import demonstration_example
from forkpoint.training.teaching import Taught


def pool_of(tmp_path, recipe, updates=12):
    """The texts of some updates, each once, as (prompt and text, imitated)."""
    assembly = finished(tmp_path / "run", recipe)
    stage = recipe.get_stage("learn")
    policy = assembly._policy(assembly._final_checkpoint("base"))
    source = TextSource(assembly=assembly, stage=stage, task=assembly.task(stage), texts=policy.texts, writer=None)
    draw, sampled = text_draw(source)
    assert sampled > 0
    found = {}
    for update in range(1, updates):
        for text in draw(update):
            found[text.provenance] = (
                policy.texts.decode(text.tokens), policy.texts.decode(text.tokens[text.loss_mask]),
            )  # fmt: skip
    return found


def told(text):
    """The start, the goal and the moves of a walk with its prompt."""
    head, _, rest = text.partition("|")
    return head, rest[0], rest[2], rest[4:]


def is_walk(text, *, to_goal):
    edges, start, goal, walk = told(text)
    near = {frozenset(edge) for edge in edges.split(" ")}
    steps = all(frozenset(pair) in near for pair in pairwise(start + walk))
    return steps and (not to_goal or (walk.endswith(goal) and goal not in walk[:-1]))


def test_samples_are_taken_right_or_wrong(tmp_path):
    every = pool_of(tmp_path / "a", recipe_of("samples:base"))
    right = pool_of(tmp_path / "b", recipe_of("rollouts:base"))
    assert len(every) == 40
    assert 0 < len(right) < 40
    assert right.items() <= every.items()
    assert all(is_walk(text, to_goal=True) for text, _ in right.values())
    assert not all(is_walk(text, to_goal=True) for text, _ in every.values())


def test_pruned_stories_are_shorter_and_still_right(tmp_path):
    kept = pool_of(tmp_path / "a", recipe_of("edits:base", edit="keep"))
    pruned = pool_of(tmp_path / "b", recipe_of("edits:base", edit="prune"))
    assert kept
    assert {name.split(" ")[0] for name in pruned} == {name.split(" ")[0] for name in kept}
    assert all(is_walk(text, to_goal=True) for text, _ in [*kept.values(), *pruned.values()])
    assert all(told(text)[3] == imitated for text, imitated in pruned.values())
    # On a star whose branches have three nodes a story without dead ends is three moves.
    assert {len(imitated) for _, imitated in pruned.values()} == {3}
    assert max(len(imitated) for _, imitated in kept.values()) > 3


def test_summaries_say_what_was_left(tmp_path):
    head = WALKER_HEAD.replace('name = "paths"', 'name = "paths"\nmarks = true')
    found = pool_of(tmp_path, recipe_of("edits:base", edit="summarise", head=head))
    told_of = [imitated for _, imitated in found.values() if "|" in imitated]
    assert told_of
    assert all(len(text) == 3 + 2 * text.count("|") for text in told_of)


def test_failures_are_told_as_successes_elsewhere(tmp_path):
    found = pool_of(tmp_path, recipe_of("edits:base", edit="relabel"))
    assert found
    assert all(is_walk(text, to_goal=True) for text, _ in found.values())
    assert all(name.startswith("relabelled:") for name in found)


def test_a_mix_has_its_share_in_every_update(tmp_path):
    recipe = recipe_of("edits:base", '[stage.mix]\ndata = "golden"\nshare = 0.25\n', edit="keep")
    assembly = finished(tmp_path / "run", recipe)
    stage = recipe.get_stage("learn")
    policy = assembly._policy(assembly._final_checkpoint("base"))
    draw, _ = text_draw(
        TextSource(assembly=assembly, stage=stage, task=assembly.task(stage), texts=policy.texts, writer=None)
    )
    for update in (1, 2, 3):
        texts = draw(update)
        assert len(texts) == 8
        assert sum(text.provenance.startswith("corpus:golden") for text in texts) == 2


def test_the_store_keeps_the_review_and_a_resume_changes_nothing(tmp_path):
    recipe = recipe_of("edits:base", edit="prune")
    whole = finished(tmp_path / "whole", recipe)
    broken = make_run(tmp_path / "broken", recipe)
    work(broken, After(2))
    assert status(broken.run)["learn"] == "stopped"
    resume(Assembly(recipe=recipe, origin=broken.run, run=broken.run))
    assert differences(fingerprint(whole), fingerprint(broken)) == []
    for folder in (whole.run, broken.run):
        with RunReader(folder) as reader:
            groups = list(reader.groups("learn", 0, "review"))
            reviews, edits = reader.reviews(), reader.edits()
            (line,) = {event.message for event in reader.events("learn") if event.kind == "review"}
            tokens = reader.updates("learn")[2].tolist()
        assert len(groups) == 24
        # What the review sampled is told once, with the first update.
        written = sum(int(rollout.loss_mask.sum()) for group in groups for rollout in group.rollouts)
        assert tokens == [written, 0, 0]
        assert line.endswith(f"{written} tokens sampled")
        right = [v for group in groups for v in group.verdicts if v.correct]
        assert len(reviews) == len(right)
        assert 0 < sum(bool(review.wasted) for review in reviews) < len(reviews)
        assert len(edits) == sum(len(review.wasted) for review in reviews)
        assert line.startswith(f"96 rollouts ({len(right)} correct), {len(right)} texts, ")


def refuse(*_, **__):
    raise AssertionError("reviewed again")


@pytest.mark.parametrize(("edit", "asked"), [("prune", 2), ("relabel", 3)])
def test_a_resume_reads_the_review_and_samples_nothing(tmp_path, monkeypatch, edit, asked):
    recipe = recipe_of("edits:base", '[stage.mix]\ndata = "golden"\nshare = 0.25\n', edit=edit)
    whole = finished(tmp_path / "whole", recipe)
    broken = make_run(tmp_path / "broken", recipe)
    work(broken, After(asked))
    assert status(broken.run)["learn"] == "stopped"
    monkeypatch.setattr("forkpoint.training.reviewing.reviewed", refuse)
    resume(Assembly(recipe=recipe, origin=broken.run, run=broken.run))
    assert differences(fingerprint(whole), fingerprint(broken)) == []


def test_a_kill_before_the_first_checkpoint_does_not_cost_the_review(tmp_path, monkeypatch):
    recipe = recipe_of("edits:base", edit="prune")
    whole = finished(tmp_path / "whole", recipe)
    broken = make_run(tmp_path / "broken", recipe)
    with monkeypatch.context() as patched:
        patched.setattr("forkpoint.training.imitation.TextTraining.unit", refuse)
        with pytest.raises(AssertionError):
            work(broken, Never())
    assert not list((broken.run / "stages").glob("learn/step-*"))
    monkeypatch.setattr("forkpoint.training.reviewing.reviewed", refuse)
    resume(Assembly(recipe=recipe, origin=broken.run, run=broken.run))
    assert differences(fingerprint(whole), fingerprint(broken)) == []


def test_a_review_that_was_cut_short_is_made_again(tmp_path, monkeypatch):
    recipe = recipe_of("edits:base", edit="prune")
    whole = finished(tmp_path / "whole", recipe)
    broken = make_run(tmp_path / "broken", recipe)
    with monkeypatch.context() as patched:
        # Rollouts, reviews and edits are written, the texts are not.
        patched.setattr("forkpoint.store.writer.write_pool", refuse)
        with pytest.raises(AssertionError):
            work(broken, Never())
    resume(Assembly(recipe=recipe, origin=broken.run, run=broken.run))
    assert differences(fingerprint(whole), fingerprint(broken)) == []


def test_lessons_are_read_too(tmp_path, monkeypatch):
    calls = []

    def taught(probe, task, texts, settings, plan, count, *, known):
        calls.append((count, len(known)))
        lessons = [make_lesson(task.name, text) for text in ("@bcd!a", "@acd!b")]
        stored = (
            StoredLesson(lesson=replace(lessons[0], helpful=2)),
            StoredLesson(lesson=replace(lessons[1], harmful=2), deleted=True),
        )
        text = demonstration_example(texts, next(iter(task.corpus("plain", plan.key))))
        return Taught(lessons=stored, examples=(text,), gate="open", tokens=321)

    monkeypatch.setattr("forkpoint.training.teaching.taught", taught)
    text = LEARN.replace("DATA", "lessons:base") + "[stage.lessons]\nproblems = 0\n"
    base = BASE.replace("walks", "plain").replace("updates = 5", "updates = 1")
    recipe = tiny_recipe(base, text, overrides=QUICK, head=HEAD.replace(PATHS, 'name = "dialect"'))
    whole = finished(tmp_path / "whole", recipe)
    broken = make_run(tmp_path / "broken", recipe)
    work(broken, After(2))
    resume(Assembly(recipe=recipe, origin=broken.run, run=broken.run))
    assert differences(fingerprint(whole), fingerprint(broken)) == []
    assert calls == [(40, 0), (40, 0)]
    with RunReader(broken.run) as reader:
        pool = reader.pool("learn")
        assert pool.tokens == reader.updates("learn")[2].sum() == 321
        # Those that live, by the id of their text.
        assert pool.lessons == (make_lesson("dialect", "@bcd!a").id,)


def test_successes_of_the_review_lie_beside_its_texts(tmp_path):
    recipe = recipe_of("edits:base", edit="relabel")
    stage = recipe.get_stage("learn")
    assert stage.review is not None
    shared = stage.model_copy(update={"review": stage.review.model_copy(update={"successes": 0.25})})
    assembly = finished(tmp_path / "run", recipe)
    policy = assembly._policy(assembly._final_checkpoint("base"))
    plain, with_successes = (
        text_draw(TextSource(assembly=assembly, stage=each, task=assembly.task(each), texts=policy.texts, writer=None))
        for each in (stage, shared)
    )
    # They cost nothing more.
    assert plain[1] == with_successes[1]
    for update in (1, 2):
        kinds = [text.provenance.partition(":")[0] for text in with_successes[0](update)]
        assert (kinds.count("rollout"), kinds.count("relabelled")) == (2, 6)
        assert {text.provenance.partition(":")[0] for text in plain[0](update)} == {"relabelled"}
    # In an order the edited texts are the same in every pass; the successes beside them come shuffled.
    fixed = shared.model_copy(update={"order": "fixed"})
    draw, _ = text_draw(
        TextSource(assembly=assembly, stage=fixed, task=assembly.task(fixed), texts=policy.texts, writer=None)
    )
    seen = [text.provenance for update in range(1, 41) for text in draw(update)[:6]]
    count = len(set(seen))
    assert 1 < count < 120
    assert seen == (seen[:count] * 240)[:240]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('data = "edits:base"\n[stage.review]\nsources = []', r"nobody proposes a fix"),
        ('data = "edits:base"\n[stage.review]\nchat = "localhost#qwen"', r"chat"),
        ('data = "edits:base"\n[stage.review]\nedit = "prune"\nchat = "http://h#m"', r"chat and knowledge go with"),
        ('data = "golden"\n[stage.lessons]\ntrials = 4', r"lessons goes with data = 'lessons:STAGE'"),
        ('data = "edits:none"', r"the earlier stage data = 'none' is not known"),
        ('data = "golden"\n[stage.review]\nproblems = 4', r"review goes with data = 'edits:STAGE'"),
        ('data = "golden"\n[stage.mix]\ndata = "edits:base"', r"mix takes a corpus, a file, rollouts or samples"),
        ('data = "golden"\n[stage.mix]\ndata = "rollouts:none"', r"mix.data = 'none' is not known"),
        ('data = "edits:base"\n[stage.review]\nedit = "burn"', r"edit"),
    ],
)
def test_what_makes_no_sense_is_refused(text, message):
    stage = LEARN.replace('data = "DATA"', "").rstrip() + "\n" + text + "\n"
    with pytest.raises(RecipeError, match=message):
        tiny_recipe(BASE, stage)


def test_what_the_task_cannot_do_is_refused_before_anything_runs(tmp_path):
    recipe = recipe_of("edits:base", edit="summarise")
    with pytest.raises(TaskError, match="marks = true"):
        check_recipe(recipe, tmp_path, tmp_path / "run")


def test_lessons_need_a_task_that_knows_some(tmp_path):
    base = BASE.replace("walks", "solutions")
    text = LEARN.replace("DATA", "lessons:base")
    recipe = tiny_recipe(base, text, overrides=QUICK, head=HEAD.replace(PATHS, 'name = "countdown"'))
    with pytest.raises(RecipeError, match=r"data = 'lessons:base' needs `lesson_of`, which countdown lacks"):
        check_recipe(recipe, tmp_path, tmp_path / "run")


def test_a_stage_with_nothing_to_imitate_fails_in_one_line(tmp_path):
    recipe = tiny_recipe(
        WALKER,
        LEARN.replace("DATA", "edits:base") + REVIEW.replace("EDIT", "fix") + 'sources = ["sibling"]\nbudget = 1\n',
        overrides=QUICK, head=WALKER_HEAD,
    )  # fmt: skip
    made = make_run(tmp_path / "run", recipe)
    assert work(made, Never()) == 2
    with RunReader(made.run) as reader:
        assert re.match(
            r"stage 'learn': 96 rollouts .* 0 texts, .* nothing is left to imitate", reader.stage("learn").message
        )
    with sqlite3.connect(tmp_path / "run" / "run.db") as connection:
        assert connection.execute("SELECT count(*) FROM rollouts WHERE purpose = 'review'").fetchone()[0] == 96


def test_an_rl_stage_can_be_the_source(tmp_path):
    recipe = tiny_recipe(BASE, RL, LEARN.replace("DATA", "samples:rl"), overrides=QUICK)
    assembly = finished(tmp_path / "run", recipe)
    assert status(assembly.run) == {"base": "done", "rl": "done", "learn": "done"}
    with RunReader(assembly.run) as reader:
        assert np.isfinite(reader.metrics("learn", "loss")[1]).all()


def test_an_audit_of_lessons_that_was_cut_short_is_not_counted_twice(tmp_path, monkeypatch):
    """Lessons and texts are written together: what is tried again starts from what was known before."""
    seen = []

    def taught(probe, task, texts, settings, plan, count, *, known):
        seen.append([(each.lesson.text, each.lesson.helpful) for each in known])
        lesson = replace(make_lesson(task.name, "@bcd!a"), helpful=1 + sum(each.lesson.helpful for each in known))
        text = demonstration_example(texts, next(iter(task.corpus("plain", plan.key))))
        return Taught(lessons=(StoredLesson(lesson=lesson),), examples=(text,), gate="open", tokens=321)

    monkeypatch.setattr("forkpoint.training.teaching.taught", taught)
    text = LEARN.replace("DATA", "lessons:base") + "[stage.lessons]\nproblems = 0\n"
    second = text.replace('name = "learn"', 'name = "again"')
    base = BASE.replace("walks", "plain").replace("updates = 5", "updates = 1")
    recipe = tiny_recipe(base, text, second, overrides=QUICK, head=HEAD.replace(PATHS, 'name = "dialect"'))
    broken = make_run(tmp_path / "broken", recipe)
    with monkeypatch.context() as patched:
        patched.setattr("forkpoint.store.writer.write_pool", refuse)
        with pytest.raises(AssertionError):
            work(broken, Never())
    with RunReader(broken.run) as reader:
        assert reader.lessons() == []
    resume(Assembly(recipe=recipe, origin=broken.run, run=broken.run))
    with RunReader(broken.run) as reader:
        (stored,) = reader.lessons()
    assert stored.lesson.helpful == 2
    # The second stage goes on from what the first one knew.
    assert seen == [[], [], [("@bcd!a", 1)]]
