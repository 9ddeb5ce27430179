"""What the audits that ask models are given: a stage's last weights, rollouts of them, and the stage before."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from forkpoint.assembly.build import Assembly, build_policy, evaluation_budget
from forkpoint.config.load import load_recipe
from forkpoint.config.policies import FolderPolicy
from forkpoint.config.recipe import RLStage, parent
from forkpoint.errors import ForkpointError
from forkpoint.seeds import Key
from forkpoint.tasks.protocol import split_problems

if TYPE_CHECKING:
    from forkpoint.policies.protocol import Policy
    from forkpoint.probing.comparing import SubjectProbe
    from forkpoint.probing.local import BranchPlan

PROBLEMS = 64
SAMPLES = 4
"""Rollouts of each held-out problem."""


def stage_subject(
    run: Path, stage: str, *, base: tuple[Path, str] | None = None, problems: int = PROBLEMS, samples: int = SAMPLES,
    leads: Sequence[str] = (),
) -> "SubjectProbe":  # fmt: skip
    """The last checkpoint of a stage of a run with fresh rollouts on held-out problems, drawn as in its evaluations.

    `base` is a run and a stage of it; None: the stage that this one starts from, or the model folder of the recipe.
    `leads` are texts before the prompt that `sabotage` tries.

    Raises:
        ContextError: a prompt and the budget of a rollout do not fit the context.
        ForkpointError: there is no checkpoint.
    """
    from forkpoint.policies.causal import CausalPolicy
    from forkpoint.probing.comparing import SubjectPlan, SubjectProbe
    from forkpoint.probing.eliciting import drawn_groups
    from forkpoint.probing.local import BranchPlan, LocalProbe
    from forkpoint.verifiers.guard import guarded

    assembly = Assembly(recipe=load_recipe(run / "recipe.toml"), origin=run, run=run)
    made = assembly.recipe.get_stage(stage)
    task, policy = assembly.task(made), last_policy(assembly, stage)
    key = Key.root(assembly.recipe.seed).child("audit", stage)
    budget = evaluation_budget(assembly.recipe, made)
    verifier = guarded(task.verify, fixed_length=getattr(task, "budget", None))

    def plan(name: str) -> "BranchPlan":
        return BranchPlan(task=task, key=key.child(name), max_new_tokens=budget)

    before = _base_policy(assembly, stage, base)
    both = isinstance(policy, CausalPolicy) and isinstance(before, CausalPolicy)
    other = None
    if before is not None and both:
        other = LocalProbe(before, assembly._sampler(before, task), verifier, plan=plan("base"))
    sampler = assembly._sampler(policy, task)
    asked = LocalProbe(policy, sampler, verifier, plan=plan("policy"))
    drawn = split_problems(task, Key.root(assembly.recipe.seed).child("evaluation"), problems, evaluation=True)
    groups = drawn_groups(asked, plan("rollouts"), drawn, samples=samples, stage=stage)
    pays = made.reward.pays if isinstance(made, RLStage) else "correct"
    mine = SubjectPlan(task=task, key=key.child("policy"), max_new_tokens=budget, leads=tuple(leads), pays=pays)
    return SubjectProbe(policy, sampler, verifier, plan=mine, groups=groups, base=other)


def last_checkpoint(run: Path, stage: str) -> Path:
    """The last checkpoint of a stage that is whole; raises ForkpointError where there is none."""
    from forkpoint.store import latest_checkpoint, stage_folder

    found = latest_checkpoint(stage_folder(run, stage))
    if found is None:
        raise ForkpointError(
            f"stage '{stage}' of {run} has no checkpoint: it is not trained yet, or its files are gone."
        )
    return found


def last_policy(assembly: Assembly, stage: str) -> "Policy":
    """The policy of the last checkpoint of a stage; raises ForkpointError where there is none."""
    found = last_checkpoint(assembly.run, stage)
    return assembly._stage_policy(stage, assembly._parent(assembly.recipe.get_stage(stage)), found)


def _base_policy(assembly: Assembly, stage: str, base: tuple[Path, str] | None) -> "Policy | None":
    """The model that a stage is compared with; None for a stage that starts from nothing, or from what is not there."""
    if base is not None:
        run, name = base
        return last_policy(Assembly(recipe=load_recipe(run / "recipe.toml"), origin=run, run=run), name)
    name_before = parent(assembly.recipe.get_stage(stage))
    if name_before is not None:
        return last_policy(assembly, name_before)
    if not isinstance(assembly.recipe.policy, FolderPolicy):
        return None
    try:
        return build_policy(assembly.recipe, assembly.origin)
    except ForkpointError:
        # A relative path is seen from the recipe's own folder, which a run does not know.
        return None
