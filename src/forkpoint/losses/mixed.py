"""Expert traces inside a policy-gradient update: the loss of mixed-policy methods."""

import torch
from jaxtyping import Float
from torch import Tensor

from forkpoint.losses.policy_gradient import reinforce
from forkpoint.records import LossOutput


def mixed_policy(
    policy_logprobs: Float[Tensor, "B T"],
    behavior_logprobs: Float[Tensor, "B T"],
    advantages: Float[Tensor, "B T"],
    weights: Float[Tensor, "B T"],
    expert_weights: Float[Tensor, "B T"] | None = None,
    *,
    shaping: float = 0.1,
) -> LossOutput:
    """The on-policy gradient of sampled tokens plus a shaped one of an expert's tokens.

    sampled: -A log pi        expert: -A pi / (pi + shaping)        (LUFFY, arXiv 2504.14945, with mu = 1)

    The slope of the shaped term in log pi is shaping pi / (pi + shaping)^2: largest at pi = `shaping`, so rare tokens
    of the expert are learned although pi itself would hardly pull them, and common ones are left alone.
    One expert's tokens have `expert_weights` and no `weights`; the two share a denominator.
    Diagnostics are sums: those of `reinforce`, and `expert_tokens`, `expert_probability_sum`.

    Raises:
        ValueError: `shaping` is not above 0.
    """
    if shaping <= 0:
        raise ValueError(f"mixed_policy: shaping = {shaping} must be above 0.")
    sampled = reinforce(policy_logprobs, behavior_logprobs, advantages, weights)
    if expert_weights is None:
        return sampled
    trained = expert_weights != 0
    probability = policy_logprobs.masked_fill(~trained, 0.0).exp()
    gain = advantages.detach().masked_fill(~trained, 0.0) * probability / (probability + shaping)
    diagnostics = {
        **sampled.diagnostics,
        "expert_tokens": float(trained.sum()),
        "expert_probability_sum": float((probability.detach() * trained).sum(dtype=torch.float64)),
    }
    return LossOutput(loss=sampled.loss - (gain * expert_weights).sum(), diagnostics=diagnostics)
