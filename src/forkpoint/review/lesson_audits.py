"""Is a lesson read, and is it true?  Paired trials on other problems against what it must not be confused with.

Each problem is tried with the lesson, without it, with its own characters (or words) in random order, with a lesson
about something else, and with its meaning changed (arXiv 2601.22436: agents often ignore condensed lessons; a faithful
memory makes a difference when it is taken away or corrupted).
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from typing import Any

from forkpoint.errors import ForkpointError
from forkpoint.probe import Probe, Teachable
from forkpoint.records import Lesson, Problem
from forkpoint.review.contrasts import Counts, sign_greater
from forkpoint.review.lessons import TellingPlan, Told, TrialPlan, retrieve, sample_told, similarity
from forkpoint.seeds import Key

LEVEL = 0.05
FAILED_AUDITS = 2
"""So many failed audits delete a lesson."""
_DRAWS = 8
"""Shuffles until one differs from the text."""


class Arm(StrEnum):
    """What a prompt holds in a trial."""

    LESSON = "lesson"
    NONE = "none"
    SHUFFLED = "shuffled"
    """The lesson's own characters, or its words where it has three or more, in random order."""
    IRRELEVANT = "irrelevant"
    """A lesson about something that the problem does not have."""
    CORRUPTED = "corrupted"
    """The lesson with its meaning changed, in every way in turn."""


MUST_BEAT = (Arm.NONE, Arm.SHUFFLED, Arm.IRRELEVANT)


