"""Rewarded groups for the tests of credit rules."""

import numpy as np

from forkpoint.records import Group, Outcome, Problem, Reward, Rollout, StopReason, Verdict


def rollout(name, mask):
    return Rollout(
        id=name,
        group_id="g",
        stage="rl",
        update=0,
        index=0,
        problem_key="0",
        prompt_tokens=np.zeros(1, np.int32),
        tokens=np.zeros(len(mask), np.int32),
        behavior_logprobs=np.zeros(len(mask), np.float32),
        loss_mask=np.array(mask, bool),
        temperature=1.0,
        text="",
        stop_reason=StopReason.EOS,
        seed="0",
    )


def group(rewards, masks):
    return Group(
        problem=Problem(task="t", key="ab", prompt="", answer=""),
        rollouts=tuple(rollout(str(i), mask) for i, mask in enumerate(masks)),
        verdicts=(Verdict(outcome=Outcome.WRONG, correct=False),) * len(masks),
        rewards=tuple(Reward(total=reward) for reward in rewards),
    )
