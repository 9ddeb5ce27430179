"""A task of written steps and a probe whose continuations are coins, for the tests of repair and verification."""

from dataclasses import replace

import numpy as np

from forkpoint.errors import ModelError
from forkpoint.records import EditKind, Group, Outcome, Problem, Rollout, StopReason, Verdict, frozen_array
from forkpoint.review.postmortem import make_edit
from forkpoint.seeds import Key, content_hash

ALPHABET = "abcdefghijklmnopqrstuvwxyz0123456789#;|>?=\n"


def codes(text):
    try:
        return frozen_array([ALPHABET.index(character) for character in text], np.int32)
    except ValueError:
        raise ModelError(f"outside the alphabet: {text!r}") from None


def text_of(tokens):
    return "".join(ALPHABET[token] for token in tokens)


def problem(name="p", answer="7"):
    return Problem(task="coins", key=Key.root(0).child(name).hex[:16], prompt=f"{name}>", answer=answer)


def written(text, *, name="r", of=None, spans=(), reason=StopReason.STOP):
    count = len(text)
    return Rollout(
        id=name, group_id="g", stage="rl", update=3, index=0, problem_key=(of or problem()).key,
        prompt_tokens=codes((of or problem()).prompt), tokens=codes(text), temperature=1.0, text=text,
        stop_reason=reason, seed="0", spans=spans,
        behavior_logprobs=frozen_array(np.full(count, -0.5), np.float32),
        loss_mask=frozen_array(np.ones(count), np.bool_),
    )  # fmt: skip


def judged(correct):
    return Verdict(outcome=Outcome.CORRECT if correct else Outcome.WRONG, correct=correct, reason="it says so")


def group(*rollouts, of=None):
    verdicts = tuple(judged("#1" in rollout.text) for rollout in rollouts)
    return Group(problem=of or problem(), rollouts=rollouts, verdicts=verdicts)


def fix(rollout, start, end, text, source="model"):
    return make_edit(rollout.id, EditKind.FIX, start, end, text, source)


class Steps:
    """Texts of steps that end in `;`, then `#` and a digit, then the end of the line."""

    def __init__(self, wrong=()):
        self.wrong = wrong

    def cut_points(self, problem, rollout):
        return [0, *(i + 1 for i, character in enumerate(rollout.text[:-1]) if character == ";")]

    def stop(self, problem):
        return ("\n",)

    def wrong_steps(self, problem, text):
        return [place for place, step in enumerate(text.split(";")) if step in self.wrong]


class CoinProbe:
    """Continues a prefix with a step where none was put, then with `#1` for a success by `value(prefix text)`.

    A fix is known by the texts after which `value` is asked; `unusable(index)` names continuations that the verifier
    cannot judge.
    """

    def __init__(self, value, *, task=None, own_steps=("own;",), unusable=lambda index: False, length=0):
        self.value, self.task, self.own_steps, self.unusable, self.length = (
            value, task or Steps(), own_steps, unusable, length,
        )  # fmt: skip
        self.asked, self.branches, self.verified, self.sampled = [], 0, 0, 0

    def branch(self, requests):
        self.branches += 1
        self.asked += requests
        names = [self._name(request) for request in requests]
        assert len(set(names)) == len(names), "two requests of one call draw the same rollout"
        return [self._continued(request, name) for request, name in zip(requests, names, strict=True)]

    def _name(self, request):
        prefix = b"" if request.prefix is None else request.prefix.tobytes()
        return (request.purpose, request.rollout.id, prefix.hex(), request.prefix_length, request.index)

    def _continued(self, request, name):
        own = request.prefix is None
        tokens = request.rollout.tokens[: request.prefix_length] if own else request.prefix
        assert len(tokens) == request.prefix_length
        before = text_of(tokens)
        digest = content_hash(*name, size=16)
        coin, pick = int(digest[:16], 16) / 2**64, int(digest[16:], 16)
        step = self.own_steps[pick % len(self.own_steps)] if own else ""
        success = coin < self.value(before, request.purpose)
        text = before + step + "z" * self.length + f"#{int(success)}\n"
        made = written(text, name=digest)
        mask = np.arange(len(text)) >= request.prefix_length
        self.sampled += int(mask.sum())
        return replace(made, loss_mask=frozen_array(mask, np.bool_), index=request.index)

    def verify(self, problem, rollouts):
        self.verified += len(rollouts)
        return [self._verdict(rollout) for rollout in rollouts]

    def _verdict(self, rollout):
        if self.unusable(rollout.index):
            return Verdict(outcome=Outcome.ABSTAINED, correct=None)
        return judged(rollout.text.endswith("#1\n"))

    def encode(self, text):
        return codes(text)

    def decode(self, tokens):
        return text_of(tokens)

    def encode_prompt(self, prompt):
        return codes(prompt)
