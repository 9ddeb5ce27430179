"""The page of a run in the lab: the exact hitting time of its checkpoints, and the four probabilities by depth.

Checkpoints of tables are read as they are, without torch, and solved exactly; of a transformer, which sees more than
the last edge, only the length of its sampled rollouts is shown.
"""

import base64
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from safetensors import SafetensorError
from safetensors.numpy import load_file

from forkpoint import __version__
from forkpoint.errors import ModelError, StoreError
from forkpoint.files import write_text_atomic
from forkpoint.report.arms import resolved_recipe
from forkpoint.report.charts import WIDTH, Frame, color_class, drawing, element, nice_ticks, tick_text
from forkpoint.report.lab_values import CURVE_FORMAT, Values, shape_of, theory_lines
from forkpoint.report.text import visible
from forkpoint.store import RunReader, StageRecord, checkpoint_update, list_checkpoints, stage_folder
from forkpoint.theory.classes import NAMED
from forkpoint.theory.graphs import ROWS, Array, PathStar, edge_states
from forkpoint.theory.tables import TablePolicy, softmax_policy, solve_table, spread_policy

PAGE = "lab.html"
"""Name of the page in a run folder."""
WEIGHTS, DESCRIPTION = "model.safetensors", "tabular.json"
MAX_COLUMNS = 160
"""Checkpoints of a heat map; of more, evenly spaced ones are shown."""
RAMP = ((0, 34, 78), (53, 69, 108), (102, 105, 112), (148, 142, 119), (200, 184, 102), (254, 232, 56))
"""Colors from 0 to 1, dark to light, in the manner of the map cividis: equally readable for color-blind readers."""
TITLES = ("a: came forward, right end, goes on", "b: came back, right end, goes back",
          "c: came forward, left end, goes on", "d: came back, left end, goes back")  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class StageCourse:
    """How one stage went."""

    stage: str
    slot: int
    """Place of the stage in the run; decides its color."""
    updates: tuple[int, ...]
    steps: tuple[float, ...]
    """Mean hitting times, steps; of a sampled course the mean length of training rollouts, the first edge included."""
    exact: bool
    parent: str | None = None
    """The stage whose weights this one began with."""
    probabilities: tuple[Array, ...] = ()
    """At each update the four probabilities by depth [4, K], rows a, b, c, d; none of a sampled course."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LabPage:
    """Everything that the template shows."""

    name: str
    graph: PathStar
    fork: str
    lines: Mapping[str, float | None]
    courses: Sequence[StageCourse]
    times: Markup
    heat: Sequence[tuple[str, Sequence[tuple[str, Markup]]]]
    """Stage, and its four titles with heat maps."""
    ramp: Markup


def read_description(folder: Path) -> dict[str, Any]:
    """The description of a tabular checkpoint.  Raises ModelError when the folder holds none."""
    try:
        record: Any = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"there is no tabular policy at {folder}: {str(error).splitlines()[0]}") from None
    if not isinstance(record, dict) or not {"architecture", "depths", "lanes"} <= set(record):
        raise ModelError(f"there is no tabular policy at {folder}: its description is of another kind.")
    return record


def read_checkpoint(folder: Path) -> TablePolicy:
    """The table of a checkpoint of a tabular policy, read without torch.

    Raises ModelError when the folder holds none, or a transformer, which is no table.
    """
    record = read_description(folder)
    if record["architecture"] != "table":
        raise ModelError(f"{folder} holds a {record['architecture']}, which sees more than the last edge: no table.")
    try:
        logits = load_file(folder / WEIGHTS)["logits"].astype(np.float64)
    except (OSError, KeyError, ValueError, SafetensorError) as error:
        raise ModelError(f"there is no tabular policy at {folder}: {str(error).splitlines()[0]}") from None
    return softmax_policy(PathStar(depths=tuple(record["depths"]), lanes=tuple(record["lanes"])), logits)


def mean_probabilities(policy: TablePolicy) -> Array:
    """The probability of the desired class by depth [4, K], rows a, b, c, d, meaned over branches and lanes.

    >>> from forkpoint.theory.classes import golden_policy
    >>> mean_probabilities(spread_policy(golden_policy(PathStar.regular(branches=2, depth=1, lanes=3)))).round(2).T
    array([[1.  , 0.75, 1.  , 0.25]])
    """
    states, deepest = edge_states(policy.graph), max(policy.graph.depths)
    total, count = np.zeros((4, deepest)), np.zeros((4, deepest))
    for state, label in enumerate(states.labels):
        if label.kind in ROWS:
            row, column = ROWS.index(label.kind), label.depth - 1
            entries = range(states.offsets[state], states.offsets[state + 1])
            wanted = [i for i in entries if states.desired(label, states.labels[states.successors[i]])]
            total[row, column] += policy.probabilities[wanted].sum()
            count[row, column] += 1
    return total / count


def stage_courses(reader: RunReader) -> list[StageCourse]:
    """The stages of a run whose policy is tabular, each with what its checkpoints are worth."""
    found = []
    ends: dict[str, Path] = {}
    for slot, stage in enumerate(reader.stages()):
        folders = list_checkpoints(stage_folder(reader.folder, stage.name))
        if not folders or not (folders[0] / DESCRIPTION).is_file():
            continue
        ends[stage.name] = folders[-1]
        if read_description(folders[0])["architecture"] == "table":
            found.append(_exact_course(reader, stage, slot, folders, ends))
        else:
            updates, lengths = reader.metrics(stage.name, "length")
            if not len(updates):  # imitation samples only to evaluate
                updates, lengths = reader.metrics(stage.name, "evaluation_length")
            steps = tuple(1.0 + float(length) for length in lengths)
            found.append(
                StageCourse(
                    stage=stage.name,
                    slot=slot,
                    updates=tuple(map(int, updates)),
                    steps=steps,
                    exact=False,
                    parent=stage.parent,
                )
            )
    return found


def _exact_course(
    reader: RunReader, stage: StageRecord, slot: int, folders: Sequence[Path], ends: Mapping[str, Path]
) -> StageCourse:
    kept = folders if len(folders) <= MAX_COLUMNS else _thinned(folders)
    tables = [(checkpoint_update(folder), read_checkpoint(folder)) for folder in kept]
    if tables[0][0] > 0:
        start = _start(reader, stage, tables[0][1].graph, ends)
        tables = ([(0, start)] if start is not None else []) + tables
    return StageCourse(
        stage=stage.name,
        slot=slot,
        updates=tuple(update for update, _ in tables),
        steps=tuple(float(solve_table(policy).steps.mean()) for _, policy in tables),
        exact=True,
        parent=stage.parent,
        probabilities=tuple(mean_probabilities(policy) for _, policy in tables),
    )


def _thinned(folders: Sequence[Path]) -> list[Path]:
    places = np.linspace(0, len(folders) - 1, MAX_COLUMNS).round().astype(int)
    return [folders[place] for place in sorted(set(places.tolist()))]


def _start(reader: RunReader, stage: StageRecord, graph: PathStar, ends: Mapping[str, Path]) -> TablePolicy | None:
    """The policy that a stage began with: its parent's last checkpoint, or the recipe's named start."""
    if stage.parent is not None and stage.parent in ends:
        return read_checkpoint(ends[stage.parent])
    recipe = resolved_recipe(reader.folder)
    name = str(getattr(recipe.policy, "start", "")) if recipe else ""
    return spread_policy(NAMED[name](graph)) if name in NAMED else None


def curve_json(courses: Sequence[StageCourse], graph: PathStar, *, about: str, command: str) -> Values:
    """A run as the curves that `lab figures` draws from a file; stages that follow one another are one curve."""
    curves = [
        {
            "label": course.stage,
            "measure": "exact" if course.exact else "sampled lengths",
            "updates": list(course.updates),
            "steps": [round(steps, 3) for steps in course.steps],
        }
        for course in chained_courses(courses)
    ]
    return {"format": CURVE_FORMAT, "about": about, "command": command, "graph": shape_of(graph), "curves": curves}


def chained_courses(courses: Sequence[StageCourse]) -> list[StageCourse]:
    """The courses, each stage that alone goes on from another joined to it under the name of the later one."""
    found: dict[str, StageCourse] = {}
    parents = [course.parent for course in courses]
    for course in courses:
        before = found.get(course.parent) if course.parent is not None else None
        if before is None or parents.count(course.parent) > 1 or before.exact != course.exact or not course.updates:
            found[course.stage] = course
            continue
        del found[before.stage]
        # An exact course repeats where its parent ended.
        first = 1 if course.exact and course.updates[0] == 0 else 0
        last = before.updates[-1]
        found[course.stage] = replace(
            course,
            updates=before.updates + tuple(last + update for update in course.updates[first:]),
            steps=before.steps + course.steps[first:],
            probabilities=before.probabilities + course.probabilities[first:],
        )
    return list(found.values())


def lab_graph(reader: RunReader) -> tuple[PathStar, str]:
    """The graph of a run's tabular policy, and what happens to its fork.  Raises StoreError when it has none."""
    for stage in reader.stages():
        folders = list_checkpoints(stage_folder(reader.folder, stage.name))
        if folders and (folders[0] / DESCRIPTION).is_file():
            record = read_description(folders[0])
            graph = PathStar(depths=tuple(record["depths"]), lanes=tuple(record["lanes"]))
            return graph, str(record.get("fork", "frozen"))
    raise StoreError(f"{reader.folder} holds no checkpoint of a tabular policy.")


