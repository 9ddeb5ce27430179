"""Reward arithmetic: the number that training uses, made from verdicts."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TypeAlias

from forkpoint.records import Reward
from forkpoint.rewards.outcome import outcome_reward, outcome_rewards

RewardRule: TypeAlias = Callable[..., list[Reward]]
"""(batch, probe, *, knobs) -> one `Reward` for each rollout, in the order of `batch.rollouts`."""

REWARD_RULES: Mapping[str, RewardRule] = MappingProxyType({"outcome": outcome_rewards})
"""The reward rules by the name that a recipe uses."""

__all__ = ["REWARD_RULES", "RewardRule", "outcome_reward", "outcome_rewards"]
