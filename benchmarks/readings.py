"""What the meter reads of every credit rule on every variant of `keychain`: a cell for each variant, and one table.

    python benchmarks/readings.py run [--variants A,C] [--budget MINUTES] [--cache DIR]    # minutes for each variant
    python benchmarks/readings.py table [--json]

Each reading leaves one small JSON in `benchmarks/cells/readings/`; those that hold all rules are skipped.
Decoders are those that the curves of `credit_map.py` start with.
"""

import argparse
import json
import sys
import time
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import credit_map
import torch
from cells import make_parts, read_parts

from forkpoint.credit import CREDIT_RULES
from forkpoint.meter.learning import UNIFORM
from forkpoint.meter.reading import Extent, take_reading
from forkpoint.meter.subject import Rule
from forkpoint.meter.truth import Tier

CELLS = credit_map.HERE / "cells" / "readings"
VARIANTS = ("A", "B", "C", "D", "E", "F", "G", "H")
RULES: dict[str, dict[str, Any]] = {
    UNIFORM: {},
    "group_mean_std": {},
    "counterfactual": {"alternatives": 2},
    "critic": {},
    "branch": {"cuts": "every:16", "continuations": 1},
    "tree": {"cuts": "every:16", "continuations": 1},
    "state_group": {},
    "privileged": {},
}
"""With their options.  `privileged` is uniform where its gate stays shut: these decoders were told no answers."""
EXTENT = Extent(
    tier=Tier.MONTE_CARLO, positions=64, continuations=128, batches=6, gradient_problems=2, oracle_continuations=2
)


def read(name: str, cache: Path) -> dict[str, Any]:
    """The reading of a variant."""
    began = time.monotonic()
    rules = [
        Rule(name=rule, give=partial(CREDIT_RULES[rule], **options), critic=rule == "critic")
        for rule, options in RULES.items()
    ]
    found = asdict(take_reading(credit_map.make_subject(name, cache), rules, EXTENT, _told))
    del found["examples"]
    found["extent"]["tier"] = str(EXTENT.tier)
    return {"variant": name, "options": RULES, **found, "seconds": time.monotonic() - began}


def _told(what: str, done: int, total: int) -> None:
    print(f"  {what}: {done}/{total}", flush=True)


def print_table(documents: list[dict[str, Any]]) -> None:
    print("| variant | rule | straw | Pearson | AUROC | bias | noise/signal | over oracle's | tokens |")
    print("|" + "---|" * 9)
    for document in documents:
        for rule in document["rules"]:
            measures, gradient = rule["measures"], rule["gradient"] or {}
            parts = [document["variant"], rule["name"]]
            parts += [_shown(measures.get(name)) for name in ("straw", "pearson", "auroc")]
            parts += [_shown(gradient.get(name)) for name in ("bias", "noise", "over_oracle")]
            print("| " + " | ".join([*parts, f"{rule['cost']['relative']:.1f} x"]) + " |")


def _shown(measured: dict[str, Any] | None) -> str:
    if measured is None or measured["value"] is None:
        return "-"
    ends = ", ".join("-" if end is None else f"{end:.3g}" for end in measured["interval"])
    return f"{measured['value']:.2f} [{ends}]"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["run", "table"])
    parser.add_argument("--variants", help="names with commas between; default: A to H")
    parser.add_argument("--budget", type=float, default=60.0, help="minutes after which no variant is begun")
    parser.add_argument("--cache", type=Path, default=Path("runs/decoders"), help="where pretrained decoders lie")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    names = asked.variants.split(",") if asked.variants else list(VARIANTS)
    if asked.what == "run":
        torch.set_num_threads(1)
        parts = {name: partial(read, name, asked.cache) for name in names}
        make_parts(CELLS, parts, budget=60 * asked.budget, fits=lambda found: found["options"] == RULES)
        return 0
    documents = [found for _, found in read_parts(CELLS, names)]
    if asked.json:
        print(json.dumps(documents, indent=1))
    else:
        print_table(documents)
    return 0


if __name__ == "__main__":
    sys.exit(main())
