"""The doctor alone: every stage of a recipe that was not run, or of a run's last checkpoints."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from forkpoint.assembly.build import Assembly
from forkpoint.config.recipe import AnyStage, Recipe, RLStage
from forkpoint.errors import ForkpointError, unknown_name

if TYPE_CHECKING:
    from forkpoint.doctor import Check
    from forkpoint.doctor.canaries import Trial
    from forkpoint.training.hooks import Loop
    from forkpoint.training.unit import Step


@dataclass(frozen=True, slots=True, kw_only=True)
class StageExamination:
    """The checks of one stage, and the weights that they were made on."""

    stage: str
    weights: str
    checks: "tuple[Check, ...]"


def examine_recipe(
    recipe: Recipe, origin: Path, run: Path, *, stage: str | None = None, full: bool = False
) -> Iterator[StageExamination]:
    """The examination of each stage that makes updates, all on the policy as built.  Writes nothing.

    Raises RecipeError for a mistake in the recipe, and for a stage that it does not have.
    """
    from forkpoint.assembly.checks import check_recipe

    chosen = _chosen(recipe, stage)
    check_recipe(recipe, origin, run)
    assembly = Assembly(recipe=recipe, origin=origin, run=run, unrun=True)
    for each in chosen:
        if each.updates:
            yield _examination(assembly, assembly.loop(each.name), "the policy as built", full=full)


def examine_run(
    recipe: Recipe, run: Path, *, stage: str | None = None, full: bool = False
) -> Iterator[StageExamination]:
    """The examination of each stage of a run that has a checkpoint, with the rollouts that it kept last.

    Weights are loaded and thrown away; the run stays as it is.  Raises ForkpointError when no stage has a checkpoint.
    """
    from forkpoint.store import latest_checkpoint, stage_folder

    assembly = Assembly(recipe=recipe, origin=run, run=run)
    made = 0
    for each in _chosen(recipe, stage):
        checkpoint = latest_checkpoint(stage_folder(run, each.name))
        if checkpoint is None or not each.updates:
            continue
        made += 1
        loop = assembly.loop(each.name, checkpoint)
        loop = replace(loop, steps=_kept(run, each))
        yield _examination(assembly, loop, str(checkpoint), full=full)
    if not made:
        raise ForkpointError(f"no stage of {run} has a checkpoint yet{f': {stage}' if stage else ''}.")


def _chosen(recipe: Recipe, stage: str | None) -> list[AnyStage]:
    names = [each.name for each in recipe.stage]
    if stage is not None and stage not in names:
        raise ForkpointError(unknown_name("--stage", stage, names))
    return [each for each in recipe.stage if stage in (None, each.name)]


def _kept(run: Path, stage: AnyStage) -> "tuple[Step, ...]":
    """The last update of a stage whose rollouts were kept."""
    from forkpoint.store import RunReader
    from forkpoint.training.unit import Step

    with RunReader(run) as reader:
        updates = reader.kept_updates(stage.name)
        if not isinstance(stage, RLStage) or not updates:
            return ()
        update = updates[-1]
        groups = tuple(reader.groups(stage.name, update))
        credits = tuple(credit for _, credit in reader.credits(stage.name, update))
        metrics: dict[str, float] = {}
        for name in ("unusable", "truncated", "seconds"):
            numbers, values = reader.metrics(stage.name, name)
            at = np.flatnonzero(numbers == update)
            if len(at):
                metrics[name] = float(values[at[0]])
    step = Step(
        update=update, metrics=metrics, seconds=metrics.get("seconds", 0.0), tokens=0, groups=groups, credits=credits
    )
    return (step,)


def _examination(assembly: Assembly, loop: "Loop", weights: str, *, full: bool) -> StageExamination:
    from forkpoint.doctor import FULL, SHORT
    from forkpoint.doctor.hook import TRIED, checked, try_verifier

    extent = FULL if full else SHORT
    tried = _once(assembly, loop, lambda: try_verifier(loop, problems=extent.problems if full else TRIED))
    checks = checked(loop, extent, tried, stages=assembly.recipe.stage, alone=True)
    return StageExamination(stage=loop.stage.name, weights=weights, checks=tuple(checks))


def _once(assembly: Assembly, loop: "Loop", make: "Callable[[], Trial]") -> "Trial":
    """The trial of a task's verifier, made once for all stages that share the task."""
    place = assembly.task_place(loop.stage)
    if place not in assembly.trials:
        assembly.trials[place] = make()
    return assembly.trials[place]
