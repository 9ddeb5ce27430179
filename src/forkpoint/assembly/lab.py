"""What a recipe with `kind = "tabular"` is made of: its task and its policy."""

from pathlib import Path
from typing import TYPE_CHECKING

from forkpoint.assembly.tables import build_task
from forkpoint.config.policies import TabularPolicy
from forkpoint.config.recipe import Recipe
from forkpoint.errors import RecipeError
from forkpoint.tasks.lab import Lab
from forkpoint.theory.classes import golden_policy, optimal_policy, uniform_policy
from forkpoint.theory.graphs import PathStar
from forkpoint.theory.tables import TablePolicy, policy_from_text, spread_policy

if TYPE_CHECKING:
    from forkpoint.policies.tabular import TabularPolicy as Tabular

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
