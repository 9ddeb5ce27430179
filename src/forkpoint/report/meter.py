"""The page of the meter: how much of the true credit each rule lets through, and at what cost.

Made from the document that `forkpoint meter --json` prints, so a stored one can be shown again.
"""

import base64
import hashlib
import math
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from forkpoint import __version__
from forkpoint.files import write_text_atomic
from forkpoint.report.charts import WIDTH, Frame, color_class, drawing, element
from forkpoint.report.page import count_text
from forkpoint.report.sides import side_views
from forkpoint.report.text import visible

PAGE = "meter.html"
"""Name of the page in its folder."""
NONE = "none"
CREDIT_HEADERS = ("rule", "straw", "Pearson", "Spearman", "AUROC")
GRADIENT_HEADERS = ("rule", "bias", "cosine", "noise/signal", "over oracle's")
LEARNING_HEADERS = (
    "rule",
    "rate",
    "solved",
    "tokens to target",
    "equivalents",
    "seconds",
    "uniform / rule",
    "head-room taken",
)
COST_HEADERS = ("rule", "tokens", "scored tokens", "verifier calls", "forwards")


def write_meter(document: Mapping[str, Any], folder: Path) -> Path:
    """The path of `meter.html` in the folder, now up to date.  Raises StoreError where it cannot be written."""
    write_text_atomic(folder / PAGE, render_meter(document))
    return folder / PAGE


def render_meter(document: Mapping[str, Any]) -> str:
    """The page of a reading."""
    folder = resources.files("forkpoint.report").joinpath("templates")
    css = "".join(folder.joinpath(name).read_text(encoding="utf-8") for name in ("style.css", "sides.css"))
    return _environment().get_template("meter.html").render(
        document=document, straws=straw_chart(document["rules"]), tables=meter_tables(document),
        sides=side_views(document.get("examples", ())),
        facts=_facts(document), gradient=_gradient_text(document), css=Markup(css), version=__version__,
        css_hash=base64.b64encode(hashlib.sha256(css.encode()).digest()).decode(),
    )  # fmt: skip


def meter_tables(document: Mapping[str, Any]) -> list[tuple[str, list[list[str]]]]:
    """The tables of a document with their titles, headers first; those without rows are left out."""
    tables = [
        ("Credit against the truth", credit_rows(document)),
        ("The gradient", gradient_rows(document)),
        ("What it costs", cost_rows(document)),
        ("Learning", learning_rows(document)),
    ]
    return [(title, rows) for title, rows in tables if rows]


@cache
def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("forkpoint.report", "templates"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
        finalize=lambda value: visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value,
    )  # fmt: skip


def meter_summary(document: Mapping[str, Any]) -> str:
    """What was measured and how the truth is known, one line."""
    variant = f" {document['variant']}" if document.get("variant") else ""
    truth = document["tier_text"]
    if document["continuations"]:
        truth += f", {document['continuations']} continuations"
    return (
        f"{document['task']}{variant}: {document['rollouts']} rollouts, {100 * document['solved']:.1f} % solved; "
        f"truth of {document['places']} tokens: {truth}; reliability {_text(document['reliability'], 2)}"
    )


def credit_rows(document: Mapping[str, Any]) -> list[list[str]]:
    """The table of agreement with the truth: headings, then a row for each rule; 95 % intervals in brackets."""
    names = ("straw", "pearson", "spearman", "auroc")
    return [
        list(CREDIT_HEADERS),
        *([rule["rule"], *(_measured(rule[name]) for name in names)] for rule in document["rules"]),
    ]


def gradient_rows(document: Mapping[str, Any]) -> list[list[str]]:
    """The table of gradients; empty where they were left out."""
    if not document["gradient"]["batches"]:
        return []
    rows = []
    for rule in document["rules"]:
        found = rule["gradient"]
        rows.append([
            rule["rule"], _measured(found["bias"]), _measured(found["cosine"]), _measured(found["noise"], 1),
            _measured(found["over_oracle"], 1),
        ])  # fmt: skip
    return [list(GRADIENT_HEADERS), *rows]


def cost_rows(document: Mapping[str, Any]) -> list[list[str]]:
    """The table of costs: tokens as a multiple of the rollouts' own; the others for each rollout, beside it."""
    rows = [
        [
            rule["rule"], f"{rule['cost']['relative']:.1f} times", f"{rule['cost']['scored_tokens']:.1f}",
            f"{rule['cost']['verifier_calls']:.1f}", f"{rule['cost']['forwards']:.2f}",
        ]
        for rule in document["rules"]
    ]  # fmt: skip
    return [list(COST_HEADERS), *rows]


def _measured(found: Mapping[str, Any] | None, digits: int = 2) -> str:
    if found is None or found["value"] is None:
        return NONE
    low, high = found["interval"]
    return f"{_text(found['value'], digits)} [{_text(low, digits)}, {_text(high, digits)}]"


def _text(value: float | None, digits: int) -> str:
    return NONE if value is None else f"{value:.{digits}f}"


