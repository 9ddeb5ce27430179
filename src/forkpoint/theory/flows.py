"""Training in the limit of many samples: flows of the gaps of tied classes, and of the full table.

RLVR ascends J = 1 - beta H (Theorem 3 of arXiv 2606.22938): dTheta/dt = dJ/dTheta, or its sign (Lemma 1, where every
gap D moves at the rate sgn G).  Imitation descends the cross-entropy on a teacher's walks (Theorem 2 for golden paths,
Theorem 5 for walks of the converged RLVR policy).  Gradients of untied logits keep the symmetry, so four gaps per
depth say it all as long as the fork's rows are frozen: with the visits d per state, a gap's flow is
d (1 + 1/L) times p (1 - p) Delta for RLVR and times (p_teacher - p) for imitation, p the desired class's probability.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.integrate import solve_ivp

from forkpoint.errors import TaskError
from forkpoint.seeds import Key
from forkpoint.theory.classes import ClassPolicy, policy_from_gaps, zero_gaps
from forkpoint.theory.gradients import class_gradient, table_gradient
from forkpoint.theory.graphs import ROWS, Array, Kind, PathStar, Profile, edge_states
from forkpoint.theory.solving import hitting_time, solve_classes
from forkpoint.theory.tables import TablePolicy, softmax_policy, solve_table

Gaps = tuple[Array, ...]
RULES = ("gradient", "sign", "normalized")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ClassFlow:
    """A flow of gaps at recorded times."""

    graph: PathStar
    times: Array
    """Flow time; for sign flow the number of iterations."""
    gaps: tuple[Gaps, ...]
    """At each time one array [4, K] per profile, rows a, b, c, d, nats."""
    log_steps: Array
    """Natural logarithm of the mean hitting time at each time."""

    def policy(self, index: int) -> ClassPolicy[float]:
        """The policy at a recorded time."""
        return policy_from_gaps(self.graph, self.gaps[index])


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TableFlow:
    """A flow of the full table at recorded iterations."""

    iterations: tuple[int, ...]
    steps: Array
    """Mean hitting time over targets at each."""
    logits: Array
    """The logits at the end."""
    policy: TablePolicy


def sign_flow(
    graph: PathStar, *, step: float = 0.01, iterations: int = 600, every: int = 1, start: Gaps | None = None
) -> ClassFlow:
    """RLVR by sign gradient flow, D <- D + step sgn(G) per iteration (Lemma 1), recorded `every` so many iterations.

    Raises `TaskError` for a step or a count that is not positive.
    """
    if step <= 0 or iterations < 1 or every < 1:
        raise TaskError("a sign flow needs a positive step, at least 1 iteration, and every >= 1.")
    gaps = zero_gaps(graph) if start is None else start
    times, kept = [0], [gaps]
    for iteration in range(1, iterations + 1):
        signs = class_gradient(policy_from_gaps(graph, gaps)).signs
        gaps = tuple(gap + step * sign for gap, sign in zip(gaps, signs, strict=True))
        if iteration % every == 0 or iteration == iterations:
            times.append(iteration)
            kept.append(gaps)
    return _flow(graph, np.array(times, dtype=np.float64), kept)


def rlvr_rates(policy: ClassPolicy[float], *, beta: float = 1.0) -> Gaps:
    """dD/dt of every gap under the policy gradient of J = 1 - beta H on untied logits."""
    rates = []
    for index, (profile, signal) in enumerate(zip(policy.graph.profiles, class_gradient(policy).sizes, strict=True)):
        columns = policy.diamonds[index]
        spread = np.array([[d[row] * d[4 + row] for d in columns] for row in range(4)])
        rates.append(beta * spread * _per_state(profile, signal))
    return tuple(rates)


def rlvr_flow(graph: PathStar, *, times: Sequence[float], beta: float = 1.0, start: Gaps | None = None) -> ClassFlow:
    """RLVR by gradient flow from the uniform policy, at the given times (ascending, from 0)."""

    def rates(gaps: Gaps) -> Gaps:
        return rlvr_rates(policy_from_gaps(graph, gaps), beta=beta)

    return _integrate(graph, rates, times, start)


def sft_flow(
    graph: PathStar,
    *,
    times: Sequence[float],
    supervised: Sequence[NDArray[np.bool_]] | None = None,
    start: Gaps | None = None,
) -> ClassFlow:
    """Imitation of golden paths by gradient flow on the summed cross-entropy (nats per path).

    `supervised` (one Boolean array [2, K] per profile: `R-`, `L-`) adds the right move at some backward states, each
    as often as the forward states of its depth.  The converged policy is `classes.imitation_limit`.
    """
    visits = []
    for index, profile in enumerate(graph.profiles):
        mask = np.zeros((2, profile.depth)) if supervised is None else np.asarray(supervised[index], dtype=np.float64)
        ones = np.ones(profile.depth)
        visits.append(np.stack([ones, mask[0], ones, mask[1]]) / graph.branches)
    teacher = tuple(np.ones((4, profile.depth)) for profile in graph.profiles)
    return _imitate(graph, tuple(visits), teacher, times, start)


def distillation_flow(
    graph: PathStar, *, teacher: ClassPolicy[float], times: Sequence[float], start: Gaps | None = None
) -> ClassFlow:
    """Imitation of the teacher's whole walks, detours included, by gradient flow (Theorem 5)."""
    if teacher.graph != graph:
        raise TaskError("the teacher belongs to another graph.")
    tables = tuple(teacher.table(index) for index in range(len(graph.profiles)))
    return _imitate(graph, mean_visits(teacher), tables, times, start)


