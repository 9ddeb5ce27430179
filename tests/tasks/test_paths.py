"""`paths`: the graph, the verifier against hand-made walks, wrong branches by hand, the corpora, the splits."""

import itertools
from collections import deque
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from forkpoint.conformance import check_task, check_verifier
from forkpoint.errors import TaskError
from forkpoint.probe import Solver
from forkpoint.records import Outcome, Problem
from forkpoint.seeds import Key
from forkpoint.tasks.paths import (
    NOWHERE,
    PUNCTUATION,
    Settings,
    build,
    count_nodes,
    make_star,
    read_prompt,
    shortest_path,
)
from forkpoint.tasks.protocol import Task, split_problems
from forkpoint.verifiers.outside import written_rollout

SHAPES = [(1, 1, 1), (2, 1, 1), (3, 3, 1), (1, 4, 1), (5, 2, 1), (2, 3, 2), (3, 2, 4), (2, 1, 3)]
# Branches a-b-c (goal c), d-e, f-g around the center s.
HAND = Problem(
    task="paths",
    key="0",
    prompt="sa ba cb ds de fs gf|s>c:",
    answer="abc",
    metadata={"branches": [["a", "b", "c"], ["d", "e"], ["f", "g"]]},
)

FREE = replace(HAND, prompt="sa ba cb ds de fs gf|s>|:", answer="abcbasdedsfg")


def task(branches=3, depth=3, lanes=1, **more):
    return build(Settings(branches=branches, depth=depth, lanes=lanes, **more))


def distances(neighbors, start):
    """Breadth-first search of our own."""
    found, queue = {start: 0}, deque([start])
    while queue:
        node = queue.popleft()
        for near in neighbors[node]:
            if near not in found:
                found[near] = found[node] + 1
                queue.append(near)
    return found


def judge(walk, problem=HAND, settings=None):
    return build(settings or Settings()).verify(problem, written_rollout(problem, walk))


@pytest.mark.parametrize(("branches", "depth", "lanes"), SHAPES)
def test_the_star_has_the_shape_that_it_is_said_to_have(branches, depth, lanes):
    star = make_star(branches, depth, lanes)
    neighbors = {}
    for one, two in star.edges:
        neighbors.setdefault(one, set()).add(two)
        neighbors.setdefault(two, set()).add(one)
    assert len(neighbors) == count_nodes(branches, depth, lanes)
    assert sorted(neighbors) == list(range(len(neighbors)))
    assert len({frozenset(edge) for edge in star.edges}) == len(star.edges)
    links = 1 if lanes == 1 else 2 * lanes
    assert len(star.edges) == branches * (1 + (depth - 1) * links)
    assert len(neighbors[0]) == branches
    away = distances(neighbors, 0)
    step = 1 if lanes == 1 else 2
    for branch, nodes in enumerate(star.branch_nodes):
        assert [away[node] for node in nodes] == [1 + step * level for level in range(depth)]
        assert {star.branch_of[node] for node in nodes} == {branch}
        assert len(neighbors[nodes[-1]]) == (1 if depth == 1 or lanes == 1 else lanes)
    # Without the center the branches do not touch.
    for one, two in star.edges:
        assert 0 in (one, two) or star.branch_of[one] == star.branch_of[two]


def test_lanes_are_parallel_ways_of_two_moves():
    star = make_star(1, 2, 3)
    center, inner, leaf = 0, star.branch_nodes[0][0], star.branch_nodes[0][1]
    middles = set(star.branch_of) - {inner, leaf}
    assert len(middles) == 3
    assert set(star.edges) == {(center, inner)} | {e for m in middles for e in ((inner, m), (m, leaf))}


@pytest.mark.parametrize(("branches", "depth", "lanes"), SHAPES)
def test_a_prompt_says_the_graph_and_no_more(branches, depth, lanes):
    made = task(branches, depth, lanes)
    problem = made.problem(Key.root(1))
    assert set(problem.prompt) <= set(made.alphabet)
    graph = read_prompt(problem.prompt)
    star = make_star(branches, depth, lanes)
    assert sorted(map(len, graph.neighbors.values())) == sorted(
        np.bincount(np.array(star.edges).ravel(), minlength=len(star.branch_of) + 1)
    )
    away = distances(graph.neighbors, graph.start)
    assert len(graph.neighbors[graph.start]) == branches
    assert away[graph.goal] == max(away.values()) == len(problem.answer)
    assert graph.goal in {nodes[-1] for nodes in problem.metadata["branches"]}


