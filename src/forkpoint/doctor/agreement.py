"""Checks that sampler and trainer mean the same policy: log-probabilities, prefixes, the distribution, the weights."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import bdtr
from torch import Tensor

from forkpoint.batching import Row, TokenBatch, pad_rows
from forkpoint.doctor.check import Check
from forkpoint.doctor.subject import Subject, drawn_groups
from forkpoint.policies.causal import MAX_LOGITS, CausalPolicy
from forkpoint.policies.protocol import Policy
from forkpoint.policies.tabular import OFFSET, TabularPolicy
from forkpoint.records import Rollout, Severity
from forkpoint.training.rl import RLTraining

SINGLE_GAP, HALF_GAP = 1e-4, 0.5
"""Most nats between cached decoding and a full forward: measured 1e-6 in single precision; half has 3 digits."""
CHANCE = 1e-6
"""A probability below this is not chance."""
TAILS = (0.5, 0.7, 0.8, 0.9, 0.95, 0.99)
MOST_TOKENS = 4096
"""Tokens whose whole distributions are looked at."""
STILL = 1e-9
"""Learning rate up to which steps move no log-probability in single precision; stages that only measure have such."""
STEPS = 20
"""Most steps of a throw-away policy until its log-probabilities have moved."""


def allowed_gap(policy: Policy) -> float:
    """The bound on |log-prob of the sampler - log-prob of the trainer|, nats, for the policy's number format."""
    dtype = next(iter(policy.model.parameters())).dtype
    return HALF_GAP if dtype.itemsize < 4 else SINGLE_GAP


def sampler_equals_trainer(subject: Subject) -> Check:
    """The log-probabilities that the sampler recorded are those of a full forward of the trainer's policy."""
    rollouts = sampled(subject)
    bound = allowed_gap(subject.loop.policy)
    gap = worst_gap(subject.loop.policy, rollouts, subject.objective.temperature)
    return Check(
        name="sampler = trainer",
        did=f"scored {sum(int(rollout.loss_mask.sum()) for rollout in rollouts)} sampled tokens with the trainer's "
        "policy: the largest difference to the sampler's log-probabilities, nats",
        value=gap,
        bound=bound,
        ok=gap <= bound,
        remedy="Sampler and trainer must share weights, temperature, tokens and mask: look at what was changed last.",
    )


def prefixes(subject: Subject) -> Check:
    """Prefix by prefix, each scored alone from its first token, without a cache: where the two first part."""
    policy, bound = subject.loop.policy, allowed_gap(subject.loop.policy)
    rollouts = sampled(subject)
    gap, first, counted = 0.0, -1, 0
    if rollouts:
        rollout = max(rollouts, key=lambda each: int(each.loss_mask.sum()))
        places = np.flatnonzero(rollout.loss_mask)[: subject.extent.prefixes]
        gaps = _prefix_gaps(policy, rollout, places, subject.objective.temperature)
        counted, gap = len(places), float(gaps.max(initial=0.0))
        late = np.flatnonzero(gaps > bound)
        first = int(places[late[0]]) if len(late) else -1
    where = f"; they part at position {first}" if first >= 0 else ""
    return Check(
        name="prefix by prefix",
        did=f"scored {counted} prefixes of one rollout, each alone{where}: the largest difference, nats",
        value=gap,
        bound=bound,
        ok=gap <= bound,
        remedy="Where only later prefixes differ, the cache or the positions are wrong; where all do, the weights.",
    )


@torch.inference_mode()
def _prefix_gaps(
    policy: Policy, rollout: Rollout, places: NDArray[np.int64], temperature: float
) -> NDArray[np.float64]:
    whole = np.concatenate([rollout.prompt_tokens, rollout.tokens])
    begin = len(rollout.prompt_tokens)
    one = np.ones(1, np.bool_)
    rows = [
        Row(prompt=whole[: begin + place], tokens=whole[begin + place : begin + place + 1], loss_mask=one)
        for place in places
    ]
    if not rows:
        return np.zeros(0)
    batch = pad_rows(rows, range(len(rows)), device=policy.device)
    scores, _ = policy.logprobs(batch, temperature=temperature)
    return np.abs(scores[:, 0].double().cpu().numpy() - rollout.behavior_logprobs[places])


