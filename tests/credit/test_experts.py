"""Credit of groups with an expert, against numbers worked by hand."""

import numpy as np
import pytest

from forkpoint.credit import with_experts
from forkpoint.credit.experts import expert_advantage
from forkpoint.records import Batch, Group, Outcome, Problem, Reward, Verdict
from forkpoint.verifiers.outside import written_rollout


def batch(*rewards: float) -> Batch:
    problem = Problem(task="t", key="0", prompt="", answer="")
    rollouts = tuple(written_rollout(problem, "xy") for _ in rewards)
    verdicts = tuple(Verdict(outcome=Outcome.WRONG, correct=False) for _ in rewards)
    made = tuple(Reward(total=reward) for reward in rewards)
    return Batch(groups=(Group(problem=problem, rollouts=rollouts, verdicts=verdicts, rewards=made),), update=1)


def test_by_hand() -> None:
    # Beside one expert of reward 1: for r = 1 the others are (0, 1), for r = 0 they are (1, 1).
    found = [credit.advantages.tolist() for credit in with_experts(batch(1.0, 0.0), None)]
    assert found == [[0.5, 0.5], [-1.0, -1.0]]
    assert expert_advantage(np.array([1.0, 0.0]), 1) == 0.5
    assert expert_advantage(np.array([0.0, 0.0]), 2) == pytest.approx(2 / 3)


@pytest.mark.parametrize("rewards", [(0.0, 0.0, 0.0), (1.0, 1.0), (0.2, 0.7, 1.0, 0.0)])
@pytest.mark.parametrize("experts", [1, 3])
def test_a_group_with_its_experts_sums_to_zero(rewards: tuple[float, ...], experts: int) -> None:
    sampled = [float(credit.advantages[0]) for credit in with_experts(batch(*rewards), None, experts=experts)]
    total = sum(sampled) + experts * expert_advantage(np.array(rewards), experts)
    assert total == pytest.approx(0.0, abs=1e-6)


def test_at_least_one_expert() -> None:
    with pytest.raises(ValueError, match="experts = 0"):
        with_experts(batch(1.0, 0.0), None, experts=0)
