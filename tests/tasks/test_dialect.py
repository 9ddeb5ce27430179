"""Chains in a dialect: hand-worked worlds, refusals, corpora whose worlds are drawn uniformly, and what lessons say."""

import itertools
from collections import Counter
from dataclasses import replace

import pytest

from forkpoint.conformance import check_task
from forkpoint.errors import TaskError
from forkpoint.probe import Answerable, Privileged, Reflective, Stateful, Stepped, Teachable
from forkpoint.records import Outcome, Problem
from forkpoint.seeds import Key, content_hash
from forkpoint.tasks.dialect import OPERATIONS, READINGS, SIGNS, Dialect, Settings, apply, build, lesson_text, reading
from forkpoint.tasks.protocol import split_problems
from forkpoint.verifiers.outside import written_rollout

TASK = build(Settings(world="*+-", modulus=10))


def chain(text, answer, world="*+-", key="1"):
    return Problem(
        task="dialect", key=key, prompt=f"{text}=?\n", answer=answer,
        metadata={"chain": text, "world": world},
    )  # fmt: skip


# 3 * 4 = 12, 2 modulo 10; 2 + 9 = 11, 1; 1 - 5 = -4, 6.
LONG = chain("3@4&9%5", "6")
SINGLE = chain("3@4", "2")


def outcome(text, problem=LONG):
    return TASK.verify(problem, written_rollout(problem, text)).outcome


@pytest.mark.parametrize(
    ("a", "operation", "b", "modulus", "result"),
    [
        (7, "+", 5, 10, 2), (3, "-", 5, 10, 8), (7, "*", 5, 10, 5), (7, ">", 5, 10, 7), (2, ">", 5, 10, 5),
        (4, "+", 4, 5, 3),
    ],
)  # fmt: skip
def test_operations_stay_below_the_modulus(a, operation, b, modulus, result):
    assert apply(a, operation, b, modulus) == result


def test_a_hand_worked_chain():
    assert TASK.solve(LONG) == "c2e1j6#6\n"
    assert outcome(TASK.solve(LONG)) is Outcome.CORRECT
    # The steps are not looked at.
    assert outcome("#6\n") is Outcome.CORRECT


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", Outcome.UNPARSEABLE), ("c26\n", Outcome.UNPARSEABLE), ("#x\n", Outcome.UNPARSEABLE),
        ("#5\n", Outcome.WRONG), ("#-6\n", Outcome.WRONG), ("#16\n", Outcome.WRONG), ("#6\n#7\n", Outcome.WRONG),
        ("#?\n", Outcome.DECLINED), ("#6 7\n", Outcome.UNPARSEABLE),
    ],
)  # fmt: skip
def test_wrong_and_malformed_answers(text, expected):
    assert outcome(text) is expected


@pytest.mark.parametrize(
    "settings", [{}, {"world": ">"}, {"world": "++++", "steps": 6, "min_steps": 6}, {"modulus": 2}]
)
def test_the_task_passes_its_check(settings):
    found = check_task(build(Settings(**settings)), count=40)
    assert found.faults == ()
    assert found.accepted == 40
    assert found.refused == found.wrong > 300


def test_the_protocols_that_it_offers():
    for protocol in (Answerable, Privileged, Stateful, Stepped, Teachable):
        assert isinstance(TASK, protocol)


def test_settings_bound_the_problems():
    task = build(Settings(world="+>", min_steps=2, steps=4, modulus=7))
    problems = [task.problem(Key.root(0).child(i)) for i in range(200)]
    signs = {c for problem in problems for c in problem.metadata["chain"] if c in SIGNS}
    assert signs == {"@", "&"}
    assert {len(problem.metadata["chain"]) for problem in problems} == {5, 7, 9}
    assert {c for problem in problems for c in str(problem.prompt) if c.isdigit()} == set("0123456")
    assert {len(task.problem(Key.root(0).child(i), 0.0).metadata["chain"]) for i in range(50)} == {5}
    with pytest.raises(TaskError, match="min_steps = 3 must not exceed steps = 2"):
        build(Settings(min_steps=3))
    with pytest.raises(TaskError, match="difficulty"):
        task.problem(Key.root(0), 1.5)
    with pytest.raises(TaskError, match="not of the task dialect"):
        task.solve(Problem(task="x", key="1", prompt="3@4=?\n", answer="2"))


def test_the_prompt_of_a_problem_says_nothing_of_its_world():
    key = Key.root(3).child("same")
    one, other = (build(Settings(world=world)).problem(key) for world in ("+++", "***"))
    assert one.prompt == other.prompt
    assert not set(one.prompt) & set("abcdefghijklmnop!|")


