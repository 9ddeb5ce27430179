"""The figures of the lab as SVG and PNG, drawn with matplotlib (the extra `figures`)."""

import html
import importlib.util
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from forkpoint.errors import ForkpointError, TaskError, unknown_name
from forkpoint.files import make_folder, write_bytes_atomic, write_text_atomic
from forkpoint.report import lab_drawings as draw
from forkpoint.report import lab_values as values
from forkpoint.report.lab_style import STYLE
from forkpoint.theory.graphs import PathStar

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class FigureSpec:
    """One figure: what it shows, where its numbers come from, how it is drawn."""

    name: str
    title: str
    caption: str
    compute: Callable[..., values.Values | None]
    draw: Callable[[Any, values.Values], None]
    """Draws the numbers into an empty matplotlib figure."""
    of_graph: bool = False
    """Whether it can be drawn for a graph of one's own."""
    remake: str = ""
    """For a curve of a long training: the command that makes its numbers."""


FIGURES = (
    FigureSpec(
        name="figure-3",
        title="RLVR finds the way back",
        caption="Exact sign gradient flow. The paper plots 600 iterations; there it is still 20 % above its limit.",
        compute=lambda graph=values.HEADLINE: values.sign_curve(graph),
        draw=draw.sign_curve,
        of_graph=True,
    ),
    FigureSpec(
        name="figure-4",
        title="The four probabilities by depth",
        caption="The chance of the right kind of move in the four kinds of state, over training and depth; contours at"
        " 0.5, 0.9 and 0.99.",
        compute=lambda graph=values.HEADLINE: values.sign_curve(graph),
        draw=draw.probabilities,
        of_graph=True,
    ),
    FigureSpec(
        name="figure-5-left",
        title="Imitation of perfect paths is exponential in depth",
        caption="Converged SFT on golden paths, exact. From one diamond to the next the time grows toward (L+1)²/L.",
        compute=values.imitation_by_depth,
        draw=draw.imitation_by_depth,
    ),
    FigureSpec(
        name="figure-5-right",
        title="What a few supervised corrections are worth",
        caption="Converged SFT where a random share p of the backward states is supervised too; exact for each draw.",
        compute=values.supervised_sweep,
        draw=draw.supervised_sweep,
    ),
    FigureSpec(
        name="figure-6",
        title="PPO and three other policy gradients, from sampled rollouts",
        caption="The library's own trainer on the table, fork frozen; the exact hitting time of each checkpoint.",
        compute=partial(values.stored_curve, "figure-6"),
        draw=draw.stored_curve,
        remake="forkpoint lab train recipes/lab-rl.toml --curve src/forkpoint/data/lab/figure-6.json",
    ),
    FigureSpec(
        name="figure-7",
        title="A one-layer transformer that begins as the table",
        caption="The library's own trainer; measured by sampling, for the policy sees more than the last edge.",
        compute=partial(values.stored_curve, "figure-7"),
        draw=draw.stored_curve,
        remake="forkpoint lab train recipes/lab-transformer.toml --curve src/forkpoint/data/lab/figure-7.json",
    ),
    FigureSpec(
        name="figure-8",
        title="Branches of different depth and lanes",
        caption="Exact sign gradient flow. All four probabilities at 1 give 85.6, and the paper's line 4Σk is 84; the"
        " flow ends at 85.07, for turning back at once from a deep branch draws the branch anew.",
        compute=values.unequal_curve,
        draw=draw.unequal_curve,
    ),
    FigureSpec(
        name="hit-within",
        title="The chance to arrive in time",
        caption="SFT finds the target at once or, for all practical purposes, never: its curve stays at 1/W.",
        compute=lambda graph=values.SMALL: values.hit_curves(graph),
        draw=draw.hit_curves,
        of_graph=True,
    ),
    FigureSpec(
        name="confused-middle",
        title="The confused middle: where it exists, and where it does not",
        caption="Backward states of middle depth get worse first at W = 3, K = 15; at W = K = 15 none does, contrary to"
        " the paper's sentence.",
        compute=lambda graph=None: {
            "graphs": [values.confused_depths(each) for each in ([graph] if graph else draw.CONFUSED)]
        },
        draw=draw.confused_middle,
        of_graph=True,
    ),
    FigureSpec(
        name="confused-where",
        title="Which graphs have a confused middle",
        caption="Depths at which the first gradient of b is negative, L = 5. It needs K well above W.",
        compute=values.confused_map,
        draw=draw.confused_map,
    ),
    FigureSpec(
        name="search",
        title="With search, imitation pays for every lane",
        caption="The agent that never enters a directed edge twice, exact; dots are 1000 simulated searches, 95 %.",
        compute=values.search_by_lanes,
        draw=draw.search_by_lanes,
    ),
    FigureSpec(
        name="distillation",
        title="Imitation of whole searches restores what imitation of paths ruins",
        caption="Gradient flow of imitation from the pretrained policy, exact: the data decide, not the method.",
        compute=lambda graph=values.SMALL: values.imitation_curves(graph),
        draw=draw.imitation_curves,
        of_graph=True,
    ),
    FigureSpec(
        name="fork",
        title="A trained fork learns an order of branches",
        caption="Exact gradient of the full table. The last edge tells which branch was tried, so a blind walk can"
        " learn to try them in turn.",
        compute=lambda graph=values.SMALL: values.fork_curves(graph),
        draw=draw.fork_curves,
        of_graph=True,
    ),
)


