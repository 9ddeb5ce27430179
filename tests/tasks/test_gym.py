"""Datasets of reasoning-gym: refusals, hashed seeds, verdicts of scorers that fail, and what no answer may do."""

import importlib.util
import itertools
import math
import subprocess
import sys

import pytest

from forkpoint.errors import TaskError, VerifierError
from forkpoint.records import Outcome, Rollout, StopReason, frozen_array
from forkpoint.seeds import Key
from forkpoint.tasks import gym
from forkpoint.tasks.gym import REFUSED, Settings, build, item_seed, judge
from forkpoint.tasks.protocol import Task, split_problems
from forkpoint.verifiers.worker import Answer

SMALL = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 2}
needs_gym = pytest.mark.skipif(
    importlib.util.find_spec("reasoning_gym") is None, reason="the extra `gym` is not installed"
)


def rollout(text):
    empty = frozen_array([], "int32")
    return Rollout(
        id="r", group_id="g", stage="s", update=0, index=0, problem_key="k", prompt_tokens=empty, tokens=empty,
        behavior_logprobs=frozen_array([], "float32"), loss_mask=frozen_array([], "bool"), temperature=1.0, text=text,
        stop_reason=StopReason.EOS, seed="0",
    )  # fmt: skip


@pytest.fixture(scope="module")
def sums():
    task = build(Settings(dataset="chain_sum", options=SMALL))
    yield task
    task.close()


@pytest.mark.parametrize(
    ("found", "outcome", "score"),
    [
        (Answer(kind="ok", value=1.0), Outcome.CORRECT, 1.0),
        (Answer(kind="ok", value=1.7), Outcome.CORRECT, 1.0),
        (Answer(kind="ok", value=0.99), Outcome.WRONG, 0.99),
        (Answer(kind="ok", value=-3.0), Outcome.WRONG, 0.0),
        (Answer(kind="ok", value=0.0), Outcome.WRONG, 0.0),
        (Answer(kind="ok", value=math.nan), Outcome.ERROR, None),
        (Answer(kind="ok", value=math.inf), Outcome.ERROR, None),
        (Answer(kind="ok", value=None), Outcome.ERROR, None),
        (Answer(kind="ok", value="1"), Outcome.ERROR, None),
        (Answer(kind="timeout", reason="late"), Outcome.ERROR, None),
        (Answer(kind="oom", reason="big"), Outcome.ERROR, None),
        (Answer(kind="crash", reason="gone"), Outcome.ERROR, None),
        (Answer(kind="error", reason="ValueError"), Outcome.ERROR, None),
    ],
)
def test_a_score_becomes_a_verdict(found, outcome, score):
    verdict = judge("12", found)
    assert (verdict.outcome, verdict.score) == (outcome, score)
    assert verdict.correct is {Outcome.CORRECT: True, Outcome.WRONG: False, Outcome.ERROR: None}[outcome]
    assert verdict.answer == "12"
    assert found.reason in verdict.reason


@needs_gym
def test_seeds_are_hashes_so_neighbors_share_nothing(sums):
    keys = [Key.root(seed).child("train", index) for seed in range(3) for index in range(300)]
    seeds = [item_seed(key) for key in keys]
    assert len(set(seeds)) == len(seeds)
    assert min(abs(a - b) for a, b in itertools.combinations(seeds, 2)) > 1
    assert all(0 <= seed < 2**32 for seed in seeds)
    first = [sums.problem(Key.root(0).child(index)).key for index in range(50)]
    second = [sums.problem(Key.root(1).child(index)).key for index in range(50)]
    assert first[1:] != second[:-1]
    assert len(set(first) & set(second)) < 5


@needs_gym
def test_a_problem_is_a_function_of_its_key_in_any_child(sums):
    keys = [Key.root(5).child(index) for index in range(5)]
    before = [sums.problem(key) for key in keys]
    sums.close()
    assert [sums.problem(key) for key in reversed(keys)] == before[::-1]
    assert before[0].prompt.endswith("=\n")


@needs_gym
def test_the_split_is_decided_by_the_question(sums):
    held_out = split_problems(sums, Key.root(0), 40, evaluation=True)
    training = split_problems(sums, Key.root(0), 200, evaluation=False)
    assert len(held_out) == 40
    assert {problem.prompt for problem in held_out}.isdisjoint(problem.prompt for problem in training)


@needs_gym
def test_verdicts(sums):
    assert isinstance(sums, Task)
    for index in range(20):
        problem = sums.problem(Key.root(0).child(index))
        assert sums.verify(problem, rollout(sums.solve(problem))).outcome is Outcome.CORRECT
        assert sums.verify(problem, rollout(rf"<think>1</think>\boxed{{{problem.answer}}}")).correct
        assert sums.verify(problem, rollout(str(int(problem.answer) + 1))).outcome is Outcome.WRONG
        for wrong in sums.wrong_answers(problem):
            assert not sums.verify(problem, rollout(wrong)).correct, wrong
    assert sums.verify(problem, rollout("")).outcome is Outcome.UNPARSEABLE
    assert sums.verify(problem, rollout("1" * 20_000)).outcome is Outcome.UNPARSEABLE


