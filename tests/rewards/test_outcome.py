"""The outcome reward: hand-worked numbers, and verdicts that never become a reward."""

import numpy as np
import pytest

from forkpoint.records import Batch, Group, Outcome, Problem, Rollout, StopReason, Verdict
from forkpoint.rewards import REWARD_RULES, outcome_reward

RIGHT = Verdict(outcome=Outcome.CORRECT, correct=True)
WRONG = Verdict(outcome=Outcome.WRONG, correct=False)


def rollout(trained, observed=0):
    length = trained + observed
    return Rollout(
        id=f"r{trained}",
        group_id="g",
        stage="rl",
        update=0,
        index=0,
        problem_key="0",
        prompt_tokens=np.zeros(1, np.int32),
        tokens=np.zeros(length, np.int32),
        behavior_logprobs=np.zeros(length, np.float32),
        loss_mask=np.arange(length) < trained,
        temperature=1.0,
        text="",
        stop_reason=StopReason.EOS,
        seed="0",
    )


@pytest.mark.parametrize(
    ("verdict", "penalty", "expected"),
    [(RIGHT, 0.0, 1.0), (WRONG, 0.0, 0.0), (RIGHT, 0.5, 0.875), (WRONG, 0.5, -0.125)],
)
def test_by_hand(verdict, penalty, expected):
    """Two trained tokens of a budget of eight; the environment's tokens cost nothing."""
    reward = outcome_reward(verdict, rollout(2, observed=5), length_penalty=penalty, max_new_tokens=8)
    assert reward.total == expected
    assert reward.steps is None


@pytest.mark.parametrize("outcome", [Outcome.TRUNCATED, Outcome.UNPARSEABLE, Outcome.DECLINED])
def test_only_the_binary_truth_counts(outcome):
    verdict = Verdict(outcome=outcome, correct=False, score=0.9)
    assert outcome_reward(verdict, rollout(1), max_new_tokens=8).total == 0.0


@pytest.mark.parametrize(
    ("outcome", "correct"),
    [(Outcome.ABSTAINED, None), (Outcome.ERROR, None), (Outcome.ERROR, False), (Outcome.WRONG, None)],
)
def test_an_unusable_verdict_never_becomes_a_reward(outcome, correct):
    with pytest.raises(ValueError, match=f"r3 has the verdict '{outcome.value}'"):
        outcome_reward(Verdict(outcome=outcome, correct=correct), rollout(3), max_new_tokens=8)


@pytest.mark.parametrize("knobs", [{"length_penalty": -0.1}, {"length_penalty": float("nan")}, {"max_new_tokens": 0}])
def test_knobs_out_of_bounds_are_refused(knobs):
    with pytest.raises(ValueError, match=next(iter(knobs))):
        outcome_reward(RIGHT, rollout(1), **({"max_new_tokens": 8} | knobs))


def test_rule_keeps_the_order_of_the_batch():
    problem = Problem(task="t", key="ab", prompt="", answer="")
    first = Group(problem=problem, rollouts=(rollout(1), rollout(2)), verdicts=(RIGHT, WRONG))
    second = Group(problem=problem, rollouts=(rollout(4),), verdicts=(RIGHT,))
    batch = Batch(groups=(first, second), update=0)
    rewards = REWARD_RULES["outcome"](batch, None, length_penalty=1.0, max_new_tokens=4)
    assert [reward.total for reward in rewards] == [0.75, -0.5, 0.0]
    missing = Batch(groups=(Group(problem=problem, rollouts=(rollout(1),), verdicts=()),), update=0)
    with pytest.raises(ValueError, match="zip"):
        REWARD_RULES["outcome"](missing, None, max_new_tokens=4)
