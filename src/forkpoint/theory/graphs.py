"""The path-star multigraph of the theory of backtracking, as edge states with legal successors.

Wei and Kim, arXiv 2606.22938, section 2.  A source leads to a fork; W branches leave the fork; a branch is a row of
K diamonds, each of L parallel lanes, joined by single connectors, and ends in a leaf.  One leaf is the target.
A state is an edge with a direction; its successors are all edges that leave its head, immediate reversal included.

Per branch and depth j = 1..K there are four kinds of state with a choice, each with one desired class of moves:
`R+` came over a lane from the left (desired: the connector onward), `R-` came over the connector from the right
(desired: a lane back), `L+` came over the connector from the left (desired: a lane onward), `L-` came over a lane
from the right (desired: the connector back).
"""

from collections import Counter
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from forkpoint.errors import TaskError
from forkpoint.seeds import content_hash

Array: TypeAlias = NDArray[np.float64]
Ids: TypeAlias = NDArray[np.int64]

MOST_STATES = 2_000_000
"""Larger graphs are never written out state by state; the class-reduced solvers do not need it."""


class Kind(StrEnum):
    """What a state is, by where it arrives and from which side."""

    START = "start"
    FORK = "fork"
    """Arrives at the fork out of a branch."""
    LEFT_IN = "L+"
    RIGHT_IN = "R+"
    RIGHT_BACK = "R-"
    LEFT_BACK = "L-"
    LEAF = "leaf"


ROWS = (Kind.RIGHT_IN, Kind.RIGHT_BACK, Kind.LEFT_IN, Kind.LEFT_BACK)
"""The four kinds with a choice, in the order a, b, c, d of the paper's probabilities of the desired class."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """Branches of equal shape: by symmetry the policy treats them alike."""

    depth: int
    lanes: int
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PathStar:
    """A path-star multigraph: one depth (diamonds, K) and one lane count (L) per branch.

    Raises `TaskError` for a graph without a branch, a diamond or a lane.

    >>> PathStar.regular(branches=6, depth=6, lanes=5).state_count
    445
    """

    depths: tuple[int, ...]
    lanes: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.depths:
            raise TaskError("branches = 0: the graph needs at least 1 branch.")
        if len(self.depths) != len(self.lanes):
            raise TaskError(f"{len(self.depths)} depths but {len(self.lanes)} lane counts: one of each per branch.")
        for name, values in (("depth", self.depths), ("lanes", self.lanes)):
            if min(values) < 1:
                raise TaskError(f"{name} = {min(values)}: every branch needs at least 1.")

    @staticmethod
    def regular(*, branches: int, depth: int, lanes: int) -> "PathStar":
        """The graph of the paper: W equal branches of K diamonds with L lanes."""
        return PathStar(depths=(depth,) * branches, lanes=(lanes,) * branches)

    @property
    def branches(self) -> int:
        """W, the number of branches."""
        return len(self.depths)

    @property
    def state_count(self) -> int:
        """Directed edges: 1 + sum over branches of 2(KL + K + 1)."""
        return 1 + sum(2 * (k * lanes + k + 1) for k, lanes in zip(self.depths, self.lanes, strict=True))

    @property
    def profiles(self) -> tuple[Profile, ...]:
        """The distinct shapes of branch, in order of first appearance."""
        counts = Counter(zip(self.depths, self.lanes, strict=True))
        return tuple(Profile(depth=k, lanes=lanes, count=count) for (k, lanes), count in counts.items())

    @property
    def digest(self) -> str:
        """Content hash that ties a policy file to its graph."""
        return content_hash("path-star", *self.depths, "lanes", *self.lanes)

    def shortest_path(self, target: int = 0) -> int:
        """Edges from the source to the leaf of branch `target`: 2K + 2."""
        return 2 * self.depths[self.check_target(target)] + 2

    def profile_of(self, branch: int) -> int:
        """The index in `profiles` of a branch's shape."""
        shape = (self.depths[branch], self.lanes[branch])
        return [(p.depth, p.lanes) for p in self.profiles].index(shape)

    def check_target(self, target: int) -> int:
        """The target, or `TaskError` when it is not a branch of this graph."""
        if not 0 <= target < self.branches:
            raise TaskError(f"target = {target}: the graph has branches 0 to {self.branches - 1}.")
        return target


