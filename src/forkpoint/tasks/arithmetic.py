"""Chains of sums and products, worked from left to right on a scratchpad.

Prompt `3+4*2-5=?`, newline.  Text `3+4=7;7*2=14;14-5=9;#9`, newline.  Every operation applies to the result so far
(there is no precedence), and every result of a right solution lies in 0 to `max_value`.
The answer decides; the steps are checked beside it, so the first wrong step of a text is known.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, count

import numpy as np
from pydantic import Field

from forkpoint.errors import TaskError, unknown_name
from forkpoint.records import Problem, Rollout, Verdict
from forkpoint.seeds import Key, content_hash
from forkpoint.tasks.protocol import Demonstration
from forkpoint.tasks.settings import TaskSettings
from forkpoint.verifiers.answers import final_answer
from forkpoint.verifiers.exact import exact_verdict, parse_number

MARK = "#"
"""The answer follows it; `#?` says that the model does not know."""
MAX_STEPS = 64
"""Written steps beyond these count as one."""
_SLIPS = (-10, -2, -1, 1, 2, 10)
_HINTED = "0123456789+-*=;#?"
_MOVE = re.compile(r"([+*-])([0-9]+)")
_STEP = re.compile(r"(-?[0-9]{1,18})([+*-])([0-9]{1,18})=(-?[0-9]{1,18})")


class Settings(TaskSettings):
    """What a recipe may say of `arithmetic`."""

    terms: int = Field(default=5, ge=2, le=12)
    """Numbers in a chain at difficulty 1; 2 to 12."""
    min_terms: int = Field(default=0, ge=0, le=12)
    """Numbers in the shortest chain, drawn uniformly up to the longest; 0: all chains are equally long."""
    max_value: int = Field(default=99, ge=9, le=999)
    """No result of a right solution is larger; 9 to 999."""
    max_operand: int = Field(default=9, ge=2, le=99)
    """Largest number in a chain; 2 to 99."""
    operations: str = Field(default="+-*", pattern=r"^[+*-]{1,3}$")
    """The operations that chains are made of, each once: `+`, `-`, `*`."""
    slip: float = Field(default=0.2, ge=0, le=1)
    """Probability that a step of the corpus `noisy` is wrong; 0 to 1."""
    lost_carry: float = Field(default=0.6, ge=0, le=1)
    """Probability that a carry from the units is lost in a sum of the corpus `careless`; 0 to 1."""
    difficulty: float = Field(default=1.0, ge=0, le=1)
    """0: chains of two numbers; 1: chains of `terms` numbers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepCheck:
    """What a check of the written steps found."""

    steps: int
    wrong: tuple[int, ...]
    """Indices of the steps that are wrong in themselves, ascending; index `steps` is the answer."""


def build(settings: Settings) -> "Arithmetic":
    """The task of these settings; raises `TaskError` where they contradict each other."""
    return Arithmetic(settings)


def _apply(value: int, operation: str, operand: int) -> int:
    if operation == "+":
        return value + operand
    return value - operand if operation == "-" else value * operand


def _moves(chain: str) -> tuple[int, list[tuple[str, int]]]:
    first = re.match(r"[0-9]+", chain)
    if first is None:
        raise TaskError(f"'{chain[:40]}' is no chain of the task arithmetic.")
    return int(first.group()), [(match[1], int(match[2])) for match in _MOVE.finditer(chain, first.end())]


def chain_of(problem: Problem) -> str:
    """The chain of a problem, such as `3+4*2-5`; raises `TaskError` for a problem of another task."""
    chain = problem.metadata.get("chain")
    if not isinstance(chain, str):
        raise TaskError(f"Problem {problem.key} has no chain: it is not of the task arithmetic.")
    return chain


def work(chain: str, errors: Sequence[int] = ()) -> tuple[list[str], int]:
    """The written steps of a chain and its result; `errors[i]` is added to the result of step i.

    >>> work("3+4*2"), work("3+4*2", [1, 0])
    ((['3+4=7', '7*2=14'], 14), (['3+4=8', '8*2=16'], 16))
    """
    value, moves = _moves(chain)
    written = []
    for index, (operation, operand) in enumerate(moves):
        result = _apply(value, operation, operand) + (errors[index] if index < len(errors) else 0)
        written.append(f"{value}{operation}{operand}={result}")
        value = result
    return written, value


