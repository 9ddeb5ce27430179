"""Policy-gradient losses: per-token terms, weighted by `losses.aggregation`, summed to one scalar to minimize.

Shapes: [B, T], rows padded on the right.  Log-probabilities in nats.  r = pi / mu, with mu the policy that sampled.
A token of weight 0 is not trained: whatever stands there (padding, -inf, nan) changes neither loss nor gradient.
Tokens that a trust region masks keep their weight in the denominator, so the step size does not depend on them.

Every diagnostic is a sum over trained tokens, so micro-batches can be added:
`tokens`, `clipped_tokens` (no gradient, by the trust region), `kl_k3_sum` (nats; over `tokens`: KL(mu || pi)),
`ratio_sum`, `ratio_square_sum` (effective sample size: ratio_sum^2 / ratio_square_sum).
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from forkpoint.losses.divergence import k3_metric
from forkpoint.records import LossOutput

_LOG_RATIO_LIMIT = 80.0
# e^80 is below the largest float32.  An infinite ratio in a branch that is not taken would give 0 * inf = nan.


def reinforce(
    policy_logprobs: Float[Tensor, "B T"],
    behavior_logprobs: Float[Tensor, "B T"],
    advantages: Float[Tensor, "B T"],
    weights: Float[Tensor, "B T"],
) -> LossOutput:
    """The on-policy policy gradient, without a ratio.

    per token: -A log pi    (Williams 1992)

    Right only while the weights are those that sampled; `behavior_logprobs` enter the diagnostics alone.
    """
    tokens = _trained_tokens(policy_logprobs, behavior_logprobs, advantages, weights)
    return _output(tokens, -tokens.advantages * tokens.policy, torch.zeros_like(tokens.trained))


def clipped_surrogate(
    policy_logprobs: Float[Tensor, "B T"],
    behavior_logprobs: Float[Tensor, "B T"],
    advantages: Float[Tensor, "B T"],
    weights: Float[Tensor, "B T"],
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    dual_clip: float | None = None,
) -> LossOutput:
    """The clipped surrogate of PPO.

    per token: -min(r A, clip(r, 1 - clip_low, 1 + clip_high) A)    (arXiv 1707.06347)

    A larger `clip_high` is the "clip-higher" of DAPO (arXiv 2503.14476).  With `dual_clip` = c the objective of a
    token with A < 0 is at least c A (arXiv 1912.09729), so a huge ratio cannot dominate.

    Raises:
        ValueError: `clip_low` outside [0, 1], `clip_high` below 0, `dual_clip` not above 1.
    """
    if not (0 <= clip_low <= 1 and clip_high >= 0 and (dual_clip is None or dual_clip > 1)):
        raise ValueError(
            f"clipped_surrogate: clip_low = {clip_low} must lie in [0, 1], clip_high = {clip_high} must be at least 0, "
            f"dual_clip = {dual_clip} must be above 1 or None."
        )
    tokens = _trained_tokens(policy_logprobs, behavior_logprobs, advantages, weights)
    advantage = tokens.advantages
    ratio = (tokens.policy - tokens.behavior).clamp(max=_LOG_RATIO_LIMIT).exp()
    objective = torch.minimum(ratio * advantage, ratio.clamp(1 - clip_low, 1 + clip_high) * advantage)
    clipped = ((advantage > 0) & (ratio > 1 + clip_high)) | ((advantage < 0) & (ratio < 1 - clip_low))
    if dual_clip is not None:
        bounded = torch.maximum(objective, dual_clip * advantage)
        objective = torch.where(advantage < 0, bounded, objective)
        clipped |= (advantage < 0) & (ratio > dual_clip)
    return _output(tokens, -objective, clipped)


def dppo_tv(
    policy_logprobs: Float[Tensor, "B T"],
    behavior_logprobs: Float[Tensor, "B T"],
    advantages: Float[Tensor, "B T"],
    weights: Float[Tensor, "B T"],
    *,
    delta_low: float = 0.2,
    delta_high: float = 0.2,
    ratio_cap: float = 20.0,
) -> LossOutput:
    """The importance-weighted policy gradient inside a trust region of probability differences.

    per token: -sg(min(r, ratio_cap)) A log pi [valid]    (DPPO, arXiv 2602.04879)
    valid: pi - mu <= delta_high where A > 0, pi - mu >= -delta_low where A < 0

    The difference of probabilities is a lower bound of the total variation; a ratio is a poor distance, since rare
    tokens have large ratios at no distance.  Inside the region the gradient is that of r A.  Masked tokens keep
    their weight.

    Raises:
        ValueError: a negative delta, or a `ratio_cap` below 1.
    """
    if not (delta_low >= 0 and delta_high >= 0 and ratio_cap >= 1):
        raise ValueError(
            f"dppo_tv: delta_low = {delta_low} and delta_high = {delta_high} must be at least 0, "
            f"ratio_cap = {ratio_cap} at least 1."
        )
    tokens = _trained_tokens(policy_logprobs, behavior_logprobs, advantages, weights)
    advantage, policy = tokens.advantages, tokens.policy.detach()
    ratio = (policy - tokens.behavior).clamp(max=_LOG_RATIO_LIMIT).exp().clamp(max=ratio_cap)
    change = policy.exp() - tokens.behavior.exp()
    outside = ((advantage > 0) & (change > delta_high)) | ((advantage < 0) & (change < -delta_low))
    per_token = (-ratio * advantage * tokens.policy).masked_fill(outside, 0.0)
    return _output(tokens, per_token, outside)


class _Tokens(NamedTuple):
    """The inputs with 0 at every untrained token; only `policy` carries a gradient."""

    policy: Float[Tensor, "B T"]
    behavior: Float[Tensor, "B T"]
    advantages: Float[Tensor, "B T"]
    weights: Float[Tensor, "B T"]
    trained: Bool[Tensor, "B T"]


def _trained_tokens(
    policy_logprobs: Float[Tensor, "B T"],
    behavior_logprobs: Float[Tensor, "B T"],
    advantages: Float[Tensor, "B T"],
    weights: Float[Tensor, "B T"],
) -> _Tokens:
    """The inputs, cleared where the weight is 0 before any exponential can see them."""
    trained = weights != 0
    return _Tokens(
        policy_logprobs.masked_fill(~trained, 0.0),
        behavior_logprobs.detach().masked_fill(~trained, 0.0),
        advantages.detach().masked_fill(~trained, 0.0),
        weights.detach(),
        trained,
    )


def _output(tokens: _Tokens, per_token: Float[Tensor, "B T"], clipped: Bool[Tensor, "B T"]) -> LossOutput:
    """The weighted sum and the additive diagnostics."""
    trained = tokens.trained
    ratio = (tokens.policy.detach() - tokens.behavior).double().exp() * trained
    diagnostics = {
        "tokens": float(trained.sum()),
        "clipped_tokens": float((clipped & trained).sum()),
        "kl_k3_sum": k3_metric(tokens.behavior, tokens.policy, trained),
        "ratio_sum": float(ratio.sum()),
        "ratio_square_sum": float(ratio.square().sum()),
    }
    return LossOutput(loss=(per_token * tokens.weights).sum(), diagnostics=diagnostics)
