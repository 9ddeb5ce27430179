"""Self-distillation in an RL stage: teachers of a batch's rollouts, and their streams in the rows of an update."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from forkpoint.batching import Row, TeacherTargets
from forkpoint.config.distillation import Distillation
from forkpoint.config.recipe import RLStage
from forkpoint.credit.privileged import Told, told_prompts
from forkpoint.errors import TrainingError
from forkpoint.losses import token_weights
from forkpoint.policies.causal import CausalPolicy
from forkpoint.policies.protocol import Policy
from forkpoint.policies.teachers import teacher_targets
from forkpoint.probe import Probe
from forkpoint.records import Batch, Rollout, frozen_array

Teachers = Mapping[str, TeacherTargets]
"""What the teacher says of each rollout that has one, by the rollout's id."""


def batch_teachers(
    policy: Policy, batch: Batch, probe: Probe, *, stage: RLStage, told: Told | None = None
) -> dict[str, TeacherTargets]:
    """The targets of a batch's rollouts, under the weights as they are: the policy with knowledge in its prompt.

    Taken once for the batch, before it is split into updates, without gradient, at the temperature of the rollouts.
    `told`, where it is given, is what the teacher is told instead of the stage's knowledge.
    A rollout has none where there is nothing to tell, or where `where` leaves it out.

    Raises:
        TrainingError: the policy is no causal language model.
        ValueError: the task has no privileged_prompt.
    """
    settings = stage.distillation
    if settings is None or not batch.groups:
        return {}
    if not isinstance(policy, CausalPolicy):
        raise TrainingError("distillation: only a causal language model can be its own teacher.")
    verdicts = [verdict for group in batch.groups for verdict in group.verdicts]
    prompts = told_prompts(batch, probe, settings.knowledge if told is None else told)
    rows = {
        rollout.id: Row(prompt=prompt, tokens=rollout.tokens, loss_mask=rollout.loss_mask)
        for rollout, verdict, prompt in zip(batch.rollouts, verdicts, prompts, strict=True)
        if prompt is not None and rollout.loss_mask.any() and (settings.where == "all" or verdict.correct is not True)
    }
    targets = teacher_targets(
        policy, list(rows.values()), top_k=settings.top_k, temperature=stage.temperature,
        max_tokens=stage.max_batch_tokens,
    )  # fmt: skip
    return dict(zip(rows, targets, strict=True))


def taught_rows(
    rows: Sequence[Row],
    rollouts: Sequence[Rollout],
    prompt_ids: Sequence[int],
    teachers: Teachers,
    *,
    settings: Distillation,
    stage: RLStage,
) -> list[Row]:
    """The rows with their teachers and the weights of the distillation; rows beyond the rollouts stay as they are.

    A weight is `coefficient` times the stage's aggregation over the tokens that have a teacher: the term has a global
    count of its own.  With `alone` the advantages are 0.
    """
    masks = [rollout.loss_mask & (rollout.id in teachers) for rollout in rollouts]
    weights = token_weights(
        masks, prompt_ids[: len(rollouts)], aggregation=stage.aggregation, constant_length=stage.max_new_tokens
    )
    taught = [
        replace(
            row,
            distillation_weights=frozen_array(settings.coefficient * weight, np.float32),
            teacher=teachers.get(rollout.id),
            advantages=frozen_array(np.zeros(len(row.tokens)), np.float32) if settings.alone else row.advantages,
        )
        for row, rollout, weight in zip(rows, rollouts, weights, strict=False)
    ]
    return [*taught, *rows[len(rollouts) :]]
