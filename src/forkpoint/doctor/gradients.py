"""Checks of the update's gradient: it does not depend on the split, it is finite, and every loss term has one.

Gradients are taken beside those of the run, which are put back; no weight changes.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from forkpoint.batching import PromptTable, Row, TokenBatch, pad_rows
from forkpoint.config.recipe import RLStage
from forkpoint.doctor.check import Check
from forkpoint.doctor.subject import Subject
from forkpoint.policies.protocol import Policy, Scorer
from forkpoint.records import Severity, frozen_array
from forkpoint.training.components import Objective, Reference

WHOLE, SINGLE = 1 << 40, 1
"""Most padded positions of a micro-batch: all rows in one, and one row each."""
MOST_ROWS, MOST_TOKENS = 64, 16_384
SINGLE_BOUND, DOUBLE_BOUND, HALF_BOUND = 1e-5, 1e-9, 5e-2
"""Relative L2: sums in another order differ by 3e-7 in single precision and 2e-15 in double (measured); a wrong
denominator by 1e-2 and more."""
ROUNDING = 2.0
"""Where the policy is nearly certain, 1 - pi and so the gradient are small and the rounding of pi is not: the bound is
at least so many machine epsilons over the root mean square of 1 - pi.  Measured are 0.05 to 0.7."""
MOST_BOUND = 5e-3
"""Half of what a wrong denominator does."""
SHIFT = 0.1
"""Nats that a reference is moved by: at the start of a stage it is the policy, and the divergence has no gradient."""


def gradient_invariance(subject: Subject) -> Check:
    """The gradient of this batch as a whole is that of its rows one by one."""
    rows, made_up = gradient_rows(subject)
    bound = _bound(subject.loop.policy, doubt(subject, rows))
    whole = gradient(subject, rows, subject.objective, max_tokens=WHOLE)
    single = gradient(subject, rows, subject.objective, max_tokens=SINGLE)
    norm = _norm(whole)
    gap = _norm([one - other for one, other in zip(whole, single, strict=True)]) / norm if norm else 0.0
    return Check(
        name="gradient invariance",
        did=f"took the gradient of {len(rows)} rows{made_up} at once and one row at a time: "
        "the relative difference, L2",
        value=gap,
        bound=bound,
        ok=gap <= bound,
        remedy="Divide by counts of the whole update, and compute masks and clips before splitting.",
    )


def gradient_finite(subject: Subject) -> Check:
    """Loss and gradient of this batch are finite numbers."""
    rows, _ = gradient_rows(subject, real=True)
    with kept_gradients(subject.loop.policy):
        sums = subject.accumulate(subject.loop.policy, rows, subject.objective, max_tokens=_tokens(subject))
        norm = _norm(_gradients(subject.loop.policy))
    loss = float(sums.get("loss", 0.0))
    finite = bool(np.isfinite(loss) and np.isfinite(norm))
    return Check(
        name="gradient finite",
        did=f"took loss ({loss:.3g}) and gradient of {len(rows)} rows: its norm",
        value=norm,
        bound=None,
        ok=finite,
        remedy="Look for a logarithm of 0, a division by 0, or a learning rate that has broken the weights.",
    )


def terms_alive(subject: Subject) -> Check:
    """Every configured term of the loss has a gradient of its own."""
    rows, made_up = gradient_rows(subject)
    if not rows:
        return Check(
            name="loss terms alive", did="there is no row to take a gradient of", value=0.0, bound=0.0, ok=False,
            remedy="Look at the verdicts: no rollout was left to train on.", severity=Severity.WARNING,
        )  # fmt: skip
    norms = {
        name: _norm(gradient(subject, rows, objective, max_tokens=_tokens(subject)))
        for name, objective in terms(subject).items()
    }
    dead = [name for name, norm in norms.items() if not norm > 0]
    certain = bool(dead) and mean_entropy(subject, rows) < 1e-6
    listed = ", ".join(f"{name} {norm:.2g}" for name, norm in norms.items())
    return Check(
        name="loss terms alive",
        did=f"took the gradient of each term on {len(rows)} rows{made_up}, norms: {listed}"
        + (f"; dead: {', '.join(dead)}" if dead else "")
        + ("; the policy is certain of every token, so nothing can move it" if certain else ""),
        value=min(norms.values(), default=0.0),
        bound=0.0,
        ok=not dead,
        remedy="A term without a gradient does nothing: its weight is 0, or its graph is cut.",
        severity=Severity.WARNING if certain else Severity.CRITICAL,
    )


def terms(subject: Subject) -> dict[str, Objective]:
    """The objective's terms one by one; a configured term that it lacks is an empty objective."""
    whole, stage = subject.objective, subject.loop.stage
    empty = replace(whole, policy_loss=None, imitation=False, reference=None, entropy=False)
    found: dict[str, Objective] = {}
    if whole.policy_loss is not None or isinstance(stage, RLStage):
        found["policy"] = replace(empty, policy_loss=whole.policy_loss)
    if whole.imitation:
        found["imitation"] = replace(empty, imitation=True)
    if whole.entropy or (isinstance(stage, RLStage) and stage.entropy_bonus > 0):
        found["entropy"] = replace(empty, entropy=whole.entropy)
    if whole.reference is not None:
        found["divergence"] = replace(empty, reference=shifted(whole.reference))
    elif isinstance(stage, RLStage) and stage.divergence is not None:
        found["divergence"] = empty
    return found


