"""Contrastive fork tuning: a policy's own right and wrong rollouts, sampled once, tuned at their open tokens.

The offline recipe of arXiv 2605.06241 (docs/credit/forks.md).  The pool is a pure function of the seed and of the
weights that the stage starts from, so a resume makes it again.
"""

import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from forkpoint.batching import Row, TokenBatch, length_buckets, pad_rows, padding_share
from forkpoint.config.recipe import ForksStage
from forkpoint.credit.masks import Entropic
from forkpoint.losses.forks import contrastive_forks
from forkpoint.policies.causal import CausalPolicy
from forkpoint.policies.distributions import forward_kl, token_logprobs
from forkpoint.policies.texts import Texts
from forkpoint.probe import Probe
from forkpoint.records import Bools, Floats, Group, Outcome, Rollout, Verdict, frozen_array
from forkpoint.seeds import Key
from forkpoint.tasks.protocol import Task, split_problems
from forkpoint.training.optimization import Optimization
from forkpoint.training.rl import usable
from forkpoint.training.rollouts import SamplePlan, judged_groups
from forkpoint.training.unit import Step
from forkpoint.verifiers.breaker import check_share


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ForkPool:
    """What a stage is trained on."""

    rows: tuple[Row, ...]
    """One for each rollout; its advantages are 0 on all tokens but those that are tuned."""
    metrics: Mapping[str, float]
    """Of the sampling; they stand at the first update."""
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ForksTraining:
    """Everything that turns one batch of a pool into one optimizer step."""

    stage: ForksStage
    policy: CausalPolicy
    base: CausalPolicy
    """The policy that the stage starts from; it stays as it is."""
    optimization: Optimization
    pool: ForkPool
    key: Key
    """Names the run and the stage."""

    def unit(self, update: int) -> list[Step]:
        """The one step of this update; what the pool cost stands at the first."""
        began = time.perf_counter()
        rows = self.rows(update)
        sums = accumulate_forks(
            self.policy, self.base, rows, max_tokens=self.stage.max_batch_tokens, temperature=self.stage.temperature
        )
        changes = self.optimization.step(update)
        first = update == 1
        sampling = self.pool.seconds if first else 0.0
        seconds = time.perf_counter() - began + sampling
        metrics = {
            **(self.pool.metrics if first else {}),
            **_metrics(sums),
            **changes,
            "sample_seconds": sampling,
            "seconds": seconds,
        }
        tokens = int(self.pool.metrics["sampled_tokens"]) if first else 0
        return [Step(update=update, metrics=metrics, seconds=seconds, tokens=tokens)]

    def rows(self, update: int) -> list[Row]:
        """The weighted rows of an update: every rollout once before any comes again."""
        size, pool = self.stage.batch_size, self.pool.rows
        chosen, orders = [], dict[int, np.ndarray]()
        for place in range((update - 1) * size, update * size):
            epoch, position = divmod(place, len(pool))
            if epoch not in orders:
                orders[epoch] = self.key.child("order", epoch).generator().permutation(len(pool))
            chosen.append(pool[orders[epoch][position]])
        return weighted_forks(chosen, anchor=self.stage.anchor)


def weighted_forks(rows: Sequence[Row], *, anchor: float) -> list[Row]:
    """The rows of one update with their global weights.

    A fork token has the imitation weight A / |D|, its sign included; every other trained token has the row's divergence
    weight, anchor / M.  |D| and M are counted over all rows of the update, before any split.
    """
    forks = sum(int(np.count_nonzero(row.advantages)) for row in rows)
    others = sum(int(row.loss_mask.sum()) for row in rows) - forks
    return [
        replace(
            row,
            imitation_weights=frozen_array(row.advantages / max(1, forks), np.float32),
            divergence_weight=anchor / max(1, others),
        )
        for row in rows
    ]


