"""The entropy bonus: what a policy is paid for staying undecided."""

from jaxtyping import Float
from torch import Tensor

from forkpoint.records import LossOutput


def entropy_bonus(entropies: Float[Tensor, "B T"], weights: Float[Tensor, "B T"]) -> LossOutput:
    """The weighted sum of the entropies of next-token distributions, in nats, negative: minimized, they grow.

    loss = - sum_bt w_bt H(pi(. | s_bt)),   H = - sum_v pi(v) log pi(v)

    The gradient of each H is exact; the states s are held fixed, so that what a token does to the entropies after it is
    left out.  Tokens of weight 0 may hold anything.  Diagnostics are sums: `bonus_entropy_sum` (nats, unweighted) and
    `bonus_tokens`.
    """
    paid = weights != 0
    kept = entropies.masked_fill(~paid, 0.0)
    diagnostics = {"bonus_entropy_sum": float(kept.detach().double().sum()), "bonus_tokens": float(paid.sum())}
    return LossOutput(loss=-(kept * weights).sum(), diagnostics=diagnostics)
