"""What a stage's self-distillation needs, found before anything is trained."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from forkpoint.assembly.credit_checks import check_feedback, lacking, told_length
from forkpoint.config.recipe import Bugs, RLStage
from forkpoint.credit.needs import RULE_DEMANDS, offered
from forkpoint.errors import ModelError, RecipeError
from forkpoint.records import Problem
from forkpoint.tasks.protocol import Task

if TYPE_CHECKING:
    from forkpoint.policies.protocol import Policy


def check_distillation(where: str, stage: RLStage, task: Task, policy: "Policy", problems: Sequence[Problem]) -> None:
    """Nothing for a stage that can be its own teacher, or does without.

    Raises:
        RecipeError: the policy is tabular, the task lacks what the teacher is told, or bugs are emulated too.
        ModelError: a teacher's prompt and a rollout do not fit the model's context.
    """
    from forkpoint.policies.causal import CausalPolicy

    settings, where = stage.distillation, f"{where}: distillation"
    if settings is None:
        return
    if not isinstance(policy, CausalPolicy):
        raise RecipeError(f"{where} needs a causal language model ([policy] kind = 'tiny' or 'hf'), not a tabular one.")
    if stage.bugs != Bugs():
        raise RecipeError(f"{where} does not go with emulated bugs: leave out [stage.bugs].")
    met = offered(task, problems[0], by_character=policy.texts.by_character, critic=False)
    # What is told, and how, is that of the credit rule.
    missing = lacking(RULE_DEMANDS["privileged"], {"knowledge": settings.knowledge}, met, task)
    if missing:
        raise RecipeError(f"{where} with knowledge = '{settings.knowledge}' needs {missing}.")
    check_feedback(where, settings.knowledge == "feedback", task, problems[0])
    longest = told_length(task, policy, problems, settings.knowledge)
    if longest + stage.max_new_tokens > policy.context_length:
        raise ModelError(
            f"{where}: a privileged prompt of {longest} tokens and a rollout of {stage.max_new_tokens} do not fit the "
            f"model's context of {policy.context_length}."
        )
