import numpy as np
import pytest
from lab_examples import MIXED, random_policy, regular

from forkpoint.errors import TaskError
from forkpoint.theory.chains import first_hits, hit_within, reduced_chain
from forkpoint.theory.classes import golden_policy, optimal_policy, uniform_policy
from forkpoint.theory.graphs import PathStar
from forkpoint.theory.horizon import solve_horizon, table_hit_within
from forkpoint.theory.solving import hitting_time
from forkpoint.theory.tables import spread_policy

GRAPH = regular(6, 6, 5)


def test_the_cleanest_picture_of_the_claim():
    within = hit_within(uniform_policy(GRAPH), [14, 144, 600, 3338, 10000])
    assert [round(p, 3) for p in within] == [0.0, 0.049, 0.185, 0.633, 0.947]
    within = hit_within(golden_policy(GRAPH), [13, 14, 600, 3338, 10000])
    assert [round(p, 3) for p in within] == [0.0, 0.167, 0.167, 0.167, 0.169]
    within = hit_within(optimal_policy(GRAPH), [13, 14, 50, 144, 300, 600])
    assert [round(p, 3) for p in within] == [0.0, 0.167, 0.306, 0.665, 0.888, 0.985]


def test_the_optimum_hits_at_fixed_times_only():
    hits = first_hits(optimal_policy(GRAPH), horizon=100)
    times = np.flatnonzero(hits)
    assert times.tolist() == [14, 40, 66, 92]
    assert hits[times] == pytest.approx([(1 / 6) * (5 / 6) ** n for n in range(4)])


@pytest.mark.parametrize("graph", [regular(3, 2, 3), MIXED])
def test_the_mean_of_first_hits_is_the_hitting_time(graph):
    policy = random_policy(graph, 2, scale=0.3)
    for target in range(graph.branches):
        hits = first_hits(policy, horizon=20000, target=target)
        assert hits.sum() == pytest.approx(1)
        assert hits @ np.arange(20001) == pytest.approx(hitting_time(policy, target=target).steps, rel=1e-8)


@pytest.mark.parametrize("graph", [regular(3, 2, 3), MIXED])
def test_the_reduced_chain_is_the_full_chain(graph):
    policy = random_policy(graph, 5)
    horizons = [1, 7, 30, 200]
    assert hit_within(policy, horizons) == pytest.approx(table_hit_within(spread_policy(policy), horizons), rel=1e-12)
    for target in range(graph.branches):
        reduced = hit_within(policy, horizons, target=target)
        assert reduced == pytest.approx(table_hit_within(spread_policy(policy), horizons, target=target), rel=1e-12)
        values = solve_horizon(spread_policy(policy), horizon=30)
        assert values.objective[target] == pytest.approx(reduced[2])


def test_the_size_grows_with_depth_alone():
    small, large = (reduced_chain(uniform_policy(regular(w, 7, lanes))) for w, lanes in ((2, 1), (500, 300)))
    assert len(small.states) == len(large.states) == 1 + 2 * (4 * 7 + 1)
    sums = np.asarray(large.matrix().sum(axis=1)).ravel()
    sums[large.hit] += 1
    assert sums == pytest.approx(np.ones(59))


@pytest.mark.parametrize("horizon", [0, -3])
def test_a_horizon_of_zero_is_refused(horizon):
    for call in (
        lambda: hit_within(uniform_policy(GRAPH), [5, horizon]),
        lambda: first_hits(uniform_policy(GRAPH), horizon=horizon),
        lambda: solve_horizon(spread_policy(uniform_policy(GRAPH)), horizon=horizon),
        lambda: table_hit_within(spread_policy(uniform_policy(GRAPH)), [horizon]),
    ):
        with pytest.raises(TaskError, match=f"horizon = {horizon}"):
            call()


def test_targets_outside_are_refused():
    with pytest.raises(TaskError, match="target = 6"):
        hit_within(uniform_policy(GRAPH), [5], target=6)
    with pytest.raises(TaskError, match="profile"):
        reduced_chain(uniform_policy(GRAPH), profile=1)


def test_no_horizons_no_chances():
    assert hit_within(uniform_policy(GRAPH), []) == ()
    assert hit_within(uniform_policy(PathStar(depths=(1,), lanes=(1,))), [1]) == (0.0,)
