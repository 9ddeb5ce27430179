import pytest
from lab_examples import MIXED, random_policy, regular

from forkpoint.errors import TaskError
from forkpoint.seeds import Key
from forkpoint.theory.classes import golden_policy, optimal_policy, uniform_policy
from forkpoint.theory.graphs import PathStar, edge_states
from forkpoint.theory.search import search_result
from forkpoint.theory.simulation import simulate
from forkpoint.theory.solving import hitting_time
from forkpoint.theory.tables import spread_policy


@pytest.mark.parametrize(("lanes", "imitation"), [(2, 571), (5, 886), (10, 1411), (20, 2461)])
def test_search_after_rlvr_is_flat_in_the_lanes_and_after_imitation_linear(lanes, imitation):
    """Corollary 1; a wrong branch costs 4K + 2 steps, and after imitation K(L - 1) more for lanes tried in vain."""
    graph = regular(15, 15, lanes)
    assert search_result(optimal_policy(graph)).steps == 466
    found = search_result(golden_policy(graph))
    assert (found.hit_probability, round(found.steps, 9)) == (1, imitation)
    assert imitation == 7 * (4 * 15 + 2 + 15 * (lanes - 1)) + 2 * 15 + 2


def test_search_at_the_smaller_graph():
    graph = regular(6, 6, 5)
    assert search_result(optimal_policy(graph)).steps == 79
    assert search_result(golden_policy(graph)).steps == pytest.approx(139)


def enumerated(policy, target):
    """The chance of a hit and the mean steps on a hit, over every walk that enters no directed edge twice."""
    states, table = edge_states(policy.graph), policy.probabilities.tolist()
    offsets, successors, leaf = states.offsets.tolist(), states.successors.tolist(), int(states.targets[target])
    chance, steps = 0.0, 0.0
    stack = [(0, frozenset(), 1.0, 1)]
    while stack:
        at, taken, weight, length = stack.pop()
        if at == leaf:
            chance, steps = chance + weight, steps + weight * length
            continue
        free = [i for i in range(offsets[at], offsets[at + 1]) if successors[i] not in taken]
        total = sum(table[i] for i in free)
        for i in free:
            move, share = successors[i], table[i] / total if total else 1 / len(free)
            if share:
                stack.append((move, taken | {move}, weight * share, length + 1))
    return chance, steps


@pytest.mark.parametrize("graph", [regular(2, 1, 3), regular(2, 2, 2), PathStar(depths=(2, 1, 1), lanes=(2, 1, 2))])
@pytest.mark.parametrize("make", [uniform_policy, golden_policy, optimal_policy, lambda g: random_policy(g, 7, 1.5)])
def test_exact_search_equals_the_enumeration_of_every_walk(graph, make):
    policy = make(graph)
    parts = [enumerated(spread_policy(policy), target) for target in range(graph.branches)]
    chance, steps = (sum(column) / graph.branches for column in zip(*parts, strict=True))
    found = search_result(policy)
    assert found.hit_probability == pytest.approx(chance, rel=1e-12)
    assert found.steps == pytest.approx(steps / chance, rel=1e-12)


@pytest.mark.parametrize("graph", [regular(3, 3, 3), MIXED, regular(1, 2, 2)])
@pytest.mark.parametrize("make", [uniform_policy, golden_policy, optimal_policy, lambda g: random_policy(g, 5, 1.5)])
def test_exact_search_lies_within_its_simulation(graph, make):
    policy = make(graph)
    exact = search_result(policy)
    walks = simulate(spread_policy(policy), walkers=12000, key=Key.root(2).child("search"), horizon=500, search=True)
    share = exact.hit_probability
    assert abs(walks.hit_share - share) <= 4 * (share * (1 - share) / 12000) ** 0.5
    mean, error = walks.mean_steps()
    assert abs(mean - exact.steps) <= 4 * error


@pytest.mark.parametrize("make", [uniform_policy, golden_policy, lambda g: random_policy(g, 1)])
def test_simulated_walks_agree_with_exact_values(make):
    graph = regular(3, 2, 3)
    policy = make(graph)
    walks = simulate(spread_policy(policy), walkers=6000, key=Key.root(5), horizon=20000)
    mean, error = walks.mean_steps()
    assert walks.hit_share == 1
    assert abs(mean - hitting_time(policy).steps) <= 4 * error
    one = simulate(spread_policy(random_policy(MIXED, 1)), walkers=3000, key=Key.root(6), horizon=20000, target=3)
    mean, error = one.mean_steps()
    assert abs(mean - hitting_time(random_policy(MIXED, 1), target=3).steps) <= 4 * error


def test_a_walk_depends_on_its_own_numbers_only():
    policy = spread_policy(uniform_policy(regular(3, 2, 2)))
    few, many = (simulate(policy, walkers=n, key=Key.root(1), horizon=50) for n in (9, 90))
    assert few.steps.tolist() == many.steps[:9].tolist()
    assert few.hits.tolist() == many.hits[:9].tolist()
    assert many.steps.max() == 50
    first = simulate(policy, walkers=90, key=Key.root(1), horizon=50, target=0)
    assert first.steps[::3].tolist() == many.steps[::3].tolist()
    assert (many.steps[~many.hits] == 50).all()


def test_no_directed_edge_is_entered_twice():
    graph = regular(2, 1, 1)
    walks = simulate(spread_policy(optimal_policy(graph)), walkers=400, key=Key.root(0), horizon=1000, search=True)
    assert set(walks.steps.tolist()) == {4, 10}
    plain = simulate(spread_policy(optimal_policy(graph)), walkers=400, key=Key.root(0), horizon=1000)
    assert plain.steps.max() > 10


def test_a_horizon_of_zero_and_a_target_outside_are_refused():
    policy = spread_policy(uniform_policy(regular(2, 1, 1)))
    with pytest.raises(TaskError, match="horizon = 0"):
        simulate(policy, walkers=3, key=Key.root(0), horizon=0)
    with pytest.raises(TaskError, match="target = 2"):
        simulate(policy, walkers=3, key=Key.root(0), horizon=5, target=2)


def test_nobody_hits_within_one_step():
    walks = simulate(spread_policy(uniform_policy(regular(2, 1, 1))), walkers=5, key=Key.root(0), horizon=1)
    assert (walks.hit_share, walks.mean_steps()) == (0.0, (0.0, 0.0))
