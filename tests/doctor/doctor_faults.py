"""Ways to make a healthy loop sick, one at a time, and the check that must name each."""

import copy
import os
import signal
import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from doctor_examples import Sampling, each, healthy_loop, subject_of, tried, with_rollouts
from tiny_runs import BASE

from forkpoint.doctor import FULL, SHORT, Check, Subject, examine
from forkpoint.losses import reinforce
from forkpoint.records import Credit, LossOutput, Outcome, Reward, Span, SpanKind, Verdict, frozen_array
from forkpoint.sampling import engine
from forkpoint.training import rl
from forkpoint.training.components import accumulate
from forkpoint.training.hooks import Loop
from forkpoint.training.rl import RLTraining


def stale_weights(loop: Loop) -> Subject:
    """The sampler draws with weights from before."""
    old = healthy_loop()
    with torch.no_grad():
        for parameter in loop.policy.model.parameters():
            parameter.mul_(1.1)
    return subject_of(_sampled_by(loop, old))


def _sampled_by(loop: Loop, other: Loop) -> Loop:
    probe = Sampling(loop.probe)
    probe.sample = other.probe.sample
    return replace(loop, probe=probe, training=replace(loop.training, probe=probe))


def unannounced_weights(loop: Loop) -> Subject:
    return subject_of(replace(loop, done=3))


def shifted_mask(loop: Loop) -> Subject:
    def shift(rollout):
        return replace(rollout, loss_mask=frozen_array(np.arange(len(rollout.tokens)) >= 1, np.bool_))

    return subject_of(with_rollouts(loop, each(shift)))


def mask_on_observation(loop: Loop) -> Subject:
    def observe(rollout):
        spans = (Span(start=0, end=1, kind=SpanKind.OBSERVATION, policy_version=0), *rollout.spans)
        return replace(rollout, spans=spans)

    return subject_of(with_rollouts(loop, each(observe)))


def mask_on_prompt(_: Loop) -> Subject:
    loop = healthy_loop(stage="base", kind=(BASE,))
    draw = loop.training.draw

    def shifted(update):
        texts = draw(update)
        return [replace(text, loss_mask=frozen_array(np.arange(len(text.tokens)) >= 1, np.bool_)) for text in texts]

    return subject_of(replace(loop, training=replace(loop.training, draw=shifted)))


def swapped_rollouts(loop: Loop) -> Subject:
    def swap(rollouts):
        made = list(rollouts)
        made[0], made[-1] = replace(made[-1], index=made[0].index), replace(made[0], index=made[-1].index)
        return made

    return subject_of(with_rollouts(loop, swap))


def incomplete_group(loop: Loop) -> Subject:
    subject = subject_of(loop)
    drawn = subject.judged[0]
    first = drawn.groups[0]
    short = replace(first, rollouts=first.rollouts[:-1], verdicts=first.verdicts[:-1])
    return replace(subject, judged=(replace(drawn, groups=(short, *drawn.groups[1:])),))


def duplicated_rollout(loop: Loop) -> Subject:
    def copied(rollouts):
        return [replace(rollouts[0], index=1) if place == 1 else rollout for place, rollout in enumerate(rollouts)]

    return subject_of(with_rollouts(loop, copied))


def dead_divergence(loop: Loop) -> Subject:
    return subject_of(replace(loop, training=replace(loop.training, reference=None)))


def dead_policy_loss(loop: Loop) -> Subject:
    def cut(*terms):
        output = reinforce(*terms)
        return LossOutput(loss=output.loss.detach(), diagnostics=output.diagnostics)

    return subject_of(replace(loop, training=replace(loop.training, policy_loss=cut)))


def broken_loss(loop: Loop) -> Subject:
    def broken(*terms):
        output = reinforce(*terms)
        return LossOutput(loss=output.loss * float("nan"), diagnostics=output.diagnostics)

    return subject_of(replace(loop, training=replace(loop.training, policy_loss=broken)))


def _rule(loop: Loop, advantage: Callable[[np.ndarray, int], float], extent=SHORT) -> Subject:
    def rule(batch, probe):
        return [
            Credit(
                advantages=frozen_array(
                    np.full(len(r.tokens), advantage(np.array([w.total for w in g.rewards]), i)), np.float32
                ),
                rule="leave_one_out",
            )
            for g in batch.groups
            for i, r in enumerate(g.rollouts)
        ]

    return subject_of(replace(loop, training=replace(loop.training, credit_rule=rule)), extent)


def half_scaled_baseline(loop: Loop) -> Subject:
    return _rule(loop, lambda rewards, i: float(rewards[i] - rewards.mean() * len(rewards) / (len(rewards) - 1)))


def doubled_advantages(loop: Loop) -> Subject:
    return _rule(loop, lambda rewards, i: float(2 * (rewards[i] - np.delete(rewards, i).mean())))


