"""Checks for the authors of tasks, verifiers, credit rules, samplers and audits; our own pass the same ones."""

import hashlib
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from types import MappingProxyType
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from forkpoint.audits.subject import Subject
from forkpoint.probe import Probe, Sampler, SampleRequest
from forkpoint.records import (
    Batch,
    Bools,
    Contents,
    Credit,
    Finding,
    Outcome,
    Problem,
    Records,
    Rollout,
    Severity,
    Verdict,
    frozen_array,
)
from forkpoint.seeds import Key
from forkpoint.tasks.protocol import Task
from forkpoint.verifiers.outside import written_rollout

HOSTILE = (
    "",
    " ",
    "\x00",
    "\ud800",
    "\u202e",
    "9" * 10_000,
    "(" * 5_000,
    "1e999999999",
    "nan",
    "<think>",
    "\\boxed{" * 500,
)
"""Texts that no verifier may accept, hang on, or raise for."""


Audit: TypeAlias = Callable[[Records, Probe | None], list[Finding]]
UNKNOWN: Mapping[str, tuple[str, float]] = MappingProxyType(
    {
        "updates": ("update", 0), "length": ("length", 0), "correct": ("correct", -1), "outcomes": ("outcome", -1),
        "stops": ("stop", -1), "held_out": ("held_out", -1), "turns": ("turns", -1),
        "reward": ("reward", math.nan), "difficulty": ("difficulty", math.nan),
    }
)  # fmt: skip
"""Names of `Records.has` with the column that they are about and what stands there when nothing is known."""
UNDECLARED: Mapping[str, Sequence[str]] = MappingProxyType({})
SAID = frozenset(field.name for field in fields(Contents))
LOOKED_AT = 64
"""Rollouts whose contents are compared before and after."""
RAISED = (ArithmeticError, AssertionError, AttributeError, LookupError, RecursionError, TypeError, ValueError)
MAX_FAILURES = 3
"""Reference answers in a row on which a verifier may fail before a task is given up."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskCheck:
    """What `check_task` found."""

    problems: int
    accepted: int
    wrong: int
    refused: int
    faults: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.faults


def check_task(task: Task, *, count: int = 200, seed: int = 0) -> TaskCheck:
    """Reference answers verify, wrong and hostile ones do not, problems repeat from their key, corpora give texts."""
    faults: list[str] = []
    accepted = wrong = refused = failures = 0
    for index in range(count):
        key = Key.root(seed).child("conformance", index)
        problem = task.problem(key)
        if task.problem(key) != problem:
            faults.append(f"{problem.key}: the same key gives another problem")
        verdict = task.verify(problem, written_rollout(problem, task.solve(problem)))
        accepted += verdict.correct is True
        failures = failures + 1 if verdict.outcome is Outcome.ERROR else 0
        if failures == MAX_FAILURES:
            faults.append(f"the verifier failed on {failures} reference answers in a row: {verdict.reason}")
            break
        if not verdict.correct:
            answer = task.solve(problem)[:60]
            faults.append(f"{problem.key}: the reference answer {answer!r} is {verdict.outcome}: {verdict.reason}")
        for answer in (*task.wrong_answers(problem), *(HOSTILE if index < 3 else ())):
            wrong += 1
            judged = task.verify(problem, written_rollout(problem, answer))
            refused += not judged.correct
            if judged.correct:
                faults.append(f"{problem.key}: the wrong answer {answer[:60]!r} is accepted")
    faults += _corpus_faults(task, Key.root(seed))
    return TaskCheck(problems=index + 1, accepted=accepted, wrong=wrong, refused=refused, faults=tuple(faults))


def _corpus_faults(task: Task, key: Key) -> Iterable[str]:
    allowed = None if task.alphabet is None else set(task.alphabet)
    for name in task.corpora:
        text = next(iter(task.corpus(name, key.child(name))), None)
        if text is None:
            yield f"corpus {name}: holds no text"
        elif allowed is not None and isinstance(text.prompt, str) and not set(text.prompt + text.text) <= allowed:
            yield f"corpus {name}: {text.text[:60]!r} has a character outside the alphabet"


def check_verifier(verifier: Callable[[Problem, Rollout], Verdict], problem: Problem) -> list[str]:
    """Faults of a verifier on hostile texts: an exception, no verdict, an acceptance, a score outside [0, 1]."""
    faults = []
    for text in HOSTILE:
        try:
            verdict = verifier(problem, written_rollout(problem, text))
        except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
            faults.append(f"{text[:20]!r} raises {type(error).__name__}")
            continue
        if verdict.correct:
            faults.append(f"{text[:20]!r} is accepted")
        if verdict.score is not None and not 0 <= verdict.score <= 1:
            faults.append(f"{text[:20]!r} scores {verdict.score}")
        if verdict.correct is not None and not verdict.usable:
            faults.append(f"{text[:20]!r} is {verdict.outcome} and yet correct = {verdict.correct}")
        if verdict.outcome is Outcome.TRUNCATED:
            faults.append(f"{text[:20]!r} is called truncated, which only the guard may do")
    return faults


def check_credit_rule(
    rule: Callable[[Batch, Probe | None], list[Credit]], batch: Batch, probe: Probe | None = None
) -> list[str]:
    """Faults of a credit rule on a batch of rollouts with ids of their own.

    A missing credit, a wrong shape, advantage on untrained tokens, nan; other advantages when asked again, or when the
    groups of the batch come in another order.
    """
    credits = rule(batch, probe)
    if len(credits) != len(batch.rollouts):
        return [f"{len(credits)} credits for {len(batch.rollouts)} rollouts"]
    faults = []
    for rollout, credit in zip(batch.rollouts, credits, strict=True):
        if credit.advantages.shape != rollout.tokens.shape:
            faults.append(f"{rollout.id}: {credit.advantages.shape} advantages for {rollout.tokens.shape} tokens")
        elif credit.advantages[~rollout.loss_mask].any():
            faults.append(f"{rollout.id}: advantage on tokens that are not trained")
        elif not np.isfinite(credit.advantages).all():
            faults.append(f"{rollout.id}: an advantage is not finite")
    turned = replace(batch, groups=batch.groups[::-1])
    for other, when in ((batch, "when asked again"), (turned, "when the groups come in another order")):
        if not faults and not _same_credit(batch, credits, other, rule(other, probe)):
            faults.append(f"other advantages {when}")
    return faults


def _same_credit(batch: Batch, credits: Sequence[Credit], other: Batch, again: Sequence[Credit]) -> bool:
    """Whether each rollout has the same advantages in both, up to rounding."""
    found = {rollout.id: credit.advantages for rollout, credit in zip(other.rollouts, again, strict=True)}
    return all(
        np.allclose(credit.advantages, found[rollout.id], rtol=1e-4, atol=1e-5)
        for rollout, credit in zip(batch.rollouts, credits, strict=True)
    )


def check_sampler(sampler: Sampler, requests: Sequence[SampleRequest]) -> list[str]:
    """Faults of a sampler: a missing or repeated rollout, another one when asked again in another order."""
    first = {rollout.id: rollout for rollout in sampler.stream(requests)}
    again = {rollout.id: rollout for rollout in sampler.stream(list(requests)[::-1])}
    faults = [f"{request.key.hex}: no rollout" for request in requests if request.key.hex not in first]
    for name, rollout in first.items():
        if len(rollout.tokens) != len(rollout.behavior_logprobs) or len(rollout.tokens) != len(rollout.loss_mask):
            faults.append(f"{name}: arrays of unequal length")
        if name not in again or again[name].tokens.tobytes() != rollout.tokens.tobytes():
            faults.append(f"{name}: another rollout when asked again")
    return faults


def check_audit(
    audit: Audit,
    records: Records,
    probe: Probe | None = None,
    *,
    needs: Mapping[str, Sequence[str]] = MappingProxyType({}),
) -> list[str]:
    """Faults of an audit on some records; `needs` is what each part of it declares (docs/audits.md).

    It finds the same when asked again and leaves the records alone; it does not raise where something is unknown, with
    nothing but what a part needs, without a probe, or without rollouts; without any of its needs it finds nothing.
    Findings have one audit's name, a severity, a claim of one line that ends in a full stop, a finite value inside its
    interval, a threshold where they are bad, and evidence that is in the records or among the probe's rollouts.
    """
    before = _digest(records)
    found, raised = _asked(audit, records, probe)
    if raised:
        return [f"raises {raised}"]
    if not isinstance(found, list) or not all(isinstance(each, Finding) for each in found):
        return [f"gives {str(found)[:60]!r}, which is no list of findings"]
    faults = list(_answer_faults(found, records, probe))
    if repr(_asked(audit, records, probe)[0]) != repr(found):
        faults.append("finds something else when asked again")
    if _digest(records) != before:
        faults.append("changes the records")
    for what, fewer, asked in _poorer(records, probe, needs):
        raised = _asked(audit, fewer, asked)[1]
        faults += [f"raises {raised} {what}"] if raised else []
    declared = {name for names in needs.values() for need in names for name in need.split("|")}
    empty = _some(without(records, records.has), np.zeros(len(records), np.bool_))
    silent = [("without rollouts", replace(empty, base=None))]
    silent += [("without anything that it needs", without(records, declared & records.has))] if declared else []
    for what, fewer in silent:
        found, raised = _asked(audit, fewer, None)
        faults += [f"raises {raised} {what}"] if raised else []
        faults += [f"finds {found[0].claim!r} {what}"] if found and not raised else []
    return faults


def _poorer(
    records: Records, probe: Probe | None, needs: Mapping[str, Sequence[str]]
) -> Iterator[tuple[str, Records, Probe | None]]:
    """Records with something missing, in words."""
    for name in sorted(records.has):
        yield f"without {name}", without(records, {name}), probe
    for part, names in needs.items():
        declared = {name for need in names for name in need.split("|")}
        yield f"with all that '{part}' needs and no more", without(records, records.has - declared), probe
    yield "without anything to compare with", replace(records, base=None), probe
    yield "without a probe", records, None


def _asked(audit: Audit, records: Records, probe: Probe | None) -> tuple[list[Finding], str]:
    """The findings, or what was raised."""
    try:
        return audit(records, probe), ""
    except RAISED as error:
        return [], f"{type(error).__name__}: {str(error)[:80]}"


def _answer_faults(found: Sequence[Finding], records: Records, probe: Probe | None) -> Iterator[str]:
    if len({finding.audit for finding in found}) > 1 or not all(finding.audit for finding in found):
        yield f"goes by the names {sorted({finding.audit for finding in found})}, needed is one"
    known = {name.decode("utf-8", "replace") for each in (records, records.base) if each for name in each.ids.tolist()}
    if isinstance(probe, Subject):
        known |= {rollout.id for group in probe.groups for rollout in group.rollouts}
    for finding in found:
        yield from (f"{str(finding.claim)[:40]!r}: {fault}" for fault in _finding_faults(finding, known))


def _finding_faults(finding: Finding, known: Collection[str]) -> Iterator[str]:
    if not isinstance(finding.severity, Severity):
        yield f"severity {finding.severity!r} is none of {', '.join(Severity)}"
    elif finding.severity is not Severity.INFO and finding.threshold is None:
        yield f"is a {finding.severity} without a threshold"
    claim = finding.claim
    if not isinstance(claim, str) or not claim.endswith(".") or len(claim.splitlines()) != 1:
        yield "a claim is one line that ends in a full stop"
    numbers = [finding.value, *(finding.interval or ()), *([] if finding.threshold is None else [finding.threshold])]
    if not all(isinstance(number, int | float | np.number) and math.isfinite(number) for number in numbers):
        yield f"a number is not finite: {numbers}"
    elif finding.interval is not None:
        low, high = finding.interval
        room = 1e-9 * max(1.0, abs(finding.value))
        if not low - room <= finding.value <= high + room:
            yield f"value {finding.value:g} is outside of its interval {low:g} to {high:g}"
    strange = [name for name in finding.evidence if name not in known]
    if strange:
        yield f"evidence {strange[0]!r} is no rollout of the records"


def without(records: Records, names: Collection[str]) -> Records:
    """The records as if some of what `Records.has` names had never been known."""
    gone = set(names)
    kept = _some(records, records.training) if "evaluations" in gone else records
    blank: dict[str, Any] = {}
    for name in gone & UNKNOWN.keys():
        column, value = UNKNOWN[name]
        if getattr(kept, column) is None:
            continue
        blank[column] = frozen_array(np.full(len(kept), value), getattr(kept, column).dtype.type)
    if "groups" in gone:
        blank["group"] = frozen_array(np.arange(len(kept)), np.uint64)
    blank |= {name: {} for name in gone & {"parts", "metrics"}}
    unsaid = gone & SAID | ({"loss_mask"} if "tokens" in gone else set())
    return replace(
        kept, has=records.has - gone, base=None if kept.base is None else without(kept.base, names),
        contents=lambda rows: (replace(said, **dict.fromkeys(unsaid)) for said in kept.contents(rows)), **blank,
    )  # fmt: skip


def _some(records: Records, mask: Bools) -> Records:
    """Some of the rollouts."""
    rows = np.flatnonzero(mask)
    columns: dict[str, Any] = {
        name: frozen_array(column[rows], column.dtype.type) for name, column in _columns(records)
    }
    parts = {name: frozen_array(values[rows], np.float32) for name, values in records.parts.items()}
    return replace(records, parts=parts, contents=lambda asked: records.contents(rows[asked]), **columns)


def _columns(records: Records) -> Iterator[tuple[str, NDArray[Any]]]:
    for field in fields(records):
        value = getattr(records, field.name)
        if isinstance(value, np.ndarray):
            yield field.name, value


def _digest(records: Records) -> str:
    """A hash of all that the records hold, and of what the first rollouts said."""
    digest = hashlib.sha256(repr((sorted(records.has), records.purposes, records.unit, records.skipped)).encode())
    arrays = [*_columns(records), *sorted(records.parts.items())]
    arrays += [(name, values) for name, pair in sorted(records.metrics.items()) for values in pair]
    rows = np.flatnonzero(records.kept)[:LOOKED_AT]
    for said in records.contents(rows):
        for name in sorted(SAID):
            value = getattr(said, name)
            arrays += [(name, value)] if isinstance(value, np.ndarray) else []
    for name, values in arrays:
        digest.update(f"{name} {values.dtype} {values.shape} ".encode() + values.tobytes())
    return digest.hexdigest()
