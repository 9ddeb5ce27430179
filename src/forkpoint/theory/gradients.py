"""Exact policy gradients: of tied classes without a horizon, and of the full table with and without one.

The objective (arXiv 2606.22938, section 3) is J = E_x E_y[1{y hits x} - beta |y|], the target x uniform over leaves
and hidden from the policy, |y| in edges.  The policy gradient theorem gives, per logit,

    dJ / dTheta_{s,a} = E_x[ d_x(s) pi(a|s) A_x(s, a) ].

Without a horizon every walk hits, so J = 1 - beta H and A is beta times the steps saved.  With a horizon of T edges
the walk stops after T edges, values depend on the time left, and d pi A is summed over time.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from scipy.special import xlogy

from forkpoint.errors import TaskError
from forkpoint.theory.classes import ClassPolicy, in_logs
from forkpoint.theory.graphs import ROWS, Array, Kind, edge_states
from forkpoint.theory.horizon import solve_horizon
from forkpoint.theory.logarithms import N
from forkpoint.theory.solving import LARGEST, BranchSolution, ClassSolution, solve_classes
from forkpoint.theory.tables import TablePolicy, solve_table

FORKS = ("frozen", "trained")
"""What happens to the rows that choose a branch: they stay as they are (the paper), or they are trained."""


SMALLEST = 1e-150
"""Below this, signs are decided in logs."""

RESOLUTION = 1e-12
"""A difference smaller than this share of its parts is rounding; `rational_gradient` resolves it."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ClassGradient:
    """The signal of Lemma 1 per profile: G_s = E_x[d_x(s) (h_x(undesired) - h_x(desired))], visits and steps.

    Arrays [4, K], rows a, b, c, d.  d_x(s) is summed over the lanes of one branch.
    """

    signs: tuple[Array, ...]
    """-1, 0 or 1, right also where the magnitude overflows; 0 where the parts cancel to `RESOLUTION`."""
    log_sizes: tuple[Array, ...]
    """ln |G|, 0 where G is 0."""

    @property
    def sizes(self) -> tuple[Array, ...]:
        """G itself, at most 1e300 in magnitude."""
        top = np.log(LARGEST)
        return tuple(s * np.exp(np.minimum(g, top)) for s, g in zip(self.signs, self.log_sizes, strict=True))

    def negative_depths(self, row: int, profile: int = 0) -> tuple[int, ...]:
        """The depths where the desired class of this row gets less likely (Lemma 2: the confused middle)."""
        return tuple((np.flatnonzero(self.signs[profile][row] < 0) + 1).tolist())


def class_gradient(policy: ClassPolicy[float], *, logs: bool = False) -> ClassGradient:
    """The signal G of every class, exact; in logs where a float would overflow, or everywhere with `logs`.

    Raises `TaskError` when the walk may never hit.
    """
    if logs:
        return _log_gradient(policy)
    pairs = _signal_pairs(policy)
    # Logs also where numbers are so small that a product may have underflowed: the sign must be right.
    if not all(part == 0 or SMALLEST < part < LARGEST for row in pairs for pair in row for part in pair):
        return _log_gradient(policy)
    signs, sizes = [], []
    for row in pairs:
        table = np.array([plus - minus for plus, minus in row]).reshape(4, -1)
        table[np.abs(table) < RESOLUTION * np.array([plus + minus for plus, minus in row]).reshape(4, -1)] = 0.0
        signs.append(np.sign(table))
        sizes.append(np.log(np.abs(table, where=table != 0, out=np.ones_like(table))))
    return ClassGradient(signs=tuple(signs), log_sizes=tuple(sizes))


def rational_gradient(policy: ClassPolicy[Fraction]) -> tuple[tuple[tuple[Fraction, ...], ...], ...]:
    """The signal G of every class in exact fractions: per profile four rows a, b, c, d over depth."""
    result = []
    for shape, row in zip(policy.graph.profiles, _signal_pairs(policy), strict=True):
        signal = [plus - minus for plus, minus in row]
        result.append(tuple(tuple(signal[i * shape.depth : (i + 1) * shape.depth]) for i in range(4)))
    return tuple(result)


