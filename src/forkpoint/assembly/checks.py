"""Everything that would stop a run, found before it begins."""

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from forkpoint.assembly.build import Assembly, build_policy, evaluation_budget
from forkpoint.assembly.credit_checks import (
    CreditPlan,
    check_credit_lengths,
    check_declared,
    check_needs,
    plan_credit,
    try_credit,
)
from forkpoint.assembly.critics import CriticKind, critic_kind
from forkpoint.assembly.distillation_checks import check_distillation
from forkpoint.assembly.reflect_checks import check_reflect
from forkpoint.assembly.review_checks import check_review
from forkpoint.assembly.tables import CREDIT_RULES, LOSSES, check_call, check_options, resolve
from forkpoint.config.curriculum import Curriculum
from forkpoint.config.policies import FolderPolicy, TabularPolicy
from forkpoint.config.recipe import AnyStage, ForksStage, Recipe, RLStage, TextStage, data_source, text_file
from forkpoint.credit.masks import WRAPPERS
from forkpoint.errors import ModelError, RecipeError, TaskError, unknown_name
from forkpoint.records import Problem
from forkpoint.seeds import Key
from forkpoint.tasks.demonstrations import read_demonstrations
from forkpoint.tasks.protocol import Demonstration, Finite, Task, split_problems

if TYPE_CHECKING:
    from forkpoint.policies.protocol import Policy

PROBED = 32
"""Problems and texts of an endless task that are tried."""


def check_recipe(recipe: Recipe, origin: Path, run: Path) -> dict[str, CreditPlan]:
    """What is known of the credit of each RL stage, by the stage's name.

    Raises the first mistake as a ForkpointError: names, options, needs, lengths, characters, data.
    Builds the policy and every task, encodes prompts and texts of each stage, writes nothing.
    """
    assembly = Assembly(recipe=recipe, origin=origin, run=run, unrun=True)
    for stage in recipe.stage:
        if isinstance(stage, RLStage):
            _check_rules(stage)
        if isinstance(stage, ForksStage) and isinstance(recipe.policy, TabularPolicy):
            raise RecipeError(
                f"[[stage]] '{stage.name}': kind = 'forks' needs a causal language model ([policy] kind = 'tiny' or "
                "'hf'), not 'tabular'."
            )
    tasks = {stage.name: assembly.task(stage) for stage in recipe.stage}
    for shift in recipe.evaluation.shifted:
        assembly.shifted_task(shift)
    critics = {stage.name: critic_kind(recipe, stage) for stage in recipe.stage}
    check_device(recipe.policy.device)
    policy = build_policy(recipe, origin)
    if isinstance(recipe.policy, FolderPolicy) and recipe.policy.lora is not None:
        assembly.with_adapters(policy, "check")
    _check_shifted(assembly, policy)
    plans = {}
    for stage in recipe.stage:
        train = _check_stage(recipe, stage, tasks[stage.name], policy, origin)
        if isinstance(stage, RLStage):
            plans[stage.name] = _check_credit(stage, tasks[stage.name], policy, train, critics[stage.name])
    return plans


def _check_credit(
    stage: RLStage, task: Task, policy: "Policy", train: Sequence[Problem], critic: CriticKind | None
) -> CreditPlan:
    """What is known of a stage's credit; raises a ForkpointError where the task or the policy lacks what it needs."""
    where = f"[[stage]] '{stage.name}'"
    check_needs(where, stage, task, train[0], by_character=policy.texts.by_character)
    rule = resolve(f"{where}: credit.rule", stage.credit.rule, CREDIT_RULES)
    check_declared(where, stage, rule, task, train[0], by_character=policy.texts.by_character)
    try_credit(where, stage, rule, task, train[0])
    check_credit_lengths(where, stage, task, policy, train[:PROBED])
    check_distillation(where, stage, task, policy, train[:PROBED])
    check_reflect(where, stage, task, policy, train[:PROBED])
    return plan_credit(stage, task, policy, train[0], critic=critic)


def check_device(device: str) -> None:
    """Raises RecipeError when torch cannot compute on a device of this name here."""
    import torch

    try:
        torch.empty(0, device=device)
    except (AssertionError, RuntimeError) as error:
        line = str(error).splitlines()[0].rstrip(".")
        raise RecipeError(f"[policy] device = '{device}' cannot be used here: {line}.") from None


def _check_rules(stage: RLStage) -> None:
    from forkpoint.losses import OFF_POLICY_LOSSES

    where = f"[[stage]] '{stage.name}'"
    rule = resolve(f"{where}: credit.rule", stage.credit.rule, CREDIT_RULES)
    check_options(f"{where}: credit.options", rule, stage.credit.options)
    check_call(f"{where}: credit.rule = '{stage.credit.rule}'", rule, 2, stage.credit.options)
    loss = resolve(f"{where}: loss.name", stage.loss.name, LOSSES)
    check_options(f"{where}: loss.options", loss, stage.loss.options)
    check_call(f"{where}: loss.name = '{stage.loss.name}'", loss, 4, stage.loss.options)
    for name in stage.credit.wrap:
        if name not in WRAPPERS:
            raise RecipeError(unknown_name(f"{where}: credit.wrap", name, WRAPPERS))
        check_options(f"{where}: credit.wrap_options.{name}", WRAPPERS[name], stage.credit.wrap_options.get(name, {}))
    _try_loss(where, stage, loss)
    if stage.credit.rule == "max_rl" and stage.reward.length_penalty:
        raise RecipeError(f"{where}: max_rl needs rewards of at least 0, so reward.length_penalty must be 0.")
    if stage.updates_per_batch > 1 and stage.loss.name in LOSSES and stage.loss.name not in OFF_POLICY_LOSSES:
        raise RecipeError(
            f"{where}: updates_per_batch = {stage.updates_per_batch} needs a loss with a trust region "
            f"({', '.join(sorted(OFF_POLICY_LOSSES))}), not {stage.loss.name}."
        )


