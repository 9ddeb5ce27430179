"""`gym`: the procedural datasets of the package reasoning-gym (the extra `gym`), made safe to train on.

Items are made in one child process and answers scored in another, both with a deadline and a memory limit; the child
that reads answers makes each item again from its seed and never tells the other what it read.  Seeds are hashes of
the problem's stream: neighboring seeds of reasoning-gym share their items.  The split is decided by the question.
An answer is right where the score is 1; partial scores are kept as `score` and pay nothing.  Datasets whose scorer
runs the answer as a program, rewards anything, or has no fixed answer are refused.
"""

import copy
import functools
import importlib.util
import itertools
import json
import math
import string
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from pydantic import Field

from forkpoint.errors import TaskError, VerifierError, unknown_name
from forkpoint.records import Outcome, Problem, Rollout, Verdict
from forkpoint.seeds import Key, content_hash
from forkpoint.tasks.protocol import Demonstration
from forkpoint.tasks.settings import TaskSettings
from forkpoint.verifiers.answers import THINK_OPEN, final_answer
from forkpoint.verifiers.exact import MAX_SHOWN
from forkpoint.verifiers.worker import Answer, Worker

RUNS_TEXT = "its scorer runs the answer as a program"
FREE = "its scorer rewards wrong answers in full"
UNSTABLE = "its reference answers differ from run to run"
NO_ORACLE = "it has no reference answers"
UNCHECKED = "it may hold datasets that are refused"
REFUSED: Mapping[str, str] = MappingProxyType(
    {
        **dict.fromkeys(
            ("binary_matrix", "countdown", "intermediate_integration", "n_queens", "polynomial_multiplication",
             "puzzle24", "simple_integration", "spiral_matrix", "string_insertion"),
            RUNS_TEXT,
        ),
        **dict.fromkeys(("coin_flip", "complex_arithmetic", "game_of_life_halting"), FREE),
        "codeio": UNSTABLE,
        **dict.fromkeys(("boxnet", "graph_color", "propositional_logic", "rubiks_cube", "rush_hour"), NO_ORACLE),
        "composite": UNCHECKED,
    }
)  # fmt: skip
"""Datasets that need `unsafe_scorer`, and why: what `forkpoint audit scorer gym` found (docs/verifiers.md)."""
SLOW_TO_BUILD = ("arc_agi", "figlet_font", "group_anagrams", "rearc", "spell_backward", "word_ladder")
"""These read word lists when they are built; they are built once and get each item's seed later."""
MAX_ANSWER = 10_000
"""Characters of an answer that is still scored."""
CHUNK = 16
ATTEMPTS = 32
"""Seeds that are tried for one problem: some generators fail now and then."""
_CLASSES = (string.digits, string.ascii_lowercase, string.ascii_uppercase)


class Settings(TaskSettings):
    """What a recipe may say of `gym`."""

    dataset: str
    """Name of a reasoning-gym dataset, such as `chain_sum`; `name = "gym:chain_sum"` says the same."""
    options: dict[str, Any] = Field(default_factory=dict)
    """The dataset's own options; `seed` and `size` are taken."""
    instruction: str = Field(default="", max_length=10_000)
    """Written on a line of its own after every question."""
    unsafe_scorer: bool = False
    """Use a dataset that is refused otherwise; text of the model may then run as a program in the worker."""
    noise: float = Field(default=0.5, ge=0, le=1)
    """Probability that the answer in the corpus `noisy` is that of another question; 0 to 1."""
    alphabet: str = ""
    """Every character of prompts and answers, for a `tiny` policy; empty: found in a sample of items."""
    alphabet_items: int = Field(default=2000, ge=1, le=1_000_000)
    """Size of that sample."""
    timeout_seconds: float = Field(default=5.0, gt=0, le=600)
    """Seconds that scoring one answer may take."""


def build(settings: Settings) -> "Gym":
    """The task of a dataset.

    Raises TaskError for an unknown or refused dataset and for wrong options, VerifierError without the extra `gym`.
    """
    return Gym(settings)


@functools.lru_cache(maxsize=8)
def _dataset(name: str, options: str) -> Any:  # noqa: ANN401
    from reasoning_gym import create_dataset  # noqa: PLC0415  (an optional extra)

    return create_dataset(name, size=1, seed=0, **json.loads(options))


