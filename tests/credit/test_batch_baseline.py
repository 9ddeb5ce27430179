"""REINFORCE with the mean of the others by hand: exact zeros, sums, and what is refused."""

import numpy as np
import pytest

from forkpoint.credit.batch import batch_baseline
from forkpoint.records import Batch, Group, Outcome, Problem, Reward, Verdict
from forkpoint.verifiers.outside import written_rollout

PROBLEM = Problem(task="toy", key="1", prompt="", answer="")
WRONG = Verdict(outcome=Outcome.WRONG, correct=False)


def batch(*groups):
    return Batch(
        groups=tuple(
            Group(
                problem=PROBLEM,
                rollouts=tuple(written_rollout(PROBLEM, "xx") for _ in totals),
                verdicts=(WRONG,) * len(totals),
                rewards=tuple(Reward(total=total) for total in totals),
            )
            for totals in groups
        ),
        update=1,
    )


def test_by_hand_over_groups():
    credits = batch_baseline(batch((1.0, 0.0), (0.5,)), None)
    assert [credit.advantages.tolist() for credit in credits] == [[0.75] * 2, [-0.75] * 2, [0.0] * 2]
    assert [credit.baseline for credit in credits] == [0.25, 0.75, 0.5]


def test_equal_rewards_give_exact_zeros():
    assert not any(credit.advantages.any() for credit in batch_baseline(batch((0.1, 0.1), (0.1,)), None))


def test_an_empty_batch_has_no_credit():
    assert batch_baseline(batch(), None) == []


@pytest.mark.parametrize("rewards", [(1.0,), (1.0, np.nan)])
def test_what_is_refused(rewards):
    with pytest.raises(ValueError, match="batch_baseline"):
        batch_baseline(batch(rewards), None)
