"""The audit of a scorer: every attack of the battery, on several problems, in a killable child.

A scorer is clean when the reference scores 1 and nothing else does, pays or happens.  Faults, by name:

    control     a reference answer does not score 1, or there is none
    accepted    an attack that is no right answer scores 1
    hedge       the right answer and a refused one, in both orders, score 1 on every problem
    tail        the right answer with junk in it scores 1
    paid        an attack scores above 0 and below 1
    raised      an exception, an ERROR or ABSTAINED verdict, or no finite number
    hung        no answer before the deadline, a dead child, or no memory left
    effect      a file, a process, the network, or the answer run as a program
"""

import json
import os
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from forkpoint.audits.attacks import BATTERY, CONTROL, UNFINISHED, Attack, Item
from forkpoint.errors import TaskError, VerifierError
from forkpoint.records import Problem
from forkpoint.seeds import content_hash
from forkpoint.verifiers.exact import parse_number
from forkpoint.verifiers.outside import encode_problem
from forkpoint.verifiers.worker import Answer, Worker

FAULTS = ("control", "accepted", "hedge", "tail", "paid", "raised", "hung", "effect")
FORMS = ("{}", r"\boxed{{{}}}", "#### {}", "Answer: {}", "<answer>{}</answer>")
"""How a right answer may have to be written for a function that does not say it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """A scorer and the problems that it is tried on."""

    name: str
    target: str
    """`package.module:function`, called as `verifiers.outside` says; with `settings` the builder of a task."""
    items: tuple[Item, ...]
    settings: Mapping[str, Any] | None = None
    own_worker: bool = False
    """Whether its checks run in a child of its own with a deadline of its own: that is then no side effect."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AttackResult:
    """What came of one attack over all problems."""

    attack: str
    calls: int
    highest: float | None
    """The highest score; None where no call gave one."""
    accepted: int
    """Problems on which it scored 1."""
    raised: int
    hung: int
    effects: tuple[str, ...]
    faults: tuple[str, ...]
    example: str = ""
    """The first exception, or how the child was lost."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScorerAudit:
    """What an audit of a scorer found."""

    name: str
    problems: int
    results: tuple[AttackResult, ...]
    faults: Mapping[str, tuple[str, ...]]
    """Each kind of fault that was found, with the attacks that showed it."""
    network: bool
    """Whether the child could have reached the network."""
    variables: tuple[str, ...]
    """The environment variables that the child could read."""

    def is_clean(self, fail_on: Collection[str] = FAULTS) -> bool:
        """Whether none of these faults was found."""
        return not set(self.faults) & set(fail_on)

    def why(self, fail_on: Collection[str] = FAULTS) -> str:
        """The faults in words, the attacks of each; empty for a clean scorer."""
        shown = [(fault, self.faults[fault]) for fault in FAULTS if fault in self.faults and fault in fail_on]
        return "; ".join(f"{fault}: {', '.join(attacks[:4])}{' …' * (len(attacks) > 4)}" for fault, attacks in shown)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Call:
    score: float | None = None
    correct: bool = False
    raised: str = ""
    lost: str = ""
    effects: tuple[str, ...] = ()


class _Range:
    """One child in a folder of its own, with a long first call after each start."""

    def __init__(self, subject: Subject, folder: Path, timeout_seconds: float, start_seconds: float) -> None:
        self.subject, self.folder = subject, folder
        self.seconds = start_seconds if subject.own_worker else timeout_seconds
        self.start_seconds = start_seconds
        settings = subject.settings
        self.met: set[str] = set()
        self.settings = None if settings is None else json.dumps(dict(settings))
        self.worker = Worker(
            "forkpoint.audits.child:serve", timeout_seconds=start_seconds, memory_bytes=4 << 30,
            imports=(subject.target.partition(":")[0],), folder=folder,
        )  # fmt: skip

    def about(self) -> tuple[bool, tuple[str, ...]]:
        found = self.worker.call("about", self.subject.target, self.settings)
        if found.kind != "ok":
            reason = " ".join(f"{found.kind}: {found.reason}".split())
            raise VerifierError(f"scorer '{self.subject.name}' cannot be called: {reason}.")
        return bool(found.value["verifier"]), tuple(found.value["variables"])

    def shoot(self, item: Item, text: str | None) -> _Call:
        """One call; a child that has not met the problem is first asked about the right answer, without hurry.

        So the deadline covers neither imports nor what the scorer prepares once for a problem.
        """
        if not self.worker.is_alive:
            self.met.clear()
        if item.problem.key not in self.met:
            self.worker.timeout_seconds = self.start_seconds
            self._ask(item, item.right)
            self.met.add(item.problem.key)
        self.worker.timeout_seconds = self.seconds if self.worker.is_alive else self.start_seconds
        found = self._ask(item, text)
        made = self._made()
        if found.kind != "ok":
            return _Call(lost=f"{found.kind}: {found.reason}", effects=made)
        table = found.value
        effects = (*table["effects"], *made)
        return _Call(score=table["score"], correct=table["correct"], raised=table["raised"], effects=effects)

    def _ask(self, item: Item, text: str | None) -> Answer:
        subject, problem = self.subject, encode_problem(item.problem)
        return self.worker.call("attack", subject.target, self.settings, problem, text, subject.own_worker)

    def _made(self) -> tuple[str, ...]:
        """Files that appeared in the child's folder, which are taken away again."""
        names = os.listdir(self.folder)
        for name in names:
            path = self.folder / name
            path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
        return ("makes a file in its folder",) if names else ()


