"""Generated tokens to a solve rate, from the cells of an experiment whose arms are chains of stages.

    python benchmarks/tokens_to_target.py benchmarks/experiments/postmortem.toml [--json]

Of an experiment with several arms, such as rates, each arm has a block of its own.

An experiment names `ends`, the last stage of each chain, the first of them the reference, and a `target`.  A chain's
tokens are those of all its stages, what reviews sampled included; an RL stage spends evenly over its updates, a text
stage before its first.  The target counts at the first of two evaluations in a row that meet it.  A chain that missed
it counts at its last evaluation: of a ratio with such seeds above the line that is a bound from below, with such seeds
below the line one from above.
"""

import argparse
import json
import sys
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import cells
import numpy as np

from forkpoint.meter.savings import ratio_of_costs
from forkpoint.seeds import Key


def chain_curve(stages: Mapping[str, Mapping[str, Any]], end: str) -> Iterator[tuple[float, float]]:
    """Tokens and solve rate at every evaluation from the first sampling stage of a chain on.

    The evaluation that ends a stage counts, unless the last on its way was of the same weights.
    """
    spent = 0.0
    for stage in reversed(list(cells.ancestry(dict(stages), end))):
        tokens, updates = stage["sampled_tokens"], stage["updates"]
        gradual = stage["kind"] == "rl"
        for update, right, problems in stage["curve"]:
            # Before its first update a stage has the weights that the one before it ended with.
            if (tokens or spent or stage["stage"] == end) and (update or not spent):
                yield spent + (tokens * update / updates if gradual and updates else tokens), right / problems
        ended = bool(stage["curve"]) and stage["curve"][-1][0] == updates
        if not ended and stage["problems"] and (tokens or spent or stage["stage"] == end):
            yield spent + tokens, stage["correct"] / stage["problems"]
        spent += tokens


def reached(curve: Sequence[tuple[float, float]], target: float) -> float | None:
    """Tokens at the first of two evaluations in a row that meet the target; None where there are none.

    >>> reached([(0, 0.1), (10, 0.95), (20, 0.8), (30, 0.9), (40, 0.91)], 0.9)
    30
    """
    for (tokens, first), (_, second) in pairwise(curve):
        if first >= target and second >= target:
            return tokens
    return None


def rows(records: Sequence[dict[str, Any]], ends: Sequence[str], target: float) -> list[dict[str, Any]]:
    """One row for each chain: seeds, how many met the target, median tokens, ratio to the first chain's."""
    spent: dict[str, dict[int, float]] = {}
    met: dict[str, int] = {}
    last: dict[str, list[float]] = {}
    for record in records:
        stages = {stage["stage"]: stage for stage in record["stages"]}
        for end in ends:
            curve = list(chain_curve(stages, end))
            found = reached(curve, target)
            met[end] = met.get(end, 0) + (found is not None)
            spent.setdefault(end, {})[record["seed"]] = curve[-1][0] if found is None else found
            last.setdefault(end, []).append(curve[-1][1])
    table = []
    for end in ends:
        ratio, interval = ratio_of_costs(spent[ends[0]], spent[end], Key.root(0).child("ratio", end))
        row = {"chain": end, "seeds": len(spent[end]), "met": met[end], "last": float(np.mean(last[end]))}
        row |= {"tokens": float(np.median(list(spent[end].values()))), "ratio": ratio, "interval": interval}
        table.append(row)
    return table


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment", type=Path)
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    plan = tomllib.loads(asked.experiment.read_text(encoding="utf-8"))
    records = list(cells.stored(cells.read_experiment(asked.experiment)[0]))
    found = []
    for arm in dict.fromkeys(record["arm"] for record in records):
        mine = [record for record in records if record["arm"] == arm]
        found += [{"arm": arm, **row} for row in rows(mine, plan["ends"], plan["target"])]
    if asked.json:
        print(json.dumps(found, indent=1))
        return 0
    print(f"| arm | chain | met {plan['target']:.0%} | thousand tokens | last solve rate | {plan['ends'][0]} / chain |")
    print("|" + "---|" * 6)
    for row in found:
        between = "" if row["interval"] is None else " [{:.2f}, {:.2f}]".format(*row["interval"])
        met = f"{row['met']} of {row['seeds']}"
        told = f"{met} | {row['tokens'] / 1000:.0f} | {row['last']:.3f} | {row['ratio']:.2f}{between}"
        print(f"| {row['arm']} | {row['chain']} | {told} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
