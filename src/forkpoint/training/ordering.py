"""Texts in one order for every pass: by their perplexity under the policy that a stage starts from, or at random."""

from collections.abc import Sequence

import numpy as np

from forkpoint.config.recipe import TextStage
from forkpoint.curricula.order import descending_perplexity, mean_nll
from forkpoint.probe import Probe, ScoreRequest
from forkpoint.records import TextExample
from forkpoint.seeds import Key
from forkpoint.training.imitation import Draw


def ordered_draw(pool: Sequence[TextExample], probe: Probe, stage: TextStage, key: Key, *, count: int) -> Draw:
    """`count` texts of a fixed pool in the stage's order, the same in every pass; by perplexity it is scored once.

    `probe` must be of the starting policy also after a resume, so that the order is the same.
    """
    if stage.order == "fixed":
        order = key.child("order").generator().permutation(len(pool)).tolist()
    else:
        requests = [_request(text) for text in pool]
        nlls = [
            mean_nll(scores, text.loss_mask[len(text.tokens) - len(scores) :])
            for text, scores in zip(pool, probe.score(requests), strict=True)
        ]
        order = descending_perplexity(nlls)
        if stage.order == "ascending_perplexity":
            order.reverse()

    def draw(update: int) -> list[TextExample]:
        places = range((update - 1) * count, update * count)
        return [pool[order[place % len(pool)]] for place in places]

    return draw


def _request(text: TextExample) -> ScoreRequest:
    """What is to be imitated, after what comes before it; the first token is never predicted."""
    start = max(1, int(np.argmax(text.loss_mask)))
    return ScoreRequest(prompt_tokens=text.tokens[:start], tokens=text.tokens[start:])
