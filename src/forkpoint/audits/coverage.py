"""`coverage`: did training widen what can be solved at all, or only sharpen what could be?

The chance that k samples hold a correct one, unbiased from n samples with c correct ones (Chen et al., arXiv
2107.03374, section 2.1):

    pass@k = 1 - C(n - c, k) / C(n, k) = 1 - prod_{i = n - c + 1}^{n} (1 - k / i)

Both policies on the same problems; errors by a bootstrap over problems.  Solvable: solved at least once; pass@(k, T):
one of k samples is correct within T tool rounds (both arXiv 2604.14877).
Diversity of correct solutions: the chance that two of a problem differ (Simpson 1949, unbiased).
"""

from collections import defaultdict
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from forkpoint.audits.part import Bounds, Part, Parts, judged, run_parts, with_evidence
from forkpoint.audits.texts import normal
from forkpoint.audits.windows import sample, windows
from forkpoint.probe import Probe
from forkpoint.records import Bools, Finding, Records, Severity, frozen_array
from forkpoint.seeds import Key
from forkpoint.theory.intervals import DRAWS, Interval, mcnemar_exact, mean_interval

NAME = "coverage"
MAX_K = 256
LOST = Bounds(watch=0.05, sick=0.2, source="share of the solvable problems that were lost, with p < 0.05 (ours)")
GAIN = Bounds(watch=0.0, sick=0.1, source="training should not lower pass@1 on the same problems (ours)")
NARROWED = Bounds(watch=0.1, sick=0.3, source="a fall of the chance that two correct solutions differ (ours)")
ALPHA = 0.05
TRIES = 8
"""Samples of a problem from which on a lost one may be called sick."""
ROUNDS = (0, 1, 2, 3, 5, 10, 20, 50)
"""Budgets of tool rounds that are told, below the most that were used."""
MOST_INDICES = 20_000_000
"""Of problems, over all resamples."""
KEY = Key.root(0).child("audit", NAME)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Tries:
    """Samples and correct ones of each problem, ordered by problem."""

    problem: NDArray[np.uint64]
    samples: NDArray[np.int64]
    correct: NDArray[np.int64]
    rows: Bools
    """Where they stand in the records."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Pair:
    """Base and trained policy on the same problems."""

    base: Tries
    trained: Tries
    source: Records
    """The records of the base."""
    about: str


def pass_at_k(samples: NDArray[np.int64], correct: NDArray[np.int64], k: int) -> NDArray[np.float64]:
    """The unbiased estimate of pass@k of each problem [P]; nan where it has fewer than k samples.

    >>> pass_at_k(np.array([4, 4, 4]), np.array([0, 1, 3]), 2).tolist()
    [0.0, 0.5, 1.0]
    """
    pairs, place = np.unique(np.stack([samples, correct]), axis=1, return_inverse=True)
    values = [
        float("nan") if n < k else 1 - float(np.prod(1 - k / np.arange(n - c + 1, n + 1))) if n - c >= k else 1.0
        for n, c in pairs.T.tolist()
    ]
    return np.array(values, dtype=np.float64)[place.reshape(-1)]


def tries(records: Records, rows: Bools) -> Tries:
    """The samples of each problem among some rows whose outcome is known."""
    used = rows & (records.correct >= 0)
    problem, place = np.unique(records.problem[used], return_inverse=True)
    return Tries(
        problem=problem, samples=np.bincount(place, minlength=len(problem)),
        correct=np.bincount(place[records.correct[used] == 1], minlength=len(problem)), rows=used,
    )  # fmt: skip


def _shared(base: Tries, trained: Tries) -> tuple[Tries, Tries]:
    """Both on the problems that both tried."""
    problem, one, two = np.intersect1d(base.problem, trained.problem, assume_unique=True, return_indices=True)
    return (
        Tries(problem=problem, samples=base.samples[one], correct=base.correct[one], rows=base.rows),
        Tries(problem=problem, samples=trained.samples[two], correct=trained.correct[two], rows=trained.rows),
    )


def pair_of(records: Records) -> Pair | None:
    """What is compared: the last evaluation of stage and base, of the stage's first update, or windows of training."""
    base = records.base
    if base is not None and (purpose := _shared_purpose(records, base)):
        rows = _evaluated(records, purpose, last=True)
        mine, theirs = tries(records, rows), tries(base, _evaluated(base, purpose, last=True))
        one, two = _shared(theirs, mine)
        if len(one.problem):
            about = f"{base.stage} and {records.stage} on {len(one.problem)} problems ({purpose})"
            return Pair(base=one, trained=two, source=base, about=about)
    for purpose in records.purposes[1:][::-1]:
        early, late = (_evaluated(records, purpose, last=last) for last in (False, True))
        one, two = _shared(tries(records, early & ~late), tries(records, late))
        if len(one.problem):
            about = f"the first and the last evaluation on {len(one.problem)} problems ({purpose})"
            return Pair(base=one, trained=two, source=records, about=about)
    found = windows(records)
    if found is None:
        return None
    one, two = _shared(tries(records, found.first), tries(records, found.last))
    about = f"{found.text} on {len(one.problem)} training problems that both have"
    return Pair(base=one, trained=two, source=records, about=about) if len(one.problem) else None


