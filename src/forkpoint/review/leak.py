"""Whether a fix gives the answer away: what it says of the answer once everything else is taken from the prompt.

Everything else is the problem and the rollout's prefix.  In their place stand the prompts of other problems of the
task, of about the same length and with other answers, so that the text stays of a kind that the policy knows.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias, runtime_checkable

import numpy as np

from forkpoint.errors import ForkpointError
from forkpoint.probe import Answerable, Probe, ScoreRequest
from forkpoint.records import Floats, Ints, Problem
from forkpoint.seeds import Key


@runtime_checkable
class Drawing(Protocol):
    """A task that can draw problems."""

    def problem(self, key: Key) -> Problem:
        """A problem from a stream."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class LeakSettings:
    """When a fix counts as a leak."""

    contexts: int = 8
    """Prompts of other problems that the answer is asked for after."""
    pool: int = 32
    """Problems drawn to choose them from: those nearest in length, with another answer."""
    threshold: float = math.log(4)
    """Nats: a rise of log p(answer) from here on is a leak."""
    readable: float = 0.1
    """Of each token of the answer, on geometric average: a less likely answer cannot be read off the fix."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A fix, and what its leak is measured against."""

    problem: Problem
    before: str
    """The text of the prefix; says only what the right answer is from there."""
    text: str
    """The fix."""
    others: tuple[str, ...]
    """Texts that came without knowledge of the answer, such as the step as it was."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Leak:
    """What a fix says of the answer."""

    literal: bool
    """Whether it holds the answer as a word, and none of the other texts does."""
    rise: float | None
    """Of log p(answer), nats; None where the task has no answer to ask for."""
    readable: float
    """Geometric mean of the probabilities of the answer's tokens after the fix; 0 where it was not asked for."""
    unseen: bool = False
    """Whether there is nothing to hold the fix against: no reference answer, and none that could be asked for."""

    def reason(self, settings: LeakSettings) -> str:
        """Why it is a leak, or may be one; empty if it is none."""
        if self.unseen:
            return "leak: there is no reference answer, so none could be seen"
        if self.literal:
            return "leak: it holds the answer"
        if self.rise is not None and self.rise >= settings.threshold and self.readable >= settings.readable:
            return f"leak: log p(answer) rises by {self.rise:.2f} nats by it alone"
        return ""


_Name: TypeAlias = tuple[bytes, bytes]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Asked:
    """An answer to score after some texts: without any, after the fix, after each other text."""

    answer: Ints
    given: int
    """Tokens of the answer that cost no probability: the lead that asks for it."""
    rows: tuple[tuple[_Name, ...], ...]
    """For each text the names of its requests, one a context."""


def holds_word(text: str, word: str) -> bool:
    """Whether a text holds a word that is no part of a longer one; zeros before a number do not hide it.

    >>> holds_word("14-5=09;", "9"), holds_word("14-5=19;", "9")
    (True, False)
    """
    word = word.strip()
    return bool(word) and re.search(rf"(?<![\w.])0*{re.escape(word)}(?!\w)", text) is not None


def leaks(questions: Sequence[Question], probe: Probe, *, key: Key, settings: LeakSettings) -> list[Leak]:
    """What each fix says of its answer, in order; one scoring pass for all of them.

    rise = log mean_c p(a | c, fix) - max(log mean_c p(a | c), max_o log mean_c p(a | c, o))

    over the prompts c of other problems and the other texts o.  The answer a is what the task's `early_answer` writes
    after the prefix and the fix.
    The prompts c come from `key` and the problem alone, so a fix is judged alike whatever else is asked.
    """
    pool = _pool(probe, key, settings.pool)
    requests: dict[_Name, ScoreRequest] = {}
    asked = [_ask(question, probe, pool, requests, settings.contexts) for question in questions]
    names = list(requests)
    scores = dict(zip(names, probe.score(list(requests.values())) if names else [], strict=True))
    return [_leak(question, each, scores) for question, each in zip(questions, asked, strict=True)]


def _pool(probe: Probe, key: Key, count: int) -> list[tuple[Problem, Ints]]:
    if not isinstance(probe.task, Drawing) or not isinstance(probe.task, Answerable):
        return []
    drawn = [probe.task.problem(key.child("neutral", place)) for place in range(count)]
    return [(problem, _prompt(problem, probe)) for problem in drawn]


def _prompt(problem: Problem, probe: Probe) -> Ints:
    return probe.encode_prompt(problem.prompt)  # type: ignore[arg-type]  # messages go through the chat template


def _read(text: str, probe: Probe) -> Ints | None:
    """The tokens of a text; None for one that holds a control token, as a policy may have drawn."""
    try:
        return probe.encode(text)
    except (ForkpointError, ValueError):
        return None


def _ask(
    question: Question, probe: Probe, pool: Sequence[tuple[Problem, Ints]], requests: dict[_Name, ScoreRequest],
    contexts: int,
) -> _Asked | None:  # fmt: skip
    """The requests of a question, added to `requests`; None where there is nothing to ask."""
    task, problem = probe.task, question.problem
    if not isinstance(task, Answerable):
        return None
    text = task.early_answer(problem, question.before + question.text) or task.early_answer(problem, question.before)
    lead = str(getattr(task, "answer_lead", ""))
    answer = _read(text, probe)
    texts = [_read(each, probe) for each in ("", question.text, *question.others)]
    given = len(probe.encode(lead)) if lead and text.startswith(lead) else 0
    length = len(_prompt(problem, probe))
    others = [(abs(len(prompt) - length), prompt) for drawn, prompt in pool if drawn.answer != problem.answer]
    chosen = [prompt for _, prompt in sorted(others, key=lambda pair: pair[0])[:contexts]]
    if answer is None or texts[1] is None or len(answer) <= given or not chosen:
        return None
    rows = []
    for before in texts:
        if before is None:
            continue
        row = []
        for prompt in chosen:
            context = np.concatenate([prompt, before]).astype(np.int32)
            name = (context.tobytes(), answer.tobytes())
            requests.setdefault(name, ScoreRequest(prompt_tokens=context, tokens=answer))
            row.append(name)
        rows.append(tuple(row))
    return _Asked(answer=answer, given=given, rows=tuple(rows))


def _leak(question: Question, asked: _Asked | None, scores: Mapping[_Name, Floats]) -> Leak:
    word = question.problem.answer
    literal = holds_word(question.text, word) and not any(holds_word(other, word) for other in question.others)
    if asked is None:
        return Leak(literal=literal, rise=None, readable=0.0, unseen=not word.strip())
    bare, fixed, *others = (
        _mean([float(scores[name][asked.given :].sum(dtype=np.float64)) for name in row]) for row in asked.rows
    )
    return Leak(
        literal=literal, rise=fixed - max([bare, *others]), readable=math.exp(fixed / (len(asked.answer) - asked.given))
    )


def _mean(logprobs: Sequence[float]) -> float:
    """The logarithm of the mean probability."""
    return float(np.logaddexp.reduce(logprobs) - math.log(len(logprobs)))
