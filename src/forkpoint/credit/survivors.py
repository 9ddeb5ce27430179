"""Leave-one-out among the rollouts that are still going on: a baseline for each position, at no cost.

Letters: G rollouts of one problem, T positions.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from forkpoint.credit.group import group_rewards
from forkpoint.probe import Probe
from forkpoint.records import Batch, Credit, frozen_array


def survivor_advantages(rewards: NDArray[np.float64], lengths: Sequence[int]) -> NDArray[np.float64]:
    """The advantage of every position of every rollout, shape [G, T], 0 past a rollout's end.

    A_it = r_i - mean of r_j over the other rollouts j with more than t tokens; over all others where there is none

    Whether another rollout has more than t tokens does not depend on what rollout i writes at t, so the baseline adds
    no bias to the policy gradient (a time-dependent baseline: Williams 1992; Greensmith, Bartlett and Baxter 2004).
    Where long rollouts mostly fail, it takes the blame from tokens that came after all was lost.

    Raises:
        ValueError: fewer than 2 rewards, one that is not finite, or another number of lengths.

    >>> survivor_advantages(np.array([1.0, 1.0, 0.0]), [1, 2, 2]).tolist()
    [[0.5, 0.0], [0.5, 1.0], [-1.0, -1.0]]
    """
    count = len(rewards)
    if count < 2 or len(lengths) != count or not np.isfinite(rewards).all():
        raise ValueError(f"survivors: needs at least 2 finite rewards and their lengths, got {rewards.tolist()}.")
    alive = np.arange(max(lengths, default=0))[None] < np.asarray(lengths)[:, None]
    advantages = np.zeros(alive.shape)
    for i in range(count):
        # Differences first: equal rewards give exact zeros, whatever their mean rounds to.
        gaps = np.delete(rewards[i] - rewards, i)
        others = np.delete(alive, i, axis=0)
        living = others.sum(0)
        survivors = (gaps @ others) / np.maximum(living, 1)
        advantages[i] = np.where(living > 0, survivors, gaps.mean()) * alive[i]
    return advantages


def survivors(batch: Batch, probe: Probe | None) -> list[Credit]:
    """The credit of each rollout of `batch.rollouts`, by `survivor_advantages`; asks the probe for nothing.

    The recorded baseline is that of the first position: the mean reward of the others.
    """
    del probe
    made = []
    for group in batch.groups:
        rewards = group_rewards(group, "survivors")
        advantages = survivor_advantages(rewards, [len(rollout.tokens) for rollout in group.rollouts])
        for place, rollout in enumerate(group.rollouts):
            mine = np.where(rollout.loss_mask, advantages[place, : len(rollout.tokens)], 0.0)
            baseline = float(np.delete(rewards, place).mean())
            made.append(Credit(advantages=frozen_array(mine, np.float32), rule="survivors", baseline=baseline))
    return made
