"""Texts to rows, corpora and pools as pure functions of the update, and the loss against the model's own."""

import itertools
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_runs import BASE, tiny_recipe

from forkpoint.assembly import Assembly
from forkpoint.records import TextExample, frozen_array
from forkpoint.seeds import Key
from forkpoint.tasks.protocol import Demonstration
from forkpoint.training.imitation import (
    TextTraining,
    corpus_draw,
    demonstration_example,
    pool_draw,
    rollout_example,
    sampled_texts,
    weighted_rows,
)
from forkpoint.training.rollouts import SamplePlan, sample_requests


@pytest.fixture(scope="module")
def context():
    assembly = Assembly(recipe=tiny_recipe(BASE), origin=Path(), run=Path("nowhere"))
    return assembly.stage_context("base", None, lambda: False)


@pytest.fixture(scope="module")
def policy(context):
    return context.load_policy(None, None)


def example(tokens, mask):
    return TextExample(
        tokens=frozen_array(tokens, np.int32), loss_mask=frozen_array(mask, np.bool_), provenance=str(tokens)
    )


@pytest.mark.parametrize("ends", [True, False])
def test_only_the_text_of_a_demonstration_is_imitated(ends, policy):
    texts = policy.texts
    made = demonstration_example(texts, Demonstration(prompt="ab|a>b:", text="b", provenance="x", ends=ends))
    assert made.tokens.tolist()[:8] == [*texts.encode("ab|a>b:"), *texts.encode("b")]
    assert made.tokens.tolist()[8:] == ([texts.eos_id] if ends else [])
    assert made.loss_mask.tolist() == [False] * 7 + [True] * (1 + ends)


def test_every_trained_token_of_a_batch_weighs_the_same():
    rows = weighted_rows([example([1, 2, 3, 4], [0, 0, 1, 1]), example([1, 2], [0, 1]), example([5, 6, 7], [0, 1, 0])])
    assert [row.prompt.tolist() for row in rows] == [[1, 2], [1], [5]]
    assert [row.tokens.tolist() for row in rows] == [[3, 4], [2], [6, 7]]
    assert [row.imitation_weights.tolist() for row in rows] == [[0.25, 0.25], [0.25], [0.25, 0.0]]


def test_a_corpus_draws_by_the_number_of_the_update(context, policy):
    draw = corpus_draw(context.plan.task, policy.texts, context.stage.data, Key.root(0), count=context.stage.batch_size)
    first, second = draw(1), draw(2)
    assert len(first) == context.stage.batch_size
    seen = {text.tokens.tobytes() for text in first} & {text.tokens.tobytes() for text in second}
    assert not seen
    again = corpus_draw(
        context.plan.task, policy.texts, context.stage.data, Key.root(0), count=context.stage.batch_size
    )(2)
    assert [text.tokens.tobytes() for text in again] == [text.tokens.tobytes() for text in second]


def test_a_pool_gives_everything_once_before_anything_again():
    pool = [example([i], [1]) for i in range(7)]
    stage = tiny_recipe(BASE).stage[0].model_copy(update={"batch_size": 3})
    draw = pool_draw(pool, Key.root(0), count=stage.batch_size)
    order = [text.provenance for update in range(1, 15) for text in draw(update)]
    assert len(order) == 42
    epochs = [order[start : start + 7] for start in range(0, 42, 7)]
    assert all(len(set(epoch)) == 7 for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 3
    assert [text.provenance for text in draw(5)] == order[12:15]


def test_a_pool_smaller_than_a_batch_repeats_evenly():
    pool = [example([i], [1]) for i in range(2)]
    stage = tiny_recipe(BASE).stage[0].model_copy(update={"batch_size": 5})
    counts = Counter(
        text.provenance for update in (1, 2) for text in pool_draw(pool, Key.root(0), count=stage.batch_size)(update)
    )
    assert set(counts.values()) == {5}


def plan(context, count):
    return SamplePlan(
        key=Key.root(0).child("teacher"), stage="base", update=0, group_size=1, max_new_tokens=6, temperature=1.0
    )


def test_only_correct_rollouts_become_data(context, policy):
    probe, _ = context.make_probe(policy)
    texts = sampled_texts(context.plan.task, policy.texts, probe, plan(context, 300), count=300)
    assert 1 <= len(texts) < 100
    for text in texts:
        walk = policy.texts.decode(text.tokens[text.loss_mask])
        prompt = policy.texts.decode(text.tokens[~text.loss_mask])
        assert walk.endswith(prompt[-2])
        assert text.provenance.startswith("rollout:")


def test_the_replies_of_an_environment_are_not_imitated(context, policy):
    probe, _ = context.make_probe(policy)
    requests = sample_requests(context.plan.task, policy.texts, context.plan.problems[:1], plan(context, 1))
    (rollout,) = probe.sample(requests)
    mask = np.arange(len(rollout.tokens)) != 0
    made = rollout_example(replace(rollout, loss_mask=frozen_array(mask, np.bool_)))
    assert made.loss_mask.tolist() == [False] * len(rollout.prompt_tokens) + mask.tolist()
    assert made.tokens.tolist() == rollout.prompt_tokens.tolist() + rollout.tokens.tolist()


class Keep:
    """An optimizer that takes no step."""

    def step(self, update):
        return {"learning_rate": 0.0}


def test_an_update_is_the_models_own_cross_entropy(context, policy):
    draw = corpus_draw(context.plan.task, policy.texts, context.stage.data, Key.root(0), count=context.stage.batch_size)
    training = TextTraining(stage=context.stage, policy=policy, optimization=Keep(), draw=draw)
    policy.model.zero_grad(set_to_none=True)
    (step,) = training.unit(3)
    found = torch.cat([parameter.grad.flatten() for parameter in policy.model.parameters()])
    policy.model.zero_grad(set_to_none=True)
    total, count = torch.zeros(()), 0
    for text in draw(3):
        tokens = torch.tensor(text.tokens.astype(np.int64))
        labels = torch.where(torch.tensor(text.loss_mask), tokens, -100)[1:]
        logits = policy.model(input_ids=tokens[None]).logits[0, :-1]
        total = total + torch.nn.functional.cross_entropy(logits, labels, ignore_index=-100, reduction="sum")
        count += int((labels >= 0).sum())
    (total / count).backward()
    expected = torch.cat([parameter.grad.flatten() for parameter in policy.model.parameters()])
    policy.model.zero_grad(set_to_none=True)
    assert float((found - expected).norm() / expected.norm()) < 1e-5
    assert step.metrics["loss"] == pytest.approx(float(total.detach()) / count, rel=1e-4)
    assert step.metrics["trained_tokens"] == count
    assert (step.update, step.tokens, step.groups) == (3, 0, ())
    assert 0 <= step.metrics["padding_share"] < 0.5
    # An untrained model spreads its mass evenly over the vocabulary.
    assert step.metrics["entropy"] == pytest.approx(np.log(len(policy.texts.tokenizer)), rel=0.05)


def test_a_corpus_that_ends_gives_what_it_has(context, policy):
    class Short:
        def corpus(self, name, key):
            return itertools.islice(context.plan.task.corpus(name, key), 3)

    draw = corpus_draw(Short(), policy.texts, context.stage.data, Key.root(0), count=context.stage.batch_size)
    assert len(draw(1)) == 3
