"""What a recipe with `kind = "tabular"` is made of: its policy, sampler and critic."""

from pathlib import Path
from typing import TYPE_CHECKING

from forkpoint.assembly.tables import CRITIC_RULES, build_task
from forkpoint.config.recipe import Recipe, RLStage, TabularPolicy, TextStage
from forkpoint.errors import RecipeError
from forkpoint.tasks.lab import Lab
from forkpoint.tasks.protocol import Task
from forkpoint.theory.classes import golden_policy, optimal_policy, uniform_policy
from forkpoint.theory.graphs import PathStar
from forkpoint.theory.tables import TablePolicy, policy_from_text, spread_policy

if TYPE_CHECKING:
    from forkpoint.policies.tabular import TabularPolicy as Tabular
    from forkpoint.training.critic import TableCritic

STARTS = {"uniform": uniform_policy, "golden": golden_policy, "optimal": optimal_policy}


def build_tabular(recipe: Recipe, spec: TabularPolicy, folder: Path) -> "Tabular":
    """The tabular policy of a recipe, before any stage.

    Raises RecipeError unless all tasks of the recipe are `lab` with one graph and one fork, or when the file that it
    starts from cannot be read; TaskError when that is a policy of another graph.
    """
    from forkpoint.policies.folder import DTYPES
    from forkpoint.policies.tabular import from_theory

    task = lab_task(recipe, folder)
    return from_theory(
        _start(spec, task.graph, folder),
        fork=task.settings.fork,
        architecture=spec.architecture,
        window=spec.window,
        dtype=DTYPES[spec.dtype],
        device=spec.device,
    )


def lab_task(recipe: Recipe, folder: Path) -> Lab:
    """The one lab that all stages of a recipe walk in."""
    found: list[Lab] = []
    for table in [recipe.task, *(stage.task for stage in recipe.stage if stage.task is not None)]:
        task = build_task(table, folder=folder)
        if not isinstance(task, Lab):
            raise RecipeError(f"[policy] kind = 'tabular' needs the task lab, not {task.name}.")
        found.append(task)
    if len({(task.graph, task.settings.fork) for task in found}) > 1:
        raise RecipeError("[policy] kind = 'tabular': the tasks of all stages must have the same graph and fork.")
    return found[0]


def _start(spec: TabularPolicy, graph: PathStar, folder: Path) -> TablePolicy:
    if spec.start in STARTS:
        return spread_policy(STARTS[spec.start](graph))
    path = folder / spec.start
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError):
        known = ", ".join(sorted(STARTS))
        raise RecipeError(f"[policy] start = '{spec.start}' is no policy file; known besides: {known}.") from None
    return policy_from_text(graph, text)


def build_critic(recipe: Recipe, stage: RLStage | TextStage, task: Task) -> "TableCritic | None":
    """A fresh critic for a stage whose credit rule asks for values; None for any other.

    Raises RecipeError for another task or policy: the critic holds one value for each edge of the lab.
    """
    from forkpoint.policies.tabular import OFFSET
    from forkpoint.training.critic import TableCritic

    if not isinstance(stage, RLStage) or stage.credit.rule not in CRITIC_RULES:
        return None
    if not isinstance(task, Lab):
        raise RecipeError(f"[[stage]] '{stage.name}': credit.rule = 'critic' needs the task lab, not {task.name}.")
    if not isinstance(recipe.policy, TabularPolicy):
        raise RecipeError(f"[[stage]] '{stage.name}': credit.rule = 'critic' needs [policy] kind = 'tabular'.")
    gamma = float(stage.credit.options.get("gamma", 1.0))
    return TableCritic(task.graph.state_count + OFFSET, rate=stage.critic_rate, gamma=gamma)