@dataclass(frozen=True, slots=True)
class Label:
    """Which class a state belongs to; branch -1 and depth 0 where there is none, lane -1 on connectors."""

    kind: Kind
    branch: int
    depth: int
    lane: int = -1


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class EdgeStates:
    """A graph written out: integer states with their successors in compressed rows.

    The successors of state s are `successors[offsets[s]:offsets[s + 1]]`, ascending.  State 0 is the start.
    Within a branch ids rise with depth, so eliminating from the highest id keeps the fill small.
    """

    graph: PathStar
    offsets: Ids
    successors: Ids
    labels: tuple[Label, ...]
    targets: Ids
    """The state that enters the leaf of each branch: reaching it is a hit."""
    start: int = 0

    @property
    def count(self) -> int:
        """The number of states."""
        return len(self.labels)

    @property
    def sources(self) -> Ids:
        """The state that each entry of `successors` leaves."""
        return np.repeat(np.arange(self.count), np.diff(self.offsets))

    def moves(self, state: int) -> tuple[int, ...]:
        """The legal successors of a state."""
        return tuple(self.successors[self.offsets[state] : self.offsets[state + 1]].tolist())

    @property
    def frozen_rows(self) -> NDArray[np.bool_]:
        """Per entry of `successors`: whether its row chooses a branch at the fork."""
        fork = np.array([label.kind in (Kind.START, Kind.FORK) for label in self.labels])
        return fork[self.sources]

    def desired(self, source: Label, move: Label) -> bool:
        """Whether a move is of the desired class: onward for `R+` and `L+`, backward for `R-` and `L-`.

        At the fork and at a leaf every move counts as desired.
        """
        onward = move.kind in (Kind.RIGHT_IN, Kind.LEFT_IN, Kind.LEAF)
        if source.kind in (Kind.RIGHT_IN, Kind.LEFT_IN):
            return onward
        return not onward if source.kind in (Kind.RIGHT_BACK, Kind.LEFT_BACK) else True


@lru_cache(maxsize=16)
def edge_states(graph: PathStar) -> EdgeStates:
    """All edge states of a graph, with legal successors.

    Raises `TaskError` when there are more than `MOST_STATES`.

    >>> states = edge_states(PathStar.regular(branches=2, depth=1, lanes=2))
    >>> states.count, states.moves(0), str(states.labels[1].kind), states.labels[2].branch
    (17, (2, 10), 'fork', 0)
    """
    if graph.state_count > MOST_STATES:
        raise TaskError(f"the graph has {graph.state_count} edge states: at most {MOST_STATES} are written out.")
    labels = [Label(Kind.START, -1, 0)]
    for branch in range(graph.branches):
        labels += _branch_labels(graph, branch)
    index = {label: state for state, label in enumerate(labels)}
    moves = [sorted(index[move] for move in _moves(graph, label)) for label in labels]
    offsets = np.cumsum([0, *map(len, moves)])
    leaves = [index[Label(Kind.LEAF, branch, depth + 1)] for branch, depth in enumerate(graph.depths)]
    flat = np.array([move for row in moves for move in row], dtype=np.int64)
    for array in (offsets, flat):
        array.flags.writeable = False
    return EdgeStates(
        graph=graph, offsets=offsets, successors=flat, labels=tuple(labels), targets=np.array(leaves, dtype=np.int64)
    )


def _branch_labels(graph: PathStar, branch: int) -> list[Label]:
    depth, lanes = graph.depths[branch], graph.lanes[branch]
    labels = [Label(Kind.FORK, branch, 0)]
    for j in range(1, depth + 1):
        labels.append(Label(Kind.LEFT_IN, branch, j))
        labels += [Label(Kind.RIGHT_IN, branch, j, lane) for lane in range(lanes)]
        labels += [Label(Kind.LEFT_BACK, branch, j, lane) for lane in range(lanes)]
        labels.append(Label(Kind.RIGHT_BACK, branch, j))
    return [*labels, Label(Kind.LEAF, branch, depth + 1)]


def _moves(graph: PathStar, label: Label) -> list[Label]:
    """The edges that leave the head of a state."""
    branch, j = label.branch, label.depth
    if label.kind in (Kind.START, Kind.FORK):
        return [Label(Kind.LEFT_IN, i, 1) for i in range(graph.branches)]
    if label.kind is Kind.LEAF:
        return [Label(Kind.RIGHT_BACK, branch, j - 1)]
    lanes = range(graph.lanes[branch])
    if label.kind in (Kind.LEFT_IN, Kind.LEFT_BACK):
        back = Label(Kind.RIGHT_BACK, branch, j - 1) if j > 1 else Label(Kind.FORK, branch, 0)
        return [back, *(Label(Kind.RIGHT_IN, branch, j, lane) for lane in lanes)]
    onward = Label(Kind.LEFT_IN if j < graph.depths[branch] else Kind.LEAF, branch, j + 1)
    return [onward, *(Label(Kind.LEFT_BACK, branch, j, lane) for lane in lanes)]
