"""Audits of an RL stage while it runs: its last batch beside its first one, and what the policy says of itself.

The record audits read the last batch, what is kept of the first one, and the metrics so far.  `template_collapse` lets
the policy score reasonings of the last batch after each other's prompts; the spread of its z-score is a moving average.
All of it is a function of the batch and the store, so that a resumed stage finds the same.  Nothing here stops a stage.
"""

import math
import re
import time
from collections.abc import Callable, Iterator, MutableMapping, Sequence
from dataclasses import dataclass, field, replace

from forkpoint.audits import advantage_collapse, exploration, length_and_format, mismatch
from forkpoint.audits.part import RANKS, STATUS
from forkpoint.audits.rows import Metrics, Row, records_of
from forkpoint.audits.table import run_audits
from forkpoint.audits.template_collapse import Collapse, collapse, cross_scores, findings
from forkpoint.audits.texts import spoken
from forkpoint.config.recipe import RLStage
from forkpoint.config.watching import Audits
from forkpoint.errors import ForkpointError
from forkpoint.records import Contents, Finding, Group, Records, SpanKind
from forkpoint.store import RunReader
from forkpoint.training.hooks import Inspection, Loop
from forkpoint.training.stage import kept_rollouts

AUDIT = "health"
"""Names what the hook stores; each finding has the name of its own audit."""
RECORD_AUDITS = (advantage_collapse.NAME, length_and_format.NAME, mismatch.NAME, exploration.NAME)
"""What asks no model and says something of a few hundred rollouts."""
METRICS = ("kl_to_behavior", "mismatch_max")
"""Metrics of the stage that the record audits read."""
SECONDS, SCORED, SPREAD = "audit_seconds", "audit_scored_tokens", "template_spread"
"""Names in the store, as those of `collapse_metrics`."""
FORWARDS = 4
"""What an update spends on a rollout at least, in forwards of it: sampling one, its gradient three."""
FEWEST = 8
"""Reasonings below which cross scores say nothing."""
_NUMBER = re.compile(r"[-+]?\d[\d.,:e%+-]*")


