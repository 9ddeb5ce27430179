"""One reading of the meter: every rule on the same batches, held against the truth."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeAlias

import numpy as np

from forkpoint.meter.examples import Example, Plan, take_examples
from forkpoint.meter.gradients import (
    Coordinates,
    GradientScore,
    Matrix,
    batch_gradient,
    coordinates,
    gradient_score,
    own_noise,
)
from forkpoint.meter.measures import (
    Array,
    Flags,
    Measured,
    Sample,
    agreement,
    auroc,
    bootstrap_weights,
    measured,
    reliability,
)
from forkpoint.meter.subject import Rule, Subject, give_credit
from forkpoint.meter.truth import Places, Tier, Truth, drawn_truth, every_place, key_labels, truth_credits
from forkpoint.records import Batch, Credit
from forkpoint.seeds import Key
from forkpoint.training.critic import Critic

Progress: TypeAlias = Callable[[str, int, int], None]
"""Told what is being done, how far it is, and how far it goes."""
COSTS = ("sampled_tokens", "scored_tokens", "verifier_calls", "forwards")


@dataclass(frozen=True, slots=True, kw_only=True)
class Extent:
    """How much is measured."""

    tier: Tier
    positions: int = 64
    """Tokens of each seed whose truth is drawn; Monte Carlo only."""
    continuations: int = 256
    """For each of the two values of a true advantage; Monte Carlo only."""
    batches: int = 16
    """For gradients; 0 leaves them out, else at least 3."""
    gradient_problems: int = 2
    """Groups of such a batch."""
    oracle_continuations: int = 4
    """Of each token and each of the two draws of the oracle's gradient; 0 leaves it out.  Monte Carlo only."""
    seeds: int = 1
    threshold: float = 0.05
    """|true advantage| above which a step mattered, where the task does not know."""
    examples: Plan = field(default_factory=Plan)
    """Rollouts that are shown token by token."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RuleReading:
    """What is known of one rule."""

    name: str
    measures: Mapping[str, Measured]
    """Those of `measures.MEASURES`, and `auroc`."""
    cost: Mapping[str, float]
    """Beyond the rollouts themselves, for each rollout; `relative` is generated tokens over those of the rollouts."""
    gradient: GradientScore | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """All rules, and how the truth was known."""

    extent: Extent
    rollouts: int
    tokens: int
    """Of the rollouts."""
    solved: float
    """Share of correct rollouts."""
    places: int
    """Tokens whose truth is known."""
    reliability: float
    """Share of the variance of the truth that is no error of drawing."""
    labels: str
    """How it is known which steps mattered: `keys` or `threshold`."""
    rules: tuple[RuleReading, ...]
    oracle_noise: Measured | None
    """Noise-to-signal power of the gradient under the truth."""
    gradient_rollouts: int
    truth_cost: Mapping[str, float]
    """Spent on the truth alone, examples apart."""
    examples: tuple[Example, ...] = ()
    """Of the first seed's batch."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Compared:
    """One seed's batch with its truth and the credit of every rule on it."""

    batch: Batch
    truth: Truth
    credits: Mapping[str, Sequence[Credit]]
    costs: Mapping[str, Mapping[str, int]]
    truth_cost: Mapping[str, int]


def take_reading(subject: Subject, rules: Sequence[Rule], extent: Extent, progress: Progress) -> Reading:
    """The reading of a subject; every draw is a function of the subject's key.

    Raises:
        ForkpointError: a rule that this policy or task cannot serve.
    """
    critic = subject.critic() if any(rule.critic for rule in rules) else None
    compared = [_compare(subject, rules, extent, seed, critic, progress) for seed in range(extent.seeds)]
    scores, noise = _gradients(subject, rules, extent, critic, progress)
    batches = [each.batch for each in compared]
    verdicts = [verdict for batch in batches for group in batch.groups for verdict in group.verdicts]
    labels = _labels(compared)
    truth = _joined(compared, [each.truth.advantages for each in compared])
    tokens = sum(int(rollout.loss_mask.sum()) for batch in batches for rollout in batch.rollouts)
    found = []
    for rule in rules:
        key = subject.key.child("bootstrap")
        credit = np.concatenate([_at(each.truth.places, each.credits[rule.name]) for each in compared])
        sample = replace(truth, credit=credit)
        measures = {**agreement(sample, key), "auroc": _mattered(compared, labels, sample, rule.name, extent, key)}
        cost = _cost(compared, rule.name, len(verdicts), tokens)
        found.append(RuleReading(name=rule.name, measures=measures, cost=cost, gradient=scores.get(rule.name)))
    spent = {name: float(sum(each.truth_cost[name] for each in compared)) for name in COSTS}
    return Reading(
        extent=extent, rollouts=len(verdicts), tokens=tokens, places=len(truth.truth), rules=tuple(found),
        solved=sum(verdict.correct is True for verdict in verdicts) / len(verdicts), truth_cost=spent,
        reliability=float(reliability(truth.truth, truth.variance, truth.weights[None])[0]),
        labels="threshold" if labels is None else "keys", oracle_noise=noise,
        gradient_rollouts=extent.gradient_problems * subject.group_size,
        examples=take_examples(
            subject, compared[0].batch, compared[0].truth, compared[0].credits, extent.examples
        ),
    )  # fmt: skip


