"""`paths`: walk a star of paths from its center to the named leaf, one move at a time, turning back where needed.

A path-star graph (Bachmann and Nagarajan, arXiv 2403.06963; with lanes Wei and Kim, arXiv 2606.22938) has `branches`
branches of `depth` nodes each.  With `lanes` > 1 two neighbouring nodes of a branch are joined through `lanes` parallel
nodes, since text cannot tell parallel edges apart.  Node names are drawn afresh for each problem and edges are
shuffled, so the branch of the goal can only be found by reading the prompt backwards from the goal.

Prompt: `ab ac bd ...|a>d:` (edges, start, goal).  Rollout: one letter a move; reaching the goal ends it.  A goal `|` is
none: the walk is to see every branch node, its score is the share that it saw, and `|` ends it.
"""

import itertools
import string
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

import numpy as np
from pydantic import Field

from forkpoint.errors import TaskError, unknown_name
from forkpoint.records import Outcome, Problem, Rollout, Verdict
from forkpoint.seeds import Key, content_hash
from forkpoint.tasks.protocol import Demonstration
from forkpoint.tasks.settings import TaskSettings

NAMES = string.ascii_lowercase + string.ascii_uppercase + string.digits
PUNCTUATION = " |>:"
MARK = "|"
NOWHERE = "|"
"""The goal of a prompt without one."""


class Settings(TaskSettings):
    """The graph of a `paths` problem."""

    branches: int = Field(default=3, ge=1, le=30)
    """Branches of the star, 1 to 30."""
    depth: int = Field(default=3, ge=1, le=30)
    """Nodes from the center to a leaf, 1 to 30."""
    lanes: int = Field(default=1, ge=1, le=20)
    """Parallel ways between two neighbouring nodes of a branch, 1 to 20."""
    walk_length: int = Field(default=24, ge=1, le=1000)
    """Moves of a walk in the corpus `walks`, 1 to 1000."""
    dead_ends: float = Field(default=1.0, ge=0.0, le=1.0)
    """Share of the texts of the corpus `recoveries` that hold dead ends; the rest are golden."""
    usual: float = Field(default=0.0, ge=0.0, le=1.0)
    """Share of the problems whose goal is behind the first edge at the start that the prompt lists; else anywhere."""
    goal_free: float = Field(default=0.0, ge=0.0, le=1.0)
    """Share of the problems without a goal."""
    marks: bool = False
    """Whether `x|` in a text means that the step to the neighbour x was thought of and dropped: no move is made."""


def build(settings: Settings) -> "Paths":
    """The task of these settings."""
    return Paths(settings)


def count_nodes(branches: int, depth: int, lanes: int) -> int:
    """Nodes of the graph: the center, the branch nodes, and the lane nodes between them."""
    return 1 + branches * (depth + (lanes * (depth - 1) if lanes > 1 else 0))


@dataclass(frozen=True, slots=True)
class Star:
    """A star with integer nodes, 0 the center."""

    edges: tuple[tuple[int, int], ...]
    branch_nodes: tuple[tuple[int, ...], ...]
    """For each branch its nodes by depth, lanes left out; the last is the leaf."""
    branch_of: Mapping[int, int]
    """Branch of every node but the center, lane nodes included."""


def make_star(branches: int, depth: int, lanes: int) -> Star:
    """The path-star graph."""
    edges: list[tuple[int, int]] = []
    branch_nodes: list[tuple[int, ...]] = []
    branch_of: dict[int, int] = {}
    fresh = 1
    for branch in range(branches):
        last, nodes = 0, []
        for level in range(depth):
            middles = range(fresh, fresh + lanes) if level and lanes > 1 else range(fresh, fresh)
            fresh = middles.stop
            node, fresh = fresh, fresh + 1
            for middle in middles:
                edges += [(last, middle), (middle, node)]
                branch_of[middle] = branch
            if not middles:
                edges.append((last, node))
            branch_of[node] = branch
            nodes.append(node)
            last = node
        branch_nodes.append(tuple(nodes))
    return Star(edges=tuple(edges), branch_nodes=tuple(branch_nodes), branch_of=MappingProxyType(branch_of))


