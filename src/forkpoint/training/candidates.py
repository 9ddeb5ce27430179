"""The problems that may be sampled: a task and a key in, candidates with the buckets of their pass rates out."""

from collections.abc import Sequence
from dataclasses import dataclass

from forkpoint.config.curriculum import Curriculum as Settings
from forkpoint.errors import TaskError, unknown_name
from forkpoint.records import Problem
from forkpoint.seeds import Key
from forkpoint.tasks.protocol import Finite, Task

ATTEMPTS = 2000
"""Draws for one training problem of an endless task before it is taken to have none."""
PROBED = 64
"""Problems that tell whether a task has what a curriculum goes by."""
_OWN = ("problem", "difficulty")


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A problem that may be sampled, and where it was drawn from."""

    problem: Problem
    bucket: str
    """What it shares a pass rate with."""
    source: tuple[str | int, ...]
    """The place in a fixed list, or the path of a stream."""
    level: float | None
    """The difficulty that was asked for; None: the task's own."""
    uses: int = 0
    """How often it came back; 0 for a fresh one."""


class Candidates:
    """Where the candidates of a stage come from; every draw is a function of the key."""

    def __init__(self, settings: Settings, task: Task, key: Key) -> None:
        """Raises TaskError where the task lacks what the settings go by."""
        self._task, self._key = task, key
        self._pool: list[Problem] | None = None
        if isinstance(task, Finite):
            self._pool = [problem for problem in task.problems() if not problem.is_evaluation]
        self.by = settings.by or ("difficulty" if self._pool is None else "problem")
        self._check(settings)

    def draw(
        self, update: int, number: int, count: int, *, oversample: int, levels: Sequence[float]
    ) -> list[Candidate]:
        """`count * oversample` candidates of round `number`, a fair sample of the training problems at these levels.

        Of a fixed list all are different while it lasts, and there are no more than it has, or than `count`.
        """
        wanted = count * oversample
        if self._pool is not None:
            size = max(count, min(wanted, len(self._pool)))
            passes = range(-(-size // len(self._pool)))
            orders = [
                self._key.child("pool", update, number, each).generator().permutation(len(self._pool))
                for each in passes
            ]
            return [self.at((int(place),), None) for order in orders for place in order][:size]
        draws = self._key.child("level", update, number).uniforms(wanted)
        return [
            self.at((update, number, place), levels[int(draw * len(levels))] if levels else None)
            for place, draw in enumerate(draws)
        ]

    def at(self, source: tuple[str | int, ...], level: float | None, *, uses: int = 0) -> Candidate:
        """The candidate of a source: the same one whenever it is asked for."""
        if self._pool is not None:
            problem = self._pool[int(source[0])]
        else:
            problem = self._drawn(self._key.child("candidate", *source), level)
        return Candidate(problem=problem, bucket=self._bucket(problem), source=source, level=level, uses=uses)

    def _drawn(self, key: Key, level: float | None) -> Problem:
        for attempt in range(ATTEMPTS):
            problem = self._task.problem(key.child(attempt), level)
            if not problem.is_evaluation:
                return problem
        raise TaskError(f"the task {self._task.name} gave no training problem at difficulty {level}.")

    def _bucket(self, problem: Problem) -> str:
        if self.by == "problem":
            return problem.key
        return f"{problem.difficulty:g}" if self.by == "difficulty" else str(problem.metadata.get(self.by, ""))

    def _check(self, settings: Settings) -> None:
        name = self._task.name
        if self._pool is not None and not self._pool:
            raise TaskError(f"curriculum: the task {name} has no training problem.")
        if self._pool is not None and settings.levels:
            raise TaskError(f"curriculum.levels: the task {name} is a fixed list of problems and has no dial.")
        if self.by == "problem" and self._pool is None:
            raise TaskError(f"curriculum.by = 'problem': no problem of the endless task {name} comes twice.")
        probed = self._probed(settings.levels)
        if len(set(settings.levels)) > 1 and len({problem.difficulty for problem in probed}) == 1:
            raise TaskError(f"curriculum.levels: the task {name} has no dial, all its problems are equally difficult.")
        if self.by not in _OWN and any(self.by not in problem.metadata for problem in probed):
            raise TaskError(unknown_name("curriculum.by", self.by, {*_OWN, *probed[0].metadata}))
        if settings.oversample > 1 and len({self._bucket(problem) for problem in probed}) == 1:
            raise TaskError(
                f"curriculum.by = '{self.by}' is the same for all problems of the task {name}, so there is nothing to "
                "select by; give levels, another `by`, or oversample = 1."
            )

    def _probed(self, levels: Sequence[float]) -> list[Problem]:
        if self._pool is not None:
            return self._pool
        key = self._key.child("check")
        return [
            self._drawn(key.child(place), levels[place % len(levels)] if levels else None) for place in range(PROBED)
        ]
