"""Hand-worked numbers and gradients of each loss, on and off the policy, on both sides of each threshold."""

import math

import pytest
import torch

from forkpoint.losses import LOSSES, OFF_POLICY_LOSSES
from forkpoint.losses.policy_gradient import clipped_surrogate, dppo_tv, reinforce

DIAGNOSTICS = {"tokens", "clipped_tokens", "kl_k3_sum", "ratio_sum", "ratio_square_sum"}


def run(loss, policy, behavior, advantages, weights, **knobs):
    """Loss, gradient to each log-probability and diagnostics, for one row of probabilities."""
    logprobs = torch.tensor([policy], dtype=torch.float64).log().requires_grad_()
    behavior_logprobs = torch.tensor([behavior], dtype=torch.float64).log().requires_grad_()
    rows = [torch.tensor([row], dtype=torch.float64) for row in (advantages, weights)]
    output = loss(logprobs, behavior_logprobs, *rows, **knobs)
    (gradient,) = torch.autograd.grad(output.loss, logprobs)
    return output.loss.item(), gradient[0].tolist(), output.diagnostics


def test_table():
    assert set(LOSSES) == {"reinforce", "clipped_surrogate", "dppo_tv", "mixed_policy"}
    assert set(LOSSES) - OFF_POLICY_LOSSES == {"reinforce", "mixed_policy"}


def test_reinforce_by_hand():
    loss, gradient, diagnostics = run(reinforce, [0.5, 0.25], [0.5, 0.5], [2.0, -1.0], [0.25, 0.5])
    # -2 log(1/2) / 4 + log(1/4) / 2 = log 2 / 2 - log 2
    assert loss == pytest.approx(-0.5 * math.log(2), rel=1e-14)
    assert gradient == pytest.approx([-0.5, 0.5], rel=1e-14)  # -w A; no ratio, though the second token is stale
    assert diagnostics == pytest.approx(
        {
            "tokens": 2,
            "clipped_tokens": 0,
            "kl_k3_sum": 0.5 - 1 + math.log(2),  # ratios 1 and 1/2
            "ratio_sum": 1.5,
            "ratio_square_sum": 1.25,
        },
        rel=1e-12,
    )


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_on_policy_gradient_is_that_of_reinforce(name):
    probabilities, advantages, weights = [0.5, 0.1, 0.9], [1.5, -0.5, 0.0], [0.2, 0.3, 0.4]
    _, gradient, diagnostics = run(LOSSES[name], probabilities, probabilities, advantages, weights)
    assert gradient == pytest.approx([-0.3, 0.15, 0.0], rel=1e-14)
    assert diagnostics == {
        "tokens": 3,
        "clipped_tokens": 0,
        "kl_k3_sum": 0.0,
        "ratio_sum": 3.0,
        "ratio_square_sum": 3.0,
    }


@pytest.mark.parametrize(
    ("policy", "advantage", "value", "slope", "clipped"),
    [
        (0.46, 1.0, 1.15, 1.15, 0),  # below 1 + clip_high = 1.2: the ratio itself
        (0.52, 1.0, 1.20, 0.0, 1),  # above it: held
        (0.20, 1.0, 0.50, 0.50, 0),  # far below, to be raised: never held
        (0.36, -1.0, -0.90, -0.90, 0),  # above 1 - clip_low = 0.7: the ratio itself
        (0.24, -1.0, -0.70, 0.0, 1),  # below it: held
        (0.80, -1.0, -2.00, -2.00, 0),  # far above, to be lowered: never held
        (0.80, 0.0, 0.0, 0.0, 0),
    ],
)
def test_clipped_surrogate_by_hand(policy, advantage, value, slope, clipped):
    loss, gradient, diagnostics = run(
        clipped_surrogate, [policy], [0.4], [advantage], [0.5], clip_low=0.3, clip_high=0.2
    )
    assert loss == pytest.approx(-0.5 * value, abs=1e-14)
    assert gradient == pytest.approx([-0.5 * slope], abs=1e-14)
    assert diagnostics["clipped_tokens"] == clipped


