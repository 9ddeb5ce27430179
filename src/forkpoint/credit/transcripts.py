"""The cut points of a rollout with the text before each: where a state is read or an early answer asked for.

A rule sees tokens and one text.  The text before a token is known where each token is one character; elsewhere the
only cut is the beginning.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from forkpoint.probe import Probe, Stepped
from forkpoint.records import Batch, Problem, Rollout


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """A position of a rollout's tokens where a step begins."""

    position: int
    transcript: str
    """The text before it."""


def step_cuts(task: object, problem: Problem, rollout: Rollout) -> tuple[Cut, ...]:
    """The task's cuts of a rollout, ascending, the first at 0; only that one where tokens are not single characters.

    Raises:
        ValueError: a task without `cut_points`.
    """
    if not isinstance(task, Stepped):
        raise ValueError("credit: a rule over steps needs a task with cut_points.")
    # One token more than characters: the end-of-sequence token, which the text does not show.
    aligned = len(rollout.tokens) - len(rollout.text) in (0, 1)
    places = {place for place in task.cut_points(problem, rollout) if 0 < place < len(rollout.tokens)}
    kept = [0, *sorted(places)] if aligned else [0]
    return tuple(Cut(position=place, transcript=rollout.text[:place]) for place in kept)


def batch_cuts(batch: Batch, probe: Probe) -> list[tuple[Cut, ...]]:
    """The `step_cuts` of each rollout of `batch.rollouts`."""
    return [step_cuts(probe.task, group.problem, rollout) for group in batch.groups for rollout in group.rollouts]


def spread_over_steps(numbers: NDArray[np.float64], cuts: Sequence[Cut], length: int) -> NDArray[np.float64]:
    """The number of each token's step, shape [length], from one number for each step."""
    places = [cut.position for cut in cuts]
    steps = np.searchsorted(places, np.arange(length), side="right") - 1
    return np.asarray(numbers[steps])
