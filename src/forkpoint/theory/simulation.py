"""Walks of a table policy, all walkers at once: the Monte-Carlo check of every exact number.

Counter-based: walker n's t-th uniform number is number n of the stream (key, "step", t), so a walk does not depend on
how many others were simulated beside it.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from forkpoint.seeds import Key
from forkpoint.theory.chains import check_horizon
from forkpoint.theory.graphs import Array, EdgeStates, Ids, edge_states
from forkpoint.theory.tables import TablePolicy


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Walks:
    """What a simulation of many walkers gave."""

    steps: Ids
    """Edges walked by each walker, the first edge included, until it hit, got stuck, or reached the horizon."""
    hits: NDArray[np.bool_]
    """Whether it hit its target."""
    targets: Ids

    @property
    def hit_share(self) -> float:
        """The share of walkers that hit."""
        return float(self.hits.mean())

    def mean_steps(self) -> tuple[float, float]:
        """The mean steps of the walkers that hit, and its standard error; (0, 0) when fewer than two did."""
        steps = self.steps[self.hits]
        if len(steps) < 2:
            return 0.0, 0.0
        return float(steps.mean()), float(steps.std(ddof=1)) / math.sqrt(len(steps))


def simulate(
    policy: TablePolicy,
    *,
    walkers: int,
    key: Key,
    horizon: int,
    target: int | None = None,
    search: bool = False,
) -> Walks:
    """Walks of at most `horizon` edges toward one target, or walker n toward target n mod W.

    With `search` no directed edge is entered twice in a walk: the policy is masked to the moves not yet taken and
    renormalised; where it gives them no weight they are equally likely (the limit from inside); a walker without such
    moves is stuck.  Raises `TaskError` for a horizon below 1 or a target outside the graph.
    """
    check_horizon(horizon)
    graph, states = policy.graph, edge_states(policy.graph)
    if target is not None:
        graph.check_target(target)
    goals = np.arange(walkers) % graph.branches if target is None else np.full(walkers, target)
    moves, weights = _padded(states, policy.probabilities)
    at, steps = np.zeros(walkers, dtype=np.int64), np.full(walkers, 1, dtype=np.int64)
    hits = np.zeros(walkers, dtype=np.bool_)
    taken = np.zeros((walkers if search else 0, states.count), dtype=np.bool_)
    active = np.arange(walkers)
    for t in range(horizon - 1):
        if not len(active):
            break
        rows = weights[at[active]]
        if search:
            rows = _masked(rows, moves[at[active]], taken, active)
            able = rows.sum(axis=1) > 0
            active, rows = active[able], rows[able]
        uniforms = key.child("step", t).uniforms(walkers)[active]
        at[active] = moves[at[active], _draw(rows, uniforms)]
        steps[active] += 1
        if search:
            taken[active, at[active]] = True
        hits[active] = at[active] == states.targets[goals[active]]
        active = active[~hits[active]]
    return Walks(steps=steps, hits=hits, targets=goals)


def _padded(states: EdgeStates, probabilities: Array) -> tuple[Ids, Array]:
    """Successors and probabilities as rectangles [S, most moves]; padding is move -1 with probability 0."""
    lengths = np.diff(states.offsets)
    place = np.arange(len(states.successors)) - states.offsets[states.sources]
    moves = np.full((states.count, int(lengths.max())), -1, dtype=np.int64)
    weights = np.zeros(moves.shape)
    moves[states.sources, place] = states.successors
    weights[states.sources, place] = probabilities
    return moves, weights


def _masked(rows: Array, moves: Ids, taken: NDArray[np.bool_], active: Ids) -> Array:
    free = (moves >= 0) & ~taken[active[:, None], moves]
    masked = np.where(free, rows, 0.0)
    return np.where(masked.sum(axis=1, keepdims=True) > 0, masked, free.astype(np.float64))


def _draw(rows: Array, uniforms: Array) -> Ids:
    """An index per row by inverse CDF; never one of weight 0."""
    total = rows.cumsum(axis=1)
    return (total > (uniforms * total[:, -1])[:, None]).argmax(axis=1)
