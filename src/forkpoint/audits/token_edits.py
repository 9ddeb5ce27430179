"""`token_edits`: which tokens training changed, read along the trained model's own rollouts.

    agreement   share of positions where the most probable token of both models is the same
    rank        of the trained model's most probable token under the base: 1 unshifted, 2 to 5 reranked, beyond shifted
    ratio       mean entropy of the base where they differ / everywhere
    JS          (KL(p || m) + KL(q || m)) / 2, m = (p + q) / 2, nats

(arXiv 2605.06241: RL on large models changes 1.0 to 4.1 % of the top tokens, all of them to one of the base's first
five, where its entropy is 5 to 12 times the mean).  The causal check lets the base write and puts the trained model's
most probable token (a) where the two differ, (b) at as many random positions:

    recovered = (accuracy of the edited base - of the base) / (of the trained model - of the base)
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from forkpoint.audits.part import EXAMPLES, Bounds, Part, Parts, graded, unasked
from forkpoint.audits.subject import (
    Attempt,
    Compared,
    Comparing,
    Edited,
    Editing,
    Subject,
    attempts,
    problem_numbers,
    spread,
)
from forkpoint.probe import Probe
from forkpoint.records import Finding, Group, Ints, Records, Severity, frozen_array
from forkpoint.seeds import Key
from forkpoint.theory.intervals import Interval, mean_interval, ratio_interval, wilson_interval

NAME = "token_edits"
ROLLOUTS = 256
"""Rollouts that are read under both models."""
CAUSAL = 256
"""Texts of each arm of the causal check."""
NEAR = 5
"""Last rank that counts as reranked (arXiv 2605.06241, equation 3)."""
EDITED = Bounds(watch=0.1, sick=0.5, source="RL on large models changes 0.010 to 0.041, arXiv 2605.06241; 0.5 is ours")
SHIFTED = Bounds(watch=0.05, sick=0.25, source="none was shifted by RL on large models, arXiv 2605.06241; bounds ours")

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ratio:
    """A ratio of sums over problems."""

    value: float
    interval: Interval
    """95 %, bootstrap over problems."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Edits:
    """How two models differ along the rollouts of one; None where they never do."""

    positions: int
    rollouts: int
    different: Ratio
    """Share of positions whose most probable token differs."""
    differing: int
    """How many these are."""
    shifted: Ratio | None
    """Share of these that the base ranks beyond 5."""
    second: Ratio | None
    """Share of these that the base ranks second."""
    rank: float | None
    """Mean rank under the base where they differ."""
    entropy: float
    """Mean entropy of the base, nats."""
    entropy_ratio: Ratio | None
    """Mean entropy of the base where they differ / everywhere."""
    divergence: Ratio
    """Mean Jensen-Shannon divergence, nats."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recovery:
    """What edits of the base recover.  Accuracies are means over problems."""

    base: float
    trained: float
    edited: float
    random: float
    problems: int
    places: float
    """Mean positions of a text that were given to the trained model."""
    recovered: Ratio | None
    """(edited - base) / (trained - base); None where training gained nothing."""
    recovered_random: Ratio | None
    beyond_random: Interval
    """Of edited - random, 95 %."""
    unfinished: int
    """Texts with more edits than could be made."""


def _ratio(top: Array, bottom: Array, problems: NDArray[np.uint64], key: Key) -> Ratio | None:
    """Sum of tops over sum of bottoms, over rollouts of some problems; None where the latter is not positive."""
    if bottom.sum() <= 0:
        return None
    _, place = np.unique(problems, return_inverse=True)
    above, below = (np.bincount(place, weights=each).astype(np.float64) for each in (top, bottom))
    return Ratio(value=float(top.sum() / bottom.sum()), interval=ratio_interval(above, below, key))


def edits(found: Sequence[Compared], problems: NDArray[np.uint64], key: Key) -> Edits | None:
    """The differences over all sampled tokens of some rollouts of the problems [rollouts]; None without a token."""
    ranks = [each.ranks for each in found]
    entropies = [each.entropies.astype(np.float64) for each in found]
    sampled = np.array([(rank > 0).sum() for rank in ranks], dtype=np.float64)
    different = np.array([(rank > 1).sum() for rank in ranks], dtype=np.float64)
    far = np.array([(rank > NEAR).sum() for rank in ranks], dtype=np.float64)
    next_best = np.array([(rank == 2).sum() for rank in ranks], dtype=np.float64)
    # Entropies are 0 where nothing was sampled, so plain sums are those of the sampled tokens.
    total = np.array([entropy.sum() for entropy in entropies])
    there = np.array([entropy[rank > 1].sum() for entropy, rank in zip(entropies, ranks, strict=True)])
    apart = np.array([each.divergences.sum(dtype=np.float64) for each in found])
    share, mean = (_ratio(top, sampled, problems, key.child(name)) for top, name in ((different, "d"), (apart, "js")))
    if share is None or mean is None:
        return None
    count, entropy = float(different.sum()), float(total.sum() / sampled.sum())
    at_edits = _ratio(there, different, problems, key.child("ratio"))
    moved = np.concatenate([rank[rank > 1] for rank in ranks])
    return Edits(
        positions=int(sampled.sum()), rollouts=len(found), different=share, divergence=mean, entropy=entropy,
        shifted=_ratio(far, different, problems, key.child("far")), differing=int(count),
        second=_ratio(next_best, different, problems, key.child("second")),
        rank=float(moved.mean()) if count else None,
        entropy_ratio=None if at_edits is None or entropy <= 0 else _scaled(at_edits, 1 / entropy),
    )  # fmt: skip


def _scaled(ratio: Ratio, factor: float) -> Ratio:
    return Ratio(value=ratio.value * factor, interval=(ratio.interval[0] * factor, ratio.interval[1] * factor))


def recovery(base: Array, trained: Array, edited: Array, random: Array, key: Key) -> Recovery:
    """What was recovered, from the accuracy of each problem [problems] in the four arms.

    >>> told = recovery(np.zeros(4), np.ones(4), np.array([1.0, 1, 1, 0]), np.zeros(4), Key.root(0))
    >>> told.recovered.value, told.recovered_random.value
    (0.75, 0.0)
    """
    alike = np.arange(len(base), dtype=np.uint64)
    return Recovery(
        base=float(base.mean()), trained=float(trained.mean()), edited=float(edited.mean()),
        random=float(random.mean()), problems=len(base), places=0.0, unfinished=0,
        recovered=_ratio(edited - base, trained - base, alike, key.child("edited")),
        recovered_random=_ratio(random - base, trained - base, alike, key.child("random")),
        beyond_random=mean_interval(edited - random, key.child("beyond")),
    )  # fmt: skip


def random_places(made: Sequence[Edited], key: Key) -> list[Ints]:
    """For each text as many positions as were given away in it, drawn from its length without replacement."""
    drawn = []
    for number, one in enumerate(made):
        length = len(one.rollout.tokens)
        chosen = key.child(number).generator().permutation(length)[: len(one.places)]
        drawn.append(frozen_array(np.sort(chosen), np.int32))
    return drawn


def causal_check(probe: Editing, subject: Subject, key: Key, *, limit: int = CAUSAL) -> Recovery | None:
    """The four arms on some of the subject's rollouts whose verdict is known; None without one, or without a base."""
    known = [one for one in attempts(subject.groups) if one.verdict is not None and one.verdict.correct is not None]
    starts = spread(known, limit, key.child("starts"))
    if not starts or not isinstance(subject, Probe):
        return None
    nowhere = [frozen_array([], np.int32)] * len(starts)
    # The base alone draws the same numbers as the random arm, so the two differ by the edits.
    alone, edited = probe.edited(starts, nowhere), probe.edited(starts, None)
    random = probe.edited(starts, random_places(edited, key.child("random")))
    problems = problem_numbers(starts)
    trained = np.array([float(one.verdict is not None and one.verdict.correct is True) for one in starts])
    arms = [_accuracies(subject, starts, made) for made in (alone, edited, random)]
    written, patched, scattered = (_by_problem(values, problems) for values in arms)
    told = recovery(written, _by_problem(trained, problems), patched, scattered, key.child("interval"))
    places = float(np.mean([len(one.places) for one in edited]))
    return replace(told, places=places, unfinished=sum(one.unfinished for one in edited))