def test_unexplained_signs_are_guessed_uniformly_and_told_ones_follow_their_lesson():
    told, guessed = Counter(), Counter()
    for text in itertools.islice(TASK.corpus("mixed", Key.root(5)), 3000):
        lessons, _, question = text.prompt.rpartition("|")
        meaning = {lesson[0]: lesson[-1] for lesson in lessons.split(";") if lesson}
        signs = [c for c in question if c in SIGNS]
        for sign, step in zip(signs, text.text[: 2 * len(signs) : 2], strict=True):
            if sign in meaning:
                told[step == meaning[sign]] += 1
            else:
                guessed[OPERATIONS[READINGS[sign].index(step)]] += 1
    assert told[False] == 0
    # Of a hundred 85 are told, give or take five standard errors.
    total = told[True] + guessed.total()
    assert abs(told[True] / total - 0.85) < 5 * 0.5 / total**0.5
    assert set(guessed) == set(OPERATIONS)
    for count in guessed.values():
        assert abs(count / guessed.total() - 0.25) < 5 * (0.25 * 0.75 / guessed.total()) ** 0.5


def test_the_corpus_of_lessons_explains_every_sign_and_sometimes_more():
    extra = 0
    for text in itertools.islice(TASK.corpus("lessons", Key.root(6)), 300):
        lessons, _, question = text.prompt.partition("|")
        explained = [lesson[0] for lesson in lessons.split(";")]
        used = {c for c in question if c in SIGNS}
        assert used <= set(explained)
        assert len(set(explained)) == len(explained)
        assert all(
            lesson == lesson_text(lesson[0], OPERATIONS[READINGS[lesson[0]].index(lesson[-1])])
            for lesson in lessons.split(";")
        )
        extra += len(explained) > len(used)
    # Two or three signs are left over, each told with probability .6.
    assert 0.8 < extra / 300 < 0.97


def test_the_other_corpora():
    plain = list(itertools.islice(TASK.corpus("plain", Key.root(6)), 50))
    world = dict(zip(SIGNS, "*+-", strict=False))
    for text in plain:
        assert "|" not in text.prompt
        signs = [c for c in text.prompt if c in SIGNS]
        assert list(text.text.partition("#")[0][::2]) == [reading(sign, world[sign]) for sign in signs]
    for text in itertools.islice(TASK.corpus("answer_given", Key.root(6)), 50):
        assert text.prompt.split("|")[0] == "#" + text.text.strip().rpartition("#")[2]
    with pytest.raises(TaskError, match="lessons"):
        TASK.corpus("lesson", Key.root(0))


def test_every_lesson_about_a_sign_has_the_same_characters():
    texts = {lesson_text("@", operation) for operation in OPERATIONS}
    assert len(texts) == 4
    assert len({"".join(sorted(text)) for text in texts}) == 1


def test_lessons_and_answers_stand_before_the_chain():
    assert TASK.privileged_prompt(LONG, "@abd!c") == "@abd!c|3@4&9%5=?\n"
    assert TASK.privileged_prompt(LONG, "6") == TASK.privileged_prompt(LONG, TASK.solve(LONG)) == "#6|3@4&9%5=?\n"
    assert TASK.privileged_prompt(LONG, "!cab@d") == "!cab@d|3@4&9%5=?\n"
    for words in ("", "#", "a lesson", "@a|", "@?", "3\n4"):
        with pytest.raises(TaskError, match="neither a lesson"):
            TASK.privileged_prompt(LONG, words)


def test_what_a_correct_rollout_speaks_for():
    told = (("@abd!c", "@"), ("&fgh!e", "&"), ("%ikl!j", "%"))
    assert TASK.lesson_of(LONG, TASK.solve(LONG), True) == told
    # 2 & 2: by luck the product is the sum, and the rollout speaks for what it wrote.
    assert TASK.lesson_of(chain("2&2", "4"), "g4#4\n", True) == (("&efh!g", "&"),)


def test_a_wrong_rollout_speaks_against_a_single_sign_alone():
    assert TASK.lesson_of(SINGLE, "a7#7\n", False) == (("@bcd!a", "@"),)
    assert TASK.lesson_of(LONG, "c2g8j3#3\n", False) == ()
    assert TASK.lesson_of(chain("3@4@5", "0"), "a7a2#2\n", False) == (("@bcd!a", "@"),)


@pytest.mark.parametrize(
    "text",
    ["", "#2\n", "c3#2\n", "c2c8#2\n", "c#2\n", "c12#2\n", "x2#2\n", "2#2\n", "a2#2\n", "g2#2\n", " c2#2\n", "c2 #2\n"],
)
def test_sloppy_steps_say_nothing(text):
    assert TASK.lesson_of(SINGLE, text, True) == ()


def test_one_sign_read_in_two_ways_says_nothing():
    assert TASK.lesson_of(chain("3@4@2", "4"), "c2a4#4\n", True) == ()


