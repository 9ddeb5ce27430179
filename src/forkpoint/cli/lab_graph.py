"""What the commands of `forkpoint lab` ask about: a graph, a policy on it, and how both are said in JSON."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from forkpoint.cli.options import Json
from forkpoint.cli.output import print_json, print_table, visible
from forkpoint.errors import TaskError, unknown_name
from forkpoint.theory.chains import check_horizon, hit_within
from forkpoint.theory.classes import NAMED, ClassPolicy
from forkpoint.theory.graphs import PathStar
from forkpoint.theory.horizon import table_hit_within
from forkpoint.theory.solving import LARGEST, HittingTime, hitting_time
from forkpoint.theory.tables import TablePolicy, branch_order, policy_from_text, solve_table

PAPER = (15, 15, 5)
"""Branches, depth and lanes of the paper's figures 3 and 4."""
MAX_BRANCHES = 1_000_000
MOST_TIMES = 10_000_000
"""The longest `--within` and `--horizon`: chains are walked step by step."""

Many = Parameter(negative="", show_default=False)
Fork = Literal["frozen", "trained"]


@Parameter(name="*")
@dataclass(frozen=True, slots=True, kw_only=True)
class GraphOptions:
    """The graph; without any option that of the paper, 15 branches of depth 15 with 5 lanes.

    Parameters
    ----------
    branches
        Branches of the graph (W); without it as many as `--depth` or `--lanes` are given.
    depth
        Diamonds of a branch (K); once, or once for each branch.
    lanes
        Parallel edges of a diamond (L); once, or once for each branch.
    """

    branches: int | None = None
    depth: Annotated[tuple[int, ...], Many] = ()
    lanes: Annotated[tuple[int, ...], Many] = ()

    @property
    def given(self) -> bool:
        """Whether any of them was given."""
        return self.branches is not None or bool(self.depth) or bool(self.lanes)

    def graph(self) -> PathStar:
        """The graph.

        Raises `TaskError` for a graph without a branch, a diamond or a lane, or when the counts disagree.
        """
        longest = max(len(self.depth), len(self.lanes))
        count = self.branches if self.branches is not None else longest if longest > 1 else PAPER[0]
        if not 1 <= count <= MAX_BRANCHES:
            raise TaskError(f"--branches {count}: the graph needs 1 to {MAX_BRANCHES} branches.")
        depths = _each("--depth", self.depth or PAPER[1:2], count)
        return PathStar(depths=depths, lanes=_each("--lanes", self.lanes or PAPER[2:], count))


def _each(option: str, values: tuple[int, ...], count: int) -> tuple[int, ...]:
    if min(values) < 1:
        raise TaskError(f"{option} {min(values)}: every branch needs at least 1.")
    if len(values) not in (1, count):
        raise TaskError(f"{option} is given {len(values)} times for {count} branches: give it once, or {count} times.")
    return values * count if len(values) == 1 else values


@Parameter(name="*")
@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyOptions:
    """The policy and what is asked of it.

    Parameters
    ----------
    policy
        `uniform` (pretrained), `golden` (converged SFT on golden paths), `optimal` (all four probabilities at 1, where
        RLVR ends if branches are equal), a policy file of the lab, or a checkpoint of a tabular policy.
    fork
        Whether the rows that choose a branch stay uniform, as in the paper, or are trained too.
    horizon
        The walk stops after so many steps; without it, never.
    within
        Print P(hit within T steps); may be repeated.
    target
        The branch that holds the target, from 0; without it the mean over all branches.
    """

    policy: str = "uniform"
    fork: Fork = "frozen"
    horizon: int | None = None
    within: Annotated[tuple[int, ...], Many] = ()
    target: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Walker:
    """A policy on a graph, in the form that answers fastest."""

    graph: PathStar
    name: str
    fork: str
    tied: ClassPolicy[float] | None
    """Where four probabilities for each depth say it all, the fork frozen."""
    table: TablePolicy | None
    """A policy from a file.  Neither: the optimum with a trained fork, a fixed circular order of branches."""

    def time(self, target: int | None) -> HittingTime:
        """The mean hitting time in steps.  Raises `TaskError` for a target outside, or one that may be missed."""
        if self.tied is not None:
            return hitting_time(self.tied, target=target)
        if target is not None:
            self.graph.check_target(target)
        times = self._circular() if self.table is None else solve_table(self.table).steps.tolist()
        return _time(sum(times) / len(times) if target is None else times[target])

    def within(self, horizons: Sequence[int], target: int | None) -> tuple[float, ...]:
        """P(hit within T steps) for each T."""
        for horizon in horizons:
            if check_horizon(horizon) > MOST_TIMES:
                raise TaskError(f"{horizon} steps are too many to walk one by one: at most {MOST_TIMES}.")
        if self.tied is not None:
            return hit_within(self.tied, horizons, target=target)
        if self.table is not None:
            return table_hit_within(self.table, horizons, target=target)
        times = self._circular() if target is None else self._circular()[self.graph.check_target(target) :][:1]
        return tuple(sum(time <= horizon for time in times) / len(times) for horizon in horizons)

    def shortest(self, target: int | None) -> int | float:
        """Steps of a golden path, the mean over branches without a target."""
        branches = range(self.graph.branches) if target is None else [target]
        lengths = [self.graph.shortest_path(branch) for branch in branches]
        mean = sum(lengths) / len(lengths)
        return int(mean) if mean.is_integer() else mean

    def _circular(self) -> list[float]:
        """The steps to each target of a walk that tries all branches in a fixed order, every one to its leaf."""
        times, before = [0.0] * self.graph.branches, 0.0
        for branch in branch_order(self.graph):
            times[branch] = before + self.graph.shortest_path(branch)
            before += 4 * self.graph.depths[branch] + 2
        return times


