from collections import Counter

import numpy as np
import pytest
from lab_examples import MIXED, regular

from forkpoint.errors import TaskError
from forkpoint.theory.graphs import Kind, PathStar, edge_states


@pytest.mark.parametrize(("w", "k", "lanes", "states"), [(3, 3, 5, 115), (4, 4, 3, 137), (6, 6, 5, 445)])
def test_there_is_one_state_per_directed_edge(w, k, lanes, states):
    written = edge_states(regular(w, k, lanes))
    assert written.count == regular(w, k, lanes).state_count == states
    kinds = Counter(label.kind for label in written.labels)
    assert kinds == {
        Kind.START: 1,
        Kind.FORK: w,
        Kind.LEAF: w,
        Kind.LEFT_IN: w * k,
        Kind.RIGHT_BACK: w * k,
        Kind.RIGHT_IN: w * k * lanes,
        Kind.LEFT_BACK: w * k * lanes,
    }


def test_every_kind_has_its_legal_moves():
    states = edge_states(MIXED)
    for state, label in enumerate(states.labels):
        moves = Counter(states.labels[move].kind for move in states.moves(state))
        if label.kind in (Kind.START, Kind.FORK):
            assert moves == {Kind.LEFT_IN: 4}
            continue
        lanes, depth = MIXED.lanes[label.branch], MIXED.depths[label.branch]
        assert {states.labels[move].branch for move in states.moves(state)} == {label.branch}
        back = Kind.RIGHT_BACK if label.depth > 1 else Kind.FORK
        onward = Kind.LEFT_IN if label.depth < depth else Kind.LEAF
        if label.kind is Kind.LEAF:
            assert moves == {Kind.RIGHT_BACK: 1}
        elif label.kind in (Kind.LEFT_IN, Kind.LEFT_BACK):
            assert moves == {back: 1, Kind.RIGHT_IN: lanes}
        else:
            assert moves == {onward: 1, Kind.LEFT_BACK: lanes}


def test_a_step_back_is_always_legal_and_the_reverse_edge_differs_only_in_direction():
    states = edge_states(regular(2, 2, 3))
    reverse = {Kind.LEFT_BACK: Kind.RIGHT_IN, Kind.RIGHT_IN: Kind.LEFT_BACK}
    for state, label in enumerate(states.labels):
        if label.kind in reverse:
            kinds = [(states.labels[move].kind, states.labels[move].lane) for move in states.moves(state)]
            assert (reverse[label.kind], label.lane) in kinds


def test_the_shortest_path_is_found_by_breadth_first_search():
    states = edge_states(MIXED)
    distance = {states.start: 1}
    frontier = [states.start]
    while frontier:
        reached = [(state, move) for state in frontier for move in states.moves(state) if move not in distance]
        distance.update({move: distance[state] + 1 for state, move in reached})
        frontier = [move for _, move in dict.fromkeys(reached)] if reached else []
    assert [distance[leaf] for leaf in states.targets.tolist()] == [MIXED.shortest_path(i) for i in range(4)]
    assert MIXED.shortest_path(0) == 2 * 3 + 2


def test_profiles_count_equal_branches():
    assert [(p.depth, p.lanes, p.count) for p in MIXED.profiles] == [(3, 2, 2), (2, 3, 1), (1, 4, 1)]
    assert [MIXED.profile_of(i) for i in range(4)] == [0, 1, 0, 2]


def test_frozen_rows_are_those_of_start_and_fork():
    states = edge_states(regular(3, 1, 2))
    assert states.frozen_rows.sum() == (1 + 3) * 3
    assert np.array_equal(np.unique(states.sources[states.frozen_rows]), [0, 1, 9, 17])


@pytest.mark.parametrize(
    ("build", "says"),
    [
        (lambda: regular(0, 3, 2), "branches = 0"),
        (lambda: regular(2, 0, 2), "depth = 0"),
        (lambda: regular(2, 3, 0), "lanes = 0"),
        (lambda: PathStar(depths=(1, 2), lanes=(1,)), "2 depths but 1 lane counts"),
        (lambda: regular(3, 2, 2).shortest_path(3), "target = 3"),
        (lambda: regular(3, 2, 2).shortest_path(-1), "target = -1"),
        (lambda: edge_states(regular(1000, 1000, 1000)), "at most"),
    ],
)
def test_impossible_graphs_are_refused_in_one_line(build, says):
    with pytest.raises(TaskError, match=says) as caught:
        build()
    assert "\n" not in str(caught.value)


def test_the_digest_tells_graphs_apart():
    graphs = [regular(3, 2, 2), regular(2, 3, 2), regular(2, 2, 3), MIXED, PathStar(depths=(3, 2), lanes=(2, 2))]
    assert len({graph.digest for graph in graphs}) == len(graphs)