def test_problems_are_functions_of_their_key_and_differ():
    made = task()
    keys = [Key.root(0).child(i) for i in range(300)]
    problems = [made.problem(key) for key in keys]
    assert problems == [made.problem(key) for key in keys]
    assert len({problem.key for problem in problems}) == 300
    assert len({problem.prompt[:2] for problem in problems}) > 100


def test_neither_branch_nor_place_of_an_edge_gives_the_goal_away():
    made = task(3, 2)
    problems = [made.problem(Key.root(2).child(i)) for i in range(1500)]
    branches = np.bincount(
        [[n[-1] for n in p.metadata["branches"]].index(read_prompt(p.prompt).goal) for p in problems], minlength=3
    )
    assert abs(branches - 500).max() < 90
    places = []
    for problem in problems:
        graph = read_prompt(problem.prompt)
        edges = problem.prompt.partition("|")[0].split(" ")
        places.append(next(i for i, edge in enumerate(edges) if graph.goal in edge))
    counts = np.bincount(places, minlength=6)
    assert abs(counts - 250).max() < 75
    # Which end of an edge comes first says nothing either.
    first = [
        read_prompt(p.prompt).goal == p.prompt.partition("|")[0].split(" ")[i][0]
        for p, i in zip(problems, places, strict=True)
    ]
    assert abs(np.mean(first) - 0.5) < 0.06


@pytest.mark.parametrize(
    ("walk", "correct", "moves", "entered", "left", "reason"),
    [
        ("abc", True, 3, 0, 0, "reached"),
        ("", False, 0, 0, 0, "did not reach"),
        ("a", False, 1, 0, 0, "did not reach"),
        ("ab", False, 2, 0, 0, "did not reach"),
        ("abcb", False, 3, 0, 0, "goes on after the goal, at move 4"),
        ("abcc", False, 3, 0, 0, "goes on after the goal"),
        ("b", False, 0, 0, 0, "move 1 is not an edge"),
        ("s", False, 0, 0, 0, "move 1 is not an edge"),
        ("ac", False, 1, 0, 0, "move 2 is not an edge"),
        ("aa", False, 1, 0, 0, "move 2 is not an edge"),
        ("z", False, 0, 0, 0, "move 1 is not an edge"),
        ("a b c", False, 1, 0, 0, "move 2 is not an edge"),
        ("abc\n", False, 3, 0, 0, "goes on after the goal"),
        ("asabc", True, 5, 0, 0, "reached"),
        ("absabc", False, 2, 0, 0, "move 3 is not an edge"),
        ("dsabc", True, 5, 1, 1, "reached"),
        ("dedsabc", True, 7, 1, 1, "reached"),
        ("dedsdsfgfsabc", True, 13, 3, 3, "reached"),
        ("de", False, 2, 1, 0, "did not reach"),
        ("ded", False, 3, 1, 0, "did not reach"),
        ("dsfg", False, 4, 2, 1, "did not reach"),
        ("dsdsd", False, 5, 3, 2, "did not reach"),
        ("dsf#", False, 3, 2, 1, "move 4 is not an edge"),
        # What comes after an illegal move or the goal is not counted.
        ("xdsabc", False, 0, 0, 0, "move 1 is not an edge"),
        ("abcbasd", False, 3, 0, 0, "goes on"),
    ],
)
def test_the_verifier_checks_every_move(walk, correct, moves, entered, left, reason):
    verdict = judge(walk)
    assert (verdict.outcome is Outcome.CORRECT, verdict.correct) == (correct, correct)
    assert verdict.parts == {"moves": moves, "wrong_entered": entered, "wrong_left": left}
    assert reason in verdict.reason


def test_a_branch_left_within_is_no_branch_left():
    # Turning round inside a wrong branch, even many times, is not leaving it.
    assert judge("dededed").parts["wrong_left"] == 0


@given(st.text("abcdefgsxyz", max_size=12))
def test_the_verifier_agrees_with_a_plain_walk(walk):
    graph = read_prompt(HAND.prompt)
    node, legal = "s", True
    for place, move in enumerate(walk):
        legal = move in graph.neighbors[node]
        if not legal or (move == "c" and place != len(walk) - 1):
            legal = False
            break
        node = move
    assert judge(walk).correct == (legal and node == "c")


@pytest.mark.parametrize(("branches", "depth", "lanes"), SHAPES)
def test_our_own_checks_pass(branches, depth, lanes):
    made = task(branches, depth, lanes, walk_length=9)
    result = check_task(made, count=40)
    assert result.ok, result.faults
    assert result.accepted == 40
    assert result.refused == result.wrong > 40 * 4
    problem = made.problem(Key.root(0))
    assert check_verifier(made.verify, problem) == []
    assert isinstance(made, Task)


