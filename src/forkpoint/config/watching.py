"""What a recipe may say of watching a run: checks of the loop, and audits while it learns."""

from typing import Annotated, Literal

from pydantic import Field

from forkpoint.config.strict import Strict


class Doctor(Strict):
    """When the learning loop is checked (docs/doctor.md); a sick check stops the stage."""

    before: bool = True
    """A short form before the first update of each stage."""
    every: Annotated[int, Field(ge=0, le=10_000_000)] = 100
    """Updates between later checks; 0: none."""
    drift: Literal["watch", "stop", "off"] = "watch"
    """Whether tokens that dense credit leaves out are watched in RL stages (docs/credit/drift.md); `stop` also ends a
    stage that is sick of them."""


class Audits(Strict):
    """When RL stages are audited while they run (docs/audits.md); no finding stops one."""

    every: Annotated[int, Field(ge=0, le=10_000_000)] = 50
    """Updates between audits; 0: none."""
    pairs: Annotated[int, Field(ge=0, le=4096)] = 64
    """Most reasonings that are scored after each other's prompts; 0: the audits of records alone."""
    share: Annotated[float, Field(ge=0, le=1)] = 0.02
    """Most of the stage's cost that this scoring may take, counted in forwards; fewer reasonings where it would."""
