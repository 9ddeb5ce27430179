"""Policies that are tied over branches and lanes: four probabilities per depth (arXiv 2606.22938, section 3).

At depth j of a branch the desired class of moves has probability a_j at `R+`, b_j at `R-`, c_j at `L+`, d_j at `L-`
(see `graphs`); the rest is undesired, and each class is shared equally by its moves.  At the fork and at the start
every branch is equally likely (rows `frozen`).  A gap D is the logit of a desired move minus that of an undesired one:
a = sig(D - ln L), d = sig(D - ln L), b = sig(D + ln L), c = sig(D + ln L).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from types import MappingProxyType
from typing import Generic, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from forkpoint.errors import TaskError
from forkpoint.theory.graphs import ROWS, Array, Kind, PathStar
from forkpoint.theory.logarithms import LogNumber, N

Number: TypeAlias = Callable[[int], N]


class Diamond(NamedTuple, Generic[N]):
    """The probabilities of the desired classes at one depth, and of the undesired ones (their complements).

    Both are held because 1 - p loses all digits when p is close to 1.
    """

    a: N
    b: N
    c: N
    d: N
    not_a: N
    not_b: N
    not_c: N
    not_d: N


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassPolicy(Generic[N]):
    """A tied policy: for each profile of the graph its diamonds, depth 1 first.

    `number` makes a number of the policy's type from an integer: `float`, `Fraction` or `LogNumber.of`.
    Raises `TaskError` when the diamonds do not fit the graph.
    """

    graph: PathStar
    diamonds: tuple[tuple[Diamond[N], ...], ...]
    number: Number[N]

    def __post_init__(self) -> None:
        expected = [profile.depth for profile in self.graph.profiles]
        found = [len(row) for row in self.diamonds]
        if found != expected:
            raise TaskError(f"the policy has depths {found}, the graph {expected}: it belongs to another graph.")

    def table(self, profile: int = 0) -> Array:
        """The probabilities of the desired classes as an array [4, K], rows a, b, c, d (not for log numbers)."""
        return np.array([[float(getattr(d, name)) for d in self.diamonds[profile]] for name in "abcd"])


def _tied(graph: PathStar, number: Number[N], desired: Callable[[int], tuple[tuple[N, N], ...]]) -> ClassPolicy[N]:
    """The policy whose diamonds with L lanes have the (desired, undesired) pairs `desired(L)`, at every depth."""
    rows = []
    for profile in graph.profiles:
        pairs = desired(profile.lanes)
        diamond = Diamond(*(pair[0] for pair in pairs), *(pair[1] for pair in pairs))
        rows.append((diamond,) * profile.depth)
    return ClassPolicy(graph=graph, diamonds=tuple(rows), number=number)


def uniform_policy(graph: PathStar, number: Number[N] = float) -> ClassPolicy[N]:  # type: ignore[assignment]
    """The pretrained policy: every legal move equally likely (Theorem 1); a = d = 1/(L+1), b = c = L/(L+1)."""

    def pairs(lanes: int) -> tuple[tuple[N, N], ...]:
        few, many = number(1) / number(lanes + 1), number(lanes) / number(lanes + 1)
        return (few, many), (many, few), (many, few), (few, many)

    return _tied(graph, number, pairs)


def golden_policy(graph: PathStar, number: Number[N] = float) -> ClassPolicy[N]:  # type: ignore[assignment]
    """Converged imitation of golden paths: a = c = 1, while b and d stay where they were (Theorem 2)."""

    def pairs(lanes: int) -> tuple[tuple[N, N], ...]:
        few, many, sure = number(1) / number(lanes + 1), number(lanes) / number(lanes + 1), (number(1), number(0))
        return sure, (many, few), sure, (few, many)

    return _tied(graph, number, pairs)


def optimal_policy(graph: PathStar, number: Number[N] = float) -> ClassPolicy[N]:  # type: ignore[assignment]
    """The optimum with the fork frozen: a = b = c = d = 1 (Theorem 3); 4WK + 2W - 2K steps."""

    def pairs(lanes: int) -> tuple[tuple[N, N], ...]:
        del lanes
        return ((number(1), number(0)),) * 4

    return _tied(graph, number, pairs)


NAMED: Mapping[str, Callable[[PathStar], ClassPolicy[float]]] = MappingProxyType(
    {"uniform": uniform_policy, "golden": golden_policy, "optimal": optimal_policy}
)
"""The policies that have a name: pretrained, converged imitation of golden paths, converged RLVR (fork frozen)."""


def zero_gaps(graph: PathStar) -> tuple[Array, ...]:
    """The gaps of the uniform policy: one array [4, K] of zeros per profile."""
    return tuple(np.zeros((4, profile.depth)) for profile in graph.profiles)


def policy_from_gaps(graph: PathStar, gaps: Sequence[Array]) -> ClassPolicy[float]:
    """The policy with the logit gaps D (nats), one array [4, K] per profile, rows a, b, c, d.

    Raises `TaskError` when the gaps do not fit the graph or are not finite.
    """
    shapes, expected = [gap.shape for gap in gaps], [(4, profile.depth) for profile in graph.profiles]
    if shapes != expected:
        raise TaskError(f"gaps of shapes {shapes}, the graph has {expected}: they belong to another graph.")
    rows = []
    for profile, gap in zip(graph.profiles, gaps, strict=True):
        if not np.isfinite(gap).all():
            raise TaskError("the gaps of a policy must be finite numbers.")
        odds = gap + np.log(profile.lanes) * np.array([[-1.0], [1.0], [1.0], [-1.0]])
        both = np.concatenate([expit(odds), expit(-odds)])
        rows.append(tuple(Diamond(*column) for column in both.T.tolist()))
    return ClassPolicy(graph=graph, diamonds=tuple(rows), number=float)


def imitation_limit(graph: PathStar, supervised: Sequence[NDArray[np.bool_]]) -> ClassPolicy[float]:
    """Converged imitation with some backward states supervised too: there b or d is 1 (figure 5, right).

    `supervised` holds one Boolean array [2, K] per profile: row 0 for `R-` (b), row 1 for `L-` (d).
    """
    golden = golden_policy(graph)
    expected = [(2, profile.depth) for profile in graph.profiles]
    if [mask.shape for mask in supervised] != expected:
        raise TaskError(f"the supervised states must be Boolean arrays of shapes {expected}.")
    rows = []
    for diamonds, mask in zip(golden.diamonds, supervised, strict=True):
        row = []
        for diamond, (right, left) in zip(diamonds, mask.T.tolist(), strict=True):
            b = (1.0, 0.0) if right else (diamond.b, diamond.not_b)
            d = (1.0, 0.0) if left else (diamond.d, diamond.not_d)
            row.append(diamond._replace(b=b[0], not_b=b[1], d=d[0], not_d=d[1]))
        rows.append(tuple(row))
    return ClassPolicy(graph=graph, diamonds=tuple(rows), number=float)


def in_logs(policy: ClassPolicy[float]) -> ClassPolicy[LogNumber]:
    """The same policy in numbers that cannot overflow."""
    # Diamonds repeat in converged policies, so each is converted once.
    known: dict[Diamond[float], Diamond[LogNumber]] = {}
    rows = []
    for diamonds in policy.diamonds:
        for diamond in diamonds:
            if diamond not in known:
                known[diamond] = Diamond(*(LogNumber.of(value) for value in diamond))
        rows.append(tuple(known[diamond] for diamond in diamonds))
    return ClassPolicy(graph=policy.graph, diamonds=tuple(rows), number=LogNumber.of)


def in_fractions(policy: ClassPolicy[float], *, denominator: int = 10**6) -> ClassPolicy[Fraction]:
    """A policy of fractions close to this one; desired and undesired sum to exactly 1."""
    rows = []
    for diamonds in policy.diamonds:
        row = []
        for diamond in diamonds:
            desired = [Fraction(value).limit_denominator(denominator) for value in diamond[:4]]
            row.append(Diamond(*desired, *(1 - value for value in desired)))
        rows.append(tuple(row))
    return ClassPolicy(graph=policy.graph, diamonds=tuple(rows), number=Fraction)


def in_floats(policy: ClassPolicy[Fraction]) -> ClassPolicy[float]:
    """The nearest policy of floats: every probability is rounded once."""
    rows = tuple(tuple(Diamond(*map(float, diamond)) for diamond in row) for row in policy.diamonds)
    return ClassPolicy(graph=policy.graph, diamonds=rows, number=float)


def row_of(kind: Kind) -> int:
    """The row of a kind in tables, gaps and gradients: 0 for `R+` (a), 1 `R-` (b), 2 `L+` (c), 3 `L-` (d)."""
    return ROWS.index(kind)
