"""`review lessons`: what is kept, proposed, added and tried."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from forkpoint.assembly.reviewer import stage_reviewer
from forkpoint.cli.output import print_json, print_table, tell
from forkpoint.cli.review_run import usual_stage
from forkpoint.errors import RecipeError
from forkpoint.probe import Privileged
from forkpoint.review.lesson_audits import reading_gate
from forkpoint.review.lessons import TrialPlan, make_lesson, propose_lessons
from forkpoint.store import RunReader, RunWriter, StoredLesson
from forkpoint.tasks.protocol import split_problems
from forkpoint.training.teaching import audited, joined, lives

if TYPE_CHECKING:
    from forkpoint.assembly.reviewer import Reviewer

LEVEL = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class LessonRequest:
    """What `review lessons` was asked for."""

    stage: str
    add: tuple[str, ...]
    about: str
    propose: bool
    audit: bool
    trials: int


def lessons_run(run: Path, asked: LessonRequest, *, as_json: bool) -> int:
    """Changes the lessons as asked, stores them, and prints all of them."""
    with RunReader(run) as reader:
        stored = reader.lessons()
    if asked.add or asked.propose or asked.audit:
        reviewer = stage_reviewer(run, asked.stage or usual_stage(run))
        task: Any = reviewer.task
        if not isinstance(task, Privileged):
            raise RecipeError(f"lessons need a task with `privileged_prompt`, which {reviewer.task.name} lacks.")
        stored = _with_new(stored, reviewer, asked)
        # What was added or proposed outlives an audit that is interrupted.
        _record(run, stored)
        if asked.audit:
            stored = _tried(stored, reviewer, asked.trials)
            _record(run, stored)
    if as_json:
        print_json({"lessons": [{**asdict(each.lesson), "deleted": each.deleted, "audits": list(each.audits)}
                                for each in stored]})  # fmt: skip
        return 0
    rows = [[each.lesson.id[:8], _state(each), str(each.lesson.helpful), str(each.lesson.harmful), _about(each)]
            for each in stored]  # fmt: skip
    alive = sum(lives(each) for each in stored)
    print_table(
        ["lesson", "state", "helpful", "harmful", "about"], rows, title=f"{alive} of {len(stored)} lessons live"
    )
    return 0


def _record(run: Path, stored: Sequence[StoredLesson]) -> None:
    with RunWriter.open(run) as writer:
        writer.record_lessons(stored)


def _with_new(stored: Sequence[StoredLesson], reviewer: "Reviewer", asked: LessonRequest) -> list[StoredLesson]:
    """Known lessons with those that were added or that kept rollouts speak for; deleted ones do not come back."""
    task: Any = reviewer.task
    found = [make_lesson(task.name, text, asked.about) for text in asked.add]
    example = reviewer.some_problem()
    for lesson in found:
        # Refuses a text that the prompt cannot hold.
        reviewer.probe.encode_prompt(task.privileged_prompt(example, lesson.text))
    if asked.propose:
        groups = list(reviewer.stored(fresh=False)) or reviewer.draw(64, 4, number=0)
        proposals = propose_lessons(groups, task, name=task.name)
        tell(f"{len(groups)} groups: {len(proposals.candidates)} lessons, {proposals.refused} refused")
        found += [candidate.lesson for candidate in proposals.candidates]
    return joined(stored, found)


def _tried(stored: Sequence[StoredLesson], reviewer: "Reviewer", trials: int) -> list[StoredLesson]:
    """Every lesson after one audit more, behind the gate."""
    task: Any = reviewer.task
    number = max((len(each.audits) for each in stored), default=0)
    plan = TrialPlan(
        key=reviewer.key.child("lessons", number), stage=reviewer.stage, max_new_tokens=reviewer.max_new_tokens,
        temperature=reviewer.temperature, problems=trials,
    )  # fmt: skip
    living = sum(not each.deleted for each in stored)
    tell(f"{reviewer.stage}: at most {(5 * living + 2) * trials * reviewer.max_new_tokens} tokens")
    problems = split_problems(reviewer.task, plan.key.child("problems"), 4 * trials, evaluation=False)
    gate = reading_gate(problems, reviewer.probe, task, plan)
    tell(gate.reason)
    return audited(stored, problems, reviewer.probe, plan, LEVEL) if gate.open else list(stored)


def _state(stored: StoredLesson) -> str:
    if stored.deleted:
        return "deleted"
    return "lives" if lives(stored) else "on trial" if stored.audits else "not tried"


def _about(stored: StoredLesson) -> str:
    last = stored.audits[-1].get("reason", "") if stored.audits else ""
    return f"{stored.lesson.text}; {last}" if last else stored.lesson.text
