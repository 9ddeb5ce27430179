"""How fast keychain is learned under each credit rule: cells (variant, arm, rate, seed) and the table made from them.

Each cell leaves one small JSON in `benchmarks/cells/credit-map/VARIANT/`; finished ones are skipped.

    python benchmarks/credit_map.py tune [--variants C,A] [--budget MINUTES] [--jobs 2] [--cache DIR]
    python benchmarks/credit_map.py run  [--variants C,A] ...     # reported seeds, at the best rate of the tuning seeds
    python benchmarks/credit_map.py table [--json]

Rates are chosen on the tuning seeds alone.  All arms of a variant start from one decoder, and arms with the same seed
see the same problems.
"""

import argparse
import json
import multiprocessing
import os
import sys
import time
import tomllib
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from forkpoint.config.critic import CriticSettings
from forkpoint.config.curriculum import Curriculum
from forkpoint.config.divergence import Divergence
from forkpoint.credit import CREDIT_RULES
from forkpoint.doctor.drift import drift, history
from forkpoint.errors import ForkpointError
from forkpoint.meter.cells import LearningCell, missing, read_cell, run_cell
from forkpoint.meter.learning import UNIFORM, Arm, Race
from forkpoint.meter.oracle import oracle
from forkpoint.meter.pretraining import Pretraining, pretrained
from forkpoint.meter.savings import Saving, best_rates, savings
from forkpoint.meter.subject import Subject
from forkpoint.meter.variants import Variant, variant
from forkpoint.seeds import Key
from forkpoint.tasks.keychain import Settings, build
from forkpoint.training.drift import METRICS

HERE = Path(__file__).parent
EXPERIMENT = HERE / "experiments" / "credit-map.toml"
CELLS = HERE / "cells" / "credit-map"


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """One cell by its names, so that it can be sent to a process."""

    variant: str
    arm: str
    rate: float
    seed: int


def read_experiment() -> dict[str, Any]:
    return tomllib.loads(EXPERIMENT.read_text(encoding="utf-8"))


def find_variant(name: str) -> Variant:
    """The meter's variant of that name, or what the experiment makes `of` one with other `settings`."""
    table = read_experiment()["variants"].get(name, {})
    found = variant(table.get("of", name))
    changed = {key: table[key] for key in ("updates", "batch_size", "prompt_updates", "prompt_corpus") if key in table}
    return replace(found, settings={**found.settings, **table.get("settings", {})}, **changed)


def make_subject(name: str, cache: Path) -> Subject:
    """A fresh copy of the variant's decoder."""
    chosen = find_variant(name)
    task = build(Settings(**chosen.settings))
    how = Pretraining(
        corpus="demonstrator", updates=chosen.updates, batch_size=chosen.batch_size,
        prompt_updates=chosen.prompt_updates, prompt_corpus=chosen.prompt_corpus, outputs_attend=chosen.outputs_attend,
    )  # fmt: skip
    policy = pretrained(task, how, identity=json.dumps(dict(chosen.settings), sort_keys=True), cache=cache)
    return Subject(policy=policy, task=task, key=Key.root(0), max_new_tokens=task.settings.positions)


def make_cell(asked: Asked, experiment: Mapping[str, Any], cache: Path) -> LearningCell:
    settings, chosen = experiment["arms"][asked.arm], find_variant(asked.variant)
    name = settings.get("rule", asked.arm)
    arm = Arm(
        name=asked.arm, rule=oracle if name == "oracle" else CREDIT_RULES[name], options=settings.get("options", {}),
        wrap=tuple(settings.get("wrap", ())), wrap_options=settings.get("wrap_options", {}), learning_rate=asked.rate,
        critic=CriticSettings(**settings.get("critic", {})) if name == "critic" else None,
        curriculum=Curriculum(**settings["curriculum"]) if "curriculum" in settings else None,
        divergence=Divergence(**settings["divergence"]) if "divergence" in settings else None,
    )  # fmt: skip
    how = f"{chosen.outputs_attend}, {chosen.updates} updates of {chosen.batch_size}"
    if chosen.prompt_updates:
        of = f" and of {chosen.prompt_corpus}" if chosen.prompt_corpus else ""
        how += f", {chosen.prompt_updates} of them seeing the prompt alone{of}"
    return LearningCell(
        make=partial(make_subject, asked.variant, cache),
        task={"name": "keychain", **chosen.settings},
        policy=how,
        arm=arm, race=Race(**experiment["variants"][asked.variant].get("race", {})), seed=asked.seed,
    )  # fmt: skip


@dataclass(slots=True, kw_only=True)
class Guard:
    """The drift guard of a stage, and the update at which it first named each severity."""

    batches: dict[int, dict[str, float]] = field(default_factory=dict)
    named: dict[str, int] = field(default_factory=dict)

    def __call__(self, update: int, metrics: Mapping[str, float]) -> None:
        self.batches[update] = {name: metrics[name] for name in METRICS if name in metrics}
        found = drift(history(self.batches))
        if found is not None:
            self.named.setdefault(str(found.severity), update)

    def document(self) -> dict[str, Any]:
        return {"drift": self.named}


