"""Charts as inline SVG, made from numbers; all text in them is escaped.

Colors and fonts are classes of the page's style sheet, so a chart follows the reader's light or dark scheme.
Widths are those of a phone: wider screens put charts side by side instead of stretching them.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from forkpoint.report.curves import SHARES, Curve, Lengths, Line
from forkpoint.report.text import visible

WIDTH = 360.0
SLOTS = 8
"""Colors of the style sheet; later stages take them again with dashes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Dot:
    """One row of a dot chart."""

    label: str
    slot: int
    value: float
    interval: tuple[float, float] | None
    shown: str
    """The value as text."""
    anchor: str | None = None
    """Where on the page the rollouts behind the number are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """The inner rectangle of a chart in pixels, and the numbers at its sides."""

    left: float
    right: float
    top: float
    bottom: float
    x: tuple[float, float]
    y: tuple[float, float]

    def at_x(self, value: float) -> float:
        """The horizontal place of a number; beyond the sides it stays on them."""
        return _place(value, self.x, self.left, self.right)

    def at_y(self, value: float) -> float:
        """The vertical place of a number; larger is higher."""
        return _place(value, self.y, self.bottom, self.top)


def _place(value: float, limits: tuple[float, float], start: float, end: float) -> float:
    low, high = limits
    share = (value - low) / (high - low) if high > low else 0.5
    return start + min(1.0, max(0.0, share)) * (end - start)


def element(tag: str, *children: str, **attributes: object) -> Markup:
    """One SVG element; children that are no Markup are escaped, `class_` is `class`, `_` is `-`.

    >>> element("text", "<b>", x=1.25, class_="tick")
    Markup('<text x="1.25" class="tick">&lt;b&gt;</text>')
    """
    pairs = Markup("").join(
        Markup(' {}="{}"').format(name.rstrip("_").replace("_", "-"), _short(value))
        for name, value in attributes.items()
    )
    inner = Markup("").join(child if isinstance(child, Markup) else visible(child) for child in children)
    return Markup("<{}{}>{}</{}>").format(Markup(tag), pairs, inner, Markup(tag))


def _short(value: object) -> object:
    if isinstance(value, float):
        return f"{value:.2f}".rstrip("0").rstrip(".")
    return visible(value) if isinstance(value, str) else value


def drawing(height: float, label: str, *children: str) -> Markup:
    """A whole SVG that scales with its column."""
    return element(
        "svg", *children, viewBox=f"0 0 {WIDTH:.0f} {height:.0f}", role="img", aria_label=label, class_="chart"
    )


def nice_ticks(low: float, high: float, count: int = 4, *, whole: bool = False) -> list[float]:
    """Round numbers (1, 2, 5 times a power of ten) from `low` to `high`, about `count` steps apart.

    >>> nice_ticks(0, 300), nice_ticks(0, 1)
    ([0.0, 100.0, 200.0, 300.0], [0.0, 0.2, 0.4, 0.6, 0.8, 1.0])
    """
    if not high > low:
        return [low]
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = min((factor * power for factor in (1, 2, 5, 10)), key=lambda size: abs(math.log(size / rough)))
    step = max(1.0, step) if whole else step
    first = math.ceil(low / step - 1e-9)
    return [round(index * step, 12) for index in range(first, math.floor(high / step + 1e-9) + 1)]


def tick_text(value: float) -> str:
    """A number at an axis.

    >>> tick_text(0.2), tick_text(300.0), tick_text(12000.0)
    ('0.2', '300', '12k')
    """
    if abs(value) >= 10_000:
        return f"{value / 1000:g}k"
    return f"{value:g}"


def color_class(slot: int) -> str:
    """The class that colors a stage; from the ninth on its lines are dashed as well."""
    return f"s{slot % SLOTS}" + (" dashed" if slot >= SLOTS else "")


def _text(content: str, x: float, y: float, anchor: str = "start", class_: str = "tick") -> Markup:
    return element("text", content, x=x, y=y, text_anchor=anchor, class_=class_)


def _line(x1: float, y1: float, x2: float, y2: float, class_: str) -> Markup:
    return element("line", x1=x1, y1=y1, x2=x2, y2=y2, class_=class_)


def _path(points: Sequence[tuple[float, float]], class_: str, *, closed: bool = False) -> Markup:
    steps = " ".join(f"{'M' if place == 0 else 'L'}{x:.1f} {y:.1f}" for place, (x, y) in enumerate(points))
    return element("path", d=steps + (" Z" if closed else ""), class_=class_)


def _axes(frame: Frame, x_title: str, y_title: str, *, whole: bool = True) -> list[Markup]:
    """Grid lines and numbers of both axes, with their titles."""
    parts = [_text(y_title, 0, 11, class_="title")]
    for tick in nice_ticks(*frame.y):
        y = frame.at_y(tick)
        parts += [
            _line(frame.left, y, frame.right, y, "grid"),
            _text(tick_text(tick), frame.left - 6, y + 3.5, "end"),
        ]
    for tick in nice_ticks(*frame.x, whole=whole):
        x = frame.at_x(tick)
        parts += [
            _line(x, frame.bottom, x, frame.bottom + 4, "axis"),
            _text(tick_text(tick), x, frame.bottom + 16, "middle"),
        ]
    parts.append(_line(frame.left, frame.bottom, frame.right, frame.bottom, "axis"))
    parts.append(_text(x_title, frame.right, frame.bottom + 30, "end", "title"))
    return parts


def line_chart(curve: Curve, *, last: float, x_title: str = "update") -> Markup:
    """A line for each stage up to the update `last`, with bands or bars where there are intervals, dots where few."""
    top = max([max(line.updates) for line in curve.lines] + [last, 1.0])
    frame = Frame(left=40, right=WIDTH - 14, top=24, bottom=170, x=(0.0, top), y=_limits(curve))
    body = [part for line in curve.lines for part in _stage_line(frame, line)]
    stages = ", ".join(line.stage for line in curve.lines)
    return drawing(204, f"{curve.title} against updates for {stages}", *_axes(frame, x_title, curve.unit), *body)


def value_chart(line: Line, *, length: int, hinge: tuple[int, int] | None) -> Markup:
    """The value of a rollout over the tokens that were kept of it (its `updates`), its hinge as a band across."""
    frame = Frame(left=40, right=WIDTH - 14, top=24, bottom=140, x=(0.0, float(max(length, 1))), y=(0.0, 1.0))
    parts = _axes(frame, "tokens kept", "share of continuations that end correct")
    if hinge is not None:
        left, right = frame.at_x(hinge[0]), max(frame.at_x(hinge[1]), frame.at_x(hinge[0]) + 2)
        told = element("title", f"hinge: tokens {hinge[0]} to {hinge[1] - 1}")
        parts.insert(0, element("rect", told, x=left, y=frame.top, width=right - left,
                                height=frame.bottom - frame.top, class_="hinge"))  # fmt: skip
    return drawing(174, "Value against tokens kept", *parts, *_stage_line(frame, line))


def _limits(curve: Curve) -> tuple[float, float]:
    if curve.metric in SHARES:
        return 0.0, 1.0
    values = [value for line in curve.lines for value in line.values]
    low, high = min(0.0, *values), max(0.0, *values)
    return (low, high + 0.05 * (high - low)) if high > low else (low, low + 1.0)


def _stage_line(frame: Frame, line: Line) -> list[Markup]:
    color = color_class(line.slot)
    points = [(frame.at_x(x), frame.at_y(y)) for x, y in zip(line.updates, line.values, strict=True)]
    parts: list[Markup] = []
    if line.intervals and len(points) > 1:
        lows = [(x, frame.at_y(low)) for (x, _), (low, _) in zip(points, line.intervals, strict=True)]
        highs = [(x, frame.at_y(high)) for (x, _), (_, high) in zip(points, line.intervals, strict=True)]
        parts.append(_path([*highs, *reversed(lows)], f"band {color}", closed=True))
    elif line.intervals:
        low, high = line.intervals[0]
        parts.append(_line(points[0][0], frame.at_y(low), points[0][0], frame.at_y(high), f"whisker {color}"))
    if len(points) > 1:
        parts.append(_path(points, f"curve {color}"))
    if line.intervals or len(points) == 1:
        for place, (x, y) in enumerate(points):
            told = f"{line.stage}, {line.axis} {line.updates[place]:g}: {line.values[place]:.3g}"
            told += "" if not line.intervals else " [{:.3g}, {:.3g}]".format(*line.intervals[place])
            parts.append(element("circle", element("title", told), cx=x, cy=y, r=3.2, class_=f"dot {color}"))
    return parts


def dot_chart(rows: Sequence[Dot], *, title: str, limits: tuple[float, float]) -> Markup:
    """A row for each arm: its value as a dot, its interval as a bar, the value in words at the right."""
    longest = max((len(_clip(row.label)) for row in rows), default=0)
    bottom = 8.0 + 24.0 * len(rows)
    frame = Frame(
        left=14 + 6.6 * longest, right=WIDTH - 52, top=4, bottom=bottom, x=limits, y=(0.0, float(max(1, len(rows))))
    )
    parts = []
    for tick in nice_ticks(*limits):
        x = frame.at_x(tick)
        parts += [_line(x, frame.top, x, bottom, "grid"), _text(tick_text(tick), x, bottom + 15, "middle")]
    parts.append(_line(frame.left, bottom, frame.right, bottom, "axis"))
    parts.append(_text(title, frame.right, bottom + 30, "end", "title"))
    for place, row in enumerate(rows):
        parts += _dot_row(frame, row, 18.0 + 24.0 * place)
    return drawing(bottom + 36, f"{title} of each arm", *parts)


def _dot_row(frame: Frame, row: Dot, y: float) -> list[Markup]:
    color = color_class(row.slot)
    parts = [_text(_clip(row.label), frame.left - 10, y + 4, "end", "label")]
    told = f"{row.label}: {row.shown}"
    if row.interval is not None:
        low, high = row.interval
        told += f", 95 % interval {low:.3g} to {high:.3g}"
        parts.append(_line(frame.at_x(low), y, frame.at_x(high), y, f"whisker {color}"))
    dot = element("circle", element("title", told), cx=frame.at_x(row.value), cy=y, r=3.8, class_=f"dot {color}")
    shown = _text(row.shown, WIDTH - 2, y + 4, "end", "value")
    if row.anchor is not None:
        shown = element("a", shown, href=f"#{row.anchor}")
    return [*parts, dot, shown]


def _clip(label: str, limit: int = 18) -> str:
    return label if len(label) <= limit else label[: limit - 1] + "…"


def length_chart(lengths: Lengths, *, top: float) -> Markup:
    """Bars of the shares of samples by length, solved below unsolved; `top` is the end of the upright axis."""
    high = lengths.edges[-1]
    frame = Frame(left=40, right=WIDTH - 14, top=24, bottom=140, x=(-0.5, high), y=(0.0, top))
    parts = _axes(frame, f"length, {lengths.unit}", "share of samples")
    for place, (solved, unsolved) in enumerate(zip(lengths.solved, lengths.unsolved, strict=True)):
        left, right = frame.at_x(lengths.edges[place]) + 0.6, frame.at_x(lengths.edges[place + 1]) - 0.6
        span = _span(lengths.edges[place], lengths.edges[place + 1])
        for low, share, kind in ((0.0, solved, "solved"), (solved, unsolved, "unsolved")):
            if share > 0:
                upper, lower = frame.at_y(low + share), frame.at_y(low)
                told = element("title", f"{span} {lengths.unit}, {kind}: {share:.1%} of the samples")
                parts.append(
                    element("rect", told, x=left, y=upper, width=right - left, height=lower - upper, class_=kind)
                )
    return drawing(174, f"Lengths of the final rollouts of {lengths.arm}", *parts)


def _span(low: float, high: float) -> str:
    first, last = math.ceil(low), math.floor(high)
    return str(first) if first == last else f"{first} to {last}"
