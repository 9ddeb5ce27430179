"""Records to one self-contained HTML file: no script, nothing fetched, every text escaped."""

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from forkpoint import __version__
from forkpoint.files import write_text_atomic
from forkpoint.records import Severity
from forkpoint.report.arms import Arm, arms, compare_with_parents, resolved_recipe
from forkpoint.report.charts import Dot, color_class, dot_chart, length_chart, line_chart
from forkpoint.report.curves import Curve, learning_curves, length_histograms
from forkpoint.report.health import StageHealth, health
from forkpoint.report.postmortems import PostmortemView, postmortems
from forkpoint.report.reflections import AttemptView, reflections
from forkpoint.report.rollouts import ExampleView, GroupView, examples, outcome_mark, training_groups
from forkpoint.report.statistics import Difference
from forkpoint.report.summary import (
    about,
    duration,
    facts,
    headline,
    moment,
    run_status,
    share_text,
    stage_data,
)
from forkpoint.report.text import shorten, token_texts, visible
from forkpoint.store import Event, RunReader, StageRecord

HEALTH = {Severity.INFO: "ok", Severity.WARNING: "watch", Severity.CRITICAL: "sick"}
REPORT = "report.html"
"""Name of the page in a run folder."""
MAX_EVENTS = 200
"""Events shown, the last ones."""
MAX_TEXT = 24_000
"""Characters of any one text shown."""
MAX_RECIPE = 20_000
"""Characters of the recipe shown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StageRow:
    """One stage in the list of stages."""

    stage: StageRecord
    slot: int
    data: str
    tokens: int
    anchor: str | None
    """Its training rollouts on the page."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunPage:
    """Everything that the template shows of one run."""

    prefix: str
    """Before every id of this run, so that several runs fit on one page."""
    name: str
    folder: str
    status: str
    status_text: str
    about: str
    headline: str
    facts: Sequence[tuple[str, str]]
    recipe: str
    arms: Sequence[Arm]
    differences: Mapping[str, Difference]
    slots: Mapping[str, int]
    anchors: Mapping[str, str]
    """Arm to its first final rollout on the page."""
    dots: Sequence[tuple[str, Markup]]
    curves: Sequence[tuple[Curve, Markup]]
    lengths: Sequence[tuple[str, int, Markup]]
    groups: Mapping[str, Sequence[GroupView]]
    examples: Sequence[ExampleView]
    postmortems: Sequence[PostmortemView]
    reviewed: int
    """Rollouts that have a postmortem, shown or not."""
    reflections: Sequence[AttemptView]
    stages: Sequence[StageRow]
    health: Sequence[StageHealth]
    events: Sequence[Event]
    earlier_events: int


def render_report(readers: RunReader | Sequence[RunReader]) -> str:
    """The page of one run or of several, one after the other; it can always be written as UTF-8.

    A run that is in progress, was stopped, failed, or has not begun is shown as far as it came.
    """
    several = [readers] if isinstance(readers, RunReader) else list(readers)
    pages = []
    for place, reader in enumerate(several):
        with reader.snapshot():
            pages.append(_run_page(reader, f"run{place + 1}-" if len(several) > 1 else ""))
    css = resources.files("forkpoint.report").joinpath("templates/style.css").read_text(encoding="utf-8")
    return _environment().get_template("report.html").render(
        pages=pages, css=Markup(css), css_hash=_css_hash(css), version=__version__
    )  # fmt: skip


def write_report(run: Path) -> Path:
    """The path of `report.html` in the run's folder, now up to date.

    Raises:
        StoreError: there is no run, or the page cannot be written; an earlier page then stays as it was.
    """
    with RunReader(run) as reader:
        page = render_report(reader)
    write_text_atomic(run / REPORT, page)
    return run / REPORT


def _css_hash(css: str) -> str:
    return base64.b64encode(hashlib.sha256(css.encode()).digest()).decode()


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("forkpoint.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        # Escaping stops markup; this stops what hides, reorders or cannot be encoded.
        finalize=_printable,
    )
    environment.filters.update(
        duration=duration, moment=moment, mark=outcome_mark, color=color_class, share=share_text, count=count_text,
        interval=interval_text, gap=difference_text, spread=spread_text, health=HEALTH.__getitem__,
    )  # fmt: skip
    return environment


def _printable(value: Any) -> Any:  # noqa: ANN401
    return visible(shorten(value, MAX_TEXT)) if isinstance(value, str) and not isinstance(value, Markup) else value


def count_text(count: int) -> str:
    """A whole number with thin spaces between the thousands.

    >>> count_text(1234567).replace(chr(0x202F), " ")
    '1 234 567'
    """
    return f"{count:,}".replace(",", "\N{NARROW NO-BREAK SPACE}")


def spread_text(found: Sequence[Arm], attribute: str) -> str:
    """The count that all arms share, or the least and the largest."""
    counts = [int(getattr(arm, attribute)) for arm in found]
    low, high = count_text(min(counts)), count_text(max(counts))
    return low if low == high else f"{low} to {high}"


