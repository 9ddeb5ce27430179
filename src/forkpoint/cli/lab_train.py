"""`forkpoint lab train`: a recipe of the lab through the ordinary run, then its page with exact values."""

import json
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from cyclopts.validators import Number

from forkpoint.cli.lab_graph import Fork, GraphOptions, one_or_all
from forkpoint.cli.options import Flag, Json, Positive, Settings
from forkpoint.cli.output import tell
from forkpoint.cli.worker import EXIT_STOPPED, EXIT_TERMINATED
from forkpoint.config import Recipe, load_recipe
from forkpoint.errors import RecipeError, StoreError


@Parameter(name="*")
@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """What `forkpoint run` takes too.

    Parameters
    ----------
    runs
        The folder that holds run folders.
    set_
        key=value: change the recipe further, such as `--set stage.rlvr.updates=100`; may be repeated.
    name
        Name of the run folder; the recipe's own without it.
    dry_run
        Check everything and start nothing.
    resume
        Continue a run that was stopped or killed.
    resume_if_exists
        Start the run, continue it, or show it when it is finished.
    """

    runs: Path = Path("runs")
    set_: Settings = ()
    name: str | None = None
    dry_run: Flag = False
    resume: Flag = False
    resume_if_exists: Flag = False


GRAPH, RUN = GraphOptions(), RunOptions()
KEEP = 100_000
"""Checkpoints kept of each stage: the page solves every one."""


def train(
    recipe: Path | None = None,
    /,
    *,
    graph: GraphOptions = GRAPH,
    policy: str | None = None,
    fork: Fork | None = None,
    horizon: Annotated[int | None, Parameter(validator=Number(gte=2))] = None,
    checkpoint_every: Positive = 20,
    curve: Path | None = None,
    options: RunOptions = RUN,
    json_: Json = False,
) -> int:
    """Train policies of the lab from sampled rollouts, by the same trainer as any language model.

    Ends with the report of the run and `lab.html` beside it: exact hitting times and probabilities of its checkpoints.

    Parameters
    ----------
    recipe
        A recipe whose policy is tabular; without it a small one with RLVR and SFT on 3 branches of depth 3.
    policy
        What the table begins as: `uniform`, `golden`, `optimal` or a policy file of the lab.
    fork
        Whether the rows that choose a branch stay uniform, as in the paper, or are trained too.
    horizon
        Most steps of a walk, the first edge included.
    checkpoint_every
        Updates between the checkpoints whose exact values are shown.
    curve
        Write the curves here, as `forkpoint lab figures` reads them.
    json_
        Print the result as JSON.
    """
    from forkpoint.cli.run import run

    path = recipe or package_recipe()
    asked = [*_changes(graph, fork), *options.set_]
    changes = [*_start(policy), *asked]
    parsed = load_recipe(path, changes)
    if parsed.policy.kind != "tabular":
        raise RecipeError(f"{path}: [policy] kind = '{parsed.policy.kind}', the lab trains tabular policies.")
    changes = [*_stage_changes(parsed, horizon, checkpoint_every), *changes]
    code = run(path, runs=options.runs, set_=tuple(changes), name=options.name, dry_run=options.dry_run,
               resume=options.resume, resume_if_exists=options.resume_if_exists, json_=json_)  # fmt: skip
    if options.dry_run:
        return code
    said = shlex.join([
        "forkpoint", "lab", "train", *([str(recipe)] if recipe else []), *(["--policy", policy] if policy else []),
        *(["--horizon", str(horizon)] if horizon else []), "--checkpoint-every", str(checkpoint_every),
        *(f"--set={change}" for change in asked),
    ])  # fmt: skip
    if code:
        if code in (EXIT_STOPPED, EXIT_TERMINATED):
            placed = [] if options.runs == RUN.runs else ["--runs", str(options.runs)]
            named = [] if options.name is None else ["--name", options.name]
            tell(f"to have lab.html at the end: {said} {shlex.join([*placed, *named, '--resume'])}")
        return code
    _show(options.runs / (options.name or parsed.name), curve, said, quiet=json_)
    return 0


def package_recipe() -> Path:
    """The small recipe that is shipped with the package."""
    from importlib import resources

    place = Path(str(resources.files("forkpoint").joinpath("data/lab/train.toml")))
    if not place.is_file():
        raise StoreError(f"the recipe {place} is missing: install forkpoint again, or name a recipe.")
    return place


def _start(policy: str | None) -> list[str]:
    """The override that says what the table begins as; a file is named from here, not from the recipe."""
    if policy is None:
        return []
    return [f"policy.start={json.dumps(str(Path(policy).resolve()) if Path(policy).is_file() else policy)}"]


def _changes(graph: GraphOptions, fork: str | None) -> list[str]:
    """What the options say, as overrides of a recipe."""
    found: dict[str, object] = {}
    if graph.given:
        longest = max(len(graph.depth), len(graph.lanes))
        if graph.branches is not None or longest > 1:
            found["task.branches"] = graph.branches if graph.branches is not None else longest
        found |= {f"task.{key}": one_or_all(value) for key, value in (("depth", graph.depth), ("lanes", graph.lanes))
                  if value}  # fmt: skip
    if fork is not None:
        found["task.fork"] = fork
    return [f"{key}={json.dumps(value)}" for key, value in found.items()]


def _stage_changes(recipe: Recipe, horizon: int | None, every: int) -> list[str]:
    """Checkpoints of every stage, and the horizon of those that sample: the prompt is its first edge."""
    found = []
    for stage in recipe.stage:
        found += [f"stage.{stage.name}.checkpoint_every={every}", f"stage.{stage.name}.keep_checkpoints={KEEP}"]
        if horizon is not None and stage.kind == "rl":
            found.append(f"stage.{stage.name}.max_new_tokens={horizon - 1}")
    return found if horizon is None else [*found, f"evaluation.max_new_tokens={horizon - 1}"]


def _show(folder: Path, curve: Path | None, command: str, *, quiet: bool) -> None:
    """Writes the page and the curves, and prints what the policies are worth."""
    from forkpoint.cli.output import print_table
    from forkpoint.files import write_text_atomic
    from forkpoint.report.lab import curve_json, lab_graph, stage_courses, write_lab_page
    from forkpoint.report.lab_values import theory_lines
    from forkpoint.store import RunReader

    page = write_lab_page(folder)
    with RunReader(folder) as reader:
        graph, fork = lab_graph(reader)
        courses = stage_courses(reader)
    if curve is not None:
        about = f"{folder.name}, fork {fork}, sampled rollouts"
        text = json.dumps(
            curve_json(courses, graph, about=about, command=f"{command} --curve {shlex.quote(str(curve))}")
        )
        write_text_atomic(curve, text + "\n")
    if quiet:
        return
    goal = theory_lines(graph)["optimal" if fork == "frozen" else "optimal, fork trained"] or 1.0
    rows = [
        [
            c.stage,
            f"{c.steps[0]:.6g}",
            f"{c.steps[-1]:.6g}",
            f"{c.steps[-1] / goal:.3f}",
            "exact" if c.exact else "sampled",
        ]
        for c in courses
        if c.steps
    ]
    headers = ["stage", "hitting time, first", "last", f"over {goal:.6g}", "how known"]
    print_table(headers, rows, title="")
    print(f"lab page: {page}")
