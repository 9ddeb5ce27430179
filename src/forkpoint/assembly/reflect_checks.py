"""What a stage with reflections needs, found before anything is trained."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from forkpoint.config.recipe import RLStage
from forkpoint.errors import ModelError, RecipeError
from forkpoint.probe import Reflective
from forkpoint.records import Problem
from forkpoint.tasks.protocol import Interactive, Task

if TYPE_CHECKING:
    from forkpoint.policies.protocol import Policy


def check_reflect(where: str, stage: RLStage, task: Task, policy: "Policy", problems: Sequence[Problem]) -> None:
    """Nothing for a stage that can reflect, or does not.

    Raises:
        RecipeError: the policy is tabular, or the task has replies or no prompts for reflections.
        ModelError: a failed attempt and a reflection, or a hint and a retry, do not fit the model's context.
    """
    from forkpoint.policies.causal import CausalPolicy

    settings, where = stage.reflect, f"{where}: reflect"
    if settings is None:
        return
    if not isinstance(policy, CausalPolicy):
        raise RecipeError(f"{where} needs a causal language model ([policy] kind = 'tiny' or 'hf'), not a tabular one.")
    if not isinstance(task, Reflective) or isinstance(task, Interactive):
        raise RecipeError(
            f"{where} needs a task with `reflection_prompt` and `retry_prompt` and without replies, such as dialect; "
            f"{task.name} is none."
        )
    prompts = [policy.texts.encode_prompt(problem.prompt) for problem in problems]
    asked = [policy.texts.encode_prompt(task.reflection_prompt(problem, "")) for problem in problems]
    longest = {
        "a prompt, a failed attempt and a reflection": max(map(len, asked)) + stage.max_new_tokens,
        # A hint takes the place of what it says, and a divider.
        "a prompt with a reflection in it and a retry": max(map(len, prompts)) + stage.max_new_tokens + 1,
    }
    for what, length in longest.items():
        if length + settings.max_new_tokens > policy.context_length:
            raise ModelError(
                f"{where}: {what} take up to {length + settings.max_new_tokens} tokens, above the model's context of "
                f"{policy.context_length}."
            )