def accumulate_forks(
    policy: CausalPolicy,
    base: CausalPolicy,
    rows: Sequence[Row],
    *,
    max_tokens: int,
    temperature: float = 1.0,
    split: Sequence[Sequence[int]] | None = None,
) -> dict[str, float]:
    """Adds the gradient of one update of weighted rows to the parameters; returns sums over the micro-batches.

    `split` names the rows of each micro-batch instead of buckets of at most `max_tokens` padded positions.  No split
    changes the gradient: the rows hold their global weights.  Returned beside the loss's sums: `loss`, `padding_share`.
    """
    lengths = [len(row.tokens) for row in rows]
    parts = length_buckets(lengths, max_tokens=max_tokens) if split is None else [part for part in split if part]
    sums: dict[str, float] = defaultdict(float)
    for part in parts:
        batch = pad_rows(rows, part, device=policy.device)
        for name, value in _backward(policy, base, batch, temperature).items():
            sums[name] += value
    return {**sums, "padding_share": padding_share(lengths, [list(part) for part in parts])}


def _backward(policy: CausalPolicy, base: CausalPolicy, batch: TokenBatch, temperature: float) -> dict[str, float]:
    """Back-propagates one micro-batch; its sums."""
    weights = batch.imitation_weights
    forks = batch.loss_mask & (weights != 0)
    others = batch.loss_mask & (weights == 0)
    hidden = policy.hidden(batch)
    logprobs = token_logprobs(policy, hidden[forks], batch.tokens[forks], temperature=temperature)
    with torch.no_grad():
        # Without another token there is nothing to anchor, and a forward to save.
        base_hidden = base.hidden(batch)[others] if bool(others.any()) else hidden[others]
    divergences = forward_kl(policy, hidden[others], base, base_hidden, temperature=temperature)
    charges = batch.divergence_weights[:, None].expand_as(weights)[others]
    output = contrastive_forks(logprobs, weights[forks], divergences, charges)
    if output.loss.requires_grad:
        output.loss.backward()
    return {**output.diagnostics, "loss": float(output.loss.detach())}


def _metrics(sums: Mapping[str, float]) -> dict[str, float]:
    return {
        "loss": sums["loss"],
        "fork_loss": sums["fork_loss"],
        "fork_tokens": sums["fork_tokens"],
        "anchor_kl": sums["anchor_kl_sum"] / max(1.0, sums["anchor_tokens"]),
        "trained_tokens": sums["fork_tokens"] + sums["anchor_tokens"],
        "padding_share": sums["padding_share"],
    }


def sampled_groups(probe: Probe, task: Task, texts: Texts, stage: ForksStage, key: Key) -> list[Group]:
    """The judged groups that a pool is made from; the same ones whenever they are asked for.

    Raises VerifierError where more verdicts than the stage allows are unusable.
    """
    problems = split_problems(task, key.child("problems"), stage.problems, evaluation=False)
    plan = SamplePlan(
        key=key.child("rollouts"),
        stage=stage.name,
        update=0,
        group_size=stage.group_size,
        max_new_tokens=stage.max_new_tokens,
        temperature=stage.temperature,
    )
    groups = judged_groups(probe, task, texts, problems, plan)
    check_share([verdict for group in groups for verdict in group.verdicts], limit=stage.max_unusable)
    return groups


def fork_pool(groups: Sequence[Group], probe: Entropic, stage: ForksStage, *, seconds: float = 0.0) -> ForkPool:
    """The pool of some judged groups; empty where no problem has both right and wrong rollouts.

    `probe` is that of the base: its entropies, teacher-forced, say which tokens are forks.
    """
    began = time.perf_counter()
    kept = mixed_groups(groups, keep=stage.keep_problems)
    pairs = [
        (rollout, float(value))
        for group in kept
        for rollout, value in zip(group.rollouts, group_advantages(group, clip=stage.clip), strict=True)
    ]
    pairs = without_longest(pairs, share=stage.drop_longest)
    if stage.positive_only:
        pairs = [(rollout, value) for rollout, value in pairs if value > 0]
    rollouts = [rollout for rollout, _ in pairs]
    masks, threshold = decision_masks(rollouts, probe, stage)
    rows = tuple(_row(rollout, mask, value) for (rollout, value), mask in zip(pairs, masks, strict=True))
    metrics = {
        **_sampled_metrics(groups),
        "pool_problems": float(len(kept)),
        "pool_rollouts": float(len(rows)),
        "fork_entropy": threshold,
        "fork_share": sum(float(mask.sum()) for mask in masks) / max(1, sum(int(r.loss_mask.sum()) for r in rollouts)),
    }
    return ForkPool(rows=rows, metrics=metrics, seconds=seconds + time.perf_counter() - began)


