from collections import Counter
from itertools import islice, permutations, product

import numpy as np
import pytest

from forkpoint.errors import TaskError
from forkpoint.records import Outcome, Problem, Rollout, StopReason
from forkpoint.seeds import Key
from forkpoint.tasks.countdown import Countdown, Settings, answer_hint, build, search, with_hint
from forkpoint.tasks.protocol import Task, split_problems
from forkpoint.verifiers.expression import evaluate

TASK = Countdown()
KEY = Key.root(5)
VARIANTS = [Settings(), Settings(numbers=4, use_all=True), Settings(numbers=5), Settings(numbers=2, operations="+-")]


def rollout(text, tokens=None):
    count = len(text) if tokens is None else tokens
    return Rollout(
        id="r", group_id="g", stage="s", update=0, index=0, problem_key="p", prompt_tokens=np.zeros(1, np.int32),
        tokens=np.zeros(count, np.int32), behavior_logprobs=np.zeros(count, np.float32),
        loss_mask=np.ones(count, np.bool_), temperature=1.0, text=text, stop_reason=StopReason.STOP, seed="0",
    )  # fmt: skip


def given(numbers, target):
    prompt = f"{','.join(map(str, numbers))}={target}\n"
    metadata = {"numbers": list(numbers), "target": target}
    return Problem(task="countdown", key="1", prompt=prompt, answer=str(target), metadata=metadata)


@pytest.mark.parametrize("settings", VARIANTS)
def test_the_reference_solution_verifies_and_wrong_answers_fail(settings):
    task = build(settings)
    for i in range(500):
        problem = task.problem(KEY.child(i))
        numbers, target = problem.metadata["numbers"], problem.metadata["target"]
        assert len(numbers) == settings.numbers
        assert 1 <= target <= settings.max_target
        assert target not in numbers
        text = task.solve(problem)
        assert task.verify(problem, rollout(text)).outcome is Outcome.CORRECT
        assert task.verify(problem, rollout(problem.answer)).correct is True
        expression = evaluate(text.strip())
        assert expression.value == target
        assert Counter(expression.numbers) <= Counter(numbers)
        assert set(problem.prompt + text) <= set(task.alphabet)
        wrong = [task.verify(problem, rollout(answer)) for answer in task.wrong_answers(problem)]
        assert len(wrong) >= 4
        assert not any(verdict.correct for verdict in wrong)
        assert {verdict.outcome for verdict in wrong} == {Outcome.WRONG, Outcome.UNPARSEABLE, Outcome.DECLINED}


def reachable(numbers):
    """Every whole positive value of `a`, `a.b` and `(a.b).c`, `a.(b.c)` over the numbers: an oracle of its own."""
    found = set()
    for size in (1, 2, 3):
        for chosen in permutations(numbers, size):
            for ops in product("+-*/", repeat=size - 1):
                texts = {
                    1: ["{}"], 2: ["{}{}{}"], 3: ["({}{}{}){}{}", "{}{}({}{}{})"],
                }[size]  # fmt: skip
                parts = [x for pair in zip(chosen, [*ops, ""], strict=True) for x in pair][: 2 * size - 1]
                found |= {evaluate(text.format(*parts)).value for text in texts}
    return {int(value) for value in found if value is not None and value > 0 and value.denominator == 1}


@pytest.mark.parametrize("numbers", [(1, 2, 3), (2, 3, 5), (4, 4, 9), (7, 7, 7), (1, 1, 8)])
def test_the_search_is_exhaustive_for_three_numbers(numbers):
    targets = reachable(numbers)
    for target in range(1, max(targets) + 2):
        found = search(numbers, target)
        assert (found is not None) == (target in targets), target
        if found is not None:
            assert evaluate(found).value == target


def test_search_with_every_number_used():
    assert search([2, 3, 5], 5) is not None
    assert search([2, 2, 9], 4) is not None
    assert search([2, 2, 9], 4, use_all=True) is None
    assert Counter(evaluate(search([2, 3, 5], 30, use_all=True)).numbers) == Counter([2, 3, 5])
    assert search([2, 3], 6, operations="+-") is None


