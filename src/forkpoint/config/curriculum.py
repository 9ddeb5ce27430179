"""What a recipe may say of a curriculum: which problems come, and which groups are trained on."""

from typing import Annotated

from pydantic import Field, model_validator

from forkpoint.config.strict import Strict
from forkpoint.errors import unknown_name


class Staircase(Strict):
    """Difficulty that follows the policy, for tasks with a dial."""

    up: Annotated[float, Field(gt=0, lt=1)] = 0.7
    """One level up when the pass rate at the present one is above this."""
    down: Annotated[float, Field(ge=0, lt=1)] = 0.3
    """One level down when it is below this; must be below `up`."""
    window: Annotated[int, Field(ge=1)] = 256
    """Rollouts judged at the present level before its pass rate is looked at."""
    inclusive: bool = True
    """Whether easier levels stay in the mix; without them they are forgotten."""

    @model_validator(mode="after")
    def _a_band(self) -> "Staircase":
        if self.down >= self.up:
            raise ValueError(f"down = {self.down} must be below up = {self.up}")
        return self


class Replay(Strict):
    """Problems that are solved rarely come back, each time with fresh rollouts."""

    cooldown: Annotated[int, Field(ge=1)] = 5
    """Updates before a problem may come back."""
    max_reuse: Annotated[int, Field(ge=1, le=1000)] = 3
    """How often a problem comes back."""
    below: Annotated[float, Field(gt=0, le=1)] = 0.25
    """Pass rates above 0 and up to this one are rare."""
    share: Annotated[float, Field(gt=0, lt=1)] = 0.25
    """Most of a batch's problems that come back, as a share."""
    size: Annotated[int, Field(ge=1, le=100_000)] = 1024
    """How many problems wait at most."""


class Curriculum(Strict):
    """Which problems are sampled and which groups are trained on (docs/curricula.md)."""

    signal: str = "correct"
    """What all of it reads; only `correct` is accepted."""
    by: str = ""
    """What shares a pass rate: `problem`, `difficulty`, or a name in the problems' metadata.  Empty: `problem` for a
    task with a fixed list, else `difficulty`."""
    levels: tuple[Annotated[float, Field(ge=0, le=1)], ...] = ()
    """Difficulties that problems are drawn from, evenly; one given twice comes twice as often.  Empty: the task's."""
    oversample: Annotated[int, Field(ge=1, le=64)] = 4
    """Candidates for each problem that is sampled; 1: no selection."""
    floor: Annotated[float, Field(gt=0, le=1)] = 0.1
    """Share of the selection that is uniform, so that every candidate may be picked."""
    half_life: Annotated[float, Field(ge=0)] = 50.0
    """Updates after which a rollout counts half in a pass rate; 0: it always counts."""
    refill: Annotated[int, Field(ge=0, le=16)] = 0
    """Rounds of fresh problems in place of groups that are all right or all wrong."""
    keep_variance: Annotated[float, Field(gt=0, le=1)] = 1.0
    """The groups with the largest variance of `correct` stay, up to this share of its sum; 1: all groups stay."""
    staircase: Staircase | None = None
    replay: Replay | None = None

    @model_validator(mode="after")
    def _reads_correct(self) -> "Curriculum":
        if self.signal in ("reward", "score"):
            raise ValueError(
                f"signal = '{self.signal}' is refused: a {self.signal} differs between rollouts that are all wrong, so "
                "problems would be kept for their shaping and not for what can be learned from them (filtering on a "
                "shaped reward took GSM8K from 0.75 to 0.04 in a published run); the only signal is 'correct'"
            )
        if self.signal != "correct":
            raise ValueError(unknown_name("signal", self.signal, ["correct"]))
        if self.staircase is not None and (len(self.levels) < 2 or sorted(set(self.levels)) != list(self.levels)):
            raise ValueError("staircase needs levels: two or more difficulties, ascending")
        return self
