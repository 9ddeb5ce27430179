"""The doctor as a hook of a stage: before its first update in a short form, then every N updates."""

from collections.abc import MutableMapping, Sequence
from dataclasses import dataclass, field

from forkpoint.config.recipe import AnyStage
from forkpoint.doctor.canaries import Trial, canaries, judged, trial
from forkpoint.doctor.check import AUDIT, Check, findings, sickness
from forkpoint.doctor.subject import SHORT, Extent, draw_subject
from forkpoint.doctor.table import examine
from forkpoint.doctor.verdicts import trial_alive
from forkpoint.tasks.protocol import split_problems
from forkpoint.training.hooks import Inspection, Loop

TRIED = 4
"""Problems whose canaries are judged in the short form."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DoctorHook:
    """Checks the loop; a sick check stops the stage with a DoctorError."""

    before: bool
    every: int
    """Updates between checks; 0: none."""
    stages: tuple[AnyStage, ...] = ()
    """All stages of the run, for the forecast."""
    task_name: str = ""
    """Names the task among those of the run: its verifier is tried once in a process."""
    trials: MutableMapping[str, Trial] = field(default_factory=dict)

    def __call__(self, loop: Loop) -> Inspection | None:
        """What was found, or None when nothing is due.

        After a resume the loop is checked again, but nothing is stored: the rows of a run do not depend on its stops.
        """
        if loop.steps:
            if not self.every or loop.done // self.every == loop.previous // self.every:
                return None
            tried = alive(loop)
        else:
            if not self.before:
                return None
            if self.task_name not in self.trials:
                self.trials[self.task_name] = try_verifier(loop, problems=TRIED)
            tried = self.trials[self.task_name]
        checks = checked(loop, SHORT, tried, stages=self.stages)
        kept = findings(checks) if loop.steps or not loop.done else ()
        return Inspection(audit=AUDIT, findings=kept, stop=sickness(checks))


def checked(
    loop: Loop, extent: Extent, tried: Trial, *, stages: Sequence[AnyStage], alone: bool = False
) -> list[Check]:
    """All checks of a loop; only that of the verifier where it is sick, since the rest would wait for it in vain."""
    alive = trial_alive(tried)
    if alive.status == "sick":
        return [alive]
    return examine(draw_subject(loop, extent, tried, stages=stages), alone=alone)


def try_verifier(loop: Loop, *, problems: int) -> Trial:
    """The verifier's judgements on the canaries of some training problems, in a process of its own."""
    drawn = split_problems(loop.task, loop.key.child("doctor", "canaries"), problems, evaluation=False)
    chosen = canaries(loop.task, drawn)
    close = getattr(loop.task, "close", None)
    return trial(loop.probe.verify, chosen, close=close if callable(close) else lambda: None)


def alive(loop: Loop) -> Trial:
    """The judgements on the canaries of one problem, in this process: rollouts are being judged in it anyway."""
    drawn = split_problems(loop.task, loop.key.child("doctor", "canaries", loop.done), 1, evaluation=False)
    return Trial(judgements=tuple(judged(loop.probe.verify, canary) for canary in canaries(loop.task, drawn)))
