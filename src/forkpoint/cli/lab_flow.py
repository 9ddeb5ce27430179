"""`forkpoint lab gradient-flow`: training in the limit of many samples."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from cyclopts import Parameter
from cyclopts.validators import Number

from forkpoint.cli.lab_graph import GraphOptions, PolicyOptions, Walker, graph_json, graph_text, steps_text, walker_of
from forkpoint.cli.options import Json, Positive
from forkpoint.cli.output import print_json, print_table
from forkpoint.errors import TaskError
from forkpoint.theory.chains import hit_within
from forkpoint.theory.classes import optimal_policy
from forkpoint.theory.flows import (
    ClassFlow,
    distillation_flow,
    noisy_logits,
    rlvr_flow,
    sft_flow,
    sign_flow,
    supervised_states,
)
from forkpoint.theory.gradients import class_gradient, table_gradient
from forkpoint.theory.graphs import Array, PathStar
from forkpoint.theory.horizon import table_hit_within
from forkpoint.theory.tables import TablePolicy, policy_text, softmax_policy, solve_table, spread_policy

Method = Literal["sign", "gradient", "sft", "distillation"]
GRAPH, POLICY = GraphOptions(), PolicyOptions()
LARGEST_LOG = 690.0
"""Above it e^x is told by x only."""
NOISE = 0.1
"""Standard deviation (nats) of the logits that a flow of the full table begins with: symmetry must break somewhere."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Course:
    """A flow at recorded times."""

    times: tuple[float, ...]
    log_steps: tuple[float, ...]
    shares: tuple[tuple[float, ...], ...]
    """P(hit within T) at each time, one for each `--within`."""
    last: TablePolicy | None
    """The policy at the end; None when the graph is too large to write out."""
    flow: ClassFlow | None


def gradient_flow(
    *,
    graph: GraphOptions = GRAPH,
    ask: PolicyOptions = POLICY,
    method: Method = "sign",
    until: Annotated[float | None, Parameter(validator=Number(gt=0))] = None,
    points: Positive = 12,
    step: Annotated[float, Parameter(validator=Number(gt=0))] = 0.01,
    supervised: Annotated[float, Parameter(validator=Number(gte=0, lte=1))] = 0.0,
    seed: int = 0,
    out: Path | None = None,
    json_: Json = False,
) -> int:
    """Exact training curves, without a sample: RLVR, SFT on golden paths, distillation of the RLVR policy.

    With `--fork trained`, `--horizon` or a policy file the full table is followed, and RLVR only.

    Parameters
    ----------
    method
        `sign` (the paper's: every logit moves by `step`), `gradient`, `sft` or `distillation`.
    until
        The end: iterations of `sign` (1200) and of full tables, else the time of the flow (1000).
    points
        Moments printed after the start; evenly spaced for iterations, else each a fixed factor later.
    step
        Size of a step, nats; full tables under `gradient` take the gradient normalized to its largest entry.
    supervised
        Share of the backward states that `sft` supervises too, 0 to 1.
    seed
        Which backward states; and the noise that full tables with a trained fork begin with.
    out
        Write the policy at the end here, for `--policy FILE`.
    json_
        Print as JSON.
    """
    shape = graph.graph()
    walker = walker_of(shape, ask)
    if ask.target is not None:
        raise TaskError("--target: training draws its target uniformly; leave it out.")
    full = ask.fork == "trained" or ask.horizon is not None or walker.table is not None
    if full:
        course = _table_course(walker, ask, method, iterations=_whole(until), points=points, step=step, seed=seed)
    else:
        course = _class_course(walker, ask, method, until=until, points=points, step=step, masks=(supervised, seed))
    if out is not None:
        _write(out, course.last)
    _print(course, walker, ask, method, as_json=json_)
    return 0


def _print(course: Course, walker: Walker, ask: PolicyOptions, method: Method, *, as_json: bool) -> None:
    steps = [float(np.exp(log)) if log < LARGEST_LOG else None for log in course.log_steps]
    if as_json:
        print_json({
            **graph_json(walker.graph), "policy": walker.name, "fork": walker.fork, "method": method,
            "horizon": ask.horizon, "exactness": "exact", "times": course.times, "hitting_time": steps,
            "log_hitting_time": course.log_steps,
            "hit_within": {str(T): [row[i] for row in course.shares] for i, T in enumerate(ask.within)},
            **(_probabilities(course.flow) if course.flow is not None else {}),
        })  # fmt: skip
        return
    first = "iteration" if course.flow is None or method == "sign" else "time"
    rows = [
        [f"{time:.6g}", steps_text(step, log), *(f"{p:.4f}" for p in shares)]
        for time, step, log, shares in zip(course.times, steps, course.log_steps, course.shares, strict=True)
    ]
    title = f"{graph_text(walker.graph)}\n{method} from {walker.name}, fork {walker.fork}; exact"
    print_table([first, "hitting time, steps", *(f"P(hit within {T})" for T in ask.within)], rows, title=title)


