"""A healthy loop of a tiny stage, and what the doctor is told of it."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from tiny_runs import BASE, RL, tiny_recipe

from forkpoint.assembly import Assembly
from forkpoint.doctor import SHORT, Subject, draw_subject
from forkpoint.doctor.canaries import Trial, canaries, trial
from forkpoint.records import Rollout, Verdict
from forkpoint.tasks.protocol import split_problems
from forkpoint.training.hooks import Loop
from forkpoint.verifiers.guard import guarded

DIVERGENCE = ("stage.rl.divergence.coefficient=0.1", "stage.rl.learning_rate=0.01")


def healthy_loop(*overrides: str, stage: str = "rl", kind: tuple[str, ...] = (BASE, RL)) -> Loop:
    """The loop of a tiny stage that nothing is wrong with."""
    recipe = tiny_recipe(*kind, overrides=(*DIVERGENCE, *overrides) if RL in kind else overrides)
    return Assembly(recipe=recipe, origin=Path(), run=Path("nowhere"), unrun=True).loop(stage)


def tried(loop: Loop, verifier: Callable[..., Verdict] | None = None, *, problems: int = 2, **seconds: float) -> Trial:
    """What a verifier says of the canaries, in its own process."""
    drawn = split_problems(loop.task, loop.key.child("canaries"), problems, evaluation=False)
    verify = guarded(verifier or loop.task.verify)
    return trial(lambda problem, rollouts: [verify(problem, each) for each in rollouts], canaries(loop.task, drawn),
                 **seconds)  # fmt: skip


def subject_of(loop: Loop, extent=SHORT) -> Subject:
    """What the checks look at."""
    return draw_subject(loop, extent, tried(loop))


@dataclass
class Sampling:
    """A probe whose rollouts are changed on their way."""

    probe: object
    change: Callable[[list[Rollout]], list[Rollout]] = list
    requests: Callable[[object], object] = lambda request: request

    def sample(self, requests):
        return self.change(self.probe.sample([self.requests(request) for request in requests]))

    def __getattr__(self, name):
        return getattr(self.probe, name)


def with_rollouts(loop: Loop, change: Callable[[list[Rollout]], list[Rollout]], **more) -> Loop:
    """The loop with a probe that changes what it has sampled."""
    probe = Sampling(loop.probe, change, **more)
    return replace(loop, probe=probe, training=replace(loop.training, probe=probe))


def each(change: Callable[[Rollout], Rollout]) -> Callable[[list[Rollout]], list[Rollout]]:
    return lambda rollouts: [change(rollout) for rollout in rollouts]
