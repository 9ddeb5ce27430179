"""The outcome reward: correct or not, or the score of a judge, less a price for length."""

import math
from typing import Literal, TypeAlias

import numpy as np

from forkpoint.probe import Probe
from forkpoint.records import Batch, Outcome, Reward, Rollout, Verdict

Pays: TypeAlias = Literal["correct", "score"]


def outcome_reward(
    verdict: Verdict, rollout: Rollout, *, pays: Pays = "correct", length_penalty: float = 0.0, max_new_tokens: int
) -> Reward:
    """The reward of one rollout.

    total = [correct] - length_penalty n / max_new_tokens, with n the trained tokens of the rollout

    Where the score is paid, it stands for [correct], and 0 for a truncated rollout; nothing else reads the score.
    What a truncated rollout counts as, its verdict says.

    Raises:
        ValueError: the verifier could not tell or failed (such rollouts leave their group before they have a reward);
            `length_penalty` negative or not finite; `max_new_tokens` below 1; a score is to be paid and there is none.
    """
    if not (length_penalty >= 0 and math.isfinite(length_penalty)):
        raise ValueError(f"outcome: length_penalty = {length_penalty} must be finite and at least 0.")
    if max_new_tokens < 1:
        raise ValueError(f"outcome: max_new_tokens = {max_new_tokens} must be at least 1.")
    if not verdict.usable or verdict.correct is None:
        raise ValueError(f"outcome: rollout {rollout.id} has the verdict '{verdict.outcome}', which has no reward.")
    if pays == "score" and verdict.score is None:
        raise ValueError(f"outcome: pays = 'score', but rollout {rollout.id} has a verdict without a score.")
    paid = float(verdict.correct)
    if pays == "score" and verdict.score is not None:
        paid = 0.0 if verdict.outcome is Outcome.TRUNCATED else verdict.score
    length = int(np.count_nonzero(rollout.loss_mask))
    return Reward(total=paid - length_penalty * length / max_new_tokens)


def outcome_rewards(
    batch: Batch, probe: Probe | None, *, pays: Pays = "correct", length_penalty: float = 0.0, max_new_tokens: int
) -> list[Reward]:
    """The `outcome_reward` of each rollout of `batch.rollouts`, in that order; asks the probe for nothing.

    Raises:
        ValueError: as `outcome_reward`; a group without a verdict for each rollout.
    """
    del probe
    return [
        outcome_reward(verdict, rollout, pays=pays, length_penalty=length_penalty, max_new_tokens=max_new_tokens)
        for group in batch.groups
        for rollout, verdict in zip(group.rollouts, group.verdicts, strict=True)
    ]