def render_lab_page(reader: RunReader) -> str:
    """The page of a run in the lab as HTML, self-contained.  Raises StoreError when the run has no tabular policy."""
    with reader.snapshot():
        graph, fork = lab_graph(reader)
        courses, lines = stage_courses(reader), theory_lines(graph)
        shown = [course for course in courses if course.probabilities]
        page = LabPage(
            name=reader.name,
            graph=graph,
            fork=fork,
            lines=lines,
            courses=courses,
            times=time_chart(courses, lines, fork),
            heat=[(course.stage, _heat_maps(course)) for course in shown],
            ramp=_ramp(),
        )
    css = resources.files("forkpoint.report").joinpath("templates/style.css").read_text(encoding="utf-8")
    css_hash = base64.b64encode(hashlib.sha256(css.encode()).digest()).decode()
    template = _environment().get_template("lab.html")
    return template.render(page=page, css=Markup(css), css_hash=css_hash, version=__version__)


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("forkpoint.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value,
    )
    environment.filters["color"] = color_class
    return environment


def write_lab_page(run: Path) -> Path:
    """The path of `lab.html` in the run's folder, now up to date.

    Raises:
        StoreError: there is no run, it has no tabular policy, or the page cannot be written.
    """
    with RunReader(run) as reader:
        page = render_lab_page(reader)
    write_text_atomic(run / PAGE, page)
    return run / PAGE


