"""What is paid may be a judge's score; `correct` stays apart."""

import numpy as np
import pytest

from forkpoint.records import Batch, Group, Outcome, Problem, Rollout, StopReason, Verdict
from forkpoint.rewards import outcome_reward, outcome_rewards

ROLLOUT = Rollout(
    id="r", group_id="g", stage="rl", update=0, index=0, problem_key="0", prompt_tokens=np.zeros(1, np.int32),
    tokens=np.zeros(2, np.int32), behavior_logprobs=np.zeros(2, np.float32), loss_mask=np.ones(2, np.bool_),
    temperature=1.0, text="", stop_reason=StopReason.EOS, seed="0",
)  # fmt: skip


def verdict(outcome, correct, score):
    return Verdict(outcome=outcome, correct=correct, score=score)


@pytest.mark.parametrize(
    ("told", "pays", "expected"),
    [
        (verdict(Outcome.DECLINED, False, 1.0), "score", 1.0),
        (verdict(Outcome.DECLINED, False, 1.0), "correct", 0.0),
        (verdict(Outcome.CORRECT, True, 0.25), "score", 0.25),
        (verdict(Outcome.CORRECT, True, 0.25), "correct", 1.0),
        (verdict(Outcome.TRUNCATED, False, 1.0), "score", 0.0),
    ],
)
def test_what_is_paid(told, pays, expected):
    assert outcome_reward(told, ROLLOUT, pays=pays, max_new_tokens=8).total == expected


def test_a_price_for_length_comes_off_a_score():
    """Two tokens of eight at a price of 0.5: an eighth."""
    told = verdict(Outcome.DECLINED, False, 1.0)
    assert outcome_reward(told, ROLLOUT, pays="score", length_penalty=0.5, max_new_tokens=8).total == 0.875


def test_a_missing_score_is_never_zero():
    with pytest.raises(ValueError, match="without a score"):
        outcome_reward(verdict(Outcome.WRONG, False, None), ROLLOUT, pays="score", max_new_tokens=8)
    assert outcome_reward(verdict(Outcome.WRONG, False, None), ROLLOUT, max_new_tokens=8).total == 0.0


def test_a_batch_is_paid_by_its_scores():
    told = (verdict(Outcome.DECLINED, False, 1.0), verdict(Outcome.CORRECT, True, 0.0))
    problem = Problem(task="quiz", key="0", prompt="", answer="")
    batch = Batch(groups=(Group(problem=problem, rollouts=(ROLLOUT, ROLLOUT), verdicts=told),), update=0)
    assert [each.total for each in outcome_rewards(batch, None, pays="score", max_new_tokens=8)] == [1.0, 0.0]
    assert [each.total for each in outcome_rewards(batch, None, max_new_tokens=8)] == [0.0, 1.0]
