"""Lessons: drawn from judged rollouts, found again for a problem, counted after audits, and sampled for distillation.

A lesson is a sentence for the prompt of later problems.  Counters, merging and deletion as in ACE (arXiv 2510.04618);
items from successes and failures as in ReasoningBank (arXiv 2509.25140).  What a lesson is worth, `lesson_audits` says.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, TypeAlias

import numpy as np

from forkpoint.errors import ForkpointError
from forkpoint.probe import Probe, SampleRequest, Teachable
from forkpoint.records import Group, Lesson, Problem, Rollout, TextExample, Verdict, frozen_array
from forkpoint.seeds import Key, content_hash

MAX_LESSON = 2000
"""Characters; a longer text is refused."""
MAX_ORIGIN = 16
"""Rollouts that a lesson names."""
DIVIDER = "\n"
"""Between lessons, where the task says nothing else."""
_TOKEN = re.compile(r"\w+|[^\w\s]")

Reflector: TypeAlias = Callable[[Problem, Rollout, Verdict], Sequence[tuple[str, str]]]
"""Writes lessons on a rollout: text, and what it is about.  A chat model, say."""


class Told(Protocol):
    """A task whose prompt can hold lessons."""

    def privileged_prompt(self, problem: Problem, knowledge: str) -> str:
        """The prompt with lessons in it."""
        ...

    def stop(self, problem: Problem) -> tuple[str, ...]:
        """Strings that end a rollout."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A lesson with the rollouts that speak for it and against it."""

    lesson: Lesson
    spoken_for: int
    against: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Proposals:
    """What `propose_lessons` found."""

    candidates: tuple[Candidate, ...]
    """The best supported first."""
    refused: int = 0
    """Texts that were no lesson: not a pair of texts, empty, too long, or nothing that the task's prompt can hold."""
    failed: int = 0
    """Rollouts on which the reflector failed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialPlan:
    """How the rollouts that lessons are tried on are drawn."""

    key: Key
    """Names the run, the stage, and the number of the audit: another audit is another key."""
    stage: str
    max_new_tokens: int
    temperature: float = 1.0
    problems: int = 128
    """Most problems that one lesson is tried on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TellingPlan:
    """A problem with what its prompt is to say of it."""

    problem: Problem
    text: str
    """Empty: nothing."""
    lesson_ids: tuple[str, ...] = ()


def normalised(text: str) -> str:
    """The text in NFKC with single spaces.

    >>> normalised("  carry  the one ")
    'carry the one'
    """
    return " ".join(unicodedata.normalize("NFKC", text).split())


def make_lesson(task: str, text: str, about: str = "", origin: Iterable[str] = ()) -> Lesson:
    """The lesson with its id; texts that differ in spaces or case alone have one id."""
    shown = normalised(text)
    return Lesson(
        id=content_hash(task, shown.casefold()), task=task, text=shown, about=normalised(about),
        origin=tuple(sorted(set(origin))[:MAX_ORIGIN]),
    )  # fmt: skip


def propose_lessons(
    groups: Sequence[Group], task: object, *, name: str, reflector: Reflector | None = None, least: int = 2
) -> Proposals:
    """Lessons that at least `least` rollouts speak for, and more than speak against; `name` is the task's.

    Sources: `lesson_of` of a `Teachable` task, which reads the rollout alone, and the reflector, whose every lesson
    counts as spoken for.  A text is kept once (see `make_lesson`); what it is about is what most said of it.
    Rollouts without a verdict say nothing.
    """
    votes: dict[str, list[tuple[Lesson, int, str]]] = {}
    refused = failed = 0
    judged = [(group.problem, *pair) for group in groups for pair in zip(group.rollouts, group.verdicts, strict=True)]
    for problem, rollout, verdict in judged:
        if verdict.correct is None:
            continue
        said: list[tuple[object, int]] = []
        if isinstance(task, Teachable):
            sign = 1 if verdict.correct else -1
            said += [(pair, sign) for pair in task.lesson_of(problem, rollout.text, verdict.correct)]
        if reflector is not None:
            try:
                said += [(pair, 1) for pair in reflector(problem, rollout, verdict)]
            except (ForkpointError, OSError, ValueError, TypeError):
                failed += 1
        for pair, sign in said:
            lesson = _readable(pair, name, task, problem, rollout.id)
            refused += lesson is None
            if lesson is not None:
                votes.setdefault(lesson.id, []).append((lesson, sign, rollout.id))
    found = [_counted(each) for each in votes.values()]
    kept = [each for each in found if each.spoken_for >= least and each.spoken_for > each.against]
    kept.sort(key=lambda each: (each.against - each.spoken_for, each.lesson.id))
    return Proposals(candidates=tuple(kept), refused=refused, failed=failed)


def _readable(pair: object, name: str, task: object, problem: Problem, rollout_id: str) -> Lesson | None:
    if not (isinstance(pair, tuple | list) and len(pair) == 2 and all(isinstance(part, str) for part in pair)):
        return None
    lesson = make_lesson(name, pair[0], pair[1], (rollout_id,))
    if not lesson.text or max(len(pair[0]), len(pair[1])) > MAX_LESSON:
        return None
    try:
        _prompt(task, problem, lesson.text)
    except ForkpointError:
        return None
    return lesson


