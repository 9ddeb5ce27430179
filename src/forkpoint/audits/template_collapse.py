"""`template_collapse`: whether the reasoning still depends on the prompt.

    I(X; Z) = mean over i of  log p(z_i | x_i) - log (1/P) sum_j p(z_i | x_j)      nats for a sequence, at most log P

over N reasonings z_i, each scored after its own and all other of P distinct prompts (RAGEN-2, arXiv 2604.06268, section
on in-batch cross scoring).  For prompts that are drawn uniformly from these P it has no bias.  It is not divided by the
number of tokens: then it would fall whenever chains merely grow.  H(Z) = I(X; Z) + H(Z | X).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from forkpoint.audits.part import Bounds, Part, Parts, unasked
from forkpoint.audits.subject import Attempt, Subject, attempts, problem_numbers, reasoning, spread, warmth
from forkpoint.probe import Probe, ScoreRequest
from forkpoint.records import Finding, Group, Records, Severity
from forkpoint.seeds import Key
from forkpoint.theory.intervals import Interval, ratio_interval

NAME = "template_collapse"
PAIRS = 64
"""Reasonings that are scored, after at most as many prompts (arXiv 2604.06268)."""
LOST = Bounds(
    watch=0.5, sick=0.9,
    source="half, nine tenths of what the prompts could tell is lost (ours; it falls before the score, RAGEN-2)",
)  # fmt: skip
EPSILON = 1e-3
"""Added to the spread of the z-score (arXiv 2604.06268)."""
KEPT = 0.9
"""Weight of the earlier spread in its moving average (arXiv 2604.06268)."""

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CrossScores:
    """N reasonings after each of P distinct prompts."""

    table: Array
    """[N, P], log p(z_n | x_j), nats for the whole reasoning."""
    own: NDArray[np.int64]
    """[N], the column of the prompt that each was written for."""
    lengths: NDArray[np.int64]
    """[N], tokens."""
    problems: NDArray[np.uint64]
    """[N]."""
    ids: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Collapse:
    """What cross scores say.  Nats for a whole reasoning, unless a name says otherwise."""

    information: float
    """I(X; Z)."""
    interval: Interval
    """95 %, bootstrap over problems."""
    cap: float
    """log P: no estimate is above it."""
    entropy: float
    """H(Z | X)."""
    entropy_per_token: float
    marginal_entropy: float
    """H(Z)."""
    retrieval: float
    """How often a reasoning is most probable after its own prompt; ties count in part."""
    chance: float
    """1 / P."""
    spread: float
    """Standard deviation of the marginal likelihoods, or its moving average."""
    reasonings: int
    prompts: int

    @property
    def share(self) -> float:
        """I(X; Z) / log P."""
        return self.information / self.cap

    @property
    def z_score(self) -> float:
        """I(X; Z) in units of the spread."""
        return self.information / (self.spread + EPSILON)


def pointwise(scores: CrossScores) -> tuple[Array, Array]:
    """The matched and the marginal log-likelihood of each reasoning, [N] and [N], nats."""
    highest = scores.table.max(axis=1)
    total = np.exp(scores.table - highest[:, None]).mean(axis=1)
    return scores.table[np.arange(len(scores.own)), scores.own], highest + np.log(total)


def collapse(scores: CrossScores, key: Key, *, earlier: float | None = None) -> Collapse:
    """The estimate of I(X; Z) with its interval, and what stands beside it.

    `earlier` is the spread of the last time, which is then averaged in: 0.9 of it and 0.1 of the new one.

    Raises:
        ValueError: fewer than two prompts, or no reasoning.
    """
    count, prompts = scores.table.shape
    if prompts < 2 or not count:
        raise ValueError(f"{count} reasonings after {prompts} prompts: needed are one and two")
    matched, marginal = pointwise(scores)
    gain = matched - marginal
    _, place = np.unique(scores.problems, return_inverse=True)
    best = scores.table == scores.table.max(axis=1, keepdims=True)
    hits = best[np.arange(count), scores.own] / best.sum(axis=1)
    sums, counts = (np.bincount(place, weights=each).astype(np.float64) for each in (gain, np.ones(count)))
    deviation = float(marginal.std())
    return Collapse(
        information=float(gain.mean()),
        interval=ratio_interval(sums, counts, key),
        cap=math.log(prompts), entropy=-float(matched.mean()),
        entropy_per_token=-float(matched.sum()) / max(1, int(scores.lengths.sum())),
        marginal_entropy=-float(marginal.mean()), retrieval=float(hits.mean()), chance=1 / prompts,
        spread=deviation if earlier is None else KEPT * earlier + (1 - KEPT) * deviation,
        reasonings=count, prompts=prompts,
    )  # fmt: skip


def cross_scores(groups: Sequence[Group], probe: Probe, key: Key, *, pairs: int = PAIRS) -> CrossScores | None:
    """The cross scores of `pairs` reasonings of some rollouts; None without two different prompts.

    Scored are the tokens that the policy wrote in its chain of thought, at the temperature of the first rollout.
    Equal prompts are one column.  Costs P forwards of each reasoning and no sampling.
    """
    chosen = _chosen(groups, probe, key, pairs)
    columns: dict[bytes, int] = {}
    own = [columns.setdefault(one.rollout.prompt_tokens.tobytes(), len(columns)) for one, _ in chosen]
    if len(columns) < 2:
        return None
    prompts = [np.frombuffer(prompt, np.int32) for prompt in columns]
    requests = [
        ScoreRequest(
            prompt_tokens=np.concatenate([prompt, one.rollout.tokens[:start]]), tokens=one.rollout.tokens[start:end],
            temperature=warmth(one.rollout),
        )
        for one, (start, end) in chosen
        for prompt in prompts
    ]  # fmt: skip
    masks = [one.rollout.loss_mask[start:end] for one, (start, end) in chosen]
    found = probe.score(requests)
    sums = [scores[masks[at // len(prompts)]].sum(dtype=np.float64) for at, scores in enumerate(found)]
    return CrossScores(
        table=np.array(sums).reshape(len(chosen), len(prompts)), own=np.array(own),
        lengths=np.array([int(mask.sum()) for mask in masks]), problems=problem_numbers([one for one, _ in chosen]),
        ids=tuple(one.rollout.id for one, _ in chosen),
    )  # fmt: skip


def _chosen(groups: Sequence[Group], probe: Probe, key: Key, pairs: int) -> list[tuple[Attempt, tuple[int, int]]]:
    """Attempts with their chains of thought, all of one temperature."""
    there = [one for one in attempts(groups) if reasoning(probe, one.rollout) is not None]
    alike = [one for one in there if warmth(one.rollout) == warmth(there[0].rollout)]
    kept = spread(alike, pairs, key.child(NAME, "pairs"))
    return [(one, place) for one in kept if (place := reasoning(probe, one.rollout)) is not None]


def planned_cost(groups: Sequence[Group], *, pairs: int = PAIRS) -> dict[str, int]:
    """Most tokens that the audit scores and samples."""
    lengths = sorted((len(rollout.tokens) for group in groups for rollout in group.rollouts), reverse=True)[:pairs]
    prompts = min(pairs, len({group.problem.key for group in groups}))
    return {"scored_tokens": prompts * sum(lengths), "sampled_tokens": 0}


def findings(found: Collapse, ids: Sequence[str] = ()) -> list[Finding]:
    """What to say of an estimate; graded is the share of log P that is missing."""
    low, high = (1 - end / found.cap for end in reversed(found.interval))
    severity = LOST.grade(low)
    template = "one template for all prompts" if found.entropy > 1 else "one text for all prompts"
    verdict = {
        Severity.INFO: "the reasoning tells prompts apart",
        Severity.WARNING: "much of the reasoning is the same for every prompt",
        Severity.CRITICAL: f"the reasoning is {template}",
    }[severity]
    claim = (
        f"I(prompt; reasoning) = {found.information:.2f} nats of at most log {found.prompts} = {found.cap:.2f} "
        f"({found.share:.0%}), from {found.reasonings} reasonings: {verdict}. "
        f"Bound on the missing share {LOST.threshold(severity):g}: {LOST.source}."
    )
    beside = (
        f"A reasoning is most probable after its own prompt in {found.retrieval:.0%} of the cases (chance "
        f"{found.chance:.0%}); H(reasoning | prompt) = {found.entropy:.1f} nats, {found.entropy_per_token:.3f} for a "
        f"token, H(reasoning) = {found.marginal_entropy:.1f}; z-score {found.z_score:.2f}."
    )
    return [
        Finding(
            audit=NAME, severity=severity, claim=claim, value=1 - found.share, interval=(low, high),
            threshold=LOST.threshold(severity), evidence=tuple(ids[:8]) if severity is not Severity.INFO else (),
        ),
        Finding(audit=NAME, severity=Severity.INFO, claim=beside, value=found.retrieval, threshold=found.chance),
    ]  # fmt: skip


PARTS: Parts = {"information": Part(unasked, ("probe",))}
"""The records alone say nothing here."""


def template_collapse(_records: Records, probe: Probe | None = None) -> list[Finding]:
    """How much of the prompt the reasoning holds; nothing without a probe that brings rollouts of two prompts."""
    if probe is None or not isinstance(probe, Subject):
        return []
    scores = cross_scores(probe.groups, probe, probe.key)
    return [] if scores is None else findings(collapse(scores, probe.key.child(NAME, "interval")), scores.ids)