@dataclass(frozen=True, slots=True, kw_only=True)
class Contrast:
    """The lesson against another arm, on the problems that both were tried on."""

    against: str
    wins: int
    """Problems that only the lesson's rollout solved."""
    losses: int
    """Problems that only the other's solved."""
    pairs: int
    p_value: float
    """Of a lesson that is no better: McNemar's exact test, one-sided; 1 for no pair."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LessonAudit:
    """What the trials said of a lesson."""

    lesson_id: str
    decided: bool
    """False: it could not be tried, and counts neither way."""
    passed: bool
    faithful: bool
    """Whether it is significantly better than with its meaning changed, at the level of a single test."""
    p_value: float
    """Of a lesson that is no better than one of the arms that it must beat, with Holm's factor over all lessons."""
    level: float
    shares: Mapping[str, Counts]
    """Successes and trials of each arm."""
    contrasts: tuple[Contrast, ...]
    reason: str
    """Why it did not pass; empty where it did."""
    cost: Mapping[str, float] = field(default_factory=dict)
    """`sampled_tokens`, `verifier_calls`; of lessons tried together the first is charged with what they share."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadingGate:
    """Whether the policy can use a lesson at all."""

    open: bool
    told: Counts
    untold: Counts
    p_value: float
    reason: str
    """In one line."""


def shuffled(text: str, key: Key) -> str:
    """The words of a text, or its characters where it has fewer than three, in an order that differs if one can."""
    words = text.split()
    parts = words if len(words) > 2 else list(text)
    made = text
    for draw in range(_DRAWS):
        order = key.child(draw).generator().permutation(len(parts))
        made = (" " if parts is words else "").join(parts[place] for place in order)
        if made.strip() == made != text:
            break
    return made


def reading_gate(
    problems: Sequence[Problem], probe: Probe, task: Told, plan: TrialPlan, *, level: float = LEVEL
) -> ReadingGate:
    """The gate: success with all that a `Teachable` task can tell in the prompt, against without, on the same problems.

    Open if the one-sided exact McNemar test is significant.  Shut means that no audit can tell a good lesson from a bad
    one for this policy: pretraining did not teach it to read lessons, or it needs none.
    """
    if not isinstance(task, Teachable):
        return ReadingGate(
            open=False, told=(0, 0), untold=(0, 0), p_value=1.0, reason="the task has no lessons to tell"
        )
    chosen = problems[: plan.problems]
    asked = [TellingPlan(problem=one, text=task.right_lesson(one)) for one in chosen]
    asked += [TellingPlan(problem=one, text="") for one in chosen]
    keys = [plan.key.child("gate", place) for place in range(len(asked))]
    correct = [verdict.correct for _, verdict in sample_told(asked, keys, probe, task, plan)]
    found = _contrast("untold", correct[: len(chosen)], correct[len(chosen) :])
    told, untold = _share(correct[: len(chosen)]), _share(correct[len(chosen) :])
    numbers = f"solved with the right lessons {told[0]} of {told[1]}, without {untold[0]} of {untold[1]}"
    opened = found.p_value <= level
    verdict = "lessons are read" if opened else "the policy cannot use lessons, so none is audited"
    reason = f"{verdict}: {numbers} (p = {found.p_value:.2g}, level {level:g})"
    return ReadingGate(open=opened, told=told, untold=untold, p_value=found.p_value, reason=reason)


def audit_lesson(
    lesson: Lesson, problems: Sequence[Problem], probe: Probe, task: Told, plan: TrialPlan, *,
    others: Sequence[Lesson] = (), level: float = LEVEL,
) -> LessonAudit:  # fmt: skip
    """The audit of one lesson; see `audit_lessons`."""
    return audit_lessons([lesson], problems, probe, task, plan, others=others, level=level)[0]


def audit_lessons(
    lessons: Sequence[Lesson], problems: Sequence[Problem], probe: Probe, task: Told, plan: TrialPlan, *,
    others: Sequence[Lesson] = (), level: float = LEVEL,
) -> list[LessonAudit]:  # fmt: skip
    """The audit of each lesson, in order; asks the probe once for all rollouts.

    `problems` are others than the lessons came from; one that comes again is left out.  A lesson is tried on the first
    `plan.problems` of those that it would be retrieved for, one rollout for each arm.  It passes if it beats none,
    shuffled and irrelevant, and if the corrupted one, where there is any, does worse.  All three must hold, so the
    largest of the three p-values is one of the whole claim (intersection-union test, Berger 1982); Holm's factor over
    the lessons that were tried keeps the chance of any useless lesson among them passing at `level`.

    `others`: lessons to take an irrelevant one from, where the task does not make one itself.
    """
    trials = [_trial(lesson, problems, task, plan, others) for lesson in lessons]
    asked: dict[Key, TellingPlan] = {}
    for cells in trials:
        asked |= {key: told for arm in cells.values() for key, told in arm.values()}
    refused = {key for key, told in asked.items() if not _can_be_told(told, probe, task)}
    fine = [key for key in asked if key not in refused]
    drawn = dict(zip(fine, sample_told([asked[key] for key in fine], fine, probe, task, plan), strict=True))
    charged: set[Key] = set()
    raw = []
    for lesson, cells in zip(lessons, trials, strict=True):
        correct = {
            arm: {place: drawn[key][1].correct for place, (key, _) in found.items() if key in drawn}
            for arm, found in cells.items()
        }
        new = {key for found in cells.values() for key, _ in found.values() if key in drawn} - charged
        charged |= new
        tokens = sum(int(drawn[key][0].loss_mask.sum()) for key in new)
        unreadable = any(key in refused for key, _ in cells[Arm.LESSON].values())
        cost = {"sampled_tokens": float(tokens), "verifier_calls": float(len(new))}
        raw.append(replace(_judged(lesson, correct, unreadable=unreadable), level=level, cost=cost))
    return _decided(raw, level)


def _trial(
    lesson: Lesson, problems: Sequence[Problem], task: Told, plan: TrialPlan, others: Sequence[Lesson]
) -> dict[Arm, dict[int, tuple[Key, TellingPlan]]]:
    """What each arm asks on each problem, by the place of the problem; rollouts without a lesson are shared."""
    first = {one.key: place for place, one in reversed(list(enumerate(problems)))}
    fitting = [at for at in sorted(first.values()) if retrieve([lesson], problems[at], task=problems[at].task, most=1)]
    cells: dict[Arm, dict[int, tuple[Key, TellingPlan]]] = {arm: {} for arm in Arm}
    for turn, place in enumerate(fitting[: plan.problems]):
        problem = problems[place]
        key = plan.key.child("audit", lesson.id, place, problem.key)
        bare = plan.key.child("audit", "none", place, problem.key)
        cells[Arm.NONE][place] = (bare, TellingPlan(problem=problem, text=""))
        texts = {Arm.LESSON: lesson.text, Arm.SHUFFLED: shuffled(lesson.text, key.child("order"))}
        texts[Arm.IRRELEVANT] = _irrelevant(lesson, problem, task, others)
        changed = task.changed_lessons(lesson.text) if isinstance(task, Teachable) else ()
        texts[Arm.CORRUPTED] = changed[turn % len(changed)] if changed else ""
        for arm, text in texts.items():
            if text:
                cells[arm][place] = (key.child(str(arm)), TellingPlan(problem=problem, text=text))
    return cells


def _irrelevant(lesson: Lesson, problem: Problem, task: Told, others: Sequence[Lesson]) -> str:
    made = task.irrelevant_lesson(problem, lesson.text) if isinstance(task, Teachable) else ""
    foreign = [one for one in others if one.id != lesson.id and one.about and similarity(one, problem) == 0]
    if made or not foreign:
        return made
    return min(foreign, key=lambda one: (abs(len(one.text) - len(lesson.text)), one.id)).text


def _can_be_told(told: TellingPlan, probe: Probe, task: Told) -> bool:
    """Whether the policy has characters for it."""
    if not told.text:
        return True
    try:
        probe.encode_prompt(task.privileged_prompt(told.problem, told.text))
    except ForkpointError:
        return False
    return True


def _judged(lesson: Lesson, correct: Mapping[Arm, Mapping[int, bool | None]], *, unreadable: bool) -> LessonAudit:
    """The audit before any decision."""
    mine = correct[Arm.LESSON]
    contrasts = []
    for arm in (*MUST_BEAT, Arm.CORRUPTED):
        shared = sorted(mine.keys() & correct[arm].keys())
        contrasts.append(_contrast(arm, [mine[at] for at in shared], [correct[arm][at] for at in shared]))
    reason = "the task or the policy cannot read it" if unreadable else ""
    if not unreadable and not contrasts[0].pairs:
        reason = "no problem that it is about was tried"
    return LessonAudit(
        lesson_id=lesson.id, decided=unreadable or contrasts[0].pairs > 0, passed=False, faithful=False,
        p_value=max(each.p_value for each in contrasts[: len(MUST_BEAT)]), level=LEVEL,
        shares={str(arm): _share(list(correct[arm].values())) for arm in Arm}, contrasts=tuple(contrasts),
        reason=reason,
    )  # fmt: skip


def _contrast(against: str, mine: Sequence[bool | None], theirs: Sequence[bool | None]) -> Contrast:
    """Pairs in which both verdicts could be told."""
    pairs = [(a, b) for a, b in zip(mine, theirs, strict=True) if a is not None and b is not None]
    wins, losses = sum(a and not b for a, b in pairs), sum(b and not a for a, b in pairs)
    return Contrast(
        against=str(against), wins=wins, losses=losses, pairs=len(pairs), p_value=sign_greater(wins, losses)
    )


def _share(correct: Sequence[bool | None]) -> Counts:
    return sum(one is True for one in correct), sum(one is not None for one in correct)


def _decided(audits: Sequence[LessonAudit], level: float) -> list[LessonAudit]:
    """The audits with Holm's factors: the k-th smallest p-value times the number of those from it on, never falling."""
    order = sorted((place for place, one in enumerate(audits) if one.decided), key=lambda at: audits[at].p_value)
    adjusted: dict[int, float] = {}
    largest = 0.0
    for rank, place in enumerate(order):
        largest = max(largest, min(1.0, audits[place].p_value * (len(order) - rank)))
        adjusted[place] = largest
    return [
        _with_verdict(one, adjusted[place], level) if place in adjusted else one for place, one in enumerate(audits)
    ]