def _compare(
    subject: Subject, rules: Sequence[Rule], extent: Extent, seed: int, critic: Critic | None, progress: Progress
) -> _Compared:
    batch = subject.batch(subject.probe("batch"), "truth", seed)
    probe = subject.probe("truth")
    truth = subject.truth(
        batch, probe, extent.tier, positions=extent.positions, continuations=extent.continuations,
        key=subject.key.child("places", seed), progress=lambda done, total: progress("truth", done, total),
    )  # fmt: skip
    credits, costs = {}, {}
    for number, rule in enumerate(rules):
        given = give_credit(rule, batch, subject.probe(f"rule/{rule.name}", critic))
        credits[rule.name], costs[rule.name] = given.credits, given.cost
        progress("rules", number + 1, len(rules))
    return _Compared(batch=batch, truth=truth, credits=credits, costs=costs, truth_cost=probe.cost)


def _at(places: Places, credits: Sequence[Credit]) -> Array:
    """The credit of each place, in float64."""
    return np.array(
        [credits[row].advantages[t] for row, t in zip(places.rows, places.positions, strict=True)], dtype=np.float64
    )


def _joined(compared: Sequence[_Compared], values: Sequence[Array]) -> Sample:
    """The tokens of all seeds; rollouts of different seeds are different."""
    starts = np.cumsum([0, *(len(each.batch.rollouts) for each in compared)])
    truth = np.concatenate(values)
    return Sample(
        credit=np.zeros(len(truth)), truth=truth,
        variance=np.concatenate([each.truth.variances for each in compared]),
        weights=np.concatenate([each.truth.places.weights for each in compared]),
        rollout=np.concatenate(
            [each.truth.places.rows + start for each, start in zip(compared, starts, strict=False)]
        ),
    )  # fmt: skip


def _labels(compared: Sequence[_Compared]) -> list[Flags] | None:
    """For each seed whether each token decides, where the task knows it of all of them."""
    found = [key_labels(each.batch, every_place(each.batch)) for each in compared]
    return None if any(labels is None for labels in found) else [labels for labels in found if labels is not None]


def _mattered(
    compared: Sequence[_Compared], labels: list[Flags] | None, sample: Sample, rule: str, extent: Extent, key: Key
) -> Measured:
    """AUROC of |credit| for the steps that mattered: on all tokens where the task knows them, else where truth is."""
    if labels is None:
        flags = np.abs(sample.truth) > extent.threshold
        return measured(auroc(np.abs(sample.credit), flags, bootstrap_weights(sample, key)))
    every = [every_place(each.batch) for each in compared]
    starts = np.cumsum([0, *(len(each.batch.rollouts) for each in compared)])
    credit = np.concatenate([_at(places, each.credits[rule]) for places, each in zip(every, compared, strict=True)])
    rollout = np.concatenate([places.rows + start for places, start in zip(every, starts, strict=False)])
    whole = Sample(credit=credit, truth=credit, variance=credit, weights=np.ones(len(credit)), rollout=rollout)
    return measured(auroc(np.abs(credit), np.concatenate(labels), bootstrap_weights(whole, key)))


def _cost(compared: Sequence[_Compared], rule: str, rollouts: int, tokens: int) -> dict[str, float]:
    spent = {name: sum(each.costs[rule][name] for each in compared) for name in COSTS}
    return {
        **{name: count / rollouts for name, count in spent.items()},
        "relative": (tokens + spent["sampled_tokens"]) / max(1, tokens),
    }


def _gradients(
    subject: Subject, rules: Sequence[Rule], extent: Extent, critic: Critic | None, progress: Progress
) -> tuple[dict[str, GradientScore], Measured | None]:
    """The score of each rule's gradient and the noise of the oracle's; nothing where they are left out."""
    if not extent.batches:
        return {}, None
    smaller = replace(subject, problems=extent.gradient_problems)
    kept = coordinates(subject.policy, subject.key)
    mine: dict[str, list[Matrix]] = {rule.name: [] for rule in rules}
    oracle: tuple[list[Matrix], list[Matrix]] = ([], [])
    for number in range(extent.batches):
        batch = smaller.batch(smaller.probe("batch"), "gradient", number)
        for rule in rules:
            given = give_credit(rule, batch, smaller.probe(f"rule/{rule.name}", critic))
            mine[rule.name].append(_gradient(smaller, batch, given.credits, kept))
        for half, credits in enumerate(_oracle(smaller, batch, extent)):
            oracle[half].append(_gradient(smaller, batch, credits, kept))
        progress("gradients", number + 1, extent.batches)
    halves = (np.stack(oracle[0]), np.stack(oracle[1])) if oracle[0] else None
    scores = {name: gradient_score(np.stack(found), halves) for name, found in mine.items()}
    return scores, None if halves is None else own_noise(*halves)


def _gradient(subject: Subject, batch: Batch, credits: Sequence[Credit], kept: Coordinates) -> Matrix:
    return batch_gradient(subject.policy, batch, credits, kept, budget=subject.max_new_tokens)


def _oracle(subject: Subject, batch: Batch, extent: Extent) -> list[list[Credit]]:
    """The true credit twice: the same where it is exact, two independent draws where it is drawn."""
    probe = subject.probe("oracle")
    if extent.tier is not Tier.MONTE_CARLO:
        return [truth_credits(batch, subject.whole_truth(batch, probe, extent.tier))] * 2
    if not extent.oracle_continuations:
        return []
    return [
        truth_credits(batch, drawn_truth(batch, probe, continuations=extent.oracle_continuations, purpose=half))
        for half in ("one", "two")
    ]