@pytest.mark.parametrize(
    ("policy", "advantage", "value", "slope", "clipped"),
    [
        (0.50, -2.0, -10.0, -10.0, 0),  # ratio 5 below c = 6
        (0.70, -2.0, -12.0, 0.0, 1),  # ratio 7 above it: c A
        (0.05, -2.0, -1.6, 0.0, 1),  # the ordinary clip still holds
        (0.70, 2.0, 2.4, 0.0, 1),  # a positive advantage knows no dual clip
        (0.05, 2.0, 1.0, 1.0, 0),
        (0.11, 2.0, 2.2, 2.2, 0),
    ],
)
def test_dual_clip_by_hand(policy, advantage, value, slope, clipped):
    loss, gradient, diagnostics = run(clipped_surrogate, [policy], [0.1], [advantage], [1.0], dual_clip=6.0)
    assert loss == pytest.approx(-value, abs=1e-14)
    assert gradient == pytest.approx([-slope], abs=1e-14)
    assert diagnostics["clipped_tokens"] == clipped


@pytest.mark.parametrize(
    ("policy", "behavior", "advantage", "slope", "clipped"),
    [
        (0.59, 0.40, 1.0, 1.475, 0),  # raised by 0.19: inside delta_high = 0.2, weighed by the ratio
        (0.61, 0.40, 1.0, 0.0, 1),  # raised by 0.21: outside
        (0.10, 0.90, 1.0, 1 / 9, 0),  # lowered, but the advantage pulls it back: kept
        (0.31, 0.40, -1.0, -0.775, 0),  # lowered by 0.09: inside delta_low = 0.1
        (0.29, 0.40, -1.0, 0.0, 1),  # lowered by 0.11: outside
        (0.90, 0.10, -1.0, -9.0, 0),  # raised, but the advantage pulls it back: kept
        (0.10, 0.001, 1.0, 20.0, 0),  # ratio 100 is capped, the token stays: its probability changed by 0.099
        (0.30, 0.40, 0.0, 0.0, 0),
    ],
)
def test_dppo_tv_by_hand(policy, behavior, advantage, slope, clipped):
    loss, gradient, diagnostics = run(dppo_tv, [policy], [behavior], [advantage], [0.5], delta_low=0.1, delta_high=0.2)
    assert gradient == pytest.approx([-0.5 * slope], rel=1e-12)
    assert loss == pytest.approx(-0.5 * slope * math.log(policy), rel=1e-12)
    assert diagnostics["clipped_tokens"] == clipped


def test_dppo_tv_masked_token_keeps_its_weight():
    """The token inside has the same gradient whether or not its neighbor is masked."""
    _, both, _ = run(dppo_tv, [0.5, 0.5], [0.4, 0.4], [1.0, 1.0], [0.5, 0.5])
    _, one, diagnostics = run(dppo_tv, [0.5, 0.9], [0.4, 0.4], [1.0, 1.0], [0.5, 0.5])
    assert one == [both[0], 0.0]
    assert diagnostics["tokens"] == 2


