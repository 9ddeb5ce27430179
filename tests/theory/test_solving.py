import math
import time
from fractions import Fraction

import numpy as np
import pytest
from lab_examples import MIXED, random_fractions, random_graph, random_policy, regular

from forkpoint.errors import TaskError
from forkpoint.seeds import Key
from forkpoint.theory.chains import reduced_chain
from forkpoint.theory.classes import (
    Diamond,
    golden_policy,
    imitation_limit,
    in_floats,
    in_fractions,
    in_logs,
    optimal_policy,
    policy_from_gaps,
    uniform_policy,
    zero_gaps,
)
from forkpoint.theory.graphs import ROWS, Kind, PathStar
from forkpoint.theory.logarithms import LogNumber
from forkpoint.theory.rationals import rational_steps, rational_values, rational_visits
from forkpoint.theory.solving import excursions, hitting_time, mean_steps, solve_classes, target_steps


@pytest.mark.parametrize(
    ("graph", "uniform", "optimum"),
    [
        ((15, 15, 5), 50142.0, 900.0),
        ((10, 10, 5), 15068.0, 400.0),
        ((6, 6, 5), 3338.4, 144.0),
        ((4, 4, 3), 754.7, 64.0),
        ((3, 3, 5), 438.0, 36.0),
    ],
)
def test_uniform_and_optimal_hitting_times(graph, uniform, optimum):
    assert round(hitting_time(uniform_policy(regular(*graph))).steps, 1) == uniform
    assert hitting_time(optimal_policy(regular(*graph))).steps == pytest.approx(optimum, rel=1e-12)
    w, k, _ = graph
    assert optimum == 4 * w * k + 2 * w - 2 * k


SFT = {
    1: [74, 316, 1278, 5120, 20482, 81924],
    2: [89, 428.5, 1949, 8786, 39542, 177940],
    3: [107, 607, 3264, 17425, 92942, 495689],
    4: [126, 832, 5228, 32696, 204359, 1277245],
    5: [146, 1098, 7943, 57214, 411951, 2966044],
}


@pytest.mark.parametrize(("lanes", "depth"), [(lanes, depth) for lanes in SFT for depth in range(1, 7)])
def test_converged_imitation_of_golden_paths(lanes, depth):
    steps = hitting_time(golden_policy(regular(6, depth, lanes))).steps
    assert steps == pytest.approx(SFT[lanes][depth - 1], abs=0.5 + 1e-9)


def test_deep_imitation_to_all_digits():
    assert hitting_time(golden_policy(regular(15, 15, 5))).steps == pytest.approx(4.31844824909801e14, rel=1e-13)
    assert hitting_time(golden_policy(regular(5, 9, 2))).steps == pytest.approx(12971679.015625, rel=1e-13)
    assert mean_steps(golden_policy(regular(5, 9, 2), Fraction)) == Fraction(12971679015625, 10**6)
    assert float(mean_steps(golden_policy(regular(15, 15, 5), Fraction))) == pytest.approx(4.31844824909801e14, 1e-14)


def exit_time(depth, lanes):
    """g_{K+1} of Theorem 4, by its printed recurrence: f_i from g_i, then g_{i+1} from f_i."""
    g = Fraction(1)
    for i in range(1, depth + 1):
        f = Fraction(lanes + 1, lanes) * g + Fraction(2 * i - 1, lanes) + 1
        g = (lanes + 1) * f + (2 * (i + 1) - 2) * lanes + 1
    return g


@pytest.mark.parametrize("lanes", [1, 2, 5])
def test_imitation_grows_at_the_rate_of_theorem_4(lanes):
    rate = Fraction((lanes + 1) ** 2, lanes)
    deep, deeper = (excursions(golden_policy(regular(2, k, lanes), Fraction), 0)[0] for k in (30, 31))
    assert float(deeper / deep) == pytest.approx(float(rate), rel=1e-12)
    assert float(exit_time(31, lanes) / exit_time(30, lanes)) == pytest.approx(float(rate), rel=1e-12)


