"""`forkpoint doctor`: checks of the learning loop before a GPU-hour is spent."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from forkpoint.cli.options import Flag, Json, Settings
from forkpoint.cli.output import print_error, print_json, print_table, visible
from forkpoint.errors import ForkpointError

if TYPE_CHECKING:
    from forkpoint.assembly.examination import StageExamination
    from forkpoint.doctor import Check
    from forkpoint.integrations.trl import AccumulationGap


def doctor(
    target: Path | None = None,
    /,
    *,
    stage: str | None = None,
    full: Flag = False,
    trl: Path | None = None,
    set_: Settings = (),
    json_: Json = False,
) -> int:
    """Check the learning loop of a recipe, of a run, or of a script for TRL; exits 1 when a check is sick.

    Each check says what it did, the number, the bound, and what to do.  Weights are thrown away, nothing is written.

    Parameters
    ----------
    target
        A recipe in TOML (its stages begin with the policy as built), or a run folder (its last checkpoints).
    stage
        Only this stage.
    full
        More rollouts, more problems, whole distributions.
    trl
        Check another trainer: a script that makes a trainer of TRL.
    set_
        key=value: change the recipe first; may be repeated.
    json_
        Print as JSON.
    """
    if trl is not None:
        return _trl(trl, as_json=json_)
    if target is None:
        raise ForkpointError("name a recipe or a run folder: forkpoint doctor RECIPE, or --trl SCRIPT.")
    found = []
    for examination in _examinations(target, set_, stage=stage, full=full):
        found.append(examination)
        if not json_:
            _print(examination)
    sick = [check for examination in found for check in examination.checks if check.status == "sick"]
    if json_:
        print_json({"target": str(target), "ok": not sick, "stages": [_record(each) for each in found]})
    return 1 if sick else 0


def _examinations(target: Path, settings: Sequence[str], *, stage: str | None, full: bool) -> Any:  # noqa: ANN401
    from forkpoint.config import load_recipe
    from forkpoint.store import DATABASE

    is_run = target.is_dir() and (target / DATABASE).is_file()
    if (target.is_dir() and not is_run) or (not target.exists() and target.suffix != ".toml"):
        raise ForkpointError(f"{target} is neither a recipe nor a run folder.")
    recipe = load_recipe(target / "recipe.toml" if is_run else target, settings)
    import torch

    from forkpoint.assembly.examination import examine_recipe, examine_run

    torch.set_num_threads(recipe.threads)
    if is_run:
        return examine_run(recipe, target, stage=stage, full=full)
    return examine_recipe(recipe, target.resolve().parent, Path("runs") / recipe.name, stage=stage, full=full)


def _record(examination: "StageExamination") -> dict[str, Any]:
    checks = [
        {"name": check.name, "status": check.status, "did": check.did, "value": check.value, "bound": check.bound,
         "remedy": "" if check.ok else check.remedy}
        for check in examination.checks
    ]  # fmt: skip
    return {"stage": examination.stage, "weights": examination.weights, "checks": checks}


def _print(examination: "StageExamination") -> None:
    rows = [[check.name, check.status, _number(check.value), _bound(check), check.did] for check in examination.checks]
    counts = {name: sum(check.status == name for check in examination.checks) for name in ("ok", "watch", "sick")}
    told = ", ".join(f"{count} {name}" for name, count in counts.items() if count or name == "ok")
    title = f"{examination.stage} on {examination.weights}: {told}"
    print_table(["check", "", "number", "bound", "about"], rows, title=title)
    for check in examination.checks:
        if not check.ok:
            print(visible(f"{check.status}: {check.name}. {check.remedy}"))
    print()


def _bound(check: "Check") -> str:
    return "" if check.bound is None else _number(check.bound)


def _number(value: float) -> str:
    """A number in three digits.

    >>> _number(0.0), _number(1.2345e-7), _number(12)
    ('0', '1.23e-07', '12')
    """
    return f"{value:.3g}"


def _trl(script: Path, *, as_json: bool) -> int:
    """Checks the numbers of a trainer of TRL: its gradient must not depend on how a batch is split."""
    try:
        from forkpoint.integrations.trl import check_script
    except ImportError as error:
        raise ForkpointError(f"--trl needs the package trl: {error}.") from None
    gaps = check_script(script)
    failed = [gap for gap in gaps if not gap.passed]
    if as_json:
        print_json({"script": str(script), "ok": not failed, "checks": [gap_record(gap) for gap in gaps]})
        return 1 if failed else 0
    records = [gap_record(gap) for gap in gaps]
    headers = list(records[0]) if records else []
    print_table(headers, [[_cell(value) for value in record.values()] for record in records], title=str(script))
    if failed:
        print_error(f"{len(failed)} of {len(gaps)} gradients depend on how the batch is split")
    return 1 if failed else 0


def gap_record(gap: "AccumulationGap") -> dict[str, str | float | bool]:
    """What is told of one trainer."""
    return {
        "loss_type": gap.loss_type, "gap": gap.gap, "tolerance": gap.tolerance, "cosine": gap.cosine,
        "norm_ratio": gap.norm_ratio, "passed": gap.passed,
    }  # fmt: skip


def _cell(value: object) -> str:
    return _number(value) if isinstance(value, float) else str(value)
