"""The texts that audited lessons make: written with the lessons in the prompt, imitated without them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from forkpoint.config.review import LessonSettings
from forkpoint.errors import RecipeError
from forkpoint.policies.texts import Texts
from forkpoint.probe import Privileged, Probe
from forkpoint.records import Lesson, Problem, TextExample
from forkpoint.review.lesson_audits import audit_document, audit_lessons, reading_gate, update
from forkpoint.review.lessons import TrialPlan, distilled_examples, make_lesson, merged, propose_lessons, tell
from forkpoint.store import StoredLesson
from forkpoint.tasks.protocol import Task, split_problems
from forkpoint.training.rollouts import SamplePlan, judged_groups


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Taught:
    """What became of the lessons, and the texts to imitate."""

    lessons: tuple[StoredLesson, ...]
    examples: tuple[TextExample, ...]
    gate: str
    """Whether the policy reads lessons, in one line."""
    tokens: int
    """Sampled in all."""

    @property
    def line(self) -> str:
        """What happened, in one line."""
        alive = [each.lesson.text for each in self.lessons if lives(each)]
        return (
            f"{len(alive)} of {len(self.lessons)} lessons live ({'; '.join(alive)[:200]}), {len(self.examples)} texts, "
            f"{self.tokens} tokens sampled; {self.gate}"
        )


def joined(stored: Sequence[StoredLesson], found: Sequence[Lesson]) -> list[StoredLesson]:
    """What is known, with its counts and audits, and what is new; deleted lessons do not come back."""
    known = {each.lesson.id: each for each in stored}
    return [
        replace(known[lesson.id], lesson=lesson) if lesson.id in known else StoredLesson(lesson=lesson)
        for lesson in merged([each.lesson for each in stored], found)
    ]


def taught(
    probe: Probe, task: Task, texts: Texts, settings: LessonSettings, plan: SamplePlan, count: int, *,
    known: Sequence[StoredLesson] = (),
) -> Taught:  # fmt: skip
    """Lessons proposed, audited and distilled: `count` problems are told those that live.

    A pure function of the key and of the lessons that are `known`, which are audited again.  Problems are training
    problems, other ones for proposals, for each audit and for the texts.

    Raises:
        RecipeError: the task's prompt can hold no lesson.
    """
    if not isinstance(task, Privileged):
        raise RecipeError(f"data = 'lessons:STAGE' needs a task with `privileged_prompt`, which {task.name} lacks.")

    def drawn(purpose: str, number: int) -> list[Problem]:
        return split_problems(task, plan.key.child(purpose), number, evaluation=False)

    found = [make_lesson(task.name, text) for text in settings.texts]
    if settings.problems:
        sampling = replace(plan, key=plan.key.child("lessons"), group_size=settings.group_size)
        groups = judged_groups(probe, task, texts, drawn("lesson problems", settings.problems), sampling)
        proposals = propose_lessons(groups, task, name=task.name)
        found = merged(found, [candidate.lesson for candidate in proposals.candidates])
    trial = TrialPlan(
        key=plan.key.child("audit"), stage=plan.stage, max_new_tokens=plan.max_new_tokens,
        temperature=plan.temperature, problems=settings.trials,
    )  # fmt: skip
    gate = reading_gate(drawn("gate problems", settings.trials), probe, task, trial)
    stored = joined([each for each in known if each.lesson.task == task.name], found)
    if gate.open:
        for number in range(settings.audits):
            again = replace(trial, key=trial.key.child(number))
            stored = audited(
                stored, drawn(f"audit problems {number}", 4 * settings.trials), probe, again, settings.level
            )
    alive = [each.lesson for each in stored if lives(each)]
    told = tell(alive, drawn("told problems", count), task, most=settings.most)
    examples = distilled_examples(told, probe, task, replace(trial, key=plan.key.child("texts")))
    return Taught(
        lessons=tuple(stored), examples=tuple(examples), gate=gate.reason, tokens=probe.cost["sampled_tokens"]
    )


def lesson_texts(problems: Sequence[Problem], *, lessons: Sequence[Lesson], task: object, most: int) -> dict[str, str]:
    """What the lessons say of each problem that they are about, by its key: the knowledge `lessons` of a teacher."""
    return {plan.problem.key: plan.text for plan in tell(lessons, problems, task, most=most)}


def lives(stored: StoredLesson) -> bool:
    """Whether a lesson may be told: never tried, or as often in vain as not, is not enough."""
    return not stored.deleted and stored.lesson.helpful > stored.lesson.harmful


def audited(
    stored: Sequence[StoredLesson], problems: Sequence[Problem], probe: Probe, plan: TrialPlan, level: float
) -> list[StoredLesson]:
    """Every lesson after one more audit; deleted ones stay as they are."""
    task: Any = probe.task
    trying = [each.lesson for each in stored if not each.deleted]
    others: list[Lesson] = [each.lesson for each in stored]
    found = {
        each.lesson_id: each for each in audit_lessons(trying, problems, probe, task, plan, others=others, level=level)
    }
    after = []
    for each in stored:
        if each.deleted:
            after.append(each)
            continue
        audit = found[each.lesson.id]
        lesson, deleted = update(each.lesson, audit)
        after.append(StoredLesson(lesson=lesson, audits=(*each.audits, audit_document(audit)), deleted=deleted))
    return after
