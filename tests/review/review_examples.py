"""A probe of characters and hand-made walks on one star, for reviews."""

import numpy as np

from forkpoint.records import Group, Outcome, Problem, Rollout, StopReason, Verdict
from forkpoint.tasks.paths import Settings, build

# Branches a-b-c (goal c), d-e, f-g around the center s.
STAR = Problem(
    task="paths",
    key="0",
    prompt="sa ba cb ds de fs gf|s>c:",
    answer="abc",
    metadata={"branches": [["a", "b", "c"], ["d", "e"], ["f", "g"]]},
)


class Characters:
    """Encodes characters by their code points and verifies by a task; samples nothing."""

    def __init__(self, task=None):
        self.task = build(Settings(branches=3, depth=3, marks=True)) if task is None else task
        self.verified = 0

    def encode(self, text):
        return np.array([ord(character) for character in text], np.int32)

    def decode(self, tokens):
        return "".join(chr(token) for token in tokens)

    def verify(self, problem, rollouts):
        self.verified += len(rollouts)
        return [self.task.verify(problem, rollout) for rollout in rollouts]


def walk(text, *, index=0, mask=None, problem=STAR):
    count = len(text)
    return Rollout(
        id=f"r{index}-{text}", group_id="g", stage="rl", update=1, index=index, problem_key=problem.key,
        prompt_tokens=np.array([1, 2], np.int32), tokens=np.array([ord(each) for each in text], np.int32),
        behavior_logprobs=np.zeros(count, np.float32),
        loss_mask=np.ones(count, np.bool_) if mask is None else np.array(mask, np.bool_),
        temperature=1.0, text=text, stop_reason=StopReason.STOP, seed="ff",
    )  # fmt: skip


def group_of(*rollouts, probe, problem=STAR):
    return Group(problem=problem, rollouts=rollouts, verdicts=tuple(probe.verify(problem, rollouts)))


def verdict(correct):
    return Verdict(outcome=Outcome.CORRECT if correct else Outcome.WRONG, correct=correct)
