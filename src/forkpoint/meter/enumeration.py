"""The true advantage by enumeration of everything that the policy could write: short sequences, small alphabets.

Exact under any policy, also one that reads its own filler: every sequence is scored by the policy and judged.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np

from forkpoint.errors import TaskError
from forkpoint.meter.truth import Tier, Truth, every_place, final_value
from forkpoint.probe import Probe, ScoreRequest
from forkpoint.records import Batch, Group, Ints, Problem, Rollout, StopReason, frozen_array

MOST_SEQUENCES = 50_000
"""Of one problem."""
Words: TypeAlias = tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Language:
    """What a policy can write after a prompt."""

    following: Callable[[Ints, Words], Sequence[int]]
    """The tokens that may follow a prompt and the tokens after it."""
    text: Callable[[Words], str]
    eos: int | None
    """The token that ends a rollout; None where there is none."""
    budget: int
    """Most tokens after the prompt."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Tree:
    """All that can be written for one problem."""

    sequences: tuple[Words, ...]
    logprobs: tuple[Sequence[float], ...]
    """Of each token of each sequence, nats."""
    rewards: Sequence[float]
    """1 where the sequence is correct."""
    values: Mapping[Words, float]
    """The chance to end correct after each beginning, the whole sequences included."""


def enumerated_tree(group: Group, probe: Probe, language: Language, stop: Sequence[str] = ()) -> Tree:
    """The tree of a group's problem; `stop` are the strings that end a rollout.

    Raises:
        TaskError: more than `MOST_SEQUENCES` sequences.
        ValueError: a verdict that could not tell.
    """
    model = group.rollouts[0]
    ended = _sequences(model.prompt_tokens, language, tuple(stop))
    requests = [
        ScoreRequest(
            prompt_tokens=model.prompt_tokens, tokens=frozen_array(words, np.int32), temperature=model.temperature
        )
        for words, _ in ended
    ]
    scores = [score.astype(np.float64).tolist() for score in probe.score(requests)]
    rollouts = [_written(model, words, language.text(words), reason) for words, reason in ended]
    rewards = [final_value(verdict) for verdict in probe.verify(group.problem, rollouts)]
    sequences = tuple(words for words, _ in ended)
    return Tree(
        sequences=sequences, logprobs=tuple(scores), rewards=rewards, values=_values(sequences, scores, rewards)
    )


def enumerated_truth(
    batch: Batch, probe: Probe, language: Language, stops: Callable[[Problem], Sequence[str]]
) -> Truth:
    """The exact truth of every trained token of a batch, one tree for each problem; `stops` is the task's `stop`."""
    places, advantages = every_place(batch), []
    for group in batch.groups:
        tree = enumerated_tree(group, probe, language, stops(group.problem))
        for rollout in group.rollouts:
            words = tuple(rollout.tokens.tolist())
            course = np.array([tree.values[words[:t]] for t in range(len(words) + 1)])
            advantages.append(np.diff(course)[rollout.loss_mask])
    found = np.concatenate(advantages) if advantages else np.zeros(0)
    return Truth(tier=Tier.ENUMERATION, places=places, advantages=found, variances=np.zeros(len(found)))


def _sequences(prompt: Ints, language: Language, stop: tuple[str, ...]) -> list[tuple[Words, StopReason]]:
    """Every whole rollout with the reason of its end."""
    ended: list[tuple[Words, StopReason]] = []
    open_: list[Words] = [()]
    while open_:
        words = open_.pop()
        for token in language.following(prompt, words):
            longer = (*words, int(token))
            if token == language.eos:
                ended.append((longer, StopReason.EOS))
            elif stop and language.text(longer).endswith(stop):
                ended.append((longer, StopReason.STOP))
            elif len(longer) >= language.budget:
                ended.append((longer, StopReason.LENGTH))
            else:
                open_.append(longer)
        if len(ended) + len(open_) > MOST_SEQUENCES:
            raise TaskError(f"more than {MOST_SEQUENCES} sequences can be written: take a shorter budget or draw.")
    return ended


def _written(model: Rollout, words: Words, text: str, reason: StopReason) -> Rollout:
    count = len(words)
    return replace(
        model, tokens=frozen_array(words, np.int32), behavior_logprobs=frozen_array(np.zeros(count), np.float32),
        loss_mask=frozen_array(np.ones(count), np.bool_), spans=(), text=text, stop_reason=reason,
    )  # fmt: skip


def _values(
    sequences: Sequence[Words], scores: Sequence[Sequence[float]], rewards: Sequence[float]
) -> dict[Words, float]:
    """V(beginning) = sum over its sequences of P(the rest | beginning) reward."""
    values: dict[Words, float] = {}
    for words, score, reward in zip(sequences, scores, rewards, strict=True):
        chance = 1.0
        for t in range(len(words), -1, -1):
            values[words[:t]] = values.get(words[:t], 0.0) + chance * reward
            chance *= float(np.exp(score[t - 1])) if t else 1.0
    return values