def mean_visits(policy: ClassPolicy[float]) -> Gaps:
    """Mean visits per walk of each class of one branch, averaged over targets: [4, K] per profile, lanes summed."""
    shapes = policy.graph.profiles
    total = [np.zeros((4, shape.depth)) for shape in shapes]
    for target, shape in enumerate(shapes):
        solution = solve_classes(policy, profile=target)
        total[target] += np.array(solution.target.visits)
        for index in range(len(shapes)):
            total[index] += (shape.count - (index == target)) * np.array(solution.others[index].visits)
    return tuple(table / policy.graph.branches for table in total)


def supervised_states(graph: PathStar, *, fraction: float, key: Key) -> tuple[NDArray[np.bool_], ...]:
    """A random subset of the backward classes, round(fraction 2K) of each profile's 2K, as Boolean arrays [2, K].

    Raises `TaskError` for a fraction outside [0, 1].
    """
    if not 0 <= fraction <= 1:
        raise TaskError(f"fraction = {fraction}: it lies in [0, 1].")
    masks = []
    for index, profile in enumerate(graph.profiles):
        order = key.child("supervised", index).generator().permutation(2 * profile.depth)
        masks.append((order < math.floor(fraction * 2 * profile.depth + 0.5)).reshape(2, profile.depth))
    return tuple(masks)


def _imitate(graph: PathStar, visits: Gaps, teacher: Gaps, times: Sequence[float], start: Gaps | None) -> ClassFlow:
    weights = tuple(_per_state(profile, table) for profile, table in zip(graph.profiles, visits, strict=True))

    def rates(gaps: Gaps) -> Gaps:
        policy = policy_from_gaps(graph, gaps)
        return tuple(w * (goal - policy.table(i)) for i, (w, goal) in enumerate(zip(weights, teacher, strict=True)))

    return _integrate(graph, rates, times, start)


def _per_state(profile: Profile, table: Array) -> Array:
    """Class totals [4, K] times (1 + 1/L), shared over the lanes where a class has one state per lane."""
    lanes = np.array([profile.lanes if kind in (Kind.RIGHT_IN, Kind.LEFT_BACK) else 1 for kind in ROWS])
    return table * (1 + 1 / profile.lanes) / lanes[:, None]


def _integrate(graph: PathStar, rates: Callable[[Gaps], Gaps], times: Sequence[float], start: Gaps | None) -> ClassFlow:
    first = zero_gaps(graph) if start is None else start
    moments = np.asarray(times, dtype=np.float64)
    if not len(moments) or moments[0] < 0 or (np.diff(moments) <= 0).any():
        raise TaskError("the times of a flow must ascend from at least 0.")

    def unpack(flat: Array) -> Gaps:
        sizes = np.cumsum([gap.size for gap in first])[:-1]
        return tuple(part.reshape(4, -1) for part in np.split(flat, sizes))

    def slope(_: float, flat: Array) -> Array:
        return np.concatenate([rate.ravel() for rate in rates(unpack(flat))])

    begin = np.concatenate([gap.ravel() for gap in first])
    if moments[-1] == 0:
        return _flow(graph, moments, [first])
    solution = solve_ivp(slope, (0.0, moments[-1]), begin, method="LSODA", t_eval=moments, rtol=1e-8, atol=1e-8)
    if not solution.success:
        raise TaskError(f"the flow could not be integrated: {solution.message}")
    return _flow(graph, moments, [unpack(column) for column in solution.y.T])


def _flow(graph: PathStar, times: Array, gaps: Sequence[Gaps]) -> ClassFlow:
    logs = np.array([hitting_time(policy_from_gaps(graph, entry)).log_steps for entry in gaps])
    return ClassFlow(graph=graph, times=times, gaps=tuple(gaps), log_steps=logs)


def noisy_logits(graph: PathStar, *, scale: float, key: Key) -> Array:
    """Uniform logits plus normal noise (nats): a start that is free to break the symmetry of the branches."""
    return scale * key.child("logits").generator().standard_normal(len(edge_states(graph).successors))


def table_flow(
    graph: PathStar,
    *,
    logits: Array,
    rule: str = "normalized",
    step: float = 0.1,
    iterations: int = 1000,
    every: int = 100,
    fork: str = "frozen",
) -> TableFlow:
    """RLVR on the full table by small steps along the exact gradient of J = 1 - H.

    `rule`: the `gradient` itself, its `sign`, or the gradient `normalized` to its largest entry.
    Raises `TaskError` for an unknown rule or fork.
    """
    if rule not in RULES:
        raise TaskError(f"rule = {rule!r}: it is one of {', '.join(RULES)}.")
    kept, steps = [], []
    for iteration in range(iterations + 1):
        policy = softmax_policy(graph, logits)
        if iteration % every == 0 or iteration == iterations:
            kept.append(iteration)
            steps.append(float(solve_table(policy).steps.mean()))
        if iteration < iterations:
            logits = logits + step * _direction(table_gradient(policy, fork=fork), rule)
    return TableFlow(iterations=tuple(kept), steps=np.array(steps), logits=logits, policy=policy)


def _direction(gradient: Array, rule: str) -> Array:
    if rule == "gradient":
        return gradient
    largest = float(np.abs(gradient).max())
    if largest == 0:
        return gradient
    # Entries that are zero up to rounding must not move by a full step.
    return np.sign(np.where(np.abs(gradient) > 1e-13 * largest, gradient, 0)) if rule == "sign" else gradient / largest
