from fractions import Fraction

import numpy as np
import pytest
from lab_examples import MIXED, dense, random_policy, regular

from forkpoint.errors import TaskError
from forkpoint.seeds import Key
from forkpoint.theory.classes import golden_policy, optimal_policy, row_of, uniform_policy
from forkpoint.theory.flows import noisy_logits
from forkpoint.theory.gradients import (
    class_gradient,
    imitation_gradient,
    imitation_loss,
    rational_gradient,
    table_gradient,
)
from forkpoint.theory.graphs import ROWS, edge_states
from forkpoint.theory.horizon import solve_horizon
from forkpoint.theory.tables import cyclic_policy, softmax_policy, solve_table, spread_policy

SMALL = regular(2, 2, 2)


def objective(policy, horizon, beta):
    """J by dense matrix powers, target by target: P(hit within T) - beta E[edges walked, at most T]."""
    states, matrix, total = edge_states(policy.graph), dense(policy), 0.0
    for leaf in states.targets.tolist():
        alive = np.arange(states.count) != leaf
        inner, mass = matrix[np.ix_(alive, alive)], np.eye(alive.sum())[0]
        total -= beta
        if horizon is None:
            total += 1 - beta * np.linalg.solve(np.eye(alive.sum()) - inner, np.ones(alive.sum()))[0]
            continue
        for _ in range(horizon - 1):
            total -= beta * mass.sum()
            mass = mass @ inner
        total += 1 - mass.sum()
    return total / policy.graph.branches


@pytest.mark.parametrize(("horizon", "beta"), [(None, 1.0), (None, 0.3), (6, 0.0), (13, 0.02), (40, 0.5)])
@pytest.mark.parametrize("fork", ["frozen", "trained"])
def test_the_policy_gradient_is_the_slope_of_the_objective(horizon, beta, fork):
    logits = noisy_logits(SMALL, scale=0.7, key=Key.root(3))
    found = table_gradient(softmax_policy(SMALL, logits), horizon=horizon, beta=beta, fork=fork)
    frozen = edge_states(SMALL).frozen_rows
    for entry in range(len(logits)):
        if fork == "frozen" and frozen[entry]:
            assert found[entry] == 0
            continue
        up, down = logits.copy(), logits.copy()
        up[entry] += 1e-4
        down[entry] -= 1e-4
        ends = [objective(softmax_policy(SMALL, shifted), horizon, beta) for shifted in (up, down)]
        assert found[entry] == pytest.approx((ends[0] - ends[1]) / 2e-4, rel=1e-5, abs=1e-8)


def test_a_long_horizon_is_no_horizon():
    policy = softmax_policy(SMALL, noisy_logits(SMALL, scale=0.5, key=Key.root(4)))
    far = table_gradient(policy, horizon=12000, beta=1.0, fork="trained")
    assert far == pytest.approx(table_gradient(policy, fork="trained"), rel=1e-7, abs=1e-9)


def test_advantages_with_a_horizon_average_to_nothing_and_add_up_to_the_signal():
    policy = softmax_policy(MIXED, noisy_logits(MIXED, scale=0.5, key=Key.root(8)))
    states, horizon, beta = edge_states(MIXED), 90, 0.03
    timed = solve_horizon(policy, horizon=horizon, beta=beta)
    total = np.zeros(len(states.successors))
    for left in range(1, horizon):
        advantages = timed.advantages(policy, beta, left)
        means = np.add.reduceat(policy.probabilities[:, None] * advantages, states.offsets[:-1], axis=0)
        assert np.abs(means).max() < 1e-12
        total += (timed.visits[left][states.sources] * advantages).mean(axis=1)
    assert timed.signal(policy, beta) == pytest.approx(total, rel=1e-9, abs=1e-12)


def test_the_horizon_counts_the_first_edge():
    policy = spread_policy(uniform_policy(regular(3, 1, 2)))
    assert np.all(solve_horizon(policy, horizon=3).objective == 0)
    assert np.all(solve_horizon(policy, horizon=4).objective > 0)
    assert np.all(table_gradient(policy, horizon=3, beta=0.0) == 0)
    assert solve_horizon(policy, horizon=1, beta=0.25).objective == pytest.approx([-0.25] * 3)


@pytest.mark.parametrize("graph", [regular(3, 3, 2), MIXED])
def test_class_signals_are_sums_of_table_entries(graph):
    """Per class, the entries of the desired moves sum to G p (1 - p) over the branches of the profile (Lemma 1)."""
    policy = random_policy(graph, 6)
    states, entries = edge_states(graph), table_gradient(spread_policy(policy))
    totals = [np.zeros((4, shape.depth)) for shape in graph.profiles]
    for entry, (source, move) in enumerate(zip(states.sources, states.successors, strict=True)):
        label = states.labels[source]
        if label.kind in ROWS and states.desired(label, states.labels[move]):
            totals[graph.profile_of(label.branch)][row_of(label.kind), label.depth - 1] += entries[entry]
    gradient = class_gradient(policy)
    for index, shape in enumerate(graph.profiles):
        p = policy.table(index)
        assert totals[index] == pytest.approx(gradient.sizes[index] * p * (1 - p) * shape.count, rel=1e-9)


