"""Which tokens decide, found without an oracle, and how much the others are read by those that do.

Letters: G rollouts of one problem, T tokens of a rollout.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from forkpoint.credit.branch import branch
from forkpoint.credit.counterfactual import counterfactual
from forkpoint.probe import Probe, ScoreRequest
from forkpoint.records import Batch, Bools, Credit, Group, Rollout, frozen_array

Table: TypeAlias = NDArray[np.float64]
SWAP: Mapping[str, Any] = MappingProxyType({"cuts": "every:1", "alternatives": 2})
"""Each character against those of the next two rollouts of the group; the rest is kept."""
CUTS, CONTINUATIONS = 8, 4
"""Of `branch`, where characters cannot be swapped."""
RISE = 0.5
"""Of the value over a segment, from which on its tokens decide: four continuations tell no less."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Influence:
    """A dense credit of a batch, and the tokens that it says decide."""

    rule: str
    """`counterfactual` or `branch`."""
    options: Mapping[str, Any]
    credits: tuple[Credit, ...]
    """In the order of `batch.rollouts`."""
    decides: tuple[Bools | None, ...]
    """Of each rollout, [T]; None where it cannot be told."""

    @property
    def share(self) -> float:
        """The share of tokens that decide, in rollouts of which it is known; nan where it is of none."""
        known = [mask for mask in self.decides if mask is not None]
        return float(np.concatenate(known).mean()) if known else float("nan")


@dataclass(frozen=True, slots=True, kw_only=True)
class Dependence:
    """How much the log-probability of deciding tokens changes with the filler before them."""

    nats: float
    """Mean |change| of a deciding token."""
    error: float
    """Its standard error, over rollouts."""
    rollouts: int


def influence(batch: Batch, probe: Probe, *, by_character: bool) -> Influence:
    """Which tokens of each rollout decide: those whose replacement by a sibling's token turns the verdict.

    Where tokens are no characters, or an environment replies: those of segments over which the value, from four
    continuations at each of at most eight cuts, moves by 0.5 or more; that is rough.
    No single swap may turn the verdict of a wrong rollout.  So a group without a correct one is told nothing of; where
    all are equally long, a position decides for all if it does for one; elsewhere only correct rollouts are told of.
    What no sibling reaches counts as deciding.  The credits compare with two siblings, the masks with all of them.

    Raises:
        ValueError: a group of one, or rewards that are no correctness less a price for each token.
    """
    if by_character and all(map(_editable, batch.rollouts)):
        credits = counterfactual(batch, probe, **SWAP)
        most = max((len(group.rollouts) for group in batch.groups), default=2) - 1
        wide = counterfactual(batch, probe, **{**SWAP, "alternatives": most})
        return _influence("counterfactual", dict(SWAP), credits, _swapped_masks(batch, wide))
    longest = max((len(rollout.tokens) for rollout in batch.rollouts), default=1)
    options: dict[str, Any] = {
        "cuts": f"every:{math.ceil(longest / CUTS)}",
        "max_cuts": CUTS,
        "continuations": CONTINUATIONS,
    }
    valued = branch(batch, probe, **options)
    masks = [np.abs(credit.advantages) >= RISE for credit in valued]
    return _influence("branch", options, valued, masks)


def _influence(
    rule: str, options: Mapping[str, Any], credits: Sequence[Credit], masks: Sequence[NDArray[np.bool_] | None]
) -> Influence:
    known = tuple(frozen_array(mask, np.bool_) if mask is not None and mask.any() else None for mask in masks)
    return Influence(rule=rule, options=options, credits=tuple(credits), decides=known)


def _editable(rollout: Rollout) -> bool:
    return len(rollout.tokens) - len(rollout.text) in (0, 1) and bool(rollout.loss_mask.all())