def stand_in_groups(groups: Sequence[Group]) -> list[Group]:
    """The groups with every other rollout called right, for checks of a policy that has learned nothing yet."""
    right = Verdict(outcome=Outcome.CORRECT, correct=True)
    wrong = Verdict(outcome=Outcome.WRONG, correct=False)
    return [
        replace(group, verdicts=tuple(wrong if place % 2 else right for place in range(len(group.rollouts))))
        for group in groups
    ]


def mixed_groups(groups: Sequence[Group], *, keep: int) -> list[Group]:
    """The `keep` groups with right and wrong rollouts whose pass rates are nearest to one half, in their order.

    Rollouts that no verifier could judge are left out; of equally near groups the earlier ones stay.
    """
    judged = [usable(group, drop_truncated=False) for group in groups]
    mixed = [group for group in judged if 0 < _pass_rate(group) < 1]
    nearest = sorted(range(len(mixed)), key=lambda place: (abs(_pass_rate(mixed[place]) - 0.5), place))
    return [mixed[place] for place in sorted(nearest[:keep])]


def _pass_rate(group: Group) -> float:
    return sum(verdict.correct is True for verdict in group.verdicts) / max(1, len(group.verdicts))


def group_advantages(group: Group, *, clip: float) -> Floats:
    """(r - mean) / deviation of each rollout of a mixed group, clipped; r is 1 for right, 0 for wrong.

    The deviation is that of the population, so the advantages of a group have mean 0 and variance 1 before the clip.
    """
    rewards = np.array([verdict.correct is True for verdict in group.verdicts], np.float64)
    return frozen_array(np.clip((rewards - rewards.mean()) / rewards.std(), -clip, clip), np.float32)


def without_longest(pairs: Sequence[tuple[Rollout, float]], *, share: float) -> list[tuple[Rollout, float]]:
    """The pairs without the `share` of the longest rollouts, in their order.

    Which of equally long rollouts go is decided by their ids, which are hashes, and not by their places.
    """
    order = sorted(range(len(pairs)), key=lambda place: (int(pairs[place][0].loss_mask.sum()), pairs[place][0].id))
    kept = order[: len(pairs) - int(share * len(pairs))]
    return [pairs[place] for place in sorted(kept)]


def decision_masks(rollouts: Sequence[Rollout], probe: Entropic, stage: ForksStage) -> tuple[list[Bools], float]:
    """True on the sampled tokens that are tuned, and the entropy that they reach, in nats; 0 without a gate."""
    if not stage.gate or not rollouts:
        return [rollout.loss_mask for rollout in rollouts], 0.0
    entropies = probe.entropies(rollouts)
    if stage.entropy is not None:
        least = float(np.nextafter(np.float32(stage.entropy), np.float32(np.inf)))
    else:
        pairs = zip(entropies, rollouts, strict=True)
        values = np.sort(np.concatenate([found[rollout.loss_mask] for found, rollout in pairs]))
        least = float(values[len(values) - max(1, round(stage.share * len(values)))])
    masks = [
        frozen_array((found >= least) & rollout.loss_mask, np.bool_)
        for found, rollout in zip(entropies, rollouts, strict=True)
    ]
    return masks, least


def _row(rollout: Rollout, mask: Bools, advantage: float) -> Row:
    return Row(
        prompt=rollout.prompt_tokens,
        tokens=rollout.tokens,
        loss_mask=rollout.loss_mask,
        advantages=frozen_array(np.where(mask, advantage, 0.0), np.float32),
    )


def _sampled_metrics(groups: Sequence[Group]) -> dict[str, float]:
    """Of all sampled rollouts, before any is left out."""
    lengths = [int(rollout.loss_mask.sum()) for group in groups for rollout in group.rollouts]
    correct = [verdict.correct is True for group in groups for verdict in group.verdicts]
    return {
        "correct": float(np.mean(correct)) if correct else 0.0,
        "length": float(np.mean(lengths)) if lengths else 0.0,
        "sampled_tokens": float(sum(lengths)),
    }
