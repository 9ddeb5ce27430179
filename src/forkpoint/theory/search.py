"""The search agent, which never enters a directed edge twice in one call, exactly (Corollary 1 of arXiv 2606.22938).

The tied policy is masked to the moves not yet taken and renormalised; where it gives them no weight, the limit from
inside counts.  Connectors are cut edges, so a branch is entered once and left once; inside a diamond only the number
k of lanes walked outward matters: the walk bounces between its two ends, and leaves

    on the right  with a / (a + (1 - a)(L - k + 1) / L),   on the left  with d / (d + (1 - d)(L - k) / L).

Once back over a connector it cannot go out again.  At the fork (rows frozen) untried branches are equally likely, so
the number of other branches tried before the target is uniform on 0..W-1.  Cost O(K L).
"""

from dataclasses import dataclass

from forkpoint.theory.classes import ClassPolicy, Diamond


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchResult:
    """What a search finds, averaged over targets."""

    hit_probability: float
    """A search fails when it leaves the target's branch without having reached its leaf."""
    steps: float
    """Mean edges walked by the searches that hit, the first edge included; 0 if none can."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Crossing:
    """The first passage through a diamond entered from the left, before anything to its right was seen."""

    leave: float
    """Probability of leaving on the left at once or after some bounces."""
    leave_steps: float
    """Mean steps, on the event of leaving (not conditioned), from the state that enters to the one that leaves."""
    cross: tuple[float, ...]
    """Probability of leaving on the right after k = 1..L lanes outward; that takes 2k steps."""


def search_result(policy: ClassPolicy[float]) -> SearchResult:
    """The exact chance and the exact mean steps of a search with a tied policy, the fork's rows frozen.

    >>> from forkpoint.theory.classes import optimal_policy
    >>> from forkpoint.theory.graphs import PathStar
    >>> search_result(optimal_policy(PathStar.regular(branches=15, depth=15, lanes=5))).steps
    466.0
    """
    graph = policy.graph
    shapes = graph.profiles
    lengths = [_excursion(policy, index) for index in range(len(shapes))]
    total, chance = 0.0, 0.0
    for index, shape in enumerate(shapes):
        hit, inside = _reach(policy, index)
        detour = sum(s.count * (1 + lengths[i]) for i, s in enumerate(shapes)) - (1 + lengths[index])
        chance += shape.count / graph.branches * hit
        total += shape.count / graph.branches * (hit * (2 + detour / 2) + inside)
    return SearchResult(hit_probability=chance, steps=total / chance if chance else 0.0)


def _reach(policy: ClassPolicy[float], profile: int) -> tuple[float, float]:
    """The chance to reach the leaf of the target's branch, and the mean steps inside it on that event."""
    lanes = policy.graph.profiles[profile].lanes
    chance, steps = 1.0, 0.0
    for diamond in policy.diamonds[profile]:
        crossing = _cross(diamond, lanes)
        through = sum(crossing.cross)
        inside = sum(2 * k * p for k, p in enumerate(crossing.cross, 1))
        steps = steps * through + chance * inside
        chance *= through
    return chance, steps


def _excursion(policy: ClassPolicy[float], profile: int) -> float:
    """Mean steps in a branch without the target, from the state that enters it to the one that leaves it."""
    lanes = policy.graph.profiles[profile].lanes
    length = 1.0
    for diamond in reversed(policy.diamonds[profile]):
        crossing, returns = _cross(diamond, lanes), _returns(diamond, lanes)
        beyond = sum(p * (2 * k + length + returns[k - 1]) for k, p in enumerate(crossing.cross, 1))
        length = crossing.leave_steps + beyond
    return length


def _left_exit(diamond: Diamond[float], lanes: int, k: int) -> float:
    """The chance to take the connector back at the left end, k lanes having been walked outward."""
    if k == lanes:
        return 1.0
    onward = diamond.not_d * (lanes - k) / lanes
    return diamond.d / (diamond.d + onward)


def _cross(diamond: Diamond[float], lanes: int) -> _Crossing:
    leave, leave_steps, cross = diamond.not_c, diamond.not_c, []
    mass = diamond.c
    for k in range(1, lanes + 1):
        right = diamond.a / (diamond.a + diamond.not_a * (lanes - k + 1) / lanes)
        cross.append(mass * right)
        back = mass * (1 - right)
        out = _left_exit(diamond, lanes, k)
        leave += back * out
        leave_steps += back * out * (2 * k + 1)
        mass = back * (1 - out)
    return _Crossing(leave=leave, leave_steps=leave_steps, cross=tuple(cross))


def _returns(diamond: Diamond[float], lanes: int) -> list[float]:
    """Mean steps from the right end, back over the connector with k = 1..L lanes used, until left on the left."""
    lengths = [0.0] * (lanes + 1)
    for k in range(lanes, 0, -1):
        again = 0.0 if k == lanes else (1 - _left_exit(diamond, lanes, k)) * (1 + lengths[k])
        # One step over a lane back, then the connector, or a further lane out and the same again.
        lengths[k - 1] = 1 + _left_exit(diamond, lanes, k) + again
    return lengths[:lanes]
