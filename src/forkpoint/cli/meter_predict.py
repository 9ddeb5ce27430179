"""What `forkpoint meter --predict` says before training: does dense credit pay, is it safe, which rule."""

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from forkpoint.cli.evaluate import find_model
from forkpoint.cli.options import Flag, Positive
from forkpoint.cli.output import finite, print_json, print_table
from forkpoint.errors import ForkpointError, unknown_name

if TYPE_CHECKING:
    from forkpoint.config import Recipe
    from forkpoint.config.recipe import RLStage
    from forkpoint.meter.subject import Subject
    from forkpoint.policies.protocol import Policy

PROBLEMS = 8
"""Groups that are sampled at once, and problems of an update where no recipe says it."""


@Parameter(name="*")
@dataclass(frozen=True, slots=True, kw_only=True)
class Predicting:
    """Whether a prediction is asked for instead of a reading."""

    predict: Annotated[
        Flag, Parameter(help="Say, without training, whether dense credit pays here, is safe, and which rule.")
    ] = False
    groups: Annotated[Positive, Parameter(help="Of rollouts, for the prediction.")] = 48


NOT_PREDICTED = Predicting()


def predicted(
    subject: "Subject",
    asked: Predicting,
    *,
    head: Mapping[str, Any],
    problems_per_update: int = PROBLEMS,
    said: Callable[[str, int, int], None],
) -> dict[str, Any]:
    """The prediction for a subject as a document: numbers, and the verdict in `lines`."""
    from forkpoint.meter.predict import predict, verdict_lines

    found = predict(subject, groups=asked.groups, problems_per_update=problems_per_update, progress=said)
    return {**head, **asdict(found), "lines": verdict_lines(found)}


def predicted_recipe(
    target: str,
    asked: Predicting,
    *,
    settings: Sequence[str],
    run: str | None,
    seed: int,
    said: Callable[[str, int, int], None],
) -> dict[str, Any]:
    """The prediction for an RL stage of RECIPE[:STAGE], the first one where none is named.

    The policy is that of `run`, else that of the stage's parent in the recipe's own run folder, else as built.
    """
    if not asked.predict:
        raise ForkpointError(f"{target}: a recipe is read with --predict alone; else name a --task.")
    import torch

    from forkpoint.assembly import Assembly
    from forkpoint.assembly.checks import check_recipe

    recipe, path, stage = _stage(target, settings)
    folder = Path("runs") / recipe.name
    torch.set_num_threads(recipe.threads)
    check_recipe(recipe, path.resolve().parent, folder)
    assembly = Assembly(recipe=recipe, origin=path.resolve().parent, run=folder, unrun=True)
    policy, origin = _policy(recipe, path, stage, run)
    subject = _subject(policy, assembly.task(stage), stage, group_size=stage.group_size, seed=seed)
    head = {"recipe": str(path), "stage": stage.name, "policy": origin, "seed": seed}
    return predicted(subject, asked, head=head, problems_per_update=stage.problems_per_update, said=said)


def _stage(target: str, settings: Sequence[str]) -> "tuple[Recipe, Path, RLStage]":
    """The recipe, where it lies, and its RL stage."""
    from forkpoint.config import load_recipe
    from forkpoint.config.recipe import RLStage

    name: str | None = None
    path = Path(target)
    if not path.is_file() and ":" in target:
        before, _, name = target.rpartition(":")
        path = Path(before)
    recipe = load_recipe(path, settings)
    stages = {each.name: each for each in recipe.stage if isinstance(each, RLStage)}
    if not stages:
        raise ForkpointError(f"--predict {target}: the recipe has no stage of kind rl.")
    if name is not None and name not in stages:
        raise ForkpointError(unknown_name(f"--predict {path}: RL stage", name, stages))
    return recipe, path, stages[name or next(iter(stages))]


def _policy(recipe: "Recipe", path: Path, stage: "RLStage", run: str | None) -> "tuple[Policy, str]":
    """The policy that the stage would start from, and where it comes from."""
    from forkpoint.assembly import build_policy
    from forkpoint.config.recipe import parent
    from forkpoint.policies.folder import load_folder
    from forkpoint.policies.tabular import DESCRIPTION, load_tabular
    from forkpoint.store import latest_checkpoint, stage_folder

    before = parent(stage)
    folder, origin = (None, "") if run is None else (find_model(run), run)
    if run is None and before is not None:
        kept = Path("runs") / recipe.name
        folder, origin = latest_checkpoint(stage_folder(kept, before)), f"{kept}:{before}"
    if folder is None:
        line = "the policy as built, which no stage has trained: say --run RUN:STAGE for the one that RL starts from"
        print(line, file=sys.stderr, flush=True)
        return build_policy(recipe, path.resolve().parent), "as built"
    return (load_tabular(folder) if (folder / DESCRIPTION).is_file() else load_folder(folder)), origin


def _subject(policy: "Policy", task: Any, stage: "RLStage", *, group_size: int, seed: int) -> "Subject":  # noqa: ANN401
    from forkpoint.meter.subject import Subject
    from forkpoint.seeds import Key

    return Subject(
        policy=policy, task=task, key=Key.root(seed).child("meter"), max_new_tokens=stage.max_new_tokens,
        problems=min(PROBLEMS, stage.problems_per_update), group_size=group_size, temperature=stage.temperature,
    )  # fmt: skip


def print_prediction(found: Mapping[str, Any], *, as_json: bool, out: Path | None) -> int:
    """Prints a short table and the verdict, or the document; returns the exit code 0.  `out` gets meter.json."""
    document = finite(found)
    if out is not None:
        write_document(document, out)
    if as_json:
        print_json(document)
        return 0
    title = f"{document['groups']} groups, {document['rollouts']} rollouts, {document['solved']:.1%} solved; "
    title += f"tokens that decide by {document['influence']}, known in {document['known']} groups"
    print_table(["", "number", "95 %"], _rows(document), title=title)
    for line in document["lines"]:
        print(line)
    return 0


def write_document(document: Mapping[str, Any], folder: Path) -> None:
    """Writes `meter.json` into a folder, which is made where it is not there."""
    from forkpoint.files import make_folder, write_text_atomic

    make_folder(folder)
    write_text_atomic(folder / "meter.json", json.dumps(document, indent=2) + "\n")


def _rows(document: Mapping[str, Any]) -> list[list[str]]:
    depends = document["dependence"] or {"nats": None, "error": None}
    nats, error = depends["nats"], depends["error"]
    around = "" if nats is None or error is None else _interval([nats - 1.96 * error, nats + 1.96 * error])
    return [
        ["tokens that decide", _number(document["deciding"]), ""],
        ["noise from the others", _number(document["filler_noise"]), ""],
        ["noise / signal, uniform", _number(document["noise"]["uniform"]), ""],
        ["noise / signal, dense", _number(document["noise"]["dense"]), ""],
        ["overlap", _number(document["overlap"]["value"]), _interval(document["overlap"]["interval"])],
        ["dependence, nats", _number(nats), around],
        ["head-room", _number(document["headroom"]["value"]), _interval(document["headroom"]["interval"])],
    ]


def _interval(ends: Sequence[float | None]) -> str:
    """The two ends, or nothing where they are not known.

    >>> _interval([0.5, 12.0]), _interval([None, None])
    ('[0.5, 12]', '')
    """
    return "" if None in ends else f"[{_number(ends[0])}, {_number(ends[1])}]"


def _number(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.3g}"