def nan_advantages(loop: Loop) -> Subject:
    return _rule(loop, lambda rewards, i: float("nan") if i == 0 else 0.0)


def no_variance(_: Loop) -> Subject:
    loop = healthy_loop("stage.rl.problems_per_update=16", "stage.rl.group_size=2")
    return _rule(loop, lambda rewards, i: 0.0, FULL)


def _verifier(loop: Loop, verifier: Callable[..., Verdict], **seconds: float) -> Subject:
    subject = subject_of(loop)
    return replace(subject, trial=tried(loop, verifier, **seconds))


def always_yes(loop: Loop) -> Subject:
    return _verifier(loop, lambda problem, rollout: Verdict(outcome=Outcome.CORRECT, correct=True))


def always_no(loop: Loop) -> Subject:
    return _verifier(loop, lambda problem, rollout: Verdict(outcome=Outcome.WRONG, correct=False))


def sleeping(loop: Loop) -> Subject:
    return _verifier(loop, lambda problem, rollout: time.sleep(60), first_seconds=0.3, later_seconds=0.3)


def slow(loop: Loop) -> Subject:
    def verify(problem, rollout):
        time.sleep(0.05)
        return loop.task.verify(problem, rollout)

    return _verifier(loop, verify, problems=1)


def raising(loop: Loop) -> Subject:
    return _verifier(loop, lambda problem, rollout: 1 / 0)


def killing(loop: Loop) -> Subject:
    return _verifier(loop, lambda problem, rollout: os.kill(os.getpid(), signal.SIGKILL))


def exiting(loop: Loop) -> Subject:
    def leave(problem, rollout):
        raise SystemExit(3)

    return _verifier(loop, leave)


def failing_on_rollouts(loop: Loop) -> Subject:
    verdict = Verdict(outcome=Outcome.ERROR, correct=None, reason="lost")
    probe = Sampling(loop.probe)
    probe.verify = lambda problem, rollouts: [verdict for _ in rollouts]
    return subject_of(replace(loop, probe=probe, training=replace(loop.training, probe=probe)))


def flipped_rewards(loop: Loop) -> list[Check]:
    def flipped(batch, probe, **options):
        return [Reward(total=-float(v.correct is True)) for g in batch.groups for v in g.verdicts]

    return _with_rewards(loop, flipped)


def constant_rewards(loop: Loop) -> list[Check]:
    return _with_rewards(loop, lambda batch, probe, **options: [Reward(total=1.0) for _ in batch.rollouts])


def _with_rewards(loop: Loop, rewards) -> list[Check]:
    before = rl.outcome_rewards
    rl.outcome_rewards = rewards
    try:
        return examine(subject_of(loop))
    finally:
        rl.outcome_rewards = before


def other_temperature(loop: Loop) -> Subject:
    def reported(rollout):
        return replace(rollout, temperature=1.0)

    return subject_of(with_rollouts(loop, each(reported), requests=lambda r: replace(r, temperature=0.5)))


def other_temperature_recorded(loop: Loop) -> Subject:
    return subject_of(with_rollouts(loop, list, requests=lambda r: replace(r, temperature=0.5)))


def _top_p(logits, uniforms, temperatures, *, honest: bool, mass: float = 0.7):
    """The drawing of sampling.draw with the tail cut off; `honest` records the log-probabilities of what it did."""
    logprobs = torch.log_softmax(logits / temperatures[:, None], -1)
    ordered, order = logprobs.sort(dim=-1, descending=True)
    outside = (ordered.exp().cumsum(-1) - ordered.exp()) > mass
    cut = ordered.masked_fill(outside, -torch.inf)
    kept = torch.log_softmax(cut, -1)
    cumulative = kept.exp().double().cumsum(-1)
    places = torch.searchsorted(cumulative, (uniforms.double() * cumulative[:, -1])[:, None], right=True)
    places = places.clamp(max=logits.shape[-1] - 1)
    tokens = order.gather(-1, places)[:, 0]
    used = kept if honest else ordered
    return tokens, used.gather(-1, places)[:, 0]


def _drawing(loop: Loop, extent, *, honest: bool) -> Subject:
    before = engine.draw_tokens
    engine.draw_tokens = lambda logits, uniforms, temperatures: _top_p(logits, uniforms, temperatures, honest=honest)
    try:
        return subject_of(loop, extent)
    finally:
        engine.draw_tokens = before


def silent_top_p(_: Loop) -> Subject:
    loop = healthy_loop("stage.rl.problems_per_update=8", "stage.rl.group_size=8")
    return _drawing(loop, replace(FULL, problems=8, group_size=8), honest=False)


def top_p(loop: Loop) -> Subject:
    return _drawing(loop, SHORT, honest=True)


