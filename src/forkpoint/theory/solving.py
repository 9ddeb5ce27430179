"""Exact values of a tied policy by recurrences over depth that only add, multiply and divide.

Cost O(K) per profile, whatever W and L; no digit is lost to subtraction.  Steps are edges walked, the first edge from
the source to the fork included.  C_j is the connector right of diamond j; C_0 joins the fork, C_K the leaf.

Every branch hangs on its connectors, so a walk is made of excursions.  In a branch without the target let e_j be the
mean steps from C_j outward until C_j inward, e_K = 1:

    e_{j-1} = 1 + c (2 + a (1 + e_j) / b) / d.

At b = L/(L+1), d = 1/(L+1), a = c = 1 its growth per diamond is (L+1)^2/L (Theorem 4).  In the target's branch let B_j
be the mean steps from C_j inward until C_j outward, B_0 = W + sum of e_0 over the other branches:

    B_j = 1 + b (2 + d (1 + B_{j-1}) / c) / a.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic

from forkpoint.errors import TaskError
from forkpoint.theory.classes import ClassPolicy, Diamond, in_logs
from forkpoint.theory.graphs import ROWS, Kind
from forkpoint.theory.logarithms import N

LARGEST = 1e300
"""Above this, numbers are given by their logarithm only."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HittingTime:
    """A mean hitting time; `steps` is None where it exceeds what a float holds."""

    steps: float | None
    log_steps: float
    """Natural logarithm of the steps."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BranchSolution(Generic[N]):
    """The classes of one branch, each a tuple of four rows (a, b, c, d) over depth 1..K.

    `visits` are summed over the lanes.  `regrets` is |h(undesired) - h(desired)|; the difference is positive where
    the desired class shortens the walk: at a and c in the target's branch, at b and d in the others.
    """

    is_target: bool
    values: tuple[tuple[N, ...], ...]
    """Mean steps to go, h."""
    visits: tuple[tuple[N, ...], ...]
    """Mean visits before the hit, d."""
    regrets: tuple[tuple[N, ...], ...]

    def sign(self, row: int) -> int:
        """+1 where the desired class of this row shortens the walk, else -1."""
        return 1 if self.is_target == (ROWS[row] in (Kind.RIGHT_IN, Kind.LEFT_IN)) else -1

    def advantages(self, diamonds: Sequence[Diamond[N]], row: int) -> tuple[int, tuple[N, ...], tuple[N, ...]]:
        """The sign s and magnitudes m, n of a row's advantages: A(desired) = s m, A(undesired) = -s n.

        A(s, a) = h(s) - h(a) in steps saved (arXiv 2606.22938, section 3), h(s) the mean over the row's moves.
        """
        regrets = self.regrets[row]
        desired = tuple(d[4 + row] * r for d, r in zip(diamonds, regrets, strict=True))
        undesired = tuple(d[row] * r for d, r in zip(diamonds, regrets, strict=True))
        return self.sign(row), desired, undesired


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassSolution(Generic[N]):
    """One target's exact values: the mean hitting time, and the classes of each kind of branch."""

    steps: N
    fork_value: N
    """Mean steps to go from the fork."""
    fork_visits: N
    """Mean departures from the fork, the first included."""
    target: BranchSolution[N]
    others: tuple[BranchSolution[N], ...]
    """By profile: a branch of that shape which does not hold the target."""


def excursions(policy: ClassPolicy[N], profile: int) -> tuple[N, ...]:
    """The mean steps e_j, j = 0..K, of an excursion beyond C_j in a branch that does not hold the target.

    Raises `ZeroDivisionError` when the walk never returns.
    """
    one, two = policy.number(1), policy.number(2)
    lengths = [one]
    for diamond in reversed(policy.diamonds[profile]):
        a, b, c, d = diamond[:4]
        lengths.append(one + c * (two + a * (one + lengths[-1]) / b) / d)
    return tuple(reversed(lengths))


def detours(policy: ClassPolicy[N], profile: int, first: N) -> tuple[N, ...]:
    """The mean steps B_j, j = 0..K, from C_j inward until C_j outward in the target's branch; B_0 is `first`."""
    one, two = policy.number(1), policy.number(2)
    lengths = [first]
    for a, b, c, d, *_ in policy.diamonds[profile]:
        lengths.append(one + b * (two + d * (one + lengths[-1]) / c) / a)
    return tuple(lengths)


def _first_detour(policy: ClassPolicy[N], profile: int) -> N:
    """B_0 = W + the sum of e_0 over all branches but one of this profile."""
    total = policy.number(policy.graph.branches)
    for index, shape in enumerate(policy.graph.profiles):
        count = shape.count - (index == profile)
        if count:
            total = total + policy.number(count) * excursions(policy, index)[0]
    return total


def _steps_to_go(diamonds: Sequence[Diamond[N]], back: Sequence[N], one: N, zero: N) -> tuple[N, ...]:
    """U_j, j = 0..K: mean steps from C_j outward to the leaf of the target's branch."""
    to_go = [zero]
    for j in range(len(diamonds), 0, -1):
        a, _, c, d, not_a, _, not_c, _ = diamonds[j - 1]
        again = one + back[j - 1]
        through = (one + one + d * again / c) / a
        to_go.append(to_go[-1] + one + not_c * again / c + one + not_a * through)
    return tuple(reversed(to_go))


def target_steps(policy: ClassPolicy[N], profile: int = 0) -> N:
    """The exact mean hitting time of a target in a branch of this profile, in the policy's own numbers.

    Raises `TaskError` when the walk misses the target with positive probability.
    """
    one, zero = policy.number(1), policy.number(0)
    try:
        back = detours(policy, profile, _first_detour(policy, profile))
        return one + back[0] + _steps_to_go(policy.diamonds[profile], back, one, zero)[0]
    except ZeroDivisionError:
        raise TaskError("the policy misses its target forever: its mean hitting time is not finite.") from None