def straw_chart(rules: Sequence[Mapping[str, Any]]) -> Markup:
    """A straw for each rule, filled as far as the rule lets the true credit through; the cheapest rules first.

    At the right what it costs: tokens that are generated, as a multiple of those of the rollouts alone.
    """
    ordered = sorted(enumerate(rules), key=lambda pair: (pair[1]["cost"]["relative"], pair[0]))
    longest = max((len(_clip(rule["rule"])) for rule in rules), default=0)
    bottom = 26.0 + 26.0 * len(rules)
    frame = Frame(left=12 + 6.4 * longest, right=WIDTH - 132, top=20, bottom=bottom, x=(0.0, 1.0), y=(0.0, 1.0))
    parts = [
        element("text", "let through", x=WIDTH - 128, y=12, class_="title"),
        element("text", "tokens", x=WIDTH - 2, y=12, text_anchor="end", class_="title"),
    ]
    for tick in (0.0, 0.5, 1.0):
        x = frame.at_x(tick)
        parts.append(element("line", x1=x, y1=frame.top, x2=x, y2=bottom, class_="grid"))
        parts.append(element("text", f"{100 * tick:.0f} %", x=x, y=bottom + 15, text_anchor="middle", class_="tick"))
    for row, (slot, rule) in enumerate(ordered):
        parts += _straw(frame, rule, slot, 36.0 + 26.0 * row)
    parts.append(
        element("text", "share of the true advantage's variance", x=frame.right, y=bottom + 30,
                text_anchor="end", class_="title")
    )  # fmt: skip
    return drawing(bottom + 36, "how much of the true credit each rule lets through, against its cost", *parts)


def _straw(frame: Frame, rule: Mapping[str, Any], slot: int, y: float) -> list[Markup]:
    found, cost = rule["straw"], rule["cost"]["relative"]
    color = color_class(slot)
    shown = NONE if found["value"] is None else f"{100 * found['value']:.0f} %"
    left, width = frame.left, frame.right - frame.left
    parts = [
        element("text", _clip(rule["rule"]), x=left - 8, y=y + 4, text_anchor="end", class_="label"),
        element("rect", x=left, y=y - 7, width=width, height=14, rx=7, fill="none", class_="axis"),
    ]
    if found["value"] is not None:
        low, high = (frame.at_x(end if end is not None else found["value"]) for end in found["interval"])
        filled = frame.at_x(found["value"]) - left
        told = element("title", f"{rule['rule']}: {shown} let through, {cost:.1f} times the tokens")
        parts += [
            element("rect", told, x=left, y=y - 7, width=max(1.0, filled), height=14, rx=min(7.0, filled / 2),
                    class_=f"dot {color}"),
            element("line", x1=low, y1=y, x2=high, y2=y, class_="axis"),
        ]  # fmt: skip
    parts.append(element("text", shown, x=WIDTH - 128, y=y + 4, class_="value"))
    parts.append(element("text", f"{_cost_text(cost)} times", x=WIDTH - 2, y=y + 4, text_anchor="end", class_="value"))
    return parts


def _cost_text(cost: float) -> str:
    return f"{cost:.0f}" if cost >= 100 else f"{cost:.1f}"


def _clip(label: str, limit: int = 18) -> str:
    return label if len(label) <= limit else label[: limit - 1] + "…"


def _gradient_text(document: Mapping[str, Any]) -> str:
    """What the gradients were measured on; empty where they were left out."""
    gradient = document["gradient"]
    if not gradient["batches"]:
        return ""
    oracle = gradient["oracle_noise"]
    tail = "" if oracle is None or oracle["value"] is None else f"; of the truth itself {_measured(oracle, 1)}"
    return f"{gradient['batches']} batches of {gradient['rollouts']} rollouts{tail}"


def _facts(document: Mapping[str, Any]) -> list[tuple[str, str]]:
    reliability = document["reliability"]
    drawn = document["truth_cost"]["sampled_tokens"]
    return [
        ("Policy", str(document["policy"])),
        ("Rollouts", f"{count_text(document['rollouts'])}, {100 * document['solved']:.1f} % solved"),
        ("How the truth is known", document["tier_text"]),
        ("Tokens with a known truth", count_text(document["places"])),
        ("Reliability of the truth", _text(reliability, 3) if _finite(reliability) else "none: too few continuations"),
        ("Tokens generated for the truth", count_text(int(drawn))),
        ("A step mattered where", "the task says so" if document["labels"] == "keys"
         else f"the true advantage exceeds {document['threshold']}"),
    ]  # fmt: skip


def _finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def learning_rows(document: Mapping[str, Any]) -> list[list[str]]:
    """The learning half, one row for each arm and rate; nothing where no arm was trained."""
    found = document.get("learning", {}).get("rows", ())
    return [list(LEARNING_HEADERS), *map(_learning_row, found)] if found else []


def _learning_row(row: Mapping[str, Any]) -> list[str]:
    more = "" if row["solved"] == row["seeds"] else "> "
    costs = [
        f"{more}{count_text(round(row['costs'][name]))}" for name in ("generated_tokens", "equivalents", "seconds")
    ]
    interval = "" if row["interval"] is None else f" [{row['interval'][0]:.2f}, {row['interval'][1]:.2f}]"
    ratio = NONE if row["ratio"] is None else f"{row['ratio']:.2f}{interval}"
    share = NONE if row["headroom"] is None else f"{row['headroom']:.0%}"
    solved = f"{row['solved']} of {row['seeds']}"
    return [row["arm"], f"{row['learning_rate']:g}", solved, *costs, ratio, share]
