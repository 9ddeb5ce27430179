"""Enumeration of every walk of a small lab, with the score function of each step: the oracle of the trainer.

Letters: N walks of one target, T the budget in tokens, E the legal moves of the graph.
"""

import itertools
from dataclasses import dataclass

import numpy as np
from scipy import stats

from forkpoint.theory.graphs import edge_states


@dataclass
class Enumerated:
    """All walks toward one target."""

    probabilities: np.ndarray  # [N]
    hits: np.ndarray  # [N]
    lengths: np.ndarray  # [N]
    scores: np.ndarray  # [N, T, E]: gradient of log pi of each step, 0 after the end
    sources: np.ndarray  # [N, T]: the state before each step, -1 after the end

    @property
    def score(self):
        return self.scores.sum(1)


def enumerate_walks(table, target, budget):
    """Depth-first over the legal moves; a walk ends at the target's leaf or at the budget."""
    states = edge_states(table.graph)
    leaf, moves = states.targets[target], len(states.successors)
    rows = np.zeros((states.count, moves))
    rows[states.sources, np.arange(moves)] = table.probabilities
    done, stack = [], [((), 0, 1.0)]
    while stack:
        path, at, probability = stack.pop()
        if at == leaf or len(path) == budget:
            done.append((path, at == leaf, probability))
            continue
        stack += [
            ((*path, entry), states.successors[entry], probability * table.probabilities[entry])
            for entry in range(states.offsets[at], states.offsets[at + 1])
        ]
    scores, sources = np.zeros((len(done), budget, moves)), np.full((len(done), budget), -1)
    for walk, (path, _, _) in enumerate(done):
        for place, entry in enumerate(path):
            source = states.sources[entry]
            scores[walk, place], sources[walk, place] = -rows[source], source
            scores[walk, place, entry] += 1
    return Enumerated(
        np.array([item[2] for item in done]),
        np.array([float(item[1]) for item in done]),
        np.array([len(item[0]) for item in done]),
        scores,
        sources,
    )


def group_expectation(walks, coefficient, size):
    """E[sum over a group of c(mine, others) times my score], for c(hits [size], lengths [size]) with mine first.

    Walks that hit alike and are equally long have equal rewards, so groups of such classes are enumerated.
    """
    kinds, member = np.unique(np.stack([walks.hits, walks.lengths], axis=1), axis=0, return_inverse=True)
    chances = np.bincount(member, weights=walks.probabilities)
    scores = np.zeros((len(kinds), walks.score.shape[1]))
    np.add.at(scores, member, walks.probabilities[:, None] * walks.score)
    total = np.zeros(scores.shape[1])
    for group in itertools.product(range(len(kinds)), repeat=size):
        rest = chances[list(group[1:])].prod()
        total += size * rest * coefficient(kinds[list(group), 0], kinds[list(group), 1]) * scores[group[0]]
    return total


def step_expectation(walks, advantages):
    """E[sum_t A_t grad log pi_t] for advantages [N, T] of single walks."""
    return np.einsum("n,nt,nte->e", walks.probabilities, advantages, walks.scores)


def gae_by_definition(walks, values, penalty, lam):
    """sum_l lam^l delta_{t+l}, written out: values [S], a reward of -penalty / T for each step and 1 for the hit."""
    count, budget = walks.sources.shape
    live = walks.sources >= 0
    value = np.where(live, values[walks.sources], 0.0)
    after = np.concatenate([value[:, 1:], np.zeros((count, 1))], axis=1)
    last = np.arange(budget) == walks.lengths[:, None] - 1
    deltas = np.where(live, -penalty / budget + last * walks.hits[:, None] + after - value, 0.0)
    advantages = np.zeros_like(deltas)
    for start in range(budget):
        for later in range(start, budget):
            advantages[:, start] += lam ** (later - start) * deltas[:, later]
    return advantages


def joint_p_value(samples, expected, table):
    """Hotelling's T-squared: the chance of block means this far from `expected` [E] if that is their mean.

    `samples` [blocks, E].  The components of a row sum to 0, so the last of each row is left out, and rows that no
    sample reaches are.
    """
    states = edge_states(table.graph)
    last = np.zeros(len(states.successors), bool)
    last[states.offsets[1:] - 1] = True
    kept = ~last & (np.abs(samples).max(0) > 0)
    assert np.abs(expected[~last & ~kept]).max(initial=0) < 1e-12
    count, size = len(samples), int(kept.sum())
    gap = samples[:, kept].mean(0) - expected[kept]
    covariance = np.cov(samples[:, kept], rowvar=False)
    square = count * gap @ np.linalg.solve(covariance, gap)
    return float(stats.f.sf(square * (count - size) / (size * (count - 1)), size, count - size))
