"""A process that runs the stages of one run as they become ready, until none is left to it.

The database is the queue: a ready stage is claimed in one transaction, the one that most other stages wait for first.
"""

import ctypes
import os
import signal
import sys
import time
from pathlib import Path
from types import FrameType

from forkpoint.assembly import Assembly
from forkpoint.cli.output import print_error
from forkpoint.config import Recipe, load_recipe
from forkpoint.config.recipe import sources
from forkpoint.errors import ForkpointError, StoreError
from forkpoint.store import RunReader, RunWriter, StageStatus

POLL_SECONDS = 0.2
PR_SET_PDEATHSIG = 1
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
EXIT_FAILED = 2
EXIT_STOPPED = 130
EXIT_TERMINATED = 143


class Stopping:
    """Whether a signal asked for the end, or the process that started this one is gone."""

    def __init__(self, parent: int) -> None:
        self.code = 0
        self._parent = parent
        if sys.platform == "linux":
            # Otherwise a resume could start while the workers of a killed run still write.
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL))

    def listen(self) -> "Stopping":
        """Takes SIGINT, SIGTERM and SIGHUP; a second one ends the process at once."""
        for number in SIGNALS:
            signal.signal(number, self._take)
        # They were held back until somebody listens.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        return self

    def _take(self, number: int, _frame: FrameType | None) -> None:
        if self.code:
            os._exit(self.code)
        self.code = EXIT_STOPPED if number == signal.SIGINT else EXIT_TERMINATED

    def __call__(self) -> bool:
        return bool(self.code) or os.getppid() != self._parent


def descendants(recipe: Recipe) -> dict[str, int]:
    """How many stages wait for each, directly or not."""
    waiting: dict[str, set[str]] = {stage.name: set() for stage in recipe.stage}
    for stage in reversed(recipe.stage):
        for source in sources(stage):
            waiting[source] |= {stage.name} | waiting[stage.name]
    return {name: len(others) for name, others in waiting.items()}


def work(assembly: Assembly, stop: Stopping) -> int:
    """Runs stages until all are done, one failed, or a stop was asked for; the exit code.

    What the user can fix is recorded with the stage, and printed by the process that started this one.
    """
    from forkpoint.training.stage import run_stage

    assembly.keep_files()
    ranks = descendants(assembly.recipe)
    with RunWriter.open(assembly.run) as writer, RunReader(assembly.run) as reader:
        while not stop():
            status = {stage.name: stage.status for stage in reader.stages()}
            if StageStatus.FAILED in status.values() or StageStatus.STOPPED in status.values():
                return stop.code
            waiting = [stage for stage in assembly.recipe.stage if status[stage.name] is StageStatus.WAITING]
            if not waiting:
                return stop.code
            ready = [stage for stage in waiting if all(status[name] is StageStatus.DONE for name in sources(stage))]
            ready.sort(key=lambda stage: -ranks[stage.name])
            name = next((stage.name for stage in ready if writer.claim_stage(stage.name)), None)
            if name is None:
                time.sleep(POLL_SECONDS)
                continue
            try:
                run_stage(assembly.stage_context(name, writer, stop))
            except ForkpointError as error:
                if not _recorded(writer, name, str(error)):
                    raise
                return EXIT_FAILED
            except BaseException as error:
                _recorded(writer, name, f"{type(error).__name__}: {error}")
                raise
    return stop.code


def _recorded(writer: RunWriter, stage: str, message: str) -> bool:
    """Whether the store could take why a stage failed: it may be full or damaged itself."""
    try:
        writer.finish_stage(stage, status=StageStatus.FAILED, message=message[:1000])
    except StoreError:
        return False
    return True


def main(arguments: list[str]) -> int:
    """`RUN ORIGIN PARENT`: works on the run in a folder, whose recipe was written in the folder ORIGIN.

    PARENT is the process that started this one; when it is gone, so is the reason to go on.
    """
    run, origin = Path(arguments[0]), Path(arguments[1])
    stop = Stopping(int(arguments[2])).listen()
    sys.path.append(str(Path.cwd()))
    recipe = load_recipe(run / "recipe.toml")
    import torch

    torch.set_num_threads(recipe.threads)
    try:
        return work(Assembly(recipe=recipe, origin=origin, run=run), stop)
    except ForkpointError as error:
        print_error(str(error))
        return EXIT_FAILED


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
