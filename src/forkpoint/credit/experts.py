"""Credit of groups that hold an expert's solutions beside the sampled rollouts."""

import numpy as np

from forkpoint.credit.group import group_rewards
from forkpoint.probe import Probe
from forkpoint.records import Batch, Credit, frozen_array

EXPERT_REWARD = 1.0
"""An expert's solution is one that the verifier accepts."""


def with_experts(batch: Batch, probe: Probe | None, *, experts: int = 1) -> list[Credit]:
    """The credit of each rollout of `batch.rollouts` in groups that also hold `experts` accepted solutions.

    A_i = r_i - mean of the other G - 1 rewards and of `experts` rewards of 1    (the group of arXiv 2504.14945,
    leave-one-out, not divided by the standard deviation).  Asks the probe for nothing.
    A group without success has negative advantages, where `leave_one_out` has none: the expert beats them all.

    Raises:
        ValueError: `experts` below 1; a group without a reward for each rollout.
    """
    del probe
    if experts < 1:
        raise ValueError(f"with_experts: experts = {experts} must be at least 1.")
    made = []
    for group in batch.groups:
        rewards = group_rewards(group, "with_experts")
        baselines = (rewards.sum() - rewards + experts * EXPERT_REWARD) / (len(rewards) - 1 + experts)
        made += [
            Credit(
                advantages=frozen_array(np.where(rollout.loss_mask, reward - baseline, 0.0), np.float32),
                rule="with_experts",
                baseline=float(baseline),
            )
            for rollout, reward, baseline in zip(group.rollouts, rewards, baselines, strict=True)
        ]
    return made


def expert_advantage(rewards: np.ndarray, experts: int) -> float:
    """The advantage of an expert's solution among the sampled `rewards` and the other experts' ones.

    >>> expert_advantage(np.array([1.0, 0.0, 0.0]), 1)
    0.6666666666666667
    """
    others = len(rewards) + experts - 1
    return EXPERT_REWARD - (float(rewards.sum()) + (experts - 1) * EXPERT_REWARD) / others
