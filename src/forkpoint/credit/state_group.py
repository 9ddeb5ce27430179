"""Group-relative credit over identical states: what the other rollouts that came by here went on to earn.

Letters: G rollouts of one problem, S steps of a rollout.
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from forkpoint.credit.group import group_rewards
from forkpoint.credit.transcripts import Cut, spread_over_steps, step_cuts
from forkpoint.probe import Probe, Stateful
from forkpoint.records import Batch, Credit, Group, frozen_array

Array = NDArray[np.float64]
Form = Literal["baseline", "sum"]


def state_advantages(
    rewards: Array, states: Sequence[Sequence[str]], *, form: Form = "baseline", prior: float = 1.0, weight: float = 1.0
) -> list[Array]:
    """The advantage of each step of each rollout of a group, G arrays of shape [S_i].

    `baseline`  A_ik = r_i - (n m_ik + prior m_i) / (n + prior)
    `sum`       A_ik = (r_i - m_i) + weight (r_i - m_ik), the second part 0 where n = 0    (GiGPO, arXiv 2505.10978)

    m_i is the mean reward of all other rollouts; n of them visit the state of step k, with the mean reward m_ik.
    A rollout is never compared with itself, so `baseline` adds no bias: who else comes by a state does not depend on
    what rollout i does there.  `sum` weighs a state by how often others visit it, which is another objective.

    Raises:
        ValueError: fewer than 2 rewards, one that is not finite, other lists of states than rewards, an unknown
            form, a negative prior or weight.

    >>> [found.tolist() for found in state_advantages(np.array([1.0, 0.0, 0.0]), [["a"], ["a"], ["b"]], prior=0.0)]
    [[1.0], [-1.0], [-0.5]]
    """
    _check(rewards, states, form, prior, weight)
    visitors: dict[str, set[int]] = defaultdict(set)
    for place, mine in enumerate(states):
        for state in mine:
            visitors[state].add(place)
    made = []
    for i, mine in enumerate(states):
        # Differences first: equal rewards give exact zeros, whatever their mean rounds to.
        gaps = rewards[i] - rewards
        whole = float(np.delete(gaps, i).mean())
        found = np.zeros(len(mine))
        for k, state in enumerate(mine):
            others = gaps[sorted(visitors[state] - {i})]
            found[k] = _mixed(whole, others, form=form, prior=prior, weight=weight)
        made.append(found)
    return made


def _mixed(whole: float, others: Array, *, form: Form, prior: float, weight: float) -> float:
    """One step's advantage from the mean gap to all others and the gaps to those at the same state."""
    if not len(others):
        return whole
    if form == "sum":
        return whole + weight * float(others.mean())
    return (float(others.sum()) + prior * whole) / (len(others) + prior)


def _check(rewards: Array, states: Sequence[Sequence[str]], form: str, prior: float, weight: float) -> None:
    if form not in get_args(Form):
        raise ValueError(f"state_group: form = '{form}' must be one of {', '.join(get_args(Form))}.")
    if prior < 0 or weight < 0:
        raise ValueError(f"state_group: prior = {prior} and weight = {weight} must be at least 0.")
    if len(rewards) < 2 or len(states) != len(rewards) or not np.isfinite(rewards).all():
        raise ValueError(f"state_group: needs at least 2 finite rewards and their states, got {rewards.tolist()}.")


def state_group(
    batch: Batch, probe: Probe, *, form: Form = "baseline", prior: float = 1.0, weight: float = 1.0
) -> list[Credit]:
    """The credit of each rollout of `batch.rollouts`: every token has the `state_advantages` of its step.

    A step's state is what the task says of the text before it; steps begin at the task's cut points.  Asks no model.
    `details` holds `shared_states`: the share of steps whose state another rollout visits too.

    Raises:
        ValueError: a task without `state` or `cut_points`; as `state_advantages`.
    """
    task = probe.task
    if not isinstance(task, Stateful):
        raise ValueError("state_group: the task has no state.")
    made = []
    for group in batch.groups:
        rewards = group_rewards(group, "state_group")
        cuts = [step_cuts(task, group.problem, rollout) for rollout in group.rollouts]
        states = [[task.state(group.problem, cut.transcript) for cut in mine] for mine in cuts]
        advantages = state_advantages(rewards, states, form=form, prior=prior, weight=weight)
        made += _credits(group, rewards, cuts, states, advantages)
    return made


def _credits(
    group: Group,
    rewards: Array,
    cuts: Sequence[Sequence[Cut]],
    states: Sequence[Sequence[str]],
    advantages: Sequence[Array],
) -> list[Credit]:
    made = []
    for i, rollout in enumerate(group.rollouts):
        elsewhere = {state for j, mine in enumerate(states) if j != i for state in mine}
        spread = spread_over_steps(advantages[i], cuts[i], len(rollout.tokens))
        credit = Credit(
            advantages=frozen_array(np.where(rollout.loss_mask, spread, 0.0), np.float32),
            rule="state_group",
            baseline=float(np.delete(rewards, i).mean()),
            details={"shared_states": sum(state in elsewhere for state in states[i]) / len(states[i])},
        )
        made.append(credit)
    return made
