"""Reverse KL to a reference policy: two losses under their true names, and a metric.

With x = log pi(y) - log ref(y), k2 = x^2 / 2 and k3 = e^-x - 1 + x (Schulman, "Approximating KL divergence", 2020).
As a loss on the policy's own samples, k2 of the whole sequence has the exact gradient of KL(pi || ref);
k2 of each token leaves out what a token does to the states that follow; k3 has that of the forward KL, so here it is a
metric only (compare arXiv 2512.21852).
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from forkpoint.records import LossOutput


def sequence_k2(
    policy_logprobs: Float[Tensor, "B T"],
    reference_logprobs: Float[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
    sequence_weights: Float[Tensor, " B"],
) -> LossOutput:
    """The k2 loss of whole sequences, in squared nats.

    loss = sum_b w_b / 2 (sum_t mask (log pi - log ref))^2

    On-policy its expected gradient is exactly that of KL(pi || ref) over sequences, with w_b = 1 / B.
    Under stale samples it is biased.  Tokens outside `mask` may hold anything.
    Diagnostics are sums: `reference_k3_sum` (nats), `reference_tokens`, `reference_sequences`.
    """
    difference = _difference(policy_logprobs, reference_logprobs, mask)
    loss = (0.5 * difference.sum(dim=-1).square() * sequence_weights).sum()
    diagnostics = _diagnostics(policy_logprobs, reference_logprobs, mask)
    return LossOutput(loss=loss, diagnostics=diagnostics)


def token_k2(
    policy_logprobs: Float[Tensor, "B T"],
    reference_logprobs: Float[Tensor, "B T"],
    weights: Float[Tensor, "B T"],
) -> LossOutput:
    """The k2 loss of single tokens, in squared nats: token-level KL with the state distribution held fixed.

    loss = sum_bt w_bt / 2 (log pi - log ref)^2

    Its expected gradient is that of sum_s d(s) KL(pi(.|s) || ref(.|s)) with d held fixed.  It is *not* the gradient of
    the KL of sequences: it leaves out that a token changes which states come later.
    Tokens of weight 0 may hold anything.  Diagnostics as in `sequence_k2`.
    """
    mask = weights != 0
    difference = _difference(policy_logprobs, reference_logprobs, mask)
    loss = (0.5 * difference.square() * weights).sum()
    diagnostics = _diagnostics(policy_logprobs, reference_logprobs, mask)
    return LossOutput(loss=loss, diagnostics=diagnostics)


def k3_metric(
    sampled_logprobs: Float[Tensor, "B T"], other_logprobs: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"]
) -> float:
    """The sum over masked tokens of k3, in nats: divided by the number of tokens it estimates KL(sampled || other).

    k3 = r - 1 - log r with r = other / sampled.  Tokens must be drawn from the policy of the first argument.
    Never negative, detached, a sum so that micro-batches can be added.

    >>> k3_metric(torch.tensor([[-1.0, -1.0]]), torch.tensor([[-1.0, 9.0]]), torch.tensor([[True, False]]))
    0.0
    """
    log_ratio = _difference(other_logprobs, sampled_logprobs, mask).detach().double()
    return float((torch.expm1(log_ratio) - log_ratio).sum())


def _difference(
    first: Float[Tensor, "B T"], second: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"]
) -> Float[Tensor, "B T"]:
    """`first - second` on the mask and 0 elsewhere, whatever stands there; no gradient through `second`."""
    return first.masked_fill(~mask, 0.0) - second.detach().masked_fill(~mask, 0.0)


def _diagnostics(
    policy_logprobs: Float[Tensor, "B T"], reference_logprobs: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"]
) -> dict[str, float]:
    """Sums and counts that may be added over micro-batches."""
    return {
        "reference_k3_sum": k3_metric(policy_logprobs, reference_logprobs, mask),
        "reference_tokens": float(mask.sum()),
        "reference_sequences": float(mask.any(dim=-1).sum()),
    }
