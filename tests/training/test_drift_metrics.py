"""What a batch says of drift, by hand: tokens without credit, and the spread of outcomes within and between groups."""

import numpy as np
import pytest

from forkpoint.records import Credit, Group, Outcome, Problem, Rollout, StopReason, Verdict, frozen_array
from forkpoint.training.drift import METRICS, drift_metrics

TOKENS = METRICS[3:]


def rollout(name, logprobs, mask=None):
    count = len(logprobs)
    return Rollout(
        id=name, group_id="g", stage="rl", update=1, index=0, problem_key="0", parent_id=None, prefix_length=0,
        prompt_tokens=frozen_array([1], np.int32), tokens=frozen_array(np.arange(count), np.int32),
        behavior_logprobs=frozen_array(logprobs, np.float32),
        loss_mask=frozen_array(np.ones(count) if mask is None else mask, np.bool_), spans=(), temperature=1.0,
        text="x" * count, stop_reason=StopReason.LENGTH, seed=0,
    )  # fmt: skip


def group(*attempts):
    """Of (log-probabilities, whether it is correct) pairs."""
    rollouts = tuple(rollout(f"r{i}", logs) for i, (logs, _) in enumerate(attempts))
    verdicts = tuple(
        Verdict(outcome=Outcome.CORRECT if right else Outcome.WRONG, correct=right) for _, right in attempts
    )
    return Group(problem=Problem(task="t", key="0", prompt="p", answer="a"), rollouts=rollouts, verdicts=verdicts)


def credits(*rows):
    return [Credit(advantages=frozen_array(row, np.float32), rule="r") for row in rows]


def test_tokens_without_credit_are_told_from_those_with():
    made = group(([-1.0, -2.0, -3.0], True), ([-4.0, -5.0, -6.0], False))
    found = drift_metrics([made], credits([0.0, 0.5, 0.0], [-0.5, -0.5, 0.0004]))
    assert found["drift_idle_share"] == pytest.approx(3 / 6)
    assert found["drift_idle_logprob"] == pytest.approx((-1.0 - 3.0 - 6.0) / 3)
    assert found["drift_credited_logprob"] == pytest.approx((-2.0 - 4.0 - 5.0) / 3)


def test_a_rollout_without_any_credit_is_no_sign_of_drift():
    made = group(([-1.0, -2.0], True), ([-8.0, -9.0], False))
    found = drift_metrics([made], credits([0.0, 0.5], [0.0, 0.0]))
    assert found["drift_idle_share"] == 0.5
    assert found["drift_idle_logprob"] == -1.0


def test_tokens_that_are_not_trained_on_are_left_out():
    attempt = rollout("r0", [-1.0, -7.0, -2.0], mask=[True, False, True])
    made = group(([-1.0, -1.0, -1.0], True))
    found = drift_metrics(
        [Group(problem=made.problem, rollouts=(attempt,), verdicts=made.verdicts)], credits([0.0, 0.0, 0.5])
    )
    assert (found["drift_idle_share"], found["drift_idle_logprob"]) == (0.5, -1.0)


@pytest.mark.parametrize("rows", [([0.5, 0.5], [-0.5, -0.5]), ([0.0, 0.0], [0.0, 0.0])])
def test_group_rules_and_batches_without_credit_have_no_metrics_of_tokens(rows):
    made = group(([-1.0, -2.0], True), ([-3.0, -4.0], False))
    found = drift_metrics([made], credits(*rows))
    assert not set(found) & set(TOKENS)
    assert found["drift_correct"] == 0.5


def test_dense_credit_that_leaves_no_token_out():
    made = group(([-1.0, -2.0], True), ([-3.0, -4.0], False))
    found = drift_metrics([made], credits([0.5, 0.25], [-0.5, -0.25]))
    assert found["drift_idle_share"] == 0.0
    assert "drift_idle_logprob" not in found


def test_spread_and_error_are_those_of_groups():
    logs = [-1.0]
    half = group((logs, True), (logs, False), (logs, True), (logs, False))
    never = group(*[(logs, False)] * 4)
    made = [half, never]
    found = drift_metrics(made, credits(*[[0.0]] * 8))
    # p(1 - p) G / (G - 1) = 1/4 * 4/3 in one group, 0 in the other; shares 1/2 and 0 spread by 0.3536.
    assert found["drift_spread"] == pytest.approx(1 / 6)
    assert found["drift_correct"] == 0.25
    assert found["drift_correct_error"] == pytest.approx(np.std([0.5, 0.0], ddof=1) / np.sqrt(2))
    assert drift_metrics([half], credits(*[[0.0]] * 4))["drift_correct_error"] == pytest.approx(np.sqrt(1 / 3 / 4))
    assert drift_metrics([], []) == {}


def test_the_spread_is_unbiased():
    draw = np.random.Generator(np.random.Philox(7))
    logs = [-1.0]
    found = [
        drift_metrics([group(*[(logs, bool(flag)) for flag in draw.random(4) < 0.3])], credits(*[[0.0]] * 4))
        for _ in range(600)
    ]
    assert np.mean([each["drift_spread"] for each in found]) == pytest.approx(0.21, abs=0.02)
