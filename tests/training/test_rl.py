"""One rollout batch to its updates: who leaves, who stays in the denominators, what is counted."""

from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_runs import BASE, RL, tiny_recipe

from forkpoint.assembly import Assembly
from forkpoint.batching import pad_rows, sampled_row
from forkpoint.credit import leave_one_out
from forkpoint.errors import VerifierError
from forkpoint.losses import clipped_surrogate, reinforce
from forkpoint.records import (
    Batch,
    Credit,
    Outcome,
    Rollout,
    SampledExample,
    StopReason,
    Verdict,
    frozen_array,
)
from forkpoint.seeds import Key
from forkpoint.training.optimization import Optimization
from forkpoint.training.rl import RLTraining
from forkpoint.training.stage import kept_rollouts

RIGHT = Verdict(outcome=Outcome.CORRECT, correct=True)
WRONG = Verdict(outcome=Outcome.WRONG, correct=False)
CUT = Verdict(outcome=Outcome.TRUNCATED, correct=False)
DUNNO = Verdict(outcome=Outcome.ABSTAINED, correct=None)
FAILED = Verdict(outcome=Outcome.ERROR, correct=None)


@dataclass
class Scripted:
    """A probe that writes what it was told to: for each group the verdicts, and lengths by place in the group."""

    policy: object
    verdicts: list[list[Verdict]]
    lengths: tuple[int, ...] = (3, 5, 2, 4)
    behavior: float | None = None
    asked: list = field(default_factory=list)
    cost: dict = field(default_factory=dict)

    def sample(self, requests):
        self.asked.append(requests)
        return [self.rollout(request) for request in requests]

    def rollout(self, request):
        count = self.lengths[request.index % len(self.lengths)]
        tokens = frozen_array(request.key.generator().integers(2, 20, count), np.int32)
        rollout = Rollout(
            id=request.key.hex, group_id=request.group_id, stage=request.stage, update=request.update,
            index=request.index, problem_key=request.problem.key, prompt_tokens=request.prompt_tokens, tokens=tokens,
            behavior_logprobs=frozen_array(np.full(count, -1.0), np.float32),
            loss_mask=frozen_array(np.ones(count), np.bool_), temperature=1.0, text="", stop_reason=StopReason.EOS,
            seed="",
        )  # fmt: skip
        if self.behavior is None and count:
            values = logprobs(self.policy, [rollout])[0].detach().numpy()
            rollout = replace(rollout, behavior_logprobs=frozen_array(values, np.float32))
        return rollout

    def verify(self, problem, rollouts):
        group = self.verdicts.pop(0)
        assert len(group) == len(rollouts)
        return group


def logprobs(policy, rollouts):
    """log pi of each rollout's tokens, one forward each."""
    found = []
    for rollout in rollouts:
        credit = Credit(advantages=frozen_array(np.zeros(len(rollout.tokens)), np.float32), rule="")
        row = sampled_row(SampledExample(rollout=rollout, credit=credit))
        found.append(policy.logprobs(pad_rows([row], [0]))[0][0])
    return found


@dataclass
class Capture:
    """An optimizer that keeps the gradients and takes no step."""

    policy: object
    taken: list = field(default_factory=list)
    skips: int = 0

    def step(self, update):
        parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in self.policy.model.parameters()]
        self.taken.append(torch.cat([part.flatten() for part in parts]).clone())
        self.policy.model.zero_grad(set_to_none=True)
        return {"skipped": 0.0}

    def skip(self, update):
        self.skips += 1
        return {"skipped": 1.0}


@pytest.fixture(scope="module")
def context():
    recipe = tiny_recipe(BASE, RL, overrides=("stage.rl.from=policy",))
    return Assembly(recipe=recipe, origin=Path(), run=Path("nowhere")).stage_context("rl", None, lambda: False)


@pytest.fixture(scope="module")
def policy(context):
    return context.load_policy(None, None)


def training(
    context, policy, verdicts, *, loss=reinforce, rule=leave_one_out, lengths=(3, 5, 2, 4), behavior=None, **changes
):
    stage = context.stage.model_copy(
        update={"problems_per_update": len(verdicts), "group_size": len(verdicts[0]), **changes}
    )
    probe = Scripted(policy, [list(group) for group in verdicts], lengths=lengths, behavior=behavior)
    return RLTraining(
        stage=stage, task=context.plan.task, policy=policy, optimization=Capture(policy), probe=probe,
        weights_changed=lambda version: None, key=Key.root(0).child("rl"), credit_rule=rule, policy_loss=loss,
    )  # fmt: skip


def one_update(context, policy, verdicts, **changes):
    made = training(context, policy, verdicts, **changes)
    (step,) = made.unit(1)
    return step, made


