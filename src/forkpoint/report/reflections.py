"""Failed attempts with the reflections on them and the retries, as the page shows them."""

from collections.abc import Sequence
from dataclasses import dataclass

from forkpoint.records import Group, Verdict
from forkpoint.report.rollouts import MAX_PROMPT
from forkpoint.report.text import prompt_text, shorten, visible
from forkpoint.store import RunReader

MAX_ATTEMPTS = 6
"""Attempts shown of one stage: the first of its last kept update."""
MAX_REFLECTIONS = 8
"""Reflections shown on one attempt."""
MAX_SHOWN = 400
"""Characters shown of one text."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReflectionView:
    """A reflection and what came of it."""

    text: str
    credit: str
    outcome: str
    correct: bool | None
    retry: str
    """Empty where there was none."""
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptView:
    """A failed attempt and what was reflected on it."""

    stage: str
    update: int
    prompt: str
    answer: str
    text: str
    reflections: tuple[ReflectionView, ...]
    more: int
    """Reflections that are not shown."""


def reflections(reader: RunReader, stages: Sequence[str]) -> list[AttemptView]:
    """Some attempts of each stage that reflects, as they were at its last kept update."""
    views = []
    for stage in stages:
        kept = reader.kept_updates(stage, "reflect")
        if not kept:
            continue
        retries = {each.parent_id: each.text for each in reader.rollouts(stage, kept[-1], "retry")}
        groups = list(reader.groups(stage, kept[-1], "reflect"))
        views += [_attempt(reader, group, retries) for group in groups[:MAX_ATTEMPTS]]
    return views


def _attempt(reader: RunReader, group: Group, retries: dict[str | None, str]) -> AttemptView:
    first, problem = group.rollouts[0], group.problem
    pairs = list(zip(group.rollouts, group.verdicts, strict=True))
    return AttemptView(
        stage=first.stage, update=first.update,
        prompt=shorten(visible(prompt_text(problem.prompt)), MAX_PROMPT),
        answer=shorten(visible(problem.answer), MAX_PROMPT),
        text=_shown(reader.rollout(str(first.parent_id)).text),
        reflections=tuple(
            _reflection(reader, rollout.id, rollout.text, verdict, retries.get(rollout.id, ""))
            for rollout, verdict in pairs[:MAX_REFLECTIONS]
        ),
        more=max(0, len(pairs) - MAX_REFLECTIONS),
    )  # fmt: skip


def _reflection(reader: RunReader, name: str, text: str, verdict: Verdict, retry: str) -> ReflectionView:
    credit = reader.credit(name)
    advantage = 0.0 if credit is None or not len(credit.advantages) else float(credit.advantages[0])
    return ReflectionView(
        text=_shown(text), credit=f"{advantage:+.2f}".replace("-", "\N{MINUS SIGN}"), outcome=str(verdict.outcome),
        correct=verdict.correct, retry=_shown(retry), reason=shorten(visible(verdict.reason), MAX_SHOWN),
    )  # fmt: skip


def _shown(text: str) -> str:
    return shorten(visible(text).replace("\n", "↵"), MAX_SHOWN)
