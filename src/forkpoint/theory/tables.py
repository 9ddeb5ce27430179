"""The full policy table over edge states, and its exact values, visits and advantages without a horizon.

arXiv 2606.22938, section 2: pi(.|s) = softmax of the logits over the legal successors of s; a pure Markov chain that
starts on the edge from the source to the fork and stops on entering the leaf of target x.  With h_x(s) the mean steps
to go and d_x(s) the mean visits,

    h_x = 1 + P_x h_x,   d_x = e_start + P_x^T d_x,   A_x(s, a) = h_x(s) - h_x(a)  (steps saved),

solved without subtraction (Grassmann, Taksar and Heyman 1985), for all targets at once, in an order of elimination
that is worked out once per graph.
"""

import itertools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from scipy import sparse

from forkpoint.errors import TaskError
from forkpoint.theory.classes import ClassPolicy, row_of
from forkpoint.theory.graphs import Array, EdgeStates, Ids, Kind, PathStar, edge_states

SUM_TOLERANCE = 1e-9


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TablePolicy:
    """One probability per legal move: `probabilities` runs along `EdgeStates.successors`.

    Raises `TaskError` when the table does not fit the graph or a row does not sum to 1.
    """

    graph: PathStar
    probabilities: Array

    def __post_init__(self) -> None:
        states = edge_states(self.graph)
        check_table(states, self.probabilities)
        if not (np.isfinite(self.probabilities).all() and (self.probabilities >= 0).all()):
            raise TaskError("a policy table holds finite probabilities of at least 0.")
        sums = np.add.reduceat(self.probabilities, states.offsets[:-1])
        worst = int(np.argmax(np.abs(sums - 1)))
        if abs(sums[worst] - 1) > SUM_TOLERANCE:
            raise TaskError(f"row {worst} of the policy table sums to {sums[worst]:.9g}, not to 1.")

    def matrix(self) -> sparse.csr_matrix:
        """The transition matrix [S, S]."""
        states = edge_states(self.graph)
        return sparse.csr_matrix((self.probabilities, states.successors, states.offsets), shape=(states.count,) * 2)


def check_table(states: EdgeStates, table: Array) -> Array:
    """The table, or `TaskError` when it does not have one entry per legal move."""
    if table.shape != states.successors.shape:
        raise TaskError(
            f"the policy table has shape {table.shape}, the graph {len(states.successors)} legal moves: "
            "it belongs to another graph."
        )
    return table


def softmax_policy(graph: PathStar, logits: Array) -> TablePolicy:
    """The policy with these logits (nats), one per legal move."""
    states = edge_states(graph)
    check_table(states, logits)
    starts, sources = states.offsets[:-1], states.sources
    weights = np.exp(logits - np.maximum.reduceat(logits, starts)[sources])
    return TablePolicy(graph=graph, probabilities=weights / np.add.reduceat(weights, starts)[sources])


def spread_policy(policy: ClassPolicy[float]) -> TablePolicy:
    """The full table of a tied policy; the fork's rows are uniform."""
    states = edge_states(policy.graph)
    sources, successors = states.sources.tolist(), states.successors.tolist()
    desired = [states.desired(states.labels[s], states.labels[a]) for s, a in zip(sources, successors, strict=True)]
    sizes = np.bincount(2 * states.sources + desired, minlength=2 * states.count).tolist()
    profiles = [policy.graph.profile_of(branch) for branch in range(policy.graph.branches)]
    table = np.empty(len(successors))
    for entry, (source, wanted) in enumerate(zip(sources, desired, strict=True)):
        label = states.labels[source]
        if label.kind in (Kind.START, Kind.FORK, Kind.LEAF):
            share = 1.0
        else:
            diamond = policy.diamonds[profiles[label.branch]][label.depth - 1]
            share = diamond[row_of(label.kind) + (0 if wanted else 4)]
        table[entry] = share / sizes[2 * source + wanted]
    return TablePolicy(graph=policy.graph, probabilities=table)


