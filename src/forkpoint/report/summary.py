"""What a run is and how it stands, as plain data: the JSON twin of the page."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from forkpoint.config import Recipe
from forkpoint.config.policies import FolderPolicy, TabularPolicy
from forkpoint.config.recipe import ForksStage, TextStage
from forkpoint.report.arms import Arm, arms, arms_json, compare_with_parents, resolved_recipe
from forkpoint.report.curves import learning_curves, length_histograms
from forkpoint.store import RunReader, StageRecord, StageStatus


def run_summary(reader: RunReader) -> dict[str, Any]:
    """Every number of the page: name, status, identity, stages, arms, comparisons, curves, lengths, events.

    Values that are not finite are None, so that any JSON reader can take it.
    """
    with reader.snapshot():
        found, stages, recipe = arms(reader), reader.stages(), resolved_recipe(reader.folder)
        tree = {
            "name": reader.name,
            "created": reader.created,
            "status": run_status(stages)[0],
            "seed": recipe.seed if recipe else None,
            "identity": reader.identity,
            "recipe": recipe.model_dump(mode="json", by_alias=True, exclude_none=True) if recipe else None,
            "stages": [asdict(stage) for stage in stages],
            **arms_json(found),
            "against_parent": {name: asdict(gap) for name, gap in compare_with_parents(reader, found).items()},
            "curves": [asdict(curve) for curve in learning_curves(reader)],
            "lengths": [asdict(lengths) for lengths in length_histograms(reader, found)],
            "events": [asdict(event) for event in reader.events()],
        }
    plain: dict[str, Any] = _plain(tree)
    return plain


def _plain(value: object) -> Any:  # noqa: ANN401
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, str) else value


def run_status(stages: Sequence[StageRecord]) -> tuple[str, str]:
    """One word for the run, and a sentence for the reader; the sentence is empty for a run that is done."""
    by_status = {status: [stage for stage in stages if stage.status is status] for status in StageStatus}
    done = f"{len(by_status[StageStatus.DONE])} of {len(stages)} stages are done"
    if by_status[StageStatus.FAILED]:
        return "failed", f"This run failed in {_names(by_status[StageStatus.FAILED])}; {done}."
    if by_status[StageStatus.RUNNING]:
        names = _names(by_status[StageStatus.RUNNING])
        return "running", f"This run is in progress in {names}, or was killed there; {done}."
    if by_status[StageStatus.STOPPED]:
        return "stopped", f"This run was stopped in {_names(by_status[StageStatus.STOPPED])}; {done}."
    if not stages:
        return "empty", "This run has not begun: it has no stage yet."
    if by_status[StageStatus.WAITING]:
        return "waiting", f"This run waits to go on; {done}."
    return "done", ""


def _names(stages: Sequence[StageRecord]) -> str:
    return ", ".join(stage.name for stage in stages)


def duration(seconds: float) -> str:
    """Seconds in the largest unit that fits.

    >>> duration(9.3), duration(372.0), duration(7260.0)
    ('9.3 s', '6 min 12 s', '2 h 1 min')
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def share_text(share: float) -> str:
    """A share in percent.

    >>> share_text(0.9345)
    '93.5 %'
    """
    return f"{100 * share:.1f} %"


def moment(seconds: float) -> str:
    """A time of the clock in UTC.

    >>> moment(0.0)
    '1970-01-01 00:00:00 UTC'
    """
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def facts(reader: RunReader, recipe: Recipe | None) -> list[tuple[str, str]]:
    """What the run is made of: task, policy, evaluation, seed, when, on which versions and machine."""
    rows = []
    if recipe is not None:
        rows += [
            ("task", _settings(recipe.task)),
            ("policy", _policy(recipe)),
            ("evaluation", _evaluation(recipe)),
            ("seed", str(recipe.seed)),
        ]
    rows.append(("created", moment(reader.created)))
    return [*rows, *((str(name), _value(value)) for name, value in reader.identity.items())]


def about(recipe: Recipe | None) -> str:
    """What the run trains on what, in one line; empty without a recipe."""
    return "" if recipe is None else f"{_settings(recipe.task)} · {_policy(recipe)} · seed {recipe.seed}"


def _settings(table: Mapping[str, Any]) -> str:
    settings = ", ".join(f"{name} = {_value(value)}" for name, value in table.items() if name != "name")
    return f"{table.get('name', '?')}" + (f" ({settings})" if settings else "")


def _policy(recipe: Recipe) -> str:
    policy = recipe.policy
    if isinstance(policy, FolderPolicy):
        return f"{policy.path}, {policy.dtype} on {policy.device}" + (", LoRA" if policy.lora else "")
    if isinstance(policy, TabularPolicy):
        return f"{policy.architecture} of moves, from {policy.start}, {policy.dtype} on {policy.device}"
    return f"tiny {policy.shape}, {policy.layers} layers of width {policy.width}, {policy.dtype} on {policy.device}"


def _evaluation(recipe: Recipe) -> str:
    plan = recipe.evaluation
    samples = "1 sample" if plan.samples == 1 else f"{plan.samples} samples"
    return f"{plan.final_problems} held-out problems at the end, {samples} each, temperature {plan.temperature:g}"


def _value(value: object) -> str:
    return value if isinstance(value, str) else str(value)


def stage_data(recipe: Recipe | None, stage: str) -> str:
    """What a stage learns from: a corpus, rollouts of another stage, or its own."""
    if recipe is None or stage not in {known.name for known in recipe.stage}:
        return ""
    mine = recipe.get_stage(stage)
    if isinstance(mine, TextStage):
        edited = "" if mine.review is None else f" ({mine.review.edit})"
        mixed = "" if mine.mix is None else f", {mine.mix.share:.0%} {mine.mix.data}"
        return f"{mine.data}{edited}{mixed}" if mine.data else "nothing"
    if isinstance(mine, ForksStage):
        return f"rollouts of {mine.from_}: {mine.problems} problems, {mine.group_size} rollouts each, sampled once"
    return f"its own rollouts: {mine.problems_per_update} problems, {mine.group_size} rollouts each"


def headline(found: Sequence[Arm]) -> str:
    """The main result in one sentence; empty with fewer than two arms."""
    if len(found) < 2:
        return ""
    best, worst = max(found, key=lambda arm: arm.solve_rate), min(found, key=lambda arm: arm.solve_rate)
    if best.solve_rate == worst.solve_rate:
        return f"All arms solve {share_text(best.solve_rate)} of the held-out problems."
    return (
        f"{best.name} solves {share_text(best.solve_rate)} of the held-out problems, "
        f"{worst.name} {share_text(worst.solve_rate)}."
    )