def time_chart(courses: Sequence[StageCourse], lines: Mapping[str, float | None], fork: str) -> Markup:
    """Hitting time against updates on a logarithmic axis, with the theory's lines."""
    goal = "optimal" if fork == "frozen" else "optimal, fork trained"
    levels = {name: lines[name] for name in ("uniform", goal) if lines[name] is not None}
    known = [math.log10(steps) for course in courses for steps in course.steps]
    known += [math.log10(value) for value in levels.values() if value]
    low, high = min(known) - 0.1, max(known) + 0.1
    last = float(max((update for course in courses for update in course.updates), default=1) or 1)
    frame = Frame(left=52, right=WIDTH - 14, top=24, bottom=190, x=(0.0, last), y=(low, high))
    parts = [element("text", "mean hitting time, steps", x=0, y=11, class_="title")]
    for tick in _log_ticks(low, high):
        y = frame.at_y(math.log10(tick))
        parts += [
            element("line", x1=frame.left, y1=y, x2=frame.right, y2=y, class_="grid"),
            element("text", tick_text(tick), x=frame.left - 6, y=y + 3.5, text_anchor="end", class_="tick"),
        ]
    parts += _update_axis(frame, last)
    for name, value in levels.items():
        y = frame.at_y(math.log10(value or 1.0))
        parts += [
            element("line", x1=frame.left, y1=y, x2=frame.right, y2=y, class_="axis dashed"),
            element("text", f"{name}: {value:.6g}", x=frame.right, y=y - 4, text_anchor="end", class_="tick"),
        ]
    for course in courses:
        pairs = zip(course.updates, course.steps, strict=True)
        points = [(frame.at_x(update), frame.at_y(math.log10(steps))) for update, steps in pairs]
        path = " ".join(f"{'M' if place == 0 else 'L'}{x:.1f} {y:.1f}" for place, (x, y) in enumerate(points))
        told = element("title", f"{course.stage}: {course.steps[-1]:.6g} steps" if course.steps else course.stage)
        parts.append(element("path", told, d=path, class_=f"curve {color_class(course.slot)}"))
    return drawing(224, "Mean hitting time against updates", *parts)


