import json

import numpy as np
import pytest
from lab_examples import MIXED, dense, random_policy, regular

from forkpoint.errors import TaskError
from forkpoint.seeds import Key
from forkpoint.theory.classes import golden_policy, optimal_policy, uniform_policy
from forkpoint.theory.flows import noisy_logits
from forkpoint.theory.graphs import PathStar, edge_states
from forkpoint.theory.solving import target_steps
from forkpoint.theory.tables import (
    TablePolicy,
    cyclic_policy,
    policy_from_text,
    policy_text,
    softmax_policy,
    solve_table,
    spread_policy,
    trained_optimum,
)


@pytest.mark.parametrize("graph", [regular(3, 3, 2), MIXED, regular(1, 2, 3)])
def test_the_full_table_agrees_with_a_dense_solver(graph):
    policy = softmax_policy(graph, noisy_logits(graph, scale=1.0, key=Key.root(0)))
    solution, states, matrix = solve_table(policy), edge_states(graph), dense(policy)
    for target, leaf in enumerate(states.targets.tolist()):
        alive = np.arange(states.count) != leaf
        inverse = np.linalg.inv(np.eye(alive.sum()) - matrix[np.ix_(alive, alive)])
        assert solution.values[alive, target] == pytest.approx(inverse.sum(axis=1), rel=1e-9)
        assert solution.visits[alive, target] == pytest.approx(inverse[0], rel=1e-9)
        assert solution.values[leaf, target] == solution.visits[leaf, target] == 0
        assert solution.steps[target] == pytest.approx(1 + inverse.sum(axis=1)[0], rel=1e-9)


@pytest.mark.parametrize("make", [uniform_policy, golden_policy, optimal_policy, lambda g: random_policy(g, 8)])
def test_tied_policies_have_the_same_steps_as_their_tables(make):
    policy = make(MIXED)
    expected = [target_steps(policy, MIXED.profile_of(i)) for i in range(4)]
    assert solve_table(spread_policy(policy)).steps == pytest.approx(expected, rel=1e-12)


def test_elimination_without_subtraction_keeps_the_deep_values():
    policy = spread_policy(golden_policy(regular(2, 14, 5)))
    exact = target_steps(golden_policy(regular(2, 14, 5)))
    assert exact > 1e12
    assert solve_table(policy).steps == pytest.approx([exact, exact], rel=1e-11)


def test_advantages_average_to_nothing_under_the_policy():
    policy = softmax_policy(MIXED, noisy_logits(MIXED, scale=1.0, key=Key.root(1)))
    states, solution = edge_states(MIXED), solve_table(policy)
    weighted = np.add.reduceat(policy.probabilities[:, None] * solution.advantages, states.offsets[:-1], axis=0)
    assert np.abs(weighted).max() < 1e-9
    source, entry = 5, states.offsets[5]
    mean = sum(
        p * solution.values[m, 0]
        for m, p in zip(states.moves(source), policy.probabilities[entry : states.offsets[6]], strict=True)
    )
    assert solution.advantages[entry, 0] == pytest.approx(mean - solution.values[states.moves(source)[0], 0])
    assert mean + 1 == pytest.approx(solution.values[source, 0])


@pytest.mark.parametrize(("graph", "optimum"), [((15, 15, 5), 466), ((6, 6, 5), 79), ((1, 4, 2), 10), ((2, 1, 3), 7)])
def test_the_cyclic_order_is_the_optimum_with_the_fork_trained(graph, optimum):
    w, k, _ = graph
    assert optimum == (w - 1) * (2 * k + 1) + 2 * k + 2 == trained_optimum(regular(*graph))
    assert solve_table(cyclic_policy(regular(*graph))).steps.mean() == pytest.approx(optimum, rel=1e-12)


def test_the_cyclic_order_tries_shallow_branches_first():
    graph = PathStar(depths=(5, 1, 3), lanes=(2, 2, 2))
    steps = solve_table(cyclic_policy(graph)).steps
    assert steps == pytest.approx([12 + 6 + 14, 4, 8 + 6])
    assert steps.mean() == pytest.approx(trained_optimum(graph))


def test_a_policy_file_returns_as_it_was():
    policy = softmax_policy(MIXED, noisy_logits(MIXED, scale=2.0, key=Key.root(2)))
    text = policy_text(policy)
    assert np.array_equal(policy_from_text(MIXED, text).probabilities, policy.probabilities)
    assert json.loads(text)["depths"] == [3, 2, 3, 1]


def test_policy_files_that_do_not_fit_are_refused():
    text = policy_text(spread_policy(uniform_policy(MIXED)))
    record = json.loads(text)
    cases = [
        (regular(3, 3, 2), text, "belongs to the graph with depths"),
        (MIXED, "{", "not JSON"),
        (MIXED, "[]", "format"),
        (MIXED, json.dumps({**record, "probabilities": record["probabilities"][:-1]}), "another graph"),
        (MIXED, json.dumps({**record, "probabilities": "none"}), "not a list of numbers"),
        (MIXED, json.dumps({**record, "probabilities": [2 * p for p in record["probabilities"]]}), "sums to 2"),
        (MIXED, json.dumps({**record, "probabilities": [-p for p in record["probabilities"]]}), "at least 0"),
        (MIXED, text.replace("0.25", "NaN"), "finite"),
    ]
    for graph, written, says in cases:
        with pytest.raises(TaskError, match=says):
            policy_from_text(graph, written)


def test_tables_of_another_graph_are_refused():
    with pytest.raises(TaskError, match="another graph"):
        TablePolicy(graph=regular(2, 1, 1), probabilities=np.ones(3))
    with pytest.raises(TaskError, match="another graph"):
        softmax_policy(regular(2, 1, 1), np.zeros(3))


def test_a_table_that_never_hits_is_refused():
    graph = regular(2, 1, 1)
    policy = spread_policy(optimal_policy(graph))
    states = edge_states(graph)
    keep = np.array([states.labels[move].branch == 0 for move in states.successors.tolist()])
    stubborn = np.where(states.frozen_rows, keep.astype(float), policy.probabilities)
    with pytest.raises(TaskError, match="not finite"):
        solve_table(TablePolicy(graph=graph, probabilities=stubborn))
