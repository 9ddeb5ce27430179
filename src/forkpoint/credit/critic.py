"""Credit from a critic's state values: generalized advantage estimation, one advantage for each token.

Letters: T trained tokens of a rollout, R rollouts.  V_t is the critic's value of the state before token t; after the
last token the episode is over and worth 0, also where the budget ran out: the objective counts no reward after it.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from forkpoint.probe import Probe
from forkpoint.records import Batch, Bools, Credit, Reward, Rollout, Verdict, frozen_array

Array = NDArray[np.float64]


def gae_advantages(rewards: Array, values: Array, *, gamma: float = 1.0, lam: float | Array = 1.0) -> Array:
    """Generalized advantages, shape [..., T] as rewards and values; the last axis is time.

    delta_t = r_t + gamma V_{t+1} - V_t,   A_t = delta_t + gamma lam A_{t+1},   V_T = A_T = 0    (arXiv 1506.02438)

    `lam` is one number, or one for each rollout, shape [...].
    Rollouts of unequal length may share an array: rewards and values of 0 after an end are advantages of 0.
    With gamma = lam = 1 it is the reward to go minus V_t, and adds no bias whatever the values.

    Raises:
        ValueError: gamma or lam outside [0, 1], or arrays of unequal shape.

    >>> gae_advantages(np.array([0.0, 1.0]), np.array([0.5, 0.25]), lam=1.0).tolist()
    [0.5, 0.75]
    """
    _check(gamma, lam)
    if rewards.shape != values.shape:
        raise ValueError(f"critic: rewards of shape {rewards.shape} but values of shape {values.shape}.")
    advantages = np.zeros(rewards.shape)
    following = np.zeros(rewards.shape[:-1])
    for t in range(rewards.shape[-1] - 1, -1, -1):
        after = values[..., t + 1] if t + 1 < rewards.shape[-1] else 0.0
        following = rewards[..., t] + gamma * after - values[..., t] + gamma * lam * following
        advantages[..., t] = following
    return advantages


def _check(gamma: float, lam: float | Array) -> None:
    for name, value in (("gamma", gamma), ("lam", lam)):
        if not np.all((np.asarray(value) >= 0) & (np.asarray(value) <= 1)):
            raise ValueError(f"critic: {name} = {value} must lie in [0, 1].")


def adaptive_lambda(lengths: Array, *, alpha: float, floor: float = 0.95) -> Array:
    """The lambda of rollouts of these lengths in trained tokens, shape as `lengths`.

    lam(l) = max(floor, 1 - 1 / (alpha l))    (arXiv 2504.05118, with alpha = 0.05 and no floor)

    An error of a value then reaches back over alpha l tokens, a fixed share of the rollout.  Without the floor lambda
    would be 0 or less below 1 / alpha tokens and hardly more for a while after: the shortest rollouts, whose rewards
    to go are noisy least, would lean on the values most.

    Raises:
        ValueError: alpha not above 0, or floor outside [0, 1].

    >>> adaptive_lambda(np.array([10.0, 400.0, 2000.0]), alpha=0.05).tolist()
    [0.95, 0.95, 0.99]
    """
    if not alpha > 0:
        raise ValueError(f"critic: alpha = {alpha} must be above 0.")
    if not 0 <= floor <= 1:
        raise ValueError(f"critic: floor = {floor} must lie in [0, 1].")
    return np.maximum(floor, 1.0 - 1.0 / (alpha * np.maximum(lengths, 1.0)))


def token_rewards(rollout: Rollout, verdict: Verdict, reward: Reward) -> Array:
    """The reward of each trained token, shape [T]; they sum to the total.

    A correct verdict is paid at the last trained token.  The rest of the total, a price for length, is spread evenly:
    so it is for a length penalty, whose price of each token is the same.
    """
    count = int(np.count_nonzero(rollout.loss_mask))
    if not count:
        return np.zeros(0)
    paid = float(verdict.correct is True)
    rewards = np.full(count, (reward.total - paid) / count)
    rewards[-1] += paid
    return rewards


def batch_token_rewards(batch: Batch) -> list[Array]:
    """The `token_rewards` of each rollout of `batch.rollouts`.

    Raises:
        ValueError: a group without a reward for each rollout.
    """
    return [
        token_rewards(rollout, verdict, reward)
        for group in batch.groups
        for rollout, verdict, reward in zip(group.rollouts, group.verdicts, group.rewards, strict=True)
    ]


def right_padded(rows: list[Array]) -> Array:
    """The rows as one array [R, T], zeros after their ends."""
    table = np.zeros((len(rows), max(map(len, rows), default=0)))
    for place, row in enumerate(rows):
        table[place, : len(row)] = row
    return table


def rewards_to_go(batch: Batch, *, gamma: float = 1.0) -> list[Array]:
    """The discounted reward from each trained token on, of each rollout: what a value estimates.

    Raises:
        ValueError: a group without a reward for each rollout.
    """
    rewards = batch_token_rewards(batch)
    table = right_padded(rewards)
    found = gae_advantages(table, np.zeros_like(table), gamma=gamma, lam=1.0)
    return [row[: len(mine)] for row, mine in zip(found, rewards, strict=True)]


def critic(
    batch: Batch,
    probe: Probe,
    *,
    gamma: float = 1.0,
    lam: float = 1.0,
    alpha: float | None = None,
    floor: float = 0.95,
) -> list[Credit]:
    """The credit of each rollout of `batch.rollouts`, by `gae_advantages` with the values of `probe.values`.

    With `alpha` each rollout has the lambda of `adaptive_lambda`, and `lam` stays away.  The recorded baseline is the
    value before the first trained token.

    Raises:
        ValueError: an option out of bounds, or both `lam` and `alpha`; a group without a reward for each rollout; no
            critic to ask.
    """
    masks = [rollout.loss_mask for rollout in batch.rollouts]
    lambdas = _lambdas(masks, lam=lam, alpha=alpha, floor=floor)
    _check(gamma, lambdas)
    if not batch.groups:
        return []
    values = [found.astype(np.float64) for found in probe.values(batch.rollouts)]
    trained = [found[mask] for found, mask in zip(values, masks, strict=True)]
    rewards = batch_token_rewards(batch)
    advantages = gae_advantages(right_padded(rewards), right_padded(trained), gamma=gamma, lam=lambdas)
    made = []
    for mask, mine, value in zip(masks, advantages, trained, strict=True):
        spread = np.zeros(len(mask))
        spread[mask] = mine[: len(value)]
        baseline = float(value[0]) if len(value) else None
        made.append(Credit(advantages=frozen_array(spread, np.float32), rule="critic", baseline=baseline))
    return made


def _lambdas(masks: Sequence[Bools], *, lam: float, alpha: float | None, floor: float) -> float | Array:
    if alpha is None:
        return lam
    if lam != 1.0:
        raise ValueError(f"critic: lam = {lam} and alpha = {alpha} both say what lambda is: give one.")
    lengths = np.array([np.count_nonzero(mask) for mask in masks], dtype=np.float64)
    return adaptive_lambda(lengths, alpha=alpha, floor=floor)
