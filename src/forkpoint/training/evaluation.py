"""A policy on held-out problems: the same problems for every arm, so that results pair up."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from forkpoint.policies.texts import Texts
from forkpoint.probe import Probe
from forkpoint.records import Group, Problem
from forkpoint.seeds import Key
from forkpoint.store import Evaluation, evaluation_results
from forkpoint.tasks.protocol import Task
from forkpoint.training.rollouts import SamplePlan, judged_groups
from forkpoint.verifiers.breaker import check_share


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationPlan:
    """What to evaluate on."""

    task: Task
    problems: tuple[Problem, ...]
    key: Key
    """Names the run and the purpose."""
    samples: int
    temperature: float
    max_new_tokens: int
    max_unusable: float = 1.0
    """Share of the verdicts that may be ERROR or ABSTAINED; more raise VerifierError."""


def evaluate(
    probe: Probe, texts: Texts, plan: EvaluationPlan, *, stage: str, update: int, name: str, keep: int = 0
) -> tuple[Evaluation, dict[str, float]]:
    """Every sample's result, with the first `keep` groups as evidence, and the means over the samples."""
    draws = SamplePlan(
        key=plan.key.child(stage, name),
        stage=stage,
        update=update,
        group_size=plan.samples,
        max_new_tokens=plan.max_new_tokens,
        temperature=plan.temperature,
    )
    groups = judged_groups(probe, plan.task, texts, plan.problems, draws)
    check_share([verdict for group in groups for verdict in group.verdicts], limit=plan.max_unusable)
    kept = {rollout.id for group in groups[:keep] for rollout in group.rollouts}
    results = [
        result if result.rollout_id in kept else replace(result, rollout_id=None)
        for result in evaluation_results(groups)
    ]
    evaluation = Evaluation(name=name, results=results, groups=groups[:keep], problems=plan.problems)
    return evaluation, means(groups)


def means(groups: Sequence[Group]) -> dict[str, float]:
    """Share of correct rollouts of those that could be judged (left out where none could), mean length in tokens."""
    judged = [verdict.correct for group in groups for verdict in group.verdicts if verdict.correct is not None]
    lengths = [int(rollout.loss_mask.sum()) for group in groups for rollout in group.rollouts]
    found = {"evaluation_length": float(np.mean(lengths)) if lengths else 0.0}
    return found if not judged else {"evaluation_correct": float(np.mean(judged)), **found}
