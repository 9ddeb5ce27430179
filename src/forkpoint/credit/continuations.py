"""Rollouts continued from their causal cuts, and what the continuations earned.

Everything of one update is asked at once: one `branch` of the probe, one `verify` for each group.
Letters: G rollouts of one problem, K continuations of one prefix.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TypeVar

import numpy as np

from forkpoint.credit.cuts import causal_cuts, read_cuts
from forkpoint.credit.group import group_rewards
from forkpoint.errors import RecipeError
from forkpoint.probe import Continuation, Probe
from forkpoint.records import Batch, Credit, Group, Rollout, Verdict, frozen_array

T = TypeVar("T")
NOTHING: Mapping[str, float] = MappingProxyType(
    {"sampled_tokens": 0.0, "verifier_calls": 0.0, "shared_prefix_tokens": 0.0}
)
"""The cost of credit that asked for nothing."""
ROUNDING = 1e-12
"""In units of reward; float32 advantages hold no more digits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Forks:
    """The causal cuts of one rollout, with the rewards of the continuations from each."""

    cuts: tuple[int, ...]
    """Ascending, the first 0, from which nothing was continued."""
    rewards: tuple[tuple[float, ...], ...]
    """Of each cut, one for each continuation with a usable verdict; none at 0."""
    cost: Mapping[str, float]
    """`sampled_tokens`, `verifier_calls`, and `shared_prefix_tokens`: what an engine without a prefix cache reads
    again, prompt included.  What rollouts share is charged to the first."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Fork:
    """A prefix to continue: the first rollout of a group that has it, and where it is cut."""

    rollout: Rollout
    cut: int


def forked(batch: Batch, probe: Probe, *, cuts: str, max_cuts: int, count: int, rule: str) -> list[list[Forks]]:
    """The forks of each rollout of each group, with `count` continuations of each prefix.

    Equal prefixes of one group are continued once, and their continuations shared.

    Raises:
        RecipeError: `count` below 0, and as `read_cuts` and `causal_cuts`.
        ValueError: rewards that are no correctness less a price for each token (`token_price`).
    """
    if count < 0:
        raise RecipeError(f"credit.options of {rule}: {count} continuations of a prefix; must be at least 0.")
    how, task = read_cuts(cuts), probe.task
    places = [
        [causal_cuts(group.problem, rollout, task, rule=how, max_cuts=max_cuts) for rollout in group.rollouts]
        for group in batch.groups
    ]
    forks: list[dict[bytes, _Fork]] = []
    for group, mine in zip(batch.groups, places, strict=True):
        forks.append({})
        for rollout, positions in zip(group.rollouts, mine, strict=True):
            for cut in positions[1:]:
                forks[-1].setdefault(rollout.tokens[:cut].tobytes(), _Fork(rollout=rollout, cut=cut))
    made = iter(_continuations(batch, probe, forks, count=count, rule=rule))
    found = []
    for group, mine, theirs in zip(batch.groups, places, forks, strict=True):
        drawn = {prefix: [next(made) for _ in range(count)] for prefix in theirs}
        rewards = _rewards(group, probe, theirs, drawn, rule=rule)
        found.append(
            [
                Forks(
                    cuts=positions,
                    rewards=((), *(rewards[rollout.tokens[:cut].tobytes()] for cut in positions[1:])),
                    cost=_cost(rollout, theirs, drawn),
                )
                for rollout, positions in zip(group.rollouts, mine, strict=True)
            ]
        )
    return found


def _continuations(
    batch: Batch, probe: Probe, forks: Sequence[Mapping[bytes, _Fork]], *, count: int, rule: str
) -> list[Rollout]:
    """`count` continuations of each fork, group by group."""
    requests = [
        Continuation(problem=group.problem, rollout=fork.rollout, prefix_length=fork.cut, index=index, purpose=rule)
        for group, theirs in zip(batch.groups, forks, strict=True)
        for fork in theirs.values()
        for index in range(count)
    ]
    return probe.branch(requests) if requests else []


def _rewards(
    group: Group,
    probe: Probe,
    forks: Mapping[bytes, _Fork],
    drawn: Mapping[bytes, Sequence[Rollout]],
    *,
    rule: str,
) -> dict[bytes, tuple[float, ...]]:
    """The rewards of the continuations of each prefix that have a usable verdict."""
    price = token_price(group, rule)
    rollouts = [rollout for made in drawn.values() for rollout in made]
    verdicts = iter(probe.verify(group.problem, rollouts) if rollouts else [])
    rewards = {}
    for prefix, fork in forks.items():
        written = trained_tokens(fork.rollout, fork.cut)
        judged = [
            judged_reward(next(verdicts), written + trained_tokens(rollout), price=price) for rollout in drawn[prefix]
        ]
        rewards[prefix] = tuple(reward for reward in judged if reward is not None)
    return rewards


def _cost(rollout: Rollout, forks: Mapping[bytes, _Fork], drawn: Mapping[bytes, Sequence[Rollout]]) -> dict[str, float]:
    cost = dict(NOTHING)
    for prefix, fork in forks.items():
        if fork.rollout is rollout:
            cost["sampled_tokens"] += sum(trained_tokens(made) for made in drawn[prefix])
            cost["verifier_calls"] += len(drawn[prefix])
            cost["shared_prefix_tokens"] += len(drawn[prefix]) * (len(rollout.prompt_tokens) + fork.cut)
    return cost


def trained_tokens(rollout: Rollout, end: int | None = None) -> int:
    """How many of a rollout's tokens, or of its first `end`, were the policy's."""
    return int(np.count_nonzero(rollout.loss_mask[:end]))


def token_price(group: Group, rule: str) -> float:
    """The price of a token in the group's rewards, so that a continuation can be rewarded as a rollout is.

    price = ([correct] - total) / n, with n the trained tokens: 0 for the plain outcome, length_penalty /
    max_new_tokens with a price for length.

    Raises:
        ValueError: another shaping: the price would differ between rollouts.
    """
    totals = group_rewards(group, rule)
    prices = [
        (float(verdict.correct is True) - total) / trained_tokens(rollout)
        for rollout, verdict, total in zip(group.rollouts, group.verdicts, totals, strict=True)
        if trained_tokens(rollout)
    ]
    if not prices:
        return 0.0
    if not max(prices) - min(prices) <= 1e-9 * max(1.0, *map(abs, prices)):
        raise ValueError(
            f"{rule}: the rewards of problem {group.problem.key} are not [correct] less a price for each token, "
            "so continuations cannot be rewarded alike."
        )
    return prices[0]


def judged_reward(verdict: Verdict, tokens: int, *, price: float) -> float | None:
    """[correct] - price times the trained tokens; None where the verifier could not tell or failed."""
    return float(verdict.correct is True) - price * tokens if verdict.usable else None


def mean(samples: Sequence[float]) -> float:
    """The mean; of equal samples exactly their value: rounding must not become a gradient."""
    return samples[0] if min(samples) == max(samples) else float(np.mean(samples))


def others(values: Sequence[T], place: int) -> list[T]:
    """All values but the one at `place`."""
    return [*values[:place], *values[place + 1 :]]


def checked_rewards(group: Group, rule: str) -> list[float]:
    """The total rewards of a group.

    Raises:
        ValueError: fewer than two, not one for each rollout, or one that is not finite.
    """
    rewards = group_rewards(group, rule)
    if len(rewards) < 2 or not np.isfinite(rewards).all():
        raise ValueError(f"{rule}: a group needs at least 2 finite rewards, but has {rewards.tolist()}.")
    return [float(reward) for reward in rewards]


def segment_credit(
    rollout: Rollout, cuts: Sequence[int], advantages: Sequence[float], *, rule: str, cost: Mapping[str, float],
    values: Sequence[float],
) -> Credit:  # fmt: skip
    """One advantage for all trained tokens of a segment; segment k begins at `cuts[k]` and ends where the next does.

    `details` hold `cuts` and the `values` there; the baseline is the value at the beginning.
    """
    lengths = np.diff([*cuts, len(rollout.tokens)])
    # Differences of equal rewards that were added up in another order are no advantage.
    sure = np.where(np.abs(advantages) > ROUNDING, np.asarray(advantages, np.float64), 0.0)
    spread = np.where(rollout.loss_mask, np.repeat(sure, lengths), 0.0)
    return Credit(
        advantages=frozen_array(spread, np.float32),
        rule=rule,
        baseline=values[0],
        cost=cost,
        details={"cuts": [int(cut) for cut in cuts], "values": [float(value) for value in values]},
    )
