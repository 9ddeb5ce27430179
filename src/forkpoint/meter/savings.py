"""What learning curves say of a rule: tokens to the target against the uniform arm, and the head-room that it took.

A seed that missed the target is censored at the budget, also where it collapsed long before: it counts as that much,
and is counted beside the number, so a ratio with unsolved seeds above the line is a bound from below.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from forkpoint.meter.cells import curve_of
from forkpoint.meter.learning import UNIFORM, headroom, to_target
from forkpoint.meter.oracle import RULE as ORACLE
from forkpoint.seeds import Key

COSTS = ("generated_tokens", "equivalents", "seconds")
DRAWS = 2000
Spent = Mapping[int, float]
"""What each seed had spent at the target, or would have at the end of its budget."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Saving:
    """An arm at one rate over its seeds."""

    arm: str
    learning_rate: float
    seeds: int
    solved: int
    """Seeds that met the target."""
    collapsed: int
    costs: Mapping[str, float]
    """Median of each of `COSTS` at the target; unsolved seeds as if they had gone on to the end of the budget."""
    ratio: float | None
    """Generated tokens of the reference over the arm's: geometric means over the seeds of both."""
    interval: tuple[float, float] | None
    """Of the ratio, 95 %, by a bootstrap over seeds; None for fewer than three seeds."""
    headroom: float | None
    """log(uniform / rule) / log(uniform / oracle); None without head-room."""


def savings(documents: Sequence[Mapping[str, Any]], *, key: Key, reference: str = UNIFORM) -> list[Saving]:
    """One row for each arm and rate, each against the arms `reference` and oracle at their own best rate.

    The best rate solves most seeds, and among those needs the fewest tokens.  The rows keep the order of the documents.
    """
    arms: dict[tuple[str, float], list[Mapping[str, Any]]] = {}
    for document in documents:
        arm = document["arm"]
        arms.setdefault((arm["name"], arm["learning_rate"]), []).append(document)
    spent = {label: spent_by_seed(found, "generated_tokens") for label, found in arms.items()}
    solved = {label: sum(found["end"] == "target" for found in mine) for label, mine in arms.items()}
    best = _best(reference, spent, solved), _best(ORACLE, spent, solved)
    return [_saving(label, found, spent, solved, best, key) for label, found in arms.items()]


def best_rates(rows: Sequence[Saving]) -> dict[str, Saving]:
    """The row of each arm at its best rate."""
    found: dict[str, Saving] = {}
    for row in rows:
        other = found.get(row.arm)
        rank = (-row.solved / row.seeds, row.costs["generated_tokens"])
        if other is None or rank < (-other.solved / other.seeds, other.costs["generated_tokens"]):
            found[row.arm] = row
    return found


def _best(name: str, spent: Mapping[tuple[str, float], Spent], solved: Mapping[tuple[str, float], int]) -> Spent | None:
    labels = [label for label in spent if label[0] == name]
    if not labels:
        return None
    rank = {label: (-solved[label] / len(spent[label]), _middle(spent[label])) for label in labels}
    return spent[min(labels, key=rank.__getitem__)]


def spent_by_seed(documents: Sequence[Mapping[str, Any]], cost: str) -> dict[int, float]:
    """The cost of each seed's curve at the target; of an unsolved one as if it had gone on to the end of its budget."""
    found = {}
    for document in documents:
        curve, race = curve_of(document), document["race"]
        reached, last = to_target(curve, race["target"], cost), curve.points[-1]
        if reached is None:
            reached = getattr(last, cost) * max(1.0, race["max_tokens"] / max(1, last.generated_tokens))
        found[int(document["seed"])] = float(reached)
    return found


def _middle(spent: Spent) -> float:
    return float(np.median(list(spent.values())))


def _saving(
    label: tuple[str, float],
    documents: Sequence[Mapping[str, Any]],
    spent: Mapping[tuple[str, float], Spent],
    solved: Mapping[tuple[str, float], int],
    best: tuple[Spent | None, Spent | None],
    key: Key,
) -> Saving:
    (uniform, oracle), mine = best, spent[label]
    ratio, interval, share = None, None, None
    if uniform is not None:
        ratio, interval = ratio_of_costs(uniform, mine, key.child(*map(str, label)))
        if oracle is not None:
            share = headroom(*(float(np.exp(np.mean(_logs(each)))) for each in (uniform, mine, oracle)))
    return Saving(
        arm=label[0], learning_rate=label[1], seeds=len(mine), solved=solved[label],
        collapsed=sum(document["end"] == "collapse" for document in documents),
        costs={cost: _middle(spent_by_seed(documents, cost)) for cost in COSTS},
        ratio=ratio, interval=interval, headroom=share,
    )  # fmt: skip


def _logs(spent: Spent) -> NDArray[np.float64]:
    return np.log(np.maximum(list(spent.values()), 1.0))


def ratio_of_costs(first: Spent, second: Spent, key: Key) -> tuple[float, tuple[float, float] | None]:
    """The geometric mean of first over second, and its 95 % interval by a bootstrap; seeds that both have are pairs."""
    both = sorted(set(first) & set(second))
    if len(both) >= 3:
        logs = _logs({seed: first[seed] for seed in both}) - _logs({seed: second[seed] for seed in both})
        draws = key.generator().integers(len(both), size=(DRAWS, len(both)))
        low, high = np.quantile(logs[draws].mean(axis=1), [0.025, 0.975])
        return float(np.exp(logs.mean())), (float(np.exp(low)), float(np.exp(high)))
    return float(np.exp(_logs(first).mean() - _logs(second).mean())), None
