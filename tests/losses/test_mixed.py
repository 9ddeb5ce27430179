"""The mixed-policy loss against numbers worked by hand and finite differences."""

import math

import pytest
import torch

from forkpoint.losses import mixed_policy, reinforce


def test_by_hand() -> None:
    logprobs = torch.tensor([[math.log(0.5), math.log(0.1)]], dtype=torch.float64, requires_grad=True)
    advantages = torch.tensor([[1.0, 2.0]], dtype=torch.float64)
    weights = torch.tensor([[0.5, 0.0]], dtype=torch.float64)
    experts = torch.tensor([[0.0, 0.5]], dtype=torch.float64)
    output = mixed_policy(logprobs, logprobs.detach(), advantages, weights, experts, shaping=0.1)
    # Sampled: -0.5 * 1 * log 0.5.  Expert: -0.5 * 2 * 0.1 / 0.2.
    assert float(output.loss.detach()) == pytest.approx(0.5 * math.log(2) - 0.5)
    output.loss.backward()
    # d/d(log pi) of pi / (pi + c) is c pi / (pi + c)^2 = 0.01 / 0.04.
    assert logprobs.grad is not None
    assert logprobs.grad.tolist() == [[-0.5, pytest.approx(-0.25)]]
    assert output.diagnostics["expert_tokens"] == 1.0
    assert output.diagnostics["expert_probability_sum"] == pytest.approx(0.1)
    assert output.diagnostics["tokens"] == 1.0


def test_without_an_expert_it_is_reinforce() -> None:
    key = torch.linspace(-3, -0.1, 6, dtype=torch.float64).reshape(2, 3)
    advantages, weights = key.cos(), torch.full((2, 3), 1 / 6, dtype=torch.float64)
    plain = reinforce(key, key, advantages, weights)
    for experts in (None, torch.zeros(2, 3, dtype=torch.float64)):
        assert float(mixed_policy(key, key, advantages, weights, experts).loss) == float(plain.loss)


def test_untrained_tokens_may_hold_anything() -> None:
    logprobs = torch.tensor([[-1.0, float("-inf"), float("nan")]], requires_grad=True)
    advantages = torch.tensor([[1.0, float("nan"), 1.0]])
    weights, experts = torch.tensor([[1.0, 0.0, 0.0]]), torch.zeros(1, 3)
    output = mixed_policy(logprobs, logprobs.detach(), advantages, weights, experts)
    output.loss.backward()
    assert logprobs.grad is not None
    assert logprobs.grad.tolist() == [[-1.0, 0.0, 0.0]]


def test_shaping_must_be_positive() -> None:
    with pytest.raises(ValueError, match="shaping"):
        mixed_policy(*[torch.zeros(1, 1)] * 4, shaping=0.0)