def _swapped_masks(batch: Batch, credits: Sequence[Credit]) -> list[NDArray[np.bool_] | None]:
    found: list[NDArray[np.bool_] | None] = []
    rest = iter(credits)
    for group in batch.groups:
        own = [next(rest).advantages != 0 for _ in group.rollouts]
        right = [verdict.correct is True for verdict in group.verdicts]
        if any(right) and len({len(mask) for mask in own}) == 1:
            found += [np.logical_or.reduce(own)] * len(own)
        else:
            found += [mask if known else None for mask, known in zip(own, right, strict=True)]
    return found


def dependence(batch: Batch, found: Influence, probe: Probe) -> Dependence | None:
    """How much deciding tokens read the filler: E|log pi(y_t | y_<t) - log pi(y_t | y'_<t)| over them, nats.

    y' is the rollout with its filler replaced by that of the next rollout of its group.  Only tokens after the first
    one that was replaced count.  None where nothing was replaced before a deciding token, or a score is not finite.
    """
    owners = [(group, place) for group in batch.groups for place in range(len(group.rollouts))]
    asked, places = [], []
    for (group, place), mask in zip(owners, found.decides, strict=True):
        pair = None if mask is None else _replaced(group, place, mask)
        if pair is not None:
            places.append(pair[1])
            asked += [_request(group.rollouts[place], tokens) for tokens in (group.rollouts[place].tokens, pair[0])]
    if not asked:
        return None
    scores = probe.score(asked)
    pairs = zip(scores[::2], scores[1::2], places, strict=True)
    changes = [np.abs(one[at].astype(np.float64) - other[at]) for one, other, at in pairs]
    means = np.array([change.mean() for change in changes])
    if not np.isfinite(means).all():
        return None
    error = float(means.std(ddof=1) / math.sqrt(len(means))) if len(means) > 1 else float("nan")
    return Dependence(nats=float(means.mean()), error=error, rollouts=len(means))


def _request(rollout: Rollout, tokens: NDArray[np.int32]) -> ScoreRequest:
    return ScoreRequest(prompt_tokens=rollout.prompt_tokens, tokens=tokens, temperature=rollout.temperature)


def _replaced(group: Group, place: int, decides: Bools) -> tuple[NDArray[np.int32], NDArray[np.int64]] | None:
    """The tokens with the next sibling's filler, and the deciding positions after the first change."""
    rollout, sibling = group.rollouts[place], group.rollouts[(place + 1) % len(group.rollouts)]
    shared = min(len(rollout.tokens), len(sibling.tokens))
    free = (~decides & rollout.loss_mask)[:shared] & sibling.loss_mask[:shared]
    tokens = rollout.tokens.copy()
    tokens[:shared][free] = sibling.tokens[:shared][free]
    changed = np.flatnonzero(tokens != rollout.tokens)
    if not len(changed):
        return None
    after = np.flatnonzero(decides & rollout.loss_mask)
    after = after[after > changed[0]]
    return (frozen_array(tokens, np.int32), after) if len(after) else None


def overlap(read: tuple[Table, Table], powers: tuple[float, float]) -> float:
    """How far filler's gradients f move the tokens that decide, against these tokens' own c; 0: not at all, 1: as far.

    (E(h.f)^2 / E|f|^2) / (E(h.c)^2 / E|c|^2): the power in the metric F = E[h h^T], for each unit of power.
    `read` holds the products h.f and h.c of N samples, [N, N], of which only those of different samples count;
    `powers` E|f|^2 and E|c|^2.  nan where something is 0 that is divided by.
    """
    filler, deciding = (
        mean_square(table) / power if power > 0 else float("nan") for table, power in zip(read, powers, strict=True)
    )
    return filler / deciding if deciding > 0 else float("nan")


def mean_square(table: Table) -> float:
    """The mean square of what is off the diagonal of a table [N, N]; nan where N < 2."""
    count = len(table)
    if count < 2:
        return float("nan")
    squares = table**2
    return float((squares.sum() - np.trace(squares)) / (count * (count - 1)))
