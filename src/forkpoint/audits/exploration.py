"""`exploration`: loops, repeated actions, whether dead ends are left again, and how much is seen without a goal.

Reported rates (arXiv 2605.16143): agents trained on the task alone repeat their last action in 63.4 % of steps and
loop in 16.0 %; trained to explore as well, in 24.9 % and 7.7 %.
"""

from collections.abc import Callable

import numpy as np

from forkpoint.audits.part import RANKS, Bounds, Part, Parts, graded, judged, run_parts, with_evidence
from forkpoint.audits.texts import ends_in_loop, repeated_lines, words
from forkpoint.audits.windows import Estimate, change, estimate, latest, sample, windows
from forkpoint.probe import Probe
from forkpoint.records import Bools, Finding, Records, Severity

NAME = "exploration"
LOOPS = Bounds(watch=0.077, sick=0.160, source="loop rates with and without training to explore, arXiv 2605.16143")
REPEATS = Bounds(watch=0.249, sick=0.634, source="repeated actions with and without training to explore, 2605.16143")
RECOVERY = Bounds(watch=0.1, sick=0.3, source="a fall of the share of dead ends that are left again (ours)")
COVERAGE = Bounds(watch=0.1, sick=0.3, source="a fall of the share that is seen without a goal (ours)")
SEEN = "coverage"
"""Part of a verdict on a prompt without a goal: the share of the places that the rollout saw."""
ENTERED, LEFT = "wrong_entered", "wrong_left"
"""Parts of a verdict: dead ends that were entered, and left again."""


def _units(text: str | None, tokens: object) -> list[object]:
    if text:
        return list(words(text))
    return tokens.tolist() if isinstance(tokens, np.ndarray) else []


def _loops(records: Records) -> list[Finding]:
    rows = sample(records, latest(records))
    looping = np.array(
        [ends_in_loop(_units(said.text, said.tokens)) > 0 for said in records.contents(rows)], dtype=np.bool_
    )
    now = estimate(looping, records.problem[rows])
    if now is None:
        return []
    claim = f"{now.value:.1%} of the rollouts end in a loop: the same words or moves four times in a row or more."
    found = graded(NAME, claim, now.value, now.interval, LOOPS)
    return [with_evidence(found, records, rows[looping])]


def _actions(records: Records) -> list[Finding]:
    rows = sample(records, latest(records))
    shares = np.array([repeated_lines(said.text or "") for said in records.contents(rows)], dtype=np.float64)
    now = estimate(shares, records.problem[rows])
    if now is None:
        return []
    claim = f"{now.value:.1%} of the lines repeat the line before."
    found = graded(NAME, claim, now.value, now.interval, REPEATS)
    return [with_evidence(found, records, rows[np.argsort(-np.nan_to_num(shares), kind="stable")])]


def _recovery(records: Records) -> list[Finding]:
    """The share of entered dead ends that were left again: of evaluations where there are some, else of training."""
    found = _against_before(records, _left, "{} of the dead ends that were entered were left again", RECOVERY)
    if found is None:
        return []
    stuck = _place(records, last=True) & (records.parts[LEFT] < records.parts[ENTERED])
    return [with_evidence(found, records, stuck) if RANKS[found.severity] else found]


def _coverage(records: Records) -> list[Finding]:
    """Checkpoint coverage (arXiv 2605.16143): the share of the places that rollouts without a goal see."""
    found = _against_before(records, _seen, "Without a goal rollouts see {} of the places", COVERAGE)
    if found is None:
        return []
    return [with_evidence(found, records, _place(records, last=True) & (records.parts[SEEN] < 0.5))]


def _against_before(
    records: Records, measure: Callable[[Records, Bools], Estimate | None], claim: str, bounds: Bounds
) -> Finding | None:
    """A share of the last rollouts, judged by its fall since the base or the first evaluation."""
    now = measure(records, _place(records, last=True))
    if now is None:
        return None
    text, before = claim.format(f"{now.value:.1%}"), _before(records, measure)
    if before is None:
        return Finding(audit=NAME, severity=Severity.INFO, claim=f"{text}.", value=now.value, interval=now.interval)
    error = float(np.hypot(before.error, now.error))
    severity = bounds.grade(before.value - now.value - 2 * error)
    return judged(NAME, severity, f"{text}, {before.value:.1%} before.", now.value, now.interval, bounds)


def _seen(records: Records, rows: Bools) -> Estimate | None:
    if SEEN not in records.parts:
        return None
    return estimate(records.parts[SEEN][rows], records.problem[rows])


def _left(records: Records, rows: Bools) -> Estimate | None:
    """Of dead ends, not of rollouts: a ratio of sums, as a mean with weights."""
    if not {ENTERED, LEFT} <= set(records.parts):
        return None
    entered = np.nan_to_num(records.parts[ENTERED][rows]).astype(np.float64)
    left = np.nan_to_num(records.parts[LEFT][rows]).astype(np.float64)
    if entered.sum() <= 0:
        return None
    share = float(left.sum() / entered.sum())
    _, place = np.unique(records.problem[rows], return_inverse=True)
    gaps = np.bincount(place, weights=left - share * entered)
    size = len(gaps)
    error = float(np.sqrt((gaps**2).sum() * size / max(1, size - 1)) / entered.sum())
    return Estimate(value=share, error=error, problems=size, rollouts=int(rows.sum()), is_share=True)


def _before(records: Records, measure: Callable[[Records, Bools], Estimate | None]) -> Estimate | None:
    base = records.base
    found = None if base is None else measure(base, _place(base, last=True))
    if found is not None:
        return found
    first = _place(records, last=False)
    return measure(records, first) if first.any() else None


def _place(records: Records, *, last: bool) -> Bools:
    """The rollouts of the last or the first evaluation, of the windows of training where there is none."""
    judged_rows = ~records.training
    if judged_rows.any():
        updates = records.update[judged_rows]
        if not last and updates.min() == updates.max():
            return np.zeros(len(records), dtype=np.bool_)
        return judged_rows & (records.update == (updates.max() if last else updates.min()))
    found = windows(records)
    if found is None:
        return records.training if last else np.zeros(len(records), dtype=np.bool_)
    return found.last if last else found.first


def _over_time(records: Records) -> list[Finding]:
    """Loops at the end against the beginning."""
    found = windows(records)
    if found is None:
        return []
    rows = np.unique(np.concatenate([sample(records, found.first), sample(records, found.last)]))
    looping = np.full(len(records), np.nan)
    for row, said in zip(rows.tolist(), records.contents(rows), strict=True):
        looping[row] = ends_in_loop(_units(said.text, said.tokens)) > 0
    moved = change(looping, records, found)
    if moved is None:
        return []
    claim = f"Rollouts that end in a loop: {moved.before.value:.1%}, then {moved.now.value:.1%} ({found.text})."
    return [Finding(audit=NAME, severity=Severity.INFO, claim=claim, value=moved.value, interval=moved.interval)]


PARTS: Parts = {
    "loops": Part(_loops, ("text|tokens",)),
    "loops over time": Part(_over_time, ("text|tokens", "updates")),
    "repeated actions": Part(_actions, ("text",)),
    "recovery": Part(_recovery, ("parts",)),
    "coverage without a goal": Part(_coverage, ("parts",)),
}


def exploration(records: Records, _probe: Probe | None = None) -> list[Finding]:
    """Whether the rollouts still look around."""
    return run_parts(PARTS, records)
