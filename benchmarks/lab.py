"""The exact solver of the lab against Monte-Carlo simulation of the same walk, and how its cost grows.

    python benchmarks/lab.py [--error 0.01] [--walkers 4000] [--out FILE.json]

For each graph and policy: seconds for the exact mean hitting time, and seconds that simulation needs for a relative
standard error of `--error`, from its measured speed and spread (walkers needed = (deviation / mean / error)^2).
The exact number is good to about 1e-12; each further digit costs the simulation a hundred times more.
Then the exact solver at growing branches (W), depth (K) and lanes (L).
"""

import argparse
import json
import math
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from forkpoint.seeds import Key
from forkpoint.theory.classes import ClassPolicy, golden_policy, optimal_policy, uniform_policy
from forkpoint.theory.graphs import PathStar
from forkpoint.theory.simulation import simulate
from forkpoint.theory.solving import hitting_time
from forkpoint.theory.tables import spread_policy

CASES: tuple[tuple[str, tuple[int, int, int], Callable[[PathStar], ClassPolicy[float]]], ...] = (
    ("uniform", (3, 3, 5), uniform_policy),
    ("uniform", (6, 6, 5), uniform_policy),
    ("golden", (6, 2, 5), golden_policy),
    ("optimal", (6, 6, 5), optimal_policy),
)
SWEEPS = {
    "branches": [(n, 50, 50) for n in (1, 10, 100, 1000, 10000)],
    "depth": [(50, n, 50) for n in (1, 10, 100, 1000, 10000)],
    "lanes": [(50, 50, n) for n in (1, 10, 100, 1000, 10000)],
}


def graph_of(shape: tuple[int, int, int]) -> PathStar:
    branches, depth, lanes = shape
    return PathStar.regular(branches=branches, depth=depth, lanes=lanes)


def seconds(call: Callable[[], object], repeats: int = 20) -> float:
    """The best of `repeats` runs: the machine may be busy."""
    best = math.inf
    for _ in range(repeats):
        before = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - before)
    return best


def compare(name: str, shape: tuple[int, int, int], policy: ClassPolicy[float], error: float, walkers: int) -> dict:
    exact = seconds(lambda: hitting_time(policy))
    steps = math.exp(hitting_time(policy).log_steps)
    table = spread_policy(policy)
    before = time.perf_counter()
    walks = simulate(table, walkers=walkers, key=Key.root(0).child(name, *shape), horizon=int(40 * steps))
    spent = time.perf_counter() - before
    mean, _ = walks.mean_steps()
    needed = (float(np.std(walks.steps)) / mean / error) ** 2
    simulated = spent * needed / walkers
    return {
        "policy": name,
        "graph": shape,
        "steps": steps,
        "simulated_steps": mean,
        "exact_seconds": exact,
        "simulation_seconds": simulated,
        "walkers_needed": needed,
        "ratio": simulated / exact,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--error", type=float, default=0.01)
    parser.add_argument("--walkers", type=int, default=4000)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    rows, growth = [], []
    print(f"simulation to a relative standard error of {options.error:g}")
    for name, shape, make in CASES:
        row = compare(name, shape, make(graph_of(shape)), options.error, options.walkers)
        rows.append(row)
        print(
            f"{name:8} W,K,L = {shape!s:12} steps {row['steps']:10.1f}  exact {row['exact_seconds'] * 1e6:7.0f} us  "
            f"simulation {row['simulation_seconds']:8.2f} s  ratio {row['ratio']:.0f}"
        )
    for axis, shapes in SWEEPS.items():
        for shape in shapes:
            policy = golden_policy(graph_of(shape))
            spent = seconds(lambda policy=policy: hitting_time(policy), 5)
            growth.append({"axis": axis, "graph": shape, "seconds": spent})
            print(f"{axis:8} W,K,L = {shape!s:18} exact {spent * 1e3:9.3f} ms")
    if options.out:
        options.out.write_text(json.dumps({"error": options.error, "rows": rows, "growth": growth}, indent=1))


if __name__ == "__main__":
    main()
