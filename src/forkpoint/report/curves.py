"""What changed over a run's updates, and how long the final rollouts were, as plain numbers."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from forkpoint.report.arms import FINAL, Arm, final_evaluation, problem_means
from forkpoint.report.statistics import share_interval
from forkpoint.seeds import Key
from forkpoint.store import RunReader

MAX_POINTS = 120
"""Points of a line; more updates than this are averaged in stretches of equal length."""
MAX_BINS = 32
"""Bars of a length histogram."""

METRICS = (
    ("reward", "Reward", "mean of the sampled rollouts"),
    ("correct", "Correct while training", "share of rollouts"),
    ("entropy", "Entropy", "nats per token"),
    ("zero_variance", "Groups without any advantage", "share of groups"),
    ("length", "Rollout length", "tokens, mean"),
    ("loss", "Cross-entropy", "nats per token"),
)
"""Name in the store, title, unit.  The loss of an RL stage is a surrogate that says nothing, so it is not shown."""
SHARES = frozenset({"evaluation_correct", "correct", "zero_variance"})
"""Metrics whose axis is fixed to 0 to 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One stage in one chart."""

    stage: str
    slot: int
    """Place of the stage in the run; decides its color."""
    updates: tuple[float, ...]
    values: tuple[float, ...]
    intervals: tuple[tuple[float, float], ...] = ()
    """95 % interval of each value, or none at all."""
    stretch: int = 1
    """Updates averaged in each point."""
    dropped: int = 0
    """Values left out because they were not finite."""
    axis: str = "update"
    """What `updates` count."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """One metric of all stages that have it."""

    metric: str
    title: str
    unit: str
    lines: tuple[Line, ...]

    @property
    def note(self) -> str:
        """What a reader must know of how the lines were made; often nothing."""
        stretch = max(line.stretch for line in self.lines)
        dropped = sum(line.dropped for line in self.lines)
        notes = [f"each point is the mean of up to {stretch} updates"] if stretch > 1 else []
        notes += [f"values left out because they are not finite: {dropped}"] if dropped else []
        return "; ".join(notes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Lengths:
    """The lengths of one arm's final rollouts: shares of all samples per bar, solved and unsolved."""

    arm: str
    slot: int
    unit: str
    edges: tuple[float, ...]
    solved: tuple[float, ...]
    unsolved: tuple[float, ...]


def learning_curves(reader: RunReader) -> list[Curve]:
    """Every curve that the run has values for, the held-out solve rate first."""
    stages = [(slot, stage.name, stage.kind) for slot, stage in enumerate(reader.stages())]
    evaluated = [_evaluation_line(reader, name, slot) for slot, name, _ in stages]
    curves = [("evaluation_correct", "Solve rate on held-out problems", "share of problems, 95 % intervals", evaluated)]
    for metric, title, unit in METRICS:
        shown = [(slot, name) for slot, name, kind in stages if metric != "loss" or kind != "rl"]
        curves.append((metric, title, unit, [_metric_line(reader, name, slot, metric) for slot, name in shown]))
    return [
        Curve(metric=metric, title=title, unit=unit, lines=tuple(line for line in lines if line.values))
        for metric, title, unit, lines in curves
        if any(line.values for line in lines)
    ]


def _evaluation_line(reader: RunReader, stage: str, slot: int) -> Line:
    points: dict[int, tuple[float, tuple[float, float]]] = {}
    for name in ("evaluate", FINAL):
        for update in reader.evaluated(stage, name):
            evaluation = reader.evaluations(stage, update, name)
            if not evaluation.known.any():
                continue
            _, shares = problem_means(evaluation, evaluation.correct)
            key = Key.root(0).child("report", stage, name, update)
            points[update] = (float(shares.mean()), share_interval(shares, key))
    updates = sorted(points)
    return Line(
        stage=stage,
        slot=slot,
        updates=tuple(float(update) for update in updates),
        values=tuple(points[update][0] for update in updates),
        intervals=tuple(points[update][1] for update in updates),
    )


def _metric_line(reader: RunReader, stage: str, slot: int, metric: str) -> Line:
    updates, values = reader.metrics(stage, metric)
    finite = np.isfinite(values)
    stretch, x, y = thin(updates[finite].astype(np.float64), values[finite])
    return Line(
        stage=stage,
        slot=slot,
        updates=tuple(x.tolist()),
        values=tuple(y.tolist()),
        stretch=stretch,
        dropped=int((~finite).sum()),
    )


def thin(
    x: NDArray[np.float64], y: NDArray[np.float64], limit: int = MAX_POINTS
) -> tuple[int, NDArray[np.float64], NDArray[np.float64]]:
    """The length of a stretch, and the means of x and y over stretches, at most `limit` of them."""
    stretch = max(1, -(-len(x) // limit))
    starts = np.arange(0, len(x), stretch)
    if stretch == 1:
        return 1, x, y
    counts = np.diff(np.append(starts, len(x)))
    return stretch, np.add.reduceat(x, starts) / counts, np.add.reduceat(y, starts) / counts


def length_histograms(reader: RunReader, found: Sequence[Arm]) -> list[Lengths]:
    """The lengths of each arm's final rollouts, all on the same bars."""
    slots = {stage.name: slot for slot, stage in enumerate(reader.stages())}
    top = max((arm.budget for arm in found), default=1)
    width = max(1, -(-(top + 1) // MAX_BINS))
    # Bars hold whole lengths, so their edges lie between two of them.
    edges = np.arange(0, top + width + 1, width) - 0.5
    histograms = []
    for arm in found:
        final = final_evaluation(reader, arm.name)
        if final is None:
            continue
        evaluation = final[1]
        lengths, known = np.clip(evaluation.length, 0, top), evaluation.known
        solved = np.histogram(lengths[known & evaluation.correct], edges)[0] / known.sum()
        unsolved = np.histogram(lengths[known & ~evaluation.correct], edges)[0] / known.sum()
        histograms.append(
            Lengths(
                arm=arm.name,
                slot=slots[arm.name],
                unit=arm.unit,
                edges=tuple(edges.tolist()),
                solved=tuple(solved.tolist()),
                unsolved=tuple(unsolved.tolist()),
            )
        )
    return histograms
