"""The guard of dense credit: tokens that get none may drift, and take the solve rate with them (docs/credit/drift.md).

A pure function of the metrics `drift_*`, so that thresholds can be replayed on any stored run.  Letters: N batches,
W batches of a window.  Log-probabilities are in nats.
"""

from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from forkpoint.config.recipe import RLStage
from forkpoint.errors import ForkpointError
from forkpoint.records import Finding, Severity
from forkpoint.store import RunReader
from forkpoint.training.drift import CORRECT, CREDITED_LOGPROB, ERROR, IDLE_LOGPROB, METRICS, SHARE, SPREAD
from forkpoint.training.hooks import Inspection, Loop

AUDIT = "drift"
"""The name under which findings are stored."""
RANKS: Mapping[Severity, int] = {Severity.INFO: 0, Severity.WARNING: 1, Severity.CRITICAL: 2}
Values: TypeAlias = NDArray[np.float64]


class DriftError(ForkpointError):
    """Tokens without credit drift and the solve rate falls: the finding, in one line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fall:
    """How far the share of correct rollouts has to be below its running maximum."""

    errors: float
    """In standard errors of the difference of two windows."""
    share: float
    """Relative to the maximum."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The thresholds; docs/credit/drift.md says what they rest on."""

    window: int = 10
    """Batches that the movement of tokens is measured over, at the start and now."""
    windows: tuple[int, ...] = (10, 20, 40, 80)
    """Batches that a fall of the solve rate is measured over."""
    share: float = 0.1
    """Least share of trained tokens without credit; below it the solve rate alone is judged."""
    moved: float = 0.1
    """Least change of their mean log-probability."""
    errors: float = 6.0
    """The same in standard errors."""
    alike: float = 0.5
    """The part of its first value that the share of variance within groups has to be below."""
    alike_errors: float = 5.0
    """The same in standard errors."""
    ceiling: float = 0.9
    """Solve rate above which rollouts may end alike: nothing is left that could vary."""
    watch: Fall = Fall(errors=5.0, share=0.15)
    sick: Fall = Fall(errors=6.0, share=0.25)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class History:
    """The metrics of a stage's batches in their order, all arrays [N]; nan where a batch has none."""

    updates: NDArray[np.int64]
    correct: Values
    errors: Values
    spread: Values
    share: Values
    idle: Values
    credited: Values


@dataclass(frozen=True, slots=True, kw_only=True)
class _Change:
    """A difference with its standard error, and the places that it is between."""

    before: float
    now: float
    error: float
    first: tuple[int, int] = (0, 0)
    """Updates of the first window, both included."""
    last: tuple[int, int] = (0, 0)

    @property
    def value(self) -> float:
        return self.now - self.before

    @property
    def interval(self) -> tuple[float, float]:
        return self.value - 1.96 * self.error, self.value + 1.96 * self.error

    @property
    def around(self) -> tuple[float, float]:
        """The interval of the value now."""
        return self.now - 1.96 * self.error, self.now + 1.96 * self.error


def history(batches: Mapping[int, Mapping[str, float]]) -> History:
    """The history of batches by their first update; batches without the metrics are left out."""
    updates = sorted(update for update, metrics in batches.items() if CORRECT in metrics)
    found = {name: np.array([batches[update].get(name, np.nan) for update in updates], np.float64) for name in METRICS}
    return History(
        updates=np.array(updates, np.int64), correct=found[CORRECT], errors=found[ERROR], spread=found[SPREAD],
        share=found[SHARE], idle=found[IDLE_LOGPROB], credited=found[CREDITED_LOGPROB],
    )  # fmt: skip


def stored_batches(reader: RunReader, stage: str) -> dict[int, dict[str, float]]:
    """The metrics `drift_*` of a stored stage, by update: what `history` takes."""
    batches: dict[int, dict[str, float]] = {}
    for name in METRICS:
        for update, value in zip(*reader.metrics(stage, name), strict=True):
            batches.setdefault(int(update), {})[name] = float(value)
    return batches


