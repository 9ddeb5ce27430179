"""How biased each option is, as numbers: its exact gradient against the true one, on a language that is enumerated.

Every group of two and every draw of every continuation enters with its probability, so nothing here is chance.  The
table stands in docs/credit.md.
"""

import numpy as np
import pytest
from enumerated_language import LANGUAGE, LETTERS, cosine, difference

from forkpoint.credit.answer_progress import answer_progress
from forkpoint.credit.branch import branch
from forkpoint.credit.counterfactual import counterfactual
from forkpoint.credit.critic import critic
from forkpoint.credit.group import group_mean_std, leave_one_out, max_rl
from forkpoint.credit.masks import WRAPPERS
from forkpoint.credit.privileged import privileged
from forkpoint.credit.state_group import state_group
from forkpoint.credit.tree import tree
from forkpoint.records import frozen_array

HINT = 9
"""The prompt of a policy that knows that it will be right."""
NEVER = 1e-6
"""Chance of a letter after which nothing is right, under the hint."""


class Knowing:
    """What the language knows of itself: steps, states, the likeliest right ending, steps that lose value."""

    def cut_points(self, problem, rollout):
        return range(len(rollout.tokens))

    def state(self, problem, transcript):
        return transcript

    def early_answer(self, problem, transcript):
        endings = [(share, text) for text, share in LANGUAGE.strings(transcript) if text in LANGUAGE.right]
        return max(endings)[1][len(transcript) :] if endings else ""

    def wrong_steps(self, problem, text):
        return [k for k in range(len(text)) if LANGUAGE.value(text[: k + 1]) < LANGUAGE.value(text[:k])]

    def privileged_prompt(self, problem, knowledge):
        return "hint"


class Asked:
    """A probe of the language: what it is asked to continue or judge goes on to another, scores are its own.

    Under the hint they are Bayes': pi(y | prefix, right) = pi(y | prefix) V(prefix y) / V(prefix).
    """

    def __init__(self, other):
        self.task, self.branch, self.verify, self.encode = Knowing(), other.branch, other.verify, other.encode

    def encode_prompt(self, prompt):
        assert prompt == "hint"
        return frozen_array([HINT], np.int32)

    def score(self, requests):
        return [self._score(request) for request in requests]

    def _score(self, request):
        told = request.prompt_tokens[0] == HINT
        before = "" if told else "".join(LETTERS[token] for token in request.prompt_tokens[2:])
        text = before + "".join(LETTERS[token] for token in request.tokens)
        logs = LANGUAGE.logprobs(text)
        if told:
            logs = logs + np.diff(np.log([max(NEVER, LANGUAGE.value(text[:end])) for end in range(len(text) + 1)]))
        return frozen_array(logs[len(before) :], np.float32)

    def values(self, rollouts):
        """The exact value before every letter, as of a perfect critic."""
        texts = ["".join(LETTERS[token] for token in each.tokens) for each in rollouts]
        return [frozen_array([LANGUAGE.value(text[:t]) for t in range(len(text))], np.float32) for text in texts]


def within(name):
    """Leave-one-out within a wrapper."""

    def rule(batch, probe, **options):
        return WRAPPERS[name](leave_one_out(batch, probe), batch, probe, **options)

    return rule


EVERY = {"cuts": "every:1"}
ONE = {**EVERY, "continuations": 1}
NUMBERS = {
    "leave_one_out": (leave_one_out, {}, 0, 1),
    "branch": (branch, ONE, 0, 1),
    "tree": (tree, ONE, 0, 1),
    "state_group": (state_group, {}, 0, 1),
    "critic": (critic, {}, 0, 1),
    "outcome_floor": (within("outcome_floor"), {}, 0, 1),
    "counterfactual, resample": (counterfactual, {**EVERY, "rest": "resample"}, 0, 1),
    "group_mean_std": (group_mean_std, {}, 0.155, 1),
    "max_rl": (max_rl, {}, 0.338, 1),
    "tree, inverse_sqrt": (tree, {**ONE, "weighting": "inverse_sqrt"}, 0.325, 0.984),
    "state_group, sum": (state_group, {"form": "sum"}, 0.852, 0.996),
    "critic, gamma": (critic, {"gamma": 0.9}, 0.082, 0.998),
    "critic, alpha": (critic, {"alpha": 0.5, "floor": 0.0}, 0.095, 0.997),
    "counterfactual": (counterfactual, EVERY, 0.333, 0.943),
    "privileged": (privileged, {}, 0.163, 0.999),
    "privileged, strength": (privileged, {"strength": 1.0}, 0.326, 0.998),
    "answer_progress": (answer_progress, {}, 0.255, 0.987),
    "answer_progress, alone": (answer_progress, {"outcome": False}, 0.849, 0.676),
    "fork_mask": (within("fork_mask"), {}, 0.582, 0.840),
    "fork_mask, half": (within("fork_mask"), {"keep": 0.5}, 0.244, 0.987),
    "confident_mask": (within("confident_mask"), {"below": 0.65}, 0.190, 0.986),
    "positive_only": (within("positive_only"), {}, 0.662, 1),
    "progressive_confidence": (within("progressive_confidence"), {}, 0.152, 0.994),
    "step_check": (within("step_check"), {}, 0.915, 0.983),
}
"""Rule, options, ||g - g'|| / ||g'|| and the cosine of g and g'; g' is the true gradient."""
DRAWING = ("branch", "tree", "counterfactual")
"""Rules that draw continuations: all draws of groups of three would be too many."""


@pytest.mark.parametrize("name", NUMBERS)
def test_the_bias_of_each_option(name):
    rule, options, bias, angle = NUMBERS[name]
    size = 2 if name.startswith(DRAWING) else 3
    found = LANGUAGE.rule_gradient(lambda batch, probe: rule(batch, Asked(probe), **options), size=size)
    true = LANGUAGE.true_gradient()
    assert difference(found, true) == pytest.approx(bias, abs=6e-4 if bias else 1e-6)
    # With one problem and rewards of 0 or 1 some rules are off by a factor alone.
    assert cosine(found, true) == pytest.approx(angle, abs=1e-9 if angle == 1 else 6e-4)
