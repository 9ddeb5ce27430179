"""The entropy bonus by hand, what its weights leave out, and its gradient on logits."""

import math

import pytest
import torch

from forkpoint.losses.entropy import entropy_bonus


def test_two_tokens_by_hand_and_what_has_no_weight_may_hold_anything():
    entropies = torch.tensor([[math.log(2), 0.5, float("nan")]], dtype=torch.float64)
    weights = torch.tensor([[0.1, 0.3, 0.0]], dtype=torch.float64)
    found = entropy_bonus(entropies, weights)
    assert float(found.loss) == pytest.approx(-(0.1 * math.log(2) + 0.15), rel=1e-12)
    assert found.diagnostics == {"bonus_entropy_sum": pytest.approx(math.log(2) + 0.5), "bonus_tokens": 2.0}


def test_the_gradient_on_logits_by_hand():
    """d H / d z_k = - p_k (log p_k + H), so the loss falls towards the uniform distribution."""
    logits = torch.tensor([[[math.log(3.0), 0.0]]], dtype=torch.float64, requires_grad=True)
    table = torch.log_softmax(logits, -1)
    found = entropy_bonus(-(table.exp() * table).sum(-1), torch.full((1, 1), 2.0, dtype=torch.float64))
    found.loss.backward()
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    expected = [2 * p * (math.log(p) + entropy) for p in (0.75, 0.25)]
    assert logits.grad.flatten().tolist() == pytest.approx(expected, rel=1e-12)
    assert expected[0] > 0  # minimizing lowers the probable one