def cyclic_policy(graph: PathStar) -> TablePolicy:
    """The optimum when the fork's rows are trained too: one fixed circular order of branches, shallow ones first.

    (W-1)(2K+1) + 2K + 2 steps on a regular graph, averaged over targets: the last edge tells which branch was tried,
    so the blind walk can learn an order, and each target is as likely to be any number of branches away.
    """
    states = edge_states(graph)
    order = branch_order(graph)
    after = {branch: order[(place + 1) % len(order)] for place, branch in enumerate(order)}
    after[-1] = order[0]
    table = np.zeros(len(states.successors))
    for state, label in enumerate(states.labels):
        first, last = states.offsets[state], states.offsets[state + 1]
        moves = [states.labels[move] for move in states.successors[first:last]]
        if label.kind in (Kind.START, Kind.FORK):
            wanted = [move.branch == after[label.branch] for move in moves]
        else:
            wanted = [states.desired(label, move) for move in moves]
        table[first:last] = np.array(wanted) / sum(wanted)
    return TablePolicy(graph=graph, probabilities=table)


def branch_order(graph: PathStar) -> tuple[int, ...]:
    """The order in which a blind walk should try the branches: shallow ones first."""
    return tuple(sorted(range(graph.branches), key=lambda branch: graph.depths[branch]))