@functools.lru_cache(maxsize=1024)
def _entry(name: str, options: str, seed: int) -> tuple[Any, dict[str, Any]]:
    """The dataset and its item of a seed."""
    from reasoning_gym import create_dataset  # noqa: PLC0415  (an optional extra)

    if name in SLOW_TO_BUILD:
        dataset = _dataset(name, options)
        dataset.seed = seed
    else:
        dataset = create_dataset(name, size=1, seed=seed, **json.loads(options))
    return dataset, dataset[0]


def child_describe(name: str, options: str) -> dict[str, Any]:
    """Names of all datasets, and whether this one compares answers by equality; runs in the worker."""
    from reasoning_gym.dataset import ProceduralDataset  # noqa: PLC0415  (an optional extra)
    from reasoning_gym.factory import DATASETS  # noqa: PLC0415  (an optional extra)

    if name not in DATASETS:
        return {"names": sorted(DATASETS)}
    scorer = type(_dataset(name, options)).score_answer
    return {"names": sorted(DATASETS), "by_equality": scorer is ProceduralDataset.score_answer}


def child_items(name: str, options: str, seeds: Sequence[int]) -> list[list[str | None]]:
    """Question and answer of each seed; runs in the worker."""
    entries = [_entry(name, options, seed)[1] for seed in seeds]
    return [[str(entry["question"]), None if entry["answer"] is None else str(entry["answer"])] for entry in entries]


def child_score(name: str, options: str, seed: int, key: str, answer: str) -> object:
    """The raw score of an answer to the item of a seed, whose problem has this key; runs in the worker."""
    dataset, entry = _entry(name, options, seed)
    if _problem_key(name, str(entry["question"])) != key:
        raise ValueError("the dataset now makes another question from this seed")
    score = dataset.score_answer(answer=answer, entry=copy.deepcopy(entry))
    return float(score) if isinstance(score, int | float) else {"not a number": type(score).__name__}


_JOBS: Mapping[str, Callable[..., object]] = MappingProxyType(
    {"describe": child_describe, "items": child_items, "score": child_score}
)


def child(job: str, *arguments: object) -> object:
    """What a job of the workers returns; the entrance of both."""
    return _JOBS[job](*arguments)


def _problem_key(dataset: str, question: str) -> str:
    return content_hash("gym", dataset, question)


def item_seed(key: Key) -> int:
    """The 32-bit seed of the item of a stream: a hash, so neighboring streams share nothing."""
    return int(key.child("reasoning-gym").hex[:8], 16)


def raw_score(problem: Problem, completion: str | None) -> object:
    """What the dataset of a problem returns for an answer; runs the dataset's own code, so for a child only."""
    options = str(problem.metadata.get("options", "{}"))
    dataset, entry = _entry(problem.task.removeprefix("gym:"), options, int(problem.metadata["seed"]))
    return dataset.score_answer(answer=completion, entry=copy.deepcopy(entry))


class Catalogue:
    """The datasets that are installed and problems of any of them, also of refused ones, for an audit.

    Nothing here scores an answer.  Raises VerifierError without the extra `gym`.
    """

    def __init__(self, *, timeout_seconds: float = 60.0) -> None:
        require_gym()
        self._maker = Worker(f"{__name__}:child", timeout_seconds=timeout_seconds, imports=("reasoning_gym",))

    def close(self) -> None:
        """Ends the worker."""
        self._maker.close()

    def names(self) -> tuple[str, ...]:
        """All datasets, sorted."""
        return tuple(self._maker.call("describe", "", "{}").value["names"])

    def problems(self, dataset: str, count: int) -> list[Problem]:
        """Different problems, with the dataset's own settings; fewer where it makes no more.

        Raises TaskError where it makes none.
        """
        found: dict[str, Problem] = {}
        reason = ""
        for attempt in range(count + ATTEMPTS):
            seed = item_seed(Key.root(0).child("audit", attempt))
            made = self._maker.call("items", dataset, "{}", [seed])
            if made.kind == "ok":
                question, answer = made.value[0]
                key = _problem_key(dataset, question)
                found[key] = Problem(
                    task=f"gym:{dataset}", key=key, prompt=question, answer=answer or "", metadata={"seed": seed}
                )
            else:
                reason = f"{made.kind}: {made.reason}".partition("\n")[0]
            if len(found) == count or made.kind == "timeout":
                break
        if not found:
            raise TaskError(f"[task] dataset = '{dataset}' makes no item: {reason}.")
        return list(found.values())