def _with_verdict(audit: LessonAudit, p_value: float, level: float) -> LessonAudit:
    *_, corrupted = audit.contrasts
    worse = not corrupted.pairs or corrupted.wins > corrupted.losses
    failed = [each.against for each in audit.contrasts[: len(MUST_BEAT)] if each.p_value > level]
    reason = audit.reason
    if not reason and failed:
        reason = f"not better than: {', '.join(failed)}"
    elif not reason and p_value > level:
        reason = f"not significant among the lessons tried together (p = {p_value:.2g})"
    elif not reason and not worse:
        reason = "no better than with its meaning changed"
    faithful = corrupted.pairs > 0 and corrupted.p_value <= level
    return replace(audit, passed=not reason, faithful=faithful, p_value=p_value, reason=reason)


def update(lesson: Lesson, audit: LessonAudit) -> tuple[Lesson, bool]:
    """The lesson with its counts after an audit, and whether it is deleted: two failed audits in all.

    Raises:
        ValueError: an audit of another lesson.
    """
    if audit.lesson_id != lesson.id:
        raise ValueError(f"the audit is of lesson {audit.lesson_id}, not {lesson.id}")
    if audit.decided:
        name = "helpful" if audit.passed else "harmful"
        lesson = replace(lesson, **{name: getattr(lesson, name) + 1})
    return lesson, lesson.harmful >= FAILED_AUDITS


def audit_document(audit: LessonAudit) -> dict[str, Any]:
    """The audit as plain values, as the store keeps it."""
    return {**asdict(audit), "shares": {name: list(pair) for name, pair in audit.shares.items()}}
