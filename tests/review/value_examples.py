"""A task whose values are written down and a probe whose continuations are coins with those values."""

from dataclasses import replace

import numpy as np

from forkpoint.records import Group, Outcome, Problem, Rollout, StopReason, Verdict, frozen_array
from forkpoint.seeds import Key

STEP = 3
"""Tokens of a step."""


class Chain:
    """Steps of three tokens."""

    def cut_points(self, problem, rollout):
        return range(0, len(rollout.tokens), STEP)


def problem(values, name="p"):
    """`values[k]` is the chance of a continuation from the beginning of step k."""
    key = Key.root(0).child(name).hex[:16]
    return Problem(task="chain", key=key, prompt=name, answer="", metadata={"values": tuple(values)})


def rollout(name, tokens, *, mask=None, **more):
    count = len(tokens)
    return Rollout(
        id=name, group_id="g", stage="rl", update=0, index=0, problem_key="0",
        prompt_tokens=frozen_array([0], np.int32),
        tokens=frozen_array(tokens, np.int32), behavior_logprobs=frozen_array(np.zeros(count), np.float32),
        loss_mask=frozen_array(np.ones(count) if mask is None else mask, np.bool_), text="",
        stop_reason=StopReason.STOP, seed="0", **({"temperature": 1.0} | more),
    )  # fmt: skip


def judged(correct):
    if correct is None:
        return Verdict(outcome=Outcome.ABSTAINED, correct=None)
    return Verdict(outcome=Outcome.CORRECT if correct else Outcome.WRONG, correct=correct)


def group(values, rollouts, correct, name="p"):
    return Group(problem=problem(values, name), rollouts=tuple(rollouts), verdicts=tuple(map(judged, correct)))


def alone(values, correct=False, name="r"):
    """One rollout with as many steps as values."""
    return group(values, [rollout(name, range(STEP * len(values)))], [correct], name=f"of-{name}")


class CoinProbe:
    """Continuations of `length` tokens in all, right with the value at their cut; keeps every request."""

    def __init__(self, *, seed=0, length=None, unusable=0.0, task=None):
        self.seed, self.length, self.unusable, self.task = seed, length, unusable, task or Chain()
        self.requests, self.branches, self.verified, self.sampled = [], 0, 0, 0

    def branch(self, requests):
        self.branches += 1
        self.requests += requests
        made = []
        for request in requests:
            parent, cut = request.rollout, request.prefix_length
            draws = Key.root(self.seed).child(request.purpose, parent.id, cut, request.index).uniforms(2)
            value = request.problem.metadata["values"][cut // STEP]
            total = max(cut + 1, self.length or len(parent.tokens))
            self.sampled += total - cut
            text = "unclear" if draws[1] < self.unusable else "right" if draws[0] < value else "wrong"
            tokens = np.concatenate([parent.tokens[:cut], np.full(total - cut, 99)])
            made.append(
                replace(rollout(f"{parent.id}-{cut}-{request.index}", tokens, mask=np.arange(total) >= cut), text=text)
            )
        return made

    def verify(self, problem, rollouts):
        self.verified += len(rollouts)
        return [judged({"right": True, "wrong": False, "unclear": None}[each.text]) for each in rollouts]
