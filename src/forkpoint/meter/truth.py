"""The true advantage of tokens under the policy that wrote them: A_t = V_{t+1} - V_t.

V_t is the chance that the rollout ends correct, given its first t tokens; no shaping, no discount.  After the last
token it is the verdict.  Three tiers, and whatever is printed says which: exact (a policy that sees only the task's
state), enumeration (all continuations of short sequences, in `enumeration`), Monte Carlo (continuations are drawn).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from forkpoint.errors import TaskError
from forkpoint.meter.measures import Array
from forkpoint.probe import Continuation, Probe
from forkpoint.records import Batch, Credit, Problem, Rollout, Verdict, frozen_array
from forkpoint.seeds import Key
from forkpoint.tasks.lab import read_states
from forkpoint.theory.horizon import solve_horizon
from forkpoint.theory.tables import TablePolicy

Ids = NDArray[np.int64]
Progress = Callable[[int, int], None]
"""Told how many tokens are done, and of how many."""
CHUNK = 4096
"""Continuations that are asked for at once."""


class Tier(StrEnum):
    """Where the truth comes from."""

    EXACT = "exact"
    ENUMERATION = "enumeration"
    MONTE_CARLO = "monte-carlo"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Places:
    """Tokens of a batch: [N] arrays of the rollout's place in the batch, the position in it, and a weight."""

    rows: Ids
    positions: Ids
    weights: Array


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Truth:
    """True advantages at some places of a batch, all arrays [N], in units of the chance to be correct."""

    tier: Tier
    places: Places
    advantages: Array
    variances: Array
    """Of the error of each advantage; 0 where it is exact."""
    continuations: int = 0
    """Drawn for each of the two values of an advantage; 0 where none was."""


def every_place(batch: Batch) -> Places:
    """All trained tokens of a batch."""
    found = [np.flatnonzero(rollout.loss_mask) for rollout in batch.rollouts]
    rows = np.repeat(np.arange(len(found)), [len(positions) for positions in found])
    positions = np.concatenate(found).astype(np.int64) if found else np.zeros(0, np.int64)
    return Places(rows=rows, positions=positions, weights=np.ones(len(rows)))


def key_labels(batch: Batch, places: Places) -> NDArray[np.bool_] | None:
    """Whether each place decides, for tasks that know it (metadata `positions`, one character a token); else None."""
    decisive = [group.problem.metadata.get("positions") for group in batch.groups for _ in group.rollouts]
    if any(not isinstance(positions, (list, tuple)) for positions in decisive):
        return None
    if any(len(rollout.tokens) < len(rollout.text) for rollout in batch.rollouts):
        return None
    known = [frozenset(positions or ()) for positions in decisive]
    return np.array([t in known[row] for row, t in zip(places.rows, places.positions, strict=True)], np.bool_)


def sampled_places(batch: Batch, count: int, key: Key) -> Places:
    """`count` trained tokens or all there are; half of them on positions that decide, where these are known.

    A token weighs the size of its stratum over the tokens drawn from it: weighted means are those of all tokens.
    """
    whole = every_place(batch)
    labels = key_labels(batch, whole)
    if count >= len(whole.rows):
        return whole
    strata = [np.arange(len(whole.rows))] if labels is None else [np.flatnonzero(labels), np.flatnonzero(~labels)]
    strata = [stratum for stratum in strata if len(stratum)]
    chosen, weights = [], []
    for part, stratum in enumerate(strata):
        wanted = count // len(strata) + (part < count % len(strata))
        drawn = key.child("places", part).generator().permutation(stratum)[:wanted]
        chosen.append(np.sort(drawn))
        weights.append(np.full(len(drawn), len(stratum) / max(1, len(drawn))))
    picked = np.concatenate(chosen)
    return Places(rows=whole.rows[picked], positions=whole.positions[picked], weights=np.concatenate(weights))


def final_value(verdict: Verdict) -> float:
    """What a finished rollout is worth: 1 where it is correct.  ValueError for a verdict that could not tell."""
    if not verdict.usable:
        raise ValueError(f"meter: a verdict '{verdict.outcome}' has no value: {verdict.reason}")
    return float(verdict.correct is True)


def table_truth(policy: TablePolicy, batch: Batch, *, budget: int) -> Truth:
    """The exact truth of every token of walks in the lab, by the dynamic programme of `theory.horizon`.

    `budget` is in tokens: a horizon of one more edge, since the theory counts the edge of the prompt.

    Raises:
        TaskError: a rollout that is no walk in the policy's graph, or was not drawn at temperature 1.
    """
    values = solve_horizon(policy, horizon=budget + 1).values
    places, advantages = every_place(batch), []
    for group in batch.groups:
        target = int(group.problem.metadata["target"])
        first = read_states(str(group.problem.prompt))
        for rollout in group.rollouts:
            walk = np.concatenate([first, read_states(rollout.text)])
            if rollout.temperature != 1.0 or walk.min() < 0 or walk.max() >= values.shape[1]:
                raise TaskError(f"rollout {rollout.id} is no walk of the table at temperature 1.")
            left = budget - np.arange(len(walk))
            course = values[left, walk, target]
            advantages.append(np.diff(course)[rollout.loss_mask])
    found = np.concatenate(advantages) if advantages else np.zeros(0)
    return Truth(tier=Tier.EXACT, places=places, advantages=found, variances=np.zeros(len(found)))


