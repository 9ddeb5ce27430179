"""Segment Monte-Carlo: what the chance of success was at each cut, and how much each segment changed it."""

from collections.abc import Sequence

from forkpoint.credit.continuations import Forks, checked_rewards, forked, mean, others, segment_credit
from forkpoint.probe import Probe
from forkpoint.records import Batch, Credit, Rollout


def branch(
    batch: Batch, probe: Probe, *, cuts: str = "unlikely:0.9", max_cuts: int = 16, continuations: int = 4
) -> list[Credit]:
    """The credit of each rollout of `batch.rollouts`: the rise of the value over each segment, for all its tokens.

    A = V(c_{k+1}) - V(c_k) on the tokens from cut c_k to c_{k+1}, and r - V(c_S) on the last ones; they sum to
    r - V(c_0)    (VinePPO, arXiv 2410.01679; segments of SPO, arXiv 2505.23564)

    V(c) of a rollout is the mean reward of the `continuations` of its first c tokens and of the *other* rollouts of its
    group that begin with the same tokens; at c_0 = 0 the others alone.  Continuations are rewarded as rollouts are, a
    price for length included, and a truncated one is wrong.  A cut with nothing usable merges with the next one.
    `cuts` is read by `cuts.read_cuts`.  Without bias, and without a critic; `docs/credit/branch.md` has the costs.

    Raises:
        RecipeError: an option out of bounds.
        ValueError: a group of one, without a reward for each rollout, with a reward that is not finite, or shaped
            otherwise than by a price for each token.
    """
    found = forked(batch, probe, cuts=cuts, max_cuts=max_cuts, count=continuations, rule="branch")
    made = []
    for group, forks in zip(batch.groups, found, strict=True):
        rewards = checked_rewards(group, "branch")
        for place, (rollout, fork) in enumerate(zip(group.rollouts, forks, strict=True)):
            siblings = list(zip(others(group.rollouts, place), others(rewards, place), strict=True))
            kept, values = _values(rollout, fork, siblings)
            after = [*values[1:], rewards[place]]
            rises = [later - before for before, later in zip(values, after, strict=True)]
            made.append(segment_credit(rollout, kept, rises, rule="branch", cost=fork.cost, values=values))
    return made


def _values(rollout: Rollout, fork: Forks, siblings: Sequence[tuple[Rollout, float]]) -> tuple[list[int], list[float]]:
    """The cuts that have a value, and their values."""
    kept, values = [], []
    for cut, rewards in zip(fork.cuts, fork.rewards, strict=True):
        samples = [*rewards, *(reward for sibling, reward in siblings if _passes(sibling, rollout, cut))]
        if samples:
            kept.append(cut)
            values.append(mean(samples))
    return kept, values


def _passes(sibling: Rollout, rollout: Rollout, cut: int) -> bool:
    """Whether a rollout goes on after the first `cut` tokens of another one."""
    if cut == 0:
        return True
    return len(sibling.tokens) > cut and bool((sibling.tokens[:cut] == rollout.tokens[:cut]).all())
