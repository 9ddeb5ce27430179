"""Sensitivity and specificity of the audits: which patients each finds, and which healthy runs each calls sick.

    python benchmarks/audit_panel.py run [--budget MINUTES] [--jobs 1] [--tuning] [--only AUDIT,...] [--runs DIR]
    python benchmarks/audit_panel.py table [--tuning] [--json]

A cell (patient, seed) is one run of a recipe of recipes/patients and the audits of its stages, each against the
recipe's base: healthy stages by all audits, the others by those that can do without models and by the patient's own.
It leaves a small JSON in benchmarks/cells/audit-panel; finished cells are skipped, one that the budget stops goes on at
the next call.  A run counts as found, or as flagged, where the audit calls it sick.  Intervals: Clopper and Pearson.
"""

import argparse
import hashlib
import json
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from cells import CELLS, Cell, in_short, mean_interval, provenance, start
from scipy import stats

from forkpoint.assembly.subject import stage_subject
from forkpoint.audits import mismatch
from forkpoint.audits.part import STATUS
from forkpoint.audits.rows import Row, records_of
from forkpoint.audits.table import AUDITS, Result, run_audits
from forkpoint.config.load import load_recipe
from forkpoint.config.recipe import parent
from forkpoint.errors import ForkpointError, unknown_name
from forkpoint.files import make_folder, write_text_atomic
from forkpoint.probe import SampleRequest, ScoreRequest
from forkpoint.records import Contents
from forkpoint.report.arms import final_evaluation
from forkpoint.store import RunReader
from forkpoint.store.columns import stage_records