@pytest.mark.parametrize("graph", [(2, 1, 1), (15, 15, 5), (6, 6, 5), (3, 40, 7)])
def test_the_uniform_walk_is_an_electric_network(graph):
    w, k, lanes = graph
    edges, resistance = k * lanes + k + 1, Fraction(k * lanes + lanes + k, lanes)
    commute = 2 * w * edges * resistance
    expected = commute - edges * resistance + 1
    assert mean_steps(uniform_policy(regular(*graph), Fraction)) == expected


def test_branches_that_differ():
    graph = PathStar(depths=(6, 5, 4, 3, 3), lanes=(5,) * 5)
    assert mean_steps(optimal_policy(graph, Fraction)) == Fraction(856, 10)
    assert hitting_time(optimal_policy(graph)).steps == pytest.approx(85.6, rel=1e-12)
    other_lanes = PathStar(depths=(6, 5, 4, 3, 3), lanes=(1, 2, 3, 4, 5))
    assert hitting_time(optimal_policy(other_lanes)).steps == pytest.approx(85.6, rel=1e-12)


def test_supervising_one_kind_of_backward_state_only():
    mask = np.array([[False] * 6, [True] * 6])
    graph = regular(6, 6, 5)
    assert hitting_time(imitation_limit(graph, [mask])).steps == pytest.approx(242.5, abs=0.05)
    assert hitting_time(imitation_limit(graph, [~mask])).steps == pytest.approx(1.12e6, rel=1e-3)
    assert hitting_time(imitation_limit(graph, [mask | True])).steps == pytest.approx(144)


def test_floats_equal_fractions_on_two_hundred_random_graphs():
    draw = Key.root(11).generator()
    for trial in range(200):
        graph = random_graph(draw, deepest=40 if trial % 20 == 0 else 7)
        exact = random_fractions(graph, draw)
        profile = int(draw.integers(len(graph.profiles)))
        oracle = rational_steps(exact, profile=profile)
        assert target_steps(exact, profile) == oracle
        assert target_steps(in_floats(exact), profile) == pytest.approx(float(oracle), rel=1e-10)
        assert target_steps(in_logs(in_floats(exact)), profile).log == pytest.approx(math.log(oracle), rel=1e-11)


@pytest.mark.parametrize("graph", [regular(3, 4, 2), MIXED, regular(1, 3, 2)])
def test_values_visits_and_regrets_equal_fractions(graph):
    exact = random_fractions(graph, Key.root(3).generator())
    for profile in range(len(graph.profiles)):
        chain = reduced_chain(exact, profile=profile)
        values, visits = rational_values(exact, profile=profile), rational_visits(exact, profile=profile)
        index = {state: i for i, state in enumerate(chain.states)}
        solution = solve_classes(exact, profile=profile)
        assert (solution.fork_value, solution.fork_visits) == (values[0], visits[0])
        for state, i in index.items():
            if state.kind not in ROWS:
                continue
            branch = solution.target if state.is_target else solution.others[state.profile]
            row, j = ROWS.index(state.kind), state.depth
            assert branch.values[row][j - 1] == values[i]
            count = graph.profiles[state.profile].count - (state.profile == profile)
            assert branch.visits[row][j - 1] * (1 if state.is_target else count) == visits[i]
            desired, undesired = chain.rows[i]  # the desired class or the other, by kind
            onward, back = max(desired, undesired), min(desired, undesired)
            wanted, other = (onward, back) if state.kind is Kind.LEFT_IN else (desired, undesired)
            difference = values[other] - values[wanted]
            assert branch.sign(row) * branch.regrets[row][j - 1] == difference
            sign, good, bad = branch.advantages(exact.diamonds[state.profile], row)
            mean = sum(p * values[m] for m, p in chain.rows[i].items())
            assert (sign * good[j - 1], -sign * bad[j - 1]) == (mean - values[wanted], mean - values[other])


