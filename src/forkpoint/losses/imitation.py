"""Imitation: raise the probability of given tokens."""

from jaxtyping import Float
from torch import Tensor

from forkpoint.records import LossOutput


def cross_entropy(policy_logprobs: Float[Tensor, "B T"], weights: Float[Tensor, "B T"]) -> LossOutput:
    """The weighted negative log-likelihood of the tokens, in nats.

    loss = - sum_bt w_bt log pi(y_bt)

    Tokens of weight 0 may hold anything, also -inf; without a trained token the loss is a 0 that still has a graph.
    Diagnostics are sums: `cross_entropy_sum` (nats, unweighted) and `cross_entropy_tokens`.
    """
    trained = weights != 0
    per_token = -policy_logprobs.masked_fill(~trained, 0.0)
    diagnostics = {
        "cross_entropy_sum": float(per_token.detach().double().sum()),
        "cross_entropy_tokens": float(trained.sum()),
    }
    return LossOutput(loss=(per_token * weights).sum(), diagnostics=diagnostics)
