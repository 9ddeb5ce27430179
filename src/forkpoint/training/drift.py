"""What a batch says of drift on tokens without credit: the metrics that the guard of `doctor.drift` watches.

Letters: P groups, G rollouts of one.  Log-probabilities are in nats, of the policy that sampled.
"""

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from forkpoint.records import Credit, Group, Rollout

Logs: TypeAlias = NDArray[np.float64]
IDLE = 1e-3
"""A token has no credit where |advantage| is at most this share of the largest of its rollout."""
SPREAD, CORRECT, ERROR = "drift_spread", "drift_correct", "drift_correct_error"
SHARE, IDLE_LOGPROB, CREDITED_LOGPROB = "drift_idle_share", "drift_idle_logprob", "drift_credited_logprob"
METRICS = (SPREAD, CORRECT, ERROR, SHARE, IDLE_LOGPROB, CREDITED_LOGPROB)
"""Names in the store."""


def drift_metrics(groups: Sequence[Group], credits: Sequence[Credit]) -> dict[str, float]:
    """The metrics of one batch; the last three only where advantages vary within a rollout, so not under a group rule.

    `drift_spread`          mean over groups of p(1 - p) G/(G - 1), p the share of correct rollouts
    `drift_correct`         mean over groups of p
    `drift_correct_error`   its standard error over groups; problems differ, so it exceeds the binomial one
    `drift_idle_share`      share of trained tokens without credit, over rollouts that have some
    `drift_idle_logprob`    mean log-probability of these tokens: minus the estimate of their entropy
    `drift_credited_logprob`  the same of the other trained tokens of these rollouts

    `credits` are in the order of the groups' rollouts; a batch without groups has no metrics.
    """
    if not groups:
        return {}
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    pairs = list(zip(rollouts, credits, strict=True))
    dense = any(_varies(rollout, credit) for rollout, credit in pairs)
    return {**_outcomes(groups), **(_tokens([_split(*pair) for pair in pairs]) if dense else {})}


def _varies(rollout: Rollout, credit: Credit) -> bool:
    trained = credit.advantages[rollout.loss_mask]
    return len(trained) > 0 and float(np.ptp(trained)) > IDLE * float(np.abs(trained).max())


def _split(rollout: Rollout, credit: Credit) -> tuple[Logs, Logs]:
    """The log-probabilities of the trained tokens without credit, and of those with; nothing without any credit."""
    size = np.abs(credit.advantages)
    credited = rollout.loss_mask & (size > IDLE * float(size.max(initial=0.0)))
    idle = rollout.loss_mask & ~credited & bool(credited.any())
    logs = rollout.behavior_logprobs.astype(np.float64)
    return logs[idle], logs[credited]


def _outcomes(groups: Sequence[Group]) -> dict[str, float]:
    sizes = np.array([len(group.rollouts) for group in groups], np.float64)
    shares = np.array([np.mean([verdict.correct is True for verdict in group.verdicts]) for group in groups])
    spread = shares * (1 - shares) * sizes / np.maximum(1, sizes - 1)
    error = shares.std(ddof=1) / np.sqrt(len(groups)) if len(groups) > 1 else np.sqrt(spread[0] / sizes[0])
    return {SPREAD: float(spread.mean()), CORRECT: float(shares.mean()), ERROR: float(error)}


def _tokens(split: Sequence[tuple[Logs, Logs]]) -> dict[str, float]:
    idle, credited = (np.concatenate([pair[side] for pair in split]) for side in (0, 1))
    found = {SHARE: len(idle) / (len(idle) + len(credited)), CREDITED_LOGPROB: float(credited.mean())}
    return found | ({IDLE_LOGPROB: float(idle.mean())} if len(idle) else {})
