"""What a review says of one rollout, and what a re-rollout says of a proposal.

Positions count tokens after the prompt.  Values are shares of continuations that end correct, 0 to 1.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType

from forkpoint.records import Edit, EditKind

NO_COST: Mapping[str, float] = MappingProxyType({"sampled_tokens": 0.0, "verifier_calls": 0.0})


class Waste(StrEnum):
    """Why a span of a rollout came to nothing."""

    DEAD_END = "dead_end"
    """The rollout came back to where it stood before."""
    RESTART = "restart"
    """It gave up what it had and began again, without going back step by step."""
    NO_CHANGE = "no_change"
    """Nothing that follows depends on it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """The value at a cut, by continuations from there."""

    cut: int
    """Tokens of the rollout that were kept."""
    successes: int
    trials: int

    @property
    def value(self) -> float:
        """The share; 0.5 for no trial."""
        return self.successes / self.trials if self.trials else 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """A step after which the value is not what it was before, on continuations drawn for this test alone."""

    start: int
    end: int
    """Tokens `start` to `end` (exclusive) are the step."""
    change: float
    """Value after the step less value before it; below 0 for an error."""
    interval: tuple[float, float]
    """95 %, of the change."""
    p_value: float
    """Of no change in this direction."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """Tokens `start` to `end` (exclusive) that came to nothing."""

    start: int
    end: int
    why: Waste


@dataclass(frozen=True, slots=True, kw_only=True)
class Review:
    """The postmortem of one rollout."""

    rollout_id: str
    correct: bool
    cuts: tuple[int, ...]
    """Where steps begin, ascending, the first 0."""
    values: tuple[Estimate, ...]
    """At the cuts that were looked at, ascending; all continuations of each together."""
    hinge: Claim | None
    """The significant step with the largest change: down in a failure, up in a success.  None: unsupported."""
    first_error: Claim | None
    """The first significant drop of a failure.  None: unsupported."""
    wasted: tuple[Span, ...] = ()
    cost: Mapping[str, float] = field(default_factory=lambda: dict(NO_COST))
    """`sampled_tokens`, `verifier_calls`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """What re-rollouts said of an edit of kind `fix`: after prefix + fix, against after prefix + a resampled step."""

    edit_id: str
    fixed: tuple[int, int]
    """Successes and trials after the fix, of the test."""
    resampled: tuple[int, int]
    """The same after a step drawn anew."""
    p_value: float
    """Of a fix that is no better than a resampled step."""
    leak: float | None
    """Rise of log p(answer) by the fix alone, all else removed, nats; None where the answer cannot be asked for."""
    accepted: bool
    reason: str
    """Why not; empty for an accepted one."""
    lift: float | None = None
    """Difference of the two shares on fresh rollouts, drawn after acceptance."""
    interval: tuple[float, float] | None = None
    """95 %, of the lift."""
    cost: Mapping[str, float] = field(default_factory=lambda: dict(NO_COST))


def make_edit(rollout_id: str, kind: EditKind, start: int, end: int, text: str, source: str) -> Edit:
    """The edit with its id."""
    fields = [rollout_id, str(kind), start, end, text, source]
    digest = hashlib.sha256(json.dumps(fields).encode("utf-8", "surrogatepass")).hexdigest()[:16]
    return Edit(id=digest, rollout_id=rollout_id, kind=kind, start=start, end=end, text=text, source=source)
