"""What dense credit promises on this stage, from the drawn groups: only told, never sick."""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from forkpoint.batching import Row, sampled_row
from forkpoint.credit.influence import Dependence, Influence, Table, dependence, influence, overlap
from forkpoint.doctor.check import Check
from forkpoint.doctor.gradients import gradient
from forkpoint.doctor.subject import Judged, Subject
from forkpoint.errors import ForkpointError
from forkpoint.losses import reinforce
from forkpoint.policies.causal import CausalPolicy
from forkpoint.records import Bools, Credit, Rollout, SampledExample, frozen_array
from forkpoint.tasks.protocol import Interactive
from forkpoint.training.components import Objective

MOST_PARAMETERS = 5_000_000
"""Of a policy of which gradients are taken; the line shall cost no more than the checks."""
MOST_ROLLOUTS = 8
SHARED, READ = 0.1, 0.1
"""Overlap, and nats of dependence, that matter (docs/meter.md, Prediction)."""


def dense_credit(subject: Subject) -> Check:
    """Whether tokens that do not decide add noise that matters, and whether they are read."""
    drawn, loop = subject.judged[0], subject.loop
    text = isinstance(loop.policy, CausalPolicy) and not isinstance(loop.task, Interactive)
    if not text or loop.task.alphabet is None:
        return _told("unknown: tokens are no characters that could be swapped", float("nan"))
    try:
        found = influence(drawn.batch, loop.probe, by_character=True)
    except (ForkpointError, ValueError):
        # How rules refuse a batch: groups of one, rewards that no continuation could be given.
        return _told("unknown: the rewards of this stage allow no swaps", float("nan"))
    if found.rule != "counterfactual" or math.isnan(found.share):
        return _told("unknown: too few correct rollouts", float("nan"))
    shared = _overlap(subject, drawn, found)
    depends = dependence(drawn.batch, found, loop.probe)
    return _told(_words(found, shared, depends), shared)


def _told(words: str, value: float) -> Check:
    return Check(name="dense credit", did=words, value=value, bound=None, ok=True, remedy="")


def _words(found: Influence, shared: float, depends: Dependence | None) -> str:
    decide = f"{found.share:.0%} of tokens decide"
    if math.isnan(shared):
        return f"{decide}; overlap unknown"
    pays = "may pay" if shared >= SHARED else "hardly pays"
    is_read = depends is not None and depends.nats > READ
    read = "unknown" if depends is None else "read, unsafe without a floor" if is_read else "hardly read"
    rule = "leave_one_out" if shared < SHARED else "counterfactual with outcome_floor" if is_read else "counterfactual"
    return (
        f"{pays}: {decide}, overlap of the others with them as the number; the others are {read}; rule: {rule} "
        f"(head-room: forkpoint meter --predict)"
    )


def _overlap(subject: Subject, drawn: Judged, found: Influence) -> float:
    """The overlap over rollouts, filler's scores against those of tokens that decide; nan where it is not taken."""
    size = sum(parameter.numel() for parameter in subject.loop.policy.model.parameters())
    pairs = [
        (rollout, mask) for rollout, mask in zip(drawn.batch.rollouts, found.decides, strict=True) if mask is not None
    ][:MOST_ROLLOUTS]
    if size > MOST_PARAMETERS or len(pairs) < 2:
        return float("nan")
    deciding = _scores(subject, [_row(rollout, mask) for rollout, mask in pairs])
    filler = _scores(subject, [_row(rollout, frozen_array(~mask, np.bool_)) for rollout, mask in pairs])
    powers = float((filler**2).sum()), float((deciding**2).sum())
    return overlap((deciding @ filler.T, deciding @ deciding.T), powers)


def _row(rollout: Rollout, mask: Bools) -> Row:
    credit = Credit(advantages=frozen_array(mask, np.float32), rule="dense credit")
    row = sampled_row(SampledExample(rollout=rollout, credit=credit))
    return replace(row, policy_weights=frozen_array(rollout.loss_mask, np.float32))


def _scores(subject: Subject, rows: Sequence[Row]) -> Table:
    """The gradient of each row's log-probability, [N, D], up to its sign."""
    objective = Objective(policy_loss=reinforce, temperature=subject.objective.temperature)
    found = []
    for row in rows:
        parts = gradient(subject, [row], objective, max_tokens=len(row.tokens))
        found.append(np.concatenate([part.double().cpu().numpy().reshape(-1) for part in parts]))
    return np.stack(found)