def work(asked: Asked, cache: Path, deadline: float) -> str:
    """Runs one cell in this process."""
    torch.set_num_threads(1)

    parent = os.getppid()

    def late(line: str) -> None:
        del line
        # Nobody waits for the cell of a process that was killed.
        if time.time() > deadline or os.getppid() != parent:
            raise ForkpointError("the budget is spent")

    guard, cell = Guard(), make_cell(asked, read_experiment(), cache)
    found = run_cell(cell, CELLS / asked.variant, late, watch=guard, told=guard.document)
    named = ", ".join(f"{severity} at update {update}" for severity, update in found.get("drift", {}).items())
    return f"{found['end']}, {found['points'][-1][2]:,} tokens; drift: {named or 'nothing'}"


def run(wanted: Sequence[Asked], cache: Path, *, jobs: int, budget: float) -> None:
    """Runs what is missing, `jobs` cells at a time, until the budget (seconds) is spent."""
    experiment, deadline = read_experiment(), time.time() + budget
    left = [each for each in wanted if missing([make_cell(each, experiment, cache)], CELLS / each.variant)]
    print(f"{len(wanted) - len(left)} of {len(wanted)} cells are done", flush=True)
    for name in dict.fromkeys(each.variant for each in left):
        make_subject(name, cache)
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        waiting = {pool.submit(work, each, cache, deadline): each for each in left}
        for done in as_completed(waiting):
            each = waiting[done]
            try:
                line = done.result()
            except ForkpointError as error:
                line = str(error)
            print(f"{each.variant} {each.arm} {each.rate:g} seed {each.seed}: {line}", flush=True)


def rows_of(name: str, seeds: Sequence[int], cache: Path) -> list[Saving]:
    """The rows of a variant from the cells of some seeds that are there."""
    experiment, found = read_experiment(), []
    for path in sorted((CELLS / name).glob("*.json")):
        document = json.loads(path.read_text(encoding="utf-8"))
        arm = document["arm"]
        if document["seed"] in seeds and arm["name"] in experiment["arms"]:
            asked = Asked(variant=name, arm=arm["name"], rate=arm["learning_rate"], seed=document["seed"])
            found.append(read_cell(path, make_cell(asked, experiment, cache)))
    reference = experiment["variants"][name].get("reference", UNIFORM)
    return savings(found, key=Key.root(0).child(name), reference=reference)


def arms_of(experiment: Mapping[str, Any], name: str) -> list[str]:
    return list(experiment["variants"][name].get("arms", experiment["arms"]))


def seeds_of(experiment: Mapping[str, Any], name: str) -> list[int]:
    """The reported seeds of a variant."""
    return list(experiment["variants"][name].get("seeds", experiment["seeds"]))


def asked_cells(what: str, names: Sequence[str], cache: Path) -> list[Asked]:
    """Tuning: every rate on the tuning seeds.  Reporting: the best of them, and those of `also`, on the others."""
    experiment, wanted = read_experiment(), []
    for name in names:
        if what == "tune":
            wanted += [
                Asked(variant=name, arm=arm, rate=rate, seed=seed)
                for seed in experiment["tuning"]
                for rate in experiment["variants"][name]["rates"]
                for arm in arms_of(experiment, name)
            ]
            continue
        best = best_rates(rows_of(name, experiment["tuning"], cache))
        also = experiment["variants"][name].get("also", {})
        wanted += [
            Asked(variant=name, arm=arm, rate=rate, seed=seed)
            for seed in seeds_of(experiment, name)
            for arm in arms_of(experiment, name)
            if arm in best
            for rate in dict.fromkeys([best[arm].learning_rate, *also.get(arm, [])])
        ]
    return wanted


def print_table(found: Mapping[str, Sequence[Saving]]) -> None:
    heads = ["variant", "arm", "rate", "solved", "thousand tokens", "equivalents", "reference / arm", "head-room"]
    print("| " + " | ".join(heads) + " |\n|" + "---|" * len(heads))
    for name, rows in found.items():
        for row in rows:
            tokens, prices = (row.costs[cost] / 1000 for cost in ("generated_tokens", "equivalents"))
            gone = f", {row.collapsed} collapsed" if row.collapsed else ""
            between = "" if row.interval is None else f" [{row.interval[0]:.2f}, {row.interval[1]:.2f}]"
            ratio = "" if row.ratio is None else f"{row.ratio:.2f}{between}"
            share = "" if row.headroom is None else f"{row.headroom:.0%}"
            parts = [name, row.arm, f"{row.learning_rate:g}", f"{row.solved} of {row.seeds}{gone}"]
            print("| " + " | ".join([*parts, f"{tokens:.0f}", f"{prices:.0f}", ratio, share]) + " |")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["tune", "run", "table"])
    parser.add_argument("--variants", default=None, help="names with commas between; default: all of the experiment")
    parser.add_argument("--budget", type=float, default=60.0, help="minutes")
    parser.add_argument("--jobs", type=int, default=2, help="cells at a time")
    parser.add_argument("--cache", type=Path, default=Path("runs/decoders"), help="where pretrained decoders lie")
    parser.add_argument("--tuning", action="store_true", help="table: of the tuning seeds")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    experiment = read_experiment()
    names = asked.variants.split(",") if asked.variants else list(experiment["variants"])
    if asked.what != "table":
        cells = asked_cells(asked.what, names, asked.cache)
        run(cells, asked.cache, jobs=asked.jobs, budget=60 * asked.budget)
    tuned = asked.tuning or asked.what == "tune"
    seeds = {name: experiment["tuning"] if tuned else seeds_of(experiment, name) for name in names}
    found = {name: rows_of(name, seeds[name], asked.cache) for name in names}
    if asked.json:
        print(json.dumps({name: [asdict(row) for row in rows] for name, rows in found.items()}, indent=1))
    else:
        print_table(found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
