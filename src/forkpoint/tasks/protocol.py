"""What a task is: a family of problems with its verifier.

Tasks know text only; tokens are the policy's business.  Everything a task does is a pure function of its arguments.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from forkpoint.records import Message, Problem, Rollout, Verdict
from forkpoint.seeds import Key


@dataclass(frozen=True, slots=True, kw_only=True)
class Demonstration:
    """A text to imitate: `text` follows `prompt`, and only `text` is trained on."""

    prompt: str | tuple[Message, ...]
    text: str
    provenance: str
    ends: bool = True
    """Whether the end-of-sequence token follows the text (where the policy has one)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What the environment answers to a turn of the policy."""

    observation: str
    done: bool


@runtime_checkable
class Task(Protocol):
    """The protocol of a task.  `alphabet`, `corpora` and `name` are plain attributes."""

    name: str
    alphabet: str | None
    """Every character that prompts and texts may hold, one token each for a `tiny` policy; None: free text."""
    corpora: tuple[str, ...]
    """Names that `corpus` accepts."""

    def problem(self, key: Key, difficulty: float | None = None) -> Problem:
        """A problem drawn from the stream `key`; difficulty in [0, 1], None for the task's own setting."""
        ...

    def verify(self, problem: Problem, rollout: Rollout) -> Verdict:
        """The verdict on one rollout."""
        ...

    def solve(self, problem: Problem) -> str:
        """A text that the verifier accepts."""
        ...

    def wrong_answers(self, problem: Problem) -> Sequence[str]:
        """Texts that the verifier must not accept."""
        ...

    def corpus(self, name: str, key: Key) -> Iterator[Demonstration]:
        """An endless stream of texts to imitate, from training problems only."""
        ...

    def stop(self, problem: Problem) -> tuple[str, ...]:
        """Strings that end a rollout of this problem; empty when only the end-of-sequence token does."""
        ...

    def cut_points(self, problem: Problem, rollout: Rollout) -> Sequence[int]:
        """Token positions where a step of the rollout begins, ascending, the first 0."""
        ...


@runtime_checkable
class Interactive(Protocol):
    """A task whose environment answers the policy's turns.  Pure functions of the transcript: no snapshots."""

    def turn_ends(self) -> tuple[str, ...]:
        """Strings that end a turn of the policy."""
        ...

    def reply(self, problem: Problem, transcript: str) -> Reply:
        """The environment's answer to the text so far (everything after the prompt)."""
        ...


@runtime_checkable
class Finite(Protocol):
    """A task with a fixed list of problems."""

    def problems(self) -> Sequence[Problem]:
        """All of them."""
        ...


def split_problems(task: Task, key: Key, count: int, *, evaluation: bool) -> list[Problem]:
    """`count` problems of one split, in a fixed order; all different for evaluation.

    A finite task gives at most what it has.  The split is decided by the problem's content, so the two never meet.
    """
    if evaluation and isinstance(task, Finite):
        pool = [problem for problem in task.problems() if problem.is_evaluation]
        order = key.generator().permutation(len(pool))
        return [pool[i] for i in order[:count]]
    found: dict[str, Problem] = {}
    drawn: list[Problem] = []
    for attempt in range(200 * count + 2000):
        if len(drawn) >= count:
            break
        problem = task.problem(key.child(attempt))
        if problem.is_evaluation != evaluation or (evaluation and problem.key in found):
            continue
        found[problem.key] = problem
        drawn.append(problem)
    return drawn
