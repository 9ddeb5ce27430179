"""What a stage with `edits:STAGE` needs of its task, found before anything runs."""

from forkpoint.assembly.credit_checks import check_feedback
from forkpoint.config.recipe import TextStage, data_source
from forkpoint.config.review import ReviewSettings
from forkpoint.errors import RecipeError
from forkpoint.probe import Markable, Privileged, Relabelable, Solver, Stateful, Teachable
from forkpoint.records import Problem
from forkpoint.review.chat import chat_models
from forkpoint.tasks.protocol import Task


def check_review(where: str, stage: TextStage, task: Task, problem: Problem, *, tabular: bool) -> None:
    """Nothing for a stage whose review can be held.

    Raises:
        RecipeError: the task or the policy lacks what it needs; names what would work.
        TaskError: the task's settings forbid it.
    """
    kind = data_source(stage.data)[0]
    if kind in ("edits", "lessons") and tabular:
        raise RecipeError(f"{where}: data = '{stage.data}' needs a causal language model, not a tabular policy.")
    if kind == "lessons":
        if not isinstance(task, Privileged):
            raise RecipeError(f"{where}: data = '{stage.data}' needs `privileged_prompt`, which {task.name} lacks.")
        if not isinstance(task, Teachable):
            raise RecipeError(f"{where}: data = '{stage.data}' needs `lesson_of`, which {task.name} lacks.")
        for text in () if stage.lessons is None else stage.lessons.texts:
            task.privileged_prompt(problem, text)
    if kind != "edits":
        return
    settings = stage.review or ReviewSettings()
    lacks = _lacking(settings, task)
    if lacks:
        able = [edit for edit in ("keep", "prune", "summarise", "relabel") if not _lacking(_only(edit), task)]
        known = ["sibling", *(["solver"] if isinstance(task, Solver) else [])]
        raise RecipeError(
            f"{where}: review.edit = '{settings.edit}' needs {lacks}, which the task {task.name} lacks; it can do "
            f"{', '.join([*able, f'fix with the sources {known}'])}."
        )
    chat_models(settings.chat, where=f"{where}: review.chat")
    told = settings.edit == "fix" and "policy" in settings.sources and "feedback" in settings.knowledge
    check_feedback(f"{where}: review", told, task, problem)
    if settings.edit == "summarise" and isinstance(task, Markable):
        task.dead_end_mark(problem, "", task.solve(problem))


def _only(edit: str) -> ReviewSettings:
    return ReviewSettings.model_validate({"edit": edit})


def _lacking(settings: ReviewSettings, task: Task) -> str:
    """What the task lacks; empty where nothing is missing."""
    if settings.edit == "relabel":
        return "" if isinstance(task, Relabelable) else "`reached`"
    if settings.edit == "summarise" and not isinstance(task, Markable):
        return "`dead_end_mark`"
    if settings.edit in ("prune", "summarise"):
        return "" if isinstance(task, Stateful) else "`state`"
    if settings.edit == "fix" and "solver" in settings.sources and not isinstance(task, Solver):
        return "`right_step` (source solver)"
    # Without the policy's own proposals there may still be those of siblings.
    alone = settings.edit == "fix" and settings.sources == ("policy",) and not settings.chat
    return "`privileged_prompt` (source policy)" if alone and not isinstance(task, Privileged) else ""
