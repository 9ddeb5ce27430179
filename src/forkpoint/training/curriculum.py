"""The curriculum of an RL stage: draws problems, has them sampled, filters the groups, remembers the pass rates."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

import numpy as np

from forkpoint.config.curriculum import Curriculum as Settings
from forkpoint.curricula.filters import is_mixed, judged_outcomes, largest_variances, outcome_variance
from forkpoint.curricula.replay import Cooling, Waiting, cooled, due_problems
from forkpoint.curricula.selection import mean_of_all, pick_probabilities, systematic_picks
from forkpoint.curricula.staircase import Bounds, Stairs, climbed, open_levels
from forkpoint.curricula.state import CurriculumState, load_state, save_state
from forkpoint.curricula.tracker import posterior, tallied
from forkpoint.errors import CheckpointError
from forkpoint.records import Group, Problem
from forkpoint.seeds import Key
from forkpoint.tasks.protocol import Task
from forkpoint.training.candidates import Candidate, Candidates

Sample: TypeAlias = Callable[[Sequence[Problem], int], list[Group]]
"""The judged groups of problems; the number of the round, from 0, keeps their random streams apart."""
Trim: TypeAlias = Callable[[Group], Group]
"""The group without rollouts that never become a reward."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Selected:
    """What one batch is made from."""

    groups: tuple[Group, ...]
    """Those to train on, trimmed."""
    sampled: tuple[Group, ...]
    """All that were sampled, filtered ones and their replacements included."""
    metrics: dict[str, float]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Round:
    """One draw of candidates and the groups of the picked ones."""

    picked: tuple[Candidate, ...]
    groups: tuple[Group, ...]
    candidates: int
    pass_rate: float
    """Unbiased, over all candidates of the draw."""


