"""Solvable sets of RL and SFT on chained look-ups and on the control: a table from the cells of `solvable`.

    python benchmarks/cells.py run benchmarks/experiments/solvable.toml [--budget MINUTES]
    python benchmarks/solvable.py [--json]

Solvable: solved at least once in the samples of the last evaluation (arXiv 2604.14877).  Each stage against the base of
its own run, on the same problems; seeds are pooled for the exact McNemar test, and the interval of pass@k is Student's
over seeds, 95 %.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from cells import CELLS, mean_interval, read_experiment, shown, stored

from forkpoint.audits.coverage import pass_at_k
from forkpoint.theory.intervals import mcnemar_exact

EXPERIMENT = CELLS.parent / "experiments" / "solvable.toml"
BASE, TEACHERS = "base", ("able", "expert")
KS = (1, 8, 64)


def rows_of(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row for each arm and stage: pass@k over seeds, problems gained and lost against the base of the run."""
    found: dict[tuple[str, str], list[tuple[np.ndarray, np.ndarray, np.ndarray]]] = {}
    for record in records:
        tries = {stage["stage"]: np.array(stage["tries"]) for stage in record["stages"]}
        for name, (samples, correct) in tries.items():
            if name not in TEACHERS:
                found.setdefault((record["arm"], name), []).append((samples, correct, tries[BASE][1]))
    rows = []
    for (arm, stage), seeds in found.items():
        gained = sum(int(((now > 0) & (before == 0)).sum()) for _, now, before in seeds)
        lost = sum(int(((now == 0) & (before > 0)).sum()) for _, now, before in seeds)
        passes = {
            f"pass@{k}": mean_interval([float(pass_at_k(samples, now, k).mean()) for samples, now, _ in seeds])
            for k in KS
        }
        rows.append(
            {"arm": arm, "stage": stage, "seeds": len(seeds), **passes, "gained": gained, "lost": lost,
             "p": mcnemar_exact(gained, lost)}
        )  # fmt: skip
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experiment", type=Path, default=EXPERIMENT)
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    rows = rows_of(list(stored(read_experiment(asked.experiment)[0])))
    if asked.json:
        print(json.dumps(rows, indent=1))
        return 0
    heads = ["base", "stage", "seeds", *(f"pass@{k}" for k in KS), "gained", "lost", "p"]
    print("| " + " | ".join(heads) + " |\n|" + "---|" * len(heads))
    for row in rows:
        told = row["stage"] != BASE
        parts = [row["arm"], row["stage"], str(row["seeds"]), *(shown(row[f"pass@{k}"]) for k in KS)]
        parts += [str(row["gained"]), str(row["lost"]), f"{row['p']:.2g}"] if told else ["", "", ""]
        print("| " + " | ".join(parts) + " |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