def require_figures() -> None:
    """Nothing; raises ForkpointError where the extra `figures` is not installed."""
    if importlib.util.find_spec("matplotlib") is None:
        raise ForkpointError("drawing needs the extra `figures`: pip install 'forkpoint[figures]'.")


def draw_figures(
    folder: Path,
    *,
    graph: PathStar | None = None,
    only: Sequence[str] = (),
    draws: int = 100,
    progress: Progress | None = None,
) -> tuple[list[Path], dict[str, str]]:
    """The files written, and the figures skipped with the reason.

    With a `graph`, the figures that are not about a family of graphs are drawn for it.  `draws` is the number of
    random choices behind each point of figure 5, right.  Raises ForkpointError for a figure that does not exist, or
    where the extra `figures` is not installed; StoreError where the folder cannot be written.
    """
    require_figures()
    say = progress or (lambda _: None)
    chosen = _chosen(only, graph)
    make_folder(folder)
    written: list[Path] = []
    skipped: dict[str, str] = {}
    drawn: dict[str, values.Values] = {}
    for place, spec in enumerate(chosen, 1):
        try:
            found = _numbers(spec, graph, draws)
            reason = f"its training is not checked in; make it with: {spec.remake}"
        except TaskError as error:
            # One figure that cannot be had for this graph does not cost the others.
            found, reason = None, str(error)
        if found is None:
            skipped[spec.name] = reason
            say(f"{place}/{len(chosen)} {spec.name}: SKIPPED, {skipped[spec.name]}")
            continue
        drawn[spec.name] = {"title": spec.title, "caption": spec.caption, **found}
        written += [folder / f"{spec.name}.{kind}" for kind in ("svg", "png")]
        for path, data in zip(written[-2:], _rendered(spec, found), strict=True):
            write_bytes_atomic(path, data)
        say(f"{place}/{len(chosen)} {spec.name}: {spec.title}")
    write_text_atomic(folder / "values.json", json.dumps(drawn, allow_nan=False) + "\n")
    write_text_atomic(folder / "index.html", gallery(chosen, skipped))
    return [*written, folder / "values.json", folder / "index.html"], skipped


def _chosen(only: Sequence[str], graph: PathStar | None) -> list[FigureSpec]:
    names = [spec.name for spec in FIGURES]
    for name in only:
        if name not in names:
            raise ForkpointError(unknown_name("--only", name, names))
    found = [spec for spec in FIGURES if (not only or spec.name in only) and (graph is None or spec.of_graph)]
    if not found:
        able = ", ".join(spec.name for spec in FIGURES if spec.of_graph)
        raise ForkpointError(f"--only {', '.join(only)}: for a graph of your own there are: {able}.")
    return found


def _numbers(spec: FigureSpec, graph: PathStar | None, draws: int) -> values.Values | None:
    if graph is not None:
        return spec.compute(graph)
    return spec.compute(draws=draws) if spec.compute is values.supervised_sweep else spec.compute()


def _rendered(spec: FigureSpec, found: values.Values) -> tuple[bytes, bytes]:
    """The figure as SVG and as PNG; the same bytes for the same numbers."""
    import matplotlib as mpl  # noqa: PLC0415  (an optional extra)
    from matplotlib.figure import Figure  # noqa: PLC0415  (an optional extra)

    svg, png = io.BytesIO(), io.BytesIO()
    with mpl.rc_context(STYLE):
        figure: Any = Figure(layout="constrained")
        spec.draw(figure, found)
        figure.savefig(svg, format="svg", metadata={"Date": None})
        figure.savefig(png, format="png", dpi=160, metadata={"Software": None})
    return svg.getvalue(), png.getvalue()


def gallery(specs: Sequence[FigureSpec], skipped: Mapping[str, str]) -> str:
    """A page with all figures and what they show."""
    parts = []
    for spec in specs:
        title, caption = html.escape(spec.title), html.escape(spec.caption)
        if spec.name in skipped:
            body = f"<p class=skipped>Not drawn: {html.escape(skipped[spec.name])}</p>"
        else:
            body = f'<a href="{spec.name}.png"><img src="{spec.name}.svg" alt="{title}" loading=lazy></a>'
        parts.append(f"<figure id={spec.name}><h2>{title}</h2>{body}<figcaption>{caption}</figcaption></figure>")
    return _PAGE.replace("BODY", "\n".join(parts))


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>The lab: the theory of backtracking</title>
<style>
body { margin: 0 auto; padding: 2rem 1rem; max-width: 100rem; font: 1rem/1.5 system-ui, sans-serif; color: #1c2127;
       background: #fbfbf9; }
main { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 34rem), 1fr)); gap: 1.5rem; }
figure { margin: 0; padding: 1rem; border: 1px solid #e2e2dc; border-radius: .6rem; background: #fff; }
h2 { margin: 0 0 .6rem; font-size: 1.05rem; } img { width: 100%; height: auto; } figcaption { color: #555d66; }
.skipped { padding: 1rem; border: 1px dashed #b5331e; color: #b5331e; }
</style></head>
<body><h1>The theory of backtracking</h1>
<p>Wei and Kim, arXiv 2606.22938. Every number drawn is in <a href="values.json">values.json</a>.</p>
<main>
BODY
</main></body></html>
"""
