r"""`jsonl`: the user's own file of questions and answers.

Each line is an object: `question` and `answer`, both required, and where wanted `kind` (how answers are compared:
`number`, `tuple`, `choice`, `latex`, `text`; found from the answer otherwise) and `solution` (a worked text to
imitate, which must end in the answer).  A rollout's answer is the last `\boxed{...}` after its thinking, else what
follows `####` or `answer:`, else, if what follows the thinking is a short text of one line, all of that.
Numbers, tuples and choices are compared exactly, LaTeX in a worker that can be killed (the extra `math`), texts
without regard to case, spaces and a full stop.  With `verifier = "package.module:function"` your function judges
instead, in such a worker too.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

from pydantic import Field

from forkpoint.errors import TaskError, unknown_name
from forkpoint.records import Outcome, Problem, Rollout, Verdict
from forkpoint.seeds import Key, content_hash
from forkpoint.tasks.protocol import Demonstration
from forkpoint.tasks.settings import TaskSettings
from forkpoint.verifiers.answers import THINK_OPEN, after_thinking, final_answer
from forkpoint.verifiers.exact import (
    MAX_SHOWN,
    bare,
    exact_verdict,
    is_declined,
    parse_choice,
    parse_number,
    parse_tuple,
)
from forkpoint.verifiers.mathematics import TIMEOUT_SECONDS, MathScorer, require_math
from forkpoint.verifiers.outside import OutsideVerifier, written_rollout

AnswerKind: TypeAlias = Literal["number", "tuple", "choice", "latex", "text"]
KINDS: tuple[str, ...] = get_args(AnswerKind)
FIELDS = ("question", "answer", "kind", "solution")
MAX_WHOLE = 200
"""Characters of a text that may be an answer as a whole."""
_LATEX = frozenset("\\^_{}$=<>")


class Settings(TaskSettings):
    """What a recipe may say of `jsonl`."""

    path: str
    """The file, seen from the recipe's folder; UTF-8, one JSON object a line."""
    kind: Literal["auto", "number", "tuple", "choice", "latex", "text"] = "auto"
    """How answers are compared where a line does not say it; `auto` looks at the answer."""
    tolerance: float | None = Field(default=None, ge=0)
    """Largest absolute difference of equal numbers, also within tuples; without it they must be equal."""
    suffix: str = Field(default="", max_length=10_000)
    """Written after every question, such as an instruction to box the answer."""
    hint: str = Field(default="\n\nHint: {hint}", max_length=10_000, pattern=r"\{hint\}")
    """What stands after a question whose asker is told something, such as the answer or what the verifier said."""
    max_lines: int = Field(default=1_000_000, ge=1)
    """A longer file is refused."""
    max_characters: int = Field(default=100_000, ge=1)
    """A longer line is refused."""
    verifier: str = ""
    """Your own function, `package.module:function`, which judges every rollout of this file; `kind` is then unused."""
    timeout_seconds: float = Field(default=TIMEOUT_SECONDS, gt=0, le=600)
    """Seconds that the comparison of one LaTeX answer, or a call of `verifier`, may take."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One line of the file."""

    question: str
    answer: str
    kind: str
    solution: str | None
    where: str
    """`file:line`."""


def build(settings: Settings) -> "Questions":
    """The task of a file.

    Raises TaskError, naming file and line, for a file that cannot be used, and VerifierError where its LaTeX answers
    need an extra that is not installed, or where `verifier` cannot be called.
    """
    return Questions(settings)


def guess_kind(answer: str) -> str:
    r"""How an answer is compared when nobody says it.

    >>> [guess_kind(text) for text in ("1/2", "(1, 2)", "B", r"\sqrt{2}", "x^2", "Paris")]
    ['number', 'tuple', 'choice', 'latex', 'latex', 'text']
    """
    if parse_number(answer) is not None:
        return "number"
    if bare(answer)[:1] in ("(", "[") and parse_tuple(answer) is not None:
        return "tuple"
    if answer.strip().isupper() and parse_choice(answer) is not None:
        return "choice"
    return "latex" if _LATEX & set(answer) else "text"


def read_entries(settings: Settings) -> list[Entry]:
    """The lines of the file, checked; raises TaskError with the place of the first mistake."""
    path = Path(settings.path)
    entries: list[Entry] = []
    seen: dict[str, str] = {}
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                where = f"{path.name}:{number}"
                if number > settings.max_lines:
                    raise TaskError(f"{where}: the file has more than max_lines = {settings.max_lines} lines.")
                if not line.strip():
                    continue
                entry = _entry(line, where, settings)
                if entry.question in seen:
                    raise TaskError(f"{where}: the question stands already in {seen[entry.question]}.")
                seen[entry.question] = where
                entries.append(entry)
    except OSError as error:
        raise TaskError(f"[task] path = '{settings.path}' cannot be read: {error.strerror}.") from None
    if not entries:
        raise TaskError(f"[task] path = '{settings.path}' holds no question.")
    return entries


