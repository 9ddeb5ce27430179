"""Reinforcement learning: one batch of rollouts, verified, rewarded, credited, and the updates made from it."""

import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from types import MappingProxyType
from typing import Any

import numpy as np

from forkpoint.batching import Row, sampled_row
from forkpoint.bugs import with_bugs
from forkpoint.config.recipe import RLStage
from forkpoint.credit import CreditRule
from forkpoint.credit.masks import credit_metrics, wrapped
from forkpoint.credit.privileged import Told
from forkpoint.errors import RecipeError
from forkpoint.losses import Loss, token_weights
from forkpoint.policies.protocol import Policy
from forkpoint.probe import Probe
from forkpoint.records import Batch, Credit, Group, Outcome, Problem, SampledExample, frozen_array
from forkpoint.rewards import outcome_rewards
from forkpoint.seeds import Key
from forkpoint.tasks.protocol import Task, split_problems
from forkpoint.training.components import Objective, Reference, accumulate
from forkpoint.training.critic import Critic, warm_up
from forkpoint.training.curriculum import Curriculum
from forkpoint.training.distillation import Teachers, batch_teachers, taught_rows
from forkpoint.training.drift import drift_metrics
from forkpoint.training.experts import expert_rows
from forkpoint.training.optimization import Optimization
from forkpoint.training.reflecting import Reflected, beside, credited, reflected, reflection_metrics
from forkpoint.training.rollouts import SamplePlan, judged_groups
from forkpoint.training.unit import Step
from forkpoint.verifiers.breaker import check_share