def texts_of(made, name, count=60):
    key = Key.root(3).child(name)
    texts = list(itertools.islice(made.corpus(name, key), count))
    again = list(itertools.islice(made.corpus(name, key), count))
    assert texts == again
    return [(text, read_prompt(text.prompt)) for text in texts]


@pytest.mark.parametrize(("branches", "depth", "lanes"), [(3, 3, 1), (2, 3, 2), (1, 2, 1)])
def test_every_move_of_every_corpus_is_legal(branches, depth, lanes):
    made = task(branches, depth, lanes, walk_length=11)
    for name in made.corpora:
        for text, graph in texts_of(made, name):
            places = graph.start + text.text
            assert all(there in graph.neighbors[here] for here, there in itertools.pairwise(places))
            assert graph.goal not in places[:-1]
            assert not text.ends
            assert text.provenance.startswith(f"corpus:{name}:")
            assert int(text.provenance.rpartition(":")[2], 16) % 10 != 0


def test_walks_are_cut_or_end_at_the_goal_and_are_uniform():
    made = task(3, 2, walk_length=7)
    firsts = []
    for text, graph in texts_of(made, "walks", 900):
        assert len(text.text) == 7 or text.text[-1] == graph.goal
        firsts.append(sorted(graph.neighbors[graph.start]).index(text.text[0]))
    assert abs(np.bincount(firsts, minlength=3) - 300).max() < 65


def test_golden_walks_are_shortest():
    for text, graph in texts_of(task(3, 3), "golden"):
        assert len(text.text) == distances(graph.neighbors, graph.start)[graph.goal] == 3
        assert text.text == shortest_path(graph, graph.start, graph.goal)


def test_recoveries_visit_wrong_leaves_and_come_back():
    visits = []
    for text, graph in texts_of(task(3, 3), "recoveries", 300):
        legs = text.text.split(graph.start)
        assert legs[-1] == shortest_path(graph, graph.start, graph.goal)
        leaves = []
        for leg in legs[:-1]:
            out, leaf, back = leg[:2], leg[2], leg[3:]
            assert back == out[::-1]
            assert leaf != graph.goal
            assert len(graph.neighbors[leaf]) == 1
            leaves.append(leaf)
        assert len(set(leaves)) == len(leaves)
        visits.append(len(leaves))
    # 0, 1 or 2 wrong branches, each a third of the time.
    assert abs(np.bincount(visits, minlength=3) - 100).max() < 35


def test_the_share_of_dead_ends_is_a_setting():
    lengths = [len(text.text) for text, _ in texts_of(task(3, 3, dead_ends=0.0), "recoveries")]
    assert set(lengths) == {3}


def test_difficulty_scales_the_depth():
    made = task(3, 5)
    lengths = [len(made.problem(Key.root(0), level).answer) for level in (0.0, 0.25, 0.5, 1.0, None)]
    assert lengths == [1, 2, 3, 5, 5]
    assert made.problem(Key.root(0), 0.0).difficulty == pytest.approx(1 / 5)


def test_too_many_nodes_are_refused():
    assert count_nodes(30, 2, 1) == 61
    assert len(task(30, 2).alphabet) == 62 + len(PUNCTUATION)
    assert len(task(3, 3).alphabet) == 26 + len(PUNCTUATION)
    with pytest.raises(TaskError, match=r"branches = 30, depth = 3, lanes = 1 has 91 nodes; at most 62"):
        task(30, 3)
    with pytest.raises(TaskError, match="at most 62"):
        task(3, 3, 20)


def test_an_unknown_corpus_is_refused():
    with pytest.raises(TaskError, match="Did you mean 'golden'"):
        next(task().corpus("goldn", Key.root(0)))


def test_a_rollout_stops_at_the_goal_and_every_move_is_a_step():
    made = task()
    assert made.stop(HAND) == ("c",)
    assert list(made.cut_points(HAND, written_rollout(HAND, "dsa"))) == [0, 1, 2]
    assert made.state(HAND, "") == "s"
    assert made.state(HAND, "ds") == "s"
    assert made.state(HAND, "de") == "e"


def test_the_right_step_is_the_next_move_of_a_shortest_path():
    made = task()
    assert isinstance(made, Solver)
    for walk, step in {"": "a", "d": "s", "de": "d", "ds": "a", "ab": "c", "abc": "", "x": "", "abcb": ""}.items():
        assert made.right_step(HAND, walk) == step
    problem = made.problem(Key.root(9))
    walk = ""
    while step := made.right_step(problem, walk):
        walk += step
    assert walk == problem.answer


