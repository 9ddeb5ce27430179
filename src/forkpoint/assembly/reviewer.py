"""What a review of a stage is held with: its last weights, and rollouts of it on training problems."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from forkpoint.assembly.build import Assembly, evaluation_budget
from forkpoint.assembly.subject import last_checkpoint, last_policy
from forkpoint.config.load import load_recipe
from forkpoint.config.recipe import ForksStage, RLStage
from forkpoint.records import Group, Problem
from forkpoint.seeds import Key
from forkpoint.store import RunReader
from forkpoint.store.checkpoints import checkpoint_update
from forkpoint.tasks.protocol import Task, split_problems

if TYPE_CHECKING:
    from forkpoint.policies.protocol import Policy
    from forkpoint.probing.local import LocalProbe

TRAIN, REVIEW = "train", "review"
"""Purposes of rollouts that may be reviewed: those of the stage, and fresh ones drawn for a review."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Reviewer:
    """The stage under review."""

    run: Path
    stage: str
    update: int
    """Of the weights that answer."""
    task: Task
    policy: "Policy"
    probe: "LocalProbe"
    key: Key
    max_new_tokens: int
    temperature: float

    def stored(self, *, fresh: bool) -> Iterator[Group]:
        """The rollouts that may be reviewed, the latest update first; with `fresh` those of earlier reviews alone."""
        with RunReader(self.run) as reader:
            for purpose in (REVIEW,) if fresh else (TRAIN, REVIEW):
                for update in reversed(reader.kept_updates(self.stage, purpose)):
                    yield from reader.groups(self.stage, update, purpose)

    def some_problem(self) -> Problem:
        """A training problem to try prompts on."""
        return split_problems(self.task, self.key.child("example"), 1, evaluation=False)[0]

    def draw(self, problems: int, group_size: int, *, number: int) -> list[Group]:
        """Fresh rollouts on training problems; `number` tells the draws of one stage apart."""
        from forkpoint.training.rollouts import SamplePlan, judged_groups

        key = self.key.child("rollouts", number)
        plan = SamplePlan(
            key=key, stage=self.stage, update=self.update, group_size=group_size, max_new_tokens=self.max_new_tokens,
            temperature=self.temperature,
        )  # fmt: skip
        drawn = split_problems(self.task, key.child("problems"), problems, evaluation=False)
        return judged_groups(self.probe, self.task, self.policy.texts, drawn, plan)


def stage_reviewer(run: Path, stage: str) -> Reviewer:
    """The last checkpoint of a stage, ready to continue and to judge rollouts.

    Raises:
        ForkpointError: there is no such stage, or no checkpoint.
    """
    assembly = Assembly(recipe=load_recipe(run / "recipe.toml"), origin=run, run=run)
    with RunReader(run) as reader:
        reader.stage(stage)
    made = assembly.recipe.get_stage(stage)
    policy, task = last_policy(assembly, stage), assembly.task(made)
    update = checkpoint_update(last_checkpoint(run, stage))
    key = Key.root(assembly.recipe.seed).child("review", stage)
    if isinstance(made, RLStage | ForksStage):
        # What the stage stored was drawn so, and its values are those of rollouts of this length.
        budget, temperature = made.max_new_tokens, made.temperature
    else:
        budget = evaluation_budget(assembly.recipe, made)
        temperature = assembly.recipe.evaluation.temperature
    return Reviewer(
        run=run, stage=stage, update=update, task=task, policy=policy, key=key, max_new_tokens=budget,
        probe=assembly.branching_probe(policy, task, key.child("probe"), budget), temperature=temperature,
    )  # fmt: skip
