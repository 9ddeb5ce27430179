"""Reach a target from given numbers.

Prompt `2,3,5=30`, newline.  Text `(2*3)*5`, newline, or any scratch work with the expression after the last `#`.
Each given number may be used at most once (with `use_all`: exactly once), with the operations of the settings.
The expression is read by a bounded parser and compared exactly.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, count

import numpy as np
from pydantic import Field

from forkpoint.errors import TaskError, unknown_name
from forkpoint.records import Outcome, Problem, Rollout, Verdict
from forkpoint.seeds import Key, content_hash
from forkpoint.tasks.protocol import Demonstration
from forkpoint.tasks.settings import TaskSettings
from forkpoint.verifiers.answers import final_answer
from forkpoint.verifiers.exact import MAX_SHOWN, is_declined
from forkpoint.verifiers.expression import evaluate

MARK = "#"
"""The expression follows the last one, where there is one; `?` says that the model does not know."""
ATTEMPTS = 400
"""Draws of numbers and operations before the settings count as impossible."""


class Settings(TaskSettings):
    """What a recipe may say of `countdown`."""

    numbers: int = Field(default=3, ge=2, le=5)
    """Numbers given at difficulty 1; 2 to 5."""
    max_number: int = Field(default=9, ge=2, le=99)
    """Largest number given; 2 to 99."""
    max_target: int = Field(default=99, ge=3, le=999)
    """Largest target; 3 to 999."""
    operations: str = Field(default="+-*/", pattern=r"^[-+*/]{1,4}$")
    """The operations that may be used, each once: `+`, `-`, `*`, `/`."""
    use_all: bool = False
    """Whether every number must be used (exactly once) rather than at most once."""
    difficulty: float = Field(default=1.0, ge=0, le=1)
    """0: two numbers; 1: `numbers` numbers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A value that was reached, and how."""

    value: int
    text: str


def build(settings: Settings) -> "Countdown":
    """The task of these settings; raises `TaskError` where no problem can be made from them."""
    task = Countdown(settings)
    task.problem(Key(("countdown", "check")))
    return task


def bounds(problem: Problem) -> tuple[list[int], int]:
    """The given numbers and the target; raises `TaskError` for a problem of another task."""
    numbers, target = problem.metadata.get("numbers"), problem.metadata.get("target")
    if not isinstance(numbers, (list, tuple)) or not isinstance(target, int):
        raise TaskError(f"Problem {problem.key} has no numbers and target: it is not of the task countdown.")
    return list(numbers), target


def combine(left: Part, right: Part, operations: str) -> list[Part]:
    """Every whole result >= 0 of the two parts with one operation, the larger first; division only where it is exact.

    >>> [part.text for part in combine(Part(value=2, text="2"), Part(value=6, text="6"), "+-*/")]
    ['(6+2)', '(6-2)', '(6*2)', '(6/2)']
    """
    if left.value < right.value:
        left, right = right, left
    results = {"+": left.value + right.value, "-": left.value - right.value, "*": left.value * right.value}
    if right.value and left.value % right.value == 0:
        results["/"] = left.value // right.value
    return [Part(value=results[op], text=f"({left.text}{op}{right.text})") for op in operations if op in results]


def _unwrapped(part: Part) -> str:
    return part.text[1:-1] if part.text.startswith("(") else part.text


def search(numbers: Sequence[int], target: int, *, operations: str = "+-*/", use_all: bool = False) -> str | None:
    """An expression that reaches the target, found by exhaustive search; None if there is none.

    Every partial result is a whole number >= 0, the rule of the parlour game; with at most five numbers.

    >>> search([2, 3, 5], 30), search([1, 1], 5)
    ('(3*2)*5', None)
    """
    hopeless: set[tuple[int, ...]] = set()

    def descend(parts: list[Part]) -> Part | None:
        state = tuple(sorted(part.value for part in parts))
        if state in hopeless:
            return None
        hits = [part for part in parts if part.value == target]
        if hits and (len(parts) == 1 or not use_all):
            return hits[0]
        for first, second in combinations(range(len(parts)), 2):
            rest = [part for i, part in enumerate(parts) if i not in (first, second)]
            for joined in combine(parts[first], parts[second], operations):
                found = descend([joined, *rest])
                if found is not None:
                    return found
        hopeless.add(state)
        return None

    found = descend([Part(value=number, text=str(number)) for number in numbers])
    return None if found is None else _unwrapped(found)


def with_hint(problem: Problem, hint: str) -> str:
    """The prompt of a problem with a hint in it: `2,3,5=30|(2*3)*5`, newline."""
    numbers, target = bounds(problem)
    return f"{','.join(map(str, numbers))}={target}|{hint}\n"


def answer_hint(problem: Problem) -> str:
    """The reference expression, as a hint."""
    return problem.answer


class Countdown:
    """The task `countdown`.

    Numbers stand in ascending order, so a prompt and its split do not depend on the order in which they were drawn.
    The key is that of the prompt alone: the reference answer follows from it, and other rules must not move a prompt
    into the other split.
    Corpora: `solutions`; `answer_given` (the prompt shows the expression that the text repeats).
    """

    name: str = "countdown"
    alphabet: str | None = "0123456789+-*/()=,#?|\n"
    corpora: tuple[str, ...] = ("solutions", "answer_given")

    def __init__(self, settings: Settings | None = None) -> None:
        self.settings = settings or Settings()
        operations = self.settings.operations
        if len(set(operations)) != len(operations):
            raise TaskError(f"[task] operations = '{operations}' names an operation twice.")

    def problem(self, key: Key, difficulty: float | None = None) -> Problem:
        """A solvable problem drawn from the stream `key`; its target is none of its numbers."""
        dial = self.settings.difficulty if difficulty is None else difficulty
        if not 0 <= dial <= 1:
            raise TaskError(f"difficulty = {dial} must lie in [0, 1].")
        numbers, target = self._draw(key.generator(), 2 + round(dial * (self.settings.numbers - 2)))
        prompt = f"{','.join(map(str, numbers))}={target}\n"
        return Problem(
            task=self.name,
            key=content_hash(self.name, prompt),
            prompt=prompt,
            answer=self._solution(numbers, target),
            difficulty=dial,
            metadata={"numbers": numbers, "target": target},
        )

    def _solution(self, numbers: Sequence[int], target: int) -> str:
        found = search(numbers, target, operations=self.settings.operations, use_all=self.settings.use_all)
        if found is None:
            raise TaskError(f"{target} cannot be reached from {', '.join(map(str, numbers))} under these settings.")
        return found

    def _draw(self, rng: np.random.Generator, amount: int) -> tuple[list[int], int]:
        settings = self.settings
        for _ in range(ATTEMPTS):
            numbers = sorted(int(n) for n in rng.integers(1, settings.max_number + 1, amount))
            parts = [Part(value=number, text=str(number)) for number in numbers]
            while len(parts) > 1:
                left, right = (parts.pop(int(rng.integers(len(parts)))) for _ in range(2))
                options = combine(left, right, settings.operations)
                if not options:
                    break
                parts.append(options[int(rng.integers(len(options)))])
            if len(parts) == 1 and 1 <= parts[0].value <= settings.max_target and parts[0].value not in numbers:
                return numbers, parts[0].value
        raise TaskError(
            f"[task] countdown: {ATTEMPTS} draws gave no target in 1 to {settings.max_target} from {amount} numbers "
            f"up to {settings.max_number} with '{settings.operations}'."
        )

    def verify(self, problem: Problem, rollout: Rollout) -> Verdict:
        """CORRECT iff the expression uses what is given, no more, and is worth exactly the target."""
        answer = final_answer(rollout.text, markers=(MARK,), whole=True)
        if answer is None:
            return Verdict(outcome=Outcome.UNPARSEABLE, correct=False, reason="no answer was found")
        shown = answer[:MAX_SHOWN]
        if is_declined(answer, ("?",)):
            return Verdict(outcome=Outcome.DECLINED, correct=False, answer=shown)
        expression = evaluate(answer)
        if expression.value is None:
            return Verdict(outcome=Outcome.UNPARSEABLE, correct=False, answer=shown, reason=expression.reason)
        reason = self._objection(problem, answer, expression.numbers)
        if not reason and expression.value != bounds(problem)[1]:
            reason = "the value is not the target"
        outcome = Outcome.WRONG if reason else Outcome.CORRECT
        parts = {"numbers_used": float(len(expression.numbers))}
        return Verdict(outcome=outcome, correct=not reason, answer=shown, reason=reason, parts=parts)

    def _objection(self, problem: Problem, answer: str, used: Sequence[int]) -> str:
        given = Counter(bounds(problem)[0])
        spent = Counter(used)
        for number in spent:
            if spent[number] > given[number]:
                return f"{number} is used {spent[number]} times and given {given[number]} times"
        if self.settings.use_all and spent != given:
            return "not every number is used"
        barred = {character for character in answer if character in "+-*/"} - set(self.settings.operations)
        return f"the operation {min(barred)} is not allowed" if barred else ""

    def solve(self, problem: Problem) -> str:
        """The first solution of an exhaustive search; raises `TaskError` for a problem that has none."""
        return f"{self._solution(*bounds(problem))}\n"

    def wrong_answers(self, problem: Problem) -> Sequence[str]:
        """Nothing; the bare target; a number too often, or not given; wrong values; what is no expression."""
        numbers, target = bounds(problem)
        right = problem.answer
        first, foreign = numbers[0], max(*numbers, target) + 1
        return (
            "",
            f"{target}\n",
            f"{right}{f'+{first}-{first}' * len(numbers)}\n",
            f"{right}+{foreign}-{foreign}\n",
            f"{numbers[0]}\n",
            f"{right}+1-1/(1-1)\n",
            f"({right}\n",
            f"{right}={target}\n",
            f"{right}#\n",
            "?\n",
            f"{','.join(map(str, numbers))}={target}\n",
            f"<think>{right}\n",
        )

    def corpus(self, name: str, key: Key) -> Iterator[Demonstration]:
        """An endless stream of demonstrations; raises `TaskError` for an unknown name."""
        if name not in self.corpora:
            raise TaskError(unknown_name("corpus of [task] countdown", name, self.corpora))
        return self._stream(name, key)

    def _stream(self, name: str, key: Key) -> Iterator[Demonstration]:
        for index in count():
            problem = self.problem(key.child("problem", index))
            if problem.is_evaluation:
                continue
            prompt, text = problem.prompt, f"{problem.answer}\n"
            if name == "answer_given":
                prompt = with_hint(problem, answer_hint(problem))
            yield Demonstration(prompt=prompt, text=text, provenance=f"countdown:{name}")

    def privileged_prompt(self, problem: Problem, knowledge: str) -> str:
        """The prompt with an expression in it, as in the corpus `answer_given`; of a scratch text its answer."""
        found = knowledge.strip().rpartition(MARK)[2].strip()
        if not found or set(found) - set(str(self.alphabet)) or "\n" in found:
            raise TaskError(f"countdown: {knowledge[:40]!r} holds no expression for a hint.")
        return with_hint(problem, found)

    def stop(self, problem: Problem) -> tuple[str, ...]:
        """The end of the line."""
        del problem  # every problem ends alike
        return ("\n",)

    def cut_points(self, problem: Problem, rollout: Rollout) -> Sequence[int]:
        """0 and what follows each operation; only 0 where tokens are not single characters."""
        del problem  # the text alone shows its steps
        text = rollout.text
        if len(rollout.tokens) != len(text):
            return [0]
        return [0, *(i + 1 for i, character in enumerate(text[:-1]) if character in "+-*/")]