def mean_steps(policy: ClassPolicy[N]) -> N:
    """The exact mean hitting time over all targets, in the policy's own numbers (float, Fraction, LogNumber)."""
    total, branches = policy.number(0), policy.number(policy.graph.branches)
    for index, shape in enumerate(policy.graph.profiles):
        total = total + policy.number(shape.count) * target_steps(policy, index) / branches
    return total


def hitting_time(policy: ClassPolicy[float], *, target: int | None = None) -> HittingTime:
    """The mean hitting time (steps) of one target, or of a uniformly drawn one; in logs where it overflows.

    Raises `TaskError` for a target outside the graph, or when the walk may never hit.

    >>> from forkpoint.theory.classes import golden_policy
    >>> from forkpoint.theory.graphs import PathStar
    >>> round(hitting_time(golden_policy(PathStar.regular(branches=6, depth=2, lanes=1))).log_steps, 4)
    5.7557
    """
    profile = None if target is None else policy.graph.profile_of(policy.graph.check_target(target))
    steps = mean_steps(policy) if profile is None else target_steps(policy, profile)
    if steps < LARGEST:
        return HittingTime(steps=steps, log_steps=math.log(steps))
    logs = in_logs(policy)
    exact = mean_steps(logs) if profile is None else target_steps(logs, profile)
    return HittingTime(steps=None, log_steps=exact.log)


def solve_classes(policy: ClassPolicy[N], *, profile: int = 0) -> ClassSolution[N]:
    """The exact values, visits and regrets of every class, for a target in a branch of this profile.

    Raises `TaskError` when the walk may never hit.
    """
    try:
        return _solve(policy, profile)
    except ZeroDivisionError:
        raise TaskError("the policy misses its target forever: its mean hitting time is not finite.") from None


def _solve(policy: ClassPolicy[N], profile: int) -> ClassSolution[N]:
    one, zero, shapes = policy.number(1), policy.number(0), policy.graph.profiles
    back = detours(policy, profile, _first_detour(policy, profile))
    to_go = _steps_to_go(policy.diamonds[profile], back, one, zero)
    fork_value = back[0] + to_go[0]
    target, entries = _target_branch(policy, profile, back, to_go)
    others = []
    for index, shape in enumerate(shapes):
        if shape.count - (index == profile):
            others.append(_other_branch(policy, index, fork_value, entries))
        else:
            nothing = ((zero,) * shape.depth,) * 4
            others.append(BranchSolution(is_target=False, values=nothing, visits=nothing, regrets=nothing))
    return ClassSolution(
        steps=one + fork_value,
        fork_value=fork_value,
        fork_visits=policy.number(policy.graph.branches) * entries,
        target=target,
        others=tuple(others),
    )


def _target_branch(
    policy: ClassPolicy[N], profile: int, back: Sequence[N], to_go: Sequence[N]
) -> tuple[BranchSolution[N], N]:
    """The branch of the target, and the mean number of entries into it."""
    one, diamonds = policy.number(1), policy.diamonds[profile]
    values, visits, regrets = [], [], []
    inward = policy.number(0)  # visits of C_j inward; outward there is one crossing more
    for j in range(len(diamonds), 0, -1):
        a, b, c, d, not_a, _, not_c, _ = diamonds[j - 1]
        again = (one + back[j - 1]) / c
        through = (one + one + d * again) / a
        values.append((one + not_a * through + to_go[j], back[j] + to_go[j], to_go[j - 1], through + to_go[j]))
        regrets.append((through, through, again, again))
        right_in = (one + b * inward) / a
        left_back = b * inward + not_a * right_in
        before = (d * left_back + not_c) / c
        visits.append((right_in, inward, one + before, left_back))
        inward = before
    branch = BranchSolution(is_target=True, values=_columns(values), visits=_columns(visits), regrets=_columns(regrets))
    return branch, one + inward


def _other_branch(policy: ClassPolicy[N], profile: int, fork_value: N, entries: N) -> BranchSolution[N]:
    """A branch without the target; the walk enters it `entries` times and always returns."""
    one, lengths = policy.number(1), excursions(policy, profile)
    values, visits, regrets = [], [], []
    inward_value, outward = fork_value, entries
    for j, (a, b, c, d, _, not_b, _, not_d) in enumerate(policy.diamonds[profile], 1):
        beyond = (one + lengths[j]) / b
        onward = one + a * beyond
        right_in = inward_value + (one + onward) / d
        left_back = inward_value + (one + not_d * onward) / d
        right_back = left_back + one + not_b * beyond
        values.append((right_in, right_back, lengths[j - 1] + inward_value, left_back))
        regrets.append((beyond, beyond, (one + onward) / d, (one + onward) / d))
        lane_visits = c * outward / d
        beyond_visits = a * lane_visits / b
        visits.append((lane_visits, beyond_visits, outward, lane_visits))
        inward_value, outward = right_back, beyond_visits
    return BranchSolution(
        is_target=False,
        values=_columns(values, reverse=False),
        visits=_columns(visits, reverse=False),
        regrets=_columns(regrets, reverse=False),
    )


def _columns(rows: Sequence[tuple[N, ...]], *, reverse: bool = True) -> tuple[tuple[N, ...], ...]:
    """Four rows over depth, from one tuple of four per depth (the last depth first if `reverse`)."""
    return tuple(zip(*(reversed(rows) if reverse else rows), strict=True))
