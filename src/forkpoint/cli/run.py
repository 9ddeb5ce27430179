"""`forkpoint run`: a recipe from its first update to the report."""

import contextlib
import difflib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from forkpoint.assembly import run_identity
from forkpoint.cli.output import print_arms, print_json
from forkpoint.config import Recipe, load_recipe, recipe_to_toml
from forkpoint.errors import RecipeError, StoreError
from forkpoint.files import RunLock, write_text_atomic
from forkpoint.store import DATABASE, RunReader, RunWriter, StageStatus, identity_changes


def run(
    recipe: Path,
    *,
    runs: Path = Path("runs"),
    set_: Annotated[tuple[str, ...], Parameter(name="--set", negative="")] = (),
    name: str | None = None,
    dry_run: Annotated[bool, Parameter(negative="")] = False,
    resume: Annotated[bool, Parameter(negative="")] = False,
    resume_if_exists: Annotated[bool, Parameter(negative="")] = False,
    allow_env_change: Annotated[bool, Parameter(negative="")] = False,
    json_: Annotated[bool, Parameter(name="--json", negative="")] = False,
) -> int:
    """Run a recipe with live progress; ends with a table of the arms and the path of the report.

    Parameters
    ----------
    recipe
        A recipe in TOML.
    runs
        The folder that holds run folders.
    set_
        key=value: change the recipe, such as `--set stage.rlvr.updates=10`; may be repeated.
    name
        Name of the run folder; the recipe's own without it.
    dry_run
        Check everything and start nothing.
    resume
        Continue a run that was stopped or killed.
    resume_if_exists
        Start the run, continue it, or show it when it is finished.
    allow_env_change
        Resume although versions or the machine changed; the run is then no longer exact.
    json_
        Print the result as JSON.
    """
    overrides = [*set_, *([f"name={json.dumps(name)}"] if name else [])]
    parsed = load_recipe(recipe, overrides)
    folder, origin = runs / parsed.name, recipe.resolve().parent
    exists = (folder / DATABASE).is_file()
    if exists and not (resume or resume_if_exists) and not dry_run:
        raise StoreError(f"{folder} holds a run already: continue it with --resume, or give another with --name.")
    if resume and not exists:
        raise StoreError(f"{folder} holds no run to resume.")
    if exists and not dry_run:
        _check_same(parsed, folder)
    if not exists or dry_run:
        _check(parsed, origin, folder)
    if dry_run:
        _print_plan(parsed, as_json=json_)
        return 0
    with RunLock(folder):
        _prepare(parsed, folder, exists=exists, allow_change=allow_env_change)
        code = _work(parsed, folder, origin, quiet=json_)
    return _finish(folder, recipe, code, as_json=json_)


def _check(recipe: Recipe, origin: Path, folder: Path) -> None:
    from forkpoint.assembly.checks import check_recipe

    check_recipe(recipe, origin, folder)


def _check_same(recipe: Recipe, folder: Path) -> None:
    """Raises RecipeError with the difference when the folder's recipe is another."""
    path = folder / "recipe.toml"
    old, new = path.read_text(encoding="utf-8"), recipe_to_toml(recipe)
    if load_recipe(path) == recipe:
        return
    lines = difflib.unified_diff(
        old.splitlines(), new.splitlines(), "the run's recipe", "this recipe", lineterm="", n=0
    )
    print("\n".join(lines), file=sys.stderr)
    raise RecipeError(f"the recipe differs from the one in {folder}; a resume needs the same.")


