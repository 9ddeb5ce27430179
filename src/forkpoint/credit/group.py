"""Credit from the rewards of a group alone: every trained token of a rollout gets the rollout's advantage.

Let r_i be the reward of rollout i among the G rollouts of one problem, and m their mean.
For a binary reward with success rate p, the expected gradient under `constant` aggregation is a factor times grad p:

- `leave_one_out`   1
- `max_rl`          sum_{k=1}^{G-1} (1 - p)^(k-1), which goes to 1 / p
- `group_mean_std`  about 1 / sqrt(p (1 - p)), less for small groups: hard and easy problems weigh more

A group whose rewards are all equal has advantages of exactly 0: rounding of the mean must not become a gradient.
"""

from collections.abc import Callable
from functools import partial

import numpy as np
from numpy.typing import NDArray

from forkpoint.probe import Probe
from forkpoint.records import Batch, Credit, Group, frozen_array


def leave_one_out_advantages(rewards: NDArray[np.float64]) -> NDArray[np.float64]:
    """The advantage of each rollout over the mean of the others, shape [G].

    A_i = r_i - mean of the other rewards = (r_i - m) G / (G - 1)    (arXiv 2402.14740)

    Raises:
        ValueError: fewer than two rewards, or one that is not finite.

    >>> leave_one_out_advantages(np.array([1.0, 0.0, 0.0])).tolist()
    [1.0, -0.5, -0.5]
    """
    rewards = _checked(rewards, "leave_one_out")
    if _all_equal(rewards):
        return np.zeros_like(rewards)
    return rewards - _mean_of_others(rewards)


def group_mean_std_advantages(
    rewards: NDArray[np.float64], *, epsilon: float = 1e-4, ddof: int = 1
) -> NDArray[np.float64]:
    """The standardized reward of each rollout, shape [G].

    A_i = (r_i - m) / (std + epsilon)    (GRPO, arXiv 2402.03300)

    `ddof` 1 divides by the sample standard deviation, `ddof` 0 by that of the population.

    Raises:
        ValueError: fewer than two rewards, one that is not finite, a negative epsilon, a ddof other than 0 or 1.
    """
    rewards = _checked(rewards, "group_mean_std")
    if epsilon < 0 or ddof not in (0, 1):
        raise ValueError(f"group_mean_std: epsilon = {epsilon} must be at least 0, ddof = {ddof} must be 0 or 1.")
    if _all_equal(rewards):
        return np.zeros_like(rewards)
    return (rewards - rewards.mean()) / (rewards.std(ddof=ddof) + epsilon)


def max_rl_advantages(rewards: NDArray[np.float64]) -> NDArray[np.float64]:
    """The reward of each rollout relative to the mean, shape [G]; zeros where the mean is 0.

    A_i = (r_i - m) / m    (MaxRL, arXiv 2602.02710)

    Since a group without success gives zeros, a group of G maximizes the likelihood to order G - 1, not G.

    Raises:
        ValueError: fewer than two rewards, or one that is negative or not finite.
    """
    rewards = _checked(rewards, "max_rl")
    if rewards.min() < 0:
        raise ValueError(f"max_rl: rewards must be at least 0, but one is {rewards.min()}.")
    if _all_equal(rewards):
        return np.zeros_like(rewards)
    return rewards / rewards.mean() - 1.0


def leave_one_out(batch: Batch, probe: Probe | None) -> list[Credit]:
    """The credit of each rollout of `batch.rollouts`, by `leave_one_out_advantages`; asks the probe for nothing.

    The baseline is the mean of the other rewards of the group.

    Raises:
        ValueError: a group of one, without a reward for each rollout, or with a reward that is not finite.
    """
    del probe
    return _credits(batch, "leave_one_out", leave_one_out_advantages, _mean_of_others)


def group_mean_std(batch: Batch, probe: Probe | None, *, epsilon: float = 1e-4, ddof: int = 1) -> list[Credit]:
    """The credit of each rollout of `batch.rollouts`, by `group_mean_std_advantages`; asks the probe for nothing.

    The baseline is the mean reward of the group.

    Raises:
        ValueError: as `leave_one_out`; a negative epsilon; a ddof other than 0 or 1.
    """
    del probe
    advantages = partial(group_mean_std_advantages, epsilon=epsilon, ddof=ddof)
    return _credits(batch, "group_mean_std", advantages, _mean)


def max_rl(batch: Batch, probe: Probe | None) -> list[Credit]:
    """The credit of each rollout of `batch.rollouts`, by `max_rl_advantages`; asks the probe for nothing.

    The baseline is the mean reward of the group.

    Raises:
        ValueError: as `leave_one_out`; a negative reward.
    """
    del probe
    return _credits(batch, "max_rl", max_rl_advantages, _mean)


def _credits(
    batch: Batch,
    rule: str,
    advantages: Callable[[NDArray[np.float64]], NDArray[np.float64]],
    baselines: Callable[[NDArray[np.float64]], NDArray[np.float64]],
) -> list[Credit]:
    """One credit for each rollout, group by group."""
    made = []
    for group in batch.groups:
        rewards = group_rewards(group, rule)
        values = zip(group.rollouts, advantages(rewards), baselines(rewards), strict=True)
        made += [
            Credit(
                advantages=frozen_array(np.where(rollout.loss_mask, advantage, 0.0), np.float32),
                rule=rule,
                baseline=float(baseline),
            )
            for rollout, advantage, baseline in values
        ]
    return made


def group_rewards(group: Group, rule: str) -> NDArray[np.float64]:
    """The total rewards of a group, shape [G]."""
    if len(group.rewards) != len(group.rollouts):
        raise ValueError(
            f"{rule}: problem {group.problem.key} has {len(group.rollouts)} rollouts but {len(group.rewards)} rewards."
        )
    return np.array([reward.total for reward in group.rewards], dtype=np.float64)


def _checked(rewards: NDArray[np.float64], rule: str) -> NDArray[np.float64]:
    """The rewards in float64, if a group rule can use them."""
    rewards = np.asarray(rewards, dtype=np.float64)
    if rewards.ndim != 1 or len(rewards) < 2:
        raise ValueError(f"{rule}: a group needs at least 2 rewards, but has shape {rewards.shape}.")
    if not np.isfinite(rewards).all():
        raise ValueError(f"{rule}: every reward must be finite, but they are {rewards.tolist()}.")
    return rewards


def _all_equal(rewards: NDArray[np.float64]) -> bool:
    return bool((rewards == rewards[0]).all())


def _mean_of_others(rewards: NDArray[np.float64]) -> NDArray[np.float64]:
    return (rewards.sum() - rewards) / (len(rewards) - 1)


def _mean(rewards: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.full(len(rewards), rewards.mean())
