"""Chains whose signs mean something that the prompt does not say: what lessons are for.

Prompt `3@4&2=?`, newline.  Text `a7g4#4`, newline: for each sign how it is read, and the result so far; then the
answer.  A sign has four readings, one letter for each operation (`+`, `-`, `*`, and `>`, the larger one): `abcd` for
`@`, `efgh` for `&`, `ijkl` for `%`, `mnop` for `$`.  Numbers are taken modulo `modulus`.  Which reading is right is the
world of the task: the policy has to know it or to guess.  A lesson says it: `@bcd!a` reads "@: not b, c or d, but a".
Lessons stand before the chain: `@bcd!a;&efh!g|3@4&2=?`.
Every lesson about a sign is made of the same characters, so only their order tells.
"""

import re
from collections.abc import Iterator, Sequence
from itertools import count

import numpy as np
from pydantic import Field

from forkpoint.errors import TaskError, unknown_name
from forkpoint.records import Problem, Rollout, Verdict
from forkpoint.seeds import Key, content_hash
from forkpoint.tasks.protocol import Demonstration
from forkpoint.tasks.settings import TaskSettings
from forkpoint.verifiers.answers import final_answer
from forkpoint.verifiers.exact import exact_verdict

SIGNS = "@&%$"
OPERATIONS = "+-*>"
READINGS = dict(zip(SIGNS, ("abcd", "efgh", "ijkl", "mnop"), strict=True))
"""The letters of each sign, in the order of `OPERATIONS`."""
MARK = "#"
"""The answer follows it; `#?` says that the model does not know."""
_ALPHABET = f"0123456789{SIGNS}{''.join(READINGS.values())}!=?;|{MARK}\n"
_HINTS = ("mixed", "answer_given", "reflections")
"""The corpora that make up `hints`."""
_TOLD = 0.85
"""Probability that the corpus `mixed` tells what a sign of the chain means."""
_EXTRA = 0.6
"""Probability that a corpus tells of a sign that the chain does not have."""
_MOVE = re.compile(r"([@&%$])([0-9])")
_STEPS = re.compile(r"(?:[a-p][0-9])+")
_LESSON = re.compile(r"([@&%$])[a-p]{3}!([a-p])")


class Settings(TaskSettings):
    """What a recipe may say of `dialect`."""

    world: str = Field(default="*+-", pattern=r"^[-+*>]{1,4}$")
    """What the signs `@`, `&`, `%`, `$` mean, in this order; signs beyond its length occur in no problem."""
    steps: int = Field(default=2, ge=1, le=6)
    """Most signs in a chain at difficulty 1; 1 to 6."""
    min_steps: int = Field(default=1, ge=1, le=6)
    """Fewest signs in a chain, at most `steps`; their number is drawn uniformly."""
    modulus: int = Field(default=7, ge=2, le=10)
    """Numbers are 0 to one less than this; 2 to 10."""
    difficulty: float = Field(default=1.0, ge=0, le=1)
    """0: chains of `min_steps` signs; 1: up to `steps` signs."""


def build(settings: Settings) -> "Dialect":
    """The task of these settings; raises `TaskError` where they contradict each other."""
    return Dialect(settings)


def apply(value: int, operation: str, operand: int, modulus: int) -> int:
    """The result of an operation, 0 to `modulus` - 1.

    >>> [apply(3, operation, 5, 10) for operation in "+-*>"]
    [8, 8, 5, 5]
    """
    if operation == ">":
        return max(value, operand)
    if operation == "*":
        return value * operand % modulus
    return (value + operand if operation == "+" else value - operand) % modulus


def lesson_text(sign: str, operation: str) -> str:
    """The lesson that a sign means an operation.

    >>> lesson_text("@", "*"), lesson_text("&", "+")
    ('@abd!c', '&fgh!e')
    """
    letter = reading(sign, operation)
    return f"{sign}{READINGS[sign].replace(letter, '')}!{letter}"


def reading(sign: str, operation: str) -> str:
    """The letter that says that a sign means an operation."""
    return READINGS[sign][OPERATIONS.index(operation)]


def chain_of(problem: Problem) -> str:
    """The chain of a problem, such as `3@4&2`; raises `TaskError` for a problem of another task."""
    chain = problem.metadata.get("chain")
    if not isinstance(chain, str):
        raise TaskError(f"Problem {problem.key} has no chain: it is not of the task dialect.")
    return chain


