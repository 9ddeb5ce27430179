"""Pretraining and supervised fine-tuning: cross-entropy on texts of a corpus, or on a policy's own correct rollouts."""

import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from forkpoint.batching import Row, text_row
from forkpoint.bugs import with_bugs
from forkpoint.config.recipe import TextStage
from forkpoint.losses import token_weights
from forkpoint.policies.protocol import Policy
from forkpoint.policies.texts import Texts
from forkpoint.probe import Probe
from forkpoint.records import Rollout, TextExample, frozen_array
from forkpoint.seeds import Key
from forkpoint.tasks.protocol import Demonstration, Task, split_problems
from forkpoint.training.components import Objective, accumulate
from forkpoint.training.optimization import Optimization
from forkpoint.training.rollouts import SamplePlan, judged_groups
from forkpoint.training.unit import Step

Draw = Callable[[int], Sequence[TextExample]]
"""The texts of an update: a pure function of its number, so a resume needs no position in a stream."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TextTraining:
    """Everything that turns one batch of texts into one optimizer step."""

    stage: TextStage
    policy: Policy
    optimization: Optimization
    draw: Draw
    sampled: int = 0
    """Tokens that were sampled to make the texts; told with the first update."""

    def unit(self, update: int) -> list[Step]:
        """The one step of this update."""
        began = time.perf_counter()
        rows = self.rows(self.draw(update))
        sums = accumulate(self.policy, rows, Objective(imitation=True), max_tokens=self.stage.max_batch_tokens)
        changes = self.optimization.step(update)
        seconds = time.perf_counter() - began
        metrics = {
            "loss": sums["loss"],
            "entropy": sums["entropy_sum"] / max(1.0, sums["trained_tokens"]),
            "trained_tokens": sums["trained_tokens"],
            "padding_share": sums["padding_share"],
            "seconds": seconds,
            **changes,
        }
        return [Step(update=update, metrics=metrics, seconds=seconds, tokens=self.sampled if update == 1 else 0)]

    def rows(self, examples: Sequence[TextExample]) -> list[Row]:
        """The weighted rows of an update's texts, under the bugs that the recipe asks for."""
        return with_bugs(weighted_rows(examples), self.stage.bugs)


def weighted_rows(examples: Sequence[TextExample]) -> list[Row]:
    """Rows whose imitation weights are one over the trained tokens of the whole update."""
    rows = [text_row(example) for example in examples]
    weights = token_weights(
        [row.loss_mask for row in rows], range(len(rows)), aggregation="token_mean", constant_length=1
    )
    return [replace(row, imitation_weights=weight) for row, weight in zip(rows, weights, strict=True)]


def demonstration_example(texts: Texts, demonstration: Demonstration) -> TextExample:
    """The tokens of a demonstration: its text is imitated, its prompt is not."""
    prompt, text = texts.encode_prompt(demonstration.prompt), texts.encode(demonstration.text)
    if demonstration.ends and texts.eos_id is not None:
        text = np.append(text, np.int32(texts.eos_id))
    mask = np.arange(len(prompt) + len(text)) >= len(prompt)
    return TextExample(
        tokens=frozen_array(np.concatenate([prompt, text]), np.int32),
        loss_mask=frozen_array(mask, np.bool_),
        provenance=demonstration.provenance,
    )


def rollout_example(rollout: Rollout) -> TextExample:
    """The tokens of a rollout as a text: what was sampled is imitated, the environment's replies are not."""
    mask = np.concatenate([np.zeros(len(rollout.prompt_tokens), np.bool_), rollout.loss_mask])
    return TextExample(
        tokens=frozen_array(np.concatenate([rollout.prompt_tokens, rollout.tokens]), np.int32),
        loss_mask=frozen_array(mask, np.bool_),
        provenance=f"rollout:{rollout.id}",
    )


def corpus_draw(task: Task, texts: Texts, data: str, key: Key, *, count: int) -> Draw:
    """`count` texts of a corpus, a fresh stretch of it for each update."""

    def draw(update: int) -> list[TextExample]:
        stream = task.corpus(data, key.child("texts", update))
        return [demonstration_example(texts, text) for text in itertools.islice(stream, count)]

    return draw


def pool_draw(pool: Sequence[TextExample], key: Key, *, count: int) -> Draw:
    """`count` texts of a fixed pool, every one once before any comes again."""

    def draw(update: int) -> list[TextExample]:
        orders: dict[int, np.ndarray] = {}
        chosen = []
        for place in range((update - 1) * count, update * count):
            epoch, position = divmod(place, len(pool))
            if epoch not in orders:
                orders[epoch] = key.child("order", epoch).generator().permutation(len(pool))
            chosen.append(pool[orders[epoch][position]])
        return chosen

    return draw


def joined_draw(first: Draw, second: Draw) -> Draw:
    """The texts of both."""

    def draw(update: int) -> list[TextExample]:
        return [*first(update), *second(update)]

    return draw


def sampled_texts(
    task: Task, texts: Texts, probe: Probe, plan: SamplePlan, *, count: int, correct: bool = True
) -> list[TextExample]:
    """`count` fresh rollouts on training problems, one a problem; of these the correct ones, or all of them."""
    problems = split_problems(task, plan.key.child("problems"), count, evaluation=False)
    groups = judged_groups(probe, task, texts, problems, plan)
    return [rollout_example(group.rollouts[0]) for group in groups if group.verdicts[0].correct or not correct]