def test_training_and_evaluation_never_meet():
    # The smallest task that we use: one on which problems could well repeat.
    made = task(2, 1)
    drawn = [made.problem(Key.root(seed).child(i)) for seed in range(4) for i in range(5000)]
    train = {problem.key for problem in drawn if not problem.is_evaluation}
    held_out = {problem.key for problem in drawn if problem.is_evaluation}
    assert not train & held_out
    assert not {p.prompt for p in drawn if p.key in train} & {p.prompt for p in drawn if p.key in held_out}
    assert 0.08 < np.mean([problem.is_evaluation for problem in drawn]) < 0.12


def test_splits_hold_what_they_promise():
    made = task()
    held_out = split_problems(made, Key.root(0).child("evaluation"), 200, evaluation=True)
    train = split_problems(made, Key.root(0).child("train"), 200, evaluation=False)
    assert len({problem.key for problem in held_out}) == 200
    assert all(problem.is_evaluation for problem in held_out)
    assert not any(problem.is_evaluation for problem in train)
    # A longer list begins with the shorter one, so that evaluations of two sizes pair up.
    assert split_problems(made, Key.root(0).child("evaluation"), 50, evaluation=True) == held_out[:50]


@pytest.mark.parametrize(
    ("walk", "moves", "seen", "correct", "reason"),
    [
        ("abcbasdedsfg", 12, 7, True, "saw all"),
        ("abcbasdedsfg|", 12, 7, True, "saw all"),
        ("abc", 3, 3, False, "saw 43%"),
        ("abc|", 3, 3, False, "saw 43%"),
        ("abab", 4, 2, False, "saw 29%"),
        ("abcx", 3, 3, False, "move 4 is not an edge"),
        ("abcdesfg", 3, 3, False, "move 4 is not an edge"),
        ("abcbasdedsfgg", 12, 7, False, "move 13 is not an edge"),
        ("|", 0, 0, False, "saw 0%"),
        ("", 0, 0, False, "saw 0%"),
    ],
)
def test_without_a_goal_what_was_seen_is_the_score(walk, moves, seen, correct, reason):
    found = judge(walk, FREE)
    assert (found.correct, found.score, found.reason) == (correct, seen / 7, reason)
    assert found.parts == {"moves": float(moves), "coverage": seen / 7}


def test_prompts_without_a_goal():
    star, relabelled = task(goal_free=1.0), 0
    for index in range(20):
        problem, with_goal = (each.problem(Key.root(5).child(index)) for each in (star, task()))
        assert problem.prompt[:-2] + with_goal.prompt[-2:] == with_goal.prompt
        assert read_prompt(problem.prompt).goal == NOWHERE
        assert star.stop(problem) == (NOWHERE,)
        assert star.early_answer(problem, "") == star.right_step(problem, "") == ""
        leaf = problem.metadata["branches"][1][-1]
        way = shortest_path(read_prompt(problem.prompt), read_prompt(problem.prompt).start, leaf)
        reached = star.reached(problem, way)
        assert reached is None or (reached[0].prompt[-2], reached[1]) == (leaf, way)
        relabelled += reached is not None
    assert relabelled > 10
    asked = [task(goal_free=0.25).problem(Key.root(4).child(index)).prompt[-2] == NOWHERE for index in range(400)]
    assert abs(np.mean(asked) - 0.25) < 4 * np.sqrt(0.25 * 0.75 / 400)
    for name in ("walks", "golden", "recoveries"):
        shown = list(itertools.islice(star.corpus(name, Key.root(4)), 5))
        seen = [len(set(text.text) - {read_prompt(text.prompt).start}) for text in shown]
        assert all(read_prompt(text.prompt).goal == NOWHERE for text in shown)
        assert name == "walks" or seen == [9] * 5
    with pytest.raises(TaskError, match="marks and goal_free"):
        task(goal_free=0.5, marks=True)


def test_where_the_goal_usually_is():
    def first(problem):
        graph = read_prompt(problem.prompt)
        near = next(edge for edge in problem.prompt.partition("|")[0].split(" ") if graph.start in edge)
        ways = [nodes for nodes in problem.metadata["branches"] if nodes[-1] == graph.goal]
        return ways[0][0] in near

    for lanes in (1, 2):
        assert all(first(task(usual=1.0, lanes=lanes).problem(Key.root(4).child(index))) for index in range(30))
    for usual in (0.0, 0.5):
        share = np.mean([first(task(usual=usual).problem(Key.root(4).child(index))) for index in range(400)])
        expected = usual + (1 - usual) / 3
        assert abs(share - expected) < 4 * np.sqrt(expected * (1 - expected) / 400)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_task_keeps_its_promises_without_a_goal(shape):
    branches, depth, lanes = shape
    found = check_task(task(branches, depth, lanes, goal_free=0.5, usual=0.5), count=40)
    assert found.faults == ()
