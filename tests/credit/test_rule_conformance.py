"""`check_credit_rule` on every rule of the table that needs no continuations; those are in test_branch_gradients."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from signal_examples import SignalProbe, batch_of, problem, rewarded_group, written

from forkpoint.conformance import check_credit_rule
from forkpoint.credit import CREDIT_RULES
from forkpoint.records import Credit, frozen_array

CONTINUED = {"branch", "tree", "counterfactual"}
"""Checked with a policy, a sampler and a verifier."""


class Task:
    """Steps of two characters, a state, an answer to ask for, a place for knowledge."""

    answer_lead = "#"

    def cut_points(self, problem, rollout):
        return range(0, len(rollout.tokens), 2)

    def early_answer(self, problem, transcript):
        return f"#{problem.answer}"

    def privileged_prompt(self, problem, knowledge):
        return f"{problem.prompt}|{knowledge}"

    def solve(self, problem):
        return f"b{problem.answer}"

    def state(self, problem, transcript):
        return str(len(transcript))


class Probe(SignalProbe):
    """Also knows values: a number of each token."""

    def values(self, rollouts):
        return [frozen_array(0.1 + 0.05 * rollout.tokens, np.float32) for rollout in rollouts]


def chance(prompt, text):
    return [-1.0 + 0.4 * ("|" in prompt) + 0.01 * len(prompt) for _ in text]


def batch():
    """Two groups of three with masks, of problems of their own; one rollout of each is right."""
    groups = []
    for name, texts in (("c", ("bc", "cde", "defg")), ("d", ("hi", "hij", "hijk"))):
        asked = replace(problem(answer="1", prompt=name), key=name)
        rollouts = [written(text, prompt=name, logprobs=[-1.0] * len(text)) for text in texts]
        masked = replace(rollouts[2], loss_mask=frozen_array([True, True, False, True], np.bool_))
        made = [replace(rollout, group_id=name, problem_key=name) for rollout in (*rollouts[:2], masked)]
        groups.append(rewarded_group(made, [1.0, 0.0, 0.0], of=asked))
    return batch_of(*groups)


@pytest.mark.parametrize("name", sorted(set(CREDIT_RULES) - CONTINUED))
def test_our_rules_pass(name):
    probe = Probe(Task(), chance)
    assert check_credit_rule(CREDIT_RULES[name], batch(), probe) == []
    credits = CREDIT_RULES[name](batch(), probe)
    assert any(credit.advantages.any() for credit in credits)


def test_a_rule_that_depends_on_chance_or_on_the_order_of_groups_is_found():
    calls = []

    def moody(batch, probe):
        calls.append(probe)
        return [
            Credit(advantages=frozen_array(rollout.loss_mask * float(len(calls)), np.float32), rule="x")
            for rollout in batch.rollouts
        ]

    probe = SimpleNamespace()
    assert check_credit_rule(moody, batch(), probe) == ["other advantages when asked again"]
    assert calls == [probe, probe]

    def first(batch, probe):
        return [
            Credit(advantages=frozen_array(rollout.loss_mask * float(place), np.float32), rule="x")
            for place, rollout in enumerate(batch.rollouts)
        ]

    assert check_credit_rule(first, batch()) == ["other advantages when the groups come in another order"]
