"""Template collapse that RL grows: what the reasoning still holds of its prompt, and how much entropy is left.

    python benchmarks/template_growth.py run --seeds 0,1,2 [--runs DIR] [--set key=value ...]
    python benchmarks/template_growth.py table [--seeds 0,1,2]

Runs recipes/patients/template-collapse-grown.toml and asks the last model of each stage, on fresh rollouts of 64
held-out problems: I(X; Z), H(Z | X) and retrieval as `template_collapse` estimates them.  A JSON for each seed lands in
benchmarks/cells/template-growth; the table is made from these alone.  Intervals: Student's over seeds, 95 %.
"""

import argparse
import hashlib
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from audit_panel import RECIPES, solve_rate
from cells import CELLS, ENTRY, in_short, mean_interval, provenance

from forkpoint.assembly.subject import stage_subject
from forkpoint.audits.template_collapse import collapse, cross_scores
from forkpoint.files import make_folder, write_text_atomic
from forkpoint.store import RunReader

RECIPE = RECIPES / "template-collapse-grown.toml"
PROBLEMS, SAMPLES = 64, 2
COLUMNS = ("solved", "information", "cap", "entropy", "entropy_per_token", "retrieval", "chance", "finished")


def measured(run: Path, stage: str) -> dict[str, Any]:
    """What the last model of a stage says; `finished` is the share of rollouts that have a chain with an end."""
    subject = stage_subject(run, stage, problems=PROBLEMS, samples=SAMPLES)
    scores = cross_scores(subject.groups, subject, subject.key, pairs=PROBLEMS)
    with RunReader(run) as reader:
        solved = solve_rate(reader, stage)
    lead = getattr(subject.task, "answer_lead", "")
    texts = [rollout.text for group in subject.groups for rollout in group.rollouts]
    finished = float(np.mean([lead in text for text in texts]))
    told = {} if scores is None else asdict(collapse(scores, subject.key.child("interval")))
    return {"stage": stage, "solved": solved, "finished": finished, **told, "texts": texts[:3]}


def run_seed(seed: int, runs: Path, settings: Sequence[str]) -> None:
    """One run and its JSON; a cell that is there is left as it is."""
    place = CELLS / "template-growth" / f"{seed}.json"
    if place.exists():
        return
    changes = [part for one in (f"seed={seed}", "doctor.before=false", *settings) for part in ("--set", one)]
    folder = runs / str(seed)
    command = [sys.executable, "-c", ENTRY, "run", str(RECIPE), "--runs", str(folder), "--resume-if-exists", *changes]
    subprocess.run(command, check=True)
    run = folder / "template-collapse-grown"
    with RunReader(run) as reader:
        names = [stage.name for stage in reader.stages()]
    record = {
        "seed": seed, "settings": list(settings), "recipe_sha256": hashlib.sha256(RECIPE.read_bytes()).hexdigest(),
        **provenance(),
        "stages": [measured(run, name) for name in names],
    }  # fmt: skip
    make_folder(place.parent)
    write_text_atomic(place, json.dumps(record, indent=1) + "\n")


def print_table(seeds: Sequence[int]) -> None:
    """Markdown: each stage, means over seeds with intervals."""
    places = [CELLS / "template-growth" / f"{seed}.json" for seed in seeds]
    records = [json.loads(place.read_text(encoding="utf-8")) for place in places if place.exists()]
    print("| stage | seeds | " + " | ".join(COLUMNS) + " |\n|" + "---|" * (len(COLUMNS) + 2))
    for stage in dict.fromkeys(each["stage"] for record in records for each in record["stages"]):
        rows = [each for record in records for each in record["stages"] if each["stage"] == stage]
        found = [[row[column] for row in rows if row.get(column) is not None] for column in COLUMNS]
        cells = [in_short(mean_interval(values) if values else None) for values in found]
        print(f"| {stage} | {len(rows)} | " + " | ".join(cells) + " |")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["run", "table"])
    parser.add_argument("--seeds", default="0,1,2", help="with commas between; 100 is for tuning")
    parser.add_argument("--runs", type=Path, default=Path("runs/template-growth"), help="where runs lie")
    parser.add_argument("--set", action="append", default=[], help="key=value of the recipe; for tuning")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    seeds = [int(seed) for seed in asked.seeds.split(",")]
    if asked.what == "run":
        for seed in seeds:
            run_seed(seed, asked.runs, asked.set)
    print_table(seeds)
    return 0


if __name__ == "__main__":
    sys.exit(main())
