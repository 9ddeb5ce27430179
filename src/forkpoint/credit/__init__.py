"""Advantages: which token of which rollout earned the reward."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TypeAlias

from forkpoint.credit.answer_progress import answer_progress
from forkpoint.credit.batch import batch_baseline
from forkpoint.credit.branch import branch
from forkpoint.credit.counterfactual import counterfactual
from forkpoint.credit.critic import critic
from forkpoint.credit.experts import with_experts
from forkpoint.credit.group import group_mean_std, leave_one_out, max_rl
from forkpoint.credit.privileged import privileged
from forkpoint.credit.state_group import state_group
from forkpoint.credit.survivors import survivors
from forkpoint.credit.tree import tree
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
        "branch": branch,
        "tree": tree,
        "counterfactual": counterfactual,
        "privileged": privileged,
        "answer_progress": answer_progress,
        "state_group": state_group,
    }
)
"""The credit rules by the name that a recipe uses."""

__all__ = [
    "CREDIT_RULES",
    "CreditRule",
    "answer_progress",
    "batch_baseline",
    "branch",
    "counterfactual",
    "critic",
    "group_mean_std",
    "leave_one_out",
    "max_rl",
    "privileged",
    "state_group",
    "survivors",
    "tree",
    "with_experts",
]