def interval_text(interval: tuple[float, float], percent: bool = False) -> str:
    """An interval, in percent points or as it is.

    >>> interval_text((0.9, 0.951), True), interval_text((6.12, 6.6))
    ('90.0 to 95.1', '6.1 to 6.6')
    """
    low, high = (100 * interval[0], 100 * interval[1]) if percent else interval
    return f"{low:.1f} to {high:.1f}"


def difference_text(gap: Difference) -> str:
    r"""A difference of shares in percent points.

    >>> gap = Difference(value=-0.25, interval=(-0.3, -0.2), p_value=None, problems=8)
    >>> difference_text(gap).replace("\N{MINUS SIGN}", "-")
    '-25.0 (-30.0 to -20.0)'
    """
    value, low, high = (f"{100 * number:+.1f}".replace("-", "\N{MINUS SIGN}") for number in (gap.value, *gap.interval))
    return f"{value} ({low} to {high})"


def _run_page(reader: RunReader, prefix: str) -> RunPage:
    recipe, stages, found = resolved_recipe(reader.folder), reader.stages(), arms(reader)
    texts = token_texts(reader.folder)
    groups, shown = training_groups(reader, texts, prefix), examples(reader, found, texts, prefix)
    slots = {stage.name: slot for slot, stage in enumerate(stages)}
    anchors: dict[str, str] = {}
    for example in shown:
        for name, _, view in example.cells:
            anchors.setdefault(name, view.anchor)
    histograms = length_histograms(reader, found)
    top = max((a + b for chart in histograms for a, b in zip(chart.solved, chart.unsolved, strict=True)), default=1.0)
    status, status_text = run_status(stages)
    told, reviewed = postmortems(reader, texts, prefix)
    events, last = reader.events(), float(max((stage.updates_done for stage in stages), default=0))
    return RunPage(
        prefix=prefix,
        name=reader.name,
        folder=reader.folder.absolute().name,
        status=status,
        status_text=status_text,
        about=about(recipe),
        headline=headline(found),
        facts=facts(reader, recipe),
        recipe=_recipe_text(reader.folder) if recipe else "",
        arms=found,
        differences=compare_with_parents(reader, found),
        slots=slots,
        anchors=anchors,
        dots=_dots(found, slots, anchors),
        curves=[(curve, line_chart(curve, last=last)) for curve in learning_curves(reader)],
        lengths=[(chart.arm, chart.slot, length_chart(chart, top=1.05 * top)) for chart in histograms],
        groups=groups,
        examples=shown,
        postmortems=told,
        reviewed=reviewed,
        reflections=reflections(reader, [stage.name for stage in stages]),
        stages=[
            StageRow(
                stage=stage,
                slot=slots[stage.name],
                data=stage_data(recipe, stage.name),
                tokens=int(reader.updates(stage.name)[2].sum()),
                anchor=groups[stage.name][0].anchor if stage.name in groups else None,
            )
            for stage in stages
        ],
        health=health(reader, slots, texts, prefix),
        events=events[-MAX_EVENTS:],
        earlier_events=max(0, len(events) - MAX_EVENTS),
    )


def _recipe_text(run: Path) -> str:
    text = (run / "recipe.toml").read_text(encoding="utf-8")
    return text if len(text) <= MAX_RECIPE else text[:MAX_RECIPE] + "\n…"


def _dots(found: Sequence[Arm], slots: Mapping[str, int], anchors: Mapping[str, str]) -> list[tuple[str, Markup]]:
    """The charts that compare the arms: title and drawing."""
    if not found:
        return []
    solved = [
        Dot(label=arm.name, slot=slots[arm.name], value=arm.solve_rate, interval=arm.interval,
            shown=share_text(arm.solve_rate), anchor=anchors.get(arm.name))
        for arm in found
    ]  # fmt: skip
    moves = [
        Dot(label=arm.name, slot=slots[arm.name], value=arm.moves, interval=arm.moves_interval,
            shown=f"{arm.moves:.1f}", anchor=anchors.get(arm.name))
        for arm in found
    ]  # fmt: skip
    left = [
        Dot(label=arm.name, slot=slots[arm.name], value=arm.left_wrong_branch, interval=arm.left_interval,
            shown=share_text(arm.left_wrong_branch), anchor=anchors.get(arm.name))
        for arm in found if arm.left_wrong_branch is not None
    ]  # fmt: skip
    unit = " or ".join(sorted({arm.unit for arm in found}))
    budget = float(max(arm.budget for arm in found))
    charts = [
        ("Solve rate", dot_chart(solved, title="share of problems", limits=(0.0, 1.0))),
        ("Mean length", dot_chart(moves, title=f"{unit}, unsolved = budget", limits=(0.0, budget))),
    ]
    if left:
        charts.append(("Wrong branches left again", dot_chart(left, title="share of branches", limits=(0.0, 1.0))))
    return charts
