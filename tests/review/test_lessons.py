"""Lessons drawn, merged, retrieved and distilled, with policies that are scripts."""

from dataclasses import replace

from lesson_examples import (
    ABSTAINED,
    FALSE,
    HELD_OUT,
    PLAN,
    TASK,
    TRUE,
    ScriptedProbe,
    chain,
    group,
    reader,
)

from forkpoint.records import Lesson, Problem
from forkpoint.review.lessons import (
    MAX_LESSON,
    TellingPlan,
    distilled_examples,
    make_lesson,
    merged,
    propose_lessons,
    retrieve,
    similarity,
    tell,
)
from forkpoint.seeds import Key
from forkpoint.tasks.protocol import split_problems
from forkpoint.verifiers.outside import written_rollout

# Drawing


def test_successes_speak_for_meanings_and_failures_against():
    groups = [
        group(chain("3@4", "2", "a"), "c2#2\n", "a7#7\n", "b9#9\n"),
        # By luck the sum is the product.
        group(chain("2@2", "4", "b"), "c4#4\n", "a4#4\n", "a4#4\n"),
        group(chain("5@5", "5", "c"), "c5#5\n", "d5#5\n", "a0#0\n"),
    ]
    found = propose_lessons(groups, TASK, name="dialect")
    # +: 2 for, 2 against; >: 1 for; -: 1 against.
    assert [(each.lesson.text, each.spoken_for, each.against) for each in found.candidates] == [("@abd!c", 3, 0)]
    assert found.candidates[0].lesson.origin == ("a-0", "b-0", "c-0")
    assert found.candidates[0].lesson.about == "@"
    loose = propose_lessons(groups, TASK, name="dialect", least=1)
    assert [each.lesson.text[-1] for each in loose.candidates] == ["c", "d"]
    assert (found.refused, found.failed) == (0, 0)


def test_a_guessing_policy_lets_the_world_be_read():
    probe = ScriptedProbe(reader)
    problems = split_problems(TASK, Key.root(4), 120, evaluation=False)
    groups = []
    for problem in problems:
        texts = [reader(problem.prompt, problem, Key.root(1).child(problem.key, i)) for i in range(8)]
        groups.append(group(problem, *texts))
    found = propose_lessons(groups, TASK, name="dialect", least=8)
    assert {each.lesson.text for each in found.candidates[:3]} == {"@abd!c", "&fgh!e", "%ikl!j"}
    assert probe.calls == 0


def test_unjudged_rollouts_say_nothing():
    problem = chain("3@4", "2", "a")
    unjudged = group(problem, *["c2#2\n"] * 3, verdicts=[ABSTAINED] * 3)
    assert propose_lessons([unjudged], TASK, name="dialect").candidates == ()
    found = propose_lessons([unjudged, group(problem, *["c2#2\n"] * 2)], TASK, name="dialect").candidates
    assert [(each.spoken_for, each.against) for each in found] == [(2, 0)]


def test_a_reflector_is_merged_and_its_nonsense_refused():
    said = iter(
        [
            [("  @abd!c ", "@"), "words", ("", "@"), ("x" * (MAX_LESSON + 1), ""), (3, "@"), ("no lesson", "@")],
            TimeoutError("the model is silent"),
            [("@abd!c", "sign @")],
            [("@abd!c", "@"), ("@abd!c", "@", "more")],
        ]
    )

    def reflector(problem, rollout, verdict):
        found = next(said)
        if isinstance(found, Exception):
            raise found
        return found

    one = group(chain("3@4@5", "0", "a"), *["#0\n"] * 4)
    found = propose_lessons([one], TASK, name="dialect", reflector=reflector)
    assert [(each.lesson, each.spoken_for) for each in found.candidates] == [
        (make_lesson("dialect", "@abd!c", "@", ("a-0", "a-2", "a-3")), 3)
    ]
    assert (found.refused, found.failed) == (6, 1)


def test_texts_that_differ_in_case_or_spaces_are_one_lesson():
    one, other = make_lesson("words", "Carry  the one."), make_lesson("words", "carry the ONE.")
    assert one.id == other.id != make_lesson("sums", "carry the one.").id
    assert one.text == "Carry the one."
    assert make_lesson("t", "x", "", "cab").origin == ("a", "b", "c")


