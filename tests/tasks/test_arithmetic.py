import re
from itertools import islice

import numpy as np
import pytest
from pydantic import ValidationError

from forkpoint.errors import TaskError
from forkpoint.probe import Solver
from forkpoint.records import Outcome, Problem, Rollout, StopReason
from forkpoint.seeds import Key
from forkpoint.tasks.arithmetic import (
    Arithmetic,
    Settings,
    answer_hint,
    build,
    careless_work,
    carries,
    check_steps,
    first_wrong_step,
    step_hint,
    with_hint,
    work,
)
from forkpoint.tasks.protocol import Task, split_problems

TASK = Arithmetic()
KEY = Key.root(11)
VARIANTS = [
    Settings(),
    Settings(terms=2, operations="*"),
    Settings(terms=12, max_value=999, max_operand=99),
    Settings(operations="+", max_value=9),
]


def rollout(text, tokens=None):
    count = len(text) if tokens is None else tokens
    return Rollout(
        id="r", group_id="g", stage="s", update=0, index=0, problem_key="p", prompt_tokens=np.zeros(1, np.int32),
        tokens=np.zeros(count, np.int32), behavior_logprobs=np.zeros(count, np.float32),
        loss_mask=np.ones(count, np.bool_), temperature=1.0, text=text, stop_reason=StopReason.STOP, seed="0",
    )  # fmt: skip


def chain_problem(chain, answer):
    return Problem(task="arithmetic", key="1", prompt=f"{chain}=?\n", answer=str(answer), metadata={"chain": chain})


def left_to_right(chain):
    """An oracle of its own: fold over the tokens of the chain."""
    tokens = re.findall(r"\d+|[-+*]", chain)
    value = int(tokens[0])
    for operation, operand in zip(tokens[1::2], tokens[2::2], strict=True):
        value = {"+": value.__add__, "-": value.__sub__, "*": value.__mul__}[operation](int(operand))
    return value


@pytest.mark.parametrize("settings", VARIANTS)
def test_the_reference_solution_verifies_and_wrong_answers_fail(settings):
    task = build(settings)
    for i in range(500):
        problem = task.problem(KEY.child(i))
        assert int(problem.answer) == left_to_right(problem.metadata["chain"])
        text = task.solve(problem)
        verdict = task.verify(problem, rollout(text))
        assert verdict.outcome is Outcome.CORRECT
        assert verdict.parts == {"steps": text.count(";"), "wrong_steps": 0, "first_wrong_step": -1}
        assert set(problem.prompt + text) <= set(task.alphabet)
        assert all(0 <= int(step.split("=")[1]) <= settings.max_value for step in text.split(";")[:-1])
        wrong = [task.verify(problem, rollout(answer)) for answer in task.wrong_answers(problem)]
        assert len(wrong) >= 4
        assert not any(verdict.correct for verdict in wrong)
        assert {verdict.outcome for verdict in wrong} == {Outcome.WRONG, Outcome.UNPARSEABLE, Outcome.DECLINED}


def test_hand_worked():
    problem = chain_problem("3+4*2-5", 9)
    assert TASK.solve(problem) == "3+4=7;7*2=14;14-5=9;#9\n"
    assert with_hint(problem, step_hint(problem, 2)) == "3+4*2-5=?|3+4=7;7*2=14;\n"
    assert with_hint(problem, answer_hint(problem)) == "3+4*2-5=?|#9\n"
    assert work("3+4*2-5", [0, -20]) == (["3+4=7", "7*2=-6", "-6-5=-11"], -11)


@pytest.mark.parametrize(
    ("text", "steps", "wrong"),
    [
        ("3+4=7;7*2=14;14-5=9;#9\n", 3, ()),
        ("3+4=8;8*2=16;16-5=11;#11\n", 3, (0,)),
        ("3+4=7;7*2=15;15-5=10;#10\n", 3, (1,)),
        ("3+4=8;8*2=16;16-5=12;#12\n", 3, (0, 2)),
        ("3+4=7;7*2=14;14-5=9;#8\n", 3, (3,)),
        ("3+4=7;8*2=16;16-5=11;#11\n", 3, (1,)),
        ("3+4=7;7+2=9;9-5=4;#4\n", 3, (1,)),
        ("3+4=7;7*3=21;21-5=16;#16\n", 3, (1,)),
        ("3+4=7;#9\n", 1, ()),
        ("3+4=7;#8\n", 1, (1,)),
        ("#9\n", 0, ()),
        ("#8\n", 0, (0,)),
        ("3+4=7;7*2=14;14-5=9;9+0=9;#9\n", 4, (3,)),
        ("3+4=7;what;14-5=9;#9\n", 3, (1, 2)),
        ("3+4=7;7*2=14;", 2, ()),
        ("", 0, ()),
    ],
)
def test_the_first_wrong_step(text, steps, wrong):
    problem = chain_problem("3+4*2-5", 9)
    check = check_steps(problem, text)
    assert (check.steps, check.wrong) == (steps, wrong)
    assert first_wrong_step(problem, text) == (wrong[0] if wrong else None)
    assert TASK.verify(problem, rollout(text)).parts["first_wrong_step"] == (wrong[0] if wrong else -1)