def _whole(until: float | None) -> int:
    if until is not None and until < 1:
        raise TaskError(f"--until {until:g}: at least 1 iteration is needed.")
    return 1200 if until is None else int(until)


def _write(out: Path, policy: TablePolicy | None) -> None:
    from forkpoint.files import write_text_atomic

    if policy is None:
        raise TaskError("--out: the graph is too large to write its table out.")
    write_text_atomic(out, policy_text(policy) + "\n")


def _class_course(
    walker: Walker, ask: PolicyOptions, method: Method, *, until: float | None, points: int, step: float,
    masks: tuple[float, int],
) -> Course:  # fmt: skip
    """The flow of four gaps for each depth, the fork frozen."""
    from forkpoint.seeds import Key
    from forkpoint.theory.graphs import MOST_STATES

    shape = walker.graph
    if walker.name != "uniform":
        raise TaskError(f"--policy {walker.name}: a flow needs finite logits; begin with uniform or a policy file.")
    if method == "sign":
        iterations = _whole(until)
        flow = sign_flow(shape, step=step, iterations=iterations, every=max(1, iterations // points))
    else:
        end = 1000.0 if until is None else until
        times = np.concatenate([[0.0], np.geomspace(end / 10 ** (points / 3), end, points)])
        if method == "gradient":
            flow = rlvr_flow(shape, times=times.tolist())
        elif method == "sft":
            states = supervised_states(shape, fraction=masks[0], key=Key.root(masks[1]))
            flow = sft_flow(shape, times=times.tolist(), supervised=states)
        else:
            flow = distillation_flow(shape, teacher=optimal_policy(shape), times=times.tolist())
    shares = tuple(hit_within(flow.policy(index), ask.within) for index in range(len(flow.times)))
    last = spread_policy(flow.policy(len(flow.times) - 1)) if shape.state_count <= MOST_STATES else None
    return Course(times=tuple(flow.times.tolist()), log_steps=tuple(flow.log_steps.tolist()), shares=shares,
                  last=last, flow=flow)  # fmt: skip


def _table_course(
    walker: Walker, ask: PolicyOptions, method: Method, *, iterations: int, points: int, step: float, seed: int
) -> Course:
    """RLVR on the full table: one logit for each legal move, the fork frozen or trained, with or without a horizon."""
    if method not in ("sign", "gradient"):
        raise TaskError(f"--method {method}: with a trained fork, a horizon or a policy file it is sign or gradient.")
    logits, every = _start(walker, seed), max(1, iterations // points)
    times, logs, shares = [], [], []
    for iteration in range(iterations + 1):
        policy = softmax_policy(walker.graph, logits)
        if iteration % every == 0 or iteration == iterations:
            times.append(float(iteration))
            logs.append(float(np.log(solve_table(policy).steps.mean())))
            shares.append(table_hit_within(policy, ask.within))
        if iteration < iterations:
            gradient = table_gradient(policy, horizon=ask.horizon, beta=_price(ask.horizon), fork=ask.fork)
            logits = logits + step * _direction(gradient, method)
    return Course(times=tuple(times), log_steps=tuple(logs), shares=tuple(shares), last=policy, flow=None)


def _price(horizon: int | None) -> float:
    """The price of a step: without a horizon it is all there is; with one, a hit alone is rewarded."""
    return 1.0 if horizon is None else 0.0


def _start(walker: Walker, seed: int) -> Array:
    from forkpoint.seeds import Key

    shape: PathStar = walker.graph
    if walker.table is not None:
        if (walker.table.probabilities <= 0).any():
            raise TaskError("--policy: the file has moves of probability 0, whose logits are not finite.")
        return np.log(walker.table.probabilities)
    if walker.name != "uniform":
        raise TaskError(f"--policy {walker.name}: a flow needs finite logits; begin with uniform or a policy file.")
    noise = noisy_logits(shape, scale=NOISE, key=Key.root(seed))
    return noise if walker.fork == "trained" else 0.0 * noise


def _direction(gradient: Array, method: Method) -> Array:
    largest = float(np.abs(gradient).max())
    if largest == 0:
        return gradient
    # Entries that are zero up to rounding must not move by a full step.
    return (
        np.sign(np.where(np.abs(gradient) > 1e-13 * largest, gradient, 0)) if method == "sign" else gradient / largest
    )


def _probabilities(flow: ClassFlow) -> dict[str, Any]:
    """The four probabilities by depth at the start and at the end, and where the start's gradient is negative."""
    names: Sequence[str] = ("a", "b", "c", "d")
    last, profiles = flow.policy(len(flow.times) - 1), flow.graph.profiles
    gradient = class_gradient(flow.policy(0))
    return {
        "profiles": [
            {
                "depth": shape.depth, "lanes": shape.lanes, "branches": shape.count,
                "probabilities": dict(zip(names, last.table(index).tolist(), strict=True)),
                "confused_depths": {n: list(gradient.negative_depths(row, index)) for row, n in enumerate(names)},
            }
            for index, shape in enumerate(profiles)
        ]
    }  # fmt: skip