def _prompt(task: object, problem: Problem, text: str) -> object:
    """The prompt with a lesson in it, the problem's own for none."""
    tell = getattr(task, "privileged_prompt", None)
    return tell(problem, text) if tell is not None and text else problem.prompt


def _counted(votes: Sequence[tuple[Lesson, int, str]]) -> Candidate:
    """One candidate of the votes on one text; of several spellings the smallest."""
    abouts = Counter(lesson.about for lesson, _, _ in votes)
    about = min(abouts, key=lambda each: (-abouts[each], each))
    text = min(lesson.text for lesson, _, _ in votes)
    speakers = [rollout for _, sign, rollout in votes if sign > 0]
    lesson = make_lesson(votes[0][0].task, text, about, speakers)
    return Candidate(lesson=lesson, spoken_for=len(speakers), against=len(votes) - len(speakers))


def merged(known: Sequence[Lesson], found: Sequence[Lesson]) -> list[Lesson]:
    """The known lessons in their order, then the new ones in theirs; counts and texts of known ones stay.

    Give deleted lessons as known too: then none of them comes back as new.
    """
    kept = {lesson.id: lesson for lesson in known}
    for lesson in found:
        old = kept.get(lesson.id)
        if old is None:
            kept[lesson.id] = lesson
        else:
            kept[lesson.id] = replace(old, origin=tuple(sorted({*old.origin, *lesson.origin})[:MAX_ORIGIN]))
    return list(kept.values())


def similarity(lesson: Lesson, problem: Problem) -> float:
    """The share of the words and signs in `about` that the prompt has; 0 for a lesson about everything."""
    prompt = problem.prompt
    text = prompt if isinstance(prompt, str) else " ".join(message["content"] for message in prompt)
    wanted = set(_TOKEN.findall(lesson.about.casefold()))
    return len(wanted & set(_TOKEN.findall(text.casefold()))) / len(wanted) if wanted else 0.0


def retrieve(lessons: Sequence[Lesson], problem: Problem, *, task: str, most: int) -> list[Lesson]:
    """At most `most` lessons of the task for a problem: the most similar, then the most helpful, then by id.

    A lesson whose `about` shares nothing with the prompt is left out; one about nothing comes after those that fit.
    """
    scored = [(similarity(lesson, problem), lesson) for lesson in lessons if lesson.task == task]
    fitting = [(score, lesson) for score, lesson in scored if score > 0 or not lesson.about]
    fitting.sort(key=lambda each: (-each[0], each[1].harmful - each[1].helpful, each[1].id))
    return [lesson for _, lesson in fitting[:most]]


def tell(lessons: Sequence[Lesson], problems: Sequence[Problem], task: object, *, most: int) -> list[TellingPlan]:
    """The problems that there is something to say of, each with its lessons; the task's name is the problem's."""
    divider = str(getattr(task, "lesson_divider", DIVIDER))
    plans = []
    for problem in problems:
        chosen = retrieve(lessons, problem, task=problem.task, most=most)
        if chosen:
            ids = tuple(lesson.id for lesson in chosen)
            text = divider.join(lesson.text for lesson in chosen)
            plans.append(TellingPlan(problem=problem, text=text, lesson_ids=ids))
    return plans


def sample_told(
    asked: Sequence[TellingPlan], keys: Sequence[Key], probe: Probe, task: Told, plan: TrialPlan
) -> list[tuple[Rollout, Verdict]]:
    """One judged rollout for each prompt, in order; asks the probe once for all rollouts.

    The verdict is on the problem as it is: the verifier sees no lesson.
    """
    requests = []
    for one, key in zip(asked, keys, strict=True):
        prompt = task.privileged_prompt(one.problem, one.text) if one.text else one.problem.prompt
        requests.append(
            SampleRequest(
                key=key, problem=one.problem, prompt_tokens=probe.encode_prompt(prompt),  # type: ignore[arg-type]
                group_id=key.hex, stage=plan.stage, update=0, index=0, max_new_tokens=plan.max_new_tokens,
                temperature=plan.temperature, stop=task.stop(one.problem),
            )
        )  # fmt: skip
    rollouts = probe.sample(requests)
    return [(rollout, probe.verify(one.problem, [rollout])[0]) for one, rollout in zip(asked, rollouts, strict=True)]


def distilled_examples(
    told: Sequence[TellingPlan], probe: Probe, task: Told, plan: TrialPlan, *, correct_only: bool = True
) -> list[TextExample]:
    """What was sampled with lessons in the prompt, as texts without them: what a stage `sft` learns from.

    Prompt distillation: the student's prompt is the problem's own.  One rollout for each problem; `correct_only` leaves
    out what the verifier did not call correct.  The provenance names the lessons and the rollout.
    """
    keys = [plan.key.child("distil", place, one.problem.key) for place, one in enumerate(told)]
    examples = []
    for one, (rollout, verdict) in zip(told, sample_told(told, keys, probe, task, plan), strict=True):
        if correct_only and not verdict.correct:
            continue
        prompt = probe.encode_prompt(one.problem.prompt)  # type: ignore[arg-type]
        mask = np.concatenate([np.zeros(len(prompt), np.bool_), rollout.loss_mask])
        examples.append(
            TextExample(
                tokens=frozen_array(np.concatenate([prompt, rollout.tokens]), np.int32),
                loss_mask=frozen_array(mask, np.bool_),
                provenance=f"lesson:{'+'.join(one.lesson_ids)}:rollout:{rollout.id}",
            )
        )
    return examples