def sums(count: int) -> tuple[Item, ...]:
    """Sums of two numbers, for a function that comes without problems; all answers differ.

    >>> [(item.problem.prompt, item.right, item.other) for item in sums(2)]
    [('What is 17 + 25?', '42', '73'), ('What is 28 + 45?', '73', '42')]
    """
    pairs = [(17 + 11 * index, 25 + 20 * index) for index in range(count)]
    answers = [str(left + right) for left, right in pairs]
    texts = [f"What is {left} + {right}?" for left, right in pairs]
    problems = [
        Problem(task="sums", key=content_hash("sums", text), prompt=text, answer=answer)
        for text, answer in zip(texts, answers, strict=True)
    ]
    return tuple(
        Item(problem=problem, right=problem.answer, other=answers[(index + 1) % count] if count > 1 else "")
        for index, problem in enumerate(problems)
    )


def audit_scorer(subject: Subject, *, timeout_seconds: float = 2.0, start_seconds: float = 60.0) -> ScorerAudit:
    """What the battery does to a scorer; `timeout_seconds` bounds a call, `start_seconds` a start with its first call.

    After the first hang of an attack its other problems are left out.  Raises TaskError without problems, and
    VerifierError where the scorer cannot be imported or called.
    """
    if not subject.items:
        raise TaskError(f"scorer '{subject.name}' has no problem to be tried on.")
    with tempfile.TemporaryDirectory() as folder:
        place = _Range(subject, Path(folder), timeout_seconds, start_seconds)
        with place.worker:
            verifies, variables = place.about()
            network = place.worker.has_network
            items = _in_form(place, subject.items)
            battery = [CONTROL, *BATTERY, *([UNFINISHED] if verifies else [])]
            results = [_run(place, attack, items) for attack in battery if attack.name != "None" or not verifies]
    found: dict[str, tuple[str, ...]] = {}
    for result in results:
        for fault in result.faults:
            found[fault] = (*found.get(fault, ()), result.attack)
    return ScorerAudit(
        name=subject.name, problems=len(items), results=tuple(results), faults=MappingProxyType(found),
        network=network, variables=variables,
    )  # fmt: skip


def _in_form(place: _Range, items: Sequence[Item]) -> Sequence[Item]:
    """The items with their right texts in the first form that the scorer accepts, for a function; else as they are."""
    if place.subject.settings is not None or place.shoot(items[0], items[0].right).correct:
        return items
    for form in FORMS[1:]:
        written = [
            Item(problem=item.problem, right=form.format(item.right), other=form.format(item.other)) for item in items
        ]
        if place.shoot(written[0], written[0].right).correct:
            return written
    return items


def _run(place: _Range, attack: Attack, items: Sequence[Item]) -> AttackResult:
    calls: list[_Call] = []
    for item in items:
        call = _attempt(place, attack, item)
        if call is None:
            continue
        calls.append(call)
        if call.lost:
            break
    scores = [call.score for call in calls if call.score is not None]
    failed = next((call.lost or call.raised for call in calls if call.lost or call.raised), "")
    return AttackResult(
        attack=attack.name, calls=len(calls), highest=max(scores, default=None),
        accepted=sum(call.correct for call in calls), raised=sum(bool(call.raised) for call in calls),
        hung=sum(bool(call.lost) for call in calls),
        effects=tuple(dict.fromkeys(effect for call in calls for effect in call.effects)),
        faults=tuple(_faults(attack, calls)), example=failed,
    )  # fmt: skip


def _attempt(place: _Range, attack: Attack, item: Item) -> _Call | None:
    """The worst of an attack's texts for the attacker; None where the attack says nothing about this problem."""
    texts = attack.texts(item)
    if attack.kind == "wrong" and any(_is_right(text, item) for text in texts):
        return None
    if attack.kind == "hedge" and (not item.other or place.shoot(item, item.other).correct):
        return None
    if attack.kind == "control" and not item.right:
        return _Call(raised="there is no reference answer")
    calls = [place.shoot(item, text) for text in texts]
    return min(calls, key=lambda call: (not call.lost, call.correct, call.score or 0.0))


def _is_right(text: str | None, item: Item) -> bool:
    """Whether a constant happens to be the right answer of this problem."""
    if text is None:
        return False
    for right in (item.right, item.problem.answer):
        if text.strip().casefold() == right.strip().casefold():
            return bool(right.strip())
        value = parse_number(right)
        if value is not None and value == parse_number(text):
            return True
    return False


def _faults(attack: Attack, calls: Sequence[_Call]) -> Iterator[str]:
    if attack.kind == "control":
        if not all(call.correct for call in calls):
            yield "control"
    else:
        accepted = [call.correct for call in calls]
        # One hedge may happen to be right, such as a longer walk to the goal; a hole takes them all.
        if any(accepted) if attack.kind != "hedge" else accepted and all(accepted):
            yield {"wrong": "accepted"}.get(attack.kind, attack.kind)
        if attack.kind == "wrong" and any(0 < (call.score or 0) < 1 for call in calls):
            yield "paid"
        # No trainer hands a None over; a function that raises for it is shown, not refused.
        if any(call.raised for call in calls) and attack.name != "None":
            yield "raised"
    if any(call.lost for call in calls):
        yield "hung"
    if any(call.effects for call in calls):
        yield "effect"