@dataclass(frozen=True, slots=True)
class NamedGraph:
    """What a prompt says: who neighbours whom, where to start, where to go."""

    neighbors: Mapping[str, tuple[str, ...]]
    start: str
    goal: str


def read_prompt(prompt: str) -> NamedGraph:
    """The graph of a prompt that this task wrote."""
    edge_text, _, rest = prompt.partition("|")
    neighbors: dict[str, list[str]] = {}
    for edge in edge_text.split(" "):
        first, second = edge[0], edge[1]
        neighbors.setdefault(first, []).append(second)
        neighbors.setdefault(second, []).append(first)
    return NamedGraph(neighbors={name: tuple(near) for name, near in neighbors.items()}, start=rest[0], goal=rest[2])


def shortest_path(graph: NamedGraph, start: str, goal: str) -> str:
    """The moves of a shortest path, by breadth-first search in the order of the edges."""
    parents, frontier = {start: ""}, [start]
    while goal not in parents:
        frontier = [
            _visit(parents, near, node) for node in frontier for near in graph.neighbors[node] if near not in parents
        ]
    moves, node = "", goal
    while node != start:
        moves, node = node + moves, parents[node]
    return moves


def _visit(parents: dict[str, str], node: str, parent: str) -> str:
    parents[node] = parent
    return node