def _try_loss(where: str, stage: RLStage, loss: Callable[..., Any]) -> None:
    """Calls our own loss once, on next to nothing, so that it refuses options out of bounds before training."""
    import torch

    number = torch.zeros(1, 1)
    try:
        if stage.loss.name in LOSSES:
            loss(number, number, number, number, **stage.loss.options)
    except ValueError as error:
        raise RecipeError(f"{where}: {error}") from None


def _check_curriculum(settings: Curriculum, task: Task, key: Key) -> None:
    """Raises TaskError where the task lacks what a curriculum goes by."""
    from forkpoint.training.candidates import Candidates

    Candidates(settings, task, key)


def _check_stage(recipe: Recipe, stage: AnyStage, task: Task, policy: "Policy", origin: Path) -> list[Problem]:
    """Training problems of the stage; raises a ForkpointError for one that does not fit."""
    where = f"[[stage]] '{stage.name}'"
    key = Key.root(recipe.seed).child("check")
    if isinstance(task, Finite):
        train = [problem for problem in task.problems() if not problem.is_evaluation]
    else:
        train = split_problems(task, key, PROBED, evaluation=False)
    if isinstance(stage, RLStage) and stage.curriculum is not None:
        _check_curriculum(stage.curriculum, task, key)
    held_out = split_problems(task, key, PROBED, evaluation=True)
    for name, problems in (("training", train), ("evaluation", held_out)):
        if not problems:
            raise TaskError(f"{where}: the task {task.name} has no {name} problem.")
    for problem in held_out:
        check_length(where, task, policy, problem, evaluation_budget(recipe, stage))
    if isinstance(stage, TextStage):
        check_review(where, stage, task, train[0], tabular=isinstance(recipe.policy, TabularPolicy))
        _check_texts(where, stage, task, policy, key, origin)
    budget = _sampling_budget(recipe, stage)
    if budget is not None:
        for problem in train:
            check_length(where, task, policy, problem, budget)
    return train


def _check_shifted(assembly: Assembly, policy: "Policy") -> None:
    """Raises a ForkpointError for another task of the evaluation that has no problem or does not fit the model."""
    recipe = assembly.recipe
    for shift in recipe.evaluation.shifted:
        where, task = f"[[evaluation.shifted]] '{shift.name}'", assembly.shifted_task(shift)
        problems = split_problems(task, Key.root(recipe.seed).child("check"), PROBED, evaluation=True)
        if not problems:
            raise TaskError(f"{where}: the task {task.name} has no evaluation problem.")
        longest = max(shift.max_new_tokens or evaluation_budget(recipe, stage) for stage in recipe.stage)
        for problem in problems:
            check_length(where, task, policy, problem, longest)


def _check_texts(where: str, stage: TextStage, task: Task, policy: "Policy", key: Key, origin: Path) -> None:
    """Raises a ForkpointError for a corpus or a file that is not there, or whose texts do not fit the model."""
    named = {where: stage.data} if stage.data else {}
    if stage.mix is not None:
        named[f"{where}: mix"] = stage.mix.data
    for place, data in named.items():
        path = text_file(data)
        if path is not None:
            _check_fit(place, read_demonstrations(origin / path, name=path), policy)
        elif data_source(data)[1] is None:
            _check_corpus(place, data, task, policy, key)


def _sampling_budget(recipe: Recipe, stage: AnyStage) -> int | None:
    """Most tokens of the rollouts on training problems that a stage learns from; None for one of texts alone."""
    if isinstance(stage, RLStage | ForksStage):
        return stage.max_new_tokens
    source = data_source(stage.data)[1]
    return None if source is None else evaluation_budget(recipe, recipe.get_stage(source))


def check_length(where: str, task: Task, policy: "Policy", problem: Problem, budget: int) -> None:
    """Raises a ForkpointError when a rollout of `budget` tokens of this problem does not fit the task or the model."""
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


def _check_corpus(where: str, data: str, task: Task, policy: "Policy", key: Key) -> None:
    if data not in task.corpora:
        raise RecipeError(unknown_name(f"{where}: data", data, task.corpora))
    texts = list(itertools.islice(task.corpus(data, key), PROBED))
    if not texts:
        raise TaskError(f"{where}: the corpus {data} of {task.name} is empty.")
    _check_fit(where, texts, policy)


def _check_fit(where: str, texts: Sequence[Demonstration], policy: "Policy") -> None:
    """Raises a ModelError for a text that the model cannot read, or that is too long for it."""
    from forkpoint.training.imitation import demonstration_example

    for text in texts:
        # A line of a file can be looked at; what a corpus drew has no place.
        place = f"{where}: {text.provenance}" if text.provenance.startswith("file:") else where
        try:
            length = len(demonstration_example(policy.texts, text).tokens)
        except ModelError as error:
            raise ModelError(f"{place}: {error}") from None
        if length > policy.context_length:
            raise ModelError(
                f"{place}: a text of {length} tokens does not fit the model's context of {policy.context_length}."
            )
