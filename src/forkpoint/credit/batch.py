"""Plain REINFORCE: credit from the rewards of the whole batch, without groups."""

import numpy as np

from forkpoint.credit.group import group_rewards
from forkpoint.probe import Probe
from forkpoint.records import Batch, Credit, frozen_array


def batch_baseline(batch: Batch, probe: Probe | None) -> list[Credit]:
    """The credit of each rollout of `batch.rollouts`: its reward over the mean of all others of the batch.

    A_i = r_i - mean of the other rewards    (REINFORCE with a baseline, Williams 1992)

    Without bias: what the others got does not depend on what rollout i wrote.  Asks the probe for nothing.

    Raises:
        ValueError: a batch of one rollout, without a reward for each rollout, or with a reward that is not finite.
    """
    del probe
    if not batch.groups:
        return []
    rewards = np.concatenate([group_rewards(group, "batch_baseline") for group in batch.groups])
    if len(rewards) < 2 or not np.isfinite(rewards).all():
        raise ValueError(f"batch_baseline: needs at least 2 finite rewards, got {rewards.tolist()[:8]}.")
    baselines = (rewards.sum() - rewards) / (len(rewards) - 1)
    # Rewards that are all equal give exact zeros: rounding of the mean must not become a gradient.
    advantages = rewards - baselines if (rewards != rewards[0]).any() else np.zeros_like(rewards)
    return [
        Credit(
            advantages=frozen_array(np.where(rollout.loss_mask, advantage, 0.0), np.float32),
            rule="batch_baseline",
            baseline=float(baseline),
        )
        for rollout, advantage, baseline in zip(batch.rollouts, advantages, baselines, strict=True)
    ]
