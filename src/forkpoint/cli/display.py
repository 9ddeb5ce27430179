"""Live progress of a run, read from its database: a table on a terminal, a line now and then elsewhere."""

import sys
import time
from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.table import Table

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

    def _table(self, stages: list[StageRecord]) -> Table:
        table = Table(box=None, pad_edge=False, header_style="bold")
        for name in ("stage", "kind", "status", "update", "upd/s", "left", *(column[0] for column in COLUMNS)):
            table.add_column(name, justify="left" if name in ("stage", "kind", "status") else "right")
        for stage in stages:
            rate, left = self._rate(stage)
            running = stage.status is StageStatus.RUNNING and rate > 0
            metrics = self._reader.latest_metrics(stage.name)
            table.add_row(
                stage.name, stage.kind, str(stage.status), f"{stage.updates_done}/{stage.updates_total}",
                f"{rate:.1f}" if rate else "", clock(left) if running else "",
                *(form.format(metrics[key]) if key in metrics else "" for _, key, form in COLUMNS),
            )  # fmt: skip
        return table

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
            shown = "  ".join(f"{title} {form.format(metrics[key])}" for title, key, form in COLUMNS if key in metrics)
            speed = f"  {rate:.1f} upd/s  {clock(left)} left" if stage.status is StageStatus.RUNNING and rate else ""
            line = f"{stage.name}: {stage.status} {stage.updates_done}/{stage.updates_total}{speed}  {shown}"
            print(line.rstrip(), file=sys.stderr, flush=True)