def sampler_distribution(subject: Subject) -> Check:
    """Sampled tokens are spread over the trainer's distribution as draws from it are.

    Each token's place in its distribution (the probability of all more probable tokens, and a keyed random share of
    its own) is uniform in [0, 1] and independent of the others (Rosenblatt 1952), whatever the policy is.  A sampler
    that cuts the tail off in silence leaves the upper end empty.
    """
    places = np.concatenate([[], *token_places(subject)])
    chance = uniform_chance(places)
    return Check(
        name="sampler distribution",
        did=f"placed {len(places)} sampled tokens in the trainer's distribution: "
        "the chance of places at least as uneven",
        value=chance,
        bound=CHANCE,
        ok=chance >= CHANCE,
        remedy="Sample by temperature alone: top-k, top-p, penalties and bad words change what is drawn.",
    )


def uniform_chance(places: NDArray[np.float64]) -> float:
    """An upper bound on the chance of numbers at least as uneven, if they are uniform in [0, 1] and independent.

    The smaller of Kolmogorov's 2 exp(-2 N D^2) and the binomial chance of so few above each of some points, times the
    number of questions asked.
    """
    count = len(places)
    if not count:
        return 1.0
    ordered = np.sort(places)
    steps = np.arange(count + 1) / count
    distance = max(float(np.max(steps[1:] - ordered)), float(np.max(ordered - steps[:-1])))
    chances = [2.0 * float(np.exp(-2.0 * count * distance**2))]
    chances += [float(bdtr(int((places > tail).sum()), count, 1.0 - tail)) for tail in TAILS]
    return min(1.0, min(chances) * len(chances))


@torch.inference_mode()
def token_places(subject: Subject) -> list[NDArray[np.float64]]:
    """For each rollout where its tokens lie in their distributions; empty for a policy of an unknown kind."""
    policy, found, left = subject.loop.policy, [], MOST_TOKENS
    key = subject.loop.key.child("doctor", subject.loop.done, "places")
    for rollout in sampled(subject):
        if left <= 0:
            break
        batch = pad_rows([_row(rollout)], [0], device=policy.device)
        got = _distributions(policy, batch, subject.objective.temperature)
        if got is None:
            return []
        logprobs, chosen = got
        uniforms = torch.from_numpy(key.child(rollout.id).uniforms(len(chosen))).to(policy.device)
        mine = logprobs.gather(-1, chosen[:, None])
        columns = torch.arange(logprobs.shape[1], device=policy.device)[None]
        before = (logprobs > mine) | ((logprobs == mine) & (columns < chosen[:, None]))
        places = logprobs.exp().masked_fill(~before, 0.0).sum(-1) + uniforms * mine[:, 0].exp()
        found.append(places.clamp(0.0, 1.0).cpu().numpy())
        left -= len(chosen)
    return found


