"""Needs and costs of every rule: complete tables, formulas by hand, and the cost that a rule really has."""

import numpy as np
import pytest
from signal_examples import SignalProbe, batch_of, rewarded_group, written

from forkpoint.credit import CREDIT_RULES
from forkpoint.credit.answer_progress import answer_progress
from forkpoint.credit.bias import RULE_BIAS, WRAPPER_BIAS
from forkpoint.credit.masks import WRAPPERS
from forkpoint.credit.needs import (
    RULE_DEMANDS,
    WRAPPER_DEMANDS,
    Cost,
    Need,
    Prices,
    Shape,
    credit_cost,
    offered,
    unmet,
    workable,
)
from forkpoint.credit.privileged import privileged
from forkpoint.records import Problem
from forkpoint.seeds import Key
from forkpoint.tasks.arithmetic import Arithmetic
from forkpoint.tasks.countdown import Countdown
from forkpoint.tasks.dialect import Dialect
from forkpoint.tasks.keychain import KeyChain
from forkpoint.tasks.lab import Settings as LabSettings
from forkpoint.tasks.lab import build as build_lab
from forkpoint.tasks.paths import Settings as PathSettings
from forkpoint.tasks.paths import build as build_paths

SHAPE = Shape(tokens=20.0, prompt_tokens=10.0, steps=5.0, answer_tokens=2.0, group_size=4)


def test_every_rule_and_wrapper_is_in_the_tables():
    assert set(CREDIT_RULES) <= set(RULE_DEMANDS) == set(RULE_BIAS)
    assert set(WRAPPERS) == set(WRAPPER_DEMANDS) == set(WRAPPER_BIAS)


def cost(rule, **options):
    return credit_cost(rule, options, (), {}, SHAPE)


def spent(rule, **options):
    found = cost(rule, **options)
    return found.sampled, found.scored, found.verifier_calls


def test_costs_by_hand():
    assert cost("leave_one_out") == cost("state_group") == Cost()
    assert cost("privileged") == Cost(scored=30 / 20)
    assert cost("privileged", strength=0) == Cost()
    # Five questions: prompt 10, answer 2, and 0, 4, 8, 12, 16 tokens before.
    assert cost("answer_progress").scored == pytest.approx((5 * 12 + 40) / 20)
    # Cuts at 4, 8, 12, 16: what is left of 20 is 16 + 12 + 8 + 4, twice each.
    assert spent("branch", cuts="steps", continuations=2) == pytest.approx((2 * 40 / 20, 0, 2 * 4 / 20))
    assert spent("branch", cuts="steps:2", continuations=1) == pytest.approx(((12 + 4) / 20, 0, 2 / 20))
    assert spent("branch", cuts="every:8", max_cuts=1) == pytest.approx((4 * 12 / 20, 0, 4 / 20))
    assert spent("tree", cuts="every:10", continuations=3) == pytest.approx((3 * 10 / 20, 0, 3 / 20))
    assert cost("counterfactual").verifier_calls == pytest.approx(3 * 5 / 20)
    assert cost("counterfactual", alphabet="abcdef").verifier_calls == pytest.approx(6 * 5 / 20)
    assert cost("counterfactual", rest="resample").sampled == pytest.approx(3 * 40 / 20)
    assert cost("my.module:rule") is None


def test_unlikely_cuts_cost_at_most_a_cut_after_every_token():
    found = cost("branch", continuations=1)
    assert found.sampled == pytest.approx(sum(1 - k / 20 for k in range(1, 17)))
    assert found.verifier_calls == pytest.approx(16 / 20)


def test_wrappers_add_their_cost():
    found = credit_cost("privileged", {}, ("fork_mask", "progressive_confidence"), {}, SHAPE)
    assert found.scored == pytest.approx(1.5 + (5 * 12 + 40) / 20)
    prices = Prices(sampled=1.0, scored=0.5, verifier_call=2.0)
    assert Cost(sampled=1.0, scored=2.0, verifier_calls=3.0).token_equivalents(prices) == 8.0


