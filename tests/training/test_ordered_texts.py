"""Texts in one order for every pass: by perplexity, at random, and what has no order."""

import numpy as np
import pytest
from tiny_runs import BASE, After, differences, fingerprint, finished, make_run, resume, status, tiny_recipe

from forkpoint.assembly.pools import TextSource, text_draw
from forkpoint.cli.worker import work
from forkpoint.errors import RecipeError
from forkpoint.records import TextExample, frozen_array
from forkpoint.seeds import Key
from forkpoint.training.ordering import ordered_draw


class Scores:
    """Log-probabilities by the second token of a text; counts what it was asked."""

    def __init__(self):
        self.asked = []

    def score(self, requests):
        self.asked += requests
        return [
            frozen_array(np.full(len(request.tokens), -float(request.tokens[0])), np.float32) for request in requests
        ]


def text(*tokens):
    return TextExample(
        tokens=frozen_array(tokens, np.int32), loss_mask=frozen_array([False] + [True] * (len(tokens) - 1), np.bool_),
        provenance=str(tokens),
    )  # fmt: skip


def test_texts_come_most_surprising_first_in_every_pass():
    pool = [text(9, 1, 1), text(9, 5), text(9, 3, 3, 3), text(9, 4)]
    stage = tiny_recipe(BASE + ORDERED).stage[1]

    def seen(order):
        draw = ordered_draw(pool, probe, stage.model_copy(update={"order": order}), Key.root(0), count=3)
        return [example.provenance for update in (1, 2, 3, 4) for example in draw(update)]

    probe = Scores()
    surprising = ["(9, 5)", "(9, 4)", "(9, 3, 3, 3)", "(9, 1, 1)"]
    assert seen("descending_perplexity") == surprising * 3
    assert len(probe.asked) == 4
    assert seen("ascending_perplexity") == surprising[::-1] * 3
    probe = Scores()
    once = seen("fixed")
    assert once == once[:4] * 3
    assert sorted(once[:4]) == sorted(surprising)
    assert not probe.asked
    ordered_draw(pool, probe, stage, Key.root(0), count=3)
    assert [list(request.prompt_tokens) for request in probe.asked] == [[9]] * 4


ORDERED = """
[[stage]]
name = "sft"
kind = "sft"
from = "base"
data = "rollouts:base"
order = "descending_perplexity"
examples = 48
updates = 4
batch_size = 4
learning_rate = 0.01
checkpoint_every = 1
"""


def test_ordered_texts_resume_exactly(tmp_path):
    recipe = tiny_recipe(BASE + ORDERED, overrides=("stage.base.updates=2",))
    whole = fingerprint(finished(tmp_path / "whole", recipe))
    pieces = make_run(tmp_path / "pieces", recipe)
    work(pieces, After(5))
    assert status(pieces.run)["sft"] == "stopped"
    resume(pieces)
    assert differences(fingerprint(pieces), whole) == []
    plain = tiny_recipe(BASE + ORDERED, overrides=("stage.base.updates=2", "stage.sft.order=shuffled"))
    assert "weights sft" in differences(fingerprint(finished(tmp_path / "plain", plain)), whole)


def test_a_mix_lies_beside_ordered_texts(tmp_path):
    mix = '[stage.mix]\ndata = "golden"\nshare = 0.25\n'
    assembly = finished(tmp_path / "run", tiny_recipe(BASE + ORDERED + mix, overrides=("stage.base.updates=2",)))
    stage = assembly.recipe.stage[1]
    texts = assembly._policy(assembly._final_checkpoint("base")).texts
    draw, _ = text_draw(TextSource(assembly=assembly, stage=stage, task=assembly.task(stage), texts=texts, writer=None))
    told = [[text.provenance.partition(":")[0] for text in draw(update)] for update in (1, 2)]
    assert [each[:3] for each in told] == [["rollout"] * 3] * 2
    assert all("rollout" not in each[3:] and len(each) == 4 for each in told)
    alone = stage.model_copy(update={"mix": None, "batch_size": 3})
    same, _ = text_draw(TextSource(assembly=assembly, stage=alone, task=assembly.task(stage), texts=texts, writer=None))
    assert [[text.provenance for text in draw(update)[:3]] for update in (1, 2)] == [
        [text.provenance for text in same(update)] for update in (1, 2)
    ]


def test_what_lies_beside_ordered_texts_is_shuffled(tmp_path):
    mix = '[stage.mix]\ndata = "samples:base"\nshare = 0.5\n'
    few = ("stage.base.updates=2", "stage.sft.examples=8", 'stage.sft.data="samples:base"')
    recipe = tiny_recipe(BASE + ORDERED + mix, overrides=few)
    assembly = finished(tmp_path / "run", recipe)
    stage = assembly.recipe.stage[1]
    texts = assembly._policy(assembly._final_checkpoint("base")).texts
    source = TextSource(assembly=assembly, stage=stage, task=assembly.task(stage), texts=texts, writer=None)
    told = [text.provenance for update in range(1, 9) for text in text_draw(source)[0](update)[2:]]
    # Two passes over eight samples, each in an order of its own.
    assert sorted(told[:8]) == sorted(told[8:])
    assert told[:8] != told[8:]


def test_an_endless_corpus_has_no_order():
    with pytest.raises(RecipeError, match="has no end"):
        tiny_recipe(BASE, overrides=("stage.base.order=descending_perplexity",))