def _prepare(recipe: Recipe, folder: Path, *, exists: bool, allow_change: bool) -> None:
    """Makes the run folder, or makes it ready to go on."""
    identity = run_identity(recipe)
    if not exists:
        write_text_atomic(folder / "recipe.toml", recipe_to_toml(recipe))
        with RunWriter.create(folder, name=recipe.name, identity=identity) as writer:
            for stage in recipe.stage:
                writer.add_stage(stage.name, kind=stage.kind, parent=stage.from_, updates_total=stage.updates)
        return
    with RunReader(folder) as reader:
        changes = identity_changes(reader.identity, identity)
    if changes and not allow_change:
        listed = "; ".join(f"{key}: {before} then, {now} now" for key, (before, now) in changes.items())
        raise StoreError(f"this resume would not be exact ({listed}); --allow-env-change continues all the same.")
    with RunWriter.open(folder) as writer:
        # A kill between the folder and its first rows leaves stages unannounced.
        for stage in recipe.stage:
            writer.add_stage(stage.name, kind=stage.kind, parent=stage.from_, updates_total=stage.updates)
        if changes:
            writer.event("environment", "resumed under a changed environment: not exact")
        writer.requeue()


def _work(recipe: Recipe, folder: Path, origin: Path, *, quiet: bool) -> int:
    """Runs worker processes until the run is done, stopped or failed; the exit code."""
    from forkpoint.cli.display import Display

    with RunReader(folder) as reader:
        if all(stage.status is StageStatus.DONE for stage in reader.stages()):
            return 0
        environment = {**os.environ, "OMP_NUM_THREADS": str(recipe.threads), "MKL_NUM_THREADS": str(recipe.threads),
                       "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}  # fmt: skip
        command = [sys.executable, "-m", "forkpoint.cli.worker", str(folder), str(origin)]
        count = min(recipe.processes, len(recipe.stage))
        # Their own process group: a Ctrl-C reaches this process alone, which passes it on once.
        workers = [subprocess.Popen(command, env=environment, start_new_session=True) for _ in range(count)]
        with Display(reader, quiet=quiet) as display, _forwarding(workers) as signals:
            while any(worker.poll() is None for worker in workers):
                display.refresh()
                time.sleep(0.1)
            display.refresh(last=True)
    if signals:
        return 128 + signals[0] if signals[0] != signal.SIGHUP else 143
    return max((abs(worker.returncode) for worker in workers), default=0)


@contextlib.contextmanager
def _forwarding(workers: Sequence["subprocess.Popen[bytes]"]) -> Any:  # noqa: ANN401
    """Passes signals on to the workers; yields the list of those received."""
    received: list[int] = []

    def forward(number: int, _frame: object) -> None:
        received.append(number)
        if len(received) == 1:
            print("\nstopping after this update; once more ends at once", file=sys.stderr, flush=True)
        for worker in workers:
            if worker.poll() is None:
                worker.send_signal(number)

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.signal(number, forward) for number in numbers]
    try:
        yield received
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
        for worker in workers:
            if worker.poll() is None:
                worker.terminate()


def _finish(folder: Path, path: Path, code: int, *, as_json: bool) -> int:
    """Writes the report, prints the table, and says how to go on when the run is not done."""
    from forkpoint.report import arms, arms_json, write_report

    report = write_report(folder)
    with RunReader(folder) as reader:
        stages = reader.stages()
        results = arms(reader)
    failed = [stage for stage in stages if stage.status is StageStatus.FAILED]
    done = all(stage.status is StageStatus.DONE for stage in stages)
    if as_json:
        status = {stage.name: str(stage.status) for stage in stages}
        print_json({"run": str(folder), "report": str(report), "done": done, "stages": status, **arms_json(results)})
    else:
        print_arms(results)
        print(f"report: {report}")
    for stage in failed:
        print(f"error: stage '{stage.name}' failed: {stage.message}", file=sys.stderr)
    if not done and not failed:
        again = f"forkpoint run {path} --runs {folder.parent} --resume"
        print(f"stopped before the end; continue with: {again}", file=sys.stderr)
    if failed:
        return code or 1
    return code if not done else 0


def _print_plan(recipe: Recipe, *, as_json: bool) -> None:
    from forkpoint.cli.output import print_plan

    print_plan(recipe, as_json=as_json)
