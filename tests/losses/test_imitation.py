"""Cross-entropy: hand-worked numbers, its gradient, and rows without anything to train."""

import math

import pytest
import torch

from forkpoint.losses.imitation import cross_entropy


def test_by_hand():
    logprobs = torch.tensor([[0.5, 0.25, 0.5], [0.125, 1.0, 1.0]], dtype=torch.float64).log().requires_grad_()
    weights = torch.tensor([[0.25, 0.25, 0.0], [0.5, 0.0, 0.0]], dtype=torch.float64)
    output = cross_entropy(logprobs, weights)
    output.loss.backward()
    assert output.loss.item() == pytest.approx((0.25 + 0.5 + 1.5) * math.log(2), rel=1e-14)
    assert torch.equal(logprobs.grad, -weights)
    assert output.diagnostics == pytest.approx(
        {"cross_entropy_sum": 6 * math.log(2), "cross_entropy_tokens": 3}, rel=1e-14
    )


def test_gradient_to_the_logits_is_probability_minus_target():
    logits = torch.tensor([[[0.3, -1.0, 0.7]]], dtype=torch.float64, requires_grad=True)
    logprobs = torch.log_softmax(logits, -1)[..., 1]
    cross_entropy(logprobs, torch.full((1, 1), 0.5, dtype=torch.float64)).loss.backward()
    expected = 0.5 * (torch.softmax(logits.detach(), -1) - torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64))
    torch.testing.assert_close(logits.grad, expected, rtol=1e-13, atol=0)


@pytest.mark.parametrize("garbage", [-math.inf, math.nan])
def test_untrained_tokens_may_hold_anything(garbage):
    logprobs = torch.tensor([[-1.0, garbage]], requires_grad=True)
    output = cross_entropy(logprobs, torch.tensor([[1.0, 0.0]]))
    output.loss.backward()
    assert output.loss.item() == 1.0
    assert logprobs.grad.tolist() == [[-1.0, 0.0]]
    assert output.diagnostics == {"cross_entropy_sum": 1.0, "cross_entropy_tokens": 1.0}


def test_no_trained_token_gives_a_zero_with_a_graph():
    logprobs = torch.full((1, 2), -math.inf, requires_grad=True)
    output = cross_entropy(logprobs, torch.zeros(1, 2))
    output.loss.backward()
    assert output.loss.item() == 0
    assert not logprobs.grad.any()
