"""Leave-one-out at every fork of the tree that a rollout and the continuations from its cuts form."""

import math
from collections.abc import Sequence
from typing import Literal, TypeAlias

from forkpoint.credit.continuations import Forks, checked_rewards, forked, mean, others, segment_credit
from forkpoint.errors import RecipeError, unknown_name
from forkpoint.probe import Probe
from forkpoint.records import Batch, Credit

Weighting: TypeAlias = Literal["inverse", "inverse_sqrt"]
WEIGHTINGS = ("inverse", "inverse_sqrt")


def backed_up(reward: float, siblings: Sequence[Sequence[float]]) -> list[float]:
    """The values U_1 .. U_{S+1} of a path through S forks, the last one its own reward.

    U_{S+1} = r,   U_k = (sum of the n - 1 sibling rewards at fork k + U_{k+1}) / n

    So every leaf counts with the product of 1 / n over the forks above it, and these weights sum to 1.

    >>> backed_up(1.0, [[0.0], [0.0, 0.5]])
    [0.25, 0.5, 1.0]
    """
    values = [reward]
    for rewards in reversed(siblings):
        values.insert(0, mean([*rewards, values[0]]))
    return values


def tree(
    batch: Batch, probe: Probe, *, cuts: str = "unlikely:0.9", max_cuts: int = 16, continuations: int = 2,
    weighting: Weighting = "inverse",
) -> list[Credit]:  # fmt: skip
    """The credit of each rollout of `batch.rollouts`: at each fork, its backed-up value over the mean of its siblings.

    The root has the group's G rollouts as children; at each cut a rollout forks into itself and its `continuations`.
    With U of `backed_up`, the tokens between fork k and k + 1 get

        A = U_{k+1} - mean of the siblings at fork k = (U_{k+1} - U_k) n_k / (n_k - 1),

    so without cuts it is `leave_one_out`, and the differences U_{k+1} - U_k sum to r - U_0.  Leaves weigh 1 / n at each
    fork (`inverse`), which adds no bias.  `inverse_sqrt` multiplies by the square root of the leaves through the token,
    as training on every leaf with the weight 1 / sqrt(leaves) would (TreeRL, arXiv 2506.11902): early tokens weigh too
    much, `docs/credit/tree.md` says by how much.  Rewards, merging and `cuts` are those of `branch`.

    Raises:
        RecipeError: an option out of bounds.
        ValueError: as `branch`.
    """
    if weighting not in WEIGHTINGS:
        raise RecipeError(unknown_name("credit.options.weighting", weighting, WEIGHTINGS))
    found = forked(batch, probe, cuts=cuts, max_cuts=max_cuts, count=continuations, rule="tree")
    made = []
    for group, forks in zip(batch.groups, found, strict=True):
        rewards = checked_rewards(group, "tree")
        paths = [_path(reward, fork) for reward, fork in zip(rewards, forks, strict=True)]
        tops = [values[0] for _, _, values in paths]
        for place, (kept, siblings, values) in enumerate(paths):
            below = [mean(side) for side in [others(tops, place), *siblings]]
            advantages = [value - side for value, side in zip(values, below, strict=True)]
            if weighting == "inverse_sqrt":
                advantages = [a * math.sqrt(n) for a, n in zip(advantages, _leaves(siblings), strict=True)]
            credit = segment_credit(
                group.rollouts[place], kept, advantages, rule="tree", cost=forks[place].cost,
                values=[mean(tops), *values[:-1]],
            )  # fmt: skip
            made.append(credit)
    return made


def _path(reward: float, fork: Forks) -> tuple[list[int], list[tuple[float, ...]], list[float]]:
    """The cuts that have siblings, 0 before them; the siblings' rewards at each; the values U_1 .. U_{S+1}."""
    usable = [(cut, rewards) for cut, rewards in zip(fork.cuts, fork.rewards, strict=True) if rewards]
    siblings = [rewards for _, rewards in usable]
    return [0, *(cut for cut, _ in usable)], siblings, backed_up(reward, siblings)


def _leaves(siblings: Sequence[Sequence[float]]) -> list[int]:
    """How many leaves lie below each segment."""
    counts = [1]
    for rewards in reversed(siblings):
        counts.insert(0, counts[0] + len(rewards))
    return counts
