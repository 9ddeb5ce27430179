"""The KL losses by hand; their expected gradients are in test_expected_gradients.py."""

import math

import pytest
import torch

from forkpoint.losses.divergence import k3_metric, sequence_k2, token_k2

# Log-ratios log(pi / ref): row 0 has 1 and 2 (and junk outside the mask), row 1 has -1, row 2 nothing.
POLICY = [[-1.0, -1.0, math.nan], [-3.0, -math.inf, 0.0], [-math.inf] * 3]
REFERENCE = [[-2.0, -3.0, 0.0], [-2.0, -math.inf, math.nan], [math.nan] * 3]
MASK = [[True, True, False], [True, False, False], [False] * 3]


def tensors():
    policy = torch.tensor(POLICY, dtype=torch.float64, requires_grad=True)
    reference = torch.tensor(REFERENCE, dtype=torch.float64, requires_grad=True)
    return policy, reference, torch.tensor(MASK)


K3 = (math.exp(-1) - 1 + 1) + (math.exp(-2) - 1 + 2) + (math.exp(1) - 1 - 1)


def test_sequence_k2_by_hand():
    policy, reference, mask = tensors()
    output = sequence_k2(policy, reference, mask, torch.tensor([0.5, 0.25, 0.25], dtype=torch.float64))
    output.loss.backward()
    assert output.loss.item() == pytest.approx(0.5 * 9 / 2 + 0.25 * 1 / 2, rel=1e-14)
    # The weight times the log-ratio of the whole sequence, on each of its tokens.
    assert policy.grad.tolist() == [[1.5, 1.5, 0.0], [-0.25, 0.0, 0.0], [0.0] * 3]
    assert reference.grad is None
    assert output.diagnostics == pytest.approx(
        {"reference_k3_sum": K3, "reference_tokens": 3, "reference_sequences": 2}, rel=1e-14
    )


def test_token_k2_by_hand():
    policy, reference, mask = tensors()
    output = token_k2(policy, reference, 0.25 * mask.double())
    output.loss.backward()
    assert output.loss.item() == pytest.approx(0.25 * (1 + 4 + 1) / 2, rel=1e-14)
    assert policy.grad.tolist() == [[0.25, 0.5, 0.0], [-0.25, 0.0, 0.0], [0.0] * 3]
    assert reference.grad is None
    assert output.diagnostics == pytest.approx(
        {"reference_k3_sum": K3, "reference_tokens": 3, "reference_sequences": 2}, rel=1e-14
    )


def test_k3_metric_is_a_detached_sum():
    policy, reference, mask = tensors()
    value = k3_metric(policy, reference, mask)
    assert type(value) is float
    assert value == pytest.approx(K3, rel=1e-14)
    assert k3_metric(policy, policy, mask) == 0.0
    rows = [k3_metric(policy[i : i + 1], reference[i : i + 1], mask[i : i + 1]) for i in range(3)]
    assert sum(rows) == pytest.approx(value, rel=1e-14)


@pytest.mark.parametrize("difference", [1e-3, -1e-3, 1e-5, -1e-5])
def test_k3_metric_is_accurate_for_tiny_differences_in_float32(difference):
    """x^2 / 2 + x^3 / 6: the doctor looks for mismatches of 1e-4 and less."""
    other = torch.tensor([[difference]])
    value = k3_metric(torch.zeros(1, 1), other, torch.ones(1, 1).bool())
    assert value == pytest.approx(other.item() ** 2 / 2 + other.item() ** 3 / 6, rel=1e-5)


@pytest.mark.parametrize("loss", ["sequence", "token"])
def test_nothing_masked_gives_a_zero_with_a_graph(loss):
    policy, reference, mask = tensors()
    empty = torch.zeros_like(mask)
    ones = torch.ones(3, dtype=torch.float64)
    output = sequence_k2(policy, reference, empty, ones) if loss == "sequence" else token_k2(policy, reference, empty)
    output.loss.backward()
    assert output.loss.item() == 0
    assert not policy.grad.any()