def _log_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten between two logarithms; powers alone where those are many.

    >>> _log_ticks(1.9, 3.1)
    [100.0, 200.0, 500.0, 1000.0]
    """
    factors = (1, 2, 5) if high - low < 2.5 else (1,)
    found = [f * 10.0**power for power in range(math.floor(low), math.ceil(high) + 1) for f in factors]
    return [tick for tick in found if low <= math.log10(tick) <= high]


def _update_axis(frame: Frame, last: float) -> list[Markup]:
    parts = [element("line", x1=frame.left, y1=frame.bottom, x2=frame.right, y2=frame.bottom, class_="axis")]
    for tick in nice_ticks(0.0, last, whole=True):
        x = frame.at_x(tick)
        parts += [
            element("line", x1=x, y1=frame.bottom, x2=x, y2=frame.bottom + 4, class_="axis"),
            element("text", tick_text(tick), x=x, y=frame.bottom + 16, text_anchor="middle", class_="tick"),
        ]
    parts.append(element("text", "update", x=frame.right, y=frame.bottom + 30, text_anchor="end", class_="title"))
    return parts


def _heat_maps(course: StageCourse) -> list[tuple[str, Markup]]:
    return [(title, heat_map(course, row)) for row, title in enumerate(TITLES)]


def heat_map(course: StageCourse, row: int) -> Markup:
    """One of the four probabilities: updates to the right, depth upward, light is sure."""
    depth, last = course.probabilities[0].shape[1], float(max(course.updates[-1], 1))
    height = max(90.0, min(180.0, 14.0 * depth))
    frame = Frame(left=30, right=WIDTH - 14, top=22, bottom=22 + height, x=(0.0, last), y=(0.5, depth + 0.5))
    # A checkpoint's column reaches halfway to its neighbors.
    edges = [0.0, *((a + b) / 2 for a, b in zip(course.updates, course.updates[1:], strict=False)), last]
    parts = [element("text", "depth", x=0, y=11, class_="title")]
    for place, table in enumerate(course.probabilities):
        left, right = frame.at_x(edges[place]), frame.at_x(edges[place + 1])
        for j, value in enumerate(table[row].tolist(), 1):
            top, bottom = frame.at_y(j + 0.5), frame.at_y(j - 0.5)
            told = element("title", f"update {course.updates[place]}, depth {j}: {value:.4f}")
            parts.append(element("rect", told, x=left, y=top, width=right - left + 0.3, height=bottom - top + 0.3,
                                 fill=ramp_color(value), shape_rendering="crispEdges"))  # fmt: skip
    parts += [
        element("text", tick_text(tick), x=frame.left - 6, y=frame.at_y(tick) + 3.5, text_anchor="end", class_="tick")
        for tick in nice_ticks(1, depth, whole=True)
    ]
    return drawing(56 + height, f"{TITLES[row]}, by depth over updates", *parts, *_update_axis(frame, last))


def ramp_color(value: float) -> str:
    """The color of a probability.

    >>> ramp_color(0.0), ramp_color(1.0)
    ('#00224e', '#fee838')
    """
    place = min(1.0, max(0.0, value)) * (len(RAMP) - 1)
    index = min(int(place), len(RAMP) - 2)
    share = place - index
    mixed = (round(a + share * (b - a)) for a, b in zip(RAMP[index], RAMP[index + 1], strict=True))
    return "#" + "".join(f"{part:02x}" for part in mixed)


def _ramp() -> Markup:
    """The key of the heat maps."""
    bars = [
        element("rect", x=30 + 12.0 * place, y=4.0, width=12.3, height=12.0, fill=ramp_color(place / 19))
        for place in range(20)
    ]
    ends = [element("text", text, x=x, y=14.0, text_anchor=anchor, class_="tick")
            for text, x, anchor in (("0", 24.0, "end"), ("1", 276.0, "start"))]  # fmt: skip
    return drawing(22, "Colors from probability 0 to probability 1", *bars, *ends)
