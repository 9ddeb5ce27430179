"""Live progress of a run, read from its database: a table on a terminal, a line now and then elsewhere."""

import sys
import time
from collections.abc import Mapping, Sequence
from types import TracebackType

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from forkpoint.store import RunReader, StageRecord, StageStatus

LINE_SECONDS = 10.0
"""Between two plain lines of a running stage."""
COLUMNS = (
    ("correct", "correct", "{:.2f}"),
    ("held-out", "evaluation_correct", "{:.2f}"),
    ("reward", "reward", "{:.2f}"),
    ("length", "length", "{:.1f}"),
    ("entropy", "entropy", "{:.2f}"),
    ("zero var.", "zero_variance", "{:.2f}"),
    ("loss", "loss", "{:.3f}"),
)


def clock(seconds: float) -> str:
    """Minutes and seconds, or hours and minutes.

    >>> clock(75), clock(3725)
    ('1:15', '1h02')
    """
    whole = int(seconds)
    return f"{whole // 60}:{whole % 60:02d}" if whole < 3600 else f"{whole // 3600}h{whole % 3600 // 60:02d}"


def _text(metrics: Mapping[str, float], columns: Sequence[tuple[str, str, str]]) -> str:
    return "  ".join(f"{title} {form.format(metrics[key])}" for title, key, form in columns if key in metrics)


def _width(columns: Sequence[tuple[str, str, str]]) -> int:
    """Of a table's columns with their gaps; six places hold every number."""
    return sum(max(6, len(title)) + 2 for title, _, _ in columns)


class Display:
    """Shows where each stage stands."""

    def __init__(self, reader: RunReader, *, quiet: bool) -> None:
        self._reader, self._quiet = reader, quiet
        self._console = Console(stderr=True)
        self._live = (
            Live(console=self._console, auto_refresh=False) if self._console.is_terminal and not quiet else None
        )
        self._next = 0.0
        self._said: dict[str, tuple[StageStatus, float]] = {}

    def __enter__(self) -> "Display":
        """Starts the table where there is a terminal."""
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def refresh(self, *, last: bool = False) -> None:
        """Reads the database, at most twice a second, and shows what changed."""
        now = time.monotonic()
        if self._quiet or (now < self._next and not last):
            return
        self._next = now + 0.5
        stages = self._reader.stages()
        if self._live is not None:
            self._live.update(self._table(stages), refresh=True)
        else:
            self._lines(stages, now, last=last)

    def _rate(self, stage: StageRecord) -> tuple[float, float]:
        """Updates per second, and seconds left."""
        rate = stage.updates_done / stage.seconds if stage.seconds > 0 else 0.0
        return rate, (stage.updates_total - stage.updates_done) / rate if rate else 0.0

    def _table(self, stages: list[StageRecord]) -> Group:
        """A row for each stage; metrics that the terminal has no room for stand in a line below, for running stages."""
        names = ["stage", "status", "update", "upd/s", "left"]
        rows = [self._row(stage) for stage in stages]
        room = self._console.width - sum(max(map(len, column)) + 2 for column in zip(names, *rows, strict=True))
        fitting = [column for place, column in enumerate(COLUMNS) if _width(COLUMNS[: place + 1]) <= room]
        table = Table(box=None, pad_edge=False, header_style="bold")
        for name in (*names, *(title for title, _, _ in fitting)):
            table.add_column(name, justify="left" if name in ("stage", "status") else "right", no_wrap=True)
        below = []
        for stage, row in zip(stages, rows, strict=True):
            metrics = self._reader.latest_metrics(stage.name)
            table.add_row(*row, *(form.format(metrics[key]) if key in metrics else "" for _, key, form in fitting))
            rest = _text(metrics, COLUMNS[len(fitting) :])
            if rest and stage.status is StageStatus.RUNNING:
                below.append(Text(f"{stage.name}: {rest}", no_wrap=True, overflow="ellipsis"))
        return Group(table, *below)

    def _row(self, stage: StageRecord) -> list[str]:
        rate, left = self._rate(stage)
        running = stage.status is StageStatus.RUNNING and rate > 0
        return [
            stage.name, str(stage.status), f"{stage.updates_done}/{stage.updates_total}",
            f"{rate:.1f}" if rate else "", clock(left) if running else "",
        ]  # fmt: skip

    def _lines(self, stages: list[StageRecord], now: float, *, last: bool) -> None:
        for stage in stages:
            before, when = self._said.get(stage.name, (StageStatus.WAITING, 0.0))
            changed = before != stage.status
            due = stage.status is StageStatus.RUNNING and stage.updates_done and now - when >= LINE_SECONDS
            if not (changed or due or (last and stage.status is StageStatus.RUNNING)):
                continue
            self._said[stage.name] = (stage.status, now)
            rate, left = self._rate(stage)
            metrics = self._reader.latest_metrics(stage.name)
            shown = _text(metrics, COLUMNS)
            speed = f"  {rate:.1f} upd/s  {clock(left)} left" if stage.status is StageStatus.RUNNING and rate else ""
            line = f"{stage.name}: {stage.status} {stage.updates_done}/{stage.updates_total}{speed}  {shown}"
            print(line.rstrip(), file=sys.stderr, flush=True)
