"""Lessons of a stage from proposal to texts: which live, what is imitated, and what the gate stops."""

from dataclasses import replace

import pytest
from lesson_examples import TASK, ScriptedProbe, deaf, reader

from forkpoint.config.review import LessonSettings
from forkpoint.errors import RecipeError
from forkpoint.review.lessons import make_lesson
from forkpoint.seeds import Key
from forkpoint.store import StoredLesson
from forkpoint.tasks.paths import Settings, build
from forkpoint.training import teaching
from forkpoint.training.rollouts import SamplePlan
from forkpoint.training.teaching import taught

PLAN = SamplePlan(key=Key.root(0), stage="learn", update=0, group_size=1, max_new_tokens=16, temperature=1.0)
TRUE, FALSE, IDLE = "@abd!c", "@bcd!a", "$mno!p"
"""In the world of the examples `@` is read c, and `$` occurs in no problem."""


class Counting(ScriptedProbe):
    """Also knows its task and counts what it sampled."""

    def __init__(self, script):
        super().__init__(script)
        self.task = TASK
        self.sampled = 0

    def sample(self, requests):
        found = super().sample(requests)
        self.sampled += sum(len(rollout.tokens) for rollout in found)
        return found

    @property
    def cost(self):
        return {"sampled_tokens": self.sampled}


def learn(script, **settings):
    probe = Counting(script)
    values = {"texts": (TRUE, FALSE, IDLE), "problems": 0, "trials": 128, **settings}
    return taught(probe, TASK, probe, LessonSettings(**values), PLAN, 60), probe


def states(found):
    return {
        stored.lesson.text: (stored.lesson.helpful, stored.lesson.harmful, stored.deleted) for stored in found.lessons
    }


def test_only_the_true_lesson_is_distilled():
    found, probe = learn(reader)
    assert states(found) == {TRUE: (2, 0, False), FALSE: (0, 2, True), IDLE: (0, 2, True)}
    assert [len(stored.audits) for stored in found.lessons] == [2, 2, 2]
    assert found.tokens == probe.sampled > 0
    assert found.line.startswith(f"1 of 3 lessons live ({TRUE}), ")
    (name,) = [stored.lesson.id for stored in found.lessons if not stored.deleted]
    # Problems without `@` are told nothing, and some that are told have a second sign to guess.
    assert 12 < len(found.examples) <= 60
    for example in found.examples:
        assert example.provenance.startswith(f"lesson:{name}:rollout:")
        prompt = "".join(map(chr, example.tokens[~example.loss_mask]))
        assert "!" not in prompt
        assert prompt.endswith("=?\n")


def test_a_deleted_lesson_is_never_told(monkeypatch):
    def audited(stored, *_):
        return [
            replace(each, lesson=replace(each.lesson, helpful=3, harmful=2), deleted=each.lesson.text != TRUE)
            for each in stored
        ]

    monkeypatch.setattr(teaching, "audited", audited)
    found, _ = learn(reader)
    (name,) = [stored.lesson.id for stored in found.lessons if not stored.deleted]
    assert {example.provenance.split(":")[1] for example in found.examples} == {name}


@pytest.mark.parametrize(
    ("helpful", "harmful", "deleted", "alive"),
    [(0, 0, False, False), (1, 0, False, True), (1, 1, False, False), (2, 1, False, True), (3, 2, True, False)],
)
def test_a_lesson_lives_on_what_it_was_seen_to_do(helpful, harmful, deleted, alive):
    lesson = replace(make_lesson("dialect", TRUE), helpful=helpful, harmful=harmful)
    stored = StoredLesson(lesson=lesson, deleted=deleted)
    assert teaching.lives(stored) is alive
    told = teaching.Taught(lessons=(stored,), examples=(), gate="", tokens=0)
    assert told.line.startswith(f"{int(alive)} of 1 lessons live")


def test_rollouts_speak_for_lessons_too():
    found, _ = learn(reader, texts=(), problems=40)
    assert found.lessons
    assert all(stored.lesson.origin for stored in found.lessons)


def test_a_policy_that_cannot_read_is_taught_nothing():
    found, _ = learn(deaf)
    assert found.examples == ()
    assert all(stored.audits == () for stored in found.lessons)
    assert "cannot use lessons" in found.line


def test_a_task_without_a_place_for_lessons_is_refused():
    task = build(Settings())
    with pytest.raises(RecipeError, match=r"needs a task with `privileged_prompt`, which paths lacks"):
        taught(Counting(reader), task, None, LessonSettings(), PLAN, 4)


def test_what_the_run_knows_is_tried_again_and_what_it_deleted_stays_deleted():
    """A lesson that was deleted does not come back as new, and counts go on from where they were."""
    true, false = (make_lesson("dialect", text) for text in (TRUE, FALSE))
    gone = StoredLesson(lesson=replace(true, harmful=2), deleted=True, audits=({"passed": False},))
    kept = StoredLesson(lesson=replace(false, helpful=3), audits=({"passed": True},))
    other = StoredLesson(lesson=make_lesson("arithmetic", "carry"))
    probe = Counting(reader)
    settings = LessonSettings(texts=(TRUE,), problems=0, trials=128)
    found = taught(probe, TASK, probe, settings, PLAN, 60, known=(gone, kept, other))
    assert states(found) == {TRUE: (0, 2, True), FALSE: (3, 2, True)}
    assert [len(stored.audits) for stored in found.lessons] == [1, 3]
    assert found.examples == ()
    again = taught(Counting(reader), TASK, probe, settings, PLAN, 60, known=())
    assert states(again) == {TRUE: (2, 0, False)}
