"""One rollout under every credit rule, side by side: rows are rules and the truth, columns are tokens.

Made from the `examples` of a meter's document, so a stored one can be shown again.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from forkpoint.report.rollouts import MAX_PROMPT, MAX_TOKENS, shade
from forkpoint.report.text import prompt_text, shorten, visible

BLOCK_TOKENS = 32
"""Tokens next to each other; longer rollouts go on below."""
BLOCK_CHARACTERS = 80
"""Most characters next to each other, one token at least."""
MAX_CHARACTERS = 12
"""Characters shown of one token."""
TRUTH = "truth"
CERTAIN = 2.0
"""Standard errors from 0 at which a drawn truth is told from 0."""
UNKNOWN, UNSURE = "u", "z"
"""Classes of the style sheet: a truth that is not known, and one that is not told from 0."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One token under one rule."""

    mark: str
    """The sign: plus, minus, `·` (zero), `≈` (not told from 0); empty where nothing is known."""
    shade: str
    title: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One rule over a stretch of tokens."""

    name: str
    scale: str
    """The largest |advantage| in the whole rollout: the darkest shade of this row."""
    is_truth: bool
    cells: tuple[Cell, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """One token above its column."""

    text: str
    title: str
    key: bool
    """Whether the task says that it decides."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """A stretch of tokens under every rule."""

    first: int
    """Position of its first token, from 0."""
    last: int
    heads: tuple[Head, ...]
    rows: tuple[Row, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SideView:
    """One rollout as the page shows it."""

    mark: str
    correct: bool
    solved: int
    size: int
    prompt: str
    answer: str
    id: str
    keys: bool
    """Whether the task knows which tokens decide."""
    blocks: tuple[Block, ...]
    hidden: int
    """Tokens that are not shown."""


def side_views(examples: Sequence[Mapping[str, Any]]) -> list[SideView]:
    """A view of each example of a meter's document."""
    return [_view(example) for example in examples]


def _view(example: Mapping[str, Any]) -> SideView:
    shown = min(len(example["tokens"]), MAX_TOKENS)
    heads, lines = _heads(example, shown), _rows(example, shown)
    blocks = [
        Block(
            first=start, last=end - 1, heads=tuple(heads[start:end]),
            rows=tuple(
                Row(name=row.name, scale=row.scale, is_truth=row.is_truth, cells=row.cells[start:end]) for row in lines
            ),
        )
        for start, end in block_edges([head.text for head in heads])
    ]  # fmt: skip
    return SideView(
        mark=f"{'✓' if example['correct'] else '✗'} {example['outcome']}", correct=bool(example["correct"]),
        solved=example["group"]["solved"], size=example["group"]["size"],
        prompt=shorten(visible(prompt_text(example["prompt"])), MAX_PROMPT),
        answer=shorten(visible(example["answer"]), MAX_PROMPT), id=visible(example["rollout"]),
        keys=example["keys"] is not None, blocks=tuple(blocks), hidden=len(example["tokens"]) - shown,
    )  # fmt: skip


def block_edges(texts: Sequence[str]) -> Iterator[tuple[int, int]]:
    """Start and end of each block, at most `BLOCK_TOKENS` tokens and `BLOCK_CHARACTERS` characters.

    >>> list(block_edges(["a"] * 40)), list(block_edges(["x" * 50, "y" * 50, "z"]))
    ([(0, 32), (32, 40)], [(0, 1), (1, 3)])
    """
    start, width = 0, 0
    for place, text in enumerate(texts):
        if place > start and (place - start >= BLOCK_TOKENS or width + len(text) > BLOCK_CHARACTERS):
            yield start, place
            start, width = place, 0
        width += len(text)
    if texts:
        yield start, len(texts)


def token_label(text: str) -> str:
    r"""A token as it stands above its column: one line, not empty, cut after `MAX_CHARACTERS`.

    >>> token_label("\n"), token_label(" the"), token_label(""), token_label("counterfactually"), token_label("\u202e")
    ('↵', '␣the', '∅', 'counterfact…', '\\u202e')
    """
    line = visible(text).replace("\n", "↵").replace("\t", "⇥").replace(" ", "␣") or "∅"
    return line if len(line) <= MAX_CHARACTERS else line[: MAX_CHARACTERS - 1] + "…"


def _heads(example: Mapping[str, Any], shown: int) -> list[Head]:
    keys = frozenset(example["keys"] or ())
    return [
        Head(text=token_label(text), title=_where(example, t) + (", decides" if t in keys else ""), key=t in keys)
        for t, text in enumerate(example["tokens"][:shown])
    ]


def _where(example: Mapping[str, Any], t: int) -> str:
    return f"token {t}: {token_label(example['tokens'][t])}"


def _rows(example: Mapping[str, Any], shown: int) -> list[Row]:
    """A row for each rule over all shown tokens, the truth last."""
    rows = [_rule_row(example, rule["rule"], rule["advantages"], shown) for rule in example["rules"]]
    return [*rows, _truth_row(example, shown)]


def _rule_row(example: Mapping[str, Any], name: str, advantages: Sequence[float | None], shown: int) -> Row:
    scale = _largest(advantages)
    cells = []
    for t, value in enumerate(advantages[:shown]):
        if not example["trained"][t]:
            cells.append(Cell(mark="", shade="o", title=f"{_where(example, t)}: not trained on"))
        else:
            told = f"{_where(example, t)}: {_number(value)} by {visible(name)}"
            cells.append(Cell(mark=_sign(value), shade=shade(value, scale), title=told))
    return Row(name=name, scale=_scale(scale), is_truth=False, cells=tuple(cells))


def _truth_row(example: Mapping[str, Any], shown: int) -> Row:
    scale, cells = _largest(example["truth"]), []
    for t, (value, error) in enumerate(zip(example["truth"][:shown], example["errors"][:shown], strict=True)):
        if value is None:
            cells.append(Cell(mark="", shade=UNKNOWN, title=f"{_where(example, t)}: the truth is not known"))
            continue
        told = f"{_where(example, t)}: {_number(value)} in truth"
        if error:
            told += f", standard error {error:.4f}"
        if error and abs(value) < CERTAIN * error:
            cells.append(Cell(mark="≈", shade=UNSURE, title=f"{told}: not told from 0"))
        else:
            cells.append(Cell(mark=_sign(value), shade=shade(value, scale), title=told))
    return Row(name=TRUTH, scale=_scale(scale), is_truth=True, cells=tuple(cells))


def _largest(values: Sequence[float | None]) -> float:
    return max((abs(value) for value in values if value is not None), default=0.0)


def _scale(largest: float) -> str:
    return f"±{largest:.3g}" if largest else "all 0"


def _sign(value: float | None) -> str:
    if value is None:
        return "?"
    return "+" if value > 0 else "\N{MINUS SIGN}" if value < 0 else "·"


def _number(value: float | None) -> str:
    return "no finite advantage" if value is None else f"{value:+.4f}".replace("-", "\N{MINUS SIGN}")
