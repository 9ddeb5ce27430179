"""The contrastive loss on fork tokens, with an anchor on the others."""

from jaxtyping import Float
from torch import Tensor

from forkpoint.records import LossOutput


def contrastive_forks(
    fork_logprobs: Float[Tensor, " N"],
    fork_weights: Float[Tensor, " N"],
    anchor_divergences: Float[Tensor, " M"],
    anchor_weights: Float[Tensor, " M"],
) -> LossOutput:
    """The signed cross-entropy of fork tokens plus the divergence from the base elsewhere (arXiv 2605.06241).

    loss = - sum_n w_n log pi(y_n) + sum_m a_m KL(base || pi)_m,   w_n = A_n / |D|,   a_m = anchor / M

    Both counts are those of the whole update, so micro-batches add up.  A negative w pushes a token down: the loss has
    no lower bound, and only the number of updates and the anchor end it.  N fork tokens, M other tokens, nats.
    Diagnostics are sums: `fork_loss`, `fork_tokens`, `anchor_kl_sum` (nats, unweighted), `anchor_tokens`.
    """
    contrast = -(fork_logprobs * fork_weights).sum()
    loss = contrast + (anchor_divergences * anchor_weights).sum()
    diagnostics = {
        "fork_loss": float(contrast.detach()),
        "fork_tokens": float(len(fork_logprobs)),
        "anchor_kl_sum": float(anchor_divergences.detach().double().sum()),
        "anchor_tokens": float(len(anchor_divergences)),
    }
    return LossOutput(loss=loss, diagnostics=diagnostics)