def drift(past: History, limits: Limits | None = None) -> Finding | None:
    """What the last batch of a history says, None where nothing moves.

    info       tokens without credit have moved: the change D of their mean log-probability is at least `moved` nats
               and `errors` standard errors
    warning    and either rollouts of a problem end alike: R = mean p_g(1 - p_g) / p(1 - p), the share of the variance
               of outcomes within groups, is below `alike` times its first value; or the share p of correct rollouts
               is below its running maximum by `watch`
    critical   and p is below it by `watch` and rollouts end alike, or by `sick`

    Where hardly a token is without credit (a critic, a floor), no movement is asked for, and none is named.

    `value` is D of an info, R or the fall of p of the others, with its 95 % interval and the threshold.
    """
    limits = limits or Limits()
    moved = _moved(past, limits)
    if moved is None and not _credited_throughout(past, limits):
        return None
    fallen, alike = _fallen(past, limits), _alike(past, limits)
    falls = fallen is not None and _exceeds(fallen, limits.watch)
    if fallen is not None and falls:
        sick = alike is not None or _exceeds(fallen, limits.sick)
        least = limits.sick if sick and alike is None else limits.watch
        return _finding(
            Severity.CRITICAL if sick else Severity.WARNING, -fallen.value,
            (-fallen.interval[1], -fallen.interval[0]), least.share * fallen.before, _fall_claim(past, fallen, moved),
        )  # fmt: skip
    if alike is not None:
        bound = limits.alike * alike.before
        return _finding(Severity.WARNING, alike.now, alike.around, bound, _alike_claim(past, alike, moved))
    if moved is None:
        return None
    return _finding(Severity.INFO, moved.value, moved.interval, limits.moved, _move_claim(past, moved))


def _finding(severity: Severity, value: float, interval: tuple[float, float], threshold: float, claim: str) -> Finding:
    return Finding(audit=AUDIT, severity=severity, claim=claim, value=value, interval=interval, threshold=threshold)


def _exceeds(fallen: _Change, least: Fall) -> bool:
    return -fallen.value >= max(least.errors * fallen.error, least.share * fallen.before)


def _moved(past: History, limits: Limits) -> _Change | None:
    """The movement of tokens without credit from the first window to the last; None where it is not significant."""
    known = np.flatnonzero(np.isfinite(past.idle))
    size = limits.window
    if len(known) < 2 * size or not past.share[known[-size:]].mean() >= limits.share:
        return None
    first, last = past.idle[known[:size]], past.idle[known[-size:]]
    error = float(np.sqrt((_variance(first) + _variance(last)) / size))
    change = _Change(before=float(first.mean()), now=float(last.mean()), error=error)
    return change if abs(change.value) >= max(limits.moved, limits.errors * error) else None


def _credited_throughout(past: History, limits: Limits) -> bool:
    """Whether credit varies within rollouts and hardly a token of the last window is left out."""
    known = np.flatnonzero(np.isfinite(past.share))
    size = limits.window
    return len(known) >= size and float(past.share[known[-size:]].mean()) < limits.share


def _variance(values: Values) -> float:
    """Of one batch, from successive differences: a trend does not enter (von Neumann 1941)."""
    return float((np.diff(values) ** 2).sum() / (2 * (len(values) - 1)))


def _alike(past: History, limits: Limits) -> _Change | None:
    """The share of the variance of outcomes that lies within groups, at first and now; None where it is not lost."""
    size = limits.window
    if len(past.correct) < 2 * size or past.correct[-size:].mean() > limits.ceiling:
        return None
    first, last = (_within(past.spread[part], past.correct[part]) for part in (slice(size), slice(-size, None)))
    change = _Change(before=first[0], now=last[0], error=float(np.hypot(first[1], last[1])))
    lost = change.now <= limits.alike * change.before and -change.value >= limits.alike_errors * change.error
    return change if lost else None


def _within(spread: Values, correct: Values) -> tuple[float, float]:
    """R of some batches with its standard error by the jackknife; 1 where all outcomes are the same."""
    parts = [_ratio(np.delete(spread, left), np.delete(correct, left)) for left in range(len(spread))]
    error = np.sqrt((len(parts) - 1) * np.var(parts))
    return _ratio(spread, correct), float(error)


def _ratio(spread: Values, correct: Values) -> float:
    rate = float(correct.mean())
    return float(spread.mean()) / (rate * (1 - rate)) if 0 < rate < 1 else 1.0


def _fallen(past: History, limits: Limits) -> _Change | None:
    """The most significant fall of the solve rate from its running maximum, over all window sizes."""
    found = [_fall(past, size) for size in limits.windows if len(past.correct) >= 2 * size]
    falls = [fall for fall in found if fall.value < 0]
    return min(falls, key=lambda fall: fall.value / max(fall.error, 1e-9), default=None)