def sampled_truth(
    batch: Batch, probe: Probe, places: Places, *, continuations: int, purpose: str = "meter",
    progress: Progress | None = None,
) -> Truth:  # fmt: skip
    """Nested Monte Carlo: the two values of each advantage from continuations of their own, [N].

    The values before and after a token are drawn apart, so the error has the variance
    p(1 - p) / (K - 1) of both, added; a finished rollout is worth its verdict, without error.

    Raises:
        ValueError: fewer than one continuation; a verdict that could not tell.
    """
    if continuations < 1:
        raise ValueError(f"meter: continuations = {continuations} must be at least 1.")
    owners = [(group, i) for group in batch.groups for i in range(len(group.rollouts))]
    step = max(1, CHUNK // (2 * continuations))
    values = np.zeros((len(places.rows), 2))
    spreads = np.zeros_like(values)
    for start in range(0, len(places.rows), step):
        part = range(start, min(start + step, len(places.rows)))
        requests: dict[tuple[int, int], list[Continuation]] = {}
        for n in part:
            group, i = owners[int(places.rows[n])]
            for side, name in enumerate(("before", "after")):
                length = int(places.positions[n]) + side
                if length >= len(group.rollouts[i].tokens):
                    values[n, side] = final_value(group.verdicts[i])
                else:
                    requests[n, side] = _continuations(
                        group.problem, group.rollouts[i], length, continuations, f"{purpose}/{name}"
                    )
        for place, hits in _shares(probe, requests).items():
            values[place], spreads[place] = hits.mean(), hits.var() / max(1, len(hits) - 1)
        if progress is not None:
            progress(part.stop, len(places.rows))
    return Truth(
        tier=Tier.MONTE_CARLO, places=places, advantages=values[:, 1] - values[:, 0], variances=spreads.sum(axis=1),
        continuations=continuations,
    )  # fmt: skip


def _continuations(problem: Problem, rollout: Rollout, length: int, count: int, purpose: str) -> list[Continuation]:
    return [
        Continuation(problem=problem, rollout=rollout, prefix_length=length, index=index, purpose=purpose)
        for index in range(count)
    ]


def _shares(probe: Probe, requests: Mapping[tuple[int, int], Sequence[Continuation]]) -> dict[tuple[int, int], Array]:
    """Whether each continuation ended correct, for every place; all are drawn in one call."""
    drawn = iter(probe.branch([request for asked in requests.values() for request in asked]))
    found = {}
    for place, asked in requests.items():
        verdicts = probe.verify(asked[0].problem, [next(drawn) for _ in asked])
        found[place] = np.array([final_value(verdict) for verdict in verdicts])
    return found


def drawn_truth(batch: Batch, probe: Probe, *, continuations: int, purpose: str) -> Truth:
    """A rough truth of every trained token: the values of neighbors share their continuations.

    Half as dear as `sampled_truth`; without bias, but with errors that hang together and are not estimated (nan).
    """
    owners = [(group, i) for group in batch.groups for i in range(len(group.rollouts))]
    places = every_place(batch)
    values: dict[tuple[int, int], float] = {}
    pairs = list(zip(places.rows.tolist(), places.positions.tolist(), strict=True))
    wanted = sorted({(row, t + after) for row, t in pairs for after in (0, 1)})
    step = max(1, CHUNK // (4 * continuations))
    for start in range(0, len(wanted), step):
        requests = {}
        for row, length in wanted[start : start + step]:
            group, i = owners[row]
            rollout = group.rollouts[i]
            if length >= len(rollout.tokens):
                values[row, length] = final_value(group.verdicts[i])
            else:
                requests[row, length] = _continuations(group.problem, rollout, length, continuations, purpose)
        values |= {place: float(hits.mean()) for place, hits in _shares(probe, requests).items()}
    found = np.array([values[row, t + 1] - values[row, t] for row, t in pairs])
    return Truth(
        tier=Tier.MONTE_CARLO, places=places, advantages=found, variances=np.full(len(found), np.nan),
        continuations=continuations,
    )  # fmt: skip


def truth_credits(batch: Batch, truth: Truth) -> list[Credit]:
    """The truth as the credit of each rollout of `batch.rollouts`: the oracle; 0 where it is not known."""
    spread = [np.zeros(len(rollout.tokens)) for rollout in batch.rollouts]
    for row, position, value in zip(truth.places.rows, truth.places.positions, truth.advantages, strict=True):
        spread[row][position] = value
    return [Credit(advantages=frozen_array(values, np.float32), rule="truth") for values in spread]
