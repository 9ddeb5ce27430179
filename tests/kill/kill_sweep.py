"""Kills and full disks at every fault point and at random instants; every resumed run must equal the unbroken one.

`make test-kill` runs all of it; the tests run a part.
"""

import argparse
import random
import shutil
import sqlite3
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from kill_runs import Ended, attempt, everything, in_child, recorded_visits, say, swept_recipes, warm

from forkpoint.config import Recipe
from forkpoint.files import fault_from_text
from forkpoint.store import latest_checkpoint, stage_folder

KILLED = Ended(code=-9, message="")
DONE = Ended(code=0, message="")
MOST_KILLS = 4
"""Random kills of one run, one after the other."""
LEAVES_MOST = "publish.before-rename"
"""A kill here leaves a whole folder that was not renamed yet."""


@dataclass(slots=True, kw_only=True)
class Tally:
    """What was broken, and what did not come out as it should."""

    counts: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)

    def take(self, kind: str, what: str, flaws: Sequence[str]) -> None:
        """One case, and how the run that went on differs from the unbroken one."""
        self.counts[kind] += 1
        if flaws:
            self.failures.append(f"{kind} {what}: {', '.join(flaws)}")


@dataclass(slots=True, kw_only=True)
class Sweep:
    """One recipe, its unbroken run, and a place for broken ones."""

    name: str
    recipe: Recipe
    place: Path
    tally: Tally
    whole: dict[str, object] = field(default_factory=dict)
    seconds: float = 0.0
    """How long the unbroken run takes."""
    visits: list[tuple[str, int]] = field(default_factory=list)
    """Fault points that it reaches."""
    resumed: set[str] = field(default_factory=set)
    """Fault points that resumes of broken runs reached."""

    def prepare(self) -> "Sweep":
        """Makes the unbroken run, twice: once for the clock, once to note its fault points."""
        self.place.mkdir(parents=True)
        began = time.perf_counter()
        assert in_child(lambda: attempt(self.place / "whole", self.recipe)) == DONE
        self.seconds = time.perf_counter() - began
        self.whole = everything(self.place / "whole", self.recipe)
        self.visits = recorded_visits(self.place / "noted", self.recipe, self.place / "visits.log")
        assert self.flaws(self.place / "noted") == []
        return self

    def flaws(self, folder: Path) -> list[str]:
        """The parts in which a finished run differs from the unbroken one."""
        try:
            found = everything(folder, self.recipe)
        except (AssertionError, OSError, sqlite3.Error) as error:
            return [f"{type(error).__name__}: {error}"]
        return sorted(key for key in found.keys() | self.whole.keys() if found.get(key) != self.whole.get(key))

    def go_on(self, folder: Path) -> list[str]:
        """Resumes a broken run to its end, compares it and removes it."""
        ended = in_child(lambda: attempt(folder, self.recipe))
        flaws = self.flaws(folder) if ended == DONE else [f"the resume ended with {ended.code}: {ended.message}"]
        shutil.rmtree(folder)
        return flaws

    def break_at(self, folder: Path, fault: str) -> Ended:
        """Begins a run, or goes on with one, under a fault."""
        return in_child(lambda: attempt(folder, self.recipe), hook=fault_from_text(fault))

    def kill_at(
        self, point: str, visit: int, *, start: Path | None = None, kind: str = "kills at fault points"
    ) -> None:
        """One kill at one visit, of a new run or of a copy of `start`."""
        folder = self.place / "run"
        if start is not None:
            shutil.copytree(start, folder)
        ended = self.break_at(folder, f"{point}#{visit}:kill")
        flaws = self.go_on(folder) if ended == KILLED else [f"not killed there: {ended}"]
        self.tally.take(kind, f"{self.name} {point}#{visit}", flaws)

    def fill_at(self, point: str, visit: int) -> None:
        """A disk that is full at one visit: one line that says so, and a resume when there is room again."""
        folder = self.place / "run"
        ended = self.break_at(folder, f"{point}#{visit}:enospc")
        told = ended.message or stage_message(folder)
        flaws = [] if ended.code == 2 and is_full_disk(told) else [f"ended with {ended.code}: {told!r}"]
        if folder.exists():
            flaws += self.go_on(folder)
        self.tally.take("full disks", f"{self.name} {point}#{visit}", flaws)

    def broken_run(self, fault: str) -> Path:
        """A run that a kill left."""
        folder = self.place / "broken"
        shutil.rmtree(folder, ignore_errors=True)
        assert self.break_at(folder, fault) == KILLED, fault
        return folder

    def kill_resumes(self, start: Path, every: int) -> None:
        """Kills while a broken run is resumed, at every fault point that its resume reaches."""
        shutil.copytree(start, self.place / "again")
        visits = recorded_visits(self.place / "again", self.recipe, self.place / "again.log")
        self.tally.take("resumes of a broken run", f"{self.name} {start.name}", self.flaws(self.place / "again"))
        shutil.rmtree(self.place / "again")
        (self.place / "again.log").unlink()
        self.resumed |= {point for point, _ in visits}
        for point, visit in visits[::every]:
            self.kill_at(point, visit, start=start, kind="kills while resuming")

    def kill_at_random(self, chooser: random.Random, kills: int) -> None:
        """SIGKILL at random instants, up to four times in a row, until there were so many kills."""
        done = 0
        while done < kills:
            folder, instants = self.place / "run", []
            for _ in range(min(chooser.randint(1, MOST_KILLS), kills - done)):
                instants.append(chooser.uniform(0.0, self.seconds))
                if in_child(lambda to=folder: attempt(to, self.recipe), kill_after=instants[-1]) != KILLED:
                    instants.pop()
            done += len(instants)
            flaws = self.go_on(folder) if folder.exists() else []
            shown = ", ".join(f"{instant:.4f} s" for instant in instants)
            self.tally.take("runs killed at random", f"{self.name} {shown}", flaws)
            self.tally.counts["kills at random instants"] += len(instants)