@dataclass(frozen=True, slots=True)
class Paths:
    """The task; see the module."""

    settings: Settings
    name: str = "paths"
    corpora: tuple[str, ...] = ("walks", "golden", "recoveries")

    def __post_init__(self) -> None:
        nodes = count_nodes(self.settings.branches, self.settings.depth, self.settings.lanes)
        if nodes > len(NAMES):
            raise TaskError(
                f"[task] paths with branches = {self.settings.branches}, depth = {self.settings.depth}, "
                f"lanes = {self.settings.lanes} has {nodes} nodes; at most {len(NAMES)} can be named."
            )
        if self.settings.marks and self.settings.goal_free:
            raise TaskError(f"[task] paths: marks and goal_free exclude each other, since both give {MARK} a meaning.")

    @property
    def names(self) -> str:
        """The letters that may name a node: 26, 52 or 62, as many as the graph needs."""
        nodes = count_nodes(self.settings.branches, self.settings.depth, self.settings.lanes)
        return next(NAMES[:size] for size in (26, 52, 62) if nodes <= size)

    @property
    def alphabet(self) -> str:
        """Every character of a prompt or a walk."""
        return self.names + PUNCTUATION

    def problem(self, key: Key, difficulty: float | None = None) -> Problem:
        """A problem; `difficulty` in [0, 1] scales the depth from 1 to the task's own."""
        depth = self.settings.depth
        if difficulty is not None:
            depth = 1 + round(difficulty * (depth - 1))
        star = make_star(self.settings.branches, depth, self.settings.lanes)
        draw = key.child("problem").generator()
        names = draw.permutation(list(self.names))
        edges = [pair if draw.random() < 0.5 else pair[::-1] for pair in star.edges]
        order = draw.permutation(len(edges))
        text = " ".join(f"{names[edges[i][0]]}{names[edges[i][1]]}" for i in order)
        branch = int(draw.integers(self.settings.branches))
        if key.child("usual").generator().random() < self.settings.usual:
            branch = next(star.branch_of[max(star.edges[i])] for i in order if 0 in star.edges[i])
        branches = [[str(names[node]) for node in nodes] for nodes in star.branch_nodes]
        goal = branches[branch][-1]
        if key.child("goal_free").generator().random() < self.settings.goal_free:
            goal = NOWHERE
        prompt = f"{text}|{names[0]}>{goal}:"
        graph = read_prompt(prompt)
        answer = full_walk(graph, branches) if goal == NOWHERE else shortest_path(graph, graph.start, goal)
        return Problem(
            task=self.name,
            key=content_hash(self.name, prompt),
            prompt=prompt,
            answer=answer,
            difficulty=depth / self.settings.depth,
            metadata={"branches": branches},
        )

    def verify(self, problem: Problem, rollout: Rollout) -> Verdict:
        """Checks every move against the graph; parts: moves, wrong branches entered and left again.

        Without a goal: CORRECT iff it saw every branch node, lanes left out; score and part `coverage`: the share seen.
        """
        graph = _graph(problem)
        walk, node, legal = self._walk(graph, rollout.text), graph.start, 0
        for move in walk:
            if move not in graph.neighbors[node]:
                break
            node, legal = move, legal + 1
            if node == graph.goal:
                break
        if graph.goal == NOWHERE:
            return _explored(problem, walk, legal)
        entered, left = _wrong_branches(problem, graph, walk[:legal])
        parts = {"moves": float(legal), "wrong_entered": float(entered), "wrong_left": float(left)}
        if node == graph.goal and legal == len(walk):
            reason = "reached the goal"
            return Verdict(outcome=Outcome.CORRECT, correct=True, score=1.0, answer=walk, reason=reason, parts=parts)
        if node == graph.goal:
            reason = f"goes on after the goal, at move {legal + 1}"
        elif legal < len(walk):
            reason = f"move {legal + 1} is not an edge"
        else:
            reason = "did not reach the goal"
        answer = walk[:legal]
        return Verdict(outcome=Outcome.WRONG, correct=False, score=0.0, answer=answer, reason=reason, parts=parts)

    def solve(self, problem: Problem) -> str:
        """The shortest path; without a goal a walk over all leaves."""
        return problem.answer

    def wrong_answers(self, problem: Problem) -> Sequence[str]:
        """No move, an illegal jump, a walk cut short, a walk past the goal, a wrong leaf, junk."""
        graph = _graph(problem)
        outsider = next((name for name in graph.neighbors if name not in graph.neighbors[graph.start]), graph.start)
        others = [nodes[-1] for nodes in problem.metadata["branches"] if graph.goal not in (nodes[-1], NOWHERE)]
        wrong_leaf = [shortest_path(graph, graph.start, other) for other in others[:1]]
        return ["", outsider, problem.answer[:-1], problem.answer + problem.answer[-1:], "|", *wrong_leaf]

    def corpus(self, name: str, key: Key) -> Iterator[Demonstration]:
        """Texts from training problems: random walks, golden paths, or depth-first search with its dead ends."""
        if name not in self.corpora:
            raise TaskError(unknown_name("data", name, self.corpora))
        index = 0
        while True:
            problem = self.problem(key.child(index))
            draw = key.child(index, "text").generator()
            index += 1
            if problem.is_evaluation:
                continue
            yield Demonstration(
                prompt=str(problem.prompt),
                text=self._text(name, problem, draw),
                provenance=f"corpus:{name}:{problem.key}",
                ends=False,
            )

    def _text(self, name: str, problem: Problem, draw: np.random.Generator) -> str:
        graph = _graph(problem)
        if name == "walks":
            return random_walk(graph, self.settings.walk_length, draw)
        if name == "recoveries" and draw.random() < self.settings.dead_ends:
            return search_walk(problem, graph, draw)
        return problem.answer

    def _walk(self, graph: NamedGraph, text: str) -> str:
        """The moves of a text, its marked steps left out; from the first step that is none on as it stands."""
        if not self.settings.marks:
            return text
        walk, node, place = "", graph.start, 0
        while place < len(text) and text[place] in graph.neighbors[node]:
            if text[place + 1 : place + 2] == MARK:
                place += 2
                continue
            node = text[place]
            walk, place = walk + node, place + 1
        return walk + text[place:]

    def dead_end_mark(self, problem: Problem, before: str, wasted: str) -> str:
        """The first step into the dead end and the mark; raises TaskError unless `marks` is set."""
        del problem, before
        if not self.settings.marks:
            raise TaskError("[task] marks = true is needed: without it no text of paths may say that a step was left.")
        return f"{wasted[0]}{MARK}"

    def reached(self, problem: Problem, text: str) -> tuple[Problem, str] | None:
        """The same graph with the last leaf that a walk reached for a goal, and the walk to there.

        None where it reached no leaf, or where that problem is one for evaluation.
        """
        graph = _graph(problem)
        leaves = {nodes[-1] for nodes in problem.metadata["branches"]}
        walk, node, last = self._walk(graph, text), graph.start, -1
        for place, move in enumerate(walk):
            if move not in graph.neighbors[node]:
                break
            node = move
            last = place if node in leaves else last
        if last < 0:
            return None
        leaf = walk[last]
        walk = walk[: walk.index(leaf) + 1]
        prompt = f"{str(problem.prompt)[:-2]}{leaf}:"
        other = replace(
            problem, key=content_hash(self.name, prompt), prompt=prompt, answer=shortest_path(graph, graph.start, leaf)
        )
        return None if other.is_evaluation else (other, walk)

    def stop(self, problem: Problem) -> tuple[str, ...]:
        """The goal: reaching it ends the walk."""
        return (_graph(problem).goal,)

    def cut_points(self, problem: Problem, rollout: Rollout) -> Sequence[int]:
        """Every move is a step."""
        del problem
        return range(len(rollout.tokens))

    def state(self, problem: Problem, transcript: str) -> str:
        """Where the walk stands: the last node; all walks that left the graph are lost alike."""
        graph = _graph(problem)
        node = _place(graph, self._walk(graph, transcript))
        return "lost" if node is None else node

    def early_answer(self, problem: Problem, transcript: str) -> str:
        """The shortest way to the goal from where the walk stands; empty without one, or off the graph."""
        graph = _graph(problem)
        node = _place(graph, self._walk(graph, transcript))
        return "" if node is None or graph.goal in (node, NOWHERE) else shortest_path(graph, node, graph.goal)

    def right_step(self, problem: Problem, transcript: str) -> str:
        """The next move of a shortest path; empty at the goal, and after a walk that left the graph."""
        return self.early_answer(problem, transcript)[:1]