@dataclass(frozen=True, slots=True, kw_only=True)
class RLTraining:
    """Everything that turns one rollout batch into `updates_per_batch` optimizer steps."""

    stage: RLStage
    task: Task
    policy: Policy
    optimization: Optimization
    probe: Probe
    weights_changed: Callable[[int], None]
    """Tells the sampler the new version."""
    key: Key
    """Names the run and the stage."""
    credit_rule: CreditRule
    policy_loss: Loss
    reference: Reference | None = None
    critic: Critic | None = None
    """Learns from each batch after the batch's credit was taken with the values before."""
    curriculum: Curriculum | None = None
    """Chooses problems and groups; None: problems as the task gives them, all groups."""
    lessons: Callable[[Sequence[Problem]], Told] | None = None
    """What is told of each problem, by its key, where the knowledge of credit or teacher is lessons."""

    def unit(self, update: int) -> list[Step]:
        """The steps of the rollout batch whose first update is `update`."""
        began = time.perf_counter()
        warmed = self._warm_up() if update == 1 else {}
        groups, metrics = self._judged(update)
        metrics |= warmed
        batch = Batch(groups=tuple(groups), update=update)
        batch = rewarded(batch, self.probe, self.stage)
        spent = self.probe.cost
        credits = self.credits(batch)
        extra = {f"credit_{name}": float(count - spent[name]) for name, count in self.probe.cost.items()}
        metrics |= {name: count for name, count in extra.items() if count}
        metrics |= {**credit_metrics(credits), **drift_metrics(batch.groups, credits)}
        asked = self.stage.distillation.knowledge if self.stage.distillation else None
        teachers = batch_teachers(self.policy, batch, self.probe, stage=self.stage, told=self._told(batch, asked))
        if teachers:
            metrics["distillation_scored_tokens"] = float(sum(len(each.tails) for each in teachers.values()))
        if self.critic is not None:
            metrics.update(self.critic.fit(batch))
        tried, told = self._reflected(batch)
        metrics |= told
        sampled = time.perf_counter()
        steps = []
        for part, (some, their) in enumerate(_parts(batch.groups, credits, self.stage.updates_per_batch)):
            number = update + part
            changes = self._update(number, *self._learned(some, their, tried), teachers)
            self.weights_changed(number)
            ended = time.perf_counter()
            seconds = {"sample_seconds": sampled - began if part == 0 else 0.0, "seconds": ended - began}
            step = Step(
                update=number,
                metrics={**(metrics if part == 0 else {}), **_group_metrics(some, their), **changes, **seconds},
                seconds=ended - began,
                tokens=_drawn(metrics) if part == 0 else 0,
                # Rollouts carry the batch's first update, and are kept or rewound with it.
                groups=batch.groups if part == 0 else (),
                credits=tuple(credits) if part == 0 else (),
                reflected=tuple(tried) if part == 0 else (),
            )
            steps.append(step)
            began = ended
        return steps

    def _reflected(self, batch: Batch) -> tuple[list[Reflected], dict[str, float]]:
        """What failed attempts of the batch led to, with credit, and its metrics; nothing where the stage asks not."""
        settings, stage = self.stage.reflect, self.stage
        if settings is None:
            return [], {}
        plan = self._plan(batch.update, self.key.child("reflections"))
        found = reflected(batch.groups, self.probe, self.task, self.policy.texts, settings=settings, plan=plan)
        check_share(
            [verdict for each in found for verdict in each.reflections.verdicts], limit=stage.max_unusable
        )  # fmt: skip
        trimmed = [
            replace(each, reflections=usable(each.reflections, drop_truncated=stage.truncated == "drop"))
            for each in found
        ]
        rewards = credited(trimmed, self.probe, update=batch.update, pays=stage.reward.pays)
        return rewards, dict(reflection_metrics(found))

    def _learned(
        self, groups: Sequence[Group], credits: Sequence[Credit], tried: Sequence[Reflected]
    ) -> tuple[list[Group], list[Credit]]:
        """The groups that an update learns from, with their credits: attempts, and the reflections on them."""
        mine = beside(tried, groups)
        attempts = self.stage.reflect is None or self.stage.reflect.attempts
        return (
            [*(groups if attempts else ()), *(each.reflections for each in mine)],
            [*(credits if attempts else ()), *(credit for each in mine for credit in each.credits)],
        )

    def _warm_up(self) -> dict[str, float]:
        """Lets the critic learn from batches of the policy that the stage starts with; the policy stays as it is."""
        batches = self.stage.critic.warmup_batches if self.stage.critic is not None else 0
        return {} if self.critic is None else warm_up(self.critic, self._extra_batch, batches)

    def _extra_batch(self, number: int) -> Batch:
        """A rewarded batch beside those that the policy learns from; no curriculum sees it."""
        key, count = self.key.child("critic", number), self.stage.problems_per_update
        problems = split_problems(self.task, key.child("problems"), count, evaluation=False)
        sampled = judged_groups(
            self.probe, self.task, self.policy.texts, problems, self._plan(0, key.child("rollouts"))
        )
        check_share([verdict for group in sampled for verdict in group.verdicts], limit=self.stage.max_unusable)
        kept = [usable(group, drop_truncated=self.stage.truncated == "drop") for group in sampled]
        batch = Batch(groups=tuple(group for group in kept if group.rollouts), update=0)
        return rewarded(batch, self.probe, self.stage)

    def credits(self, batch: Batch) -> list[Credit]:
        """The credit of each rollout: the stage's rule with its wrappers around it."""
        if not batch.groups:
            return []
        chosen = self.stage.credit
        told = self._told(batch, chosen.options.get("knowledge"))
        options = chosen.options if told is None else {**chosen.options, "knowledge": told}
        credits = self.credit_rule(batch, self.probe, **options)
        found = credits if isinstance(credits, Sequence) else [credits]
        strange = next((type(each).__name__ for each in found if not isinstance(each, Credit)), "")
        if strange:
            raise RecipeError(f"credit.rule = '{chosen.rule}' gave no list of credits but one of {strange}")
        if len(credits) != len(batch.rollouts):
            raise RecipeError(f"credit.rule = '{chosen.rule}' gave {len(credits)} credits, not {len(batch.rollouts)}")
        return wrapped(credits, batch, self.probe, wrap=chosen.wrap, options=chosen.wrap_options)

    def _told(self, batch: Batch, knowledge: object) -> Told | None:
        """The lessons for each problem of a batch; None where the knowledge is another."""
        if self.lessons is None or knowledge != "lessons":
            return None
        return self.lessons([group.problem for group in batch.groups])

    def _judged(self, update: int) -> tuple[list[Group], dict[str, float]]:
        """The verified groups without the rollouts that no verifier could judge or that were dropped."""
        stage = self.stage
        trim = partial(usable, drop_truncated=stage.truncated == "drop")
        extra: dict[str, float] = {}
        if self.curriculum is None:
            problems = split_problems(
                self.task, self.key.child("problems", update), stage.problems_per_update, evaluation=False
            )
            groups = sampled = self._sampled(update, problems)
        else:
            selected = self.curriculum.batch(update, stage.problems_per_update, partial(self._sampled, update), trim)
            groups, sampled, extra = list(selected.groups), list(selected.sampled), selected.metrics
        # What could be judged is no fair sample of what was sampled.
        check_share([verdict for group in sampled for verdict in group.verdicts], limit=stage.max_unusable)
        kept = [trim(group) for group in groups]
        return [group for group in kept if len(group.rollouts) > 1], {**_rollout_metrics(sampled), **extra}

    def _sampled(self, update: int, problems: Sequence[Problem], number: int = 0) -> list[Group]:
        """The verified groups of the problems; `number` tells the draws of one update apart."""
        key = self.key.child("rollouts")
        plan = self._plan(update, key.child("refill", number) if number else key)
        return judged_groups(self.probe, self.task, self.policy.texts, problems, plan)

    def _plan(self, update: int, key: Key) -> SamplePlan:
        stage = self.stage
        return SamplePlan(
            key=key, stage=stage.name, update=update, group_size=stage.group_size,
            max_new_tokens=stage.max_new_tokens, temperature=stage.temperature,
        )  # fmt: skip

    def _update(
        self, update: int, groups: Sequence[Group], credits: Sequence[Credit], teachers: Teachers
    ) -> dict[str, float]:
        rows = self.rows(groups, credits, teachers)
        if not rows:
            return self.optimization.skip(update)
        sums = accumulate(self.policy, rows, self.objective, max_tokens=self.stage.max_batch_tokens)
        changes = self.optimization.step(update)
        return {**_loss_metrics(sums), **changes}

    def _loss(self, *terms: Any) -> Any:  # noqa: ANN401
        return self.policy_loss(*terms, **self.stage.loss.options)

    @property
    def objective(self) -> Objective:
        """What an update minimizes."""
        return Objective(
            policy_loss=self._loss, experts=bool(self.stage.experts), reference=self.reference,
            distillation=self.stage.distillation.direction if self.stage.distillation else None,
            entropy=self.stage.entropy_bonus > 0, temperature=self.stage.temperature,
        )  # fmt: skip

    def rows(
        self, groups: Sequence[Group], credits: Sequence[Credit], teachers: Teachers = MappingProxyType({})
    ) -> list[Row]:
        """Rows with their global weights: counted once over the whole update, before any split."""
        stage = self.stage
        rollouts = [rollout for group in groups for rollout in group.rollouts]
        prompt_ids = [place for place, group in enumerate(groups) for _ in group.rollouts]
        experts = expert_rows(self.task, self.policy.texts, groups, stage.experts)
        prompt_ids += [place for place in range(len(groups)) for _ in range(stage.experts)]
        weights = token_weights(
            [*(rollout.loss_mask for rollout in rollouts), *(row.loss_mask for row in experts)],
            prompt_ids,
            aggregation=stage.aggregation,
            constant_length=stage.max_new_tokens,
        )
        charge = stage.divergence.coefficient if stage.divergence else 0.0
        by_token = self.reference is not None and self.reference.kind == "token_k2"
        share = charge if by_token else charge / max(1, len(rollouts))
        # One denominator of its own, whatever the aggregation: the mean over all sampled tokens of the update.
        bonus = stage.entropy_bonus / max(1, sum(int(rollout.loss_mask.sum()) for rollout in rollouts))
        rows = [
            replace(
                sampled_row(SampledExample(rollout=rollout, credit=credit)),
                policy_weights=weight,
                divergence_weight=share,
                entropy_weights=frozen_array(bonus * rollout.loss_mask, np.float32),
            )
            for rollout, credit, weight in zip(rollouts, credits, weights[: len(rollouts)], strict=True)
        ]
        rows += [
            replace(row, expert_weights=weight) for row, weight in zip(experts, weights[len(rollouts) :], strict=True)
        ]
        if stage.distillation is not None:
            rows = taught_rows(rows, rollouts, prompt_ids, teachers, settings=stage.distillation, stage=stage)
        return with_bugs(
            rows,
            stage.bugs,
            aggregation=stage.aggregation,
            constant_length=stage.max_new_tokens,
            token_divergence=by_token,
        )