def _log_gradient(policy: ClassPolicy[float]) -> ClassGradient:
    signs, sizes = [], []
    for row in _signal_pairs(in_logs(policy)):
        plus, minus = np.array([(p.log, m.log) for p, m in row]).reshape(4, -1, 2).transpose(2, 0, 1)
        table = (plus > minus).astype(np.float64) - (plus < minus)
        high, low = np.maximum(plus, minus), np.minimum(plus, minus)
        gap = np.subtract(high, low, where=table != 0, out=np.ones_like(high))
        table[gap < 2 * RESOLUTION] = 0.0
        signs.append(table)
        sizes.append(np.where(table != 0, high + np.log(-np.expm1(-gap)), 0.0))
    return ClassGradient(signs=tuple(signs), log_sizes=tuple(sizes))


def _signal_pairs(policy: ClassPolicy[N]) -> list[list[tuple[N, N]]]:
    """Per profile, the positive and the negative part of G for rows a, b, c, d over depth, flat."""
    shapes, branches = policy.graph.profiles, policy.number(policy.graph.branches)
    solutions = [solve_classes(policy, profile=index) for index in range(len(shapes))]
    result = []
    for index in range(len(shapes)):
        own = _signals(solutions[index].target)
        rest = _others_signals(policy, solutions, index)
        row = []
        for place, (mine, other) in enumerate(zip(own, rest, strict=True)):
            forward = ROWS[place // shapes[index].depth] in (Kind.RIGHT_IN, Kind.LEFT_IN)
            mine, other = mine / branches, other / branches
            row.append((mine, other) if forward else (other, mine))
        result.append(row)
    return result


def _others_signals(policy: ClassPolicy[N], solutions: Sequence[ClassSolution[N]], index: int) -> list[N]:
    """Visits times regrets in one branch of profile `index`, summed over the targets in other branches."""
    shapes, zero = policy.graph.profiles, policy.number(0)
    total = [zero] * (4 * shapes[index].depth)
    for target, solution in enumerate(solutions):
        count = shapes[target].count - (target == index)
        if count:
            weight = policy.number(count)
            signals = _signals(solution.others[index])
            total = [t + weight * s for t, s in zip(total, signals, strict=True)]
    return total


def _signals(branch: BranchSolution[N]) -> list[N]:
    return [v * r for vs, rs in zip(branch.visits, branch.regrets, strict=True) for v, r in zip(vs, rs, strict=True)]


def check_fork(fork: str) -> str:
    """The fork setting, or `TaskError`."""
    if fork not in FORKS:
        raise TaskError(f"fork = {fork!r}: it is frozen or trained.")
    return fork


def table_gradient(
    policy: TablePolicy, *, horizon: int | None = None, beta: float = 1.0, fork: str = "frozen"
) -> Array:
    """The exact policy gradient dJ/dTheta, one number per legal move, averaged over targets.

    `horizon` in edges, None for none (then J = 1 - beta H).  With the fork `frozen` its entries are 0.
    Raises `TaskError` for a horizon below 1, an unknown fork, or a walk that may never hit without a horizon.
    """
    check_fork(fork)
    states = edge_states(policy.graph)
    if horizon is None:
        solution = solve_table(policy)
        signal = beta * (solution.visits[states.sources] * solution.advantages).mean(axis=1)
    else:
        signal = solve_horizon(policy, horizon=horizon, beta=beta).signal(policy, beta)
    gradient = policy.probabilities * signal
    return np.where(states.frozen_rows, 0.0, gradient) if fork == "frozen" else gradient


def imitation_gradient(policy: TablePolicy, teacher: TablePolicy, *, visits: Array | None = None) -> Array:
    """Minus the gradient of the cross-entropy on the teacher's walks, one number per legal move.

    d(s) (pi_teacher(a|s) - pi(a|s)), d the teacher's mean visits averaged over targets, or `visits` [S] where given.
    """
    states = edge_states(policy.graph)
    if teacher.graph != policy.graph:
        raise TaskError("the teacher belongs to another graph than the policy.")
    weights = solve_table(teacher).visits.mean(axis=1) if visits is None else visits
    return weights[states.sources] * (teacher.probabilities - policy.probabilities)


def imitation_loss(policy: TablePolicy, teacher: TablePolicy, visits: Array) -> float:
    """The cross-entropy in nats on moves of the teacher from states visited `visits` [S] times."""
    states = edge_states(policy.graph)
    return -float(np.sum(visits[states.sources] * xlogy(teacher.probabilities, policy.probabilities)))
