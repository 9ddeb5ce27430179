"""Exact values of the full table when a walk stops after a given number of edges.

Values depend on the time left: V_x(r, s) = -beta + sum_a pi(a|s) V_x(r - 1, a), 1 at the target, 0 when no edge is
left.  Time counts edges walked, the first edge from the source to the fork included, as everywhere in the theory.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from forkpoint.errors import TaskError
from forkpoint.theory.chains import check_horizon
from forkpoint.theory.graphs import Array, edge_states
from forkpoint.theory.tables import TablePolicy

MOST_NUMBERS = 150_000_000
"""Values and visits together take 16 bytes of memory for each."""

BLOCK = 64
"""Moments that are summed at once."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class HorizonSolution:
    """Exact values with a horizon, for all targets; columns are targets.  Index 0 of the time axis is no edge left."""

    values: Array
    """V[r, s, x]: mean of 1{hit} - beta (edges still to be walked) with r edges left [T, S, W]; 1 at the target."""
    visits: Array
    """P(at s, not yet hit, r edges left) [T, S, W]."""
    objective: Array
    """J of each target [W]."""

    def advantages(self, policy: TablePolicy, beta: float, left: int) -> Array:
        """A_x(s, a) with `left` >= 1 edges left [moves, W]: -beta + V[left - 1, a] - V[left, s]."""
        states = edge_states(policy.graph)
        table = self.values[left - 1][states.successors] - beta - self.values[left][states.sources]
        table[states.targets[None, :] == states.sources[:, None]] = 0.0
        return table

    def signal(self, policy: TablePolicy, beta: float) -> Array:
        """The sum over time of d_x(s) A_x(s, a), averaged over targets: one number per legal move."""
        states = edge_states(policy.graph)
        signal = np.zeros(len(states.successors))
        for first in range(1, len(self.values), BLOCK):
            last = min(first + BLOCK, len(self.values))
            visits, now, after = (
                np.ascontiguousarray(part.transpose(1, 2, 0)).reshape(states.count, -1)
                for part in (self.visits[first:last], self.values[first:last], self.values[first - 1 : last - 1])
            )
            here = np.einsum("ij,ij->i", visits, now + beta)
            signal += np.einsum("ij,ij->i", visits[states.sources], after[states.successors]) - here[states.sources]
        return signal / policy.graph.branches


def solve_horizon(policy: TablePolicy, *, horizon: int, beta: float = 0.0) -> HorizonSolution:
    """Exact values and visits of walks of at most `horizon` edges, by dynamic programming.

    The first edge, from the source to the fork, counts: after a prompt of that edge a policy samples at most
    `horizon` - 1 moves.  Memory and time are O(horizon S W).  Raises `TaskError` for a
    horizon below 1 or too large for memory.
    """
    check_horizon(horizon)
    states, matrix, width = edge_states(policy.graph), policy.matrix(), policy.graph.branches
    if horizon * states.count * width > MOST_NUMBERS:
        raise TaskError(f"horizon = {horizon}: times {states.count} states and {width} targets it exceeds memory.")
    columns = np.arange(width)
    values = np.zeros((horizon, states.count, width))
    visits = np.zeros_like(values)
    values[0, states.targets, columns] = 1.0
    for left in range(1, horizon):
        values[left] = matrix @ values[left - 1] - beta
        values[left, states.targets, columns] = 1.0
    visits[-1, states.start] = 1.0
    transposed = matrix.T.tocsr()
    for left in range(horizon - 1, 0, -1):
        visits[left - 1] = transposed @ visits[left]
        visits[left - 1, states.targets, columns] = 0.0
    return HorizonSolution(values=values, visits=visits, objective=values[-1, states.start] - beta)


def table_hit_within(policy: TablePolicy, horizons: Sequence[int], *, target: int | None = None) -> tuple[float, ...]:
    """P(hit within T steps) for each horizon T, for one target or a uniformly drawn one; O(max T) steps of the chain.

    Raises `TaskError` for a horizon below 1 or a target outside the graph.
    """
    for horizon in horizons:
        check_horizon(horizon)
    states, width = edge_states(policy.graph), policy.graph.branches
    chosen = np.arange(width) if target is None else np.array([policy.graph.check_target(target)])
    leaves, columns = states.targets[chosen], np.arange(len(chosen))
    step = policy.matrix().T.tocsr()
    mass = np.zeros((states.count, len(chosen)))
    mass[states.start] = 1.0
    total = np.zeros(max(horizons, default=1) + 1)
    for t in range(2, len(total)):
        mass = step @ mass
        total[t] = total[t - 1] + mass[leaves, columns].mean()
        mass[leaves, columns] = 0.0
    return tuple(float(min(total[horizon], 1.0)) for horizon in horizons)