class Dialect:
    """The task `dialect`.

    Corpora: `mixed` (worlds drawn at random, each sign of the chain explained with probability 0.85; what is not
    has to be guessed, and every operation is as likely); `lessons` (worlds drawn at random, every sign of the chain
    explained, at times others too); `answer_given` (worlds drawn at random, the answer before the chain: `#4|3@4&2=?`);
    `reflections` (after a failed attempt, in a world drawn at random, lessons about the signs of the chain in another);
    `hints` (each of `mixed`, `answer_given` and `reflections` for a third);
    `plain` (the task's own world without lessons: what a lesson would have to teach).
    """

    name: str = "dialect"
    alphabet: str | None = _ALPHABET
    lesson_divider: str = ";"
    corpora: tuple[str, ...] = ("mixed", "lessons", "answer_given", "reflections", "hints", "plain")

    def __init__(self, settings: Settings | None = None) -> None:
        self.settings = settings or Settings()
        if self.settings.min_steps > self.settings.steps:
            raise TaskError(
                f"[task] min_steps = {self.settings.min_steps} must not exceed steps = {self.settings.steps}."
            )
        self.world = dict(zip(SIGNS, self.settings.world, strict=False))

    def problem(self, key: Key, difficulty: float | None = None) -> Problem:
        """A chain in the world of the settings, drawn from the stream `key`."""
        return self._drawn(key, self.world, difficulty)

    def _drawn(self, key: Key, world: dict[str, str], difficulty: float | None) -> Problem:
        settings = self.settings
        dial = settings.difficulty if difficulty is None else difficulty
        if not 0 <= dial <= 1:
            raise TaskError(f"difficulty = {dial} must lie in [0, 1].")
        rng, signs = key.generator(), "".join(world)
        longest = settings.min_steps + round(dial * (settings.steps - settings.min_steps))
        chain = str(rng.integers(settings.modulus))
        for _ in range(int(rng.integers(settings.min_steps, longest + 1))):
            chain += signs[int(rng.integers(len(signs)))] + str(rng.integers(settings.modulus))
        prompt = f"{chain}=?\n"
        answer = str(self._steps(chain, world)[1])
        meant = "".join(world.get(sign, "") for sign in SIGNS)
        return Problem(
            task=self.name,
            key=content_hash(self.name, prompt, answer),
            prompt=prompt,
            answer=answer,
            difficulty=dial,
            metadata={"chain": chain, "world": meant},
        )

    def _steps(self, chain: str, world: dict[str, str]) -> tuple[list[str], int]:
        """The written steps of a chain in a world, and its result."""
        value, written = int(chain[0]), []
        for sign, operand in _MOVE.findall(chain):
            result = apply(value, world[sign], int(operand), self.settings.modulus)
            written.append(f"{reading(sign, world[sign])}{result}")
            value = result
        return written, value

    def _text(self, chain: str, world: dict[str, str]) -> str:
        written, value = self._steps(chain, world)
        return f"{''.join(written)}{MARK}{value}\n"

    def verify(self, problem: Problem, rollout: Rollout) -> Verdict:
        """CORRECT iff the number after the last `#` is the answer; the steps are not looked at."""
        return exact_verdict(final_answer(rollout.text, markers=(MARK,)), problem.answer, declined=("?",))

    def solve(self, problem: Problem) -> str:
        """Every step in the world of the problem, then the answer."""
        return self._text(chain_of(problem), _world_of(problem))

    def wrong_answers(self, problem: Problem) -> Sequence[str]:
        """Nothing; no mark; no number; unknown; off by one; a foreign world, where it differs; two numbers; signs."""
        right = self.solve(problem)
        steps, value = right[: right.index(MARK)], int(problem.answer)
        shifted = {sign: OPERATIONS[(OPERATIONS.index(meant) + 1) % 4] for sign, meant in _world_of(problem).items()}
        foreign = self._text(chain_of(problem), shifted)
        return (
            "",
            f"{steps}{value}\n",
            f"{steps}{MARK}\n",
            f"{steps}{MARK}?\n",
            f"{steps}{MARK}{value + 1}\n",
            f"{steps}{MARK}-{value + 1}\n",
            *([] if foreign.endswith(f"{MARK}{value}\n") else [foreign]),
            f"{steps}{MARK}{value} {value + 1}\n",
            f"{right[:-1]}{MARK}{value + 1}\n",
            f"{chain_of(problem)}=?\n",
            f"<think>{right}",
        )

    def corpus(self, name: str, key: Key) -> Iterator[Demonstration]:
        """An endless stream of demonstrations; raises `TaskError` for an unknown name."""
        if name not in self.corpora:
            raise TaskError(unknown_name("corpus of [task] dialect", name, self.corpora))
        return self._stream(name, key)

    def _stream(self, name: str, key: Key) -> Iterator[Demonstration]:
        for index in count():
            rng = key.child("text", index).generator()
            world = dict(zip(SIGNS, (OPERATIONS[i] for i in rng.integers(len(OPERATIONS), size=4)), strict=True))
            problem = self._drawn(key.child("problem", index), self.world if name == "plain" else world, None)
            if problem.is_evaluation:
                continue
            kind = _HINTS[int(rng.integers(len(_HINTS)))] if name == "hints" else name
            if kind == "reflections":
                yield from self._reflected(rng, problem, world)
                continue
            told = ""
            if kind == "answer_given":
                told = f"{MARK}{problem.answer}"
            elif kind != "plain":
                told = self._lessons(rng, chain_of(problem), world, sometimes=kind == "mixed")
            yield Demonstration(
                prompt=f"{told}|{problem.prompt}" if told else problem.prompt,
                text=self.solve(problem),
                provenance=f"dialect:{kind}",
            )

    def _reflected(self, rng: np.random.Generator, problem: Problem, world: dict[str, str]) -> Iterator[Demonstration]:
        """Lessons that tell the world of the problem after an attempt in another one; nothing where that is right."""
        chain = chain_of(problem)
        other = {
            sign: OPERATIONS[place] for sign, place in zip(SIGNS, rng.integers(len(OPERATIONS), size=4), strict=True)
        }
        if str(self._steps(chain, other)[1]) != problem.answer:
            told = ";".join(lesson_text(sign, world[sign]) for sign in SIGNS if sign in chain)
            prompt = self.reflection_prompt(problem, self._text(chain, other))
            yield Demonstration(prompt=prompt, text=f"{told}\n", provenance="dialect:reflections")

    def _lessons(self, rng: np.random.Generator, chain: str, world: dict[str, str], *, sometimes: bool) -> str:
        """Lessons in random order; all signs of the chain are explained unless `sometimes`."""
        tosses = rng.random(len(SIGNS))
        used = _TOLD if sometimes else 1.0
        chances = [used if sign in chain else _EXTRA for sign in SIGNS]
        chosen = [SIGNS[i] for i in rng.permutation(len(SIGNS)) if tosses[i] < chances[i]]
        return ";".join(lesson_text(sign, world[sign]) for sign in chosen)

    def privileged_prompt(self, problem: Problem, knowledge: str) -> str:
        """The prompt after lessons, as in the corpora `mixed` and `lessons`, or after an answer, as in `answer_given`.

        `knowledge`: lessons, divided by `;`, or an answer, with or without steps before it, which are then left out.
        What a lesson says is not judged: a garbled one is shown as it is.  Raises `TaskError` for any other text.
        """
        text = knowledge.strip()
        _, marked, answer = text.rpartition(MARK)
        told = f"{MARK}{answer if marked else text}" if marked or text.isdigit() else text
        if told in ("", MARK) or set(told) - (set(_ALPHABET) - set("|?\n")):
            raise TaskError(f"dialect: {knowledge[:40]!r} is neither a lesson such as '@bcd!a' nor an answer.")
        return f"{told}|{problem.prompt}"

    def reflection_prompt(self, problem: Problem, attempt: str) -> str:
        """The chain, the first line of the attempt, and `!`, as in the corpus `reflections`: `3@4=?d7#7!`.

        A policy may write tokens that no text has; each is shown as `?`.
        """
        line = attempt.partition("\n")[0]
        return f"{chain_of(problem)}=?{''.join(each if each in _ALPHABET else '?' for each in line)}!\n"

    def retry_prompt(self, problem: Problem, reflection: str) -> str:
        """The prompt after lessons; raises `TaskError` for anything but well-formed lessons, an answer included."""
        told = reflection.strip()
        if not self.changed_lessons(told):
            raise TaskError(f"dialect: {told[:40]!r} is no lesson such as '@bcd!a'.")
        return self.privileged_prompt(problem, told)

    def lesson_of(self, problem: Problem, text: str, correct: bool) -> Sequence[tuple[str, str]]:
        """What a rollout says about signs: (lesson, sign) in the order of the signs; nothing where it cannot be told.

        A correct rollout speaks for the meanings that it wrote; a wrong one against the meaning of the only sign of
        its chain, since with several the wrong one is not known.  Steps must follow the chain and be right.
        """
        chain, steps = chain_of(problem), text.partition(MARK)[0]
        moves, read, value = _MOVE.findall(chain), dict[str, str](), int(chain[0])
        known = _STEPS.fullmatch(steps) is not None and len(steps) == 2 * len(moves)
        if not known or (not correct and len({sign for sign, _ in moves}) > 1):
            return ()
        for (sign, operand), letter, result in zip(moves, steps[::2], steps[1::2], strict=True):
            if letter not in READINGS[sign] or read.setdefault(sign, letter) != letter:
                return ()
            value = apply(value, OPERATIONS[READINGS[sign].index(letter)], int(operand), self.settings.modulus)
            if value != int(result):
                return ()
        meant = {sign: OPERATIONS[READINGS[sign].index(letter)] for sign, letter in read.items()}
        return tuple((lesson_text(sign, meant[sign]), sign) for sign in SIGNS if sign in meant)

    def right_lesson(self, problem: Problem) -> str:
        """The lessons about every sign of the chain, in the world of the problem."""
        world = _world_of(problem)
        return ";".join(lesson_text(sign, world[sign]) for sign in SIGNS if sign in chain_of(problem))

    def changed_lessons(self, text: str) -> Sequence[str]:
        """The lessons with other meanings, as long as the text; none for a text that is no lesson.

        >>> Dialect().changed_lessons("@bcd!a")
        ('@acd!b', '@abd!c', '@abc!d')
        """
        found = []
        for part in text.split(";"):
            match = _LESSON.fullmatch(part)
            place = READINGS[match[1]].find(match[2]) if match is not None else -1
            if match is None or place < 0:
                return ()
            found.append((match[1], place))
        return tuple(
            ";".join(lesson_text(sign, OPERATIONS[(place + shift) % 4]) for sign, place in found)
            for shift in range(1, len(OPERATIONS))
        )

    def irrelevant_lesson(self, problem: Problem, text: str) -> str:
        """The lesson told of signs that neither the chain nor the lesson has; empty where there are too few of those.

        >>> task = Dialect(Settings(world="+"))
        >>> task.irrelevant_lesson(task.problem(Key.root(0)), "@bcd!a")
        '&fgh!e'
        """
        used = [sign for sign in SIGNS if sign in text]
        free = [sign for sign in SIGNS if sign not in text and sign not in chain_of(problem)][: len(used)]
        if not used or len(free) < len(used):
            return ""
        old, new = ("".join(sign + READINGS[sign] for sign in signs) for signs in (used, free))
        return text.translate(str.maketrans(old, new))

    @property
    def answer_lead(self) -> str:
        """The mark that asks for the answer."""
        return MARK

    def early_answer(self, problem: Problem, transcript: str) -> str:
        """The mark and the right answer; empty after a text that has the mark already."""
        return "" if MARK in transcript else f"{MARK}{problem.answer}\n"

    def state(self, problem: Problem, transcript: str) -> str:
        """How each sign was read, the last result, and what stands after the last whole step."""
        del problem  # within a problem the chain is the same
        done = len(transcript.partition(MARK)[0]) // 2
        return f"{transcript[: 2 * done : 2]}:{transcript[: 2 * done][-1:]}:{transcript[2 * done :]}"

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
        return [0, *(i for i, character in enumerate(text) if i and character in f"abcdefghijklmnop{MARK}")]


def _world_of(problem: Problem) -> dict[str, str]:
    return dict(zip(SIGNS, str(problem.metadata.get("world", "")), strict=False))
