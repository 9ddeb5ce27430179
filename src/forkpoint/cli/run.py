"""`forkpoint run`: a recipe from its first update to the report."""

import contextlib
import difflib
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from forkpoint.assembly import run_identity
from forkpoint.cli.options import Flag, Json, Settings
from forkpoint.cli.output import print_arms, print_error, print_json, print_plan, tell, visible
from forkpoint.cli.worker import EXIT_STOPPED, EXIT_TERMINATED, SIGNALS
from forkpoint.config import Recipe, load_recipe, recipe_to_toml
from forkpoint.config.recipe import parent
from forkpoint.errors import StoreError
from forkpoint.files import RunLock, connect_database, remove_temporaries, storage_errors, write_text_atomic
from forkpoint.store import DATABASE, RunReader, RunWriter, StageStatus, identity_changes

if TYPE_CHECKING:
    from forkpoint.assembly.credit_checks import CreditPlan


def run(
    recipe: Path,
    /,
    *,
    runs: Path = Path("runs"),
    set_: Settings = (),
    name: str | None = None,
    dry_run: Flag = False,
    resume: Flag = False,
    resume_if_exists: Flag = False,
    allow_env_change: Flag = False,
    no_doctor: Flag = False,
    json_: Json = False,
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
    no_doctor
        Skip the doctor's checks before the first update.
    json_
        Print the result as JSON.
    """
    set_ = (*set_, "doctor.before=false") if no_doctor else set_
    overrides = [*set_, *([f"name={json.dumps(name)}"] if name is not None else [])]
    parsed = load_recipe(recipe, overrides)
    folder, origin = runs / parsed.name, recipe.resolve().parent
    if dry_run:
        checked = _check(parsed, origin, folder)
        _check_place(folder)
        print_plan(parsed, checked, as_json=json_)
        return 0
    exists = _resumable(folder, asked=resume, allowed=resume or resume_if_exists)
    if not exists:
        _check(parsed, origin, folder)
    with RunLock(folder):
        if _holds_run(folder) != exists:
            raise StoreError(f"{folder} was made by another process just now: continue it with --resume.")
        if exists and not _is_same(parsed, folder):
            return 2
        _prepare(parsed, folder, exists=exists, allow_change=allow_env_change)
        code = _work(parsed, folder, origin, quiet=json_)
    again = resume_command(recipe, runs, name=name, overrides=set_)
    return _finish(folder, again, code, as_json=json_)


def _resumable(folder: Path, *, asked: bool, allowed: bool) -> bool:
    """Whether a folder holds a run; raises StoreError where that is not what was asked for."""
    exists = _holds_run(folder)
    if exists and not allowed:
        raise StoreError(f"{folder} holds a run already: continue it with --resume, or name another with --name.")
    if asked and not exists:
        lost = any((folder / "stages").glob("*/*"))
        why = f": {DATABASE} is missing or empty, and metrics would have a hole" if lost else ""
        raise StoreError(f"{folder} holds no run to resume{why}.")
    return exists


def _check_place(folder: Path) -> None:
    """What a dry run says of the run folder: StoreError where none could be made, a line where a run lies there."""
    place = next(each for each in (folder, *folder.resolve().parents) if each.exists())
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        raise StoreError(f"{folder} cannot be made: {place} is no folder that may be written to.")
    if _holds_run(folder):
        tell(f"{folder} holds a run already: continue it with --resume, or name another with --name.")


def resume_command(recipe: Path, runs: Path, *, name: str | None, overrides: Sequence[str]) -> str:
    """What to type to continue this run, with the program as it can be found from here."""
    program = sys.argv[0] if Path(sys.argv[0]).name == "forkpoint" else "forkpoint"
    found = shutil.which("forkpoint")
    if found is not None and Path(found).resolve() == Path(program).resolve():
        program = "forkpoint"
    named = ["--name", name] if name is not None else []
    changed = [part for override in overrides for part in ("--set", override)]
    return shlex.join([program, "run", str(recipe), "--runs", str(runs), *named, *changed, "--resume"])


def _holds_run(folder: Path) -> bool:
    """Whether a run was begun in a folder; one that was killed while being created counts as none."""
    path = folder / DATABASE
    if not path.is_file():
        return False
    with contextlib.closing(connect_database(path, readonly=True)) as connection, storage_errors(path):
        known = connection.execute("SELECT count(*) FROM sqlite_schema WHERE name = 'meta'").fetchone()[0]
        return bool(known and connection.execute("SELECT count(*) FROM meta").fetchone()[0])


def _check(recipe: Recipe, origin: Path, folder: Path) -> "Mapping[str, CreditPlan]":
    from forkpoint.assembly.checks import check_recipe

    return check_recipe(recipe, origin, folder)


def _is_same(recipe: Recipe, folder: Path) -> bool:
    """Whether the folder's recipe is this one; prints the mistake and then the difference when it is another."""
    before = load_recipe(folder / "recipe.toml")
    if before == recipe:
        return True
    print_error(f"the recipe differs from the one in {folder}; a resume needs the same.")
    old, new = (recipe_to_toml(each).splitlines() for each in (before, recipe))
    lines = difflib.unified_diff(old, new, "the run's recipe", "this recipe", lineterm="", n=0)
    print("\n".join(visible(line) for line in lines), file=sys.stderr)
    return False


def _prepare(recipe: Recipe, folder: Path, *, exists: bool, allow_change: bool) -> None:
    """Makes the run folder, or makes it ready to go on.

    Raises StoreError for checkpoints without the records that belong to them, and under a changed environment.
    """
    identity = run_identity(recipe)
    remove_temporaries(folder)
    if not exists:
        if any((folder / "stages").glob("*/*")):
            raise StoreError(f"{folder} holds checkpoints but no run: {DATABASE} is missing or empty; choose another.")
        write_text_atomic(folder / "recipe.toml", recipe_to_toml(recipe))
        with RunWriter.create(folder, name=recipe.name, identity=identity) as writer:
            _announce(writer, recipe)
        return
    with RunReader(folder) as reader:
        changes = identity_changes(reader.identity, identity)
    if changes and not allow_change:
        listed = "; ".join(f"{key}: {before} then, {now} now" for key, (before, now) in changes.items())
        raise StoreError(f"this resume would not be exact ({listed}); --allow-env-change continues all the same.")
    with RunWriter.open(folder) as writer:
        # A kill between the folder and its first rows leaves stages unannounced.
        _announce(writer, recipe)
        if changes:
            writer.event("environment", "resumed under a changed environment: not exact")
        writer.requeue()


def _announce(writer: RunWriter, recipe: Recipe) -> None:
    for stage in recipe.stage:
        writer.add_stage(stage.name, kind=stage.kind, parent=parent(stage), updates_total=stage.updates)


def _work(recipe: Recipe, folder: Path, origin: Path, *, quiet: bool) -> int:
    """Runs worker processes until the run is done, stopped or failed; the exit code."""
    from forkpoint.cli.display import Display

    with RunReader(folder) as reader:
        before = [(stage.name, stage.status, stage.updates_done) for stage in reader.stages()]
        if all(status is StageStatus.DONE for _, status, _ in before):
            print(f"{folder} is finished: there is nothing left to do.", file=sys.stderr)
            return 0
        count = min(recipe.processes, len(recipe.stage))
        with Display(reader, quiet=quiet) as display, _workers(recipe, folder, origin, count) as (workers, signals):
            lost = False
            while None in (codes := [worker.poll() for worker in workers]):
                if not (lost or signals) and any(code is not None and code < 0 for code in codes):
                    # The others could wait for ever for the stage of a worker that was killed.
                    lost = True
                    _send(workers, signal.SIGTERM)
                if not signals:
                    display.refresh()
                time.sleep(0.1)
            display.refresh(last=True)
    _settle(folder, workers, signals)
    if signals:
        return EXIT_STOPPED if signals[0] == signal.SIGINT else EXIT_TERMINATED
    ended = [worker.wait() for worker in workers]
    with RunReader(folder) as reader:
        after = [(stage.name, stage.status, stage.updates_done) for stage in reader.stages()]
    if after == before and not any(ended):
        left = next(name for name, status, _ in after if status is not StageStatus.DONE)
        raise StoreError(f"{folder}: nothing was done, though stage '{left}' is not; look at its events.")
    return 1 if min(ended) < 0 else max(ended)


@contextlib.contextmanager
def _workers(
    recipe: Recipe, folder: Path, origin: Path, count: int
) -> Iterator[tuple[list["subprocess.Popen[bytes]"], list[int]]]:
    """Starts the workers; yields them and the list of signals that were received and passed on to them."""
    threads = str(recipe.threads)
    environment = {**os.environ, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads,
                   "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}  # fmt: skip
    command = [sys.executable, "-P", "-m", "forkpoint.cli.worker", str(folder), str(origin), str(os.getpid())]
    workers: list[subprocess.Popen[bytes]] = []
    received: list[int] = []

    def forward(number: int, _frame: object) -> None:
        received.append(number)
        if len(received) == 1 and number != signal.SIGHUP:
            print("\nstopping after this update; once more ends at once", file=sys.stderr, flush=True)
        _send(workers, number)

    before = {number: signal.signal(number, forward) for number in SIGNALS}
    try:
        # Signals wait until the workers are there; these hold them back until they listen.
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        # Their own process group: a Ctrl-C reaches this process alone, which passes it on once.
        workers.extend(subprocess.Popen(command, env=environment, start_new_session=True) for _ in range(count))
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        yield workers, received
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        _send(workers, signal.SIGTERM)
        for worker in workers:
            worker.wait()
        for number, handler in before.items():
            signal.signal(number, handler)


def _send(workers: Sequence["subprocess.Popen[bytes]"], number: int) -> None:
    for worker in workers:
        if worker.poll() is None:
            worker.send_signal(number)


def _settle(folder: Path, workers: Sequence["subprocess.Popen[bytes]"], signals: Sequence[int]) -> None:
    """Gives every stage that a dead worker left running the status that it has."""
    with RunReader(folder) as reader:
        left = [stage.name for stage in reader.stages() if stage.status is StageStatus.RUNNING]
    if not left:
        return
    killed = [-worker.returncode for worker in workers if worker.returncode < 0]
    status, message = StageStatus.FAILED, "its process ended before the stage did"
    if signals:
        status, message = StageStatus.STOPPED, "ended at once; a resume continues from its last checkpoint"
    elif killed:
        message = f"its process was killed by signal {killed[0]}"
    with RunWriter.open(folder) as writer:
        for name in left:
            writer.finish_stage(name, status=status, message=message)


def _finish(folder: Path, again: str, code: int, *, as_json: bool) -> int:
    """Writes the report, prints the table, and says how to go on when the run is not done."""
    from forkpoint.report import arms, arms_json, write_report

    with RunReader(folder) as reader:
        stages = reader.stages()
        results = arms(reader)
    failed = [stage for stage in stages if stage.status is StageStatus.FAILED]
    done = all(stage.status is StageStatus.DONE for stage in stages)
    for stage in failed:
        print_error(f"stage '{stage.name}' failed: {stage.message}")
    # What made a stage fail, such as a full disk, may hit the report too; the first is the one to tell.
    report: Path | None = None
    with contextlib.suppress(*([StoreError] if failed else [])):
        report = write_report(folder)
    if as_json:
        status = {stage.name: str(stage.status) for stage in stages}
        print_json(
            {"run": str(folder), "report": report and str(report), "done": done, "stages": status, **arms_json(results)}
        )
    else:
        if results or not failed:
            print_arms(results)
        print(f"report: {report}" if report else "report: none was written")
    if not done:
        how = "when that is mended, continue with" if failed else "stopped before the end; continue with"
        print(f"{how}: {again}", file=sys.stderr)
    return 0 if done else code or 1
