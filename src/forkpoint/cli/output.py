"""What commands print: tables for people, JSON for programs; control characters in texts are escaped."""

import json
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from rich.console import Console
from rich.table import Table
from rich.text import Text

from forkpoint.config import Recipe
from forkpoint.config.recipe import ForksStage, RLStage, TextStage, data_source, rollout_budget
from forkpoint.config.review import ReviewSettings

if TYPE_CHECKING:
    from forkpoint.assembly.credit_checks import CreditPlan


def visible(text: str) -> str:
    """The text with control, surrogate and direction characters written as escapes, so a terminal only shows it."""
    return "".join(
        character if character.isprintable() or character == "\n" else _escape(character) for character in text
    )


def _escape(character: str) -> str:
    return character.encode("unicode_escape", "surrogatepass").decode("ascii")


def print_error(message: str) -> None:
    """One line on standard error, whatever the message holds."""
    print(f"error: {visible(' '.join(message.split()))}", file=sys.stderr, flush=True)


def tell(line: str) -> None:
    """One line on standard error."""
    print(visible(line), file=sys.stderr, flush=True)


def print_json(value: Any) -> None:  # noqa: ANN401
    """One JSON document on standard output; numbers that are not finite become null."""
    sys.stdout.write(json.dumps(finite(value), indent=2) + "\n")


def finite(value: Any) -> Any:  # noqa: ANN401
    """The value with null for every number that is not finite, which JSON cannot hold."""
    if isinstance(value, float):
        return value if value == value and abs(value) != float("inf") else None
    if isinstance(value, dict):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return value


def print_table(headers: Sequence[str], rows: Sequence[Sequence[str]], *, title: str = "") -> None:
    """A table; the first column and one of sentences are left, the others right."""
    console = Console(width=None if sys.stdout.isatty() else 120)
    # Two spaces between columns, or one where room is short.
    padding = (0, 1) if console.width >= 100 else (0, 1, 0, 0)
    table = Table(header_style="bold", box=None, pad_edge=False, padding=padding)
    for place, header in enumerate(headers):
        sentences = header == "about"
        # A narrow terminal breaks headings and sentences, never numbers.
        least = None if sentences else max((len(visible(row[place])) for row in rows), default=0)
        justify: Literal["left", "right"] = "left" if place == 0 or sentences else "right"
        table.add_column(header, justify=justify, overflow="fold", min_width=least)
    for row in rows:
        table.add_row(*(Text(visible(cell)) for cell in row))
    if title:
        print(visible(title))
    console.print(table)


def print_arms(arms: Sequence[Any]) -> None:
    """The arms of a run side by side."""
    from forkpoint.report import arms_table

    if not arms:
        print("no stage has been evaluated yet")
        return
    headers, *rows = arms_table(arms)
    print_table(headers, rows)


def plan(recipe: Recipe) -> list[dict[str, Any]]:
    """What each stage will do, with the most tokens that it may sample."""
    stages = []
    for stage in recipe.stage:
        row: dict[str, Any] = {"name": stage.name, "kind": stage.kind, "from": stage.from_, "updates": stage.updates}
        if isinstance(stage, RLStage):
            batches = stage.updates // stage.updates_per_batch
            row["rollouts"] = batches * stage.problems_per_update * stage.group_size
            row["max_sampled_tokens"] = row["rollouts"] * stage.max_new_tokens
        elif isinstance(stage, ForksStage):
            row["rollouts"] = stage.problems * stage.group_size
            row["max_sampled_tokens"] = row["rollouts"] * stage.max_new_tokens
        else:
            row["texts"] = stage.updates * stage.batch_size
            row |= _sampled_for_texts(recipe, stage)
        stages.append(row)
    return stages


def _sampled_for_texts(recipe: Recipe, stage: TextStage) -> dict[str, int]:
    """Rollouts and most tokens that are sampled to make the texts of a stage; empty for a corpus."""
    kind, source = data_source(stage.data)
    if source is None:
        return {}
    if kind == "lessons":
        # How many lessons are proposed, and so tried, is not known beforehand.
        return {"rollouts": stage.examples}
    review = stage.review or ReviewSettings()
    rollouts = review.problems * review.group_size if kind == "edits" else stage.examples
    longest = rollout_budget(recipe, recipe.get_stage(source)) or 0
    more = review.budget if kind == "edits" and review.edit == "fix" else 0
    return {"rollouts": rollouts, "max_sampled_tokens": rollouts * longest + more}


def print_plan(recipe: Recipe, credits: "Mapping[str, CreditPlan]", *, as_json: bool) -> None:
    """The plan of a dry run, with what is known of the credit of each RL stage."""
    from forkpoint.assembly.credit_checks import credit_json, credit_line

    stages = plan(recipe)
    if as_json:
        for row in stages:
            if row["name"] in credits:
                row["credit"] = credit_json(credits[row["name"]])
        print_json({"name": recipe.name, "ok": True, "stages": stages})
        return
    headers = ["stage", "kind", "from", "updates", "rollouts", "texts", "sampled tokens, at most"]
    keys = ["name", "kind", "from", "updates", "rollouts", "texts", "max_sampled_tokens"]
    print_table(
        headers,
        [[str(row.get(key, "")) for key in keys] for row in stages],
        title=f"{recipe.name}: nothing wrong found",
    )
    for name, found in credits.items():
        print(f"{name}: {credit_line(found)}")
