"""`forkpoint lab`: the theory of backtracking, exact (Wei and Kim, arXiv 2606.22938); see docs/lab.md."""

from pathlib import Path
from typing import Annotated, Any

from cyclopts import App

from forkpoint.cli.lab_graph import (
    GraphOptions,
    Many,
    PolicyOptions,
    Walker,
    graph_json,
    graph_text,
    show,
    steps_text,
    walker_of,
)
from forkpoint.cli.options import Json, Positive
from forkpoint.errors import TaskError

app = App(name="lab", help="The exact theory of backtracking: why RL learns what imitation cannot.")
app.command(
    "forkpoint.cli.lab_flow:gradient_flow",
    name="gradient-flow",
    help="Exact training curves, without a sample: RLVR, SFT, distillation.",
)
app.command("forkpoint.cli.lab_train:train", name="train", help="Train a policy of the lab from sampled rollouts.")

GRAPH, POLICY = GraphOptions(), PolicyOptions()


@app.command(name="hitting-time")
def hitting_time(*, graph: GraphOptions = GRAPH, ask: PolicyOptions = POLICY, json_: Json = False) -> int:
    """The exact mean number of steps until a walk enters the target's leaf.

    Parameters
    ----------
    json_
        Print as JSON.
    """
    shape = graph.graph()
    walker = walker_of(shape, ask)
    time = walker.time(ask.target)
    value: dict[str, Any] = {
        **graph_json(shape),
        "policy": walker.name,
        "fork": walker.fork,
        "target": ask.target,
        "exactness": "exact",
        "hitting_time": time.steps,
        "log_hitting_time": time.log_steps,
        "shortest_path": walker.shortest(ask.target),
    }
    rows = [
        ("mean hitting time, steps", steps_text(time.steps, time.log_steps)),
        ("its natural logarithm", f"{time.log_steps:.8g}"),
        ("shortest path, steps", f"{walker.shortest(ask.target):.6g}"),
    ]
    if ask.horizon is not None:
        hit, steps = _stopped(walker, ask.horizon, ask.target)
        value |= {"horizon": ask.horizon, "hit_within_horizon": hit, "mean_steps_within_horizon": steps}
        rows += [
            (f"P(hit before the horizon of {ask.horizon:,})", f"{hit:.6f}"),
            ("mean steps, stopped there", f"{steps:.8g}"),
        ]
    if ask.within:
        shares = dict(zip(ask.within, walker.within(ask.within, ask.target), strict=True))
        value["hit_within"] = {str(horizon): share for horizon, share in shares.items()}
        rows += [(f"P(hit within {horizon:,} steps)", f"{share:.6f}") for horizon, share in shares.items()]
    title = f"{graph_text(shape)}\npolicy {walker.name}, fork {walker.fork}; exact"
    show(value, rows, title=title, as_json=json_)
    return 0


def _stopped(walker: Walker, horizon: int, target: int | None) -> tuple[float, float]:
    """P(hit by the horizon), and the mean of the steps walked when the walk stops there: the sum of P(no hit yet)."""
    walker.within([horizon], target)
    shares = walker.within(range(1, horizon + 1), target)
    return shares[-1], 1.0 + sum(1.0 - share for share in shares[:-1])