class Curriculum:
    """The rules of a recipe, and the state that they have come to; changes once per batch."""

    def __init__(self, settings: Settings, task: Task, key: Key) -> None:
        """Raises TaskError where the task lacks what the settings go by."""
        self._settings, self._key = settings, key
        self._source = Candidates(settings, task, key)
        self.state = CurriculumState()

    def batch(self, update: int, count: int, sample: Sample, trim: Trim) -> Selected:
        """The batch of `update`: at most `count` groups, from problems that are a function of key, update and state.

        The pass rate that is reported is over all candidates of the first draw, before any selection or filter.
        """
        back = self._due(update, count)
        first = self._round(update, 0, count - len(back), sample, back)
        rounds = [first]
        kept, idle = self._sorted_out(first, trim)
        for number in range(1, self._settings.refill + 1):
            if len(kept) >= count:
                break
            rounds.append(self._round(update, number, count - len(kept), sample, ()))
            fresh, flat = self._sorted_out(rounds[-1], trim)
            kept, idle = kept + fresh, idle + flat
        # What could not be replaced stays in the denominator, so that the step does not depend on luck.
        kept += idle[: count - len(kept)]
        places: Sequence[int] = range(len(kept))
        if self._settings.keep_variance < 1:
            places = largest_variances([outcome_variance(group) for group in kept], self._settings.keep_variance)
        groups = tuple(kept[place] for place in places)
        self._learn(update, rounds)
        return Selected(
            groups=groups,
            sampled=tuple(group for each in rounds for group in each.groups),
            metrics=self._metrics(rounds, groups),
        )

    def save(self, folder: Path, *, update: int) -> None:
        """Writes the state into the checkpoint after `update`."""
        save_state(self.state, folder, settings=self._settings.model_dump(mode="json"), update=update)

    def load(self, folder: Path, *, update: int) -> None:
        """Restores what `save` wrote.

        Raises:
            CheckpointError: the file is missing, damaged, or of another curriculum or update.
        """
        state = load_state(folder, settings=self._settings.model_dump(mode="json"), update=update)
        if self._settings.staircase is not None and state.stairs.level >= len(self._settings.levels):
            raise CheckpointError(f"{folder}: its curriculum is at a level that does not exist.")
        self.state = state

    def _round(self, update: int, number: int, count: int, sample: Sample, back: Sequence[Candidate]) -> _Round:
        """One draw: candidates, picks by what is known of them, their groups, and the pass rate over all of them."""
        candidates = self._source.draw(
            update, number, count, oversample=self._settings.oversample, levels=self._levels()
        )
        known = [
            posterior(self.state.tallies.get(each.bucket), update=update, half_life=self._settings.half_life)
            for each in candidates
        ]
        weights = [each.expected_variance for each in known]
        chances = pick_probabilities(weights, min(count, len(candidates)), floor=self._settings.floor)
        offset = self._key.child("pick", update, number).uniforms(1)[0]
        places = systematic_picks(chances, float(offset))
        picked = (*back, *(candidates[place] for place in places))
        groups = tuple(sample([each.problem for each in picked], number))
        rates = zip(places, map(_rate, groups[len(back) :]), strict=True)
        found = [(place, rate) for place, rate in rates if rate is not None]
        return _Round(
            picked=picked, groups=groups, candidates=len(candidates),
            pass_rate=mean_of_all([each.mean for each in known], chances, found),
        )  # fmt: skip

    def _sorted_out(self, drawn: _Round, trim: Trim) -> tuple[list[Group], list[Group]]:
        """The groups to train on, and those that are all right or all wrong and can be replaced."""
        whole = [group for group in map(trim, drawn.groups) if len(group.rollouts) > 1]
        if not self._settings.refill:
            return whole, []
        return [group for group in whole if is_mixed(group)], [group for group in whole if not is_mixed(group)]

    def _levels(self) -> tuple[float, ...]:
        stairs = self._settings.staircase
        if stairs is None:
            return self._settings.levels
        return open_levels(self.state.stairs, self._settings.levels, inclusive=stairs.inclusive)

    def _due(self, update: int, count: int) -> list[Candidate]:
        replay = self._settings.replay
        if replay is None:
            return []
        ready = due_problems(self.state.waiting, update, int(replay.share * count))
        return [self._source.at(entry.source, entry.level, uses=entry.uses + 1) for entry in ready]

    def _learn(self, update: int, rounds: Sequence[_Round]) -> None:
        """Brings the state up to date with everything that was sampled, filtered or not."""
        settings, state = self._settings, self.state
        seen = [(each, judged_outcomes(group)) for drawn in rounds for each, group in _pairs(drawn)]
        # What comes back was chosen by its outcome: it says nothing of others in its bucket.
        fair = [(each, outcomes) for each, outcomes in seen if not each.uses or self._source.by == "problem"]
        tallies = tallied(
            state.tallies, [(each.bucket, sum(outcomes), len(outcomes)) for each, outcomes in fair],
            update=update, half_life=settings.half_life,
        )  # fmt: skip
        self.state = replace(state, tallies=tallies, stairs=self._climbed(seen), waiting=self._waiting(update, seen))

    def _climbed(self, seen: Sequence[tuple[Candidate, list[bool]]]) -> Stairs:
        stairs, settings = self.state.stairs, self._settings.staircase
        if settings is None:
            return stairs
        levels = self._settings.levels
        here = [outcomes for each, outcomes in seen if each.level == levels[stairs.level] and not each.uses]
        bounds = Bounds(levels=len(levels), up=settings.up, down=settings.down, window=settings.window)
        return climbed(stairs, sum(map(sum, here)), sum(map(len, here)), bounds)

    def _waiting(self, update: int, seen: Sequence[tuple[Candidate, list[bool]]]) -> tuple[Waiting, ...]:
        replay = self._settings.replay
        if replay is None:
            return ()
        cooling = Cooling(cooldown=replay.cooldown, max_reuse=replay.max_reuse, below=replay.below, size=replay.size)
        entries = [
            (
                Waiting(key=each.problem.key, source=each.source, level=each.level, due=update, uses=each.uses),
                sum(outcomes) / len(outcomes),
            )
            for each, outcomes in seen
            if outcomes
        ]
        return cooled(self.state.waiting, entries, update=update, cooling=cooling)

    def _metrics(self, rounds: Sequence[_Round], groups: Sequence[Group]) -> dict[str, float]:
        candidates = sum(each.candidates for each in rounds)
        difficulties = [group.problem.difficulty for group in groups]
        metrics = {
            "pass_rate_unfiltered": rounds[0].pass_rate,
            "selected_share": len(groups) / max(1, candidates),
            "refilled_groups": float(sum(len(each.groups) for each in rounds[1:])),
            "difficulty": float(np.mean(difficulties)) if difficulties else 0.0,
        }
        if self._settings.staircase is not None:
            metrics["level"] = float(self.state.stairs.level)
        if self._settings.replay is not None:
            metrics["replayed_groups"] = float(sum(bool(each.uses) for each in rounds[0].picked))
        return metrics


def _pairs(drawn: _Round) -> Iterator[tuple[Candidate, Group]]:
    return zip(drawn.picked, drawn.groups, strict=True)


def _rate(group: Group) -> float | None:
    """The share of correct among the judged rollouts; None where none was judged."""
    outcomes = judged_outcomes(group)
    return sum(outcomes) / len(outcomes) if outcomes else None
