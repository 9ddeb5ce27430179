"""What one optimizer step hands to the store."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from forkpoint.records import Credit, Group
from forkpoint.training.reflecting import Reflected


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Step:
    """One optimizer step: its metrics and the rollouts behind it."""

    update: int
    metrics: Mapping[str, float]
    seconds: float
    tokens: int
    """Tokens sampled for it."""
    groups: tuple[Group, ...] = ()
    credits: tuple[Credit, ...] = ()
    reflected: tuple[Reflected, ...] = ()
    """What was made of failed attempts among the groups."""


class Training(Protocol):
    """A way to make updates; a unit of several is never split by a stop or a checkpoint."""

    def unit(self, update: int) -> list[Step]:
        """The steps of the unit whose first update is `update`."""
        ...
