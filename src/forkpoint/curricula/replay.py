"""Problems that come back: rarely solved ones wait, and are due again after a cool-down."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """A problem to be sampled again; its rollouts will be fresh ones."""

    key: str
    """Of the problem."""
    source: tuple[str | int, ...]
    """Where it was drawn from: the problem is a pure function of this and of the level."""
    level: float | None
    """The difficulty that was asked for."""
    due: int
    """The first update at which it may come back."""
    uses: int = 0
    """How often it came back."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cooling:
    """Who waits, and how long."""

    cooldown: int
    """Updates before a problem may come back."""
    max_reuse: int
    """How often a problem comes back."""
    below: float
    """Pass rates above 0 and up to this one are rare."""
    size: int
    """How many problems wait at most; the newest stay."""


def due_problems(waiting: Sequence[Waiting], update: int, limit: int) -> list[Waiting]:
    """At most `limit` problems whose cool-down is over, the longest waiting first."""
    ready = [entry for entry in waiting if entry.due <= update]
    return sorted(ready, key=lambda entry: (entry.due, entry.key))[:limit]


def cooled(
    waiting: Sequence[Waiting], seen: Iterable[tuple[Waiting, float]], *, update: int, cooling: Cooling
) -> tuple[Waiting, ...]:
    """Who waits after `update`: `seen` are the sampled problems (as they waited, or `uses` 0) with their pass rates.

    A fresh problem waits when it was solved, but rarely.  One that came back waits again until it is no longer rare or
    has come back `max_reuse` times; being unsolved once does not end its wait, since it was solved before.
    """
    found = {entry.key: entry for entry in waiting}
    for entry, rate in seen:
        known = found.pop(entry.key, None)
        uses = max(entry.uses, known.uses if known else 0)
        solvable = rate > 0 or known is not None
        if solvable and rate <= cooling.below and uses < cooling.max_reuse:
            found[entry.key] = replace(entry, due=update + cooling.cooldown, uses=uses)
    return tuple(found.values())[-cooling.size :]