def _accuracies(probe: Probe, starts: Sequence[Attempt], made: Sequence[Edited]) -> Array:
    verdicts = [probe.verify(start.problem, [one.rollout])[0] for start, one in zip(starts, made, strict=True)]
    return np.array([float(verdict.correct is True) for verdict in verdicts])


def _by_problem(values: Array, problems: NDArray[np.uint64]) -> Array:
    _, place = np.unique(problems, return_inverse=True)
    return np.asarray(np.bincount(place, weights=values) / np.bincount(place))


def planned_cost(groups: Sequence[Group], *, causal: bool = True) -> dict[str, int]:
    """Tokens that reading costs, and those of the causal check: eleven texts for each, as if edited four times."""
    lengths = sorted((len(rollout.tokens) for group in groups for rollout in group.rollouts), reverse=True)
    texts = sum(lengths[:CAUSAL]) if causal else 0
    return {"scored_tokens": 2 * sum(lengths[:ROLLOUTS]) + 2 * 11 * texts, "sampled_tokens": 11 * texts}


def _told(found: Edits, evidence: Sequence[str]) -> list[Finding]:
    """What to say of the differences."""
    claim = (
        f"{found.different.value:.1%} of {found.positions} tokens have another most probable token than under the "
        f"base; mean Jensen-Shannon divergence {found.divergence.value:.2g} nats."
    )
    told = [graded(NAME, claim, found.different.value, found.different.interval, EDITED)]
    if found.shifted is not None:
        claim = (
            f"Of these {found.shifted.value:.0%} were shifted (beyond rank {NEAR} of the base), the others reranked."
        )
        told.append(graded(NAME, claim, found.shifted.value, of_few(found.shifted, found.differing), SHIFTED))
    told = [each if each.severity is Severity.INFO else replace(each, evidence=tuple(evidence)) for each in told]
    if found.second is not None and found.rank is not None:
        claim = (
            f"Of the tokens that differ {found.second.value:.0%} are the base's second choice; their mean rank under "
            f"it is {found.rank:.2f}."
        )
        told.append(_noted(claim, found.second.value, of_few(found.second, found.differing)))
    if found.entropy_ratio is not None:
        claim = (
            f"The base's entropy is {found.entropy_ratio.value:.1f} times its mean of {found.entropy:.2f} nats where "
            f"the two differ (5 to 12 for RL on large models, arXiv 2605.06241)."
        )
        told.append(_noted(claim, found.entropy_ratio.value, found.entropy_ratio.interval))
    return told


