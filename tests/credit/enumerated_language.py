"""A policy over short strings of `a` and `b`, every random choice of which can be enumerated: the oracle of rules.

The parameters are the logits of `b` after each prefix, and the gradient of a rule is exact: every group with every draw
of every continuation, with its probability.
"""

import itertools

import numpy as np

from forkpoint.records import Batch, Group, Outcome, Problem, Reward, Rollout, StopReason, Verdict, frozen_array

PROBLEM = Problem(task="toy", key="5", prompt="x", answer="")
LETTERS = "ab"


def rollout_of(text, *, name="0", logprobs=None, prefix=0, parent=None, mask=None):
    tokens = np.array([LETTERS.index(letter) for letter in text], np.int32)
    mask = np.arange(len(tokens)) >= prefix if mask is None else np.array(mask, bool)
    return Rollout(
        id=name, group_id="g", stage="rl", update=1, index=0, problem_key="5", parent_id=parent, prefix_length=prefix,
        prompt_tokens=frozen_array([7, 7], np.int32), tokens=frozen_array(tokens, np.int32),
        behavior_logprobs=frozen_array(np.zeros(len(tokens)) if logprobs is None else logprobs, np.float32),
        loss_mask=frozen_array(mask, np.bool_), temperature=1.0, text=text, stop_reason=StopReason.EOS, seed=name,
    )  # fmt: skip


def verdict_of(correct):
    if correct is None:
        return Verdict(outcome=Outcome.ABSTAINED, correct=None)
    return Verdict(outcome=Outcome.CORRECT if correct else Outcome.WRONG, correct=bool(correct))


def batch_of(rollouts, corrects, *, price=0.0):
    verdicts = tuple(verdict_of(correct) for correct in corrects)
    rewards = tuple(
        Reward(total=float(correct) - price * int(rollout.loss_mask.sum()))
        for rollout, correct in zip(rollouts, corrects, strict=True)
    )
    group = Group(problem=PROBLEM, rollouts=tuple(rollouts), verdicts=verdicts, rewards=rewards)
    return Batch(groups=(group,), update=1)


class ScriptedProbe:
    """Continues by a function of (request) -> whole text, judges by a function of the text, and counts."""

    task = None

    def __init__(self, continued, judged, task=None):
        self.continued, self.judged, self.task = continued, judged, task
        self.asked, self.branches, self.verifications = [], 0, 0
        self.texts = []

    def branch(self, requests):
        self.branches += 1
        self.asked += requests
        made = []
        for request in requests:
            kept = request.rollout.tokens[: request.prefix_length] if request.prefix is None else request.prefix
            start = "".join(LETTERS[token] for token in kept)
            text = self.continued(request, start)
            assert text.startswith(start)
            made.append(rollout_of(text, name="c", prefix=request.prefix_length, parent=request.rollout.id))
        return made

    def verify(self, problem, rollouts):
        assert problem == PROBLEM
        self.verifications += 1
        self.texts += [rollout.text for rollout in rollouts]
        return [verdict_of(self.judged(rollout.text)) for rollout in rollouts]

    def encode(self, text):
        return frozen_array([LETTERS.index(letter) for letter in text], np.int32)


class Language:
    """The policy, with the chance of `b` after each prefix, and which strings are right."""

    def __init__(self, chances, right, *, task=None):
        self.chances, self.right, self.task = chances, right, task
        self.places = {prefix: number for number, prefix in enumerate(chances)}

    def done(self, text):
        return text not in self.chances

    def strings(self, prefix=""):
        """Every whole string that begins with a prefix, with its probability given the prefix."""
        if self.done(prefix):
            return [(prefix, 1.0)]
        chance = self.chances[prefix]
        return [
            (text, share * rest)
            for letter, share in (("a", 1 - chance), ("b", chance))
            for text, rest in self.strings(prefix + letter)
        ]

    def judged(self, text):
        return text in self.right

    def value(self, prefix=""):
        return sum(share * (text in self.right) for text, share in self.strings(prefix))

    def scores(self, text):
        """The gradient of log pi of each letter, [T, parameters]."""
        table = np.zeros((len(text), len(self.places)))
        for place, letter in enumerate(text):
            table[place, self.places[text[:place]]] = (letter == "b") - self.chances[text[:place]]
        return table

    def logprobs(self, text):
        chances = [self.chances[text[:place]] for place in range(len(text))]
        return np.log([c if letter == "b" else 1 - c for c, letter in zip(chances, text, strict=True)])

    def true_gradient(self, price=0.0):
        return sum(
            share * ((text in self.right) - price * len(text)) * self.scores(text).sum(0)
            for text, share in self.strings()
        )

    def rule_gradient(self, rule, *, size=2, price=0.0):
        """The exact expectation of (1/G) sum_i sum_t A_it grad log pi_it under a rule (batch, probe) -> credits."""
        total = 0.0
        for chosen in itertools.product(self.strings(), repeat=size):
            share = float(np.prod([part for _, part in chosen]))
            texts = [text for text, _ in chosen]
            rollouts = [
                rollout_of(text, name=str(number), logprobs=self.logprobs(text)) for number, text in enumerate(texts)
            ]
            batch = batch_of(rollouts, [text in self.right for text in texts], price=price)
            for chance, credits in self._outcomes(rule, batch):
                gradient = sum(
                    credit.advantages.astype(np.float64) @ self.scores(text)
                    for credit, text in zip(credits, texts, strict=True)
                )
                total = total + share * chance * gradient / size
        return total

    def _outcomes(self, rule, batch):
        """The credits of a batch for every draw of the continuations, with its probability."""
        probe = ScriptedProbe(lambda request, start: self.strings(start)[0][0], self.judged, self.task)
        rule(batch, probe)
        starts = [
            "".join(LETTERS[token] for token in (r.rollout.tokens[: r.prefix_length] if r.prefix is None else r.prefix))
            for r in probe.asked
        ]
        for drawn in itertools.product(*(self.strings(start) for start in starts)):
            texts = iter([text for text, _ in drawn])
            scripted = ScriptedProbe(lambda request, start, texts=texts: next(texts), self.judged, self.task)
            yield float(np.prod([part for _, part in drawn])), rule(batch, scripted)


LANGUAGE = Language({"": 0.4, "a": 0.3, "b": 0.6, "aa": 0.7, "ba": 0.2}, right={"aab", "bb", "baa"})
"""Strings of random length: V("a") = .7 x .7 = .49, V("b") = .6 + .4 x .8 = .92, V("") = .6 x .49 + .4 x .92 = .662."""
INDEPENDENT = Language(
    {"": 0.4, "a": 0.3, "b": 0.3, "aa": 0.7, "ab": 0.7, "ba": 0.7, "bb": 0.7}, right={"aab", "abb", "baa"}
)
"""Three letters, each drawn as if the ones before it were not there."""


def difference(found, true):
    """||g - g'|| / ||g||."""
    return float(np.linalg.norm(found - true) / np.linalg.norm(true))


def cosine(found, true):
    return float(found @ true / np.linalg.norm(found) / np.linalg.norm(true))
