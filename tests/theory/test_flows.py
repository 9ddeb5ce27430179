import numpy as np
import pytest
from lab_examples import MIXED, random_policy, regular
from scipy.special import wrightomega

from forkpoint.errors import TaskError
from forkpoint.seeds import Key
from forkpoint.theory.classes import (
    golden_policy,
    imitation_limit,
    optimal_policy,
    policy_from_gaps,
    row_of,
    uniform_policy,
    zero_gaps,
)
from forkpoint.theory.flows import (
    distillation_flow,
    mean_visits,
    noisy_logits,
    rlvr_flow,
    rlvr_rates,
    sft_flow,
    sign_flow,
    supervised_states,
    table_flow,
)
from forkpoint.theory.gradients import imitation_gradient, table_gradient
from forkpoint.theory.graphs import ROWS, PathStar, edge_states
from forkpoint.theory.solving import hitting_time
from forkpoint.theory.tables import cyclic_policy, solve_table, spread_policy


def gap_rates(graph, entries):
    """dD/dt of every class from the flow of the full table: a desired logit's rate minus an undesired one's."""
    states = edge_states(graph)
    rates = [np.full((4, shape.depth), np.nan) for shape in graph.profiles]
    for state, label in enumerate(states.labels):
        if label.kind in ROWS:
            rows = range(states.offsets[state], states.offsets[state + 1])
            wanted = {states.desired(label, states.labels[states.successors[i]]): entries[i] for i in rows}
            rates[graph.profile_of(label.branch)][row_of(label.kind), label.depth - 1] = wanted[True] - wanted[False]
    return rates


@pytest.mark.parametrize(
    ("graph", "targets"),
    [
        ((15, 15, 5), {0: 50142, 100: 20240, 200: 8952, 300: 4178, 400: 2173, 500: 1380, 600: 1078, 800: 924,
                       1000: 903, 1200: 900.4}),
        ((6, 6, 5), {0: 3338, 100: 1413, 200: 675, 300: 361, 400: 228, 500: 176, 600: 156, 800: 145.6, 1200: 144.0}),
    ],
)  # fmt: skip
def test_sign_flow_step_by_step(graph, targets):
    flow = sign_flow(regular(*graph), step=0.01, iterations=1200, every=100)
    steps = dict(zip(flow.times.tolist(), np.exp(flow.log_steps), strict=True))
    for iteration, expected in targets.items():
        assert steps[iteration] == pytest.approx(expected, abs=0.06 if isinstance(expected, float) else 0.6)
    if graph == (15, 15, 5):
        assert [round(steps[i], 1) for i in (0, 1200)] == [50142.0, 900.4]
        assert round(steps[600]) == 1078


def test_sign_flow_shows_the_confused_middle_where_it_exists():
    flow = sign_flow(regular(2, 15, 5), step=0.01, iterations=400, every=1)
    b, d = (np.array([gaps[0][row][6] for gaps in flow.gaps]) for row in (1, 3))
    assert b.min() < 0 < b[-1]
    assert d.min() < 0 < d[-1]
    tables = [flow.policy(i).table() for i in (0, 2)]
    assert (round(tables[1][1][6], 4), round(tables[1][3][6], 4)) == (0.8305, 0.1639)
    headline = sign_flow(regular(15, 15, 5), step=0.01, iterations=50, every=1)
    assert all((gaps[0] >= 0).all() for gaps in headline.gaps)


@pytest.mark.parametrize("graph", [regular(3, 3, 2), MIXED])
def test_class_flows_are_the_flows_of_the_full_table(graph):
    policy = random_policy(graph, 3)
    for found, expected in zip(
        gap_rates(graph, table_gradient(spread_policy(policy))), rlvr_rates(policy), strict=True
    ):
        assert found == pytest.approx(expected, rel=1e-8)
    teacher = random_policy(graph, 4)
    table = gap_rates(graph, imitation_gradient(spread_policy(policy), spread_policy(teacher)))
    gaps = [np.log(policy.table(i) / (1 - policy.table(i))) for i in range(len(graph.profiles))]
    gaps = [g - np.array([[-1], [1], [1], [-1]]) * np.log(s.lanes) for g, s in zip(gaps, graph.profiles, strict=True)]
    flow = distillation_flow(graph, teacher=teacher, times=[0, 1e-5], start=tuple(gaps))
    for found, first, second in zip(table, *flow.gaps, strict=True):
        assert (second - first) / 1e-5 == pytest.approx(found, rel=1e-3, abs=1e-4)


