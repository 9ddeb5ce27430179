"""The numbers behind the figures of the lab (arXiv 2606.22938), all exact unless named otherwise; torch-free.

Each function gives one figure's numbers as plain lists, which go into `values.json` as they are.  Steps are edges
walked, the first included; gaps are in nats; lines of the theory are under `lines`.
"""

import json
import math
from collections.abc import Sequence
from importlib import resources
from typing import Any, TypeAlias

import numpy as np

from forkpoint.errors import TaskError
from forkpoint.seeds import Key
from forkpoint.theory.chains import hit_within
from forkpoint.theory.classes import golden_policy, imitation_limit, optimal_policy, uniform_policy
from forkpoint.theory.flows import (
    distillation_flow,
    noisy_logits,
    sft_flow,
    sign_flow,
    supervised_states,
    table_flow,
)
from forkpoint.theory.gradients import class_gradient
from forkpoint.theory.graphs import MOST_STATES, PathStar, edge_states
from forkpoint.theory.search import search_result
from forkpoint.theory.simulation import simulate
from forkpoint.theory.solving import hitting_time
from forkpoint.theory.tables import spread_policy, trained_optimum

Values: TypeAlias = dict[str, Any]

HEADLINE = PathStar.regular(branches=15, depth=15, lanes=5)
"""The graph of the paper's figures 3 and 4."""
SMALL = PathStar.regular(branches=6, depth=6, lanes=5)
"""The graph of its figures 5 to 7."""
UNEQUAL = PathStar(depths=(6, 5, 4, 3, 3), lanes=(6, 5, 4, 3, 2))
"""The depths of its figure 8; its lane counts are not printed."""
STEP = 0.01
"""Step of the sign flows, nats, as in the paper."""


SETTLED = 2800
"""Iterations after which the sign flow of `UNEQUAL` moves by less than 1e-4 steps."""


def shape_of(graph: PathStar) -> Values:
    """The graph as three lists."""
    return {"branches": graph.branches, "depths": list(graph.depths), "lanes": list(graph.lanes)}


def theory_lines(graph: PathStar) -> dict[str, float | None]:
    """The hitting times of the named policies; None where a float cannot hold one."""
    return {
        "uniform": hitting_time(uniform_policy(graph)).steps,
        "golden": hitting_time(golden_policy(graph)).steps,
        "optimal": hitting_time(optimal_policy(graph)).steps,
        "optimal, fork trained": trained_optimum(graph),
        "paper": 4.0 * sum(graph.depths),
    }


def sign_curve(graph: PathStar, *, iterations: int = 1200, every: int = 5) -> Values:
    """RLVR by sign gradient flow: the hitting time, and the four probabilities by depth of the first profile."""
    flow = sign_flow(graph, step=STEP, iterations=iterations, every=every)
    tables = np.array([flow.policy(index).table() for index in range(len(flow.times))])
    return {
        "graph": shape_of(graph),
        "exactness": "exact",
        "step": STEP,
        "iterations": flow.times.tolist(),
        "log_hitting_time": flow.log_steps.tolist(),
        "probabilities": {name: tables[:, row].tolist() for row, name in enumerate("abcd")},
        "lines": theory_lines(graph),
    }


def unequal_curve(graph: PathStar = UNEQUAL) -> Values:
    """The same where branches differ, with the limit of the flow.

    The fork is frozen, but a walk that turns back on the first edge of a branch draws its branch anew.  So c stays
    below 1 at depth 1 of deep branches, and the limit lies below the value of a = b = c = d = 1.
    """
    end = sign_flow(graph, step=STEP, iterations=SETTLED, every=SETTLED)
    return {
        **sign_curve(graph, iterations=2400, every=10),
        "limit": math.exp(end.log_steps[-1]),
        "entry_probabilities": [end.policy(-1).table(index)[2, 0] for index in range(len(graph.profiles))],
    }