def _graph(problem: Problem) -> NamedGraph:
    return read_prompt(str(problem.prompt))


def _place(graph: NamedGraph, walk: str) -> str | None:
    """The node where a walk stands; None after a move that is no edge, or past the goal."""
    node = graph.start
    for move in walk:
        if node == graph.goal or move not in graph.neighbors[node]:
            return None
        node = move
    return node


def _explored(problem: Problem, walk: str, legal: int) -> Verdict:
    """The verdict of a walk without a goal, `legal` of whose moves were along edges."""
    nodes = set(itertools.chain.from_iterable(problem.metadata["branches"]))
    coverage = len(nodes & set(walk[:legal])) / len(nodes)
    parts = {"moves": float(legal), "coverage": coverage}
    broken = walk[legal:] not in ("", NOWHERE)
    if coverage == 1.0 and not broken:
        return Verdict(outcome=Outcome.CORRECT, correct=True, score=1.0, answer=walk, reason="saw all", parts=parts)
    reason = f"move {legal + 1} is not an edge" if broken else f"saw {coverage:.0%}"
    return Verdict(
        outcome=Outcome.WRONG, correct=False, score=coverage, answer=walk[:legal], reason=reason, parts=parts
    )


def _wrong_branches(problem: Problem, graph: NamedGraph, walk: str) -> tuple[int, int]:
    """How often the walk went from the center into a branch without the goal, and how often it came back."""
    wrong = {nodes[0] for nodes in problem.metadata["branches"] if nodes[-1] != graph.goal}
    places = graph.start + walk
    steps = list(itertools.pairwise(places))
    entered = sum(here == graph.start and there in wrong for here, there in steps)
    left = sum(here in wrong and there == graph.start for here, there in steps)
    return entered, left


def random_walk(graph: NamedGraph, length: int, draw: np.random.Generator) -> str:
    """A uniform random walk from the start, until the goal or `length` moves."""
    walk, node = "", graph.start
    while len(walk) < length and node != graph.goal:
        near = graph.neighbors[node]
        node = near[int(draw.random() * len(near))]
        walk += node
    return walk


def search_walk(problem: Problem, graph: NamedGraph, draw: np.random.Generator) -> str:
    """Depth-first search written as a walk: branches in random order, each wrong one to its leaf and back."""
    branches: Sequence[Sequence[str]] = problem.metadata["branches"]
    return full_walk(graph, [branches[branch] for branch in draw.permutation(len(branches))])


def full_walk(graph: NamedGraph, branches: Sequence[Sequence[str]]) -> str:
    """From leaf to leaf of the branches in their order, by way of the start, until the goal or the last leaf."""
    walk, place = "", graph.start
    for nodes in branches:
        walk += shortest_path(graph, place, nodes[-1])
        place = nodes[-1]
        if place == graph.goal:
            break
    return walk
