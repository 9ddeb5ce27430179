"""Difficulty that follows the policy: a level and what was seen at it in, the next level out."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Stairs:
    """The level reached, and the rollouts judged at it since it was reached or last looked at."""

    level: int = 0
    """Index into the levels, from the easiest."""
    correct: int = 0
    judged: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """When the level changes."""

    levels: int
    up: float
    """One level up above this pass rate."""
    down: float
    """One level down below this one; the band between the two is where it stays."""
    window: int
    """Rollouts that are judged before the pass rate is looked at."""


def climbed(stairs: Stairs, correct: int, judged: int, bounds: Bounds) -> Stairs:
    """The stairs after `correct` of `judged` rollouts at the present level.

    Every look begins a fresh window, so one lucky batch cannot count twice and a move must be earned at its own level.
    """
    correct, judged = stairs.correct + correct, stairs.judged + judged
    if judged < bounds.window:
        return Stairs(level=stairs.level, correct=correct, judged=judged)
    rate = correct / judged
    move = (rate > bounds.up) - (rate < bounds.down)
    return Stairs(level=min(max(stairs.level + move, 0), bounds.levels - 1))


def open_levels(stairs: Stairs, levels: Sequence[float], *, inclusive: bool) -> tuple[float, ...]:
    """The difficulties that problems are drawn from: up to the present level, or this one alone.

    Without the easier ones they are forgotten.
    """
    return tuple(levels[0 if inclusive else stairs.level : stairs.level + 1])