def test_the_answer_decides_whatever_the_steps():
    problem = chain_problem("3+4*2-5", 9)
    assert TASK.verify(problem, rollout("3+4=8;8*2=16;16-5=11;#9\n")).correct is True
    assert TASK.verify(problem, rollout("#8;#9\n")).correct is True
    assert TASK.verify(problem, rollout("#9;#8\n")).correct is False
    assert TASK.verify(problem, rollout(r"\boxed{9}")).correct is True
    assert TASK.verify(problem, rollout("#?\n")).outcome is Outcome.DECLINED


def test_problems_are_pure_functions_of_the_key_and_splits_never_meet():
    assert TASK.problem(KEY.child(1)) == Arithmetic().problem(KEY.child(1))
    assert TASK.problem(KEY.child(1)) != TASK.problem(KEY.child(2))
    train = split_problems(TASK, KEY.child("a"), 500, evaluation=False)
    held = split_problems(TASK, KEY.child("b"), 100, evaluation=True)
    assert len(held) == len({p.key for p in held}) == 100
    assert not {p.prompt for p in train} & {p.prompt for p in held}


@pytest.mark.parametrize("name", TASK.corpora)
def test_corpora_show_training_problems_only(name):
    task = Arithmetic(Settings(terms=2))
    held = {p.metadata["chain"] for p in split_problems(task, KEY, 15, evaluation=True)}
    shown = {d.prompt.partition("=?")[0] for d in islice(task.corpus(name, KEY), 500)}
    assert len(shown) > 100
    assert not shown & held


def test_one_chain_has_one_split_under_all_settings():
    easy, hard = Arithmetic(Settings(terms=2, max_operand=3)), Arithmetic(Settings(terms=12, difficulty=0.0))
    left = {p.prompt: p.key for p in (easy.problem(KEY.child(i)) for i in range(300))}
    right = {p.prompt: p.key for p in (hard.problem(KEY.child(i)) for i in range(300))}
    shared = set(left) & set(right)
    assert len(shared) > 10
    assert all(left[prompt] == right[prompt] for prompt in shared)


@pytest.mark.parametrize("name", TASK.corpora)
def test_corpora_are_deterministic_readable_and_end_at_the_stop(name):
    first = list(islice(TASK.corpus(name, KEY), 200))
    assert first == list(islice(TASK.corpus(name, KEY), 200))
    for demonstration in first:
        assert set(demonstration.prompt + demonstration.text) <= set(TASK.alphabet)
        assert demonstration.text.endswith(TASK.stop(TASK.problem(KEY)))
        assert demonstration.text.count("\n") == 1
        assert demonstration.provenance == f"arithmetic:{name}"


@pytest.mark.parametrize("name", ["solutions", "hints", "answer_given"])
def test_corpora_without_noise_are_right(name):
    for demonstration in islice(TASK.corpus(name, KEY), 300):
        chain, _, hint = demonstration.prompt.removesuffix("\n").partition("=?")
        problem = chain_problem(chain, left_to_right(chain))
        assert TASK.verify(problem, rollout(demonstration.text)).correct is True
        if name == "hints":
            assert hint != "|"
            assert demonstration.text.startswith(hint[1:])
        if name == "answer_given":
            assert hint == f"|#{problem.answer}"


def test_noise_has_the_stated_rate_per_step():
    task = Arithmetic(Settings(slip=0.3))
    steps, wrong, right = 0, 0, 0
    for demonstration in islice(task.corpus("noisy", KEY), 2000):
        chain = demonstration.prompt.partition("=?")[0]
        problem = chain_problem(chain, left_to_right(chain))
        check = check_steps(problem, demonstration.text)
        steps, wrong = steps + check.steps, wrong + len(check.wrong)
        right += bool(task.verify(problem, rollout(demonstration.text)).correct)
    assert steps == 8000
    assert abs(wrong / steps - 0.3) < 4 * (0.3 * 0.7 / steps) ** 0.5
    assert 0.7**4 - 0.04 < right / 2000 < 0.7**4 + 0.15


def test_difficulty_sets_the_number_of_terms():
    for dial, terms in [(0.0, 2), (0.5, 4), (1.0, 5), (None, 5)]:
        problem = TASK.problem(KEY, dial)
        assert len(re.findall(r"\d+", problem.prompt)) == terms
        assert problem.difficulty == (1.0 if dial is None else dial)


def test_cut_points_are_the_beginnings_of_steps():
    problem = chain_problem("3+4*2-5", 9)
    text = "3+4=7;7*2=14;14-5=9;#9\n"
    cuts = TASK.cut_points(problem, rollout(text))
    assert [text[a:b] for a, b in zip(cuts, [*cuts[1:], None], strict=True)] == ["3+4=7;", "7*2=14;", "14-5=9;", "#9\n"]
    assert TASK.cut_points(problem, rollout(text, tokens=5)) == [0]
    assert TASK.cut_points(problem, rollout("3+4=7;")) == [0]
    assert TASK.cut_points(problem, rollout("")) == [0]


