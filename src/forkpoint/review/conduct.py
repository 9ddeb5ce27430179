"""A whole review: which rollouts, what their outcome turned on, what is proposed, and what a re-rollout says."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

from forkpoint.probe import Probe
from forkpoint.records import Edit, Group
from forkpoint.review.gate import HintGate, hint_gate
from forkpoint.review.hinge_search import Localisation
from forkpoint.review.localise import localise
from forkpoint.review.postmortem import Review, Verification
from forkpoint.review.repair import POLICY, Dropped, Proposer, Repair, propose
from forkpoint.review.steps import blamed_step
from forkpoint.review.verify import Trials, verify
from forkpoint.seeds import Key

GATE_PROBLEMS = 32
"""Problems of the hint gate, one rollout with and one without the answer in the prompt."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Conduct:
    """How a review is held."""

    max_new_tokens: int
    """Budget of a rollout after the prompt."""
    sources: tuple[str, ...] = (POLICY, "sibling")
    """Who proposes, of `policy`, `sibling`, `solver`."""
    knowledge: tuple[str, ...] = ("answer",)
    """What the policy is told, of `answer`, `sibling`, `feedback`."""
    localisation: Localisation = field(default_factory=Localisation)
    temperature: float = 1.0
    """Of the gate's rollouts; continuations have that of their rollout."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Proposed:
    """Postmortems and what they propose."""

    reviews: tuple[Review, ...]
    edits: tuple[Edit, ...]
    dropped: tuple[Dropped, ...] = ()
    """Texts that are no proposals."""
    gate: HintGate | None = None
    """None: `policy` was not asked."""


def failures(groups: Sequence[Group], most: int) -> list[str]:
    """The rollouts worth a postmortem: of each problem that was solved at least once its first `most` failures.

    Where no rollout was right the chance of success is near 0 before the first step, and no step can lose it.
    """
    chosen = []
    for group in groups:
        if any(verdict.correct for verdict in group.verdicts):
            wrong = [r.id for r, v in zip(group.rollouts, group.verdicts, strict=True) if v.correct is False]
            chosen += wrong[:most]
    return chosen


def held(
    groups: Sequence[Group], probe: Probe, *, conduct: Conduct, key: Key, only: Collection[str] | None = None,
    gate: HintGate | None = None, ask: Mapping[str, Proposer] | None = None,
) -> Proposed:  # fmt: skip
    """The postmortems of the rollouts in `only` (None: of all), and a proposal for every blamed step.

    `gate` is one that was asked before; without it the gate comes first where the policy is to propose.
    `ask`: chat models under their names.
    """
    sources = conduct.sources
    if POLICY in sources and gate is None:
        problems = [group.problem for group in groups][:GATE_PROBLEMS]
        gate = hint_gate(
            problems, probe, key=key, max_new_tokens=conduct.max_new_tokens, temperature=conduct.temperature
        )
    if gate is not None and not gate.open:
        sources = tuple(source for source in sources if source != POLICY)
    reviews = localise(groups, probe, settings=conduct.localisation, max_new_tokens=conduct.max_new_tokens, only=only)
    homes = {rollout.id: group for group in groups for rollout in group.rollouts}
    steps = [blamed_step(review, homes[review.rollout_id]) for review in reviews]
    settings = Repair(max_new_tokens=conduct.max_new_tokens, sources=sources, knowledge=conduct.knowledge)
    blamed = [step for step in steps if step is not None]
    found = propose(blamed, probe, settings=settings, key=key.child("repair"), ask=ask)
    return Proposed(
        reviews=tuple(reviews), edits=tuple(edit for each in found for edit in each.edits),
        dropped=tuple(drop for each in found for drop in each.dropped), gate=gate,
    )  # fmt: skip


def looks(continuations: int) -> tuple[int, int, int]:
    """Trials of each arm at each look of a test that ends with `continuations`.

    >>> looks(64), looks(4)
    ((16, 32, 64), (1, 2, 4))
    """
    return continuations // 4, continuations // 2, continuations


def verified(
    edits: Sequence[Edit], groups: Sequence[Group], probe: Probe, *, trials: Trials, key: Key, best: bool = True
) -> list[Verification]:
    """What re-rollouts say of each edit; with `best` one fix of a rollout stays accepted, that with most successes.

    Two fixes of one step rest on the same resampled steps, and the second teaches little.
    """
    found = verify(edits, groups, probe, settings=trials, key=key.child("verify"))
    if not best:
        return found
    homes = {edit.id: edit.rollout_id for edit in edits}
    first: dict[str, Verification] = {}
    for each in sorted((each for each in found if each.accepted), key=lambda v: -v.fixed[0] / max(1, v.fixed[1])):
        first.setdefault(homes[each.edit_id], each)
    return [
        replace(each, accepted=False, reason="another fix of this rollout did better")
        if each.accepted and first[homes[each.edit_id]] is not each
        else each
        for each in found
    ]
