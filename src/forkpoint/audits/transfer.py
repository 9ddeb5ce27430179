"""What of a stage's gain on its own task carries over to shifted problems: longer, renamed, judged otherwise.

What is learned narrowly comes out elsewhere as a loss: the policy answers the new problems in the old way.
"""

import math

from forkpoint.audits.part import Bounds, Part, Parts, judged, run_parts, with_evidence
from forkpoint.audits.windows import Change, estimate
from forkpoint.probe import Probe
from forkpoint.records import SHIFTED, Bools, Finding, Records, Severity
from forkpoint.theory.intervals import Interval

NAME = "transfer"
OWN = "final"
LOSS = Bounds(watch=0.05, sick=0.2, source="share of shifted problems that the base solved more of; ours")


def _last(records: Records, purpose: str) -> Bools:
    """The rollouts of the last evaluation under a purpose, judged ones alone."""
    rows = (records.purpose == records.purposes.index(purpose)) & (records.correct >= 0)
    return rows & (records.update == records.update[rows].max()) if rows.any() else rows


def _change(records: Records, base: Records, purpose: str) -> Change | None:
    """The solve rate of the stage less that of its base."""
    mine, theirs = _last(records, purpose), _last(base, purpose)
    now = estimate(records.correct[mine], records.problem[mine])
    before = estimate(base.correct[theirs], base.problem[theirs])
    return None if now is None or before is None else Change(before=before, now=now)


def carried_over(own: Change, other: Change) -> tuple[float, Interval] | None:
    """The gain elsewhere as a share of the gain at home, with its 95 % interval by the delta method.

    None where the gain at home is not significant: then there is nothing to carry over.

        var(b / a) = var(b) / a^2 + b^2 var(a) / a^4
    """
    if not own.rises:
        return None
    share = other.value / own.value
    widths = [(change.interval[1] - change.interval[0]) / (2 * 1.959964) for change in (own, other)]
    error = math.hypot(widths[1] / own.value, other.value * widths[0] / own.value**2)
    return share, (share - 1.959964 * error, share + 1.959964 * error)


def _carried(records: Records) -> list[Finding]:
    """One finding for each shifted task that both stages were evaluated on."""
    base = records.base
    if base is None:
        return []
    names = [name for name in records.purposes if name.startswith(SHIFTED) and name in base.purposes]
    both = OWN in records.purposes and OWN in base.purposes
    own = _change(records, base, OWN) if both else None
    found = []
    for name in names:
        other = _change(records, base, name)
        if other is not None:
            found.append(_finding(records, name, own, other))
    return found


def _finding(records: Records, name: str, own: Change | None, other: Change) -> Finding:
    told = f"On {name.removeprefix(SHIFTED)} {other.before.value:.1%} became {other.now.value:.1%}"
    share = None if own is None else carried_over(own, other)
    if own is not None:
        told += f", on its own task {own.before.value:.1%} became {own.now.value:.1%}"
    if share is not None:
        told += f": {share[0]:.0%} of the gain carries over ({share[1][0]:.0%} to {share[1][1]:.0%})"
    loss = -other.interval[1]
    severity = LOSS.grade(loss) if other.falls else Severity.INFO
    finding = judged(NAME, severity, f"{told}.", other.value, other.interval, LOSS)
    return with_evidence(finding, records, _last(records, name) & (records.correct == 0))


PARTS: Parts = {"shifted tasks": Part(_carried, ("shifted", "correct"))}


def transfer(records: Records, _probe: Probe | None = None) -> list[Finding]:
    """What a stage's training did to the solve rate on tasks that it was not trained on, beside that on its own."""
    return run_parts(PARTS, records)
