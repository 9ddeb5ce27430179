"""What the checks look at: one batch drawn for them alone, beside the unit that the run has just made.

Drawn under a key of its own purpose, so the run's rollouts and weights are the same with and without the doctor.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np

from forkpoint.batching import Row
from forkpoint.config.recipe import AnyStage, RLStage, TextStage
from forkpoint.doctor.canaries import Trial
from forkpoint.policies.tabular import TabularPolicy
from forkpoint.records import Batch, Credit, Group, TextExample, frozen_array
from forkpoint.tasks.protocol import split_problems
from forkpoint.training.components import Objective, accumulate
from forkpoint.training.forks import ForksTraining
from forkpoint.training.hooks import Loop
from forkpoint.training.imitation import TextTraining
from forkpoint.training.rl import RLTraining, rewarded, usable
from forkpoint.training.rollouts import SamplePlan, judged_groups

Accumulate: TypeAlias = Callable[..., dict[str, float]]
"""The trainer's `training.components.accumulate`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Extent:
    """How much is drawn."""

    problems: int
    group_size: int
    """At most; the stage's own where that is smaller."""
    new_tokens: int
    """At most, for policies that decode token by token."""
    texts: int
    prefixes: int
    """Prefixes of a rollout that are scored one by one."""
    full: bool
    """Whether checks that take long are made."""


SHORT = Extent(problems=2, group_size=4, new_tokens=128, texts=8, prefixes=16, full=False)
FULL = Extent(problems=16, group_size=16, new_tokens=4096, texts=64, prefixes=64, full=True)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Judged:
    """Groups as they came from sampler and verifier, and what became of them."""

    name: str
    groups: tuple[Group, ...]
    group_size: int | None
    """How many rollouts each group must have; None: some may have left it with good reason."""
    batch: Batch
    """The groups that credit was taken of, with rewards."""
    credits: tuple[Credit, ...]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Subject:
    """One stage's loop, and what was drawn from it."""

    loop: Loop
    extent: Extent
    judged: tuple[Judged, ...] = ()
    """The drawn groups first, then the unit's; empty for a stage of texts."""
    texts: tuple[TextExample, ...] = ()
    expected_texts: tuple[str, ...] = ()
    """For each text what is to be imitated, where the corpus says it."""
    rows: tuple[Row, ...] = ()
    """What the trainer consumes."""
    objective: Objective
    trial: Trial
    accumulate: Accumulate = accumulate
    sample_seconds: float = 0.0
    stages: tuple[AnyStage, ...] = ()
    """All stages of the run, for the forecast."""
    timings: dict[str, float] = field(default_factory=dict)
    """Seconds by what took them."""


def draw_subject(
    loop: Loop, extent: Extent, trial: Trial, *, stages: Sequence[AnyStage] = (), purpose: str = "doctor"
) -> Subject:
    """The subject of a loop."""
    began = time.perf_counter()
    training = loop.training
    if isinstance(training, RLTraining):
        drawn = drawn_groups(loop, training, extent, purpose=purpose)
        seconds = time.perf_counter() - began
        rows = training.rows(drawn.batch.groups, drawn.credits) if drawn.credits else []
        return Subject(
            loop=loop, extent=extent, trial=trial, stages=tuple(stages), judged=(drawn, *units(loop)),
            rows=tuple(rows), objective=training.objective, sample_seconds=seconds,
        )  # fmt: skip
    if isinstance(training, ForksTraining):
        # Signed weights on fork tokens are imitation weights; the anchor stays out of these checks.
        forks = tuple(training.rows(loop.done + 1))
        return Subject(
            loop=loop, extent=extent, trial=trial, stages=tuple(stages), texts=tuple(map(_as_text, forks)),
            rows=forks, objective=Objective(imitation=True), sample_seconds=time.perf_counter() - began,
        )  # fmt: skip
    if not isinstance(training, TextTraining):
        raise TypeError(f"the doctor knows no {type(training).__name__}")
    texts = tuple(training.draw(loop.done + 1)[: extent.texts])
    rows = training.rows(texts) if texts else []
    return Subject(
        loop=loop, extent=extent, trial=trial, stages=tuple(stages), texts=texts,
        expected_texts=_expected(loop, len(texts)), rows=tuple(rows), objective=Objective(imitation=True),
        sample_seconds=time.perf_counter() - began,
    )  # fmt: skip


def drawn_groups(loop: Loop, training: RLTraining, extent: Extent, *, purpose: str) -> Judged:
    """Fresh groups of the loop's stage, judged, rewarded and credited as the trainer does."""
    stage = training.stage
    key = loop.key.child(purpose, loop.done)
    count = min(extent.problems, stage.problems_per_update)
    problems = split_problems(loop.task, key.child("problems"), count, evaluation=False)
    size = min(extent.group_size, stage.group_size)
    whole = isinstance(loop.policy, TabularPolicy) or hasattr(loop.task, "budget")
    plan = SamplePlan(
        key=key.child("rollouts"), stage=stage.name, update=loop.done, group_size=size, temperature=stage.temperature,
        max_new_tokens=stage.max_new_tokens if whole else min(stage.max_new_tokens, extent.new_tokens),
    )  # fmt: skip
    groups = tuple(judged_groups(loop.probe, loop.task, loop.policy.texts, problems, plan))
    kept = [usable(group, drop_truncated=False) for group in groups]
    batch = Batch(groups=tuple(group for group in kept if len(group.rollouts) > 1), update=loop.done)
    batch = rewarded(batch, loop.probe, stage)
    credits = training.credits(batch)
    return Judged(name="drawn", groups=groups, group_size=size, batch=batch, credits=tuple(credits))


def units(loop: Loop) -> list[Judged]:
    """The last unit's groups, which the run has trained on."""
    found = []
    for step in loop.steps:
        if not step.groups:
            continue
        stage = loop.stage
        left = step.metrics.get("unusable", 1.0) > 0
        if isinstance(stage, RLStage) and stage.truncated == "drop":
            left |= step.metrics.get("truncated", 1.0) > 0
        size = stage.group_size if isinstance(stage, RLStage) and not left else None
        batch = Batch(groups=step.groups, update=step.update)
        found.append(
            Judged(name=f"update {step.update}", groups=step.groups, group_size=size, batch=batch, credits=step.credits)
        )
    return found


def _as_text(row: Row) -> TextExample:
    return TextExample(
        tokens=frozen_array(np.concatenate([row.prompt, row.tokens]), np.int32),
        loss_mask=frozen_array(np.concatenate([np.zeros(len(row.prompt), np.bool_), row.loss_mask]), np.bool_),
        provenance="a pool of rollouts",
    )


def _expected(loop: Loop, count: int) -> tuple[str, ...]:
    """The texts that a corpus says are to be imitated; none for samples of another stage."""
    stage = loop.stage
    if not isinstance(stage, TextStage) or stage.data not in loop.task.corpora:
        return ()
    stream = loop.task.corpus(stage.data, loop.key.child("texts", loop.done + 1))
    return tuple(text.text for text, _ in zip(stream, range(count), strict=False))
