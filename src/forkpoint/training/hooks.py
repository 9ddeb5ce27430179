"""What looks at a stage from outside while it runs: the doctor, audits."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from forkpoint.config.recipe import AnyStage
from forkpoint.errors import ForkpointError
from forkpoint.policies.protocol import Policy
from forkpoint.probe import Probe
from forkpoint.records import Finding, Group
from forkpoint.seeds import Key
from forkpoint.tasks.protocol import Task
from forkpoint.training.unit import Step, Training


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Loop:
    """A view of a stage's loop: what a hook sees and must leave as it is."""

    run: Path
    """The run's folder."""
    stage: AnyStage
    key: Key
    """Names the run and the stage."""
    task: Task
    policy: Policy
    probe: Probe
    training: Training
    done: int
    """Updates that were made."""
    previous: int = 0
    """Updates that were made before the last unit."""
    steps: tuple[Step, ...] = ()
    """The last unit; empty before the first one of this process."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Inspection:
    """What a hook found; `stop` ends the stage after the findings are stored."""

    audit: str
    """Whose findings these are: they replace earlier ones of the same update."""
    findings: tuple[Finding, ...] = ()
    metrics: Mapping[str, float] = field(default_factory=dict)
    """Of the update that was just made."""
    evidence: tuple[Group, ...] = ()
    """Rollouts that findings name and the store did not keep, all of one update."""
    stop: ForkpointError | None = None


Hook: TypeAlias = Callable[[Loop], Inspection | None]
"""Called before the first update and after every unit; None: nothing to say.  Changes no weight and draws nothing
from the random streams of the run."""
