"""Advantages: which token of which rollout earned the reward."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TypeAlias

from forkpoint.credit.batch import batch_baseline
from forkpoint.credit.critic import critic
from forkpoint.credit.experts import with_experts
from forkpoint.credit.group import group_mean_std, leave_one_out, max_rl
from forkpoint.credit.survivors import survivors
from forkpoint.records import Credit

CreditRule: TypeAlias = Callable[..., list[Credit]]
"""(batch, probe, *, knobs) -> one `Credit` for each rollout, in the order of `batch.rollouts`."""

CREDIT_RULES: Mapping[str, CreditRule] = MappingProxyType(
    {
        "leave_one_out": leave_one_out,
        "group_mean_std": group_mean_std,
        "max_rl": max_rl,
        "survivors": survivors,
        "critic": critic,
        "batch_baseline": batch_baseline,
        "with_experts": with_experts,
    }
)
"""The credit rules by the name that a recipe uses."""

__all__ = [
    "CREDIT_RULES",
    "CreditRule",
    "batch_baseline",
    "critic",
    "group_mean_std",
    "leave_one_out",
    "max_rl",
    "survivors",
    "with_experts",
]