def gradient_by_hand(policy, weighted):
    """The gradient of sum_i -a_i sum_t log pi, of pairs (rollout, a)."""
    total = sum(-share * logprobs(policy, [rollout])[0].sum() for rollout, share in weighted)
    total.backward()
    parts = [parameter.grad.flatten() for parameter in policy.model.parameters()]
    flat = torch.cat(parts).clone()
    policy.model.zero_grad(set_to_none=True)
    return flat


def close(one, two):
    return float((one - two).norm() / two.norm()) < 1e-5


PLAIN = {
    "reward": tiny_recipe(RL, overrides=("stage.rl.from=policy", "stage.rl.reward.length_penalty=0.0")).stage[0].reward
}


def test_the_gradient_of_a_batch_by_hand_with_idle_groups_in_the_denominator(context, policy):
    step, made = one_update(context, policy, [[RIGHT, WRONG, WRONG], [WRONG, WRONG, WRONG]], **PLAIN)
    rollouts = step.groups[0].rollouts
    # 1 against the mean of the others, 0; then 0 against a half.  Ten tokens a group, twenty in all.
    expected = gradient_by_hand(policy, [(rollouts[0], 1 / 20), (rollouts[1], -0.5 / 20), (rollouts[2], -0.5 / 20)])
    assert close(made.optimization.taken[0], expected)
    assert step.metrics["zero_variance"] == 0.5
    assert step.metrics["groups"] == 2
    assert step.metrics["trained_tokens"] == 10


@pytest.mark.parametrize("aggregation", ["token_mean", "constant", "sequence_mean", "prompt_mean"])
def test_every_aggregation_by_hand(aggregation, context, policy):
    step, made = one_update(context, policy, [[RIGHT, WRONG], [WRONG, WRONG]], aggregation=aggregation, **PLAIN)
    one, two = step.groups[0].rollouts
    # Lengths 3 and 5 in both groups; the budget is 6.
    shares = {"token_mean": (1 / 16, 1 / 16), "constant": (1 / 24, 1 / 24), "sequence_mean": (1 / 12, 1 / 20),
              "prompt_mean": (1 / 16, 1 / 16)}[aggregation]  # fmt: skip
    assert close(made.optimization.taken[0], gradient_by_hand(policy, [(one, shares[0]), (two, -shares[1])]))


@pytest.mark.parametrize("gone", [DUNNO, FAILED])
def test_rollouts_that_no_verifier_could_judge_leave_the_group_and_the_denominator(gone, context, policy):
    step, made = one_update(context, policy, [[RIGHT, gone, WRONG], [WRONG, WRONG, gone]], **PLAIN)
    assert [len(group.rollouts) for group in step.groups] == [2, 2]
    one, two = step.groups[0].rollouts
    assert (one.index, two.index) == (0, 2)
    # Lengths 3 and 2, then 3 and 5.
    assert close(made.optimization.taken[0], gradient_by_hand(policy, [(one, 1 / 13), (two, -1 / 13)]))
    assert step.metrics["unusable"] == pytest.approx(2 / 6)
    assert step.metrics["correct"] == pytest.approx(1 / 6)
    assert len(step.credits) == 4


def test_truncated_rollouts_count_as_wrong_or_leave(context, policy):
    verdicts = [[RIGHT, CUT, WRONG]]
    wrong, _ = one_update(context, policy, verdicts, **PLAIN)
    dropped, _ = one_update(context, policy, verdicts, truncated="drop", **PLAIN)
    assert [len(step.groups[0].rollouts) for step in (wrong, dropped)] == [3, 2]
    assert [credit.advantages[0] for credit in wrong.credits] == [1.0, -0.5, -0.5]
    assert [credit.advantages[0] for credit in dropped.credits] == [1.0, -1.0]
    assert wrong.metrics["truncated"] == dropped.metrics["truncated"] == pytest.approx(1 / 3)


def test_a_group_shrunk_to_one_is_dropped(context, policy):
    step, made = one_update(context, policy, [[RIGHT, FAILED, FAILED], [RIGHT, WRONG, WRONG]], **PLAIN)
    assert len(step.groups) == 1
    assert step.metrics["groups"] == 1
    rollouts = step.groups[0].rollouts
    expected = gradient_by_hand(policy, [(rollouts[0], 0.1), (rollouts[1], -0.05), (rollouts[2], -0.05)])
    assert close(made.optimization.taken[0], expected)


@pytest.mark.parametrize("verdict", [FAILED, DUNNO])
def test_nothing_is_learned_when_nothing_could_be_judged(verdict, context, policy):
    step, made = one_update(context, policy, [[verdict] * 3, [verdict] * 3], max_unusable=1.0)
    assert (made.optimization.taken, made.optimization.skips) == ([], 1)
    assert step.metrics["skipped"] == 1.0
    assert step.metrics["unusable"] == 1.0
    assert step.metrics["reward"] == 0.0