def test_gradient_flow_reaches_the_optimum():
    flow = rlvr_flow(regular(6, 6, 5), times=[0, 0.1, 1, 10, 1000])
    steps = np.exp(flow.log_steps)
    assert steps[0] == pytest.approx(3338.4)
    assert np.all(np.diff(steps) < 0)
    assert steps[-1] == pytest.approx(144, rel=0.003)
    slow = rlvr_flow(regular(6, 6, 5), times=[0, 100], beta=0.1)
    assert slow.log_steps[-1] == pytest.approx(flow.log_steps[3], rel=1e-6)


def test_imitation_flow_has_a_closed_form():
    """For dz/dt = r / (1 + e^z), z + e^z = r t + const, so e^z is Wright's omega function."""
    graph, time = regular(3, 2, 4), 40.0
    flow = sft_flow(graph, times=[0, time])
    rates = np.array([[1.25 / (3 * 4)], [0], [1.25 / 3], [0]])
    start = np.log(4) * np.array([[-1], [1], [1], [-1]])
    z = np.log(wrightomega(rates * time + start + np.exp(start)).real)
    assert flow.gaps[1][0] == pytest.approx(np.where(rates > 0, z - start, 0) * np.ones((4, 2)), rel=1e-6)


def test_imitation_leaves_backward_states_where_they_were():
    """Theorem 2: the hitting time first falls, then rises to that of the converged policy, far above the start."""
    graph = regular(6, 6, 5)
    flow = sft_flow(graph, times=[0, 1, 1e3, 1e7])
    assert all((gaps[0][[1, 3]] == 0).all() for gaps in flow.gaps)
    assert np.exp(flow.log_steps[-1]) == pytest.approx(hitting_time(golden_policy(graph)).steps, rel=1e-4)
    assert flow.log_steps[-1] > flow.log_steps[0] > flow.log_steps[1]


def test_supervising_all_backward_states_is_enough():
    graph = PathStar(depths=(3, 2), lanes=(2, 3))
    masks = [np.ones((2, shape.depth), dtype=bool) for shape in graph.profiles]
    flow = sft_flow(graph, times=[0, 1e7], supervised=masks)
    assert np.exp(flow.log_steps[-1]) == pytest.approx(hitting_time(optimal_policy(graph)).steps, rel=1e-4)
    some = [np.zeros_like(mask) for mask in masks]
    some[0][1, 2] = True
    flow = sft_flow(graph, times=[0, 1e8], supervised=some)
    assert np.exp(flow.log_steps[-1]) == pytest.approx(hitting_time(imitation_limit(graph, some)).steps, rel=1e-4)


def test_the_sweep_of_supervised_backward_states():
    """Figure 5, right: the mean over 100 draws falls roughly exponentially in the share p."""
    graph, means = regular(6, 6, 5), []
    for tenth in (0, 2, 5, 9, 10):
        masks = [supervised_states(graph, fraction=tenth / 10, key=Key.root(draw)) for draw in range(100)]
        assert all(mask[0].sum() == np.floor(1.2 * tenth + 0.5) for mask in masks)
        means.append(np.mean([hitting_time(imitation_limit(graph, mask)).steps for mask in masks]))
    assert means == pytest.approx([2.966e6, 7.2e5, 2.8e4, 342, 144], rel=0.6)
    assert means[0] == pytest.approx(2966044.19, rel=1e-8)
    assert means[-1] == pytest.approx(144)


