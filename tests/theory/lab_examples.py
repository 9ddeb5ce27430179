"""Graphs and policies that the tests of the theory share."""

from fractions import Fraction

import numpy as np

from forkpoint.seeds import Key
from forkpoint.theory.classes import ClassPolicy, Diamond, policy_from_gaps
from forkpoint.theory.graphs import PathStar


def regular(branches, depth, lanes):
    return PathStar.regular(branches=branches, depth=depth, lanes=lanes)


MIXED = PathStar(depths=(3, 2, 3, 1), lanes=(2, 3, 2, 4))
"""Two branches alike, two others."""


def random_policy(graph, seed, scale=1.0) -> ClassPolicy[float]:
    draw = Key.root(seed).child("gaps").generator()
    return policy_from_gaps(graph, [scale * draw.normal(size=(4, shape.depth)) for shape in graph.profiles])


def random_fractions(graph, draw) -> ClassPolicy[Fraction]:
    rows = []
    for shape in graph.profiles:
        row = []
        for _ in range(shape.depth):
            desired = [Fraction(int(draw.integers(1, 40)), 40) for _ in range(4)]
            row.append(Diamond(*desired, *(1 - value for value in desired)))
        rows.append(tuple(row))
    return ClassPolicy(graph=graph, diamonds=tuple(rows), number=Fraction)


def random_graph(draw, deepest=12) -> PathStar:
    count = int(draw.integers(1, 6))
    depths = draw.integers(1, deepest + 1, size=count).tolist()
    lanes = draw.integers(1, 7, size=count).tolist()
    if draw.random() < 0.5:
        depths, lanes = [depths[0]] * count, [lanes[0]] * count
    return PathStar(depths=tuple(depths), lanes=tuple(lanes))


def dense(policy):
    """The transition matrix of a table policy as a dense array."""
    return np.asarray(policy.matrix().todense())