def test_values_beyond_floats_are_given_in_logs():
    before = time.perf_counter()
    found = hitting_time(golden_policy(regular(1000, 1000, 1000)))
    assert time.perf_counter() - before < 2
    assert found.steps is None
    assert found.log_steps == pytest.approx(1000 * math.log(1001**2 / 1000) + math.log(999), rel=1e-3)
    assert math.isfinite(found.log_steps)
    solution = solve_classes(in_logs(golden_policy(regular(9, 900, 30))))
    assert all(math.isfinite(x.log) for row in solution.others[0].values for x in row)
    exact = mean_steps(golden_policy(regular(9, 250, 30), Fraction))
    digits = exact.numerator.bit_length() - exact.denominator.bit_length()
    found = hitting_time(golden_policy(regular(9, 250, 30)))
    assert found.steps is None
    scaled = math.log(exact / 2**digits) + digits * math.log(2)
    assert found.log_steps == pytest.approx(scaled, rel=1e-12)


def test_one_hitting_time_takes_less_than_a_millisecond():
    policy = uniform_policy(regular(15, 15, 5))
    times = []
    for _ in range(50):
        before = time.perf_counter()
        hitting_time(policy)
        times.append(time.perf_counter() - before)
    assert min(times) < 1e-3


def test_gaps_follow_the_logistic_formula():
    graph = regular(2, 3, 4)
    for row, odds in enumerate((1 / 4, 4, 4, 1 / 4)):
        table = policy_from_gaps(graph, [np.full((4, 3), 0.7)]).table()
        assert table[row] == pytest.approx(odds * math.exp(0.7) / (1 + odds * math.exp(0.7)))
    assert np.allclose(policy_from_gaps(graph, zero_gaps(graph)).table(), uniform_policy(graph).table(), rtol=1e-15)


@pytest.mark.parametrize("name", ["a", "b", "c", "d"])
def test_a_walk_that_may_never_hit_is_refused(name):
    graph = regular(2, 2, 2)
    policy = uniform_policy(graph)
    stuck = Diamond(*policy.diamonds[0][0])._replace(**{name: 0.0, f"not_{name}": 1.0})
    broken = type(policy)(graph=graph, diamonds=((stuck, stuck),), number=float)
    with pytest.raises(TaskError, match="not finite"):
        hitting_time(broken)
    with pytest.raises(TaskError, match="not finite"):
        solve_classes(broken)


def test_policies_of_another_graph_are_refused():
    with pytest.raises(TaskError, match="another graph"):
        policy_from_gaps(regular(2, 3, 2), [np.zeros((4, 2))])
    with pytest.raises(TaskError, match="another graph"):
        type(uniform_policy(MIXED))(graph=MIXED, diamonds=uniform_policy(regular(2, 3, 2)).diamonds, number=float)
    with pytest.raises(TaskError, match="finite"):
        policy_from_gaps(regular(2, 1, 2), [np.full((4, 1), np.nan)])
    with pytest.raises(TaskError, match="target = 9"):
        hitting_time(uniform_policy(MIXED), target=9)


def test_rounding_to_fractions_keeps_the_complement_exact():
    policy = random_policy(MIXED, 4)
    rounded = in_fractions(policy)
    assert all(d.a + d.not_a == 1 and d.d + d.not_d == 1 for row in rounded.diamonds for d in row)
    assert float(mean_steps(rounded)) == pytest.approx(hitting_time(policy).steps, rel=1e-3)


def test_log_numbers_add_multiply_and_divide():
    a, b, zero = LogNumber.of(3.0), LogNumber.of(5.0), LogNumber.of(0)
    assert math.exp((a + b).log) == pytest.approx(8)
    assert math.exp((a * b).log) == pytest.approx(15)
    assert math.exp((a / b).log) == pytest.approx(0.6)
    assert (zero + zero).log == -math.inf
    assert (zero + a).log == a.log
    with pytest.raises(ZeroDivisionError):
        a / zero
