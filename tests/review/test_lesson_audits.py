"""Lessons on trial, with policies that are scripts: what passes, what does not, and every count by hand."""

import json
from dataclasses import replace

import pytest
from lesson_examples import (
    FALSE,
    HELD_OUT,
    IDLE,
    PLAN,
    TASK,
    TRUE,
    UNJUDGED,
    ScriptedProbe,
    chain,
    deaf,
    flattered,
    reader,
)

from forkpoint.review.lesson_audits import (
    Arm,
    audit_document,
    audit_lesson,
    audit_lessons,
    reading_gate,
    shuffled,
    update,
)
from forkpoint.review.lessons import (
    make_lesson,
)
from forkpoint.seeds import Key
from forkpoint.store.reviews import StoredLesson, lesson_from, lesson_row
from forkpoint.tasks.dialect import lesson_text


def test_shuffles_keep_the_characters_and_change_the_order():
    for seed in range(50):
        made = shuffled("@abd!c", Key.root(seed))
        assert sorted(made) == sorted("@abd!c")
        assert made != "@abd!c"
    assert len({shuffled("@abd!c", Key.root(seed)) for seed in range(50)}) > 40
    assert sorted(shuffled("carry the one", Key.root(0)).split()) == ["carry", "one", "the"]
    assert shuffled("aa", Key.root(0)) == "aa"


def test_only_the_true_lesson_lives():
    probe = ScriptedProbe(reader)
    lives = {lesson.id: lesson for lesson in (TRUE, FALSE, IDLE)}
    for number in range(2):
        plan = replace(PLAN, key=PLAN.key.child(number))
        for audit in audit_lessons(list(lives.values()), HELD_OUT, probe, TASK, plan):
            lives[audit.lesson_id], deleted = update(lives[audit.lesson_id], audit)
            assert deleted == (audit.lesson_id != TRUE.id and number == 1)
            assert audit.passed == (audit.lesson_id == TRUE.id) == (audit.reason == "")
            assert audit.faithful or audit.lesson_id != TRUE.id
    assert [(each.helpful, each.harmful) for each in lives.values()] == [(2, 0), (0, 2), (0, 2)]
    assert probe.calls == 2


@pytest.mark.parametrize("policy", [deaf, flattered])
def test_a_lesson_that_is_not_read_does_not_pass(policy):
    audit = audit_lesson(TRUE, HELD_OUT, ScriptedProbe(policy), TASK, PLAN)
    assert not audit.passed
    assert not audit.faithful
    if policy is flattered:
        assert audit.reason == "no better than with its meaning changed"
        assert audit.p_value < 0.01


def test_counts_worked_by_hand():
    problems = [chain(f"{i}@{j}", "9", f"{i}{j}") for i in range(3) for j in range(4)]
    place = {problem.key: n for n, problem in enumerate(problems)}
    # Solved with the lesson: 0 to 7; without: 6 to 8; shuffled: none; irrelevant: 0; with a changed meaning: 0 to 7.
    solved = {"lesson": range(8), "none": range(6, 9), "shuffled": (), "irrelevant": (0,), "corrupted": range(8)}

    def script(prompt, problem, key):
        arm = "none" if "none" in key.path else key.path[-1]
        return "#9\n" if place[problem.key] in solved[arm] else "#8\n"

    audit = audit_lesson(TRUE, problems, ScriptedProbe(script), TASK, PLAN)
    found = {each.against: (each.wins, each.losses, each.pairs, each.p_value) for each in audit.contrasts}
    # 6 wins, 1 loss: (7 + 1) / 2^7; 8 wins: 1 / 2^8; 7 wins: 1 / 2^7; nothing differs: 1.
    assert found == {
        "none": (6, 1, 12, 8 / 128), "shuffled": (8, 0, 12, 1 / 256), "irrelevant": (7, 0, 12, 1 / 128),
        "corrupted": (0, 0, 12, 1.0),
    }  # fmt: skip
    assert audit.shares == {
        "lesson": (8, 12), "none": (3, 12), "shuffled": (0, 12), "irrelevant": (1, 12), "corrupted": (8, 12),
    }  # fmt: skip
    assert (audit.p_value, audit.passed, audit.reason) == (8 / 128, False, "not better than: none")
    assert audit.cost == {"sampled_tokens": 60 * 3.0, "verifier_calls": 60.0}
    loose = audit_lesson(TRUE, problems, ScriptedProbe(script), TASK, PLAN, level=0.1)
    assert loose.reason == "no better than with its meaning changed"
    solved["corrupted"] = range(7)
    loose = audit_lesson(TRUE, problems, ScriptedProbe(script), TASK, PLAN, level=0.1)
    # One win is enough to be no worse, and too little to be called faithful.
    assert (loose.passed, loose.faithful, loose.level) == (True, False, 0.1)


