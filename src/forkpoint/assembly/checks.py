"""Everything that would stop a run, found before it begins."""

import inspect
import itertools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from forkpoint.assembly.build import Assembly, build_policy, evaluation_budget
from forkpoint.assembly.tables import CREDIT_RULES, LOSSES, resolve
from forkpoint.config.recipe import FolderPolicy, Recipe, RLStage, TextStage
from forkpoint.errors import ModelError, RecipeError, TaskError, unknown_name
from forkpoint.records import Problem
from forkpoint.seeds import Key
from forkpoint.tasks.protocol import Finite, Task, split_problems

if TYPE_CHECKING:
    from forkpoint.policies.causal import CausalPolicy

PROBED = 32
"""Problems and texts of an endless task that are tried."""


def check_recipe(recipe: Recipe, origin: Path, run: Path) -> None:
    """Raises the first mistake as a ForkpointError: names, options, lengths, characters, data.

    Builds the policy and every task, encodes prompts and texts of each stage, writes nothing.
    """
    assembly = Assembly(recipe=recipe, origin=origin, run=run)
    for stage in recipe.stage:
        if isinstance(stage, RLStage):
            _check_rules(stage)
    tasks = {stage.name: assembly.task(stage) for stage in recipe.stage}
    policy = build_policy(recipe, origin)
    if isinstance(recipe.policy, FolderPolicy) and recipe.policy.lora is not None:
        assembly.with_adapters(policy, "check")
    for stage in recipe.stage:
        _check_stage(recipe, stage, tasks[stage.name], policy)


def _check_rules(stage: RLStage) -> None:
    from forkpoint.losses import OFF_POLICY_LOSSES

    where = f"[[stage]] '{stage.name}'"
    rule = resolve(f"{where}: credit.rule", stage.credit.rule, CREDIT_RULES)
    _check_options(f"{where}: credit.options", rule, stage.credit.options)
    loss = resolve(f"{where}: loss.name", stage.loss.name, LOSSES)
    _check_options(f"{where}: loss.options", loss, stage.loss.options)
    if stage.credit.rule == "max_rl" and stage.reward.length_penalty:
        raise RecipeError(f"{where}: max_rl needs rewards of at least 0, so reward.length_penalty must be 0.")
    if stage.updates_per_batch > 1 and stage.loss.name in LOSSES and stage.loss.name not in OFF_POLICY_LOSSES:
        raise RecipeError(
            f"{where}: updates_per_batch = {stage.updates_per_batch} needs a loss with a trust region "
            f"({', '.join(sorted(OFF_POLICY_LOSSES))}), not {stage.loss.name}."
        )


def _check_options(where: str, function: Callable[..., Any], options: Mapping[str, Any]) -> None:
    parameters = inspect.signature(function).parameters.values()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return
    known = [parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY]
    for name in options:
        if name not in known:
            raise RecipeError(unknown_name(where, name, known))


def _check_stage(recipe: Recipe, stage: RLStage | TextStage, task: Task, policy: "CausalPolicy") -> None:
    where = f"[[stage]] '{stage.name}'"
    key = Key.root(recipe.seed).child("check")
    if isinstance(task, Finite):
        train = [problem for problem in task.problems() if not problem.is_evaluation]
    else:
        train = split_problems(task, key, PROBED, evaluation=False)
    held_out = split_problems(task, key, PROBED, evaluation=True)
    for name, problems in (("training", train), ("evaluation", held_out)):
        if not problems:
            raise TaskError(f"{where}: the task {task.name} has no {name} problem.")
    budget = evaluation_budget(recipe, stage)
    _check_prompts(where, task, policy, train if isinstance(stage, RLStage) else [], stage)
    for problem in held_out:
        _check_length(where, task, policy, problem, budget)
    if isinstance(stage, TextStage) and stage.updates and not stage.data.startswith("rollouts:"):
        _check_corpus(where, stage, task, policy, key)


def _check_prompts(
    where: str, task: Task, policy: "CausalPolicy", problems: list[Problem], stage: RLStage | TextStage
) -> None:
    if isinstance(stage, RLStage):
        for problem in problems:
            _check_length(where, task, policy, problem, stage.max_new_tokens)


def _check_length(where: str, task: Task, policy: "CausalPolicy", problem: Problem, budget: int) -> None:
    fixed = getattr(task, "budget", None)
    if fixed is not None and fixed(problem) != budget:
        raise RecipeError(
            f"{where}: max_new_tokens = {budget}, but a rollout of {task.name} has exactly {fixed(problem)} tokens."
        )
    length = len(policy.texts.encode_prompt(problem.prompt))
    for stop in task.stop(problem):
        policy.texts.encode(stop)
    if length + budget > policy.context_length:
        raise ModelError(
            f"{where}: a prompt of {length} tokens and a rollout of {budget} do not fit the model's context of "
            f"{policy.context_length}: {str(problem.prompt)[:60]!r}."
        )


def _check_corpus(where: str, stage: TextStage, task: Task, policy: "CausalPolicy", key: Key) -> None:
    from forkpoint.training.imitation import demonstration_example

    if stage.data not in task.corpora:
        raise RecipeError(unknown_name(f"{where}: data", stage.data, task.corpora))
    texts = list(itertools.islice(task.corpus(stage.data, key), PROBED))
    if not texts:
        raise TaskError(f"{where}: the corpus {stage.data} of {task.name} is empty.")
    for text in texts:
        length = len(demonstration_example(policy.texts, text).tokens)
        if length > policy.context_length:
            raise ModelError(
                f"{where}: a text of {length} tokens does not fit the model's context of {policy.context_length}."
            )