def test_a_verifier_that_fails_too_often_ends_the_stage(context, policy):
    verdicts = [[RIGHT, WRONG, FAILED, DUNNO] * 4] * 2
    with pytest.raises(VerifierError, match=r"could not judge 16 of 32 rollouts \(50 %: 8 error, 8 abstained\)"):
        one_update(context, policy, verdicts)
    step, _ = one_update(context, policy, verdicts, max_unusable=0.5)
    assert step.metrics["unusable"] == 0.5


def test_empty_rollouts_leave(context, policy):
    step, _ = one_update(context, policy, [[RIGHT, WRONG, WRONG]], lengths=(3, 0, 2), **PLAIN)
    assert [len(rollout.tokens) for rollout in step.groups[0].rollouts] == [3, 2]


def test_all_equal_rewards_give_a_gradient_of_exactly_zero(context, policy):
    step, made = one_update(context, policy, [[RIGHT] * 3, [WRONG] * 3], **PLAIN)
    assert float(made.optimization.taken[0].abs().max()) == 0.0
    assert step.metrics["zero_variance"] == 1.0
    assert step.metrics["loss"] == 0.0


def test_the_metrics_of_a_batch_by_hand(context, policy):
    reward = context.stage.reward
    assert reward.length_penalty == 0.5
    step, _ = one_update(context, policy, [[RIGHT, WRONG, CUT, WRONG], [WRONG] * 4], behavior=-1.0)
    assert step.metrics["correct"] == pytest.approx(1 / 8)
    assert step.metrics["length"] == pytest.approx(14 / 4)
    assert step.metrics["sampled_tokens"] == step.tokens == 28
    assert step.metrics["truncated"] == pytest.approx(1 / 8)
    # log mu is -1 at every token.
    assert step.metrics["entropy"] == pytest.approx(1.0)
    assert step.metrics["reward"] == pytest.approx(1 / 8 - 0.5 * 3.5 / 6)
    assert step.metrics["zero_variance"] == 0.0
    assert step.metrics["mismatch_max"] > 1.0
    # KL(mu || pi) by k3 = r - 1 - log r with r = pi / mu.
    with torch.no_grad():
        logs = torch.cat(logprobs(policy, [r for group in step.groups for r in group.rollouts])) + 1.0
    assert step.metrics["kl_to_behavior"] == pytest.approx(float((logs.exp() - 1 - logs).mean()), rel=1e-4)


def test_a_batch_that_serves_two_updates_is_dealt_out_whole_groups_each(context, policy):
    verdicts = [[RIGHT, WRONG], [WRONG, RIGHT], [WRONG, WRONG], [WRONG, RIGHT], [RIGHT, WRONG]]
    made = training(context, policy, verdicts, loss=clipped_surrogate, updates_per_batch=2, **PLAIN)
    first, second = made.unit(3)
    assert (first.update, second.update) == (3, 4)
    assert len(first.groups) == 5
    assert second.groups == ()
    assert first.metrics["groups"] + second.metrics["groups"] == 5
    assert "correct" not in second.metrics
    assert second.tokens == 0
    assert len(made.probe.asked) == 1
    used = [first.groups[: int(first.metrics["groups"])], first.groups[int(first.metrics["groups"]) :]]
    for groups, taken in zip(used, made.optimization.taken, strict=True):
        count = sum(len(r.tokens) for group in groups for r in group.rollouts)
        pairs = []
        for group in groups:
            for rollout, verdict in zip(group.rollouts, group.verdicts, strict=True):
                idle = all(v == WRONG for v in group.verdicts)
                pairs.append((rollout, 0.0 if idle else (1.0 if verdict.correct else -1.0) / count))
        assert close(taken, gradient_by_hand(policy, pairs))


def test_more_updates_than_groups_left_skips_the_rest(context, policy):
    made = training(context, policy, [[RIGHT, WRONG], [FAILED, FAILED]], loss=clipped_surrogate, updates_per_batch=2)
    steps = made.unit(1)
    assert len(steps) == 2
    assert len(made.optimization.taken) == made.optimization.skips == 1