def _drawn(metrics: Mapping[str, float]) -> int:
    """Tokens that were sampled for an update, by whatever asked for them."""
    names = ("sampled_tokens", "credit_sampled_tokens", "critic_warmup_tokens", "reflect_sampled_tokens")
    return int(sum(metrics.get(name, 0.0) for name in names))


def usable(group: Group, *, drop_truncated: bool) -> Group:
    """The group without rollouts that never become a reward."""
    kept = [
        (rollout, verdict)
        for rollout, verdict in zip(group.rollouts, group.verdicts, strict=True)
        if verdict.usable and len(rollout.tokens) and not (drop_truncated and verdict.outcome is Outcome.TRUNCATED)
    ]
    return replace(group, rollouts=tuple(pair[0] for pair in kept), verdicts=tuple(pair[1] for pair in kept))


def rewarded(batch: Batch, probe: Probe, stage: RLStage) -> Batch:
    """The batch with one reward for each rollout."""
    rule = stage.reward
    rewards = iter(
        outcome_rewards(
            batch, probe, pays=rule.pays, length_penalty=rule.length_penalty, max_new_tokens=stage.max_new_tokens
        )
    )
    groups = tuple(replace(group, rewards=tuple(next(rewards) for _ in group.rollouts)) for group in batch.groups)
    return replace(batch, groups=groups)


