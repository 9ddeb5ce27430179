"""The arms of a run side by side: what the evaluation that ended each stage came to."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from forkpoint.config import Recipe, load_recipe
from forkpoint.config.recipe import rollout_budget
from forkpoint.errors import RecipeError
from forkpoint.report.statistics import (
    Difference,
    Interval,
    mean_interval,
    paired_difference,
    ratio_interval,
    restricted,
    share_interval,
)
from forkpoint.seeds import Key
from forkpoint.store import EvaluationArrays, RunReader, StageRecord, StageStatus

FINAL = "final"
"""Name of the evaluation that ends a stage."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """One finished stage.  Shares are numbers from 0 to 1; intervals are 95 %."""

    name: str
    kind: str
    parent: str | None
    solve_rate: float
    """Share of the problems solved within the budget, samples of a problem averaged first."""
    interval: Interval
    moves: float
    """Restricted mean length over all problems: unsolved counted as the budget.  See `unit`."""
    moves_interval: Interval
    left_wrong_branch: float | None
    """Share of the wrong branches that were left again; None where the task has none, or none was entered."""
    left_interval: Interval | None
    problems: int
    """Problems that the verifier could judge."""
    samples: int
    """Samples of them."""
    unjudged: int
    """Samples that the verifier could not judge; they are in no number."""
    budget: int
    """Tokens that a rollout of the evaluation may have."""
    unit: str
    """Of `moves`: `moves` where the task counts them, one token each; else `tokens`."""
    updates: int
    seconds: float
    sampled_tokens: int


def resolved_recipe(run: Path) -> Recipe | None:
    """The recipe in a run folder; None when there is none that can be read."""
    try:
        return load_recipe(run / "recipe.toml")
    except RecipeError:
        return None


def evaluation_budget(recipe: Recipe | None, stage: str) -> int | None:
    """Tokens of a rollout in the evaluations of a stage; None when the recipe does not say."""
    if recipe is None or stage not in {known.name for known in recipe.stage}:
        return None
    return rollout_budget(recipe, recipe.get_stage(stage))


def final_evaluation(reader: RunReader, stage: str) -> tuple[int, EvaluationArrays] | None:
    """The update and the samples of the evaluation that ended a stage; None when there is none."""
    updates = reader.evaluated(stage, FINAL)
    return (updates[-1], reader.evaluations(stage, updates[-1], FINAL)) if updates else None


def problem_means(evaluation: EvaluationArrays, values: NDArray[Any]) -> tuple[list[str], NDArray[np.float64]]:
    """The keys of the problems that could be judged, ascending, and the mean of `values` over each one's samples."""
    keys = np.array(evaluation.problem_keys)[evaluation.known]
    names, places, counts = np.unique(keys, return_inverse=True, return_counts=True)
    sums = np.bincount(places, weights=values[evaluation.known].astype(np.float64), minlength=len(names))
    return [str(name) for name in names], sums / counts


def arms(reader: RunReader) -> list[Arm]:
    """One arm for each stage that is done and was evaluated, in the order of the recipe."""
    recipe, found = resolved_recipe(reader.folder), []
    for stage in reader.stages():
        final = final_evaluation(reader, stage.name) if stage.status is StageStatus.DONE else None
        if final is not None and final[1].known.any():
            found.append((stage, final[1]))
    longest = max((int(evaluation.length.max()) for _, evaluation in found), default=0)
    return [
        _arm(stage, evaluation, evaluation_budget(recipe, stage.name) or longest, _sampled_tokens(reader, stage))
        for stage, evaluation in found
    ]


def _sampled_tokens(reader: RunReader, stage: StageRecord) -> int:
    return int(reader.updates(stage.name)[2].sum())


def _arm(stage: StageRecord, evaluation: EvaluationArrays, budget: int, sampled_tokens: int) -> Arm:
    key = Key.root(0).child("report", stage.name)
    names, shares = problem_means(evaluation, evaluation.correct)
    _, moves = problem_means(evaluation, restricted(evaluation.length.astype(np.float64), evaluation.correct, budget))
    left, left_interval = _left_branches(evaluation, key.child("left"))
    return Arm(
        name=stage.name,
        kind=stage.kind,
        parent=stage.parent,
        solve_rate=float(shares.mean()),
        interval=share_interval(shares, key.child("solved")),
        moves=float(moves.mean()),
        moves_interval=mean_interval(moves, key.child("moves")),
        left_wrong_branch=left,
        left_interval=left_interval,
        problems=len(names),
        samples=int(evaluation.known.sum()),
        unjudged=int((~evaluation.known).sum()),
        budget=budget,
        unit="moves" if "moves" in evaluation.parts else "tokens",
        updates=stage.updates_done,
        seconds=stage.seconds,
        sampled_tokens=sampled_tokens,
    )


def _left_branches(evaluation: EvaluationArrays, key: Key) -> tuple[float | None, Interval | None]:
    if not {"wrong_entered", "wrong_left"} <= set(evaluation.parts):
        return None, None
    _, entered = problem_means(evaluation, np.nan_to_num(evaluation.parts["wrong_entered"]))
    _, left = problem_means(evaluation, np.nan_to_num(evaluation.parts["wrong_left"]))
    if entered.sum() <= 0:
        return None, None
    return float(left.sum() / entered.sum()), ratio_interval(left, entered, key)


def compare_with_parents(reader: RunReader, found: Sequence[Arm]) -> dict[str, Difference]:
    """For each arm whose parent is an arm too: its solve rate minus the parent's, on the problems that both had."""
    solved: dict[str, dict[str, float]] = {}
    for arm in found:
        final = final_evaluation(reader, arm.name)
        if final is not None:
            solved[arm.name] = dict(zip(*problem_means(final[1], final[1].correct), strict=True))
    differences = {}
    for arm in found:
        mine, theirs = solved.get(arm.name, {}), solved.get(arm.parent or "", {})
        shared = sorted(set(mine) & set(theirs))
        if shared:
            key = Key.root(0).child("report", arm.name, "against", str(arm.parent))
            differences[arm.name] = paired_difference(
                [mine[name] for name in shared], [theirs[name] for name in shared], key
            )
    return differences


def arms_json(found: Sequence[Arm]) -> dict[str, Any]:
    """The arms as plain data: `{"arms": [{"name", "solve_rate", "interval", "moves", "left_wrong_branch", ...}]}`."""
    return {"arms": [{name: _plain(value) for name, value in asdict(arm).items()} for arm in found]}


def _plain(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value


def arms_table(found: Sequence[Arm]) -> list[list[str]]:
    """The arms as text: a row of headings, then a row for each arm; units are in the headings."""
    units = sorted({arm.unit for arm in found})
    length = f"mean {' or '.join(units) or 'tokens'}, unsolved = budget"
    headings = ["arm", "solve rate", "95 % interval", length]
    branches = any(arm.left_wrong_branch is not None for arm in found)
    headings += (["wrong branches left"] if branches else []) + ["updates", "seconds"]
    rows = []
    for arm in found:
        row = [arm.name, f"{arm.solve_rate:.3f}", f"{arm.interval[0]:.3f} to {arm.interval[1]:.3f}", f"{arm.moves:.1f}"]
        if branches:
            row.append("-" if arm.left_wrong_branch is None else f"{arm.left_wrong_branch:.3f}")
        rows.append([*row, str(arm.updates), f"{arm.seconds:.0f}"])
    return [headings, *rows]
