"""Long experiments as cells (recipe, arm, seed): runs of their own that leave one small JSON each.

Finished cells are skipped.

    python benchmarks/cells.py run benchmarks/experiments/NAME.toml [--budget MINUTES] [--jobs 2] [--runs DIR]
    python benchmarks/cells.py table benchmarks/experiments/NAME.toml [--json]

An experiment names a recipe, seeds, arms (overrides of the recipe) and reference stages.  A cell that the budget stops
goes on from its last checkpoint at the next call.  Tables are made from the stored cells alone.

FLOPs are 6 N for each trained token and 2 N for each sampled one, N the parameters; prompts are not counted.
"""

import argparse
import datetime
import hashlib
import json
import math
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open
from scipy import stats

from forkpoint.cli.output import finite
from forkpoint.config.load import load_recipe
from forkpoint.config.recipe import Recipe, parent
from forkpoint.files import make_folder, write_text_atomic
from forkpoint.report.arms import final_evaluation
from forkpoint.store import EvaluationArrays, RunReader, latest_checkpoint, stage_folder

CELLS = Path(__file__).parent / "cells"
RETRIED = "retry_correct"
"""How often retries after a reflection succeed, of stages that reflect."""
ENTRY = "from forkpoint.cli.main import main; main()"


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One run of an experiment."""

    experiment: str
    recipe: Path
    arm: str
    overrides: tuple[str, ...]
    seed: int

    @property
    def name(self) -> str:
        return f"{self.experiment}-{self.arm}-{self.seed}"

    @property
    def place(self) -> Path:
        """The JSON of this cell."""
        return CELLS / self.experiment / f"{self.arm}-{self.seed}.json"

    @property
    def settings(self) -> list[str]:
        return [*self.overrides, f"seed={self.seed}", f"name={json.dumps(self.name)}", "processes=1"]


def read_experiment(path: Path) -> tuple[list[Cell], tuple[str, ...]]:
    """The cells of an experiment, seed by seed, and its reference stages."""
    table = tomllib.loads(path.read_text(encoding="utf-8"))
    recipe = (path.parent / table["recipe"]).resolve()
    cells = [
        Cell(experiment=path.stem, recipe=recipe, arm=arm, overrides=tuple(overrides), seed=seed)
        for seed in table["seeds"]
        for arm, overrides in table["arms"].items()
    ]
    return cells, tuple(table["reference"])


def run_cells(cells: Sequence[Cell], runs: Path, *, jobs: int, budget: float) -> None:
    """Runs what is missing, `jobs` cells at a time, and stops them after `budget` seconds."""
    ends = time.monotonic() + budget
    waiting = [cell for cell in cells if not cell.place.exists()]
    print(f"{len(cells) - len(waiting)} of {len(cells)} cells are done", flush=True)
    working: dict[Cell, subprocess.Popen[bytes]] = {}
    while waiting or working:
        late = time.monotonic() > ends
        while waiting and len(working) < jobs and not late:
            cell = waiting.pop(0)
            print(f"{cell.name}: begins", flush=True)
            working[cell] = start(cell, runs)
        for cell, process in list(working.items()):
            if late and process.poll() is None:
                process.send_signal(signal.SIGINT)
                process.wait()
            if process.poll() is None:
                continue
            del working[cell]
            if process.returncode == 0:
                store(cell, runs)
            print(f"{cell.name}: {'done' if process.returncode == 0 else f'exit {process.returncode}'}", flush=True)
        if late and not working:
            print(f"the budget is spent; {len(waiting)} cells wait", flush=True)
            return
        time.sleep(0.5)


def start(cell: Cell, runs: Path) -> "subprocess.Popen[bytes]":
    """A process that begins or continues the run of a cell."""
    changes = [part for setting in cell.settings for part in ("--set", setting)]
    command = [sys.executable, "-c", ENTRY, "run", str(cell.recipe), "--runs", str(runs), "--resume-if-exists"]
    runs.mkdir(parents=True, exist_ok=True)
    with (runs / f"{cell.name}.log").open("ab") as log:
        return subprocess.Popen([*command, *changes], stdout=log, stderr=log)


def store(cell: Cell, runs: Path) -> None:
    """Writes the JSON of a finished cell and removes its run."""
    folder = runs / cell.name
    recipe = load_recipe(cell.recipe, cell.settings)
    with RunReader(folder) as reader:
        stages = [stage_result(reader, recipe, stage.name) for stage in reader.stages()]
    record = {
        "experiment": cell.experiment,
        "recipe": cell.recipe.name,
        "recipe_sha256": hashlib.sha256(cell.recipe.read_bytes()).hexdigest(),
        "arm": cell.arm,
        "overrides": cell.overrides,
        "seed": cell.seed,
        **provenance(),
        "machine": platform.machine(),
        "stages": stages,
    }
    make_folder(cell.place.parent)
    write_text_atomic(cell.place, json.dumps(record, indent=1) + "\n")
    shutil.rmtree(folder)


def provenance() -> dict[str, Any]:
    """When and with what a cell was made."""
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "versions": {name: metadata.version(name) for name in ("forkpoint", "torch", "transformers", "numpy")},
    }


def make_parts(
    folder: Path, parts: Mapping[str, Callable[[], Mapping[str, Any]]], *, budget: float = math.inf,
    fits: Callable[[Mapping[str, Any]], bool] = bool,
) -> None:  # fmt: skip
    """Makes the parts of a benchmark that are missing in a folder, or do not fit any more, one JSON each.

    None is begun after `budget` seconds.
    """
    make_folder(folder)
    ends = time.monotonic() + budget
    for name, make in parts.items():
        if any(fits(found) for _, found in read_parts(folder, [name])):
            print(f"{name} is done", flush=True)
        elif time.monotonic() > ends:
            print(f"{name} waits: the budget is spent", flush=True)
        else:
            print(name, flush=True)
            made = json.dumps(finite({**provenance(), **make()}), separators=(",", ":"))
            write_text_atomic(folder / f"{name}.json", made + "\n")


def read_parts(folder: Path, names: Iterable[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The parts that are done."""
    for name in names:
        place = folder / f"{name}.json"
        if place.exists():
            yield name, json.loads(place.read_text(encoding="utf-8"))


