"""The lessons of an earlier stage in a teacher's prompt: who is told what, an exact resume, what is refused."""

from dataclasses import replace

import numpy as np
import pytest
from tiny_runs import After, differences, fingerprint, finished, make_run, resume, tiny_recipe

from forkpoint.assembly import Assembly
from forkpoint.assembly.checks import check_recipe
from forkpoint.cli.worker import work
from forkpoint.credit.privileged import knowledge_of
from forkpoint.errors import RecipeError
from forkpoint.records import Batch, Credit, Group, frozen_array
from forkpoint.review.lessons import make_lesson
from forkpoint.store import RunReader, StoredLesson
from forkpoint.training.imitation import demonstration_example
from forkpoint.training.teaching import Taught

HEAD = """
name = "tiny"
[policy]
kind = "tiny"
layers = 1
width = 16
heads = 2
context = 64
[task]
name = "dialect"
[evaluation]
problems = 2
final_problems = 2
max_new_tokens = 8
[doctor]
before = false
every = 0
[audits]
every = 0
"""
BASE = '[[stage]]\nname = "base"\nkind = "pretrain"\ndata = "plain"\nupdates = 1\nbatch_size = 4\n'
TAUGHT = '[[stage]]\nname = "found"\nkind = "sft"\nfrom = "base"\ndata = "lessons:base"\nupdates = 1\nbatch_size = 4\n'
RL = """
[[stage]]
name = "rl"
kind = "rl"
from = "base"
lessons = "found"
updates = 2
problems_per_update = 6
group_size = 2
max_new_tokens = 8
checkpoint_every = 1
keep_rollouts = "all"
"""
DISTILLED = '[stage.distillation]\nknowledge = "lessons"\n'
CREDITED = '[stage.credit]\nrule = "privileged"\noptions = { knowledge = "lessons" }\n'
TRUE, FALSE = "@abd!c", "&efg!h"


def taught(probe, task, texts, settings, plan, count, *, known):
    """Two lessons were tried, each about its sign; one lives."""
    true, false = (make_lesson(task.name, text, text[0]) for text in (TRUE, FALSE))
    stored = (
        StoredLesson(lesson=replace(true, helpful=2)), StoredLesson(lesson=replace(false, harmful=2), deleted=True)
    )  # fmt: skip
    text = demonstration_example(texts, next(iter(task.corpus("plain", plan.key))))
    return Taught(lessons=stored, examples=(text,), gate="open", tokens=5)


def recipe(*parts, head=HEAD, overrides=()):
    return tiny_recipe(BASE, TAUGHT, RL, *parts, head=head, overrides=overrides)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Stages up to distillation, done."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("forkpoint.training.teaching.taught", taught)
        return finished(tmp_path_factory.mktemp("teachers") / "run", recipe(DISTILLED))


def test_living_lessons_are_told_where_they_are_about_the_problem(run):
    training = run.loop("rl").training
    problems = [training.task.problem(training.key.child("some", place)) for place in range(40)]
    told = training.lessons(problems)
    assert told == {problem.key: TRUE for problem in problems if "@" in problem.prompt}
    assert 0 < len(told) < 40
    groups = tuple(Group(problem=problem, rollouts=(), verdicts=(None,)) for problem in problems)
    known = knowledge_of(Batch(groups=groups, update=1), training.task, knowledge=told)
    assert known == [TRUE if "@" in problem.prompt else None for problem in problems]


def test_the_teacher_of_a_rollout_has_the_lesson_in_its_prompt(run, monkeypatch):
    loop = run.loop("rl")
    asked = []
    real = type(loop.policy.texts).encode_prompt
    monkeypatch.setattr(
        type(loop.policy.texts), "encode_prompt", lambda self, prompt: asked.append(prompt) or real(self, prompt)
    )
    (step,) = loop.training.unit(1)
    told = {prompt for prompt in asked if "|" in prompt}
    assert told == {f"{TRUE}|{group.problem.prompt}" for group in step.groups if "@" in group.problem.prompt}
    spoken = [group for group in step.groups if "@" in group.problem.prompt]
    tokens = sum(int(rollout.loss_mask.sum()) for group in spoken for rollout in group.rollouts)
    assert step.metrics["distillation_scored_tokens"] == tokens > 0


def test_the_credit_rule_is_told_too(run, tmp_path, monkeypatch):
    asked = []

    def rule(batch, probe, *, knowledge):
        asked.append(knowledge)
        zeros = (frozen_array(np.zeros(len(each.tokens)), np.float32) for each in batch.rollouts)
        return [Credit(advantages=none, rule="none") for none in zeros]

    training = run.loop("rl").training
    stage = training.stage.model_copy(
        update={"credit": training.stage.credit.model_copy(update={"options": {"knowledge": "lessons"}})}
    )
    training = replace(training, stage=stage, credit_rule=rule)
    groups, _ = training._judged(1)
    training.credits(Batch(groups=tuple(groups), update=1))
    assert asked == [{group.problem.key: TRUE for group in groups if "@" in group.problem.prompt}]
    # Other knowledge stays what the recipe says.
    other = {"options": {"knowledge": "answer"}}
    stage = stage.model_copy(update={"credit": stage.credit.model_copy(update=other)})
    replace(training, stage=stage).credits(Batch(groups=tuple(groups), update=1))
    assert asked[1] == "answer"


def test_a_resume_changes_nothing(run, tmp_path, monkeypatch):
    monkeypatch.setattr("forkpoint.training.teaching.taught", taught)
    broken = make_run(tmp_path / "broken", run.recipe)
    work(broken, After(3))
    resume(Assembly(recipe=run.recipe, origin=broken.run, run=broken.run))
    assert differences(fingerprint(run), fingerprint(broken)) == []
    with RunReader(broken.run) as reader:
        assert reader.stage("rl").updates_done == 2


@pytest.mark.parametrize("part", [DISTILLED, CREDITED])
def test_what_cannot_be_told_is_refused_in_one_line(part, tmp_path):
    other = '\n[stage.task]\nname = "keychain"\npositions = 8\n'
    with pytest.raises(RecipeError, match=r"'rl': .*knowledge = 'lessons'.* needs lesson_of, which the task keychain|"
                       r"'rl': credit.rule = 'privileged' needs lesson_of, which the task keychain lacks"):  # fmt: skip
        check_recipe(recipe(part, other), tmp_path, tmp_path)
    check_recipe(recipe(part), tmp_path, tmp_path)
    for changed, message in (
        (("stage.rl.lessons=base",), "lessons = 'base' has no data = 'lessons:STAGE'"),
        (("stage.rl.lessons=none",), "the earlier stage lessons = 'none' is not known"),
    ):
        with pytest.raises(RecipeError, match=message):
            recipe(part, overrides=changed)
    with pytest.raises(RecipeError, match=r"knowledge = 'lessons' .* and lessons = 'STAGE' go together"):
        recipe()
    with pytest.raises(RecipeError, match=r"knowledge = 'lessons' .* and lessons = 'STAGE' go together"):
        tiny_recipe(BASE, TAUGHT, RL.replace('lessons = "found"\n', ""), part, head=HEAD)
