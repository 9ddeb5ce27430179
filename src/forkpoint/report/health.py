"""What audits and the doctor say of a run, the worst first, each with rollouts to look at."""

from collections.abc import Mapping
from dataclasses import dataclass

from forkpoint.errors import StoreError
from forkpoint.records import Finding, Severity
from forkpoint.report.rollouts import MAX_PROMPT, RolloutView, rollout_view
from forkpoint.report.text import prompt_text, shorten, visible
from forkpoint.store import RunReader

MAX_FINDINGS = 50
"""Findings of a stage shown, bad and fine ones each."""
MAX_EXEMPLARS = 2
"""Rollouts shown of a bad finding."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Exemplar:
    """One rollout that a finding rests on."""

    prompt: str
    answer: str
    view: RolloutView


@dataclass(frozen=True, slots=True, kw_only=True)
class FindingView:
    """A finding with those of its rollouts that the run kept."""

    finding: Finding
    exemplars: tuple[Exemplar, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class StageHealth:
    """What was found of one stage."""

    name: str
    slot: int
    findings: tuple[FindingView, ...]
    more: int
    """Bad findings that are not shown."""


def health(
    reader: RunReader, slots: Mapping[str, int], texts: Mapping[int, str], prefix: str = ""
) -> list[StageHealth]:
    """The findings of each stage that has some; of what is fine only the last word of each audit."""
    rows = []
    for stage, slot in slots.items():
        found = reader.findings(stage)
        fine = list({finding.audit: finding for finding in found if finding.severity is Severity.INFO}.values())
        bad = sorted((one for one in found if one.severity is not Severity.INFO), key=lambda one: one.severity)
        shown = [
            FindingView(finding=one, exemplars=_exemplars(reader, one, texts, f"{prefix}finding-{slot}-{place}"))
            for place, one in enumerate(bad[:MAX_FINDINGS])
        ]
        shown += [FindingView(finding=one) for one in fine[:MAX_FINDINGS]]
        if found:
            more = max(0, len(bad) - MAX_FINDINGS)
            rows.append(StageHealth(name=stage, slot=slot, findings=tuple(shown), more=more))
    return rows


def _exemplars(reader: RunReader, finding: Finding, texts: Mapping[int, str], anchor: str) -> tuple[Exemplar, ...]:
    """The first of its rollouts that the run kept; those that were drawn for the audit alone are not."""
    made: list[Exemplar] = []
    for name in finding.evidence:
        if len(made) == MAX_EXEMPLARS:
            break
        try:
            group = reader.group_of(name)
        except StoreError:
            continue
        place = [rollout.id for rollout in group.rollouts].index(name)
        facts = [f"reward {group.rewards[place].total:.2f}"] if len(group.rewards) == len(group.rollouts) else []
        view = rollout_view(
            group.rollouts[place], reader.verdict(name), texts, f"{anchor}-{len(made)}", (None, 0.0), facts
        )
        made.append(
            Exemplar(
                prompt=shorten(visible(prompt_text(group.problem.prompt)), MAX_PROMPT),
                answer=shorten(visible(group.problem.answer), MAX_PROMPT), view=view,
            )
        )  # fmt: skip
    return tuple(made)
