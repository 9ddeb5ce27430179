"""The hint gate: paired problems, exact p-values by hand, and what it says."""

from dataclasses import replace

import pytest
from coin_examples import CoinProbe, Steps, judged, problem, text_of, written

from forkpoint.records import Outcome, Verdict
from forkpoint.review.gate import hint_gate
from forkpoint.seeds import Key


class Told(Steps):
    def privileged_prompt(self, problem, knowledge):
        return f"{problem.prompt}|{knowledge}"


class HintProbe(CoinProbe):
    """Solves the named problems without, and with, a hint; cannot judge others."""

    def __init__(self, plain="", hinted="", unjudged="", task=None):
        super().__init__(None, task=task or Told())
        self.plain, self.hinted, self.unjudged = plain, hinted, unjudged

    def sample(self, requests):
        self.asked += requests
        assert len({request.key for request in requests}) == len(requests)
        return [
            replace(written(self._text(request)), prompt_tokens=request.prompt_tokens, problem_key=request.problem.key)
            for request in requests
        ]

    def _text(self, request):
        name = request.problem.prompt[0]
        told = "|" in text_of(request.prompt_tokens)
        return f"#{int(name in (self.hinted if told else self.plain))}\n"

    def verify(self, problem, rollouts):
        if problem.prompt[0] in self.unjudged:
            return [judged(True), Verdict(outcome=Outcome.ERROR, correct=None)]
        return super().verify(problem, rollouts)


def gate(names="abcdefgh", **changes):
    probe = HintProbe(**changes)
    found = hint_gate([problem(name) for name in names], probe, key=Key.root(2), max_new_tokens=9)
    return found, probe


def test_a_hint_that_helps():
    # Five problems are solved with the hint alone, none without it alone: p = 2^-5.
    found, probe = gate(plain="ab", hinted="abcdefg")
    assert found.open
    assert (found.hinted, found.plain) == ((7, 8), (2, 8))
    assert found.p_value == 2**-5
    assert found.line == "7 of 8 solved with the answer in the prompt, 2 without (p = 0.031): the model uses hints."
    assert {request.max_new_tokens for request in probe.asked} == {9}
    assert {request.stop for request in probe.asked} == {("\n",)}
    assert {text_of(request.prompt_tokens) for request in probe.asked[:2]} == {"a>", "a>|7"}


@pytest.mark.parametrize(
    ("plain", "hinted", "p_value"),
    [("ab", "abcdef", 2**-4), ("a", "bcdefg", 8 / 2**7), ("abcdefgh", "abcdefgh", 1.0), ("abcdefg", "ab", 1.0)],
)
def test_hints_that_do_not_help_enough(plain, hinted, p_value):
    found, _ = gate(plain=plain, hinted=hinted)
    assert not found.open
    assert found.p_value == p_value
    assert "the model cannot use hints; source `policy` is off." in found.line
    assert "\n" not in found.line


def test_what_cannot_be_judged_is_left_out():
    found, _ = gate(plain="", hinted="abcdef", unjudged="f")
    assert (found.hinted, found.plain, found.p_value) == ((5, 7), (0, 7), 2**-5)


def test_nothing_to_tell_and_nobody_to_ask():
    found, probe = gate(hinted="abcdefgh", task=Steps())
    assert not found.open
    assert "no privileged_prompt" in found.line
    assert probe.asked == []
    assert not gate(names="")[0].open
