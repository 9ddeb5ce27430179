"""Divergences from a teacher: by hand on three tokens, with a bucket for the rest, and their gradients."""

import math

import pytest
import torch

from forkpoint.losses.distillation import bucket_divergence, distillation

STUDENT, TEACHER = [0.5, 0.25, 0.25], [0.25, 0.5, 0.25]
DIRECTIONS = ("reverse", "forward", "jsd")


def logs(*probabilities):
    return torch.tensor([probabilities], dtype=torch.float64).log()


def test_three_tokens_by_hand():
    # reverse: 1/2 ln 2 + 1/4 ln 1/2 = ln 2 / 4, and forward the same by symmetry; the middle is (3/8, 3/8, 1/4).
    middle = 0.5 * math.log(4 / 3) + 0.25 * math.log(2 / 3)
    expected = {"reverse": math.log(2) / 4, "forward": math.log(2) / 4, "jsd": middle}
    for direction, value in expected.items():
        assert float(bucket_divergence(logs(*STUDENT), logs(*TEACHER), direction)) == pytest.approx(value, rel=1e-12)
    # And without the symmetry.
    one, other = logs(0.5, 0.25, 0.25), logs(0.125, 0.125, 0.75)
    reverse = 0.5 * math.log(4) + 0.25 * math.log(2) + 0.25 * math.log(1 / 3)
    forward = 0.125 * math.log(1 / 4) + 0.125 * math.log(1 / 2) + 0.75 * math.log(3)
    assert float(bucket_divergence(one, other, "reverse")) == pytest.approx(reverse, rel=1e-12)
    assert float(bucket_divergence(one, other, "forward")) == pytest.approx(forward, rel=1e-12)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_no_distance_to_oneself_and_none_is_negative(direction):
    draw = torch.Generator().manual_seed(0)
    one, other = (torch.randn(50, 6, generator=draw, dtype=torch.float64).log_softmax(-1) for _ in range(2))
    assert bucket_divergence(one, one, direction).abs().max() < 1e-15
    assert (bucket_divergence(one, other, direction) > 0).all()
    if direction == "jsd":
        assert (bucket_divergence(one, other, direction) < math.log(2)).all()


@pytest.mark.parametrize(("direction", "slope"), [
    # d/dz_k of KL(s, t) is s_k (log s_k / t_k - KL); of KL(t, s) it is s_k - t_k.
    ("reverse", lambda s, t: s * ((s / t).log() - (s * (s / t).log()).sum())),
    ("forward", lambda s, t: s - t),
    ("jsd", lambda s, t: 0.5 * s * ((2 * s / (s + t)).log() - (s * (2 * s / (s + t)).log()).sum())),
])  # fmt: skip
def test_gradients_are_those_of_the_formulas_and_reach_no_teacher(direction, slope):
    logits = torch.tensor([0.3, -1.2, 0.8], dtype=torch.float64, requires_grad=True)
    teacher = torch.tensor([[0.1, 0.6, 0.3]], dtype=torch.float64).log().requires_grad_()
    bucket_divergence(logits.log_softmax(-1)[None], teacher, direction).sum().backward()
    expected = slope(logits.detach().softmax(-1), teacher.detach().exp()[0])
    assert logits.grad.tolist() == pytest.approx(expected.tolist(), rel=1e-12, abs=1e-15)
    assert teacher.grad is None


def test_the_term_is_a_weighted_sum_and_tokens_without_weight_may_hold_anything():
    divergences = torch.tensor([[1.0, 2.0, float("nan")], [4.0, float("inf"), 0.5]], requires_grad=True)
    weights = torch.tensor([[0.5, 0.25, 0.0], [0.125, 0.0, 1.0]])
    output = distillation(divergences, weights)
    output.loss.backward()
    assert float(output.loss.detach()) == 0.5 + 0.5 + 0.5 + 0.5
    assert torch.equal(divergences.grad, weights)
    assert output.diagnostics == {"distillation_sum": 7.5, "distillation_tokens": 4.0}