def _entry(line: bytes, where: str, settings: Settings) -> Entry:
    table = json_object(line, where, settings.max_characters, f"max_characters = {settings.max_characters}")
    for name in table:
        if name not in FIELDS:
            raise TaskError(unknown_name(f"{where}: key", _shown(name), FIELDS))
    question, answer = (text_value(table, name, where) for name in ("question", "answer"))
    kind = table.get("kind", settings.kind)
    if kind == "auto":
        kind = guess_kind(answer)
    if kind not in KINDS:
        raise TaskError(unknown_name(f"{where}: kind", _shown(str(kind)), KINDS))
    solution = text_value(table, "solution", where) if "solution" in table else None
    return Entry(question=question, answer=answer, kind=kind, solution=solution, where=where)


def json_object(line: bytes, where: str, longest: int, bound: str = "") -> Mapping[str, Any]:
    """The object of a line of about `longest` characters at most; raises TaskError with its place for anything else.

    `bound` is what sets the length, in words.
    """
    if len(line) > 4 * longest:
        raise TaskError(f"{where}: the line is longer than {bound or f'{longest} characters'}.")
    try:
        table = json.loads(line.decode("utf-8-sig"), object_pairs_hook=_unique)
    except UnicodeDecodeError as error:
        raise TaskError(f"{where}: byte {error.start + 1} is not UTF-8.") from None
    except json.JSONDecodeError as error:
        raise TaskError(f"{where}: not JSON at column {error.colno}: {error.msg}.") from None
    except KeyError as error:
        raise TaskError(f"{where}: the key '{_shown(error.args[0])}' stands there twice.") from None
    except (ValueError, RecursionError):
        raise TaskError(f"{where}: this JSON is nested too deeply or holds too long a number.") from None
    if not isinstance(table, dict):
        raise TaskError(f"{where}: a line must be an object, not {type(table).__name__}.")
    return table