def _shared_purpose(records: Records, base: Records) -> str:
    common = [name for name in records.purposes[1:] if name in base.purposes]
    return "final" if "final" in common else next(iter(common), "")


def _evaluated(records: Records, purpose: str, *, last: bool) -> Bools:
    rows = records.purpose == records.purposes.index(purpose)
    if not rows.any():
        return rows
    updates = records.update[rows]
    return rows & (records.update == (updates.max() if last else updates.min()))


def _curves(records: Records) -> list[Finding]:
    """Pass@k of both, where they cross, and what pass@1 says."""
    found = pair_of(records)
    if found is None:
        return []
    most = int(min(MAX_K, found.base.samples.min(), found.trained.samples.min()))
    ks = [k for k in (1, 2, 4, 8, 16, 32, 64, 128, 256) if k <= most]
    made = [_at(found, k) for k in ks]
    told = ", ".join(f"@{k} {old:.1%} to {new:.1%}" for k, old, new, _, _ in made)
    crossing = next((k for k, _, _, gap, _ in made[1:] if gap <= 0), None) if made[0][3] > 0 else None
    _, _, _, gap, interval = made[0]
    wide_interval = made[-1][4]
    says = _reading(interval, wide_interval, most)
    at = f" The base is as good from k = {crossing}." if crossing is not None else ""
    claim = f"pass{told}, for {found.about}: {says}.{at}"
    severity = GAIN.grade(-interval[1]) if interval[1] < 0 else Severity.INFO
    first = judged(NAME, severity, claim, gap, interval, GAIN)
    rows = found.trained.rows & (records.correct == 0) & np.isin(records.problem, found.trained.problem)
    return [with_evidence(first, records, rows)]


def _by_rounds(records: Records) -> list[Finding]:
    """Pass@(k, T) of both at the largest k; what took more than T tool rounds failed."""
    found = pair_of(records)
    if found is None or found.source.turns is None or records.turns is None:
        return []
    sides = ((found.source, found.base), (records, found.trained))
    known = [side.rows & (kept.turns >= 0) for kept, side in sides if kept.turns is not None]
    old, new = _shared(*(tries(kept, rows) for (kept, _), rows in zip(sides, known, strict=True)))
    if not len(old.problem):
        return []
    k = int(min(MAX_K, old.samples.min(), new.samples.min()))
    most = max(int(turns[rows].max()) for turns, rows in zip((found.source.turns, records.turns), known, strict=True))
    if not most:
        return []
    made = []
    for limit in (*(limit for limit in ROUNDS if limit < most), most):
        one, two = _shared(*(tries(_within(kept, limit), rows) for (kept, _), rows in zip(sides, known, strict=True)))
        made.append((limit, *_at(Pair(base=one, trained=two, source=found.source, about=""), k)[1:]))
    told = ", ".join(f"{limit} {before:.1%} to {now:.1%}" for limit, before, now, _, _ in made)
    more = [str(limit) for limit, _, _, _, interval in made if interval[0] > 0]
    less = [str(limit) for limit, _, _, _, interval in made if interval[1] < 0]
    reading = [f"{word} at {', '.join(at)}" for word, at in (("more", more), ("less", less)) if at]
    claim = (
        f"pass@{k} by the tool rounds that count: {told}, before and after on {len(old.problem)} problems; "
        f"{' and '.join(reading) or 'no difference that can be told from chance'}."
    )
    _, _, _, gap, interval = made[-1]
    return [Finding(audit=NAME, severity=Severity.INFO, claim=claim, value=gap, interval=interval)]


def _within(records: Records, limit: int) -> Records:
    """The records where a rollout of more than `limit` tool rounds is not correct."""
    late = np.zeros(len(records), np.bool_) if records.turns is None else records.turns > limit
    return replace(records, correct=frozen_array(np.where(late & (records.correct == 1), 0, records.correct), np.int8))


