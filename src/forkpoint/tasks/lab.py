"""`lab`: find the hidden leaf of a path-star graph, walking edge by edge (Wei and Kim, arXiv 2606.22938, section 2).

Every directed edge of the graph is one character, lanes apart.  The prompt is the edge from the source to the fork; a
rollout is the walk that follows, one character a move, immediate reversal allowed; entering the leaf of the target ends
it.  The target is uniform over the leaves and never shown, so the prompt is the same for every problem: what can be
learned is how to search.  The exact values are those of `forkpoint.theory`, which counts the prompt's edge too: a
budget of T tokens is a horizon of T + 1 edges.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from forkpoint.errors import TaskError, unknown_name
from forkpoint.records import Outcome, Problem, Rollout, Verdict
from forkpoint.seeds import Key, content_hash
from forkpoint.tasks.protocol import Demonstration
from forkpoint.tasks.settings import TaskSettings
from forkpoint.theory.graphs import EdgeStates, Ids, Kind, Label, PathStar, edge_states

FIRST = 0x4E00
"""The first of 20992 consecutive characters that name directed edges."""
MOST_EDGES = 0x9FFF - FIRST + 1

Count = Annotated[int, Field(ge=1, le=1000)]


class Settings(TaskSettings):
    """The graph of a `lab` problem."""

    branches: Count | None = None
    """Branches (W), 1 to 1000; without it as many as `depth` or `lanes` lists, else 3."""
    depth: Count | tuple[Count, ...] = 3
    """Diamonds of a branch (K), or a list with one number for each branch."""
    lanes: Count | tuple[Count, ...] = 3
    """Parallel edges of a diamond (L), or a list with one number for each branch."""
    fork: Literal["frozen", "trained"] = "frozen"
    """Whether a tabular policy learns which branch to choose; `frozen`, as in the paper, leaves every one as likely."""
    supervised: float = Field(default=0.0, ge=0.0, le=1.0)
    """Share of the backward states that the corpus `corrected` supervises, 0 to 1 (the paper's figure 5)."""
    supervised_seed: int = Field(default=0, ge=0)
    """Draws which ones."""
    walk_length: int = Field(default=64, ge=1, le=100_000)
    """Moves of a walk in the corpus `walks`."""

    @model_validator(mode="after")
    def _lists_agree(self) -> "Settings":
        sizes = {len(value) for value in (self.depth, self.lanes) if isinstance(value, tuple)}
        if self.branches is not None:
            sizes.add(self.branches)
        if len(sizes) > 1:
            raise ValueError("branches, depth and lanes must name the same number of branches")
        if 0 in sizes:
            raise ValueError("the graph needs at least one branch")
        return self

    @property
    def graph(self) -> PathStar:
        """The graph of these settings."""
        lists = [value for value in (self.depth, self.lanes) if isinstance(value, tuple)]
        count = len(lists[0]) if lists else self.branches or 3
        depths = self.depth if isinstance(self.depth, tuple) else (self.depth,) * count
        lanes = self.lanes if isinstance(self.lanes, tuple) else (self.lanes,) * count
        return PathStar(depths=depths, lanes=lanes)


def build(settings: Settings) -> "Lab":
    """The task of these settings."""
    return Lab(settings)


def edge_alphabet(graph: PathStar) -> str:
    """The characters of a graph's edge states, in the order of the states.

    Raises `TaskError` when the graph has more directed edges than there are characters.
    """
    if graph.state_count > MOST_EDGES:
        raise TaskError(f"the graph has {graph.state_count} directed edges: at most {MOST_EDGES} can be named.")
    return "".join(map(chr, range(FIRST, FIRST + graph.state_count)))


def read_states(text: str) -> Ids:
    """The edge states of a walk; characters that name none give numbers outside the graph."""
    points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
    return points.astype(np.int64) - FIRST


def write_states(states: NDArray[np.integer]) -> str:
    """The walk of edge states as text."""
    return (states + FIRST).astype("<u4").tobytes().decode("utf-32-le")


@dataclass(frozen=True)
class Lab:
    """The task; see the module."""

    settings: Settings
    name: str = "lab"
    corpora: tuple[str, ...] = ("golden", "corrected", "moves", "walks")

    def __post_init__(self) -> None:
        edge_alphabet(self.graph)

    @property
    def graph(self) -> PathStar:
        """The graph."""
        return self.settings.graph

    @property
    def states(self) -> EdgeStates:
        """The graph written out as edge states."""
        return edge_states(self.graph)

    @property
    def alphabet(self) -> str:
        """One character for each directed edge."""
        return edge_alphabet(self.graph)

    @cached_property
    def _numbers(self) -> dict[Label, int]:
        return {label: state for state, label in enumerate(self.states.labels)}

    @cached_property
    def _legal(self) -> Ids:
        """The moves of each state [S, most moves], -1 where it has fewer."""
        states = self.states
        places = np.arange(len(states.successors)) - states.offsets[states.sources]
        table = np.full((states.count, int(places.max()) + 1), -1, np.int64)
        table[states.sources, places] = states.successors
        return table

    def problem(self, key: Key, difficulty: float | None = None) -> Problem:
        """A problem with a uniform target; the graph is the same whatever the difficulty.

        An instance number is part of its key, so every target is met in training and in evaluation.
        """
        del difficulty
        draw = key.child("problem").generator()
        target, instance = int(draw.integers(self.graph.branches)), int(draw.integers(2**31))
        return Problem(
            task=self.name,
            key=content_hash(self.name, self.graph.digest, target, instance),
            prompt=write_states(np.array([self.states.start])),
            answer=write_states(self._golden(target, [0] * self.graph.depths[target])),
            difficulty=1.0,
            metadata={"target": target, "instance": instance},
        )

    def _golden(self, target: int, lanes: Sequence[int] | Ids) -> Ids:
        """A shortest walk to a leaf, with the lane of each diamond."""
        walk = []
        for depth, lane in enumerate(lanes, 1):
            walk += [Label(Kind.LEFT_IN, target, depth), Label(Kind.RIGHT_IN, target, depth, lane)]
        walk.append(Label(Kind.LEAF, target, len(lanes) + 1))
        return np.array([self._numbers[label] for label in walk])

    def verify(self, problem: Problem, rollout: Rollout) -> Verdict:
        """Follows the walk; parts: legal moves, wrong leaves entered."""
        target, states = int(problem.metadata["target"]), self.states
        walk = read_states(rollout.text)
        before = np.concatenate([[states.start], walk[:-1]])
        known = (before >= 0) & (before < states.count)
        moves = self._legal[np.where(known, before, 0)]
        faults = np.flatnonzero(~known | (walk < 0) | ~(moves == walk[:, None]).any(axis=1))
        legal = int(faults[0]) if len(faults) else len(walk)
        hits = np.flatnonzero(walk[:legal] == states.targets[target])
        end = int(hits[0]) + 1 if len(hits) else legal
        wrong = int(np.isin(walk[:end], np.delete(states.targets, target)).sum())
        parts = {"moves": float(end), "wrong_leaves": float(wrong)}
        if len(hits) and end == len(walk):
            reason = f"entered leaf {target} after {end} moves"
            return Verdict(outcome=Outcome.CORRECT, correct=True, answer=str(target), reason=reason, parts=parts)
        if len(hits):
            reason = f"goes on after the target, at move {end + 1}"
        elif legal < len(walk):
            reason = f"move {legal + 1} is not an edge"
        else:
            reason = "did not enter the target"
        return Verdict(outcome=Outcome.WRONG, correct=False, reason=reason, parts=parts)

    def solve(self, problem: Problem) -> str:
        """A shortest path."""
        return problem.answer

    def wrong_answers(self, problem: Problem) -> Sequence[str]:
        """No move, a jump, a walk cut short, a walk past the target, a wrong leaf, junk."""
        target = int(problem.metadata["target"])
        others = [branch for branch in range(self.graph.branches) if branch != target][:1]
        leaves = [write_states(self._golden(branch, [0] * self.graph.depths[branch])) for branch in others]
        return ["", problem.answer[-1], problem.answer[:-1], problem.answer + problem.answer[-1], "?", *leaves]

    def stop(self, problem: Problem) -> tuple[str, ...]:
        """The edge into the target's leaf."""
        return (write_states(self.states.targets[[int(problem.metadata["target"])]]),)

    def cut_points(self, problem: Problem, rollout: Rollout) -> Sequence[int]:
        """Every visit to the fork begins a step."""
        del problem
        walk = read_states(rollout.text)
        back = np.array([label.kind is Kind.FORK for label in self.states.labels])
        known = (walk >= 0) & (walk < self.states.count)
        places = np.flatnonzero(known & back[np.where(known, walk, 0)]) + 1
        return [0, *places[places < len(walk)].tolist()]

    def state(self, problem: Problem, transcript: str) -> str:
        """The last edge, all that the legal moves depend on; a walk that an agent remembers may depend on more."""
        return transcript[-1:] or str(problem.prompt)[-1:]

    def corpus(self, name: str, key: Key) -> Iterator[Demonstration]:
        """Texts to imitate; none ends with the end-of-sequence token.

        `golden`: shortest paths to uniform leaves, lanes uniform.  `corrected`: the same, each followed by one right
        move from every supervised backward state of its branch (the paper's figure 5).  `moves`: one uniform legal
        move from a uniform edge, the paper's pretraining (Theorem 1).  `walks`: uniform random walks.
        """
        if name not in self.corpora:
            raise TaskError(unknown_name("data", name, self.corpora))
        for index in itertools.count():
            yield from self._texts(name, key.child(index).generator())

    def _texts(self, name: str, draw: np.random.Generator) -> Iterator[Demonstration]:
        states = self.states
        if name == "moves":
            state = int(draw.integers(states.count))
            yield self._demonstration(state, [draw.choice(states.moves(state))], name)
        elif name == "walks":
            walk = [states.start]
            for uniform in draw.random(self.settings.walk_length):
                moves = states.moves(walk[-1])
                walk.append(moves[int(uniform * len(moves))])
            yield self._demonstration(walk[0], walk[1:], name)
        else:
            target = int(draw.integers(self.graph.branches))
            depth, lanes = self.graph.depths[target], self.graph.lanes[target]
            yield self._demonstration(states.start, self._golden(target, draw.integers(lanes, size=depth)), name)
            if name == "corrected":
                yield from self._corrections(target, draw)

    def _corrections(self, target: int, draw: np.random.Generator) -> Iterator[Demonstration]:
        """One right move from each supervised backward state of a branch, lanes uniform."""
        mask = self.supervised[self.graph.profile_of(target)]
        for row, place in np.argwhere(mask).tolist():
            depth, lane = place + 1, int(draw.integers(self.graph.lanes[target]))
            right, left = Label(Kind.RIGHT_BACK, target, depth), Label(Kind.LEFT_BACK, target, depth, lane)
            home = Label(Kind.RIGHT_BACK, target, depth - 1) if depth > 1 else Label(Kind.FORK, target, 0)
            source, move = (right, left) if row == 0 else (left, home)
            yield self._demonstration(self._numbers[source], [self._numbers[move]], "corrected")

    @property
    def supervised(self) -> tuple[NDArray[np.bool_], ...]:
        """The supervised backward states: for each profile of the graph [2, K], row 0 `R-` and row 1 `L-`."""
        masks = []
        for index, profile in enumerate(self.graph.profiles):
            size = 2 * profile.depth
            order = Key.root(self.settings.supervised_seed).child("supervised", index).generator().permutation(size)
            mask = np.zeros(size, np.bool_)
            mask[order[: round(self.settings.supervised * size)]] = True
            masks.append(mask.reshape(2, profile.depth))
        return tuple(masks)

    def _demonstration(self, first: int, walk: Sequence[int] | Ids, provenance: str) -> Demonstration:
        return Demonstration(
            prompt=write_states(np.array([first])),
            text=write_states(np.asarray(walk)),
            provenance=f"{self.name}:{provenance}",
            ends=False,
        )
