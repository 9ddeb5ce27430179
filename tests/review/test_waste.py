"""Wasted spans against walks whose loops are known, and a walk without them against the verifier."""

from itertools import pairwise

import numpy as np
import pytest

from forkpoint.records import Problem, frozen_array
from forkpoint.review.postmortem import Span, Waste
from forkpoint.review.waste import kept_places, loops, wasted_spans
from forkpoint.seeds import Key
from forkpoint.tasks import arithmetic, paths
from forkpoint.tasks.paths import random_walk, read_prompt
from forkpoint.verifiers.outside import written_rollout

# Branches a-b-c (goal c), d-e, f-g around the center s.
HAND = Problem(
    task="paths",
    key="0",
    prompt="sa ba cb ds de fs gf|s>c:",
    answer="abc",
    metadata={"branches": [["a", "b", "c"], ["d", "e"], ["f", "g"]]},
)
TASK = paths.build(paths.Settings())


def spans(walk, problem=HAND, task=TASK):
    return [(span.start, span.end) for span in wasted_spans(problem, written_rollout(problem, walk), task)]


def pruned(walk, found):
    return "".join(move for place, move in enumerate(walk) if not any(start <= place < end for start, end in found))


@pytest.mark.parametrize(
    ("walk", "found"),
    [
        ("abc", []),
        ("dsabc", [(0, 2)]),
        ("dedsabc", [(0, 4)]),
        # Two loops at one node are one span.
        ("dsfgfsabc", [(0, 6)]),
        # A loop within the right branch.
        ("ababc", [(1, 3)]),
        ("absabc", None),
        ("dsababc", [(0, 2), (3, 5)]),
        ("asabc", [(0, 2)]),
        ("de", []),
        ("ded", [(1, 3)]),
        ("", []),
    ],
)
def test_loops_are_dead_ends(walk, found):
    if found is None:
        # b and s are no neighbours: from there on the walk is lost, and every further move changes nothing.
        assert wasted_spans(HAND, written_rollout(HAND, walk), TASK) == (Span(start=3, end=6, why=Waste.NO_CHANGE),)
        return
    assert spans(walk) == found
    made = wasted_spans(HAND, written_rollout(HAND, walk), TASK)
    assert all(span.why is Waste.DEAD_END for span in made)
    assert TASK.verify(HAND, written_rollout(HAND, pruned(walk, found))).correct == walk.endswith("abc")


def test_what_is_left_is_a_right_walk_that_meets_no_place_twice():
    task = paths.build(paths.Settings(branches=3, depth=3, walk_length=60))
    checked = 0
    for index in range(60):
        key = Key.root(5).child(index)
        problem = task.problem(key)
        walk = random_walk(read_prompt(problem.prompt), 60, key.child("walk").generator())
        rest = pruned(walk, spans(walk, problem, task))
        right = task.verify(problem, written_rollout(problem, walk)).correct
        assert task.verify(problem, written_rollout(problem, rest)).correct == right
        places = read_prompt(problem.prompt).start + rest
        assert len(set(places)) == len(places)
        checked += right and len(rest) < len(walk)
        if right:
            assert rest == problem.answer
    assert checked > 20


def test_loop_erasure_by_hand():
    def left(states):
        return "".join(states[place] for place in kept_places(states))

    for walk, rest in {"a": "a", "aa": "a", "abab": "ab", "abcbd": "abd", "abcadc": "adc", "abcdbe": "abe"}.items():
        assert left(walk) == rest
        assert all(walk[start] == walk[end] for start, end in loops(walk))
        assert all(end < start for (_, end), (start, _) in pairwise(loops(walk)))
    assert loops("") == []
    assert loops("abcadc") == [(0, 3)]


def test_a_step_that_changes_nothing_is_no_dead_end():
    class Counter:
        """The state is the number of x so far."""

        def cut_points(self, problem, rollout):
            return range(len(rollout.tokens))

        def state(self, problem, transcript):
            return str(transcript.count("x"))

    found = wasted_spans(HAND, written_rollout(HAND, "x..xx.x"), Counter())
    assert found == (Span(start=1, end=3, why=Waste.NO_CHANGE), Span(start=5, end=6, why=Waste.NO_CHANGE))


def test_a_pause_within_a_loop_is_part_of_the_dead_end():
    class Line:
        """The state is a place on a line."""

        def cut_points(self, problem, rollout):
            return range(len(rollout.tokens))

        def state(self, problem, transcript):
            return str(transcript.count("R") - transcript.count("L"))

    assert wasted_spans(HAND, written_rollout(HAND, "R.LR"), Line()) == (Span(start=0, end=3, why=Waste.DEAD_END),)


def test_a_new_beginning_is_a_restart_and_the_way_back_is_none():
    class Draft:
        """A text that `R` throws away and `<` shortens by a letter; the state is what is left."""

        def cut_points(self, problem, rollout):
            return range(len(rollout.tokens))

        def state(self, problem, transcript):
            kept = ""
            for letter in transcript:
                kept = "" if letter == "R" else kept[:-1] if letter == "<" else kept + letter
            return kept

    def told(text):
        return [(span.start, span.end, span.why) for span in wasted_spans(HAND, written_rollout(HAND, text), Draft())]

    assert told("abRcd") == [(0, 3, Waste.RESTART)]
    assert told("ab<<cd") == [(0, 4, Waste.DEAD_END)]
    # Thrown away once and gone back once: the whole of it was begun again.
    assert told("a<bcRd") == [(0, 5, Waste.RESTART)]
    # One letter is taken back either way.
    assert told("aRcd") == told("a<cd") == [(0, 2, Waste.DEAD_END)]
    assert told("cab<<d") == [(1, 5, Waste.DEAD_END)]


def test_tasks_without_states_and_tokens_without_texts():
    assert wasted_spans(HAND, written_rollout(HAND, "dsabc"), object()) == ()
    sums = arithmetic.Arithmetic()
    problem = sums.problem(Key.root(0))
    assert wasted_spans(problem, written_rollout(problem, sums.solve(problem)), sums) == ()
    # Two letters a token: the texts must be given.
    made = written_rollout(HAND, "dsabc")
    merged = type(made)(
        **{name: getattr(made, name) for name in made.__slots__}
        | {"tokens": frozen_array([0, 1, 2], np.int32), "loss_mask": frozen_array([1] * 3, np.bool_)}
    )
    assert wasted_spans(HAND, merged, TASK) == ()
    assert wasted_spans(HAND, merged, TASK, texts=["", "ds", "dsab", "dsabc"]) == (
        # There and back within one step.
        Span(start=0, end=1, why=Waste.NO_CHANGE),
    )
    with pytest.raises(ValueError, match="2 texts for 4 cuts"):
        wasted_spans(HAND, merged, TASK, texts=["", "ds"])