INTERVALS = {
    (2, 15): (range(1, 15), range(2, 16)),
    (3, 15): (range(2, 15), range(3, 16)),
    (5, 8): (range(5, 7), range(6, 8)),
    (5, 15): (range(4, 15), range(5, 15)),
    (8, 15): (range(7, 13), range(8, 14)),
    (15, 25): (range(17, 19), range(17, 20)),
    (15, 40): (range(13, 37), range(14, 38)),
    (15, 15): ((), ()),
}


@pytest.mark.parametrize(("w", "k"), INTERVALS)
def test_the_confused_middle_exists_at_depth_and_not_at_the_headline(w, k):
    """Lemma 2 at t = 0: a and c always improve; b and d of middle depth may get worse first."""
    gradient = class_gradient(uniform_policy(regular(w, k, 5)))
    right, left = INTERVALS[w, k]
    assert gradient.negative_depths(0) == gradient.negative_depths(2) == ()
    assert (gradient.negative_depths(1), gradient.negative_depths(3)) == (tuple(right), tuple(left))


def test_the_signal_at_the_headline_graph():
    """The sum over the 15 branches runs from 500 to 2654 at R-."""
    signal = 15 * class_gradient(uniform_policy(regular(15, 15, 5))).sizes[0][1]
    assert (round(signal.min()), round(signal.max())) == (500, 2654)


@pytest.mark.parametrize("make", [uniform_policy, golden_policy, optimal_policy])
def test_signals_beyond_floats_keep_their_signs(make):
    small, large = (class_gradient(make(regular(4, k, 9))) for k in (60, 900))
    assert all(np.isfinite(table).all() for table in (*large.sizes, *large.log_sizes, *large.signs))
    assert set(np.unique(large.signs[0])) <= {-1.0, 0.0, 1.0}
    assert large.signs[0][2, 0] == small.signs[0][2, 0]


@pytest.mark.parametrize("graph", [regular(3, 15, 5), regular(15, 15, 5), MIXED, regular(1, 3, 2)])
@pytest.mark.parametrize("make", [uniform_policy, golden_policy, optimal_policy])
def test_floats_logs_and_fractions_agree(graph, make):
    exact = rational_gradient(make(graph, Fraction))
    floats, logs = class_gradient(make(graph)), class_gradient(make(graph), logs=True)
    for index in range(len(graph.profiles)):
        oracle = np.array(exact[index], dtype=float)
        assert np.array_equal(floats.signs[index], logs.signs[index])
        resolved = floats.signs[index] != 0
        assert np.array_equal(floats.signs[index][resolved], np.sign(oracle)[resolved])
        # What counts as cancelled is far below the largest signal; elsewhere the digits that are left are right.
        top = np.abs(oracle).max()
        for found in (floats, logs):
            assert found.sizes[index][resolved] == pytest.approx(oracle[resolved], rel=1e-9, abs=1e-11 * top)
            assert np.abs(oracle[~resolved]).max(initial=0) <= 1e-10 * top


def test_signals_grow_as_the_excursions_do():
    deep, shallow = (class_gradient(golden_policy(regular(3, k, 100))) for k in (170, 100))
    assert deep.log_sizes[0].max() > 750 > 500 > shallow.log_sizes[0].max()
    assert deep.log_sizes[0][0, -1] - shallow.log_sizes[0][0, -1] == pytest.approx(70 * np.log(101**2 / 100), rel=1e-9)


def test_the_imitation_gradient_is_the_slope_of_its_loss():
    teacher = spread_policy(random_policy(SMALL, 1))
    logits = noisy_logits(SMALL, scale=0.5, key=Key.root(9))
    visits = solve_table(teacher).visits.mean(axis=1)
    found = imitation_gradient(softmax_policy(SMALL, logits), teacher)
    for entry in range(0, len(logits), 3):
        up, down = logits.copy(), logits.copy()
        up[entry] += 1e-4
        down[entry] -= 1e-4
        ends = [imitation_loss(softmax_policy(SMALL, shifted), teacher, visits) for shifted in (up, down)]
        assert found[entry] == pytest.approx(-(ends[0] - ends[1]) / 2e-4, rel=1e-5, abs=1e-8)


def test_the_cyclic_order_is_stationary_and_the_uniform_fork_is_not_once_broken():
    assert np.abs(table_gradient(cyclic_policy(regular(3, 2, 2)), fork="trained")).max() == 0
    policy = spread_policy(uniform_policy(regular(3, 2, 2)))
    states = edge_states(policy.graph)
    fork = table_gradient(policy, fork="trained")[states.frozen_rows]
    assert np.abs(fork[:3]).max() < 1e-12  # the start is symmetric
    assert np.abs(fork[3:]).max() > 1  # going back into the branch just left is worse than into another


def test_wrong_settings_are_refused():
    policy = spread_policy(uniform_policy(SMALL))
    with pytest.raises(TaskError, match="horizon = 0"):
        table_gradient(policy, horizon=0)
    with pytest.raises(TaskError, match="exceeds memory"):
        table_gradient(policy, horizon=10**9)
    with pytest.raises(TaskError, match="fork = 'free'"):
        table_gradient(policy, fork="free")
    with pytest.raises(TaskError, match="another graph"):
        imitation_gradient(policy, spread_policy(uniform_policy(MIXED)))