def late_cache_fault(loop: Loop) -> Subject:
    def off(rollout):
        logs = rollout.behavior_logprobs.copy()
        logs[3:] -= 0.05
        return replace(rollout, behavior_logprobs=frozen_array(logs, np.float32))

    return subject_of(with_rollouts(loop, each(off)))


class Retokenizing(RLTraining):
    """A trainer that encodes the texts again, another way."""

    def rows(self, groups, credits):
        return [replace(row, tokens=frozen_array((row.tokens + 1) % 5 + 2, np.int32))
                for row in super().rows(groups, credits)]  # fmt: skip


class Reweighing(RLTraining):
    """A trainer that counts the last row twice."""

    def rows(self, groups, credits):
        made = super().rows(groups, credits)
        return [*made[:-1], replace(made[-1], policy_weights=frozen_array(2 * made[-1].policy_weights, np.float32))]


def _as(loop: Loop, kind: type[RLTraining]) -> Loop:
    fields = {name: getattr(loop.training, name) for name in RLTraining.__dataclass_fields__}
    return replace(loop, training=kind(**fields))


def retokenized(loop: Loop) -> Subject:
    return subject_of(_as(loop, Retokenizing))


def reweighed(loop: Loop) -> Subject:
    return subject_of(_as(loop, Reweighing))


def emulated_bug(_: Loop) -> Subject:
    return subject_of(healthy_loop('stage.rl.bugs.averaging="micro_batch"', "stage.rl.bugs.micro_batches=3"))


def mean_of_means(loop: Loop) -> Subject:
    def wrong(policy, rows, objective, *, max_tokens):
        parts = [[row] for row in rows] if max_tokens < 64 else [rows]
        total = sum(int(row.loss_mask.sum()) for row in rows)
        sums = {}
        for part in parts:
            own = sum(int(row.loss_mask.sum()) for row in part)
            factor = np.float32(total / own / len(parts))
            scaled = [
                replace(
                    row, policy_weights=row.policy_weights * factor, imitation_weights=row.imitation_weights * factor
                )
                for row in part
            ]
            sums = accumulate(policy, scaled, objective, max_tokens=max_tokens)
        return sums

    return replace(subject_of(loop), accumulate=wrong)


def no_disk(loop: Loop) -> Subject:
    subject = subject_of(loop)
    stages = (loop.stage.model_copy(update={"keep_checkpoints": 10**12, "checkpoint_every": 1, "updates": 10**7}),)
    return replace(subject, stages=stages)


def frozen_optimizer(loop: Loop) -> Subject:
    still = copy.copy(loop.training.optimization)
    still.step = lambda update: {}
    return subject_of(replace(loop, training=replace(loop.training, optimization=still)))


def stale_after_step(loop: Loop) -> Subject:
    return subject_of(_sampled_by(loop, healthy_loop()))


FAULTS: dict[Callable[[Loop], Subject | list[Check]], tuple[str, str]] = {
    stale_weights: ("sampler = trainer", "sick"),
    unannounced_weights: ("weights version", "sick"),
    stale_after_step: ("weights reached the sampler", "sick"),
    frozen_optimizer: ("weights reached the sampler", "sick"),
    shifted_mask: ("masks", "sick"),
    mask_on_observation: ("masks", "sick"),
    mask_on_prompt: ("masks", "sick"),
    swapped_rollouts: ("groups unmixed", "sick"),
    incomplete_group: ("groups complete", "sick"),
    duplicated_rollout: ("no duplicates", "sick"),
    dead_divergence: ("loss terms alive", "sick"),
    dead_policy_loss: ("loss terms alive", "sick"),
    broken_loss: ("gradient finite", "sick"),
    half_scaled_baseline: ("advantage mean", "sick"),
    doubled_advantages: ("credit formula", "sick"),
    nan_advantages: ("advantages finite", "sick"),
    no_variance: ("zero variance", "watch"),
    always_yes: ("canaries refused", "sick"),
    always_no: ("reference accepted", "sick"),
    sleeping: ("verifier alive", "sick"),
    slow: ("verdict time", "watch"),
    raising: ("verifier alive", "sick"),
    killing: ("verifier alive", "sick"),
    exiting: ("verifier alive", "sick"),
    failing_on_rollouts: ("verdicts", "sick"),
    flipped_rewards: ("reward sign", "sick"),
    constant_rewards: ("reward sign", "sick"),
    other_temperature: ("sampler = trainer", "sick"),
    other_temperature_recorded: ("log-probs recorded", "sick"),
    top_p: ("sampler = trainer", "sick"),
    silent_top_p: ("sampler distribution", "sick"),
    late_cache_fault: ("prefix by prefix", "sick"),
    retokenized: ("sampled ids", "sick"),
    reweighed: ("token weights", "sick"),
    emulated_bug: ("token weights", "watch"),
    mean_of_means: ("gradient invariance", "sick"),
    no_disk: ("disk", "sick"),
}
"""Each fault with the check that must name it, and how bad that is."""