def _distributions(policy: Policy, batch: TokenBatch, temperature: float) -> tuple[Tensor, Tensor] | None:
    """Log-probabilities [N, V] in float64 and the chosen column of each trained token; None for an unknown policy."""
    where = batch.loss_mask
    if isinstance(policy, CausalPolicy):
        hidden, chosen = policy.hidden(batch)[where], batch.tokens[where]
        most = max(1, MAX_LOGITS // policy.logits(hidden[:1]).shape[-1])
        logits, chosen = policy.logits(hidden[:most]), chosen[:most]
    elif isinstance(policy, TabularPolicy):
        recent, moves = policy.windows(batch)[where], policy.edges.moves
        logits = policy.edges.rows(recent)
        chosen = moves.entries(recent[:, -1], batch.tokens[where] - OFFSET) - moves.offsets[recent[:, -1]]
    else:
        return None
    return torch.log_softmax(logits.double() / temperature, dim=-1), chosen


def versions(subject: Subject) -> Check:
    """Fresh rollouts say that they were written by the newest weights."""
    rollouts = sampled(subject)
    done = subject.loop.done
    stale = sum(any(span.policy_version != done for span in rollout.spans) for rollout in rollouts)
    return Check(
        name="weights version",
        did=f"read the version of {len(rollouts)} fresh rollouts: this many are not of update {done}",
        value=stale,
        bound=0,
        ok=stale == 0,
        remedy="Tell the sampler after every update (update_weights), before the next rollout.",
    )


@dataclass(frozen=True, slots=True)
class _Moved:
    """What a step did to the policy, and whether the sampler followed."""

    change: float
    gap: float
    steps: int


def weights_reach_sampler(subject: Subject) -> Check:
    """Real optimizer steps on a throw-away policy move its log-probabilities, and the sampler follows.

    Changes the weights: never for the policy of a run.
    """
    training, bound = subject.loop.training, allowed_gap(subject.loop.policy)
    moved = _step_and_draw(subject, training) if isinstance(training, RLTraining) and sampled(subject) else None
    if moved is None:
        return Check(
            name="weights reached the sampler", did="nothing was drawn to step on", value=0.0, bound=None, ok=True,
            remedy="",
        )  # fmt: skip
    unmoved = moved.change <= bound
    did = f"took {moved.steps} real steps, which moved the log-probabilities by {moved.change:.2g} nats, and sampled "
    return Check(
        name="weights reached the sampler",
        did=did + "again: the largest difference between sampler and trainer, nats",
        value=moved.gap,
        bound=bound,
        ok=moved.gap <= bound and not unmoved,
        remedy="The optimizer changes nothing: look at the learning rate and at what is trained."
        if unmoved
        else "New weights must be in the sampler before the next rollout.",
        severity=Severity.WARNING if unmoved and subject.loop.stage.learning_rate <= STILL else Severity.CRITICAL,
    )


def _step_and_draw(subject: Subject, training: RLTraining) -> _Moved:
    loop, policy, temperature = subject.loop, subject.loop.policy, subject.objective.temperature
    rollouts = sampled(subject)
    before = scores(policy, rollouts, temperature)
    rows = [
        replace(row, advantages=np.where(row.loss_mask, 1.0, 0.0).astype(np.float32))
        for row in subject.rows
        if len(row.policy_weights)
    ]
    change, taken, bound = 0.0, 0, allowed_gap(policy)
    objective = replace(subject.objective, reference=None)
    while taken < STEPS and change <= 100 * bound:
        taken += 1
        subject.accumulate(policy, rows, objective, max_tokens=loop.stage.max_batch_tokens)
        training.optimization.step(loop.stage.warmup + 1)
        training.weights_changed(loop.done + taken)
        after = scores(policy, rollouts, temperature)
        change = max((float(np.abs(a - b).max(initial=0.0)) for a, b in zip(after, before, strict=True)), default=0.0)
    fresh = drawn_groups(loop, training, subject.extent, purpose="doctor-again")
    drawn = [rollout for group in fresh.groups for rollout in group.rollouts]
    return _Moved(change, worst_gap(policy, drawn, temperature), taken)


def sampled(subject: Subject) -> list[Rollout]:
    """The rollouts that were drawn for the doctor with the weights as they are."""
    groups = subject.judged[0].groups if subject.judged else ()
    return [rollout for group in groups for rollout in group.rollouts if len(rollout.tokens)]


def worst_gap(policy: Policy, rollouts: Sequence[Rollout], temperature: float) -> float:
    """The largest |log-prob of the sampler - log-prob of the policy| over the rollouts' own tokens, nats."""
    found = scores(policy, rollouts, temperature)
    gaps = [
        np.abs(logs - rollout.behavior_logprobs[rollout.loss_mask]).max(initial=0.0)
        for logs, rollout in zip(found, rollouts, strict=True)
    ]
    return float(np.max(gaps)) if gaps else 0.0


@torch.inference_mode()
def scores(policy: Policy, rollouts: Sequence[Rollout], temperature: float) -> list[NDArray[np.float64]]:
    """The policy's log-probabilities of each rollout's own tokens, by a full forward, nats."""
    found: list[NDArray[np.float64]] = []
    for start in range(0, len(rollouts), 8):
        part = [_row(rollout) for rollout in rollouts[start : start + 8]]
        batch = pad_rows(part, range(len(part)), device=policy.device)
        logs = policy.logprobs(batch, temperature=temperature)[0].double().cpu().numpy()
        found += [line[: len(row.tokens)][row.loss_mask] for line, row in zip(logs, part, strict=True)]
    return found


def _row(rollout: Rollout) -> Row:
    return Row(prompt=rollout.prompt_tokens, tokens=rollout.tokens, loss_mask=rollout.loss_mask)