@app.command
def search(
    *,
    graph: GraphOptions = GRAPH,
    ask: PolicyOptions = POLICY,
    walkers: Positive | None = None,
    seed: int = 0,
    json_: Json = False,
) -> int:
    """The agent that never enters a directed edge twice (Corollary 1): its chance to hit and its mean steps.

    Exact for named policies; simulated for policy files, with `--horizon`, `--within`, `--target` or `--walkers`.

    Parameters
    ----------
    walkers
        Simulate so many searches, 20000 where a simulation is needed.
    seed
        Random numbers of the simulation.
    json_
        Print as JSON.
    """
    shape = graph.graph()
    walker = walker_of(shape, ask)
    value: dict[str, Any] = {**graph_json(shape), "policy": walker.name, "fork": walker.fork, "target": ask.target}
    needed = walkers or ask.horizon is not None or ask.within or ask.target is not None or walker.table is not None
    found = _simulated(walker, ask, walkers or 20_000, seed) if needed else _exact_search(walker)
    value |= found
    rows = [
        ("P(hit)", f"{found['hit_probability']:.6f}"),
        ("mean steps of the searches that hit", f"{found['steps']:.10g}"),
    ]
    if found["exactness"] == "simulated":
        rows.append(("its standard error", f"{found['standard_error']:.3g}"))
    rows += [(f"P(hit within {horizon} steps)", f"{share:.6f}") for horizon, share in found["hit_within"].items()]
    title = f"{graph_text(shape)}\npolicy {walker.name}, fork {walker.fork}, with search; {found['exactness']}"
    show(value, rows, title=title, as_json=json_)
    return 0


def _exact_search(walker: Walker) -> dict[str, Any]:
    from forkpoint.theory.search import search_result

    if walker.tied is None:
        # The circular order enters no edge twice, so search changes nothing.
        chance, steps = 1.0, walker.time(None).steps
    else:
        result = search_result(walker.tied)
        chance, steps = result.hit_probability, result.steps
    return {"exactness": "exact", "hit_probability": chance, "steps": steps, "standard_error": None, "hit_within": {}}


def _simulated(walker: Walker, ask: PolicyOptions, walkers: int, seed: int) -> dict[str, Any]:
    from forkpoint.seeds import Key
    from forkpoint.theory.simulation import simulate
    from forkpoint.theory.tables import cyclic_policy, spread_policy

    shape = walker.graph
    table = walker.table or (spread_policy(walker.tied) if walker.tied else cyclic_policy(shape))
    if walkers * shape.state_count > 4_000_000_000:
        raise TaskError(f"--walkers {walkers}: times {shape.state_count} directed edges that exceeds memory.")
    # A search enters every directed edge at most once, so it ends by itself.
    horizon = shape.state_count if ask.horizon is None else ask.horizon
    walks = simulate(table, walkers=walkers, key=Key.root(seed), horizon=horizon, target=ask.target, search=True)
    mean, error = walks.mean_steps()
    shares = {str(limit): float((walks.hits & (walks.steps <= limit)).mean()) for limit in ask.within}
    return {"exactness": "simulated", "walkers": walkers, "hit_probability": walks.hit_share, "steps": mean,
            "standard_error": error, "hit_within": shares}  # fmt: skip


@app.command
def figures(
    out: Path,
    /,
    *,
    graph: GraphOptions = GRAPH,
    only: Annotated[tuple[str, ...], Many] = (),
    draws: Positive = 100,
    json_: Json = False,
) -> int:
    """Draw every figure of the paper, with exact values beside the theory's lines, as SVG and PNG into a folder.

    Parameters
    ----------
    out
        The folder; it also gets `values.json` with every number drawn, and `index.html`.
    only
        Only the figure of this name; may be repeated.
    draws
        Random choices of supervised states behind each point of figure 5, right.
    json_
        Print the paths as JSON.
    """
    import sys
    import time

    from forkpoint.cli.output import print_json
    from forkpoint.report.figures import draw_figures

    began = time.monotonic()

    def say(line: str) -> None:
        print(f"[{time.monotonic() - began:5.1f} s] {line}", file=sys.stderr, flush=True)

    made, skipped = draw_figures(
        out, graph=graph.graph() if graph.given else None, only=only, draws=draws, progress=say
    )
    if json_:
        print_json({"folder": str(out), "figures": [str(path) for path in made], "skipped": skipped})
    else:
        print(f"{len(made)} files in {out}; begin with {out / 'index.html'}")
        for name, reason in skipped.items():
            print(f"skipped {name}: {reason}", file=sys.stderr)
    return 0
