"""Self-distillation: how far a student's next-token distribution is from a teacher's, over the tokens it names."""

import math
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from forkpoint.records import LossOutput

Direction = Literal["reverse", "forward", "jsd"]


def bucket_divergence(
    student: Float[Tensor, "N K"], teacher: Float[Tensor, "N K"], direction: Direction
) -> Float[Tensor, " N"]:
    """The divergence of two distributions over K buckets, given as log-probabilities, in nats; 0 where they agree.

    reverse  sum_k s_k (log s_k - log t_k)          (SDPO, arXiv 2601.20802)
    forward  sum_k t_k (log t_k - log s_k)
    jsd      half of both, each to the middle (s + t) / 2          (OPSD, arXiv 2601.18734)

    No gradient reaches the teacher.  With a last bucket for all other tokens it is never above the divergence over
    single tokens; what is missing is the probability of that bucket times the divergence within it.

    >>> half = torch.tensor([[0.5, 0.5]]).log()
    >>> round(float(bucket_divergence(half, torch.tensor([[0.25, 0.75]]).log(), "reverse")), 6)
    0.143841
    """
    teacher = teacher.detach()
    if direction == "reverse":
        return _kl(student, teacher)
    if direction == "forward":
        return _kl(teacher, student)
    middle = torch.logaddexp(student, teacher) - math.log(2.0)
    return 0.5 * (_kl(student, middle) + _kl(teacher, middle))


def _kl(one: Float[Tensor, "N K"], other: Float[Tensor, "N K"]) -> Float[Tensor, " N"]:
    return (one.exp() * (one - other)).sum(-1)


def distillation(divergences: Float[Tensor, "B T"], weights: Float[Tensor, "B T"]) -> LossOutput:
    """The weighted sum of the divergences of tokens, in nats.

    loss = sum_bt w_bt D(pi(. | s_bt), teacher_bt)

    The states s are held fixed: what a token does to the divergences after it is left out.  Tokens of weight 0 may
    hold anything.  Diagnostics are sums: `distillation_sum` (nats, unweighted) and `distillation_tokens`.
    """
    taught = weights != 0
    kept = divergences.masked_fill(~taught, 0.0)
    diagnostics = {
        "distillation_sum": float(kept.detach().double().sum()),
        "distillation_tokens": float(taught.sum()),
    }
    return LossOutput(loss=(kept * weights).sum(), diagnostics=diagnostics)
