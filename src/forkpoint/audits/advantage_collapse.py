"""`advantage_collapse`: how many groups teach nothing, because all their rollouts got the same.

    share = |{g : max_i r_i = min_i r_i}| / |{g : G >= 2}|

over the rewards r_i of a group, over `correct` where no reward was kept.  The gradient of every group rule is 0 there
(arXiv 2402.03300; dynamic sampling, arXiv 2503.14476, throws these groups away).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from forkpoint.audits.part import Bounds, Part, Parts, judged, run_parts, with_evidence
from forkpoint.audits.windows import estimate, latest, windows
from forkpoint.probe import Probe
from forkpoint.records import Bools, Finding, Records, Severity

NAME = "advantage_collapse"
SHARE = Bounds(
    watch=0.5, sick=0.9,
    source="at 0.5 half of the sampling teaches nothing, at 0.9 a useful group costs ten (ours)",
)  # fmt: skip
BINS = 3
"""Levels of difficulty that are told apart."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Groups:
    """Groups of two or more training rollouts, all arrays over the groups."""

    problem: NDArray[np.uint64]
    update: NDArray[np.int32]
    constant: Bools
    """Whether all of a group got the same."""
    solved: Bools
    """Whether all of a group are known to be correct."""
    difficulty: NDArray[np.float32]
    place: NDArray[np.int64]
    """Of each rollout, its group; -1 where it counts in none."""


def groups_of(records: Records, mask: Bools) -> Groups:
    """The groups of the rollouts of a mask whose outcome is known."""
    has_reward = "reward" in records.has
    values = records.reward if has_reward else np.where(records.correct < 0, np.nan, records.correct)
    rows = np.flatnonzero(mask & np.isfinite(values))
    _, first, place = np.unique(records.group[rows], return_index=True, return_inverse=True)
    size = len(first)
    low, high = np.full(size, np.inf), np.full(size, -np.inf)
    np.minimum.at(low, place, values[rows])
    np.maximum.at(high, place, values[rows])
    counts = np.bincount(place, minlength=size)
    right = np.bincount(place, weights=records.correct[rows] == 1, minlength=size)
    told = counts >= 2
    number = np.where(told, np.cumsum(told) - 1, -1)
    where = np.full(len(records), -1, dtype=np.int64)
    where[rows] = number[place]
    chosen = rows[first[told]]
    return Groups(
        problem=records.problem[chosen], update=records.update[chosen], constant=(low == high)[told],
        solved=(right == counts)[told], difficulty=records.difficulty[chosen], place=where,
    )  # fmt: skip


def _share(records: Records) -> list[Finding]:
    """The share in the last window, and what it is made of."""
    last = latest(records)
    groups = groups_of(records, last)
    now = estimate(groups.constant, groups.problem)
    if now is None:
        return []
    solved = float(groups.solved[groups.constant].mean()) if groups.constant.any() else 0.0
    found = windows(records)
    early = groups_of(records, found.first) if found is not None else None
    before = f", {early.constant.mean():.0%} at the start" if early is not None and len(early.constant) else ""
    claim = (
        f"{now.value:.0%} of the groups have no variance{before}: their rollouts all got the same, so they teach "
        f"nothing ({solved:.0%} of them are solved, the others hopeless or stuck)."
    )
    severity = SHARE.grade(now.interval[0])
    if severity is not Severity.INFO and solved > 0.5:
        # Nothing is left to learn here, which is no disease.
        severity, claim = Severity.WARNING, f"{claim} The problems are solved: take harder ones."
    finding = judged(NAME, severity, claim, now.value, now.interval, SHARE)
    inside = groups.place >= 0
    rows = inside.copy()
    rows[inside] = groups.constant[groups.place[inside]]
    return [with_evidence(finding, records, rows)]


def _by_difficulty(records: Records) -> list[Finding]:
    """The levels of difficulty at which nothing is learned, although others still teach."""
    groups = groups_of(records, latest(records))
    known = np.isfinite(groups.difficulty)
    levels = np.unique(groups.difficulty[known])
    if len(levels) < 2:
        return []
    edges = np.unique(np.quantile(groups.difficulty[known], np.linspace(0, 1, BINS + 1)[1:-1]))
    place = np.digitize(groups.difficulty, edges, right=True)
    found = windows(records)
    first = None if found is None else groups_of(records, found.first)
    told, worst = [], 0.0
    for level in np.unique(place[known]):
        inside = known & (place == level)
        share = float(groups.constant[inside].mean())
        worst = max(worst, share)
        low, high = groups.difficulty[inside].min(), groups.difficulty[inside].max()
        before = "" if first is None else _before(first, np.digitize(first.difficulty, edges, right=True) == level)
        told.append(f"{low:g} to {high:g}: {before}{share:.0%} of {int(inside.sum())}")
    claim = f"Groups without variance by difficulty: {'; '.join(told)}."
    return [Finding(audit=NAME, severity=Severity.INFO, claim=claim, value=worst)]


def _before(first: Groups, there: Bools) -> str:
    return f"{first.constant[there].mean():.0%}, then " if there.any() else ""


PARTS: Parts = {
    "share": Part(_share, ("groups", "reward|correct")),
    "by difficulty": Part(_by_difficulty, ("groups", "reward|correct", "difficulty")),
}  # fmt: skip


def advantage_collapse(records: Records, _probe: Probe | None = None) -> list[Finding]:
    """The share of groups without variance at the end of a stage, and by difficulty."""
    return run_parts(PARTS, records)