@needs_gym
def test_a_problem_that_the_dataset_no_longer_makes_is_an_error(sums):
    old = gym.Problem(task=sums.name, key="00", prompt="1 + 1 =", answer="2", metadata={"seed": 1})
    assert sums.verify(old, rollout("2")).outcome is Outcome.ERROR


@needs_gym
def test_the_alphabet_covers_prompts_and_answers(sums):
    for index in range(200):
        problem = sums.problem(Key.root(9).child(index))
        assert set(problem.prompt + problem.answer) <= set(sums.alphabet)
    assert len(set(sums.alphabet)) == len(sums.alphabet)
    assert "<" not in sums.alphabet


@needs_gym
def test_the_corpora(sums):
    right = list(itertools.islice(sums.corpus("solutions", Key.root(1)), 100))
    noisy = list(itertools.islice(sums.corpus("noisy", Key.root(1)), 100))
    assert [text.prompt for text in right] == [text.prompt for text in noisy]
    same = sum(a.text == b.text for a, b in zip(right, noisy, strict=True))
    assert 30 < same < 70
    assert right == list(itertools.islice(sums.corpus("solutions", Key.root(1)), 100))
    held_out = {problem.prompt for problem in split_problems(sums, Key.root(0), 40, evaluation=True)}
    assert held_out.isdisjoint(text.prompt for text in right)
    with pytest.raises(TaskError, match="Did you mean 'noisy'"):
        sums.corpus("nosy", Key.root(1))


@needs_gym
def test_the_package_and_torch_stay_out_of_this_process():
    code = (
        "import sys\n"
        "from forkpoint.tasks.gym import Settings, build\n"
        "from forkpoint.seeds import Key\n"
        "build(Settings(dataset='gcd')).problem(Key.root(0))\n"
        "assert not {'torch', 'reasoning_gym', 'sympy'} & set(sys.modules)\n"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@needs_gym
@pytest.mark.parametrize("dataset", sorted(REFUSED))
def test_refused_datasets_say_why(dataset):
    with pytest.raises(TaskError, match=r"is refused: (its|it) .*unsafe_scorer"):
        build(Settings(dataset=dataset))


def test_the_list_of_refused_datasets():
    assert len(REFUSED) == 19
    assert sum(why == gym.RUNS_TEXT for why in REFUSED.values()) == 9


@needs_gym
def test_a_scorer_that_runs_text_runs_it_in_the_child_only(tmp_path):
    with pytest.raises(TaskError, match="refused"):
        build(Settings(dataset="n_queens"))
    task = build(
        Settings(
            dataset="n_queens",
            options={"n": 4, "min_remove": 1, "max_remove": 2},
            unsafe_scorer=True,
            timeout_seconds=1,
        )
    )
    problem = task.problem(Key.root(0))
    assert task.verify(problem, rollout(task.solve(problem))).correct
    for hostile in ("9**9**9**9", "__import__('os')._exit(0)"):
        assert task.verify(problem, rollout(hostile)).outcome is Outcome.ERROR
    file = tmp_path / "made"
    task.verify(problem, rollout(f"__import__('pathlib').Path({str(file)!r}).write_text('text')"))
    assert not file.exists() or file.read_bytes() == b""
    assert task.verify(problem, rollout(task.solve(problem))).correct
    task.close()


@needs_gym
def test_a_dataset_without_answers_has_no_solutions():
    task = build(Settings(dataset="rush_hour", unsafe_scorer=True))
    with pytest.raises(TaskError, match="no reference answers"):
        task.solve(task.problem(Key.root(0)))
    task.close()


@needs_gym
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dataset": "chain_sun"}, "Did you mean 'chain_sum'"),
        ({"dataset": "gcd", "options": {"digits": 3}}, r'cannot be built with options = \{"digits": 3\}: .*digits'),
        ({"dataset": "gcd", "options": {"min_value": -5}}, "min_value must be positive"),
        ({"dataset": "gcd", "options": {"seed": 5}}, "seed cannot be set"),
        ({"dataset": "gcd", "options": {"min_value": math.inf}}, "cannot be written as JSON"),
    ],
)
def test_mistakes_are_one_line(settings, message):
    with pytest.raises(TaskError, match=message) as raised:
        build(Settings(**settings))
    assert "\n" not in str(raised.value)


def test_a_missing_extra_is_one_line(monkeypatch):
    monkeypatch.setattr(gym.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(VerifierError, match=r"pip install 'forkpoint\[gym\]'"):
        build(Settings(dataset="gcd"))