def is_full_disk(message: str) -> bool:
    """Whether a message is one line that names a path and the full disk."""
    return "\n" not in message and "/" in message and "No space left on device" in message


def stage_message(folder: Path) -> str:
    """What the store says of the stage that failed."""
    with sqlite3.connect(folder / "run.db") as connection:
        row = connection.execute("SELECT message FROM stages WHERE status = 'failed'").fetchone()
    return row[0] if row else ""


def damage_newest(sweep: Sweep, folder: Path) -> None:
    """Cuts the newest checkpoint short, so that the resume goes back one and saves over it."""
    stage = sweep.recipe.stage[-1].name
    newest = latest_checkpoint(stage_folder(folder, stage))
    assert newest is not None
    model = newest / "model.safetensors"
    model.write_bytes(model.read_bytes()[:-1])


def sweeps(place: Path, tally: Tally, chosen: dict[str, Recipe]) -> Iterator[Sweep]:
    """One for each recipe, prepared."""
    for name, recipe in chosen.items():
        yield Sweep(name=name, recipe=recipe, place=place / name, tally=tally).prepare()


def broken_runs(sweep: Sweep) -> Iterable[Path]:
    """Broken runs whose resume has the most to do: unfinished folders, and a damaged checkpoint that is replaced."""
    renames = [visit for point, visit in sweep.visits if point == LEAVES_MOST]
    yield sweep.broken_run(f"{LEAVES_MOST}#{renames[len(renames) // 2]}:kill")
    last = max(visit for point, visit in sweep.visits if point == "evaluation.before-commit")
    if sweep.recipe.stage[-1].keep_checkpoints > 1:
        folder = sweep.broken_run(f"evaluation.before-commit#{last}:kill")
        damage_newest(sweep, folder)
        yield folder


def sweep_all(place: Path, chosen: dict[str, Recipe], *, kills: int, every: int, seed: int) -> Tally:
    """Everything, or one in `every`; `kills` at random instants for each recipe."""
    tally = Tally()
    for sweep in sweeps(place, tally, chosen):
        points = {point for point, _ in sweep.visits}
        say(f"{sweep.name}: {len(sweep.visits)} visits of {len(points)} fault points, {sweep.seconds:.2f} s unbroken")
        for point, visit in sweep.visits[::every]:
            sweep.kill_at(point, visit)
        for point, visit in sweep.visits[::every]:
            sweep.fill_at(point, visit)
        for start in broken_runs(sweep):
            sweep.kill_resumes(start, every)
        sweep.kill_at_random(random.Random(f"{seed} {sweep.name}"), kills)
        named = len(points | sweep.resumed)
        say(f"{sweep.name}: {named} fault points with those of resumes")
        say("  so far " + ", ".join(f"{count} {kind}" for kind, count in tally.counts.items()))
    return tally


def main() -> int:
    """Prints what was broken and whether every run came out the same; exits 1 when one did not."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=120, help="kills at random instants, for each recipe")
    parser.add_argument("--every", type=int, default=1, help="one in so many visits of fault points")
    parser.add_argument("--seed", type=int, default=0, help="of the random instants")
    known = swept_recipes()
    parser.add_argument("--only", choices=sorted(known), help="one recipe instead of all")
    chosen = parser.parse_args()
    swept = known if chosen.only is None else {chosen.only: known[chosen.only]}
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        warm(Path(folder) / "warm", swept)
        tally = sweep_all(Path(folder), swept, kills=chosen.kills, every=chosen.every, seed=chosen.seed)
    for kind, count in tally.counts.items():
        say(f"{count:6d} {kind}")
    for failure in tally.failures:
        say(f"FAILED {failure}")
    result = f"{len(tally.failures)} differ" if tally.failures else "every resumed run equals the unbroken one"
    say(f"{result} ({time.perf_counter() - began:.0f} s)")
    return 1 if tally.failures else 0


if __name__ == "__main__":
    sys.exit(main())
