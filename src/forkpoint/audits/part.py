"""What an audit is made of: parts, each with what it needs, and the findings that they make."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from forkpoint.records import Bools, Finding, Records, Severity
from forkpoint.theory.intervals import Interval

Parts: TypeAlias = "Mapping[str, Part]"
EXAMPLES = 8
"""Rollouts that a finding names."""
RANKS: Mapping[Severity, int] = {Severity.INFO: 0, Severity.WARNING: 1, Severity.CRITICAL: 2}
STATUS: Mapping[Severity, str] = {Severity.INFO: "ok", Severity.WARNING: "watch", Severity.CRITICAL: "sick"}
"""How severities are called where people read."""


@dataclass(frozen=True, slots=True)
class Part:
    """One question of an audit."""

    function: Callable[[Records], list[Finding]]
    needs: tuple[str, ...]
    """Of `Records.has`; `a|b` is either."""


def missing(records: Records, needs: Sequence[str]) -> tuple[str, ...]:
    """Those of `needs` that the records lack; `a|b` is there when either is."""
    return tuple(need for need in needs if len(records.lacks(need.split("|"))) == len(need.split("|")))


def run_parts(parts: Parts, records: Records) -> list[Finding]:
    """The findings of the parts that have what they need."""
    return [found for part in parts.values() if not missing(records, part.needs) for found in part.function(records)]


def unasked(_records: Records) -> list[Finding]:
    """Nothing: for parts that records alone say nothing of."""
    return []


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """What a value is held against, and where that comes from."""

    watch: float
    sick: float
    source: str

    def grade(self, low: float) -> Severity:
        """Sick or watch where even the lower end of the interval reaches the bound."""
        if low >= self.sick:
            return Severity.CRITICAL
        return Severity.WARNING if low >= self.watch else Severity.INFO

    def threshold(self, severity: Severity) -> float:
        """The bound that counts for a severity: for a healthy value the first one it may not reach."""
        return self.sick if severity is Severity.CRITICAL else self.watch


def graded(audit: str, claim: str, value: float, interval: Interval, bounds: Bounds) -> Finding:
    """A finding whose severity is that of the lower end of its interval."""
    return judged(audit, bounds.grade(interval[0]), claim, value, interval, bounds)


def judged(
    audit: str, severity: Severity, claim: str, value: float, interval: Interval | None, bounds: Bounds
) -> Finding:
    """A finding of a given severity, with the bound and its source in the claim."""
    threshold = bounds.threshold(severity)
    return Finding(
        audit=audit, severity=severity, claim=f"{claim} Bound {threshold:g}: {bounds.source}.", value=value,
        interval=interval, threshold=threshold,
    )  # fmt: skip


def with_evidence(finding: Finding, records: Records, rows: NDArray[np.int64] | Bools) -> Finding:
    """The finding with some of the rollouts that it rests on, those first whose contents were kept."""
    places = np.flatnonzero(rows) if rows.dtype == np.bool_ else np.asarray(rows)
    chosen = np.concatenate([places[records.kept[places]], places[~records.kept[places]]])[:EXAMPLES]
    named = tuple(name.decode("utf-8", "replace") for name in records.ids[chosen].tolist() if name)
    return Finding(
        audit=finding.audit, severity=finding.severity, claim=finding.claim, value=finding.value,
        interval=finding.interval, threshold=finding.threshold, evidence=named,
    )  # fmt: skip