class Even:
    """A step every four characters."""

    def cut_points(self, problem, rollout):
        return range(0, len(rollout.tokens), 4)

    def early_answer(self, problem, transcript):
        return "12"

    def privileged_prompt(self, problem, knowledge):
        return f"{problem.prompt}|{knowledge}"


def read_tokens(rule, prompt="abcdefghij"):
    """Tokens that pass a scoring forward for one of two rollouts of 20 tokens after a prompt of 10."""
    texts = ["klmnopqrstuvwxyzabcd", "zlmnopqrstuvwxyzabcd"]
    batch = batch_of(rewarded_group([written(text, prompt=prompt) for text in texts], [1.0, 0.0]))
    probe = SignalProbe(Even(), lambda prompt, text: np.full(len(text), -1.0))
    rule(batch, probe)
    return sum(len(prompt) + len(text) for prompt, text in probe.asked), probe


def test_formulas_are_what_the_rules_really_read():
    read, probe = read_tokens(answer_progress)
    # The question at the beginning is shared by the two, and read once.
    assert read + 12 == pytest.approx(2 * 20 * cost("answer_progress").scored)
    assert len(probe.asked) == 9
    read, _ = read_tokens(privileged)
    told = len("a|1")
    assert read == pytest.approx(2 * 20 * (told + 20) / 20)


def test_progressive_confidence_asks_at_most_six_times():
    many = Shape(tokens=60.0, prompt_tokens=10.0, steps=30.0, answer_tokens=2.0, group_size=4)
    found = WRAPPER_DEMANDS["progressive_confidence"].cost({}, many)
    assert found.scored == pytest.approx((6 * 12 + 6 * 25) / 60)


TASKS = {
    "paths": (build_paths(PathSettings()), {"state", "early_answer"}),
    "keychain": (KeyChain(), {"state", "privileged_prompt"}),
    "arithmetic": (Arithmetic(), {"state", "early_answer", "privileged_prompt", "step_check"}),
    "countdown": (Countdown(), {"privileged_prompt"}),
    "dialect": (Dialect(), {"state", "early_answer", "privileged_prompt"}),
    "lab": (build_lab(LabSettings()), {"state"}),
}
METHODS = {"state", "early_answer", "privileged_prompt", "step_check"}


@pytest.mark.parametrize("name", TASKS)
def test_what_our_tasks_offer(name):
    task, methods = TASKS[name]
    met = offered(task, task.problem(Key.root(0)), by_character=True, critic=False)
    assert met & METHODS == methods
    assert {Need.ANSWER_KEY, Need.CUT_POINTS, Need.CHARACTERS} <= met
    assert not met & {Need.REPLY, Need.CRITIC, Need.EXPERTS, Need.JUDGE}
    works = workable(RULE_DEMANDS, met)
    assert ("state_group" in works) == ("state" in methods)
    assert ("privileged" in works) == ("privileged_prompt" in methods)
    assert ("answer_progress" in works) == ("early_answer" in methods)
    assert {"leave_one_out", "branch", "tree"} <= set(works)


def test_needs_depend_on_options():
    assert unmet(RULE_DEMANDS["branch"], {"cuts": "every:4"}, []) == []
    assert unmet(RULE_DEMANDS["branch"], {"cuts": "steps:2"}, []) == [Need.CUT_POINTS]
    assert unmet(RULE_DEMANDS["counterfactual"], {"cuts": "every:1", "rest": "resample"}, []) == []
    assert unmet(RULE_DEMANDS["counterfactual"], {"cuts": "every:1"}, []) == [Need.CHARACTERS]
    assert unmet(RULE_DEMANDS["privileged"], {"knowledge": "sibling"}, [Need.PRIVILEGED_PROMPT]) == []
    assert unmet(RULE_DEMANDS["privileged"], {}, [Need.PRIVILEGED_PROMPT]) == [Need.ANSWER_KEY]


def test_a_problem_without_a_key_offers_none():
    keyless = Problem(task="t", key="1", prompt="a", answer="")
    assert Need.ANSWER_KEY not in offered(object(), keyless, by_character=False, critic=False)
    assert offered(object(), keyless, by_character=False, critic=True, experts=True) == {Need.CRITIC, Need.EXPERTS}