def _reading(one: tuple[float, float], many: tuple[float, float], k: int) -> str:
    """What the change at 1 and at the largest k come to."""
    if k > 1 and many[0] > 0:
        return f"expansion, more is solved even in {k} tries"
    if k > 1 and many[1] < 0:
        return f"contraction, less is solved in {k} tries"
    if one[0] > 0:
        return (
            "calibration, the same is solved more often" if k > 1 else "better at one try; more samples tell the rest"
        )
    return "worse at one try" if one[1] < 0 else "no difference that can be told from chance"


def _interval(gaps: NDArray[np.float64], k: int) -> Interval:
    """A bootstrap over problems; of very many of them fewer resamples tell as much."""
    return mean_interval(gaps, KEY.child(k), draws=max(400, min(DRAWS, MOST_INDICES // len(gaps))))


def _at(found: Pair, k: int) -> tuple[int, float, float, float, tuple[float, float]]:
    old = pass_at_k(found.base.samples, found.base.correct, k)
    new = pass_at_k(found.trained.samples, found.trained.correct, k)
    return k, float(old.mean()), float(new.mean()), float((new - old).mean()), _interval(new - old, k)


def _solvable(records: Records) -> list[Finding]:
    """Problems that were solved once at least: which were gained, and which lost."""
    found = pair_of(records)
    if found is None:
        return []
    before, after = found.base.correct > 0, found.trained.correct > 0
    lost, gained = before & ~after, ~before & after
    share = float(lost.sum() / max(1, before.sum()))
    chance = mcnemar_exact(int(gained.sum()), int(lost.sum()))
    sure = lost.sum() > gained.sum() and chance < ALPHA
    fewest = int(min(found.base.samples.min(), found.trained.samples.min()))
    severity = LOST.grade(share) if sure else Severity.INFO
    # Below that "never solved" is mostly bad luck.
    if severity is Severity.CRITICAL and fewest < TRIES:
        severity = Severity.WARNING
    claim = (
        f"Solved at least once: {before.sum()} before, {after.sum()} after, for {found.about}; {gained.sum()} gained, "
        f"{lost.sum()} lost (exact McNemar p = {chance:.2g}, at least {fewest} tries each)."
    )
    finding = judged(NAME, severity, claim, share, None, LOST)
    rows = found.trained.rows & np.isin(records.problem, found.trained.problem[lost])
    return [with_evidence(finding, records, rows)]


def differ(solutions: list[str]) -> float:
    """The chance that two of the solutions differ; nan for fewer than two.

    >>> round(differ(["a", "a", "b"]), 4)
    0.6667
    """
    counts = np.unique(solutions, return_counts=True)[1] if solutions else np.zeros(0)
    size = len(solutions)
    return float(1 - (counts * (counts - 1)).sum() / (size * (size - 1))) if size > 1 else float("nan")


def diversity(records: Records, rows: Bools) -> dict[int, float]:
    """For each problem with two correct solutions or more, the chance that two of them differ."""
    chosen = sample(records, rows & (records.correct == 1))
    solutions: dict[int, list[str]] = defaultdict(list)
    for row, said in zip(chosen.tolist(), records.contents(chosen), strict=True):
        if said.text:
            solutions[int(records.problem[row])].append(normal(said.text))
    return {problem: differ(texts) for problem, texts in solutions.items() if len(texts) > 1}


def _strategies(records: Records) -> list[Finding]:
    """How different the correct solutions of a problem are, at the end against the beginning."""
    found = windows(records)
    if found is None:
        return []
    before, now = diversity(records, found.first), diversity(records, found.last)
    if not before or not now:
        return []
    old, new = float(np.mean(list(before.values()))), float(np.mean(list(now.values())))
    errors = [np.std(list(part.values())) / np.sqrt(len(part)) for part in (before, now)]
    error = float(np.hypot(*errors))
    severity = NARROWED.grade(old - new - 2 * error)
    claim = (
        f"Two correct solutions of a problem differ with chance {old:.1%}, then {new:.1%} ({found.text}; "
        f"{len(before)} and {len(now)} problems)."
    )
    return [judged(NAME, severity, claim, new - old, (new - old - 2 * error, new - old + 2 * error), NARROWED)]


PARTS: Parts = {
    "pass@k": Part(_curves, ("correct",)),
    "pass@(k, T)": Part(_by_rounds, ("correct", "turns")),
    "solvable sets": Part(_solvable, ("correct",)),
    "diversity": Part(_strategies, ("correct", "text", "updates")),
}


def coverage(records: Records, _probe: Probe | None = None) -> list[Finding]:
    """What is solved now and was not before, and the other way round."""
    return run_parts(PARTS, records)