def judge(answer: str, found: Answer) -> Verdict:
    """The verdict on an answer from what the scorer gave back: ERROR where it failed or its score is no number."""
    shown = answer[:MAX_SHOWN]
    score = found.value
    if found.kind != "ok" or not isinstance(score, int | float) or not math.isfinite(score):
        reason = f"the scorer returned {score!r}" if found.kind == "ok" else f"{found.kind}: {found.reason}"
        return Verdict(outcome=Outcome.ERROR, correct=None, answer=shown, reason=f"reasoning-gym: {reason}")
    correct = score >= 1
    outcome = Outcome.CORRECT if correct else Outcome.WRONG
    return Verdict(outcome=outcome, correct=correct, score=min(1.0, max(0.0, float(score))), answer=shown)


def require_gym() -> None:
    """Nothing; raises VerifierError where the extra `gym` is not installed."""
    if importlib.util.find_spec("reasoning_gym") is None:
        raise VerifierError("[task] gym needs the extra `gym`: pip install 'forkpoint[gym]'.")


class Gym:
    """The task `gym`.

    Corpora: `solutions` (question, answer); `noisy` (with probability `noise` the answer is that of another question,
    so what is learned from it is right only in part).
    """

    corpora: tuple[str, ...] = ("solutions", "noisy")

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.name: str = f"gym:{settings.dataset}"
        require_gym()
        self._options = self._checked_options()
        worker = functools.partial(Worker, f"{__name__}:child", imports=("reasoning_gym",))
        self._maker = worker(timeout_seconds=max(60.0, settings.timeout_seconds))
        self._scorer = worker(timeout_seconds=settings.timeout_seconds)
        self._by_equality = self._describe()

    def _checked_options(self) -> str:
        where = "[task] gym options"
        reserved = {"seed", "size"} & set(self.settings.options)
        if reserved:
            raise TaskError(f"{where}: {' and '.join(sorted(reserved))} cannot be set: items are seeded by the recipe.")
        try:
            return json.dumps(self.settings.options, sort_keys=True, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise TaskError(f"{where} cannot be written as JSON: {error}.") from None

    def _describe(self) -> bool:
        """Checks dataset and options, makes one item; whether answers are compared by equality."""
        dataset, options = self.settings.dataset, self._options
        reason = REFUSED.get(dataset)
        if reason and not self.settings.unsafe_scorer:
            raise TaskError(
                f"[task] dataset = '{dataset}' is refused: {reason}; unsafe_scorer = true uses it all the same."
            )
        found = self._maker.call("describe", dataset, options)
        if found.kind != "ok":
            shown = f"{found.kind}: {found.reason}".partition("\n")[0]
            raise TaskError(f"[task] dataset = '{dataset}' cannot be built with options = {options}: {shown}.")
        if dataset not in found.value["names"]:
            raise TaskError(unknown_name("[task] dataset", dataset, found.value["names"]))
        self.problem(Key.root(0).child("first"))
        return bool(found.value["by_equality"])

    def close(self) -> None:
        """Ends both workers; they start again where they are needed."""
        self._maker.close()
        self._scorer.close()

    @functools.cached_property
    def alphabet(self) -> str | None:
        """Every character of a sample of items; of digits and letters the whole class, since a sample misses some."""
        if self.settings.alphabet:
            return self.settings.alphabet
        key = Key.root(0).child("alphabet")
        seeds = [item_seed(key.child(index)) for index in range(self.settings.alphabet_items)]
        found = set(self._prompt(""))
        for start in range(0, len(seeds), CHUNK):
            items = self._maker.call("items", self.settings.dataset, self._options, seeds[start : start + CHUNK])
            for question, answer in items.value if items.kind == "ok" else ():
                found.update(question, answer or "")
        for characters in _CLASSES:
            if found & set(characters):
                found.update(characters)
        return "".join(sorted(found))

    def _prompt(self, question: str) -> str:
        return "\n".join(filter(None, (question, self.settings.instruction))) + "\n"

    def problem(self, key: Key, difficulty: float | None = None) -> Problem:
        """The item of the stream `key`; the dial is the dataset's options, so `difficulty` changes nothing.

        Raises TaskError where the generator fails for every seed that is tried.
        """
        del difficulty
        reason = ""
        for attempt in range(ATTEMPTS):
            seed = item_seed(key.child(attempt))
            found = self._maker.call("items", self.settings.dataset, self._options, [seed])
            if found.kind == "ok":
                return self._problem(seed, *found.value[0])
            reason = f"{found.kind}: {found.reason}".partition("\n")[0]
            if found.kind == "timeout":
                break
        raise TaskError(
            f"[task] dataset = '{self.settings.dataset}' makes no item with options = {self._options}: {reason}."
        )

    def _problem(self, seed: int, question: str, answer: str | None) -> Problem:
        return Problem(
            task=self.name,
            key=_problem_key(self.settings.dataset, question),
            prompt=self._prompt(question),
            answer=answer or "",
            metadata={"seed": seed},
        )

    def verify(self, problem: Problem, rollout: Rollout) -> Verdict:
        """The dataset's own verdict on the last box, the last `answer:`, or else the whole text after the thinking.

        An empty answer is UNPARSEABLE and never reaches the scorer; a scorer that hangs, dies, raises or returns no
        number is ERROR.
        """
        answer = final_answer(rollout.text, whole=True)
        if answer is None or len(answer) > MAX_ANSWER:
            reason = "no answer was found" if answer is None else f"the answer is longer than {MAX_ANSWER} characters"
            return Verdict(
                outcome=Outcome.UNPARSEABLE, correct=False, answer=(answer or "")[:MAX_SHOWN] or None, reason=reason
            )
        item = problem.metadata["seed"], problem.key
        return judge(answer, self._scorer.call("score", self.settings.dataset, self._options, *item, answer))

    def solve(self, problem: Problem) -> str:
        """The reference answer; raises TaskError for a dataset that has none."""
        if not problem.answer:
            raise TaskError(f"[task] dataset = '{self.settings.dataset}' has no reference answers.")
        return problem.answer

    def wrong_answers(self, problem: Problem) -> Sequence[str]:
        """Nothing; blanks; an empty box; an open think; where answers are compared by equality, another answer."""
        wrong = ["", " \n", r"\boxed{}", f"{THINK_OPEN}{problem.answer}"]
        if self._by_equality:
            wrong += [f"{problem.answer}{problem.answer}", f"{problem.answer} or not"]
        return wrong

    def corpus(self, name: str, key: Key) -> Iterator[Demonstration]:
        """An endless stream of training items with answers; raises TaskError for an unknown name or no answers."""
        if name not in self.corpora:
            raise TaskError(unknown_name(f"corpus of [task] {self.name}", name, self.corpora))
        return self._stream(name, key)

    def _stream(self, name: str, key: Key) -> Iterator[Demonstration]:
        for index in itertools.count():
            problem = self.problem(key.child("problem", index))
            if problem.is_evaluation:
                continue
            answer = self.solve(problem)
            if name == "noisy" and key.child("noise", index).uniforms(1)[0] < self.settings.noise:
                answer = self._other_answer(answer, key.child("other", index))
            yield Demonstration(prompt=problem.prompt, text=answer, provenance=f"{self.name}:{name}")

    def _other_answer(self, answer: str, key: Key) -> str:
        """The answer of another training item that differs; the same one where every item tried has it."""
        for attempt in range(ATTEMPTS):
            other = self.problem(key.child(attempt))
            if other.answer != answer and not other.is_evaluation:
                return other.answer
        return answer

    def stop(self, problem: Problem) -> tuple[str, ...]:
        """Nothing: the model ends its text."""
        del problem
        return ()

    def cut_points(self, problem: Problem, rollout: Rollout) -> Sequence[int]:
        """Only the beginning: what a step of free text is, is not known here."""
        del problem, rollout
        return (0,)