def run_or_show(
    what: str, folder: Path, parts: Mapping[str, Callable[[], Mapping[str, Any]]],
    shown: Callable[[Mapping[str, Any]], Iterable[str]], *, quick: bool, **options: Any,
) -> None:  # fmt: skip
    """`run` makes the parts that are missing, all of them with `quick`, which leaves no cell; both print what is there.

    `options` are those of `make_parts`.
    """
    with tempfile.TemporaryDirectory() as spare:
        place = Path(spare) if quick else folder
        if what == "run":
            make_parts(place, parts, **options)
        for name, found in read_parts(place, parts):
            print("\n".join([name, *shown(found)]), flush=True)


def stage_result(reader: RunReader, recipe: Recipe, name: str) -> dict[str, Any]:
    """What one stage came to: its own costs, and its last evaluation and the ones before."""
    metric = {key: reader.metrics(name, key)[1] for key in ("trained_tokens", "grad_norm", "seconds", RETRIED)}
    parameters = count_parameters(stage_folder(reader.folder, name))
    sampled, trained = float(reader.updates(name)[2].sum()), float(metric["trained_tokens"].sum())
    found = final_evaluation(reader, name)
    curve = []
    for update in reader.evaluated(name):
        evaluation = reader.evaluations(name, update)
        curve.append([update, int((evaluation.correct == 1).sum()), len(evaluation.correct)])
    return {
        "stage": name,
        "kind": recipe.get_stage(name).kind,
        "parent": parent(recipe.get_stage(name)),
        "updates": recipe.get_stage(name).updates,
        "correct": int((found[1].correct == 1).sum()) if found else None,
        "problems": len(found[1].correct) if found else None,
        "tries": solved_of(found[1]) if found and found[1].index.any() else None,
        "curve": curve,
        **({RETRIED: float(np.nanmean(metric[RETRIED]))} if len(metric[RETRIED]) else {}),
        "sampled_tokens": int(sampled),
        "trained_tokens": int(trained),
        "flops": parameters * (6.0 * trained + 2.0 * sampled),
        "grad_norm": float(np.median(metric["grad_norm"])) if len(metric["grad_norm"]) else None,
        "seconds": round(float(metric["seconds"].sum()), 1),
    }


def solved_of(evaluation: EvaluationArrays) -> list[list[int]]:
    """Samples and correct ones of each problem, by its key, so that those of two stages pair up."""
    _, place = np.unique(evaluation.problem_keys, return_inverse=True)
    correct = np.bincount(place, weights=evaluation.correct)
    return [np.bincount(place).tolist(), correct.astype(int).tolist()]


def count_parameters(folder: Path) -> int:
    """Numbers in the model of a stage's newest checkpoint."""
    checkpoint = latest_checkpoint(folder)
    if checkpoint is None or not (checkpoint / "model.safetensors").exists():
        return 0
    with safe_open(checkpoint / "model.safetensors", "np") as file:
        return sum(int(np.prod(file.get_slice(key).get_shape())) for key in file.keys())  # noqa: SIM118