def carries(value: int, operation: str, operand: int) -> bool:
    """Whether a step is a sum whose units carry.

    >>> carries(17, "+", 5), carries(17, "+", 2), carries(17, "-", 9)
    (True, False, False)
    """
    return operation == "+" and value % 10 + operand % 10 > 9


def careless_work(chain: str, losses: Sequence[bool]) -> tuple[list[str], int]:
    """The written steps of a chain and its result; `losses[i]`: step i loses the carry from its units, if it has one.

    What follows goes on from the wrong result, which is 10 too small, and whether it carries is seen there.  A carry
    is kept where the rest of the chain would fall below 0 without it, so all results stay in bounds.

    >>> careless_work("17+5+9", [True, False]), careless_work("17+5-19", [True, False])
    ((['17+5=12', '12+9=21'], 21), (['17+5=22', '22-19=3'], 3))
    """
    value, moves = _moves(chain)
    written = []
    for index, ((operation, operand), lost) in enumerate(zip(moves, losses, strict=True)):
        result = _apply(value, operation, operand)
        if lost and carries(value, operation, operand) and _lowest(result - 10, moves[index + 1 :]) >= 0:
            result -= 10
        written.append(f"{value}{operation}{operand}={result}")
        value = result
    return written, value


def _lowest(value: int, moves: Sequence[tuple[str, int]]) -> int:
    return min(accumulate(moves, lambda result, move: _apply(result, *move), initial=value))


def _text(steps: Sequence[str], answer: int | str) -> str:
    return "".join(f"{step};" for step in steps) + f"{MARK}{answer}\n"


def with_hint(problem: Problem, hint: str) -> str:
    """The prompt of a problem with a hint in it: `3+4*2=?|3+4=7;`, newline."""
    return f"{chain_of(problem)}=?|{hint}\n"


def step_hint(problem: Problem, steps: int) -> str:
    """The first `steps` right steps, as a hint."""
    return "".join(f"{step};" for step in work(chain_of(problem))[0][:steps])


def answer_hint(problem: Problem) -> str:
    """The answer, as a hint."""
    return f"{MARK}{problem.answer}"


def check_steps(problem: Problem, text: str) -> StepCheck:
    """Which of the written steps are wrong in themselves.

    Step i is right if it applies operation i of the chain to the result written before it, and the result is right;
    so a step after an error may be right.  The answer is the last step: it must repeat the result of a complete
    scratchpad, and be the true answer where the scratchpad is not complete.
    """
    value, moves = _moves(chain_of(problem))
    body, marked, _ = text.rpartition(MARK)
    pieces = [piece.strip() for piece in (body if marked else text).split(";", MAX_STEPS)]
    if not pieces[-1]:
        pieces.pop()
    wrong = []
    for index, piece in enumerate(pieces):
        match = _STEP.fullmatch(piece)
        expected = moves[index] if index < len(moves) else None
        if match is None:
            wrong.append(index)
            continue
        result = _apply(int(match[1]), match[2], int(match[3]))
        if expected != (match[2], int(match[3])) or int(match[1]) != value or int(match[4]) != result:
            wrong.append(index)
        value = int(match[4])
    if marked:
        answer = parse_number(final_answer(text, markers=(MARK,)) or "")
        if answer != (value if len(pieces) == len(moves) else int(problem.answer)):
            wrong.append(len(pieces))
    return StepCheck(steps=len(pieces), wrong=tuple(wrong))


def first_wrong_step(problem: Problem, text: str) -> int | None:
    """The index of the first step that is wrong in itself, from 0; the number of steps means the answer; None: none."""
    wrong = check_steps(problem, text).wrong
    return wrong[0] if wrong else None