def imitation_by_depth(branches: int = 6, deepest: int = 6, most_lanes: int = 5) -> Values:
    """Converged SFT on golden paths against depth, for each number of lanes; growth (L+1)^2/L per diamond."""
    rows = {}
    for lanes in range(1, most_lanes + 1):
        graphs = [PathStar.regular(branches=branches, depth=k, lanes=lanes) for k in range(1, deepest + 1)]
        rows[str(lanes)] = [hitting_time(golden_policy(graph)).steps for graph in graphs]
    last = [PathStar.regular(branches=branches, depth=k, lanes=most_lanes) for k in range(1, deepest + 1)]
    return {
        "exactness": "exact",
        "branches": branches,
        "depths": list(range(1, deepest + 1)),
        "hitting_time_by_lanes": rows,
        "growth_by_lanes": {lanes: (int(lanes) + 1) ** 2 / int(lanes) for lanes in rows},
        "uniform": [hitting_time(uniform_policy(graph)).steps for graph in last],
        "optimal": [hitting_time(optimal_policy(graph)).steps for graph in last],
    }


def supervised_sweep(graph: PathStar = SMALL, *, draws: int = 100) -> Values:
    """Converged SFT with a random share p of the backward states supervised, exact for each random draw."""
    shares = [tenth / 10 for tenth in range(11)]
    rows = {}
    for lanes in range(1, 6):
        shape = PathStar(depths=graph.depths, lanes=(lanes,) * graph.branches)
        rows[str(lanes)] = [
            [
                hitting_time(imitation_limit(shape, supervised_states(shape, fraction=p, key=Key.root(draw)))).steps
                for draw in range(draws)
            ]
            for p in shares
        ]
    return {
        "exactness": "exact for each draw",
        "graph": {"branches": graph.branches, "depths": list(graph.depths)},
        "shares": shares,
        "draws": draws,
        "hitting_times_by_lanes": rows,
        "optimal": hitting_time(optimal_policy(graph)).steps,
    }


def hit_curves(graph: PathStar = SMALL, *, points: int = 400) -> Values:
    """P(hit within T steps) of the named policies against T."""
    limit = hitting_time(uniform_policy(graph)).steps or 5000.0
    longest = min(100_000, max(100, math.ceil(20 * limit)))
    times = sorted({round(t) for t in np.geomspace(graph.shortest_path() - 2, longest, points)} | {longest})
    made = {"uniform": uniform_policy(graph), "golden": golden_policy(graph), "optimal": optimal_policy(graph)}
    shares = {name: list(hit_within(policy, times)) for name, policy in made.items()}
    return {"graph": shape_of(graph), "exactness": "exact", "steps": times, "hit_within": shares,
            "lines": {"one over W": 1 / graph.branches}}  # fmt: skip


def confused_depths(graph: PathStar, *, step: float = 0.0005, iterations: int = 60) -> Values:
    """The signal G of the backward rows at the start, and their gaps in the first moments of the sign flow."""
    gradient = class_gradient(uniform_policy(graph))
    flow = sign_flow(graph, step=step, iterations=iterations)
    gaps = np.array([entry[0] for entry in flow.gaps])
    sizes = gradient.sizes[0]
    return {
        "graph": shape_of(graph),
        "exactness": "exact",
        "signal": {"b": sizes[1].tolist(), "d": sizes[3].tolist()},
        "negative_depths": {"b": list(gradient.negative_depths(1)), "d": list(gradient.negative_depths(3))},
        "times": (flow.times * step).tolist(),
        "gaps": {"b": gaps[:, 1].tolist(), "d": gaps[:, 3].tolist()},
    }


def confused_map(*, lanes: int = 5, widest: int = 24, deepest: int = 40) -> Values:
    """The number of depths at which the gradient of b is negative at the start, for each W and K."""
    widths, depths = list(range(2, widest + 1)), list(range(2, deepest + 1))
    counts = [
        [
            len(class_gradient(uniform_policy(PathStar.regular(branches=w, depth=k, lanes=lanes))).negative_depths(1))
            for k in depths
        ]
        for w in widths
    ]
    return {"exactness": "exact", "lanes": lanes, "branches": widths, "depths": depths, "negative_depths": counts}