def test_right_changed_and_irrelevant_lessons():
    assert TASK.right_lesson(chain("3%4@2%1", "")) == "@abd!c;%ikl!j"
    assert TASK.changed_lessons("@abd!c") == ("@abc!d", "@bcd!a", "@acd!b")
    assert all(len(text) == 13 and text[7] == "%" for text in TASK.changed_lessons("@abd!c;%ikl!j"))
    assert TASK.changed_lessons("@bcd!e") == TASK.changed_lessons("words") == ()
    assert TASK.irrelevant_lesson(SINGLE, "@abd!c") == "&efh!g"
    assert TASK.irrelevant_lesson(LONG, "@abd!c") == "$mnp!o"
    assert TASK.irrelevant_lesson(LONG, "@abd!c;&efh!g") == ""
    assert TASK.irrelevant_lesson(LONG, "no sign") == ""


def test_states_cuts_and_early_answers():
    assert TASK.state(LONG, "") == "::"
    assert TASK.state(LONG, "c2e") == "c:2:e"
    assert TASK.state(LONG, "c2e1j6#6") == "cej:6:#6"
    assert TASK.state(LONG, "c2") != TASK.state(LONG, "b2")
    rollout = written_rollout(LONG, TASK.solve(LONG))
    assert [rollout.text[cut : cut + 3] for cut in TASK.cut_points(LONG, rollout)] == ["c2e", "e1j", "j6#", "#6\n"]
    assert TASK.early_answer(LONG, "c2") == "#6\n"
    assert TASK.early_answer(LONG, "#") == ""
    assert TASK.stop(LONG) == ("\n",)


def test_the_splits_do_not_meet():
    train = {problem.key for problem in split_problems(TASK, Key.root(0), 300, evaluation=False)}
    held_out = {problem.key for problem in split_problems(TASK, Key.root(1), 100, evaluation=True)}
    assert len(held_out) == 100
    assert not train & held_out
    for name in TASK.corpora:
        for text in itertools.islice(TASK.corpus(name, Key.root(2)), 100):
            question, answer = text.prompt.rpartition("|")[2], text.text.strip().rpartition("#")[2]
            if text.prompt.endswith("!\n"):
                asked = text.prompt.partition("=?")[0]
                question, answer = f"{asked}=?\n", str(TASK._steps(asked, told_world(text.text))[1])
            key = content_hash("dialect", question, answer)
            assert not replace(SINGLE, key=key).is_evaluation
    assert isinstance(TASK, Dialect)


def told_world(text):
    """What the lessons of a reflection say."""
    return {part[0]: OPERATIONS[READINGS[part[0]].index(part[-1])] for part in text.strip().split(";")}


def test_reflections_tell_the_world_after_an_attempt_in_another():
    told = list(itertools.islice(TASK.corpus("reflections", Key.root(4)), 200))
    for text in told:
        asked, _, attempt = text.prompt.partition("=?")
        assert attempt.endswith("!\n")
        # Each sign of the chain once, in order, as a lesson; under it the attempt is wrong.
        world = told_world(text.text)
        used = [sign for sign in SIGNS if sign in asked]
        assert text.text == ";".join(lesson_text(sign, world[sign]) for sign in used) + "\n"
        answer = str(TASK._steps(asked, world)[1])
        assert outcome(attempt[:-2], replace(SINGLE, answer=answer)) is Outcome.WRONG
        assert len(attempt) == len(asked) + 3
    assert len(Counter(text.text[-2] for text in told)) == 16


def test_a_reflection_is_asked_for_and_told():
    assert isinstance(TASK, Reflective)
    assert TASK.reflection_prompt(SINGLE, "a7#7\nrest\n") == "3@4=?a7#7!\n"
    assert TASK.reflection_prompt(SINGLE, "a\N{REPLACEMENT CHARACTER}7<") == "3@4=?a?7?!\n"
    assert TASK.retry_prompt(SINGLE, "@abd!c\n") == "@abd!c|3@4=?\n"
    assert TASK.retry_prompt(LONG, "@abd!c;&fgh!e") == "@abd!c;&fgh!e|3@4&9%5=?\n"
    # The answer, steps with an answer, a garbled lesson, one about a letter of another sign, nothing.
    for text in ("2", "#2", "c2#2", "@abd", "@abd!e", "", "@abd!c;#2"):
        with pytest.raises(TaskError, match=r"is no lesson such as '@bcd!a'"):
            TASK.retry_prompt(SINGLE, text)


def test_hints_are_of_three_kinds():
    kinds = Counter(text.provenance for text in itertools.islice(TASK.corpus("hints", Key.root(9)), 300))
    assert set(kinds) == {"dialect:mixed", "dialect:answer_given", "dialect:reflections"}
    assert min(kinds.values()) > 60
