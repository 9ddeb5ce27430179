"""One token from a row of logits and one uniform number: inverse CDF in float64.

Letters: R rows, V tokens.  Log-probabilities in nats, of the distribution that the token was really drawn from.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor


def draw_tokens(
    logits: Float[Tensor, "R V"], uniforms: Float[Tensor, " R"], temperatures: Float[Tensor, " R"]
) -> tuple[Int[Tensor, " R"], Float[Tensor, " R"]]:
    """The drawn tokens and their log-probabilities.

    The sum of float32 probabilities ends beside 1, so the uniform number is scaled by where it ends.  A token of
    probability zero is never drawn: `right=True` skips it at u = 0, and the clamp to the last nonzero token does at
    the upper end.  Temperature 0 takes the most probable token, with log-probability 0.

    >>> draw_tokens(torch.tensor([[0.0, 0.0]]), torch.tensor([0.75], dtype=torch.float64), torch.ones(1))
    (tensor([1]), tensor([-0.6931]))
    """
    greedy = temperatures == 0
    scale = torch.where(greedy, torch.ones_like(temperatures), temperatures)
    logprobs = torch.log_softmax(logits / scale[:, None], dim=-1)
    cumulative = logprobs.exp().double().cumsum(-1)
    target = uniforms.double() * cumulative[:, -1]
    tokens = torch.searchsorted(cumulative, target[:, None], right=True)[:, 0]
    last = (cumulative < cumulative[:, -1:]).sum(-1)
    tokens = torch.minimum(tokens, last)
    tokens = torch.where(greedy, logits.argmax(-1), tokens)
    chosen = logprobs.gather(-1, tokens[:, None])[:, 0]
    # The difference is 0, but stays not-a-number where the logits are.
    return tokens, torch.where(greedy, chosen - chosen, chosen)