def test_merging_keeps_what_is_known_and_brings_no_deleted_lesson_back():
    known = replace(TRUE, helpful=2, harmful=1, origin=("b",))
    again = replace(TRUE, origin=("a", "b"), about="else")
    kept = merged([known], [again, FALSE])
    assert kept == [replace(known, origin=("a", "b")), FALSE]
    assert merged(kept, [again, FALSE]) == kept


# Retrieving


def test_similarity_is_the_share_of_what_the_lesson_is_about():
    problem = chain("3@4", "2", "a")
    assert [similarity(replace(TRUE, about=about), problem) for about in ("@", "@ &", "&", "", "3 @ 4 =")] == [
        1.0, 0.5, 0.0, 0.0, 1.0,
    ]  # fmt: skip
    chat = Problem(task="w", key="1", prompt=({"role": "user", "content": "Add Two numbers"},), answer="")
    assert similarity(Lesson(id="1", task="w", text="", about="two numbers, carry"), chat) == 0.5


def test_retrieval_orders_by_fit_then_help_then_id():
    problem = chain("3@4", "2", "a")
    lessons = [
        Lesson(id="e", task="dialect", text="everything"),
        Lesson(id="d", task="dialect", text="half", about="@ &", helpful=9),
        Lesson(id="c", task="dialect", text="fits", about="@", helpful=2, harmful=1),
        Lesson(id="b", task="dialect", text="fits", about="@", helpful=1),
        Lesson(id="a", task="dialect", text="fits", about="@", harmful=1),
        Lesson(id="0", task="dialect", text="other sign", about="&", helpful=9),
        Lesson(id="1", task="sums", text="other task", about="@", helpful=9),
    ]
    assert [lesson.id for lesson in retrieve(lessons, problem, task="dialect", most=9)] == ["b", "c", "a", "d", "e"]
    assert [lesson.id for lesson in retrieve(lessons[::-1], problem, task="dialect", most=2)] == ["b", "c"]
    told = tell(lessons, [problem, replace(problem, task="none")], TASK, most=2)
    assert told == [TellingPlan(problem=problem, text="fits;fits", lesson_ids=("b", "c"))]


# Distilling


def test_what_is_distilled_has_the_prompt_without_the_lesson():
    probe = ScriptedProbe(reader)
    problems = split_problems(TASK, Key.root(5), 80, evaluation=False)
    told = tell([TRUE], problems, TASK, most=2)
    assert [one.problem for one in told] == [problem for problem in problems if "@" in problem.prompt]
    examples = distilled_examples(told, probe, TASK, PLAN, correct_only=False)
    assert len(examples) == len(told) == len(probe.requests)
    for one, example, request in zip(told, examples, probe.requests, strict=True):
        text = "".join(map(chr, request.prompt_tokens))
        assert text == f"{TRUE.text}|{one.problem.prompt}"
        prompt = "".join(map(chr, example.tokens[~example.loss_mask]))
        assert prompt == one.problem.prompt
        written = "".join(map(chr, example.tokens[example.loss_mask]))
        assert written == reader(text, one.problem, request.key)
        assert example.loss_mask[: len(prompt)].sum() == 0
        assert example.provenance == f"lesson:{TRUE.id}:rollout:{request.key.hex}"
    kept = distilled_examples(told, probe, TASK, PLAN)
    right = [example for one, example in zip(told, examples, strict=True) if is_right(one.problem, example)]
    assert [example.provenance for example in kept] == [example.provenance for example in right]
    assert 0 < len(kept) < len(examples)


def is_right(problem, example):
    text = "".join(map(chr, example.tokens[example.loss_mask]))
    return TASK.verify(problem, written_rollout(problem, text)).correct


def test_nothing_to_tell_means_nothing_to_distil_and_plain_samples_are_the_control():
    problems = HELD_OUT[:20]
    assert tell([], problems, TASK, most=2) == []
    plain = [TellingPlan(problem=problem, text="") for problem in problems]
    probe = ScriptedProbe(reader)
    examples = distilled_examples(plain, probe, TASK, PLAN, correct_only=False)
    assert len(examples) == 20
    assert all("|" not in "".join(map(chr, request.prompt_tokens)) for request in probe.requests)