@pytest.mark.parametrize(
    ("text", "outcome"),
    [
        ("(2*3)*5\n", Outcome.CORRECT),
        ("5 * 3 * 2", Outcome.CORRECT),
        ("2+3#2*3*5\n", Outcome.CORRECT),
        (r"\boxed{2*3*5}", Outcome.CORRECT),
        ("2*3*5#2+3\n", Outcome.WRONG),
        ("5*3+5*3", Outcome.WRONG),
        ("5*6", Outcome.WRONG),
        ("30", Outcome.WRONG),
        ("2+3+5", Outcome.WRONG),
        ("2*3*5=30", Outcome.UNPARSEABLE),
        ("2*15", Outcome.WRONG),
        ("-2*3*5", Outcome.UNPARSEABLE),
        ("2*3*5/(5-5)", Outcome.UNPARSEABLE),
        ("?\n", Outcome.DECLINED),
    ],
)
def test_hand_worked(text, outcome):
    assert TASK.verify(given([2, 3, 5], 30), rollout(text)).outcome is outcome


def test_a_number_given_twice_may_be_used_twice_and_no_more():
    problem = given([3, 3, 4], 9)
    assert TASK.verify(problem, rollout("3*3")).correct is True
    assert TASK.verify(problem, rollout("3+3+3")).correct is False


def test_fractions_in_between_are_exact():
    assert TASK.verify(given([1, 3, 8], 24), rollout("8/(1/3)")).correct is True
    assert TASK.verify(given([3, 3, 8], 24), rollout("8*3/3*3")).correct is False


def test_use_all_and_barred_operations():
    strict = Countdown(Settings(use_all=True))
    assert strict.verify(given([2, 3, 5], 6), rollout("2*3")).correct is False
    assert strict.verify(given([2, 3, 5], 6), rollout("3+5-2")).correct is True
    sums = Countdown(Settings(operations="+-"))
    assert sums.verify(given([2, 3, 5], 6), rollout("2*3")).correct is False
    assert sums.verify(given([2, 3, 5], 6), rollout("3+5-2")).correct is True


def test_problems_are_pure_functions_of_the_key_and_splits_never_meet():
    task = Countdown(Settings(numbers=4))
    assert task.problem(KEY.child(1)) == Countdown(Settings(numbers=4)).problem(KEY.child(1))
    train = split_problems(task, KEY.child("a"), 500, evaluation=False)
    held = split_problems(task, KEY.child("b"), 100, evaluation=True)
    assert len({p.prompt for p in held}) == 100
    assert not {p.prompt for p in train} & {p.prompt for p in held}
    assert not {d.prompt for d in islice(task.corpus("solutions", KEY), 300)} & {p.prompt for p in held}


@pytest.mark.parametrize("name", TASK.corpora)
def test_corpora_are_right_and_deterministic(name):
    first = list(islice(TASK.corpus(name, KEY), 200))
    assert first == list(islice(TASK.corpus(name, KEY), 200))
    for demonstration in first:
        numbers, _, rest = demonstration.prompt.removesuffix("\n").partition("=")
        target, _, hint = rest.partition("|")
        problem = given([int(n) for n in numbers.split(",")], int(target))
        assert TASK.verify(problem, rollout(demonstration.text)).correct is True
        assert hint == ("" if name == "solutions" else demonstration.text.strip())
        assert set(demonstration.prompt + demonstration.text) <= set(TASK.alphabet)
        assert demonstration.text.endswith(TASK.stop(problem))


def test_difficulty_hints_and_cuts():
    task = Countdown(Settings(numbers=5))
    assert [len(task.problem(KEY, d).metadata["numbers"]) for d in (0.0, 0.34, 0.7, 1.0)] == [2, 3, 4, 5]
    problem = TASK.problem(KEY)
    assert with_hint(problem, answer_hint(problem)) == f"{problem.prompt[:-1]}|{problem.answer}\n"
    assert TASK.cut_points(problem, rollout("(2*3)*5\n")) == [0, 3, 6]
    assert TASK.cut_points(problem, rollout("(2*3)*5\n", tokens=3)) == [0]
    assert TASK.cut_points(problem, rollout("2*")) == [0]


def test_the_task_keeps_its_protocol():
    assert isinstance(TASK, Task)
    assert len(set(TASK.alphabet)) == len(TASK.alphabet)


def test_mistakes_are_one_clear_line():
    with pytest.raises(TaskError, match="Did you mean 'solutions'"):
        TASK.corpus("solution", KEY)
    with pytest.raises(TaskError, match="twice"):
        build(Settings(operations="++"))
    with pytest.raises(TaskError, match="draws gave no target"):
        build(Settings(numbers=2, max_number=2, max_target=3, operations="-"))
    with pytest.raises(TaskError, match=r"\[0, 1\]"):
        TASK.problem(KEY, 1.5)
    with pytest.raises(TaskError, match="not of the task"):
        TASK.solve(Problem(task="x", key="1", prompt="", answer=""))
    with pytest.raises(TaskError, match="cannot be reached"):
        TASK.solve(given([1, 1], 5))