def _noted(claim: str, value: float, interval: Interval) -> Finding:
    """What has no bound."""
    return Finding(audit=NAME, severity=Severity.INFO, claim=claim, value=value, interval=interval)


def of_few(share: Ratio, count: int) -> Interval:
    """The interval of a share of `count` tokens, at least as wide as Wilson's: one token alone has no spread."""
    low, high = wilson_interval(share.value * count, count)
    return min(low, share.interval[0]), max(high, share.interval[1])


def _recovered(found: Recovery) -> Finding:
    """What to say of the causal check: `watch` where edits gain no more than as many random ones."""
    arms = (
        f"base {found.base:.0%}, with the trained model's token where the two differ {found.edited:.0%} "
        f"({found.places:.1f} positions of a text), at as many random positions {found.random:.0%}, trained "
        f"{found.trained:.0%}, on {found.problems} problems"
    )
    left = f" {found.unfinished} texts needed more edits than 64." if found.unfinished else ""
    if found.recovered is None or found.recovered_random is None:
        claim = f"Training gained nothing here that edits could recover: {arms}.{left}"
        return Finding(audit=NAME, severity=Severity.INFO, claim=claim, value=found.edited - found.base)
    decisive = found.beyond_random[0] > 0
    claim = (
        f"The edits recover {found.recovered.value:.0%} of what training gained, random ones "
        f"{found.recovered_random.value:.0%}: {arms}.{left}"
    )
    gained = found.trained > found.base and found.beyond_random[1] <= 0
    severity = Severity.WARNING if gained and not decisive else Severity.INFO
    return Finding(
        audit=NAME, severity=severity, claim=claim, value=found.recovered.value, interval=found.recovered.interval
    )


PARTS: Parts = {"edits": Part(unasked, ("probe", "base"))}
"""The records alone say nothing here."""


def token_edits(_records: Records, probe: Probe | None = None) -> list[Finding]:
    """What training changed token by token; nothing without a probe of both models that brings rollouts.

    Raises:
        ForkpointError: the two models cannot be compared token by token.
    """
    if not isinstance(probe, Subject) or not isinstance(probe, Comparing) or probe.base is None:
        return []
    key = probe.key.child(NAME)
    chosen = spread(attempts(probe.groups), ROLLOUTS, key.child("rollouts"))
    compared = probe.compared([one.rollout for one in chosen])
    found = edits(compared, problem_numbers(chosen), key.child("interval"))
    if found is None:
        return []
    shares = [-float((each.ranks > 1).mean()) if len(each.ranks) else 0.0 for each in compared]
    worst = [chosen[place].rollout.id for place in np.argsort(shares, kind="stable")[:EXAMPLES]]
    told = _told(found, worst)
    check = causal_check(probe, probe, key.child("causal")) if isinstance(probe, Editing) else None
    return told if check is None else [*told, _recovered(check)]
