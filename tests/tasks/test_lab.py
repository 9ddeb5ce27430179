"""`lab`: the graph of the theory as a task, walks judged by hand, hidden targets in both splits, the corpora."""

import itertools
from collections import Counter

import numpy as np
import pytest
from pydantic import ValidationError

from forkpoint.assembly import build_task
from forkpoint.conformance import check_task, check_verifier
from forkpoint.errors import RecipeError, TaskError
from forkpoint.records import Outcome
from forkpoint.seeds import Key
from forkpoint.tasks.lab import FIRST, Settings, build, edge_alphabet, read_states, write_states
from forkpoint.tasks.protocol import Task, split_problems
from forkpoint.theory.graphs import Kind, PathStar, edge_states
from forkpoint.verifiers.outside import written_rollout


def lab(branches=3, depth=2, lanes=2, **more):
    return build(Settings(branches=branches, depth=depth, lanes=lanes, **more))


def problem_with(task, target):
    return next(p for p in (task.problem(Key.root(i)) for i in itertools.count()) if p.metadata["target"] == target)


def judge(task, problem, states):
    return task.verify(problem, written_rollout(problem, write_states(np.array(states, dtype=np.int64))))


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 1, 2), (3, 3, 3), (6, 6, 5)])
def test_the_task_passes_the_checks(shape):
    task = lab(*shape, supervised=0.5)
    assert isinstance(task, Task)
    assert check_task(task, count=60).faults == ()
    assert check_verifier(task.verify, task.problem(Key.root(0))) == []


def test_branches_may_differ():
    task = build(Settings(depth=(3, 1), lanes=(1, 4)))
    assert task.graph == PathStar(depths=(3, 1), lanes=(1, 4))
    assert check_task(task, count=30).ok
    assert build(Settings(depth=(2, 2, 1))).graph == PathStar(depths=(2, 2, 1), lanes=(3, 3, 3))


@pytest.mark.parametrize("wrong", [{"branches": 3, "depth": (1, 2)}, {"depth": (1, 2), "lanes": (1,)}, {"depth": ()}])
def test_lists_that_do_not_agree_are_refused(wrong):
    with pytest.raises(ValidationError):
        Settings(**wrong)


def test_a_recipe_may_give_lists():
    task = build_task({"name": "lab", "depth": [2, 1], "lanes": [1, 2]})
    assert task.graph.depths == (2, 1)
    with pytest.raises(RecipeError, match="number of branches"):
        build_task({"name": "lab", "branches": 5, "depth": [2, 1]})


def test_a_graph_with_too_many_edges_is_refused():
    with pytest.raises(TaskError, match="at most"):
        lab(1000, 10, 10)


def test_walks_by_hand():
    task = lab(2, 1, 2)
    first, second = problem_with(task, 0), problem_with(task, 1)
    # States of branch 0: 1 fork, 2 L+, 3 and 4 R+, 5 and 6 L-, 7 R-, 8 leaf; branch 1: 9 to 16.
    assert judge(task, first, [2, 3, 8]).correct
    assert judge(task, second, [2, 3, 8]).reason == "did not enter the target"
    turned = judge(task, second, [2, 4, 8, 7, 6, 1, 10, 12, 16])
    assert turned.correct
    assert turned.parts == {"moves": 9.0, "wrong_leaves": 1.0}
    assert judge(task, first, [2, 3, 8, 7]).reason == "goes on after the target, at move 4"
    assert judge(task, first, [2, 8]).reason == "move 2 is not an edge"
    assert judge(task, first, [2, 3, 99]).reason == "move 3 is not an edge"
    assert judge(task, first, [3, 8]).reason == "move 1 is not an edge"
    assert judge(task, first, []).outcome is Outcome.WRONG


def test_the_prompt_hides_the_target_and_the_stop_is_its_leaf():
    task = lab()
    problems = [problem_with(task, target) for target in range(3)]
    assert {problem.prompt for problem in problems} == {chr(FIRST)}
    leaves = [int(read_states(task.stop(problem)[0])[0]) for problem in problems]
    assert leaves == task.states.targets.tolist()
    assert [problem.answer[-1] for problem in problems] == [task.stop(problem)[0] for problem in problems]


def test_both_splits_hold_every_target_equally_often():
    task = lab(4)
    for evaluation in (False, True):
        problems = split_problems(task, Key.root(1), 800, evaluation=evaluation)
        counts = Counter(problem.metadata["target"] for problem in problems)
        # Chi-square with 3 degrees of freedom; 16.3 is the 0.1 % point.
        assert sum((counts[target] - 200) ** 2 / 200 for target in range(4)) < 16.3
    keys = {problem.key for problem in split_problems(task, Key.root(1), 800, evaluation=True)}
    assert len(keys) == 800


def test_text_and_states_are_inverse():
    graph = PathStar.regular(branches=2, depth=2, lanes=3)
    alphabet = edge_alphabet(graph)
    assert read_states(alphabet).tolist() == list(range(graph.state_count))
    assert write_states(np.arange(graph.state_count)) == alphabet


def test_steps_begin_at_the_fork():
    task = lab(2, 1, 2)
    problem = problem_with(task, 1)
    rollout = written_rollout(problem, write_states(np.array([2, 4, 8, 7, 6, 1, 10, 12, 16])))
    assert task.cut_points(problem, rollout) == [0, 6]


def test_golden_paths_are_shortest_and_lanes_uniform():
    task = lab(2, 1, 2)
    texts = [text.text for text in itertools.islice(task.corpus("golden", Key.root(0)), 400)]
    counts = Counter(texts)
    assert len(counts) == 4
    assert all(len(text) == 3 for text in counts)
    assert min(counts.values()) > 60


def legal(task, first, walk):
    states = [int(read_states(first)[0]), *read_states(walk).tolist()]
    return all(there in task.states.moves(here) for here, there in itertools.pairwise(states))


@pytest.mark.parametrize("name", ["golden", "corrected", "moves", "walks"])
def test_corpora_hold_legal_moves_and_never_end_with_a_token_of_their_own(name):
    task = lab(supervised=1.0)
    texts = list(itertools.islice(task.corpus(name, Key.root(0)), 100))
    assert all(legal(task, text.prompt, text.text) for text in texts)
    assert not any(text.ends for text in texts)
    assert texts == list(itertools.islice(task.corpus(name, Key.root(0)), 100))


def test_an_unknown_corpus_is_refused():
    with pytest.raises(TaskError, match="golden"):
        next(lab().corpus("gold", Key.root(0)))


@pytest.mark.parametrize(("share", "count"), [(0.0, 0), (0.5, 4), (1.0, 8)])
def test_the_share_of_supervised_backward_states(share, count):
    task = lab(3, 4, 2, supervised=share)
    assert sum(int(mask.sum()) for mask in task.supervised) == count
    states = edge_states(task.graph)
    corrections = [text for text in itertools.islice(task.corpus("corrected", Key.root(0)), 600) if len(text.text) == 1]
    taught = set()
    for text in corrections:
        source, move = int(read_states(text.prompt)[0]), int(read_states(text.text)[0])
        label = states.labels[source]
        assert label.kind in (Kind.RIGHT_BACK, Kind.LEFT_BACK)
        assert states.desired(label, states.labels[move])
        taught.add((int(label.kind is Kind.LEFT_BACK), label.depth - 1))
    assert taught == {(row, depth) for row, depth in np.argwhere(task.supervised[0]).tolist()}