def shifted(reference: Reference) -> Reference:
    """The reference with other log-probabilities, so that a divergence from it has a gradient."""
    moved: Any = _Shifted(reference.policy)
    return replace(reference, policy=moved)


@dataclass(frozen=True, slots=True)
class _Shifted:
    """A policy whose log-probabilities are SHIFT nats lower on every other token."""

    policy: Policy

    @contextmanager
    def prompts_once(self, table: PromptTable) -> Iterator[Scorer]:
        with self.policy.prompts_once(table) as score:
            yield partial(_lowered, score)


def _lowered(score: Scorer, batch: TokenBatch, **options: Any) -> tuple[Tensor, Tensor]:  # noqa: ANN401
    logprobs, entropy = score(batch, **options)
    even = torch.arange(logprobs.shape[1], device=logprobs.device) % 2 == 0
    return logprobs - SHIFT * (even & batch.loss_mask), entropy


def gradient_rows(subject: Subject, *, real: bool = False) -> tuple[list[Row], str]:
    """Rows of the batch with its global weights, as many as can be had at little cost.

    Where the batch has no finite advantage other than 0, alternating ones stand in, and the text says so; not if
    `real`.
    """
    rows: list[Row] = []
    for row in subject.rows:
        if len(rows) >= MOST_ROWS or sum(len(each.tokens) for each in rows) > MOST_TOKENS:
            break
        rows.append(row)
    if real or subject.objective.policy_loss is None:
        return rows, ""
    if any(row.advantages.any() for row in rows) and all(bool(np.isfinite(row.advantages).all()) for row in rows):
        return rows, ""
    return [_alternating(row, place) for place, row in enumerate(rows)], " (with alternating advantages: it has none)"


def _alternating(row: Row, place: int) -> Row:
    size = (1 + place / 8) * (1 if place % 2 == 0 else -1)
    return replace(row, advantages=frozen_array(np.where(row.loss_mask, size, 0.0), np.float32))


def gradient(subject: Subject, rows: Sequence[Row], objective: Objective, *, max_tokens: int) -> list[Tensor]:
    """The gradient of the rows, one tensor for each trained parameter; the parameters' own gradients stay."""
    policy = subject.loop.policy
    with kept_gradients(policy):
        subject.accumulate(policy, rows, objective, max_tokens=max_tokens)
        return _gradients(policy)


@contextmanager
def kept_gradients(policy: Policy) -> Iterator[None]:
    """A block that begins without gradients and ends with those from before."""
    trained = _trained(policy)
    before = [parameter.grad for parameter in trained]
    for parameter in trained:
        parameter.grad = None
    try:
        yield
    finally:
        for parameter, old in zip(trained, before, strict=True):
            parameter.grad = old


def _gradients(policy: Policy) -> list[Tensor]:
    return [
        torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.detach().clone()
        for parameter in _trained(policy)
    ]


def _trained(policy: Policy) -> list[Tensor]:
    return [parameter for parameter in policy.model.parameters() if parameter.requires_grad]


def _norm(tensors: Sequence[Tensor]) -> float:
    return float(sum(float(tensor.double().square().sum()) for tensor in tensors) ** 0.5)


def _bound(policy: Policy, doubt: float) -> float:
    kinds = [parameter.dtype for parameter in policy.model.parameters()]
    kind = min(kinds, key=lambda kind: kind.itemsize)
    if kind.itemsize < 4:
        return HALF_BOUND
    rounding = ROUNDING * torch.finfo(kind).eps / doubt if doubt else MOST_BOUND
    return max(SINGLE_BOUND if kind.itemsize == 4 else DOUBLE_BOUND, min(rounding, MOST_BOUND))


def _tokens(subject: Subject) -> int:
    return subject.loop.stage.max_batch_tokens


def mean_entropy(subject: Subject, rows: Sequence[Row]) -> float:
    """The policy's mean entropy on the trained tokens of the rows, nats."""
    _, entropies = _scored(subject, rows)
    return float(entropies.mean()) if len(entropies) else 0.0


def doubt(subject: Subject, rows: Sequence[Row]) -> float:
    """The root mean square of 1 - pi(token) over the trained tokens of the rows."""
    logprobs, _ = _scored(subject, rows)
    return float(torch.expm1(logprobs).square().mean().sqrt()) if len(logprobs) else 0.0


@torch.no_grad()
def _scored(subject: Subject, rows: Sequence[Row]) -> tuple[Tensor, Tensor]:
    """Log-probability and entropy of every trained token of the rows, each [N] in double precision."""
    policy, logprobs, entropies = subject.loop.policy, [torch.zeros(0)], [torch.zeros(0)]
    for row in rows:
        batch = pad_rows([row], [0], device=policy.device)
        found, entropy = policy.logprobs(batch, temperature=subject.objective.temperature)
        logprobs.append(found[batch.loss_mask].cpu())
        entropies.append(entropy[batch.loss_mask].cpu())
    return torch.cat(logprobs).double(), torch.cat(entropies).double()