HERE = Path(__file__).parent
EXPERIMENT = HERE / "experiments" / "audit-panel.toml"
RECIPES = HERE.parent / "recipes" / "patients"
PROBLEMS = 32
"""Held-out problems whose rollouts the audits with models read, four of each."""
LONGEST = 48
"""Tokens of a rollout of the patient of `mismatch`."""
Documents = Sequence[Mapping[str, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """What is run, and what its stages are."""

    base: str
    doses: tuple[str, ...]
    controls: tuple[str, ...]
    cures: tuple[str, ...]
    patients: Mapping[str, Path]
    """The recipe of each patient: named after its audit, a second one with a suffix (`exploration-grown`)."""
    temperatures: Mapping[str, float]
    """The sampler's, for each dose of the patient of `mismatch`."""
    tuning: tuple[int, ...]
    seeds: tuple[int, ...]
    leads: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Of some patients texts before the prompts that `sabotage` tries."""

    def cells(self, *, tuning: bool = False) -> list[Cell]:
        """Seed by seed."""
        return [
            Cell(experiment="audit-panel", recipe=recipe, arm=patient, overrides=("doctor.before=false",), seed=seed)
            for seed in (self.tuning if tuning else self.seeds)
            for patient, recipe in self.patients.items()
        ]

    def audits(self, stage: str, patient: str) -> tuple[str, ...]:
        """Those that a stage of a patient is read by."""
        own = audit_of(patient)
        return tuple(name for name in AUDITS if stage in self.controls or name == own or not asks_models(name))


def audit_of(patient: str) -> str:
    """The audit that is to find a patient."""
    return patient.partition("-")[0]


def read_panel(path: Path, *, recipes: Path = RECIPES) -> Panel:
    """The panel of a file.

    Raises:
        ForkpointError: it names an audit that there is not, or a seed that is both for tuning and reported.
    """
    table = tomllib.loads(path.read_text(encoding="utf-8"))
    for audit in map(audit_of, table["patients"]):
        if audit not in AUDITS:
            raise ForkpointError(unknown_name(f"{path.name}: [patients]", audit, AUDITS))
    if set(table["tuning"]) & set(table["seeds"]):
        raise ForkpointError(f"{path.name}: tuning = {table['tuning']} and seeds = {table['seeds']} share a seed.")
    lists = {name: tuple(table[name]) for name in ("doses", "controls", "cures", "tuning", "seeds")}
    patients = {patient: recipes / name for patient, name in table["patients"].items()}
    maps = {name: table.get(name, {}) for name in ("temperatures", "leads")}
    return Panel(base=table["base"], patients=patients, **maps, **lists)


def run_panel(panel: Panel, cells: Sequence[Cell], runs: Path, *, jobs: int, budget: float) -> None:
    """Runs what is missing, `jobs` cells at a time, and stops them after `budget` seconds."""
    ends = time.monotonic() + budget
    waiting = [cell for cell in cells if not cell.place.exists()]
    print(f"{len(cells) - len(waiting)} of {len(cells)} cells are done", flush=True)
    working: dict[Cell, subprocess.Popen[bytes]] = {}
    while waiting or working:
        late = time.monotonic() > ends
        while waiting and len(working) < jobs and not late:
            cell = waiting.pop(0)
            working[cell] = start(cell, runs)
        for cell, process in list(working.items()):
            if late and process.poll() is None:
                process.send_signal(signal.SIGINT)
                process.wait()
            if process.poll() is None:
                continue
            del working[cell]
            if process.returncode == 0:
                keep_cell(panel, cell, runs)
            print(f"{cell.name}: {'done' if process.returncode == 0 else f'exit {process.returncode}'}", flush=True)
        if late and not working:
            print(f"the budget is spent; {len(waiting)} cells wait", flush=True)
            return
        time.sleep(0.2)


def keep_cell(panel: Panel, cell: Cell, runs: Path) -> None:
    """Audits a finished run, writes the JSON of its cell, and removes the run."""
    began = time.perf_counter()
    folder = runs / cell.name
    recipe = load_recipe(folder / "recipe.toml")
    audited = {
        name: audited_stage(
            folder,
            name,
            panel.base,
            panel.audits(name, cell.arm),
            leads=panel.leads.get(cell.arm, ()),
            asked=name in panel.controls or asks_models(audit_of(cell.arm), of=any),
        )
        for name in (stage.name for stage in recipe.stage)
        if name != panel.base
    }
    for name in panel.controls:
        # Imitation keeps no log-probabilities of a sampler, so there both are asked anew.
        if name in audited and not audited[name][mismatch.NAME]["findings"]:
            audited[name] |= drawn_stage(folder, 1.0, stage=name)
    if cell.arm == mismatch.NAME:
        audited |= {dose: drawn_stage(folder, warm, stage="healthy") for dose, warm in panel.temperatures.items()}
    with RunReader(folder) as reader:
        seconds = sum(float(reader.metrics(stage.name, "seconds")[1].sum()) for stage in recipe.stage)
        solved = {stage.name: solve_rate(reader, stage.name) for stage in recipe.stage}
    record = {
        "patient": cell.arm,
        "seed": cell.seed,
        "recipe_sha256": hashlib.sha256(cell.recipe.read_bytes()).hexdigest(),
        **provenance(),
        "training_seconds": round(seconds, 1),
        "audit_seconds": round(time.perf_counter() - began, 1),
        "parents": {stage.name: parent(stage) for stage in recipe.stage},
        "solved": solved,
        "stages": audited,
    }
    make_folder(cell.place.parent)
    write_text_atomic(cell.place, json.dumps(record, separators=(",", ":")) + "\n")
    shutil.rmtree(folder)


def audited_stage(
    folder: Path, stage: str, base: str, audits: Sequence[str], *, problems: int = PROBLEMS, leads: Sequence[str] = (),
    asked: bool = True,
) -> dict[str, Any]:  # fmt: skip
    """What some audits say of a stage of a run, against its base and, where `asked`, with its models."""
    records = stage_records(folder, stage, base=stage_records(folder, base))
    other = (folder, base)
    subject = stage_subject(folder, stage, base=other, problems=problems, leads=leads) if asked else None
    return {result.audit: told(result) for result in run_audits(records, only=audits, probe=subject)}


def drawn_stage(folder: Path, temperature: float, *, stage: str) -> dict[str, Any]:
    """What `mismatch` says where a sampler draws at a temperature and the trainer reads at 1."""
    probe = stage_subject(folder, stage, problems=PROBLEMS)
    drawn = [
        SampleRequest(
            key=probe.key.child("mismatch", rollout.id), problem=group.problem, prompt_tokens=rollout.prompt_tokens,
            group_id=group.problem.key, stage=stage, update=0, index=rollout.index, max_new_tokens=LONGEST,
            temperature=temperature, stop=probe.task.stop(group.problem),
        )
        for group in probe.groups
        for rollout in group.rollouts
    ]  # fmt: skip
    rollouts = probe.sample(drawn)
    read = probe.score([ScoreRequest(prompt_tokens=one.prompt_tokens, tokens=one.tokens) for one in rollouts])
    rows = [
        Row(
            id=one.id, problem=one.problem_key, length=len(one.tokens),
            said=Contents(behavior_logprobs=one.behavior_logprobs, trainer_logprobs=theirs, loss_mask=one.loss_mask),
        )
        for one, theirs in zip(rollouts, read, strict=True)
    ]  # fmt: skip
    return {result.audit: told(result) for result in run_audits(records_of(rows), only=[mismatch.NAME])}


def asks_models(audit: str, *, of: Callable[[Iterable[bool]], bool] = all) -> bool:
    """Whether all parts of an audit, or any, need a model."""
    return of(bool({"probe", "draws", "verifier"} & set(needs)) for needs in AUDITS[audit].needs.values())


def told(result: Result) -> dict[str, Any]:
    """A result without its evidence; the claim only where it is not ok."""
    return {
        "status": STATUS[result.severity] if result.ran else "not run",
        "findings": [
            {
                "status": STATUS[finding.severity],
                "value": short(finding.value),
                "interval": finding.interval and [short(end) for end in finding.interval],
                **({"claim": finding.claim[:120]} if STATUS[finding.severity] != "ok" else {}),
            }
            for finding in result.findings
        ],
    }


def short(value: float | None) -> float | None:
    """Five digits."""
    return None if value is None else float(f"{value:.5g}")


def solve_rate(reader: RunReader, stage: str) -> float | None:
    """The share of correct rollouts in the evaluation that ends a stage."""
    found = final_evaluation(reader, stage)
    return None if found is None else short(float((found[1].correct == 1).mean()))


def stored(cells: Sequence[Cell]) -> list[Mapping[str, Any]]:
    """The cells that are done."""
    return [json.loads(cell.place.read_text(encoding="utf-8")) for cell in cells if cell.place.exists()]


def clopper_pearson(hits: int, total: int) -> tuple[float, float]:
    """The exact 95 % interval of a share (Clopper and Pearson 1934); 0 to 1 without a trial.

    >>> [round(end, 4) for end in clopper_pearson(0, 60)], [round(end, 4) for end in clopper_pearson(6, 6)]
    ([0.0, 0.0596], [0.5407, 1.0])
    """
    if total == 0:
        return 0.0, 1.0
    found = stats.binomtest(hits, total).proportion_ci(0.95, "exact")
    return float(found.low), float(found.high)


def counted(results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """How many of some runs an audit calls sick, or watches; those of which it could say nothing do not count."""
    known = [result["status"] for result in results if result["status"] != "not run" and result["findings"]]
    sick = sum(status == "sick" for status in known)
    return {
        "sick": sick,
        "watch": sum(status == "watch" for status in known),
        "runs": len(known),
        "interval": [short(end) for end in clopper_pearson(sick, len(known))],
    }


def table_rows(panel: Panel, documents: Documents) -> list[dict[str, Any]]:
    """One row for each patient, by dose and after a cure; with the first of an audit all healthy runs."""
    rows = []
    for patient in panel.patients:
        audit = audit_of(patient)
        mine = [cell["stages"] for cell in documents if cell["patient"] == patient]
        row: dict[str, Any] = {"audit": patient}
        for stage in (*panel.doses, *panel.cures):
            row[stage] = counted([stages[stage][audit] for stages in mine if stage in stages])
        twins = [cell["stages"].get(stage, {}) for cell in documents for stage in panel.controls]
        # Cells from before an audit was made know nothing of it; a second patient does not count them again.
        row["healthy"] = counted([found[audit] for found in twins if audit in found and patient == audit])
        rows.append(row)
    return rows


def value_rows(panel: Panel, documents: Documents) -> list[dict[str, Any]]:
    """For each patient and stage: solve rates, and the values of its own audit's findings, means over seeds."""
    rows = []
    for patient in panel.patients:
        audit, mine = audit_of(patient), [cell for cell in documents if cell["patient"] == patient]
        for stage in dict.fromkeys(name for cell in mine for name in cell["stages"]):
            found = [cell["stages"][stage][audit]["findings"] for cell in mine if stage in cell["stages"]]
            width = min((len(each) for each in found), default=0)
            values = [[each[place]["value"] for each in found] for place in range(width)]
            row = {
                "patient": patient,
                "stage": stage,
                "seeds": len(found),
                "values": [averaged(column) for column in values],
            }
            rows.append(row | {"solved": averaged([cell["solved"].get(stage) for cell in mine])})
    return rows


def averaged(values: Sequence[float | None]) -> dict[str, Any] | None:
    """The mean of those that are known, with Student's interval."""
    known = [value for value in values if value is not None]
    return mean_interval(known) if known else None


def flagged(panel: Panel, documents: Documents) -> list[str]:
    """Every healthy run that an audit calls sick, with what it says."""
    return [
        f"{cell['patient']} {cell['seed']} {stage}: {audit}: {finding.get('claim', '')}"
        for cell in documents
        for stage in panel.controls
        for audit, result in cell["stages"].get(stage, {}).items()
        for finding in result["findings"]
        if finding["status"] == "sick"
    ]


def print_tables(panel: Panel, documents: Documents) -> None:
    """Markdown."""
    heads = [*panel.doses, *panel.cures, "healthy"]
    print("| audit | " + " | ".join(f"{name}: sick (watch) of runs [95 %]" for name in heads) + " |")
    print("|" + "---|" * (len(heads) + 1))
    for row in table_rows(panel, documents):
        print(f"| `{row['audit']}` | " + " | ".join(shown(row[name]) for name in heads) + " |")
    print("\n| patient | stage | seeds | solved | values of its audit |\n|---|---|---|---|---|")
    for row in value_rows(panel, documents):
        values = ", ".join(in_short(value) for value in row["values"])
        print(f"| {row['patient']} | {row['stage']} | {row['seeds']} | {in_short(row['solved'])} | {values} |")
    alarms = flagged(panel, documents)
    print(f"\nHealthy runs that were called sick: {len(alarms)}")
    for line in alarms:
        print(f"- {line}")


def shown(count: Mapping[str, Any]) -> str:
    if not count["runs"]:
        return "-"
    low, high = count["interval"]
    return f"{count['sick']} ({count['watch']}) of {count['runs']} [{low:.2f}, {high:.2f}]"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["run", "table"])
    parser.add_argument("--budget", type=float, default=60.0, help="minutes")
    parser.add_argument("--jobs", type=int, default=1, help="cells at a time")
    parser.add_argument("--tuning", action="store_true", help="the tuning seeds, not the reported ones")
    parser.add_argument("--only", default="", help="patients, with commas between")
    parser.add_argument("--runs", type=Path, default=Path("runs/audit-panel"), help="where unfinished runs lie")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    panel = read_panel(EXPERIMENT)
    only = [name for name in asked.only.split(",") if name]
    cells = [cell for cell in panel.cells(tuning=asked.tuning) if not only or cell.arm in only]
    if asked.what == "run":
        run_panel(panel, cells, asked.runs, jobs=asked.jobs, budget=60 * asked.budget)
    documents = stored(cells)
    if asked.json:
        rows = {"table": table_rows(panel, documents), "values": value_rows(panel, documents)}
        print(json.dumps({"cells": str(CELLS / "audit-panel"), **rows}, indent=1))
    else:
        print_tables(panel, documents)
    return 0


if __name__ == "__main__":
    sys.exit(main())