def affordable_pairs(settings: Audits, *, problems: int, rollouts: int) -> int:
    """How many reasonings may be scored after each other's prompts; 0 for fewer than 8.

    N reasonings cost N min(N, problems) forwards, and every N updates may spend `share` of what they cost at least.

    >>> affordable_pairs(Audits(), problems=32, rollouts=512), affordable_pairs(Audits(), problems=4, rollouts=16)
    (64, 16)
    """
    allowed = int(settings.share * settings.every * FORWARDS * rollouts)
    square = math.isqrt(allowed)
    count = min(settings.pairs, square if square <= problems else allowed // max(1, problems))
    return count if count >= FEWEST else 0


def batch_records(groups: Sequence[Group], *, stage: str, metrics: Metrics | None = None) -> Records:
    """The records of training groups, as those of a stored stage are."""
    return records_of(_rows(groups, stage), metrics=metrics)


def _rows(groups: Sequence[Group], stage: str) -> Iterator[Row]:
    for group in groups:
        rewards: list[float | None] = [reward.total for reward in group.rewards]
        rewards = rewards or [None] * len(group.rollouts)
        for rollout, verdict, reward in zip(group.rollouts, group.verdicts, rewards, strict=True):
            yield Row(
                id=rollout.id, problem=rollout.problem_key, group=rollout.group_id, stage=stage, update=rollout.update,
                length=len(rollout.tokens), turns=sum(span.kind is SpanKind.OBSERVATION for span in rollout.spans),
                correct=verdict.correct, outcome=verdict.outcome, stop=rollout.stop_reason, reward=reward,
                difficulty=group.problem.difficulty, parts=verdict.parts,
                said=Contents(
                    prompt=spoken(group.problem.prompt), text=rollout.text, answer=verdict.answer,
                    reference=group.problem.answer, tokens=rollout.tokens, loss_mask=rollout.loss_mask,
                    behavior_logprobs=rollout.behavior_logprobs,
                ),
            )  # fmt: skip


def fitting(groups: Sequence[Group], context: int | None) -> list[Group]:
    """The groups without rollouts that would reach past the context after the longest of all their prompts."""
    if context is None:
        return list(groups)
    longest = max((len(rollout.prompt_tokens) for group in groups for rollout in group.rollouts), default=0)
    ids = {r.id for group in groups for r in group.rollouts if longest + len(r.tokens) <= context}
    return _only(groups, ids)


def _only(groups: Sequence[Group], ids: set[str]) -> list[Group]:
    """The groups with some of their rollouts; those without any are left out."""
    made = []
    for group in groups:
        places = [place for place, rollout in enumerate(group.rollouts) if rollout.id in ids]
        if places:
            made.append(
                replace(
                    group, rollouts=tuple(group.rollouts[place] for place in places),
                    verdicts=tuple(group.verdicts[place] for place in places),
                    rewards=tuple(group.rewards[place] for place in places) if group.rewards else (),
                )
            )  # fmt: skip
    return made


def collapse_metrics(found: Collapse) -> dict[str, float]:
    """What is stored of an estimate beside its findings; nats for a whole reasoning, two shares, and the z-score."""
    return {
        "template_information": found.information, "template_share": found.share, "template_entropy": found.entropy,
        "template_retrieval": found.retrieval, SPREAD: found.spread, "template_z_score": found.z_score,
    }  # fmt: skip


def gist(finding: Finding) -> str:
    """What a finding says apart from its numbers: two with the same gist are one piece of news.

    >>> from forkpoint.records import Severity
    >>> low = Finding(audit="a", severity=Severity.WARNING, claim="51.5% are short (1e-3).", value=0.515)
    >>> gist(low), gist(replace(low, claim="64% are short (0.2).")) == gist(low)
    ('a warning # are short (#).', True)
    """
    return f"{finding.audit} {finding.severity} {_NUMBER.sub('#', finding.claim)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthHook:
    """Audits an RL stage every N updates; a bad finding is stored and told once, an ok one is stored each time."""

    tell: Callable[[str], None]
    """Writes a line into the run's log."""
    settings: Audits
    crossing: bool = True
    """Whether the policy can score a reasoning after the prompt of another problem."""
    named: set[str] = field(default_factory=set)
    """Gists of what was told."""
    first: MutableMapping[int, Sequence[Group]] = field(default_factory=dict)
    """What is kept of the first batch, by its update."""

    def __call__(self, loop: Loop) -> Inspection | None:
        """What is new, with what it cost; None where no audit is due."""
        every = self.settings.every
        if not isinstance(loop.stage, RLStage) or not every:
            return None
        if not loop.steps:
            self._remember(loop)
            return None
        groups = loop.steps[0].groups
        if loop.done // every == loop.previous // every or not groups:
            return None
        began = time.perf_counter()
        spent = loop.probe.cost["scored_tokens"]
        found, metrics = self._record_findings(loop)
        if self.crossing:
            crossed = self._crossed(loop, groups, metrics.pop(SPREAD, None))
            if crossed is not None:
                found += findings(crossed[0], crossed[1])
                metrics |= collapse_metrics(crossed[0])
        kept = self._news(loop, found)
        cost = {SECONDS: time.perf_counter() - began, SCORED: float(loop.probe.cost["scored_tokens"] - spent)}
        return Inspection(
            audit=AUDIT, findings=tuple(kept), metrics=metrics | cost, evidence=self._evidence(loop, kept)
        )

    def _remember(self, loop: Loop) -> None:
        """Takes up what a resumed stage stored."""
        self.named.clear()
        self.first.clear()
        if loop.done:
            with RunReader(loop.run) as reader:
                self.named.update(gist(finding) for finding in reader.findings(loop.stage.name) if _bad(finding))

    def _record_findings(self, loop: Loop) -> tuple[list[Finding], dict[str, float]]:
        """What the record audits find, and the last spread where one is stored."""
        groups, name = loop.steps[0].groups, loop.stage.name
        start = loop.steps[0].update
        with RunReader(loop.run) as reader:
            if start > 1 and not self.first:
                self.first[1] = tuple(reader.groups(name, 1))
            metrics = {metric: reader.metrics(name, metric) for metric in METRICS}
            spreads = reader.metrics(name, SPREAD)[1]
        early = self.first.get(1, ()) if start > 1 else ()
        records = batch_records([*early, *groups], stage=name, metrics=metrics)
        found = [finding for result in run_audits(records, only=RECORD_AUDITS) for finding in result.findings]
        return found, ({SPREAD: float(spreads[-1])} if len(spreads) else {})

    def _crossed(
        self, loop: Loop, groups: Sequence[Group], earlier: float | None
    ) -> tuple[Collapse, tuple[str, ...]] | None:
        """The estimate of `template_collapse` and the rollouts behind it; None without two prompts, or if too dear."""
        there = fitting(groups, getattr(loop.policy, "context_length", None))
        rollouts = sum(len(group.rollouts) for group in groups)
        pairs = affordable_pairs(self.settings, problems=len(groups), rollouts=rollouts)
        key = loop.key.child("audits", loop.done)
        try:
            scores = cross_scores(there, loop.probe, key, pairs=pairs) if pairs and there else None
        except ForkpointError as error:
            self._once(f"update {loop.done}: template_collapse could not score: {error}")
            return None
        return None if scores is None else (collapse(scores, key.child("interval"), earlier=earlier), scores.ids)

    def _news(self, loop: Loop, found: Sequence[Finding]) -> list[Finding]:
        """Bad findings that were not told before, and the ok ones of audits that find nothing bad now."""
        bad = {finding.audit for finding in found if _bad(finding)}
        kept = []
        for finding in found:
            if not _bad(finding):
                kept += [] if finding.audit in bad else [finding]
            elif gist(finding) not in self.named:
                self.named.add(gist(finding))
                self.tell(f"update {loop.done}: {STATUS[finding.severity]}, {finding.audit}: {finding.claim}")
                kept.append(finding)
        return kept

    def _once(self, line: str) -> None:
        plain = _NUMBER.sub("#", line)
        if plain not in self.named:
            self.named.add(plain)
            self.tell(line)

    def _evidence(self, loop: Loop, kept: Sequence[Finding]) -> tuple[Group, ...]:
        """The rollouts of the last batch that findings name and the store would not keep."""
        step = loop.steps[0]
        stored = {r.id for group in kept_rollouts(loop.stage, step, loop.key)[0] for r in group.rollouts}
        return tuple(_only(step.groups, {name for finding in kept for name in finding.evidence} - stored))


def _bad(finding: Finding) -> bool:
    return RANKS[finding.severity] > 0