def search_by_lanes(*, branches: int = 15, depth: int = 15, most: int = 20, walkers: int = 1000) -> Values:
    """Mean steps of the search agent against the lanes, exact, and simulated at L = 2, 5, 10, 20."""
    lanes = list(range(1, most + 1))
    graphs = {each: PathStar.regular(branches=branches, depth=depth, lanes=each) for each in lanes}
    simulated: dict[str, list[Values]] = {"optimal": [], "golden": []}
    for each in (2, 5, 10, 20):
        for name, make in (("optimal", optimal_policy), ("golden", golden_policy)):
            table = spread_policy(make(graphs[each]))
            key = Key.root(0).child("search", name, each)
            walks = simulate(table, walkers=walkers, key=key, horizon=graphs[each].state_count, search=True)
            mean, error = walks.mean_steps()
            simulated[name].append({"lanes": each, "steps": mean, "standard_error": error})
    return {
        "exactness": "exact",
        "branches": branches,
        "depth": depth,
        "lanes": lanes,
        "optimal": [search_result(optimal_policy(graphs[each])).steps for each in lanes],
        "golden": [search_result(golden_policy(graphs[each])).steps for each in lanes],
        "walkers": walkers,
        "simulated": simulated,
    }


def imitation_curves(graph: PathStar = SMALL, *, end: float = 1e6, points: int = 61) -> Values:
    """Imitation by gradient flow: of golden paths, and of walks of the converged RLVR policy (Theorem 5)."""
    times = [0.0, *np.geomspace(0.1, end, points).tolist()]
    distilled = distillation_flow(graph, teacher=optimal_policy(graph), times=times)
    golden = sft_flow(graph, times=times)
    return {
        "graph": shape_of(graph),
        "exactness": "exact",
        "times": times,
        "log_hitting_time": {"distillation": distilled.log_steps.tolist(), "golden": golden.log_steps.tolist()},
        "lines": theory_lines(graph),
    }


def fork_curves(graph: PathStar = SMALL, *, iterations: int = 200) -> Values:
    """RLVR on the full table with the fork's rows frozen and trained; the gradient normalized, step 0.3 nats."""
    if graph.state_count > min(3000, MOST_STATES):
        raise TaskError(f"the figure `fork` follows the full table: {graph.state_count} directed edges are too many.")
    states = edge_states(graph)
    noise = np.where(states.frozen_rows, 0.0, noisy_logits(graph, scale=0.1, key=Key.root(0)))
    starts = {"frozen": noise, "trained": noisy_logits(graph, scale=0.1, key=Key.root(0))}
    flows = {
        fork: table_flow(graph, logits=logits, rule="normalized", step=0.3, iterations=iterations, every=4, fork=fork)
        for fork, logits in starts.items()
    }
    return {
        "graph": shape_of(graph),
        "exactness": "exact",
        "iterations": list(flows["frozen"].iterations),
        "hitting_time": {fork: flow.steps.tolist() for fork, flow in flows.items()},
        "lines": theory_lines(graph),
    }


CURVE_FORMAT = "forkpoint-lab-curve"


def stored_curve(name: str) -> Values | None:
    """A checked-in curve of a long training, None where there is none yet."""
    place = resources.files("forkpoint").joinpath(f"data/lab/{name}.json")
    if not place.is_file():
        return None
    record: Values = json.loads(place.read_text(encoding="utf-8"))
    if record.get("format") != CURVE_FORMAT:
        raise TaskError(f"data/lab/{name}.json is no curve: its format is not {CURVE_FORMAT}.")
    graph = PathStar(depths=tuple(record["graph"]["depths"]), lanes=tuple(record["graph"]["lanes"]))
    return {**record, "lines": theory_lines(graph)}


def mean_of_draws(rows: Sequence[Sequence[float]]) -> list[tuple[float, float, float]]:
    """Mean, lowest tenth and highest tenth of each row.

    >>> mean_of_draws([[1.0, 2.0, 3.0]])[0][0]
    2.0
    """
    return [(float(np.mean(row)), float(np.quantile(row, 0.1)), float(np.quantile(row, 0.9))) for row in rows]
