"""What `forkpoint meter --predict` says of each variant of the credit map beforehand, beside what training showed.

    python benchmarks/predictions.py run [--variants C,A] [--budget MINUTES] [--cache DIR]    # the curves' decoders
    python benchmarks/predictions.py table [--json]

Each prediction leaves one small JSON in `benchmarks/cells/credit-map/predictions/`; finished ones are skipped.  What
training showed is tokens of `leave_one_out` over those of `counterfactual`, each at its own best rate, reported seeds.
"""

import argparse
import json
import sys
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import credit_map
import numpy as np
import torch
from cells import make_parts, read_parts
from scipy import stats

from forkpoint.meter.learning import UNIFORM
from forkpoint.meter.predict import predict
from forkpoint.meter.savings import best_rates

FOLDER = credit_map.CELLS / "predictions"
DENSE = "counterfactual"
GROUPS = 96


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """A variant, foretold and trained; ratios of generated tokens, intervals 95 %."""

    variant: str
    foretold: float | None
    between: tuple[float, float] | None
    overlap: float | None
    noise: float | None
    """Noise-to-signal power of the uniform rule over the dense one's, all directions alike."""
    dependence: float | None
    """Nats."""
    measured: float
    interval: tuple[float, float] | None
    unsolved: int
    """Seeds of the uniform arm that missed the target, or of the dense one less than 0: the ratio is a bound then."""


def foretell(name: str, cache: Path) -> dict[str, Any]:
    """The prediction for a variant."""
    return asdict(predict(credit_map.make_subject(name, cache), groups=GROUPS))


def pairs(names: list[str], cache: Path) -> list[Pair]:
    """The variants that have both a prediction and curves of both arms."""
    experiment, found = credit_map.read_experiment(), []
    for name in names:
        rows = best_rates(credit_map.rows_of(name, credit_map.seeds_of(experiment, name), cache))
        told = dict(read_parts(FOLDER, [name])).get(name)
        if told is None or UNIFORM not in rows or DENSE not in rows:
            continue
        uniform, dense = rows[UNIFORM], rows[DENSE]
        missed = uniform.seeds - uniform.solved or dense.solved - dense.seeds
        noise = told["noise"]
        noises = noise["uniform"] / noise["dense"] if noise["uniform"] and noise["dense"] else None
        between = told["headroom"]["interval"]
        found.append(
            Pair(
                variant=name, foretold=told["headroom"]["value"], between=tuple(between) if between else None,
                overlap=told["overlap"]["value"], noise=noises,
                dependence=told["dependence"]["nats"] if told["dependence"] else None,
                measured=dense.ratio, interval=dense.interval, unsolved=missed,
            )
        )  # fmt: skip
    return found


def rank_correlation(found: list[Pair], name: str) -> tuple[float, float] | None:
    """Spearman's rho between a number that was foretold and the measured ratio, and its two-sided permutation p."""
    both = [(getattr(pair, name), pair.measured) for pair in found if getattr(pair, name) is not None]
    if len(both) < 4:
        return None
    x, y = map(np.array, zip(*both, strict=True))
    test = stats.permutation_test(
        (x,), lambda order: stats.spearmanr(order, y).statistic, permutation_type="pairings", n_resamples=9999,
        rng=np.random.default_rng(np.random.Philox(0)),
    )  # fmt: skip
    return float(test.statistic), float(test.pvalue)


def print_table(found: list[Pair]) -> None:
    print("| variant | foretold head-room | overlap | dependence, nats | uniform / counterfactual in training |")
    print("|" + "---|" * 5)
    for pair in found:
        bound = {True: "≥ ", False: ""}[pair.unsolved > 0] if pair.unsolved >= 0 else "≤ "
        measured = f"{bound}{pair.measured:.2f}" + _between(pair.interval)
        parts = [pair.variant, _shown(pair.foretold) + _between(pair.between), _shown(pair.overlap)]
        print("| " + " | ".join([*parts, _shown(pair.dependence), measured]) + " |")
    for name in ("foretold", "overlap", "noise"):
        rank = rank_correlation(found, name)
        if rank is not None:
            print(f"Spearman of {name} with what training showed: {rank[0]:.2f}, permutation p {rank[1]:.3f}")


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def _between(ends: tuple[float, float] | None) -> str:
    return "" if ends is None or None in ends else f" [{ends[0]:.2f}, {ends[1]:.2f}]"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["run", "table"])
    parser.add_argument("--variants", help="names with commas between; default: all that compare both rules")
    parser.add_argument("--budget", type=float, default=60.0, help="minutes after which no variant is begun")
    parser.add_argument("--cache", type=Path, default=Path("runs/decoders"), help="where pretrained decoders lie")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    table = credit_map.read_experiment()["variants"]
    both = [name for name, variant in table.items() if {UNIFORM, DENSE} <= set(variant["arms"])]
    names = asked.variants.split(",") if asked.variants else both
    if asked.what == "run":
        torch.set_num_threads(1)
        make_parts(FOLDER, {name: partial(foretell, name, asked.cache) for name in names}, budget=60 * asked.budget)
        return 0
    found = pairs(names, asked.cache)
    if asked.json:
        ranks = {name: rank_correlation(found, name) for name in ("foretold", "overlap", "noise")}
        print(json.dumps({"variants": [asdict(pair) for pair in found], "spearman": ranks}, indent=1))
    else:
        print_table(found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