def _parts(
    groups: Sequence[Group], credits: Sequence[Credit], parts: int
) -> list[tuple[Sequence[Group], Sequence[Credit]]]:
    """The groups dealt into equal runs, each with its credits."""
    edges = np.linspace(0, len(groups), parts + 1).round().astype(int)
    ends = np.cumsum([0] + [len(group.rollouts) for group in groups])
    return [(groups[start:end], credits[ends[start] : ends[end]]) for start, end in itertools.pairwise(edges)]


def _rollout_metrics(groups: Sequence[Group]) -> dict[str, float]:
    """Means over all sampled rollouts, before any is dropped."""
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    verdicts = [verdict for group in groups for verdict in group.verdicts]
    lengths = [int(rollout.loss_mask.sum()) for rollout in rollouts]
    nats = -sum(float(rollout.behavior_logprobs[rollout.loss_mask].sum()) for rollout in rollouts)
    count = max(1, len(rollouts))
    return {
        "correct": sum(verdict.correct is True for verdict in verdicts) / count,
        "length": sum(lengths) / count,
        "sampled_tokens": float(sum(lengths)),
        "entropy": nats / max(1, sum(lengths)),
        "truncated": sum(verdict.outcome is Outcome.TRUNCATED for verdict in verdicts) / count,
        "unusable": sum(not verdict.usable for verdict in verdicts) / count,
    }


def _group_metrics(groups: Sequence[Group], credits: Sequence[Credit]) -> dict[str, float]:
    """Means over what was trained on; `zero_variance` is the share of groups without any advantage."""
    rewards = [reward.total for group in groups for reward in group.rewards]
    place, idle = 0, 0
    for group in groups:
        mine = credits[place : place + len(group.rollouts)]
        idle += not any(credit.advantages.any() for credit in mine)
        place += len(group.rollouts)
    return {
        "reward": float(np.mean(rewards)) if rewards else 0.0,
        "zero_variance": idle / max(1, len(groups)),
        "groups": float(len(groups)),
    }


def _loss_metrics(sums: Mapping[str, float]) -> dict[str, float]:
    """The update's metrics from its sums over micro-batches."""
    tokens = max(1.0, sums.get("tokens", 0.0))
    named = {
        "loss": sums.get("loss", 0.0),
        "clipped": sums.get("clipped_tokens", 0.0) / tokens,
        "kl_to_behavior": sums.get("kl_k3_sum", 0.0) / tokens,
        "mismatch_max": sums["mismatch_max"],
        "padding_share": sums["padding_share"],
        "trained_tokens": sums.get("trained_tokens", 0.0),
    }
    if "distillation_sum" in sums:
        named["teacher_divergence"] = sums["distillation_sum"] / max(1.0, sums["distillation_tokens"])
    if sums.get("bonus_tokens"):
        named["policy_entropy"] = sums["bonus_entropy_sum"] / sums["bonus_tokens"]
    if "reference_k3_sum" in sums:
        named["kl_to_reference"] = sums["reference_k3_sum"] / max(1.0, sums["reference_sequences"])
    return named