class Arithmetic:
    """The task `arithmetic`.

    Corpora: `solutions`; `hints` (the prompt shows the first right steps); `answer_given` (the prompt shows the
    answer); `noisy` (each step is wrong with probability `slip`, and the rest goes on from the wrong result);
    `careless`, a planted bug (in a sum whose units carry, the carry is lost with probability `lost_carry`, and the rest
    goes on from the wrong result; all else is right).
    """

    name: str = "arithmetic"
    alphabet: str | None = "0123456789+-*=;#?|\n"
    corpora: tuple[str, ...] = ("solutions", "hints", "answer_given", "noisy", "careless")

    def __init__(self, settings: Settings | None = None) -> None:
        self.settings = settings or Settings()
        operations = self.settings.operations
        if len(set(operations)) != len(operations):
            raise TaskError(f"[task] operations = '{operations}' names an operation twice.")
        if self.settings.min_terms == 1 or self.settings.min_terms > self.settings.terms:
            raise TaskError(
                f"[task] min_terms = {self.settings.min_terms} must be 0, or lie in 2 to terms = {self.settings.terms}."
            )

    def problem(self, key: Key, difficulty: float | None = None) -> Problem:
        """A chain drawn from the stream `key`; the split is decided by the chain alone, whatever the settings."""
        dial = self.settings.difficulty if difficulty is None else difficulty
        if not 0 <= dial <= 1:
            raise TaskError(f"difficulty = {dial} must lie in [0, 1].")
        rng = key.generator()
        terms = 2 + round(dial * (self.settings.terms - 2))
        if self.settings.min_terms:
            terms = int(rng.integers(min(self.settings.min_terms, terms), terms + 1))
        chain, value = self._chain(rng, terms)
        prompt = f"{chain}=?\n"
        return Problem(
            task=self.name,
            key=content_hash(self.name, prompt, value),
            prompt=prompt,
            answer=str(value),
            difficulty=dial,
            metadata={"chain": chain},
        )

    def _chain(self, rng: np.random.Generator, terms: int) -> tuple[str, int]:
        """An operation is drawn first, uniformly among those that keep the result in bounds, then its operand."""
        largest = min(self.settings.max_operand, self.settings.max_value)
        value = int(rng.integers(1, largest + 1))
        chain = str(value)
        for _ in range(terms - 1):
            choices = {op: self._operands(value, op) for op in self.settings.operations}
            possible = [op for op, operands in choices.items() if operands]
            operation = possible[int(rng.integers(len(possible)))] if possible else self.settings.operations[0]
            operands = choices[operation] or [1 if operation == "*" else 0]
            operand = operands[int(rng.integers(len(operands)))]
            chain += f"{operation}{operand}"
            value = _apply(value, operation, operand)
        return chain, value

    def _operands(self, value: int, operation: str) -> list[int]:
        """What keeps the result in bounds; products with 0 or 1 would say nothing."""
        if operation == "*" and value == 0:
            return []
        smallest = 2 if operation == "*" else 1
        operands = range(smallest, self.settings.max_operand + 1)
        return [k for k in operands if 0 <= _apply(value, operation, k) <= self.settings.max_value]

    def verify(self, problem: Problem, rollout: Rollout) -> Verdict:
        """CORRECT iff the number after the last `#` is the answer; `parts` says how the steps fared.

        `parts`: `steps` written, `wrong_steps` (the answer included), `first_wrong_step` (-1: none is wrong).
        """
        answer = final_answer(rollout.text, markers=(MARK,))
        verdict = exact_verdict(answer, problem.answer, declined=("?",))
        check = check_steps(problem, rollout.text)
        first = check.wrong[0] if check.wrong else -1
        parts = {"steps": check.steps, "wrong_steps": len(check.wrong), "first_wrong_step": first}
        return replace(verdict, parts={name: float(value) for name, value in parts.items()})

    def solve(self, problem: Problem) -> str:
        """Every step, then the answer."""
        return _text(*work(chain_of(problem)))

    def wrong_answers(self, problem: Problem) -> Sequence[str]:
        """Nothing; no mark; no number; off by one; the wrong sign; a slip carried on; two numbers; an open think."""
        chain = chain_of(problem)
        steps, value = work(chain)
        return (
            "",
            "".join(f"{step};" for step in steps) + f"{value}\n",
            _text(steps, ""),
            _text(steps, "?"),
            _text(steps, value + 1),
            _text(steps, -value - 1),
            _text(*work(chain, [0] * (len(steps) - 1) + [1])),
            _text(steps, f"{value} {value + 1}"),
            _text(steps, value)[:-1] + _text((), value + 2),
            f"{chain}=?\n",
            f"<think>{_text(steps, value)}",
        )

    def corpus(self, name: str, key: Key) -> Iterator[Demonstration]:
        """An endless stream of demonstrations; raises `TaskError` for an unknown name."""
        if name not in self.corpora:
            raise TaskError(unknown_name("corpus of [task] arithmetic", name, self.corpora))
        return self._stream(name, key)

    def _stream(self, name: str, key: Key) -> Iterator[Demonstration]:
        for index in count():
            problem = self.problem(key.child("problem", index))
            if not problem.is_evaluation:
                yield self._demonstration(name, problem, key.child("text", index).generator())

    def _demonstration(self, name: str, problem: Problem, rng: np.random.Generator) -> Demonstration:
        prompt, text = problem.prompt, self.solve(problem)
        chain = chain_of(problem)
        if name == "hints":
            prompt = with_hint(problem, step_hint(problem, int(rng.integers(1, len(work(chain)[0]) + 1))))
        elif name == "answer_given":
            prompt = with_hint(problem, answer_hint(problem))
        elif name == "noisy":
            draws = rng.random((len(work(chain)[0]), 2))
            errors = [_SLIPS[int(pick * len(_SLIPS))] if slips < self.settings.slip else 0 for slips, pick in draws]
            text = _text(*work(chain, errors))
        elif name == "careless":
            losses = rng.random(len(work(chain)[0])) < self.settings.lost_carry
            text = _text(*careless_work(chain, losses.tolist()))
        return Demonstration(prompt=prompt, text=text, provenance=f"arithmetic:{name}")

    def privileged_prompt(self, problem: Problem, knowledge: str) -> str:
        """The prompt with a hint in it, as in the corpora `answer_given` and `hints`.

        `knowledge`: an answer, or written steps, with or without the answer after them, which is then left out.
        Raises `TaskError` for any other text.
        """
        text = knowledge.strip()
        body, marked, answer = text.rpartition(MARK)
        hint = body if marked and body else f"{MARK}{answer if marked else text}"
        if set(hint) - set(_HINTED) or hint == MARK:
            raise TaskError(f"arithmetic: {knowledge[:40]!r} is neither an answer nor written steps.")
        return with_hint(problem, hint)

    @property
    def answer_lead(self) -> str:
        """The mark that asks for the answer."""
        return MARK

    def early_answer(self, problem: Problem, transcript: str) -> str:
        """The mark and the right answer; empty after a text that has the mark already."""
        return "" if MARK in transcript else _text((), problem.answer)

    def right_step(self, problem: Problem, transcript: str) -> str:
        """The next step with its `;`, worked from the last result as it is written, right or wrong; or the answer.

        The answer of complete steps is their last result, whatever the true one is.  Empty where the text has an
        answer already, ends within a step, or has no result to go on from.
        """
        *steps, rest = transcript.split(";")
        value, moves = _moves(chain_of(problem))
        if rest or MARK in transcript or len(steps) > len(moves):
            return ""
        if steps:
            written = _STEP.fullmatch(steps[-1].strip())
            if written is None:
                return ""
            value = int(written[4])
        if len(steps) == len(moves):
            return _text((), value)
        operation, operand = moves[len(steps)]
        return f"{value}{operation}{operand}={_apply(value, operation, operand)};"

    def state(self, problem: Problem, transcript: str) -> str:
        """How many steps are written, the last result, and what of the next step is."""
        del problem  # within a problem the chain is the same
        *steps, rest = transcript.split(";")
        result = steps[-1].rpartition("=")[2] if steps else ""
        return f"{len(steps)}:{result}:{rest}"

    def wrong_steps(self, problem: Problem, text: str) -> Sequence[int]:
        """The steps that are wrong in themselves, as `check_steps`."""
        return check_steps(problem, text).wrong

    def stop(self, problem: Problem) -> tuple[str, ...]:
        """The end of the line."""
        del problem  # every problem ends alike
        return ("\n",)

    def cut_points(self, problem: Problem, rollout: Rollout) -> Sequence[int]:
        """The beginning of each written step; only 0 where tokens are not single characters."""
        del problem  # the text alone shows its steps
        text = rollout.text
        if len(rollout.tokens) != len(text):
            return [0]
        return [0, *(i + 1 for i, character in enumerate(text[:-1]) if character == ";")]
