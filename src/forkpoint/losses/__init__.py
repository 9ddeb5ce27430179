"""Objectives: per-token terms in, one scalar to minimize and additive diagnostics out."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TypeAlias

from forkpoint.losses.aggregation import Aggregation, token_weights
from forkpoint.losses.divergence import k3_metric, sequence_k2, token_k2
from forkpoint.losses.imitation import cross_entropy
from forkpoint.losses.mixed import mixed_policy
from forkpoint.losses.policy_gradient import clipped_surrogate, dppo_tv, reinforce
from forkpoint.records import LossOutput

Loss: TypeAlias = Callable[..., LossOutput]
"""(policy_logprobs, behavior_logprobs, advantages, weights, *, knobs) -> LossOutput."""

LOSSES: Mapping[str, Loss] = MappingProxyType(
    {
        "reinforce": reinforce,
        "clipped_surrogate": clipped_surrogate,
        "dppo_tv": dppo_tv,
        "mixed_policy": mixed_policy,
    }
)
"""The policy-gradient losses by the name that a recipe uses."""

OFF_POLICY_LOSSES: frozenset[str] = frozenset({"clipped_surrogate", "dppo_tv"})
"""The losses that allow several updates on one batch of rollouts."""

EXPERT_LOSS = "mixed_policy"
"""The one loss that accepts an expert's tokens."""

__all__ = [
    "EXPERT_LOSS",
    "LOSSES",
    "OFF_POLICY_LOSSES",
    "Aggregation",
    "Loss",
    "clipped_surrogate",
    "cross_entropy",
    "dppo_tv",
    "k3_metric",
    "mixed_policy",
    "reinforce",
    "sequence_k2",
    "token_k2",
    "token_weights",
]