def test_a_gradient_that_is_not_finite_changes_no_weight_and_is_counted(context, policy):
    def poison(batch, probe):
        return [
            Credit(advantages=frozen_array(np.full(len(r.tokens), np.nan), np.float32), rule="x")
            for r in batch.rollouts
        ]

    fresh = context.load_policy(None, None)
    before = {name: value.clone() for name, value in fresh.model.state_dict().items()}
    made = replace(
        training(context, fresh, [[RIGHT, WRONG]], rule=poison, **PLAIN),
        optimization=Optimization(fresh.model, context.stage),
    )
    (step,) = made.unit(1)
    assert (step.metrics["skipped"], step.metrics["grad_norm"]) == (1.0, 0.0)
    assert all(torch.equal(before[name], value) for name, value in fresh.model.state_dict().items())
    healthy = replace(made, credit_rule=leave_one_out, probe=Scripted(fresh, [[RIGHT, WRONG]]))
    (step,) = healthy.unit(1)
    assert step.metrics["skipped"] == 0.0
    assert any(not torch.equal(before[name], value) for name, value in fresh.model.state_dict().items())


def test_a_real_batch_agrees_with_its_own_sampler(context, policy):
    probe, changed = context.make_probe(policy)
    made = context.make_training(policy, Capture(policy), probe, changed)
    (step,) = made.unit(1)
    assert step.metrics["mismatch_max"] < 1e-4
    assert abs(step.metrics["kl_to_behavior"]) < 1e-6
    assert step.metrics["clipped"] == 0
    logs = [r.behavior_logprobs[r.loss_mask] for group in step.groups for r in group.rollouts]
    assert step.metrics["entropy"] == pytest.approx(-float(np.concatenate(logs).mean()), rel=1e-5)
    assert not any(group.problem.is_evaluation for group in step.groups)
    again = context.make_training(policy, Capture(policy), probe, changed).unit(1)[0]
    assert [r.tokens.tobytes() for g in again.groups for r in g.rollouts] == [
        r.tokens.tobytes() for g in step.groups for r in g.rollouts
    ]


def test_every_batch_has_problems_and_random_numbers_of_its_own(context, policy):
    probe, changed = context.make_probe(policy)
    made = context.make_training(policy, Capture(policy), probe, changed)
    steps = [made.unit(update)[0] for update in (1, 2)]
    keys = [{group.problem.key for group in step.groups} for step in steps]
    assert not keys[0] & keys[1]
    seeds = [rollout.seed for step in steps for group in step.groups for rollout in group.rollouts]
    assert len(set(seeds)) == len(seeds) == 32


@pytest.mark.parametrize(
    ("rule", "update", "kept"),
    [("all", 7, 3), ("every:5", 5, 3), ("every:5", 1, 3), ("every:5", 7, 0), ("sample:2", 7, 2), ("sample:9", 7, 3)],
)
def test_what_the_store_keeps(rule, update, kept, context, policy):
    step, _ = one_update(context, policy, [[RIGHT, WRONG], [WRONG, RIGHT], [WRONG, WRONG]], **PLAIN)
    step = replace(step, update=update)
    stage = context.stage.model_copy(update={"keep_rollouts": rule})
    groups, credits = kept_rollouts(stage, step, Key.root(0))
    assert (len(groups), len(credits)) == (kept, 2 * kept)
    pairs = {r.id: c for r, c in zip([r for g in step.groups for r in g.rollouts], step.credits, strict=True)}
    for rollout, credit in zip([r for group in groups for r in group.rollouts], credits, strict=True):
        assert pairs[rollout.id] is credit
    assert kept_rollouts(stage, step, Key.root(0))[0] == groups


def test_the_entropy_bonus_divides_by_all_sampled_tokens_whatever_the_aggregation(context, policy):
    """Two groups of tokens 3, 5 and 3, 5: 16 tokens, also where a group has no variance and rows weigh otherwise."""
    verdicts = [[RIGHT, WRONG], [WRONG, WRONG]]
    for aggregation in ("token_mean", "sequence_mean"):
        plain = one_update(context, policy, verdicts, aggregation=aggregation)[1].optimization.taken[0]
        step, made = one_update(context, policy, verdicts, aggregation=aggregation, entropy_bonus=0.5)
        rows = made.rows(step.groups, made.credits(Batch(groups=step.groups, update=step.update)))
        assert {float(row.entropy_weights[0]) for row in rows} == {0.5 / 16}
        total = torch.zeros(())
        for row in rows:
            total = total - 0.5 / 16 * policy.logprobs(pad_rows([row], [0]), entropy_gradient=True)[1].sum()
        total.backward()
        parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in policy.model.parameters()]
        expected = plain + torch.cat([part.flatten() for part in parts])
        policy.model.zero_grad(set_to_none=True)
        found = made.optimization.taken[0]
        assert float((found - expected).norm() / expected.norm()) < 1e-6
        assert 0 < step.metrics["policy_entropy"] <= np.log(40)
    assert "policy_entropy" not in one_update(context, policy, verdicts)[0].metrics