def test_distillation_restores_the_optimum():
    """Theorem 5: the pretrained policy, trained by imitation on walks of the converged RLVR policy."""
    graph = regular(6, 6, 5)
    flow = distillation_flow(graph, teacher=optimal_policy(graph), times=[0, 1e2, 1e3, 1e4])
    steps = np.exp(flow.log_steps)
    assert steps[0] == pytest.approx(3338.4)
    assert steps[2] <= 1.1 * 144
    assert steps[3] == pytest.approx(144, rel=5e-3)


def test_mean_visits_of_walks_agree_with_the_table():
    policy = random_policy(MIXED, 12)
    states, visits = edge_states(MIXED), solve_table(spread_policy(policy)).visits.mean(axis=1)
    totals = [np.zeros((4, shape.depth)) for shape in MIXED.profiles]
    for state, label in enumerate(states.labels):
        if label.kind in ROWS:
            totals[MIXED.profile_of(label.branch)][row_of(label.kind), label.depth - 1] += visits[state]
    for found, total, shape in zip(mean_visits(policy), totals, MIXED.profiles, strict=True):
        assert found == pytest.approx(total / shape.count, rel=1e-10)


@pytest.mark.parametrize(("rule", "step"), [("normalized", 0.5), ("sign", 0.05)])
def test_a_trained_fork_learns_a_circular_order(rule, step):
    graph = regular(3, 1, 2)
    logits = noisy_logits(graph, scale=0.1, key=Key.root(0))
    flow = table_flow(graph, logits=logits, rule=rule, step=step, iterations=200, every=50, fork="trained")
    optimum = solve_table(cyclic_policy(graph)).steps.mean()
    assert flow.iterations == (0, 50, 100, 150, 200)
    assert flow.steps[0] == pytest.approx(hitting_time(uniform_policy(graph)).steps, rel=0.1)
    assert optimum * (1 - 1e-9) <= flow.steps[-1] <= optimum * 1.001
    frozen = table_flow(graph, logits=logits * 0, rule=rule, step=step, iterations=200, every=200)
    assert frozen.steps[-1] == pytest.approx(hitting_time(optimal_policy(graph)).steps, rel=1e-3)


def test_the_plain_table_flow_follows_the_class_flow():
    graph = regular(3, 2, 2)
    flow = table_flow(graph, logits=np.zeros(len(edge_states(graph).successors)), rule="gradient", step=1e-4,
                      iterations=200, every=200)  # fmt: skip
    assert np.log(flow.steps[-1]) == pytest.approx(rlvr_flow(graph, times=[0, 0.02]).log_steps[-1], rel=1e-3)


def test_wrong_settings_are_refused():
    graph = regular(2, 1, 2)
    for call, says in [
        (lambda: sign_flow(graph, step=0), "positive step"),
        (lambda: rlvr_flow(graph, times=[1, 1]), "ascend"),
        (lambda: rlvr_flow(graph, times=[]), "ascend"),
        (lambda: sft_flow(graph, times=[-1, 1]), "ascend"),
        (lambda: distillation_flow(graph, teacher=optimal_policy(MIXED), times=[0, 1]), "another graph"),
        (lambda: supervised_states(graph, fraction=1.1, key=Key.root(0)), "fraction"),
        (lambda: imitation_limit(graph, [np.ones((2, 3), dtype=bool)]), "shapes"),
        (lambda: table_flow(graph, logits=np.zeros(3)), "another graph"),
        (lambda: table_flow(graph, logits=noisy_logits(graph, scale=1, key=Key.root(0)), rule="adam"), "rule = 'adam'"),
    ]:
        with pytest.raises(TaskError, match=says):
            call()


def test_flows_start_where_they_are_told():
    graph = regular(2, 2, 2)
    start = tuple(gap + 0.5 for gap in zero_gaps(graph))
    for flow in (rlvr_flow(graph, times=[0.0], start=start), sign_flow(graph, iterations=1, start=start)):
        assert flow.log_steps[0] == pytest.approx(np.log(hitting_time(policy_from_gaps(graph, start)).steps))
