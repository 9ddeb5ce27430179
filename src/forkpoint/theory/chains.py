"""The class-reduced edge-state chain, written out, and what follows it step by step in time.

States tied by symmetry are merged: the fork (with the start, whose row is the same), and per depth the four kinds in
the target's branch and in each other profile.  Its size is at most 1 + (4K + 1)(1 + number of profiles).
Time counts edges walked, the first edge from the source to the fork included, so no hit comes before step 2K + 2.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic

import numpy as np
from scipy import sparse

from forkpoint.errors import TaskError
from forkpoint.theory.classes import ClassPolicy, Diamond
from forkpoint.theory.graphs import Array, Kind
from forkpoint.theory.logarithms import N


@dataclass(frozen=True, slots=True)
class ClassState:
    """A merged state: its kind and depth, the profile of its branch (-1 at the fork), whether that holds the target."""

    kind: Kind
    profile: int
    depth: int
    is_target: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ReducedChain(Generic[N]):
    """The class-reduced chain of a policy and a target: rows of transition probabilities, start 0, absorbing `hit`."""

    states: tuple[ClassState, ...]
    rows: tuple[dict[int, N], ...]
    hit: int

    def matrix(self) -> sparse.csr_matrix:
        """The transition matrix [S, S] in floats; the row of `hit` is empty."""
        entries = [(i, j, float(p)) for i, row in enumerate(self.rows) for j, p in row.items()]  # type: ignore[arg-type]
        rows, columns, values = zip(*entries, strict=True)
        return sparse.csr_matrix((values, (rows, columns)), shape=(len(self.states),) * 2)


def reduced_chain(policy: ClassPolicy[N], *, profile: int = 0) -> ReducedChain[N]:
    """The class-reduced chain for a target in a branch of this profile.

    Raises `TaskError` for a profile that the graph does not have.
    """
    shapes, number = policy.graph.profiles, policy.number
    if not 0 <= profile < len(shapes):
        raise TaskError(f"target profile {profile}: the graph has profiles 0 to {len(shapes) - 1}.")
    parts = [(profile, True, 1)]
    parts += [(i, False, s.count - (i == profile)) for i, s in enumerate(shapes) if s.count - (i == profile)]
    states = [ClassState(Kind.FORK, -1, 0, False)]
    rows: list[dict[int, N]] = [{}]
    for index, is_target, count in parts:
        first = len(states)
        rows[0][first] = number(count) / number(policy.graph.branches)
        diamonds = policy.diamonds[index]
        for j, diamond in enumerate(diamonds, 1):
            states += [ClassState(kind, index, j, is_target) for kind in _ORDER]
            rows += _diamond_rows(diamond, first + 4 * (j - 1), j == 1)
        states.append(ClassState(Kind.LEAF, index, len(diamonds) + 1, is_target))
        rows.append({} if is_target else {len(states) - 2: number(1)})
    hit = next(i for i, state in enumerate(states) if state.kind is Kind.LEAF and state.is_target)
    return ReducedChain(states=tuple(states), rows=tuple(rows), hit=hit)


_ORDER = (Kind.LEFT_IN, Kind.RIGHT_IN, Kind.LEFT_BACK, Kind.RIGHT_BACK)


def _diamond_rows(diamond: Diamond[N], at: int, is_first: bool) -> list[dict[int, N]]:
    """The rows of one depth, whose states are `at` to `at + 3` in the order L+, R+, L-, R-."""
    back, onward = 0 if is_first else at - 1, at + 4
    return [
        {at + 1: diamond.c, back: diamond.not_c},
        {onward: diamond.a, at + 2: diamond.not_a},
        {back: diamond.d, at + 1: diamond.not_d},
        {at + 2: diamond.b, onward: diamond.not_b},
    ]


def first_hits(policy: ClassPolicy[float], *, horizon: int, target: int | None = None) -> Array:
    """P(first hit after exactly t steps), t = 0..horizon, for one target or a uniformly drawn one.

    Cost O(K horizon).  Raises `TaskError` for a horizon below 1 or a target outside the graph.
    """
    check_horizon(horizon)
    graph = policy.graph
    if target is not None:
        return _first_hits(policy, graph.profile_of(graph.check_target(target)), horizon)
    shares = [(index, shape.count / graph.branches) for index, shape in enumerate(graph.profiles)]
    return np.sum([share * _first_hits(policy, index, horizon) for index, share in shares], axis=0)


def _first_hits(policy: ClassPolicy[float], profile: int, horizon: int) -> Array:
    chain = reduced_chain(policy, profile=profile)
    step = chain.matrix().T.tocsr()
    mass = np.zeros(len(chain.states))
    mass[0] = 1.0
    hits = np.zeros(horizon + 1)
    for t in range(2, horizon + 1):  # step 1 is the edge to the fork
        mass = step @ mass
        hits[t] = mass[chain.hit]  # and gone with the next step: the row of the hit is empty
    return hits


def hit_within(policy: ClassPolicy[float], horizons: Sequence[int], *, target: int | None = None) -> tuple[float, ...]:
    """P(hit within T steps) for each horizon T, for one target or a uniformly drawn one.

    Raises `TaskError` for a horizon below 1 or a target outside the graph.

    >>> from forkpoint.theory.classes import optimal_policy
    >>> from forkpoint.theory.graphs import PathStar
    >>> [round(p, 3) for p in hit_within(optimal_policy(PathStar.regular(branches=6, depth=6, lanes=5)), [14, 600])]
    [0.167, 0.985]
    """
    for horizon in horizons:
        check_horizon(horizon)
    if not horizons:
        return ()
    total = np.cumsum(first_hits(policy, horizon=max(horizons), target=target))
    return tuple(float(min(total[horizon], 1.0)) for horizon in horizons)


def check_horizon(horizon: int) -> int:
    """The horizon, or `TaskError` when it is not at least one step."""
    if horizon < 1:
        raise TaskError(f"horizon = {horizon}: at least 1 step is needed.")
    return horizon
