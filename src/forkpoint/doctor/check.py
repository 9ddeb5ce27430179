"""What one check says: what it did, the number, the bound, and what to do."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from forkpoint.errors import ForkpointError
from forkpoint.records import Finding, Severity

AUDIT = "doctor"
"""The name under which findings are stored."""
PASSED = "passed"


class DoctorError(ForkpointError):
    """The learning loop is sick: one line with the check, the number, the bound, and what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """The result of one check."""

    name: str
    did: str
    """What was done, and what was found."""
    value: float
    bound: float | None
    """What the value was held against; None: the value is only reported."""
    ok: bool
    remedy: str
    """What to do when it is not ok."""
    severity: Severity = Severity.CRITICAL
    """How bad it is when it is not ok."""

    @property
    def status(self) -> str:
        """`ok`, `watch` (a warning), or `sick`."""
        if self.ok:
            return "ok"
        return "sick" if self.severity is Severity.CRITICAL else "watch"


def line(check: Check) -> str:
    """One line: check, number, bound, what to do."""
    bound = "" if check.bound is None else f" (bound {check.bound:.3g})"
    return f"{check.name} = {check.value:.3g}{bound}: {check.did}. {check.remedy}"


def sickness(checks: Sequence[Check]) -> DoctorError | None:
    """What the sick checks come to, the first one in full; None when there is none."""
    sick = [check for check in checks if check.status == "sick"]
    if not sick:
        return None
    others = ", ".join(check.name for check in sick[1:])
    return DoctorError(f"doctor: {line(sick[0])}" + (f" Also sick: {others}." if others else ""))


def findings(checks: Sequence[Check]) -> tuple[Finding, ...]:
    """What the store keeps: every check that is not ok, and one line for those that are.

    Times are in no finding: the same run writes the same rows again.
    """
    bad = [check for check in checks if not check.ok]
    passed = [check.name for check in checks if check.ok]
    # The store takes no finding without a number.
    made = [
        Finding(
            audit=AUDIT,
            severity=check.severity,
            claim=line(check),
            value=check.value if math.isfinite(check.value) else -1.0,
            threshold=check.bound,
        )
        for check in bad
    ]
    summary = f"{len(passed)} of {len(checks)} checks {PASSED}: {', '.join(passed)}"
    summed = Finding(
        audit=AUDIT, severity=Severity.INFO, claim=summary, value=float(len(passed)), threshold=float(len(checks))
    )
    return (*made, summed)