def trained_optimum(graph: PathStar) -> float:
    """The steps of `cyclic_policy` in closed form, for graphs of any size: (W-1)(2K+1) + 2K + 2 on a regular graph.

    >>> trained_optimum(PathStar.regular(branches=15, depth=15, lanes=5))
    466.0
    """
    total, before = 0, 0
    for branch in branch_order(graph):
        total += before + 2 * graph.depths[branch] + 2
        before += 4 * graph.depths[branch] + 2
    return total / graph.branches


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TableSolution:
    """Exact values for all targets; columns are targets."""

    steps: Array
    """Mean hitting time of each target [W], steps, the first edge included."""
    values: Array
    """Mean steps to go h_x(s) [S, W]; 0 at the target."""
    visits: Array
    """Mean visits before the hit d_x(s) [S, W]; 0 at the target."""
    advantages: Array
    """A_x(s, a) in steps saved [moves, W]."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Pivot:
    """How one state is eliminated: slots of its row, of its column, and where their products go."""

    row: Ids
    column: Ids
    fill: Ids
    states: Ids
    """The states whose rows are changed."""
    moves: Ids
    """The states of `row`; the last index stands for the hit."""


@lru_cache(maxsize=8)
def _plan(graph: PathStar) -> tuple[tuple[_Pivot, ...], int]:
    """The pivots of states 0..S-1, and the number of slots; slot 0 takes self-loops and is never read.

    Slots 1 to E hold the legal moves, the rest is fill.
    """
    states = edge_states(graph)
    hit = states.count
    rows: list[dict[int, int]] = [{} for _ in range(hit)]
    users: list[set[int]] = [set() for _ in range(hit + 1)]
    fresh = itertools.count(1)

    def slot(i: int, j: int) -> int:
        if j not in rows[i]:
            rows[i][j] = next(fresh)
            users[j].add(i)
        return rows[i][j]

    for source, move in zip(states.sources.tolist(), states.successors.tolist(), strict=True):
        slot(source, move)
    for leaf in states.targets.tolist():
        for source in sorted(users[leaf]):
            slot(source, hit)
    pivots = []
    for k in range(hit - 1, -1, -1):
        moves = [j for j in rows[k] if j < k or j == hit]
        above = sorted(i for i in users[k] if i < k)
        fill = [0 if i == j else slot(i, j) for i in above for j in moves]
        row, column = [rows[k][j] for j in moves], [rows[i][k] for i in above]
        ids = [np.array(part, dtype=np.int64) for part in (row, column, fill, above, moves)]
        pivots.append(_Pivot(row=ids[0], column=ids[1], fill=ids[2], states=ids[3], moves=ids[4]))
    return tuple(reversed(pivots)), next(fresh)


def solve_table(policy: TablePolicy) -> TableSolution:
    """Exact values, visits and advantages of a table policy for every target.

    Raises `TaskError` when the walk misses a target with positive probability, or a value overflows a float.
    """
    states = edge_states(policy.graph)
    pivots, _ = _plan(policy.graph)
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        slots, costs, exits = _eliminated(policy)
        values, visits = _substituted(pivots, slots, costs, exits)
    if not np.isfinite(values).all() or not np.isfinite(visits).all():
        raise TaskError("the policy misses a target forever: a mean hitting time is not finite.")
    columns = np.arange(policy.graph.branches)
    steps = 1.0 + values[0]
    values[states.targets, columns] = 0.0
    means = policy.matrix() @ values
    advantages = means[states.sources] - values[states.successors]
    advantages[states.targets[None, :] == states.sources[:, None]] = 0.0
    return TableSolution(steps=steps, values=values, visits=visits, advantages=advantages)


def _eliminated(policy: TablePolicy) -> tuple[Array, Array, Array]:
    """Slots, costs per state and exit masses per state after elimination; columns are targets."""
    states = edge_states(policy.graph)
    pivots, count = _plan(policy.graph)
    width = policy.graph.branches
    slots, costs, exits = np.zeros((count, width)), np.ones((states.count, width)), np.ones((states.count, width))
    slots[1 : 1 + len(states.successors)] = policy.probabilities[:, None]
    for column, leaf in enumerate(states.targets.tolist()):
        # The moves into this target's leaf go to the hit instead.
        for move in np.flatnonzero(states.successors == leaf) + 1:
            pivot = pivots[states.sources[move - 1]]
            slots[pivot.row[pivot.moves == states.count], column] = slots[move, column]
            slots[move, column] = 0.0
    for k in range(states.count - 1, -1, -1):
        pivot = pivots[k]
        row = slots[pivot.row]
        exits[k] = row.sum(axis=0)
        if len(pivot.column):
            factor = slots[pivot.column] / exits[k]
            slots[pivot.fill] += (factor[:, None, :] * row).reshape(len(pivot.fill), width)
            costs[pivot.states] += factor * costs[k]
    return slots, costs, exits


def _substituted(pivots: tuple[_Pivot, ...], slots: Array, costs: Array, exits: Array) -> tuple[Array, Array]:
    """Values [S, W] and visits [S, W]."""
    values, visits = np.zeros((len(pivots) + 1, slots.shape[1])), np.zeros((len(pivots), slots.shape[1]))
    for k, pivot in enumerate(pivots):
        values[k] = (costs[k] + (slots[pivot.row] * values[pivot.moves]).sum(axis=0)) / exits[k]
        inflow = (slots[pivot.column] * visits[pivot.states]).sum(axis=0) + (k == 0)
        visits[k] = inflow / exits[k]
    return values[:-1], visits


def policy_text(policy: TablePolicy) -> str:
    """A policy as JSON text, with the digest of its graph."""
    record = {
        "format": "forkpoint-lab-policy",
        "graph": policy.graph.digest,
        "depths": policy.graph.depths,
        "lanes": policy.graph.lanes,
        "probabilities": policy.probabilities.tolist(),
    }
    return json.dumps(record)


def policy_from_text(graph: PathStar, text: str) -> TablePolicy:
    """The policy that `policy_text` wrote.

    Raises `TaskError` when the text is no policy, or one of another graph.
    """
    try:
        record: Any = json.loads(text)
    except json.JSONDecodeError as error:
        raise TaskError(f"the policy file is not JSON: {error}.") from None
    if not isinstance(record, Mapping) or record.get("format") != "forkpoint-lab-policy":
        raise TaskError('the policy file has no "format": "forkpoint-lab-policy".')
    if record.get("graph") != graph.digest:
        raise TaskError(
            f"the policy file belongs to the graph with depths {record.get('depths')} and lanes {record.get('lanes')}, "
            f"not to depths {list(graph.depths)} and lanes {list(graph.lanes)}."
        )
    try:
        table = np.array(record.get("probabilities"), dtype=np.float64)
    except (TypeError, ValueError):
        raise TaskError("the policy file's probabilities are not a list of numbers.") from None
    return TablePolicy(graph=graph, probabilities=table)
