"""How each figure of the lab is drawn: numbers of `lab_values` into an empty matplotlib figure."""

from typing import Any

import numpy as np

from forkpoint.report.lab_style import (
    BLUE,
    GREEN,
    INK,
    LARGEST_LOG,
    ORANGE,
    PURPLE,
    QUIET,
    RED,
    RULE,
    SKY,
    digits,
    frozen_label,
    graph_label,
    level_line,
    plain_numbers,
    sized,
)
from forkpoint.report.lab_values import HEADLINE, Values, mean_of_draws
from forkpoint.theory.graphs import PathStar

CONFUSED = (PathStar.regular(branches=3, depth=15, lanes=5), HEADLINE)
"""The graphs of the figure `confused-middle`."""
ROWS = (
    ("a", "R+ came forward to a right end", "go on"),
    ("b", "R\N{MINUS SIGN} came back to a right end", "back over a lane"),
    ("c", "L+ came forward to a left end", "on over a lane"),
    ("d", "L\N{MINUS SIGN} came back to a left end", "back toward the fork"),
)
"""The four probabilities: name, the state, the desired move."""


def sign_curve(figure: Any, found: Values) -> None:  # noqa: ANN401
    """The hitting time against iterations of the sign flow, with the theory's lines."""
    sized(figure, 6.6, 4.3, f"sign gradient flow, step {found['step']}; {graph_label(found['graph'])}; exact")
    axes, lines = figure.subplots(), found["lines"]
    times, steps = np.array(found["iterations"]), np.exp(found["log_hitting_time"])
    axes.plot(times, steps, color=BLUE)
    for moment in (0, len(times) // 2, len(times) - 1):
        axes.plot(times[moment], steps[moment], "o", color=BLUE, markersize=5)
        last = moment == len(times) - 1
        axes.annotate(f"{digits(steps[moment])} at {times[moment]:.0f}", (times[moment], steps[moment]), color=BLUE,
                      xytext=(0 if last else 8, 16 if last else 6), textcoords="offset points",
                      ha="right" if last else "left", fontsize=9)  # fmt: skip
    level_line(
        axes, lines["optimal"], f"{frozen_label(found['graph'])}: {digits(lines['optimal'])}", GREEN, side="left"
    )
    trained = lines["optimal, fork trained"]
    level_line(axes, trained, f"optimum, fork trained: {digits(trained)}", PURPLE, above=False, side="left")
    axes.set(yscale="log", xlabel="iteration", ylabel="mean hitting time, steps", ylim=(trained * 0.6, steps[0] * 1.7))
    axes.set_xlim(-0.01 * times[-1], 1.02 * times[-1])
    plain_numbers(axes, "y")


def unequal_curve(figure: Any, found: Values) -> None:  # noqa: ANN401
    """The sign flow where branches differ: the whole course, and its end on a linear axis."""
    sized(figure, 9.6, 4.3, f"sign gradient flow, step {found['step']}; {graph_label(found['graph'])}; exact")
    (whole, end), lines = figure.subplots(1, 2), found["lines"]
    times, steps = np.array(found["iterations"]), np.exp(found["log_hitting_time"])
    for axes in (whole, end):
        axes.plot(times, steps, color=BLUE, label="RLVR, fork frozen")
        axes.set(xlabel="iteration", ylabel="mean hitting time, steps")
    trained, sure, paper = lines["optimal, fork trained"], lines["optimal"], lines["paper"]
    whole.plot(0, steps[0], "o", color=BLUE, markersize=5)
    whole.annotate(f"pretrained: {digits(steps[0])}", (0, steps[0]), xytext=(8, 6), textcoords="offset points",
                   color=BLUE, fontsize=9)  # fmt: skip
    whole.annotate(f"{steps[-1]:.2f} at {times[-1]:.0f}", (times[-1], steps[-1]), xytext=(0, 8), color=BLUE, ha="right",
                   textcoords="offset points", fontsize=9)  # fmt: skip
    level_line(whole, trained, f"optimum, fork trained: {digits(trained)}", PURPLE, above=False, side="left")
    whole.set(yscale="log", title="the whole course", ylim=(trained * 0.6, steps[0] * 1.7), xlim=(-20, times[-1]))
    level_line(end, sure, f"a = b = c = d = 1: {digits(sure)}", GREEN)
    level_line(end, found["limit"], f"limit of the flow: {found['limit']:.2f}", BLUE, above=False)
    level_line(end, paper, f"the paper's line 4Σk: {digits(paper)}", QUIET, above=False)
    end.set(title="its end", ylim=(paper - 0.6, sure + 4.5), xlim=(times[-1] * 0.25, times[-1]))
    plain_numbers(whole, "y")


def probabilities(figure: Any, found: Values) -> None:  # noqa: ANN401
    """Four heat maps: iterations to the right, depth upward."""
    from matplotlib.ticker import MaxNLocator  # noqa: PLC0415  (an optional extra)

    sized(figure, 9.6, 5.6, f"sign gradient flow, step {found['step']}; {graph_label(found['graph'])}; exact")
    grid = figure.subplots(2, 2, sharex=True, sharey=True)
    times, image = found["iterations"], None
    for axes, (name, state, move) in zip(grid.flat, ROWS, strict=True):
        table = np.array(found["probabilities"][name]).T
        depth = table.shape[0]
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
        image = axes.imshow(table, origin="lower", aspect="auto", cmap="cividis", vmin=0, vmax=1,
                            extent=(0, times[-1], 0.5, depth + 0.5), interpolation="nearest")  # fmt: skip
        levels = axes.contour(times, np.arange(1, depth + 1), table, levels=[0.5, 0.9, 0.99], colors=INK,
                              linewidths=0.9, linestyles=[":", "--", "-"]) if depth > 1 else None  # fmt: skip
        if levels is not None:
            axes.clabel(levels, fmt="%g", fontsize=8)
        axes.set_title(f"{name}: {state}, {move}", fontsize=9.5)
        axes.grid(visible=False)
    for axes in grid[1]:
        axes.set_xlabel("iteration")
    for axes in grid[:, 0]:
        axes.set_ylabel("depth j (1 at the fork)")
    figure.colorbar(image, ax=grid, label="probability of the desired move", shrink=0.9, pad=0.02)


def imitation_by_depth(figure: Any, found: Values) -> None:  # noqa: ANN401
    """Converged SFT against depth, a line for each number of lanes."""
    sized(figure, 6.6, 4.6, f"converged SFT on golden paths, W = {found['branches']}; exact")
    axes, depths = figure.subplots(), found["depths"]
    colors, marks = (SKY, BLUE, GREEN, ORANGE, RED), "osD^v"
    for place, (lanes, row) in enumerate(found["hitting_time_by_lanes"].items()):
        color = colors[place % 5]
        axes.plot(depths, row, color=color, marker=marks[place % 5], markersize=5)
        growth = f"\N{MULTIPLICATION SIGN}{found['growth_by_lanes'][lanes]:.2f} a diamond"
        text = f"L = {lanes}: {digits(row[-1])}   ({growth})"
        axes.annotate(text, (depths[-1], row[-1]), xytext=(8, 0), textcoords="offset points", color=color, va="center",
                      fontsize=9, annotation_clip=False)  # fmt: skip
    lanes = len(found["hitting_time_by_lanes"])
    axes.plot(depths, found["uniform"], color=QUIET, linestyle="--", linewidth=1.4)
    axes.plot(depths, found["optimal"], color=INK, linewidth=1.4)
    axes.annotate(f"pretrained, L = {lanes}: {digits(found['uniform'][-1])}", (depths[-1], found["uniform"][-1]),
                  xytext=(8, 0), textcoords="offset points", color=QUIET, va="center", fontsize=9)  # fmt: skip
    axes.annotate(f"RLVR, every L: {digits(found['optimal'][-1])}", (depths[-1], found["optimal"][-1]),
                  xytext=(8, 0), textcoords="offset points", color=INK, va="center", fontsize=9)  # fmt: skip
    axes.set(yscale="log", xlabel="diamonds of a branch, K", ylabel="mean hitting time, steps")
    axes.set_xticks(depths)
    plain_numbers(axes, "y")


def supervised_sweep(figure: Any, found: Values) -> None:  # noqa: ANN401
    """The hitting time against the share of supervised backward states: means, and the draws of the most lanes."""
    graph = found["graph"]
    title = f"converged SFT, W = {graph['branches']}, K = {graph['depths'][0]}; {found['draws']} draws, exact for each"
    sized(figure, 6.6, 4.6, title)
    axes, shares = figure.subplots(), np.array(found["shares"])
    rows = found["hitting_times_by_lanes"]
    colors, marks = (SKY, BLUE, GREEN, ORANGE, RED), "osD^v"
    last = max(rows, key=int)
    for p, draws in zip(shares, rows[last], strict=True):
        spread = np.linspace(-0.012, 0.012, len(draws))
        axes.plot(p + spread, draws, ".", color=RED, alpha=0.35, markersize=3.5, markeredgewidth=0)
    for place, (lanes, row) in enumerate(rows.items()):
        means = [mean for mean, _, _ in mean_of_draws(row)]
        axes.plot(shares, means, color=colors[place], marker=marks[place], markersize=5, label=f"L = {lanes}, mean")
    axes.plot([], [], ".", color=RED, alpha=0.5, label=f"L = {last}, each draw")
    level_line(axes, found["optimal"], f"RLVR: {digits(found['optimal'])}", INK, above=False, side="left")
    axes.set(yscale="log", xlabel="share p of backward states that are supervised", ylabel="mean hitting time, steps")
    axes.set_ylim(bottom=found["optimal"] * 0.55)
    axes.set_xticks(shares)
    axes.legend(loc="upper right")
    plain_numbers(axes, "y")


def stored_curve(figure: Any, found: Values) -> None:  # noqa: ANN401
    """Curves of long trainings against updates, with the theory's lines."""
    sized(figure, 6.6, 4.3, f"{found.get('about', 'sampled rollouts')}; {graph_label(found['graph'])}")
    axes, lines, colors = figure.subplots(), found["lines"], (BLUE, ORANGE, GREEN, PURPLE, RED, SKY)
    for place, curve in enumerate(found["curves"]):
        label = f"{curve['label']} ({curve['measure']})"
        axes.plot(curve["updates"], curve["steps"], color=colors[place % 6], label=label,
                  linestyle=("-", "--", "-.", ":", (0, (1, 1)), (0, (8, 2)))[place % 6])  # fmt: skip
    level_line(axes, lines["uniform"], f"pretrained: {digits(lines['uniform'])}", QUIET)
    level_line(
        axes,
        lines["optimal"],
        f"{frozen_label(found['graph'])}: {digits(lines['optimal'])}",
        GREEN,
        above=False,
        side="left",
    )
    axes.set(yscale="log", xlabel="update", ylabel="mean hitting time, steps")
    most = max(max(curve["steps"]) for curve in found["curves"])
    axes.set_ylim(lines["optimal"] * 0.6, max(most, lines["uniform"]) * 1.8)
    axes.legend(loc="best")
    plain_numbers(axes, "y")


def hit_curves(figure: Any, found: Values) -> None:  # noqa: ANN401
    """P(hit within T) of three policies against T."""
    sized(figure, 6.6, 4.3, f"{graph_label(found['graph'])}; exact")
    axes, times = figure.subplots(), found["steps"]
    kinds = (("optimal", "RLVR", GREEN, "-"), ("uniform", "pretrained", QUIET, "--"), ("golden", "SFT", RED, "-."))
    for name, label, color, dashes in kinds:
        axes.plot(times, found["hit_within"][name], color=color, linestyle=dashes, label=label, drawstyle="steps-post")
    level = found["lines"]["one over W"]
    axes.axhline(level, color=RULE, linewidth=1, zorder=0)
    axes.annotate(f"1/W = {level:.3f}", (times[-1], level), xytext=(0, -4), textcoords="offset points", ha="right",
                  va="top", fontsize=9, color=RED)  # fmt: skip
    axes.set(xscale="log", xlabel="steps T", ylabel="P(hit within T steps)", ylim=(0, 1.03), xlim=(times[0], times[-1]))
    axes.legend(loc="upper left")
    plain_numbers(axes, "x")


def confused_middle(figure: Any, found: Values) -> None:  # noqa: ANN401
    """Above the signal of b and d by depth at the start, below the gap of b in the first moments of training."""
    graphs = found["graphs"]
    sized(
        figure,
        4.9 * len(graphs) + (1.0 if len(graphs) == 1 else 0.0),
        6.4,
        "sign gradient flow from the uniform policy; exact",
    )
    grid = figure.subplots(2, len(graphs), squeeze=False, height_ratios=(1, 1))
    limit = max(np.abs(graph["gaps"]["b"]).max() for graph in graphs) / 2
    image = None
    for column, graph in enumerate(graphs):
        _signal(grid[0][column], graph)
        axes, gaps = grid[1][column], np.array(graph["gaps"]["b"]).T
        image = axes.imshow(gaps, origin="lower", aspect="auto", cmap="PuOr", vmin=-limit, vmax=limit,
                            extent=(0, graph["times"][-1], 0.5, len(gaps) + 0.5), interpolation="nearest")  # fmt: skip
        axes.grid(visible=False)
        worse = int((gaps.min(axis=1) < 0).sum())
        axes.set_title(
            f"gap of b: {worse} of {len(gaps)} depths get worse first" if worse else "gap of b: none gets worse"
        )
        axes.set(xlabel="flow time, nats", ylabel="depth j" if column == 0 else "")
    figure.colorbar(image, ax=grid[1].tolist(), label="logit gap of b since the start, nats", extend="both", pad=0.02)


def _signal(axes: Any, graph: Values) -> None:  # noqa: ANN401
    for name, color, mark in (("b", BLUE, "o"), ("d", ORANGE, "s")):
        row = np.array(graph["signal"][name])
        depths = np.arange(1, len(row) + 1)
        axes.plot(depths, row / np.abs(row).max(), color=color, marker=mark, markersize=4, label=f"{name}")
    low = min(axes.get_ylim()[0], -0.12)
    axes.axhspan(low, 0, color=RED, alpha=0.10, linewidth=0)
    axes.annotate("gets worse", (0.99, low), xycoords=("axes fraction", "data"), xytext=(0, 3), color=RED,
                  textcoords="offset points", ha="right", va="bottom", fontsize=9)  # fmt: skip
    axes.axhline(0, color=QUIET, linewidth=1)
    axes.set_ylim(low, 1.08)
    axes.set_title(f"{graph_label(graph['graph'])}: first gradient")
    axes.set(xlabel="depth j", ylabel="signal $G_j$ / largest $|G|$")
    axes.legend(loc="upper center", ncols=2)


def confused_map(figure: Any, found: Values) -> None:  # noqa: ANN401
    """For each W and K the number of depths with a negative first gradient of b."""
    sized(figure, 6.8, 4.6, f"first exact gradient of b from the uniform policy, L = {found['lanes']}")
    axes = figure.subplots()
    counts = np.array(found["negative_depths"], dtype=float)
    widths, depths = found["branches"], found["depths"]
    image = axes.imshow(np.where(counts > 0, counts, np.nan), origin="lower", aspect="auto", cmap="cividis_r",
                        extent=(depths[0] - 0.5, depths[-1] + 0.5, widths[0] - 0.5, widths[-1] + 0.5), vmin=0,
                        interpolation="nearest")  # fmt: skip
    axes.set_facecolor("#f1f1ec")
    axes.grid(visible=False)
    axes.annotate("no depth gets worse", (8, 19), color=QUIET, fontsize=10)
    for w, k, text, at in ((15, 15, "the paper's W = K = 15", (-90, 11)), (3, 15, "W = 3, K = 15", (-28, 11))):
        axes.plot(k, w, "o", color=RED, markeredgecolor="white", markersize=8)
        box = {"boxstyle": "round,pad=0.2", "facecolor": "white", "edgecolor": "none", "alpha": 0.85}
        axes.annotate(text, (k, w), xytext=at, textcoords="offset points", color=INK, fontsize=9, bbox=box)
    axes.set(xlabel="diamonds of a branch, K", ylabel="branches, W")
    figure.colorbar(image, ax=axes, label="depths that get worse first", pad=0.02)


def search_by_lanes(figure: Any, found: Values) -> None:  # noqa: ANN401
    """Mean steps of the search agent against the number of lanes."""
    sized(figure, 6.6, 4.3, f"search agent, W = {found['branches']}, K = {found['depth']}; lines exact")
    axes, lanes = figure.subplots(), found["lanes"]
    slope = found["golden"][-1] - found["golden"][-2]
    for name, color, dashes, text in (
        ("golden", RED, "-.", f"SFT + search: {slope:g} steps more for each lane"),
        ("optimal", GREEN, "-", f"RLVR + search: {digits(found['optimal'][0])} for every L"),
    ):
        axes.plot(lanes, found[name], color=color, linestyle=dashes, label=text)
        rows = found["simulated"][name]
        places, means = [row["lanes"] for row in rows], [row["steps"] for row in rows]
        bars = [1.96 * row["standard_error"] for row in rows]
        axes.errorbar(places, means, yerr=bars, fmt="o", color=color, markersize=5, capsize=3, linewidth=1.3)
        for row in rows:
            exact = found[name][lanes.index(row["lanes"])]
            above = name == "golden"
            at, align = ((-8, 7), "right") if above else ((0, -15), "center")
            axes.annotate(digits(exact), (row["lanes"], exact), xytext=at, textcoords="offset points", color=color,
                          ha=align, fontsize=9)  # fmt: skip
    axes.set(xlabel="lanes of a diamond, L", ylabel="mean steps to the target", ylim=(0, None), xlim=(0.5, 20.5))
    axes.set_xticks([1, 2, 5, 10, 15, 20])
    axes.legend(loc="upper left")


def imitation_curves(figure: Any, found: Values) -> None:  # noqa: ANN401
    """Imitation of golden paths and of whole walks against flow time."""
    sized(
        figure, 6.8, 4.5, f"imitation by gradient flow from the pretrained policy; {graph_label(found['graph'])}; exact"
    )
    axes, times, lines = figure.subplots(), np.array(found["times"][1:]), found["lines"]
    kinds = (("golden", "imitation of golden paths (SFT)", RED, "-."),
             ("distillation", "imitation of RLVR's whole walks", BLUE, "-"))  # fmt: skip
    for name, label, color, dashes in kinds:
        axes.plot(
            times,
            np.exp(np.minimum(found["log_hitting_time"][name][1:], LARGEST_LOG)),
            color=color,
            linestyle=dashes,
            label=label,
        )
    if lines["golden"] is not None:
        level_line(axes, lines["golden"], f"converged SFT: {digits(lines['golden'])}", RED, side="left")
    level_line(axes, lines["uniform"], f"pretrained: {digits(lines['uniform'])}", QUIET)
    level_line(
        axes,
        lines["optimal"],
        f"{frozen_label(found['graph'])}: {digits(lines['optimal'])}",
        GREEN,
        above=False,
        side="left",
    )
    axes.set(xscale="log", yscale="log", xlabel="flow time", ylabel="mean hitting time, steps")
    low, high = lines["optimal"], axes.get_ylim()[1]
    axes.set_ylim(bottom=low * (low / high) ** 0.08)
    axes.set_xlim(times[0], times[-1])
    axes.legend(loc="center right")
    plain_numbers(axes, "y")


def fork_curves(figure: Any, found: Values) -> None:  # noqa: ANN401
    """The hitting time with the fork's rows frozen and trained."""
    sized(figure, 6.6, 4.3, f"exact gradient of the full table, normalized, step 0.3; {graph_label(found['graph'])}")
    axes, lines = figure.subplots(), found["lines"]
    for fork, color, dashes in (("frozen", GREEN, "-"), ("trained", PURPLE, "--")):
        axes.plot(found["iterations"], found["hitting_time"][fork], color=color, linestyle=dashes, label=f"fork {fork}")
    level_line(axes, lines["optimal"], f"{frozen_label(found['graph'])}: {digits(lines['optimal'])}", GREEN)
    trained = lines["optimal, fork trained"]
    level_line(axes, trained, f"optimum, fork trained: {digits(trained)}", PURPLE, above=False)
    axes.set(yscale="log", xlabel="iteration", ylabel="mean hitting time, steps", ylim=(trained * 0.6, None))
    axes.set_xlim(0, found["iterations"][-1])
    axes.legend(loc="upper right")
    plain_numbers(axes, "y")