def test_inside_its_region_the_gradient_is_importance_weighted():
    """By autograd through the ratio itself: grad of -sum w A pi / mu."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 4, 6, generator=generator, dtype=torch.float64, requires_grad=True)
    actions = torch.randint(6, (3, 4, 1), generator=generator)
    logprobs = torch.log_softmax(logits, -1).gather(-1, actions)[..., 0]
    behavior = (logprobs + 0.1 * torch.rand(3, 4, generator=generator, dtype=torch.float64)).detach()
    advantages, weights = torch.randn(2, 3, 4, generator=generator, dtype=torch.float64)
    surrogate = -(weights * advantages * (logprobs - behavior).exp()).sum()
    (expected,) = torch.autograd.grad(surrogate, logits, retain_graph=True)
    for loss in (dppo_tv, clipped_surrogate):
        output = loss(logprobs, behavior, advantages, weights)
        (gradient,) = torch.autograd.grad(output.loss, logits, retain_graph=True)
        assert output.diagnostics["clipped_tokens"] == 0
        torch.testing.assert_close(gradient, expected, rtol=1e-12, atol=1e-14)
    on_policy = torch.autograd.grad(reinforce(logprobs, behavior, advantages, weights).loss, logits)[0]
    assert (on_policy - expected).norm() > 0.01 * expected.norm()


@pytest.mark.parametrize("name", sorted(LOSSES))
@pytest.mark.parametrize("garbage", [-math.inf, math.nan, 1e30, math.inf])
def test_untrained_tokens_may_hold_anything(name, garbage):
    policy = torch.tensor([[-1.0, garbage, garbage]], requires_grad=True)
    behavior = torch.tensor([[-1.1, garbage, -1.0]])
    advantages = torch.tensor([[1.0, 1.0, garbage]])
    output = LOSSES[name](policy, behavior, advantages, torch.tensor([[0.5, 0.0, 0.0]]))
    output.loss.backward()
    clean = LOSSES[name](policy[:, :1], behavior[:, :1], advantages[:, :1], torch.tensor([[0.5]]))
    assert output.loss.item() == clean.loss.item()
    assert output.diagnostics == clean.diagnostics
    assert policy.grad[0, 0] != 0
    assert policy.grad[0, 1:].tolist() == [0.0, 0.0]


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_no_trained_token_gives_a_zero_with_a_graph(name):
    policy = torch.full((2, 3), -math.inf, requires_grad=True)
    output = LOSSES[name](policy, policy.detach(), torch.ones(2, 3), torch.zeros(2, 3))
    output.loss.backward()
    assert output.loss.item() == 0
    assert not policy.grad.any()
    assert output.diagnostics == dict.fromkeys(DIAGNOSTICS, 0.0)


@pytest.mark.parametrize("advantage", [1.0, -1.0])
@pytest.mark.parametrize(("name", "knobs"), [("dppo_tv", {}), ("clipped_surrogate", {"dual_clip": 3.0})])
def test_an_overflowing_ratio_stays_finite(name, knobs, advantage):
    policy = torch.tensor([[-0.1]], requires_grad=True)
    output = LOSSES[name](policy, torch.tensor([[-300.0]]), torch.tensor([[advantage]]), torch.ones(1, 1), **knobs)
    output.loss.backward()
    assert math.isfinite(output.loss.item())
    assert policy.grad.isfinite().all()


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_behavior_and_advantages_get_no_gradient(name):
    tensors = [torch.full((1, 2), -0.5, requires_grad=True) for _ in range(4)]
    LOSSES[name](*tensors).loss.backward()
    assert tensors[0].grad is not None
    assert [tensor.grad for tensor in tensors[1:]] == [None, None, None]


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_diagnostics_add_over_micro_batches(name):
    generator = torch.Generator().manual_seed(1)
    policy, behavior = -2 * torch.rand(2, 6, 5, generator=generator, dtype=torch.float64)
    advantages, weights = torch.randn(2, 6, 5, generator=generator, dtype=torch.float64)
    rows = (policy, behavior, advantages, weights.clamp(min=0))
    whole = LOSSES[name](*rows)
    parts = [LOSSES[name](*(tensor[cut] for tensor in rows)) for cut in (slice(0, 1), slice(1, 6))]
    assert set(whole.diagnostics) == DIAGNOSTICS
    for key, value in whole.diagnostics.items():
        assert type(value) is float
        assert value == pytest.approx(sum(part.diagnostics[key] for part in parts), rel=1e-12)
    assert whole.loss.item() == pytest.approx(sum(part.loss.item() for part in parts), rel=1e-12)


@pytest.mark.parametrize(
    ("loss", "knobs"),
    [
        (clipped_surrogate, {"clip_low": -0.1}),
        (clipped_surrogate, {"clip_low": 1.5}),
        (clipped_surrogate, {"clip_high": -0.1}),
        (clipped_surrogate, {"dual_clip": 1.0}),
        (dppo_tv, {"delta_low": -0.1}),
        (dppo_tv, {"delta_high": -0.1}),
        (dppo_tv, {"ratio_cap": 0.5}),
    ],
)
def test_knobs_out_of_bounds_are_refused(loss, knobs):
    with pytest.raises(ValueError, match=next(iter(knobs))):
        run(loss, [0.5], [0.5], [1.0], [1.0], **knobs)