def stored(cells: Sequence[Cell]) -> Iterator[dict[str, Any]]:
    for cell in cells:
        if cell.place.exists():
            yield json.loads(cell.place.read_text(encoding="utf-8"))


def table_rows(records: Sequence[dict[str, Any]], references: Sequence[str]) -> list[dict[str, Any]]:
    """One row for each arm and stage: mean solve rate over seeds, costs up to it, differences seed by seed."""
    shares: dict[tuple[str, str], dict[int, float]] = {}
    costs: dict[tuple[str, str], list[tuple[float, float, float]]] = {}
    for record in records:
        stages = {stage["stage"]: stage for stage in record["stages"]}
        for name, stage in stages.items():
            if stage["problems"]:
                shares.setdefault((record["arm"], name), {})[record["seed"]] = stage["correct"] / stage["problems"]
                path = list(ancestry(stages, name))
                total = [sum(each[key] for each in path) for key in ("flops", "sampled_tokens")]
                costs.setdefault((record["arm"], name), []).append((*total, stage["grad_norm"] or 0.0))
    rows = []
    for (arm, name), by_seed in shares.items():
        flops, sampled, norm = np.mean(costs[arm, name], axis=0)
        row = {"arm": arm, "stage": name, "seeds": len(by_seed), **mean_interval(list(by_seed.values()))}
        row |= {"petaflops": flops / 1e15, "sampled_tokens": sampled, "grad_norm": norm}
        for reference in references:
            base = shares.get((arm, reference), {})
            pairs = [by_seed[seed] - base[seed] for seed in by_seed if seed in base]
            row[f"minus {reference}"] = mean_interval(pairs) if pairs and name != reference else None
        rows.append(row)
    return rows


def ancestry(stages: dict[str, dict[str, Any]], name: str | None) -> Iterator[dict[str, Any]]:
    """A stage and those that it starts from."""
    while name is not None:
        yield stages[name]
        name = stages[name]["parent"]


def mean_interval(values: Sequence[float]) -> dict[str, Any]:
    """The mean over seeds with its 95 % Student interval; none for one seed."""
    mean = float(np.mean(values))
    if len(values) < 2:
        return {"mean": mean, "interval": None}
    half = float(stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values)))
    return {"mean": mean, "interval": [mean - half, mean + half]}


def in_short(found: Mapping[str, Any] | None) -> str:
    """A mean with its interval, three digits."""
    if found is None:
        return "-"
    ends = "" if found["interval"] is None else " [{:.3g}, {:.3g}]".format(*found["interval"])
    return f"{found['mean']:.3g}{ends}"


def shown(value: dict[str, Any] | None, sign: str = "") -> str:
    if value is None:
        return ""
    if value["interval"] is None:
        return f"{value['mean']:{sign}.3f}"
    low, high = value["interval"]
    return f"{value['mean']:{sign}.3f} [{low:{sign}.3f}, {high:{sign}.3f}]"


def print_markdown(rows: Sequence[dict[str, Any]], references: Sequence[str]) -> None:
    heads = ["stage", "seeds", "solve rate [95 %]", *(f"minus {name}" for name in references), "PFLOP", "gradient norm"]
    print("| " + " | ".join(heads) + " |\n|" + "---|" * len(heads))
    several = len({row["arm"] for row in rows}) > 1
    for row in rows:
        name = f"{row['arm']}: {row['stage']}" if several else row["stage"]
        parts = [shown(row[f"minus {reference}"], "+") for reference in references]
        cells = [name, str(row["seeds"]), shown(row), *parts, f"{row['petaflops']:.3g}", f"{row['grad_norm']:.3g}"]
        print("| " + " | ".join(cells) + " |")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["run", "table"])
    parser.add_argument("experiment", type=Path)
    parser.add_argument("--budget", type=float, default=60.0, help="minutes")
    parser.add_argument("--jobs", type=int, default=2, help="cells at a time")
    parser.add_argument("--runs", type=Path, default=Path("runs/cells"), help="where unfinished runs lie")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    cells, references = read_experiment(asked.experiment)
    if asked.what == "run":
        run_cells(cells, asked.runs, jobs=asked.jobs, budget=60 * asked.budget)
    rows = table_rows(list(stored(cells)), references)
    if asked.json:
        print(json.dumps(rows, indent=1))
    else:
        print_markdown(rows, references)
    return 0


if __name__ == "__main__":
    sys.exit(main())
