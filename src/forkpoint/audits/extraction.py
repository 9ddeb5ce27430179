"""The same stored texts judged under other extractions of the answer: does a verdict depend on the instrument?

What a text answers may be its last box, its first, what follows a declared mark, or its last number; each is compared
with the reference exactly.  One of them must reproduce the verdicts that the run has; the others are other instruments.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from forkpoint.audits.part import Bounds, judged, with_evidence
from forkpoint.audits.texts import MAX_CHARACTERS, normal
from forkpoint.audits.windows import Change, Windows, change, estimate, latest, sample, windows
from forkpoint.records import Contents, Finding, Records, Severity
from forkpoint.verifiers.answers import after_marker, after_thinking, final_answer, first_box, last_box
from forkpoint.verifiers.exact import choices_equal, numbers_equal, parse_choice, parse_number

NAME = "reward_hacking"
MARKS = ("####", "answer:", "#")
ANSWERED = 0.5
"""Share of the texts in which an instrument must find an answer."""
FAITHFUL = 0.9
"""Share of the verdicts that an instrument must reproduce to count as that of the run."""
FLIPPED = Bounds(
    watch=0.05, sick=0.05,
    source="0.05 of the verdicts (ours); sick where success under one instrument is failure under the other",
)  # fmt: skip
_NUMBER = re.compile(r"(?<![\w.])[+-]?(?:\d{1,3}(?:,\d{3})+|\d{1,40})(?:\.\d{1,40})?(?:/\d{1,40})?")

Array = NDArray[np.float64]


def last_number(text: str) -> str | None:
    """The number that begins last; None without one.

    >>> last_number("3 apples, 1,250 pears."), last_number("2+3=5"), last_number("none")
    ('1,250', '5', None)
    """
    found = None
    for match in _NUMBER.finditer(text):
        found = match
    return None if found is None else found.group()


def _marked(text: str) -> str | None:
    return after_marker(text, MARKS)


INSTRUMENTS: Mapping[str, Callable[[str], str | None]] = MappingProxyType(
    {"last box": last_box, "first box": first_box, "declared form": _marked, "last number": last_number}
)
"""Extractions by name; a text is what follows its reasoning."""
OWN = "the run's own extraction"


def same_answer(answer: str, reference: str) -> bool:
    """Whether two answers are equal: as numbers or choices where the reference is one, else letter by letter.

    >>> same_answer("0.5", "1/2"), same_answer("(b)", "B"), same_answer("x = 4.", "x=4"), same_answer("", "x")
    (True, True, True, False)
    """
    wanted = final_answer(reference, whole=True) or ""
    if parse_number(wanted) is not None:
        return numbers_equal(answer, wanted) is True
    if parse_choice(wanted) is not None:
        return choices_equal(answer, wanted) is True
    return bool(normal(answer)) and normal(answer) == normal(wanted)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Readings:
    """What the instruments make of some rollouts."""

    rows: NDArray[np.int64]
    """[R], places in the records."""
    answered: Mapping[str, Array]
    """Of each instrument [R]: whether it finds an answer."""
    right: Mapping[str, Array]
    """Of each instrument [R]: whether its answer is the reference; without an answer it is not."""


def readings(records: Records, rows: NDArray[np.int64]) -> Readings:
    """The rollouts of some rows that have a text and a reference, under every instrument."""
    kept, found = [], []
    for row, said in zip(rows.tolist(), records.contents(rows), strict=True):
        if said.text is not None and said.reference:
            kept.append(row)
            found.append(_read(said, said.text, said.reference))
    names = (*INSTRUMENTS, OWN)
    table = np.array(found, dtype=np.float64).reshape(len(kept), len(names), 2)
    return Readings(
        rows=np.array(kept, dtype=np.int64),
        answered={name: table[:, place, 0] for place, name in enumerate(names)},
        right={name: table[:, place, 1] for place, name in enumerate(names)},
    )


def _read(said: Contents, text: str, reference: str) -> list[tuple[bool, bool]]:
    """Whether each instrument finds an answer, and whether it is the right one."""
    rest = after_thinking(text[-MAX_CHARACTERS:])
    answers = [None if rest is None else instrument(rest) for instrument in INSTRUMENTS.values()]
    return [(bool(answer), bool(answer) and same_answer(answer or "", reference)) for answer in (*answers, said.answer)]


def other_extraction(records: Records) -> list[Finding]:
    """How many verdicts flip under the extraction that disagrees most, and whether success does."""
    found = windows(records)
    known = records.correct >= 0
    masks = [latest(records) & known] if found is None else [found.first & known, found.last & known]
    read = readings(records, np.unique(np.concatenate([sample(records, mask) for mask in masks])))
    if not len(read.rows):
        return []
    correct = records.correct[read.rows].astype(np.float64)
    used = [name for name, there in read.answered.items() if there.mean() >= ANSWERED]
    agree = {name: float((read.right[name] == correct).mean()) for name in used}
    own = max(used, key=lambda name: (agree[name], name == OWN), default="")
    if not own or agree[own] < FAITHFUL:
        return [_unfaithful(own, agree)]
    others = [name for name in used if name not in (own, OWN)]
    if not others:
        claim = f"Only {own} finds an answer in half of the texts: no other instrument to hold the verdicts against."
        return [Finding(audit=NAME, severity=Severity.INFO, claim=claim, value=agree[own])]
    worst = min(others, key=agree.__getitem__)
    return _flips(records, read, (own, worst, len(others)), found)


def _unfaithful(own: str, agree: Mapping[str, float]) -> Finding:
    best = f"{own} reproduces {agree[own]:.0%} of the verdicts" if own else "none finds an answer in half of the texts"
    claim = (
        f"No extraction with an exact comparison stands for the run's verifier ({best}), so nothing is said of other "
        f"instruments."
    )
    return Finding(audit=NAME, severity=Severity.INFO, claim=claim, value=agree.get(own, 0.0), threshold=FAITHFUL)


def _flips(records: Records, read: Readings, names: tuple[str, str, int], found: Windows | None) -> list[Finding]:
    """The finding about the instrument that disagrees most."""
    own, other, tried = names
    correct, right = (np.full(len(records), np.nan) for _ in range(2))
    correct[read.rows], right[read.rows] = records.correct[read.rows], read.right[other]
    flipped = np.where(np.isfinite(right), (right != correct).astype(np.float64), np.nan)
    now = estimate(np.where(latest(records), flipped, np.nan), records.problem)
    if now is None:
        return []
    moved = None if found is None else (change(correct, records, found), change(right, records, found))
    severity = FLIPPED.grade(now.interval[0])
    claim = f"{now.value:.1%} of the verdicts flip if the answer is the {other} (worst of {tried}), not {own}"
    if severity is Severity.CRITICAL:
        severity = Severity.WARNING
    if moved is not None and moved[0] is not None and moved[1] is not None:
        mine, theirs = moved[0], moved[1]
        claim += f"; solved under the latter {_told(mine)}, under the former {_told(theirs)}"
        if (mine.rises and theirs.falls) or (mine.falls and theirs.rises):
            severity = Severity.CRITICAL
            claim += ": success by one instrument is failure by the other"
    finding = judged(NAME, severity, f"{claim}.", now.value, now.interval, FLIPPED)
    return [with_evidence(finding, records, latest(records) & (flipped == 1))]


def _told(moved: Change) -> str:
    low, high = moved.interval
    return f"{moved.before.value:.3f} to {moved.now.value:.3f} ({moved.value:+.3f} [{low:+.3f}, {high:+.3f}])"