def test_holm_over_the_lessons_tried_together():
    problems = [chain(f"{i}@{j}", "9", f"{i}{j}") for i in range(3) for j in range(4)]
    place = {problem.key: n for n, problem in enumerate(problems)}
    texts = [lesson_text("@", operation) for operation in "+-*"]
    lessons = [make_lesson("dialect", text, "@") for text in texts]
    wins = {lessons[0].id: 6, lessons[1].id: 5, lessons[2].id: 4}

    def script(prompt, problem, key):
        solved = key.path[-1] == "lesson" and place[problem.key] < wins[key.path[-4]]
        return "#9\n" if solved else "#8\n"

    audits = audit_lessons(lessons, problems, ScriptedProbe(script), TASK, PLAN)
    # 1/64 * 3, 1/32 * 2, 1/16 * 1.
    assert [audit.p_value for audit in audits] == [3 / 64, 2 / 32, 1 / 16]
    assert [audit.passed for audit in audits] == [True, False, False]
    assert audits[1].reason == "not significant among the lessons tried together (p = 0.062)"
    assert audits[2].reason.startswith("not better than: none, shuffled, irrelevant")
    # Rollouts without a lesson are drawn once, for all three.
    assert [audit.cost["verifier_calls"] for audit in audits] == [60.0, 48.0, 48.0]
    assert audit_lesson(lessons[1], problems, ScriptedProbe(script), TASK, PLAN).passed


def test_useless_lessons_seldom_pass():
    """Lessons that change nothing, for a policy that solves half: three tests at once pass far fewer than 5 in 100."""
    problems = [chain(f"{i}@{j}", "9", f"{i}{j}") for i in range(3) for j in range(5)]

    def coin(prompt, problem, key):
        return "#9\n" if key.uniforms(1)[0] < 0.5 else "#8\n"

    passed = against_none = 0
    for trial in range(120):
        plan = replace(PLAN, key=PLAN.key.child(trial))
        audit = audit_lesson(TRUE, problems, ScriptedProbe(coin), TASK, plan)
        passed += audit.passed
        against_none += audit.contrasts[0].p_value <= 0.05
    # A single exact test stays below its level; five standard errors above it would be .10.
    assert against_none <= 40
    assert against_none > 0
    assert passed <= 12


def test_equal_lessons_get_equal_p_values():
    problems = [chain(f"{i}@{j}", "9", f"{i}{j}") for i in range(3) for j in range(4)]
    solved = {problem.key for problem in problems[:5]}
    lessons = [make_lesson("dialect", lesson_text("@", operation), "@") for operation in "+-"]

    def script(prompt, problem, key):
        return "#9\n" if key.path[-1] == "lesson" and problem.key in solved else "#8\n"

    # 1/32 * 2, and the second no smaller than the first.
    audits = audit_lessons(lessons, problems, ScriptedProbe(script), TASK, PLAN)
    assert [audit.p_value for audit in audits] == [2 / 32, 2 / 32]


def test_pairs_without_a_verdict_do_not_count():
    gone = [problem.key for problem in HELD_OUT[:30]]
    audit = audit_lesson(TRUE, HELD_OUT, ScriptedProbe(reader, abstains=gone), TASK, PLAN)
    tried = [problem for problem in HELD_OUT if "@" in problem.prompt][: PLAN.problems]
    left = len([problem for problem in tried if problem.key not in gone])
    assert {each.pairs for each in audit.contrasts} == {left}
    assert audit.shares["none"][1] == left < PLAN.problems

    def half(prompt, problem, key):
        return UNJUDGED if "none" in key.path and problem.key in gone else "#6\n"

    audit = audit_lesson(TRUE, HELD_OUT, ScriptedProbe(half), TASK, PLAN)
    assert [each.pairs for each in audit.contrasts] == [left, *[len(tried)] * 3]


def test_a_lesson_is_tried_where_it_would_be_retrieved():
    probe = ScriptedProbe(reader)
    audit_lesson(TRUE, HELD_OUT, probe, TASK, replace(PLAN, problems=10))
    assert len(probe.requests) == 10 * len(Arm)
    assert all("@" in request.problem.prompt for request in probe.requests)
    arms = [request.key.path[-1] for request in probe.requests]
    prompts = ["".join(map(chr, request.prompt_tokens)) for request in probe.requests]
    changed = [prompt[:6] for arm, prompt in zip(arms, prompts, strict=True) if arm == "corrupted"]
    assert changed == [*TASK.changed_lessons(TRUE.text) * 3, TASK.changed_lessons(TRUE.text)[0]]
    for arm, prompt, request in zip(arms, prompts, probe.requests, strict=True):
        told, _, rest = prompt.rpartition("|")
        assert rest == request.problem.prompt
        assert (len(told) == len(TRUE.text)) == ("none" not in request.key.path)
        if arm == "irrelevant":
            assert told[0] not in request.problem.prompt
            assert told[0] != "@"


