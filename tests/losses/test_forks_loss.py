"""The contrastive loss on numbers worked out by hand."""

import pytest
import torch

from forkpoint.losses.forks import contrastive_forks


def test_the_sign_of_a_weight_says_whether_a_token_is_raised_or_lowered():
    logprobs = torch.tensor([-1.0, -2.0, -0.5], requires_grad=True)
    divergences = torch.tensor([0.3, 0.1], requires_grad=True)
    output = contrastive_forks(logprobs, torch.tensor([0.5, -0.25, 0.25]), divergences, torch.tensor([0.1, 0.2]))
    # 0.5 * 1 - 0.25 * 2 + 0.25 * 0.5 + 0.03 + 0.02
    assert float(output.loss.detach()) == pytest.approx(0.5 - 0.5 + 0.125 + 0.05, abs=1e-7)
    output.loss.backward()
    assert logprobs.grad.tolist() == [-0.5, 0.25, -0.25]
    assert divergences.grad.tolist() == pytest.approx([0.1, 0.2])
    assert output.diagnostics == {
        "fork_loss": pytest.approx(0.125),
        "fork_tokens": 3.0,
        "anchor_kl_sum": pytest.approx(0.4),
        "anchor_tokens": 2.0,
    }


def test_nothing_costs_nothing():
    none = torch.zeros(0)
    assert float(contrastive_forks(none, none, none, none).loss) == 0.0
