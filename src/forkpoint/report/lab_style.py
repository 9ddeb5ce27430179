"""How the figures of the lab look: colors, fonts, labels, the lines of the theory.

Colors are those of Okabe and Ito, which color-blind readers can tell apart; lines differ in marks or dashes too.
"""

from typing import Any

from forkpoint.report.lab_values import Values

LARGEST_LOG = 690.0
"""Curves are cut off at e^690 steps."""
BLUE, ORANGE, GREEN, RED, PURPLE, SKY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#AA4499", "#56B4E9"
INK, QUIET, RULE = "#1c2127", "#5b636d", "#d9d9d3"
STYLE = {
    "font.size": 10.0,
    "font.family": ["DejaVu Sans"],
    "text.color": INK,
    "axes.edgecolor": QUIET,
    "axes.labelcolor": INK,
    "axes.labelsize": 10.0,
    "axes.titlesize": 10.5,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": RULE,
    "grid.linewidth": 0.6,
    "xtick.color": QUIET,
    "ytick.color": QUIET,
    "legend.frameon": False,
    "legend.fontsize": 9.0,
    "lines.linewidth": 2.0,
    "svg.hashsalt": "forkpoint",
    "savefig.facecolor": "white",
}


def graph_label(graph: Values) -> str:
    """A graph in a few words.

    >>> graph_label({"branches": 2, "depths": [3, 3], "lanes": [5, 4]})
    'W = 2, K = 3, L = 5, 4'
    """
    depth, lanes = (
        str(values[0]) if len(set(values)) == 1 else ", ".join(map(str, values))
        for values in (graph["depths"], graph["lanes"])
    )
    return f"W = {graph['branches']}, K = {depth}, L = {lanes}"


def frozen_label(graph: Values) -> str:
    """What the line of the policy `optimal` is: where depths differ, RLVR ends a little below it.

    >>> frozen_label({"depths": [3, 3]}), frozen_label({"depths": [3, 2]})
    ('optimum, fork frozen', 'a = b = c = d = 1, fork frozen')
    """
    return "optimum, fork frozen" if len(set(graph["depths"])) == 1 else "a = b = c = d = 1, fork frozen"


def sized(figure: Any, width: float, height: float, title: str) -> None:  # noqa: ANN401
    """Sets the size in inches and the line above the drawing."""
    figure.set_size_inches(width, height)
    figure.suptitle(title, x=0.01, ha="left", fontsize=10.5, color=QUIET)


def level_line(axes: Any, value: float, text: str, color: str, *, above: bool = True, side: str = "right") -> None:  # noqa: ANN401
    """A horizontal line of the theory with its name and value at one side."""
    axes.axhline(value, color=color, linestyle=(0, (5, 3)), linewidth=1.2)
    x, align = (0.99, "right") if side == "right" else (0.01, "left")
    axes.annotate(
        text, (x, value), xycoords=("axes fraction", "data"), xytext=(0, 3 if above else -4), color=color,
        textcoords="offset points", ha=align, va="bottom" if above else "top", fontsize=9,
    )  # fmt: skip


def digits(value: float) -> str:
    """A number of steps as a reader wants it.

    >>> digits(50142.0), digits(85.6), digits(2966044.19)
    ('50,142', '85.6', '2,966,044')
    """
    if value >= 1e9:
        return f"{value:.3g}"
    return f"{value:,.1f}".removesuffix(".0") if value < 1000 else f"{value:,.0f}"


def plain_numbers(axes: Any, *names: str) -> None:  # noqa: ANN401
    """Numbers of a logarithmic axis as 1,000 instead of a power."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter  # noqa: PLC0415  (an optional extra)

    for name in names:
        axis = getattr(axes, f"{name}axis")
        low, high = axis.get_view_interval()
        if high / low < 100:
            axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}" if value < 1e7 else f"{value:.0e}"))
        axis.set_minor_formatter(NullFormatter())