def test_a_lesson_that_cannot_be_tried_counts_neither_way_and_one_that_cannot_be_read_fails():
    unused = replace(TRUE, about="sums")
    audit = audit_lesson(unused, HELD_OUT, ScriptedProbe(reader), TASK, PLAN)
    assert (audit.decided, audit.passed, audit.reason) == (False, False, "no problem that it is about was tried")
    assert update(unused, audit) == (unused, False)
    garbled = make_lesson("dialect", "@ is ~", "@")
    audits = audit_lessons([garbled, TRUE], HELD_OUT, ScriptedProbe(reader), TASK, PLAN)
    assert audits[0].reason == "the task or the policy cannot read it"
    assert update(replace(garbled, harmful=1), audits[0]) == (replace(garbled, harmful=2), True)
    assert audits[1].passed
    with pytest.raises(ValueError, match="the audit is of lesson"):
        update(TRUE, audits[0])


def test_a_problem_that_comes_again_is_tried_once():
    once = audit_lesson(TRUE, HELD_OUT[:40], ScriptedProbe(reader), TASK, PLAN)
    again = audit_lesson(TRUE, [*HELD_OUT[:40], *HELD_OUT[:40]], ScriptedProbe(reader), TASK, PLAN)
    assert once == again
    assert once.contrasts[0].pairs == len([problem for problem in HELD_OUT[:40] if "@" in problem.prompt])


def test_a_lesson_of_another_task_is_tried_on_nothing():
    audit = audit_lesson(replace(TRUE, task="sums"), HELD_OUT, ScriptedProbe(reader), TASK, PLAN)
    assert (audit.decided, audit.cost["verifier_calls"]) == (False, 0.0)


def test_audits_do_not_depend_on_what_is_tried_beside_them():
    alone = audit_lesson(TRUE, HELD_OUT, ScriptedProbe(reader), TASK, PLAN)
    beside = audit_lessons([FALSE, TRUE], HELD_OUT, ScriptedProbe(reader), TASK, PLAN)[1]
    assert (alone.contrasts, alone.shares) == (beside.contrasts, beside.shares)


class Bare:
    """A task that knows prompts only, as a user's own may."""

    def privileged_prompt(self, problem, knowledge):
        return TASK.privileged_prompt(problem, knowledge)

    def stop(self, problem):
        return ("\n",)


def test_a_task_without_lessons_of_its_own_takes_irrelevant_ones_from_the_others():
    plan = replace(PLAN, problems=300)
    other = make_lesson("dialect", lesson_text("&", "+"), "&")
    audit = audit_lesson(TRUE, HELD_OUT, ScriptedProbe(reader), Bare(), plan, others=[TRUE, other])
    pairs = {each.against: each.pairs for each in audit.contrasts}
    with_sign = [problem for problem in HELD_OUT if "@" in problem.prompt]
    assert pairs["irrelevant"] == len([problem for problem in with_sign if "&" not in problem.prompt]) > 30
    assert pairs["corrupted"] == 0
    # Nothing was corrupted, so nothing says that it is faithful.
    assert (audit.passed, audit.faithful) == (True, False)
    assert not audit_lesson(TRUE, HELD_OUT, ScriptedProbe(reader), Bare(), plan).passed


@pytest.mark.parametrize(("policy", "opened"), [(reader, True), (deaf, False)])
def test_the_gate_says_whether_lessons_are_read(policy, opened):
    gate = reading_gate(HELD_OUT, ScriptedProbe(policy), TASK, PLAN)
    assert gate.open is opened
    assert gate.told[1] == gate.untold[1] == PLAN.problems
    assert ("lessons are read" if opened else "the policy cannot use lessons") in gate.reason
    assert "\n" not in gate.reason
    if opened:
        assert gate.told == (128, 128)
    shut = reading_gate(HELD_OUT, ScriptedProbe(policy), Bare(), PLAN)
    assert (shut.open, shut.reason) == (False, "the task has no lessons to tell")


def test_an_audit_goes_through_the_store():
    audit = audit_lesson(TRUE, HELD_OUT, ScriptedProbe(reader), TASK, PLAN)
    document = audit_document(audit)
    assert json.loads(json.dumps(document))["shares"]["lesson"] == list(audit.shares["lesson"])
    lesson, deleted = update(TRUE, audit)
    stored = StoredLesson(lesson=lesson, audits=(document,), deleted=deleted)
    found = lesson_from(lesson_row(stored))
    assert found.lesson == lesson
    assert found.audits[0]["contrasts"][0]["against"] == "none"
