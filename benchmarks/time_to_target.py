"""Wall seconds and generated tokens to 90 % solved: TRL's `GRPOTrainer` against our default and our best credit rule.

Cells (track, arm, rate, seed) leave small JSON in `benchmarks/cells/time-to-target/TRACK/`; finished ones are skipped.

    python benchmarks/time_to_target.py tune [--tracks keychain,paths] [--budget MINUTES] [--best RULE]
    python benchmarks/time_to_target.py run  [--tracks keychain,paths] ...  # reported seeds, tuned rates
    python benchmarks/time_to_target.py table [--json]
    python benchmarks/time_to_target.py run --quick                          # minutes: shows that it runs

TRL must be importable, see README.md.  Times count on an idle machine alone; `--jobs` beyond 1 is for tuning.
Seconds are those of training, one thread, fp32; evaluations are ours for every arm, and free.  The gain over TRL is
    seconds ratio = engine x credit,   engine: ratio of seconds per generated token,   credit: ratio of tokens.
"""

import argparse
import importlib.metadata
import json
import multiprocessing
import os
import sys
import tempfile
import time
import tomllib
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import credit_map
import torch
import vs_trl

from forkpoint.assembly.tables import build_task, package_model
from forkpoint.config.recipe import TextStage
from forkpoint.credit import CREDIT_RULES
from forkpoint.errors import ForkpointError, unknown_name
from forkpoint.files import make_folder, write_text_atomic
from forkpoint.meter.cells import LearningCell, cell_document, missing, read_cell, run_cell
from forkpoint.meter.learning import UNIFORM, Progress
from forkpoint.meter.savings import best_rates, ratio_of_costs, savings, spent_by_seed
from forkpoint.meter.subject import Subject
from forkpoint.policies.folder import load_folder
from forkpoint.seeds import Key
from forkpoint.training.imitation import TextTraining, corpus_draw
from forkpoint.training.optimization import Optimization

