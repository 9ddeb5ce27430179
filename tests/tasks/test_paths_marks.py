"""`paths`: marked steps, and failures seen as successes at the leaf that they did reach."""

import pytest

from forkpoint.errors import TaskError
from forkpoint.records import Outcome, Problem
from forkpoint.seeds import Key
from forkpoint.tasks.paths import Settings, build
from forkpoint.verifiers.outside import written_rollout

# Branches a-b-c (goal c), d-e, f-g around the center s.
HAND = Problem(
    task="paths",
    key="0",
    prompt="sa ba cb ds de fs gf|s>c:",
    answer="abc",
    metadata={"branches": [["a", "b", "c"], ["d", "e"], ["f", "g"]]},
)
MARKED = build(Settings(branches=3, depth=3, marks=True))
PLAIN = build(Settings(branches=3, depth=3))


def outcome(task, text):
    return task.verify(HAND, written_rollout(HAND, text)).outcome


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("abc", True),
        ("d|abc", True),
        ("d|f|abc", True),
        ("ab|bc", True),  # b was thought of at a, then taken
        ("b|abc", False),  # b is no neighbour of s
        ("d||abc", False),
        ("|abc", False),
        ("d|ab", False),
        ("d|ebc", False),  # the mark made no move, so e cannot follow
    ],
)
def test_a_marked_step_makes_no_move(text, right):
    assert (outcome(MARKED, text) is Outcome.CORRECT) is right


def test_without_the_setting_a_mark_is_no_edge():
    assert outcome(PLAIN, "d|abc") is Outcome.WRONG
    with pytest.raises(TaskError, match=r"marks = true is needed"):
        PLAIN.dead_end_mark(HAND, "", "ded")


def test_a_mark_stands_for_a_dead_end():
    assert MARKED.dead_end_mark(HAND, "", "deds") == "d|"
    assert MARKED.state(HAND, "d|") == "s"
    assert MARKED.early_answer(HAND, "d|a") == "bc"
    assert PLAIN.state(HAND, "d|") == "lost"


@pytest.mark.parametrize(
    ("text", "leaf", "walk"),
    [
        ("de", "e", "de"),
        ("dedsfg", "g", None),  # no: after e comes d, then s, f, g
        ("dededs", "e", "de"),  # the first visit of the last leaf
        ("dsd", None, None),
        ("", None, None),
        ("dez", "e", "de"),  # what follows an illegal move does not count
        ("zde", None, None),
    ],
)
def test_a_failure_reached_its_last_leaf(text, leaf, walk):
    found = PLAIN.reached(HAND, text)
    if leaf is None:
        assert found is None
        return
    other, reached = found
    assert other.prompt == f"sa ba cb ds de fs gf|s>{leaf}:"
    assert reached == (walk or text)
    assert PLAIN.verify(other, written_rollout(other, reached)).correct
    assert other.key != HAND.key
    assert not other.is_evaluation


def test_no_problem_of_the_evaluation_split_is_relabelled_into():
    made = kept = 0
    for index in range(200):
        problem = PLAIN.problem(Key.root(1).child(index))
        for nodes in problem.metadata["branches"]:
            if nodes[-1] != problem.answer[-1]:
                made += 1
                found = PLAIN.reached(problem, "".join(nodes))
                kept += found is not None
                assert found is None or (not found[0].is_evaluation and found[0].answer == "".join(nodes))
    assert 0.8 < kept / made < 0.97