def _unique(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """The object of these pairs; KeyError with a key that comes twice, of which one value would be lost."""
    table: dict[str, Any] = {}
    for name, value in pairs:
        if name in table:
            raise KeyError(name)
        table[name] = value
    return table


def _shown(text: str) -> str:
    """What a message of one line shows of a text."""
    return repr(text[:MAX_SHOWN])[1:-1]


def text_value(table: Mapping[str, Any], name: str, where: str) -> str:
    """A field of a line; raises TaskError for one that is missing, empty, or no text."""
    if name not in table:
        raise TaskError(f"{where}: {name} is missing.")
    value = table[name]
    if name == "answer" and _is_number(value):
        value = str(value)
    if not isinstance(value, str):
        raise TaskError(f"{where}: {name} must be a text, not {type(value).__name__}.")
    if not value.strip():
        raise TaskError(f"{where}: {name} is empty.")
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise TaskError(f"{where}: {name} holds half a character (a lone surrogate).")
    return value


def _is_number(value: object) -> bool:
    # A whole number may be larger than any float.
    return (isinstance(value, int) and not isinstance(value, bool)) or (
        isinstance(value, float) and math.isfinite(value)
    )


def _plain(text: str) -> str:
    return " ".join(bare(text).casefold().split())


class Questions:
    """The task `jsonl`: a finite list of problems; its split is decided by the question alone."""

    name: str = "jsonl"
    alphabet: str | None = None
    corpora: tuple[str, ...] = ("solutions",)

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._scorer = MathScorer(timeout_seconds=settings.timeout_seconds)
        self._outside = (
            OutsideVerifier(settings.verifier, timeout_seconds=settings.timeout_seconds) if settings.verifier else None
        )
        self._entries = {self._key(entry): entry for entry in read_entries(settings)}
        if self._outside is not None:
            self._outside.check()
        elif any(entry.kind == "latex" for entry in self._entries.values()):
            require_math()
        for entry in self._entries.values():
            self._check(entry)
        self.close()  # workers start again where they are needed
        self._problems = tuple(self._problem(key, entry) for key, entry in self._entries.items())
        self._training = tuple(problem for problem in self._problems if not problem.is_evaluation)
        self._both_splits()

    def close(self) -> None:
        """Ends the workers; they start again where they are needed."""
        self._scorer.close()
        if self._outside is not None:
            self._outside.close()

    def _key(self, entry: Entry) -> str:
        return content_hash(self.name, entry.question)

    def _problem(self, key: str, entry: Entry) -> Problem:
        prompt = entry.question + self.settings.suffix
        metadata = {"kind": entry.kind, "where": entry.where}
        return Problem(task=self.name, key=key, prompt=prompt, answer=entry.answer, metadata=metadata)

    def _both_splits(self) -> None:
        held_out = len(self._problems) - len(self._training)
        if not held_out or not self._training:
            missing = "held-out" if not held_out else "training"
            raise TaskError(
                f"[task] path = '{self.settings.path}' has no {missing} question: the hash of a question puts one in "
                f"ten aside, and of these {len(self._problems)} it left {missing} none; add questions."
            )

    def _check(self, entry: Entry) -> None:
        """The reference answer can be read, and a worked solution ends in it (is accepted by the user's verifier)."""
        if self._outside is not None:
            problem = self._problem(self._key(entry), entry)
            verdict = self._outside(problem, written_rollout(problem, entry.solution)) if entry.solution else None
            if verdict is not None and not verdict.correct:
                raise TaskError(f"{entry.where}: verifier calls the solution {verdict.outcome}: {verdict.reason}.")
            return
        readers: Mapping[str, Any] = {
            "number": parse_number, "tuple": parse_tuple, "choice": parse_choice, "latex": self._readable,
        }  # fmt: skip
        if entry.kind in readers and readers[entry.kind](entry.answer) is None:
            raise TaskError(f"{entry.where}: the answer {entry.answer[:60]!r} cannot be read as a {entry.kind}.")
        if entry.solution is not None and not self._judge(entry.solution, entry.answer, entry.kind).correct:
            found = _found(entry.solution)
            shown = "no answer" if found is None else f"the answer {found[:60]!r}"
            raise TaskError(f"{entry.where}: the solution ends in {shown}, not in {entry.answer[:60]!r}.")

    def _readable(self, answer: str) -> bool | None:
        return self._scorer.can_read(answer) or None

    def problems(self) -> Sequence[Problem]:
        """All questions of the file, in its order."""
        return self._problems

    def problem(self, key: Key, difficulty: float | None = None) -> Problem:
        """A question of either split, drawn uniformly; there is no dial."""
        del difficulty
        return self._problems[int(key.hex, 16) % len(self._problems)]

    def verify(self, problem: Problem, rollout: Rollout) -> Verdict:
        """CORRECT, WRONG, DECLINED or UNPARSEABLE; ERROR where a worker's check hung, died or raised."""
        if self._outside is not None:
            return self._outside(problem, rollout)
        return self._judge(rollout.text, problem.answer, str(problem.metadata["kind"]))

    def _judge(self, text: str, reference: str, kind: str) -> Verdict:
        answer = _found(text)
        if kind == "latex":
            return self._scorer.verdict(answer, reference)
        if kind == "text":
            return _text_verdict(answer, reference)
        exact: Any = kind
        tolerance = None if kind == "choice" else self.settings.tolerance
        return exact_verdict(answer, reference, kind=exact, tolerance=tolerance)

    def privileged_prompt(self, problem: Problem, knowledge: str) -> str:
        """The prompt with any text in it, as `hint` of the settings says."""
        return f"{problem.prompt}{self.settings.hint.replace('{hint}', knowledge.strip())}"

    def solve(self, problem: Problem) -> str:
        """The worked solution of the file, or the boxed answer."""
        entry = self._entries.get(problem.key)
        if entry is not None and entry.solution is not None:
            return entry.solution
        return rf"\boxed{{{problem.answer}}}"

    def wrong_answers(self, problem: Problem) -> Sequence[str]:
        """Nothing; an empty box; an open think; the question; another answer."""
        other = {"choice": "J" if parse_choice(problem.answer) != "J" else "A", "text": f"not {problem.answer}"}
        wrong = other.get(str(problem.metadata["kind"]), "-987654321/1234567")
        return (
            "",
            r"\boxed{}",
            rf"{THINK_OPEN}\boxed{{{problem.answer}}}",
            rf"\boxed{{{problem.answer}}} or \boxed{{{wrong}}}",
            f"answer: {wrong}",
        )

    def corpus(self, name: str, key: Key) -> Iterator[Demonstration]:
        """An endless stream of training questions with their solutions; raises TaskError for an unknown name."""
        if name not in self.corpora:
            raise TaskError(unknown_name("corpus of [task] jsonl", name, self.corpora))
        return self._stream(key)

    def _stream(self, key: Key) -> Iterator[Demonstration]:
        """Every question once before any comes again."""
        for epoch in count():
            for place in key.child("order", epoch).generator().permutation(len(self._training)):
                problem = self._training[place]
                where = str(problem.metadata["where"])
                yield Demonstration(prompt=problem.prompt, text=self.solve(problem), provenance=f"jsonl:{where}")

    def stop(self, problem: Problem) -> tuple[str, ...]:
        """Nothing: the model ends its text."""
        del problem
        return ()

    def cut_points(self, problem: Problem, rollout: Rollout) -> Sequence[int]:
        """Only the beginning: what a step of free text is, is not known here."""
        del problem, rollout
        return (0,)


def _found(text: str) -> str | None:
    rest = (after_thinking(text) or "").strip()
    whole = len(rest) <= MAX_WHOLE and "\n" not in rest
    return final_answer(text, whole=whole)


def _text_verdict(answer: str | None, reference: str) -> Verdict:
    if answer is None:
        return Verdict(outcome=Outcome.UNPARSEABLE, correct=False, reason="no answer was found")
    shown = answer[:MAX_SHOWN]
    equal = len(answer) <= 4 * len(reference) + MAX_SHOWN and _plain(answer) == _plain(reference)
    if not equal and is_declined(answer):
        return Verdict(outcome=Outcome.DECLINED, correct=False, answer=shown)
    return Verdict(outcome=Outcome.CORRECT if equal else Outcome.WRONG, correct=equal, answer=shown)