def _time(steps: float) -> HittingTime:
    import math

    return HittingTime(steps=steps if steps < LARGEST else None, log_steps=math.log(steps))


def walker_of(graph: PathStar, options: PolicyOptions) -> Walker:
    """The policy by its name, or from its file.

    Raises `TaskError` for a name that is not known, or a file that holds no policy of this graph.
    """
    name = options.policy
    if name in NAMED:
        tied = NAMED[name](graph) if (name, options.fork) != ("optimal", "trained") else None
        return Walker(graph=graph, name=name, fork=options.fork, tied=tied, table=None)
    path = Path(name)
    if path.is_dir():
        from forkpoint.report.lab import read_checkpoint

        found = read_checkpoint(path)
        if found.graph != graph:
            text = json.dumps({"format": "forkpoint-lab-policy", "graph": found.graph.digest,
                               "depths": found.graph.depths, "lanes": found.graph.lanes})  # fmt: skip
            policy_from_text(graph, text)
        return Walker(graph=graph, name=name, fork=options.fork, tied=None, table=found)
    if not path.is_file():
        raise TaskError(unknown_name("--policy", name, NAMED) + " A file of that name does not exist.")
    try:
        table = policy_from_text(graph, path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise TaskError(f"--policy {name}: the file cannot be read: {error}.") from None
    return Walker(graph=graph, name=name, fork=options.fork, tied=None, table=table)


def graph_json(graph: PathStar) -> dict[str, Any]:
    """Branches, depth and lanes; lists where branches differ."""
    return {"branches": graph.branches, "depth": one_or_all(graph.depths), "lanes": one_or_all(graph.lanes)}


def one_or_all(values: tuple[int, ...]) -> int | list[int]:
    """One number where all are equal, else the list."""
    return values[0] if len(set(values)) == 1 else list(values)


def graph_text(graph: PathStar) -> str:
    """The graph in one line.

    >>> graph_text(PathStar.regular(branches=6, depth=6, lanes=5))
    'W = 6 branches, K = 6 diamonds, L = 5 lanes, 445 directed edges'
    """
    depth, lanes = (_short(one_or_all(values)) for values in (graph.depths, graph.lanes))
    return (
        f"W = {graph.branches} branches, K = {depth} diamonds, L = {lanes} lanes, {graph.state_count:,} directed edges"
    )


def _short(value: int | list[int]) -> str:
    if isinstance(value, int):
        return str(value)
    return ", ".join(map(str, value)) if len(value) <= 12 else f"{min(value)} to {max(value)}"


def steps_text(steps: float | None, log_steps: float) -> str:
    """A number of steps; as a power of ten where a float cannot hold it.

    >>> steps_text(900.0, 6.8), steps_text(None, 2302.585092994046)
    ('900', '10^1000.0')
    """
    if steps is None:
        return f"10^{log_steps / 2.302585092994046:.1f}"
    return f"{steps:.12g}"


def show(value: dict[str, Any], rows: Sequence[tuple[str, str]], *, title: str, as_json: Json) -> None:
    """Prints the answer of a command: JSON, or a table of names and values under a title."""
    if as_json:
        print_json(value)
        return
    print_table(["", ""], [[visible(name), text] for name, text in rows], title=title)