def _fall(past: History, size: int) -> _Change:
    """The last window against the best one before it, which it does not overlap."""
    means = _rolling(past.correct, size)
    best = int(np.argmax(means[:-size]))
    within, between = _rolling(past.errors**2, size), _rolling(np.diff(past.correct) ** 2 / 2, size - 1)
    # Problems of a batch that hang together make batches differ by more than groups say.
    variance = [max(float(within[at]), float(between[at])) for at in (best, len(means) - 1)]
    updates = past.updates
    return _Change(
        before=float(means[best]), now=float(means[-1]), error=float(np.sqrt(sum(variance) / size)),
        first=(int(updates[best]), int(updates[best + size - 1])), last=(int(updates[-size]), int(updates[-1])),
    )  # fmt: skip


def _rolling(values: Values, size: int) -> Values:
    """The mean of each `size` values next to each other, [N - size + 1]."""
    means: Values = np.lib.stride_tricks.sliding_window_view(values, size).mean(axis=1)
    return means


def _move_claim(past: History, moved: _Change) -> str:
    return (
        f"{_movement(past, moved)}. Nothing holds them: harmless unless later tokens read them. "
        f"{_now(past)}. Should the rate fall, mix the outcome in: wrap = ['outcome_floor']."
    )


def _fall_claim(past: History, fallen: _Change, moved: _Change | None) -> str:
    errors = -fallen.value / max(fallen.error, 1e-9)
    return (
        f"correct rollouts fell from {fallen.before:.3f} (updates {fallen.first[0]} to {fallen.first[1]}) to "
        f"{fallen.now:.3f} (updates {fallen.last[0]} to {fallen.last[1]}), {errors:.1f} standard errors, while "
        f"{_movement(past, moved)}. {_now(past)}. {_remedy(moved)}; go back to a checkpoint before the fall."
    )


def _alike_claim(past: History, alike: _Change, moved: _Change | None) -> str:
    return (
        f"rollouts of a problem end alike: {alike.now:.0%} of the variance of outcomes lies within groups, "
        f"{alike.before:.0%} at the start, while {_movement(past, moved)}. {_now(past)}. "
        f"The solve rate often falls next. {_remedy(moved)}."
    )


def _remedy(moved: _Change | None) -> str:
    if moved is None:
        return "Lower the learning rate"
    return "Give every token some of the outcome: wrap = ['outcome_floor']"


def _movement(past: History, moved: _Change | None) -> str:
    if moved is None:
        return "hardly a token is without credit, so no drift can be told from learning"
    share = float(past.share[np.isfinite(past.share)][-10:].mean())
    known = past.credited[np.isfinite(past.credited)]
    return (
        f"tokens without credit ({share:.0%} of those trained on) moved by {moved.value:+.3f} nats since the start, "
        f"from {moved.before:.3f} (those with credit by {known[-10:].mean() - known[:10].mean():+.3f})"
    )


def _now(past: History) -> str:
    return (
        f"Correct now {past.correct[-10:].mean():.3f}; spread p(1 - p) within groups {past.spread[:10].mean():.3f} at "
        f"the start, {past.spread[-10:].mean():.3f} now"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class DriftHook:
    """Watches an RL stage; names each severity once, and stops the stage at the highest only if it is told to."""

    tell: Callable[[str], None]
    """Writes a line into the run's log."""
    stop: bool = False
    limits: Limits = field(default_factory=Limits)
    batches: MutableMapping[int, Mapping[str, float]] = field(default_factory=dict)
    named: set[Severity] = field(default_factory=set)

    def __call__(self, loop: Loop) -> Inspection | None:
        """What is new, or None.  The solve rates of a curriculum's batches cannot be compared: it has no guard."""
        if not isinstance(loop.stage, RLStage) or loop.stage.curriculum is not None:
            return None
        if not loop.steps:
            self._remember(loop)
            return None
        for step in loop.steps:
            self.batches[step.update] = {name: step.metrics[name] for name in METRICS if name in step.metrics}
        found = drift(history(self.batches), self.limits)
        if found is None or any(RANKS[severity] >= RANKS[found.severity] for severity in self.named):
            return None
        self.named.add(found.severity)
        self.tell(f"update {loop.done}: {found.claim}")
        stop = self.stop and found.severity is Severity.CRITICAL
        return Inspection(audit=AUDIT, findings=(found,), stop=DriftError(f"drift: {found.claim}") if stop else None)

    def _remember(self, loop: Loop) -> None:
        """Takes up what a resumed stage stored: its rows do not depend on where it was stopped."""
        self.batches.clear()
        self.named.clear()
        if loop.done:
            with RunReader(loop.run) as reader:
                self.batches.update(stored_batches(reader, loop.stage.name))
                found = reader.findings(loop.stage.name)
            self.named.update(finding.severity for finding in found if finding.audit == AUDIT)