EXPERIMENT = credit_map.HERE / "experiments" / "time-to-target.toml"
CELLS = credit_map.HERE / "cells" / "time-to-target"
TRL = "trl"
Documents = Sequence[Mapping[str, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """One cell by its names, so that it can be sent to a process."""

    track: str
    arm: str
    rate: float
    seed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is run, and where its cells and decoders lie."""

    experiment: Mapping[str, Any]
    cells: Path
    cache: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Gain:
    """An arm at its best rate; ratios are TRL's cost over the arm's, geometric means over seeds."""

    arm: str
    learning_rate: float
    seeds: int
    solved: int
    """Seeds that met the target; the others count at the whole budget, seconds at their own pace."""
    collapsed: int
    tokens: float
    """Generated, median over seeds; those of the credit rule included."""
    seconds: float
    ratio: float | None = None
    """In seconds."""
    interval: tuple[float, float] | None = None
    """95 %, of the ratio; None for fewer than three seeds."""
    engine: float | None = None
    credit: float | None = None
    credit_interval: tuple[float, float] | None = None


def read_plan(arguments: argparse.Namespace, cells: Path) -> Plan:
    """The experiment as asked: `--quick` replaces seeds and tracks, `--best` the rule of every track."""
    table = tomllib.loads(EXPERIMENT.read_text(encoding="utf-8"))
    if arguments.quick:
        table |= table["quick"]
    if arguments.tracks:
        for name in arguments.tracks.split(","):
            if name not in table["tracks"]:
                raise ForkpointError(unknown_name("--tracks", name, table["tracks"]))
        table["tracks"] = {name: table["tracks"][name] for name in arguments.tracks.split(",")}
    if arguments.best:
        if arguments.best not in CREDIT_RULES:
            raise ForkpointError(unknown_name("--best", arguments.best, CREDIT_RULES))
        table["arms"].setdefault(arguments.best, {})
        table["tracks"] = {name: {**track, "best": arguments.best} for name, track in table["tracks"].items()}
    return Plan(experiment=table, cells=cells, cache=arguments.cache)


def arms_of(track: Mapping[str, Any]) -> list[str]:
    return list(dict.fromkeys([TRL, UNIFORM, track["best"]]))


def make_imitator(track: Mapping[str, Any]) -> Subject:
    """The track's model on its task after some updates of imitation, its logits then divided by `flatten`.

    Flat logits leave much to gain without taking away what RL would have to find first; the final norm carries them.
    """
    task, policy = build_task(track["task"]), load_folder(package_model(track["model"].removeprefix("package:")))
    stage = TextStage(name="start", kind="sft", warmup=0, schedule="linear", **track["start"])
    draw = corpus_draw(task, policy.texts, stage.data, Key.root(0).child("time to target"), count=stage.batch_size)
    training = TextTraining(stage=stage, policy=policy, optimization=Optimization(policy.model, stage), draw=draw)
    for update in range(1, stage.updates + 1):
        training.unit(update)
    with torch.no_grad():
        policy.model.model.norm.weight.div_(track["flatten"])
    return Subject(policy=policy, task=task, key=Key.root(0), max_new_tokens=track["max_new_tokens"])


def make_cell(asked: Asked, plan: Plan) -> LearningCell:
    """The cell as the credit map makes it; without a variant, on the track's own task and model."""
    track = plan.experiment["tracks"][asked.track]
    letter = track.get("variant", "A")
    named = credit_map.Asked(variant=letter, arm=asked.arm, rate=asked.rate, seed=asked.seed)
    cell = credit_map.make_cell(named, {**plan.experiment, "variants": {letter: track}}, plan.cache)
    if "variant" in track:
        return cell
    policy = f"{track['model']}, {track['start']}, logits over {track['flatten']}"
    task = {**track["task"], "max_new_tokens": track["max_new_tokens"]}
    return replace(cell, make=partial(make_imitator, track), task=task, policy=policy)


def run_one(asked: Asked, plan: Plan, progress: Progress) -> dict[str, Any]:
    """The document of a cell, run where its file is not there."""
    cell, folder = make_cell(asked, plan), plan.cells / asked.track
    if asked.arm != TRL or not missing([cell], folder):
        return run_cell(cell, folder, progress)
    # Imported here, so that our arms and the table need no TRL.
    from trl_learning import trl_curve  # noqa: PLC0415

    curve = trl_curve(cell.make(), cell.race, rate=asked.rate, seed=asked.seed, progress=progress)
    document = cell_document(cell, curve, {TRL: vs_trl.VERSION})
    make_folder(folder)
    write_text_atomic(folder / f"{cell.name}.json", json.dumps(document) + "\n")
    return document


def work(asked: Asked, plan: Plan, deadline: float) -> str:
    """Runs one cell in this process."""
    torch.set_num_threads(1)

    parent = os.getppid()

    def late(line: str) -> None:
        del line
        # Nobody waits for the cell of a process that was killed.
        if time.time() > deadline or os.getppid() != parent:
            raise ForkpointError("the budget is spent")

    found = run_one(asked, plan, late)
    return f"{found['end']}, {found['points'][-1][2]:,} tokens"


def run(wanted: Sequence[Asked], plan: Plan, *, jobs: int, budget: float) -> None:
    """Runs what is missing, a process for each cell, until the budget (seconds) is spent."""
    deadline = time.time() + budget
    left = [each for each in wanted if missing([make_cell(each, plan)], plan.cells / each.track)]
    print(f"{len(wanted) - len(left)} of {len(wanted)} cells are done", flush=True)
    for each in {each.track: each for each in left}.values():
        # Cells share the decoder of a variant; another start takes seconds, and each cell makes its own.
        if "variant" in plan.experiment["tracks"][each.track]:
            make_cell(each, plan).make()
    # TRL changes models and libraries as it is imported, so no process runs two cells.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=context, max_tasks_per_child=1) as pool:
        waiting = {pool.submit(work, each, plan, deadline): each for each in left}
        for done in as_completed(waiting):
            each = waiting[done]
            try:
                line = done.result()
            except ForkpointError as error:
                line = str(error)
            print(f"{each.track} {each.arm} {each.rate:g} seed {each.seed}: {line}", flush=True)


def read_documents(track: str, seeds: Sequence[int], plan: Plan) -> list[dict[str, Any]]:
    """The cells of a track that are there, of its arms and some seeds."""
    arms, found = arms_of(plan.experiment["tracks"][track]), []
    for path in sorted((plan.cells / track).glob("*.json")):
        document = json.loads(path.read_text(encoding="utf-8"))
        arm, seed = document["arm"], document["seed"]
        if arm["name"] in arms and seed in seeds:
            asked = Asked(track=track, arm=arm["name"], rate=arm["learning_rate"], seed=seed)
            found.append(read_cell(path, make_cell(asked, plan)))
    return sorted(found, key=lambda each: arms.index(each["arm"]["name"]))


def asked_cells(what: str, plan: Plan) -> list[Asked]:
    """Tuning: every rate on the tuning seeds.  Reporting: the best of them, or the only one, on the others."""
    table, wanted = plan.experiment, []
    for name, track in table["tracks"].items():
        rates = dict.fromkeys(arms_of(track), track["rates"])
        if what == "run" and len(track["rates"]) > 1:
            tuned = best_rates(savings(read_documents(name, table["tuning"], plan), key=Key.root(0)))
            rates = {arm: [tuned[arm].learning_rate] for arm in rates if arm in tuned}
        # Arms take turns, so that a slow hour of the machine falls on all of them.
        wanted += [
            Asked(track=name, arm=arm, rate=rate, seed=seed)
            for seed in table["tuning" if what == "tune" else "seeds"]
            for arm in rates
            for rate in rates[arm]
        ]
    return wanted


def gains(documents: Documents, key: Key) -> list[Gain]:
    """One row for each arm at its best rate, against TRL where TRL is there.

    With the same seeds in both, ratio = engine x credit.  A ratio to seeds of TRL that missed the target is a bound
    from below.
    """
    best = best_rates(savings(documents, key=key))
    chosen = {
        arm: [each for each in documents if each["arm"]["name"] == arm and each["arm"]["learning_rate"] == rate]
        for arm, rate in ((row.arm, row.learning_rate) for row in best.values())
    }
    rows = []
    for arm, row in best.items():
        plain = Gain(
            arm=arm, learning_rate=row.learning_rate, seeds=row.seeds, solved=row.solved, collapsed=row.collapsed,
            tokens=row.costs["generated_tokens"], seconds=row.costs["seconds"],
        )  # fmt: skip
        rows.append(plain if TRL not in chosen else _against(plain, chosen[TRL], chosen[arm], key.child(arm)))
    return rows


def _against(row: Gain, theirs: Documents, mine: Documents, key: Key) -> Gain:
    """The row with its ratios, over the seeds that both have."""
    both = {int(each["seed"]) for each in theirs} & {int(each["seed"]) for each in mine}
    if not both:
        return row
    theirs, mine = ([each for each in side if each["seed"] in both] for side in (theirs, mine))
    ratio, interval = ratio_of_costs(
        spent_by_seed(theirs, "seconds"), spent_by_seed(mine, "seconds"), key.child("seconds")
    )
    credit, between = ratio_of_costs(
        spent_by_seed(theirs, "generated_tokens"), spent_by_seed(mine, "generated_tokens"), key.child("tokens")
    )
    return replace(row, ratio=ratio, interval=interval, engine=ratio / credit, credit=credit, credit_interval=between)


def print_table(found: Mapping[str, Sequence[Gain]]) -> None:
    heads = ["track", "arm", "rate", "solved", "seconds", "thousand tokens", "ms per token"]
    heads += ["TRL / arm, seconds", "of that engine", "of that credit"]
    print("| " + " | ".join(heads) + " |\n|" + "---|" * len(heads))
    for track, rows in found.items():
        unsolved = any(row.arm == TRL and row.solved < row.seeds for row in rows)
        for row in rows:
            parts = [track, row.arm, f"{row.learning_rate:g}"]
            parts.append(f"{row.solved} of {row.seeds}" + (f", {row.collapsed} collapsed" if row.collapsed else ""))
            each = 1000 * row.seconds / row.tokens if row.tokens else 0.0
            parts += [f"{row.seconds:.0f}", f"{row.tokens / 1000:.0f}", f"{each:.3f}"]
            bound = ">= " if unsolved and row.arm != TRL else ""
            parts += [f"{bound}{_shown(row.ratio, row.interval)}", _shown(row.engine, None)]
            print("| " + " | ".join([*parts, f"{bound}{_shown(row.credit, row.credit_interval)}"]) + " |")


def _shown(value: float | None, between: tuple[float, float] | None) -> str:
    if value is None:
        return "-"
    return f"{value:.2f}" + ("" if between is None else f" [{between[0]:.2f}, {between[1]:.2f}]")


def check_trl(wanted: Sequence[Asked]) -> None:
    """Raises ForkpointError where TRL cells are wanted and the right TRL is not there."""
    found = {each.version for each in importlib.metadata.distributions(name=TRL)}
    if vs_trl.VERSION not in found and any(each.arm == TRL for each in wanted):
        raise ForkpointError(f"the arm trl needs trl {vs_trl.VERSION}: pip install trl=={vs_trl.VERSION} datasets")


def carry_out(arguments: argparse.Namespace, cells: Path) -> dict[str, list[Gain]]:
    """The rows of each track, after what was to be run."""
    plan = read_plan(arguments, cells)
    if arguments.what != "table":
        wanted = asked_cells(arguments.what, plan)
        check_trl(wanted)
        run(wanted, plan, jobs=arguments.jobs, budget=60 * arguments.budget)
    seeds = plan.experiment["tuning" if arguments.tuning or arguments.what == "tune" else "seeds"]
    return {
        name: gains(read_documents(name, seeds, plan), Key.root(0).child(name)) for name in plan.experiment["tracks"]
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["tune", "run", "table"])
    parser.add_argument("--tracks", help="names with commas between; default: all of the experiment")
    parser.add_argument("--best", help="the credit rule beside the default; default: as the experiment says")
    parser.add_argument("--quick", action="store_true", help="one small track and seed, cells thrown away")
    parser.add_argument("--budget", type=float, default=60.0, help="minutes")
    parser.add_argument("--jobs", type=int, default=1, help="cells at a time")
    parser.add_argument("--cache", type=Path, default=Path("runs/decoders"), help="where pretrained decoders lie")
    parser.add_argument("--tuning", action="store_true", help="table: of the tuning seed")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    try:
        with tempfile.TemporaryDirectory() as scratch:
            found = carry_out(arguments, Path(scratch) if arguments.quick else CELLS)
    except ForkpointError as error:
        print(error, file=sys.stderr)
        return 2
    if arguments.json:
        print(json.dumps({name: [asdict(row) for row in rows] for name, rows in found.items()}, indent=1))
    else:
        print_table(found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