def test_the_task_keeps_its_protocol():
    assert isinstance(TASK, Task)
    assert len(set(TASK.alphabet)) == len(TASK.alphabet)


def test_mistakes_are_one_clear_line():
    with pytest.raises(TaskError, match="Did you mean 'noisy'"):
        TASK.corpus("noise", KEY)
    with pytest.raises(TaskError, match="twice"):
        build(Settings(operations="++"))
    with pytest.raises(TaskError, match=r"\[0, 1\]"):
        TASK.problem(KEY, float("nan"))
    with pytest.raises(TaskError, match="not of the task"):
        TASK.solve(Problem(task="x", key="1", prompt="", answer=""))
    for bad in ({"terms": 1}, {"operations": "/"}, {"slip": 2.0}, {"wat": 1}):
        with pytest.raises(ValidationError):
            Settings(**bad)


def test_lost_carries_by_hand():
    assert carries(17, "+", 5)
    assert not carries(17, "+", 2)
    assert not carries(17, "-", 9)
    assert not carries(17, "*", 9)
    assert carries(5, "+", 25)
    assert not carries(50, "+", 50)
    # The second step carries only because the first lost its carry; the third has none to lose.
    assert careless_work("17+5+9*2", [True, True, True]) == (["17+5=12", "12+9=11", "11*2=22"], 22)
    assert careless_work("17+5+9*2", [False, True, True]) == (["17+5=22", "22+9=21", "21*2=42"], 42)
    # Without this carry the chain would fall below 0.
    assert careless_work("17+5-9-9", [True, True, True]) == (["17+5=22", "22-9=13", "13-9=4"], 4)


def test_careless_texts_lose_carries_at_the_stated_rate_and_nothing_else():
    task = Arithmetic(Settings(terms=8, operations="+*", lost_carry=0.3))
    lost, held = 0, 0
    for demonstration in islice(task.corpus("careless", KEY), 1500):
        chain = demonstration.prompt.partition("=?")[0]
        problem = chain_problem(chain, left_to_right(chain))
        wrong = set(check_steps(problem, demonstration.text).wrong)
        for index, step in enumerate(demonstration.text.split(";")[:-1]):
            first, operation, operand, result = re.fullmatch(r"(\d+)([+*-])(\d+)=(\d+)", step).groups()
            right = left_to_right(f"{first}{operation}{operand}")
            if carries(int(first), operation, int(operand)):
                lost, held = lost + (index in wrong), held + 1
                assert int(result) == right - 10 * (index in wrong)
            else:
                assert int(result) == right
                assert index not in wrong
            assert 0 <= int(result) <= 99
        # The answer repeats the last result.
        assert demonstration.text.endswith(f"#{result}\n")
    # Sums and products never fall below 0, so every carry may be lost.
    assert abs(lost / held - 0.3) < 4 * (0.3 * 0.7 / held) ** 0.5
    never = Arithmetic(Settings(lost_carry=0.0))
    for demonstration in islice(never.corpus("careless", KEY), 50):
        chain = demonstration.prompt.partition("=?")[0]
        assert demonstration.text == never.solve(chain_problem(chain, left_to_right(chain)))


def test_careless_chains_stay_in_bounds_with_differences():
    task = Arithmetic(Settings(terms=10, lost_carry=1.0))
    kept = 0
    for demonstration in islice(task.corpus("careless", KEY), 300):
        for step in demonstration.text.split(";")[:-1]:
            first, operation, operand, result = re.fullmatch(r"(\d+)([+*-])(\d+)=(\d+)", step).groups()
            assert 0 <= int(result) <= 99
            kept += carries(int(first), operation, int(operand)) and int(result) == int(first) + int(operand)
    assert kept > 0


def test_the_right_step_from_anywhere():
    problem = chain_problem("3+4*2-5", 9)
    assert isinstance(TASK, Solver)
    text = ""
    while step := TASK.right_step(problem, text):
        text += step
    assert text == TASK.solve(problem)
    # From a wrong result, and from a step that is not the chain's own: the last result as it is written.
    assert TASK.right_step(problem, "3+4=8;") == "8*2=16;"
    assert TASK.right_step(problem, "9-9=-2;") == "-2*2=-4;"
    assert TASK.right_step(problem, "3+4=8;8*2=16;16-5=11;") == "#11\n"
    for text in ("3+4", "3+4=7", "3+4=7;#", "3+4=7;7*2=14;14-5=9;#9\n", "what;", "3+4=7;7*2=14;14-5=9;9+1=10;"):
        assert TASK.right_step(problem, text) == ""
    fresh = TASK.problem(KEY.child("step"))
    assert TASK.solve(fresh).startswith(TASK.right_step(fresh, ""))
