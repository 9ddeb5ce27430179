"""All audits in one table, what they need, and how they are run."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TypeAlias

from forkpoint.audits import (
    advantage_collapse,
    coverage,
    exploration,
    length_and_format,
    mismatch,
    premature_confidence,
    reward_hacking,
    sabotage,
    template_collapse,
    token_edits,
    transfer,
)
from forkpoint.audits.canary_answers import Paying
from forkpoint.audits.elicitation import Eliciting
from forkpoint.audits.part import RANKS, Parts, missing
from forkpoint.audits.subject import Subject
from forkpoint.errors import ForkpointError, unknown_name
from forkpoint.probe import Probe
from forkpoint.records import Finding, Records, Severity

Audit: TypeAlias = Callable[[Records, Probe | None], list[Finding]]


@dataclass(frozen=True, slots=True)
class Entry:
    """An audit, and what it needs."""

    function: Audit
    needs: Mapping[str, tuple[str, ...]]
    """For each part of it, names of `Records.has`; `a|b` is either, `probe` a model, `base` the one before, `draws`
    a model that can be asked anew, `verifier` the stage's own."""


def _entry(function: Audit, parts: Parts) -> Entry:
    return Entry(function, MappingProxyType({name: part.needs for name, part in parts.items()}))


AUDITS: Mapping[str, Entry] = MappingProxyType(
    {
        coverage.NAME: _entry(coverage.coverage, coverage.PARTS),
        advantage_collapse.NAME: _entry(advantage_collapse.advantage_collapse, advantage_collapse.PARTS),
        sabotage.NAME: _entry(sabotage.sabotage, sabotage.PARTS),
        reward_hacking.NAME: _entry(reward_hacking.reward_hacking, reward_hacking.PARTS),
        exploration.NAME: _entry(exploration.exploration, exploration.PARTS),
        transfer.NAME: _entry(transfer.transfer, transfer.PARTS),
        length_and_format.NAME: _entry(length_and_format.length_and_format, length_and_format.PARTS),
        mismatch.NAME: _entry(mismatch.mismatch, mismatch.PARTS),
        token_edits.NAME: _entry(token_edits.token_edits, token_edits.PARTS),
        premature_confidence.NAME: _entry(premature_confidence.premature_confidence, premature_confidence.PARTS),
        template_collapse.NAME: _entry(template_collapse.template_collapse, template_collapse.PARTS),
    }
)
"""Each is a page of docs/audits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What one audit said of one stage."""

    audit: str
    findings: tuple[Finding, ...] = ()
    lacks: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Parts that could not run, and what they lack."""
    ran: bool
    """Whether any part could run."""
    why: str = ""
    """What stopped an audit that lacked nothing, such as a text that does not fit the model's context."""
    seconds: float = 0.0

    @property
    def severity(self) -> Severity:
        """The worst of its findings."""
        return max((finding.severity for finding in self.findings), key=RANKS.__getitem__, default=Severity.INFO)


def chosen(names: Sequence[str]) -> tuple[str, ...]:
    """The audits of some names, all without one.

    Raises:
        ForkpointError: a name is not known.
    """
    for name in names:
        if name not in AUDITS:
            raise ForkpointError(unknown_name("--only", name, AUDITS))
    return tuple(names) or tuple(AUDITS)


def run_audits(records: Records, *, only: Sequence[str] = (), probe: Probe | None = None) -> Iterator[Result]:
    """The results of the audits of one stage, one after the other, in the order of the table.

    An audit none of whose parts has what it needs is not run, and says what it lacks.  One that stops at what a user
    can fix is not run either, and says why; the others go on.
    """
    for name in chosen(only):
        entry = AUDITS[name]
        lacks = {part: lacking for part, needs in entry.needs.items() if (lacking := _lacking(records, needs, probe))}
        began = time.perf_counter()
        ran = len(lacks) < len(entry.needs) and len(records) + len(records.metrics) > 0
        found: tuple[Finding, ...] = ()
        why = ""
        try:
            found = tuple(entry.function(records, probe)) if ran else ()
        except ForkpointError as error:
            ran, why = False, str(error)
        yield Result(audit=name, findings=found, lacks=lacks, ran=ran, why=why, seconds=time.perf_counter() - began)


def _lacking(records: Records, needs: Sequence[str], probe: Probe | None) -> tuple[str, ...]:
    models = {
        "probe": probe, "base": probe.base if isinstance(probe, Subject) else None,
        "draws": probe if isinstance(probe, Eliciting) else None,
        "verifier": probe if isinstance(probe, Paying) else None,
    }  # fmt: skip
    asked = tuple(name for name, model in models.items() if name in needs and model is None)
    return (*missing(records, [need for need in needs if need not in models]), *asked)
