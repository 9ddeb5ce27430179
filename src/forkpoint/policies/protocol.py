"""What training and probing need of a policy: causal language models and tables of moves alike."""

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from forkpoint.batching import PromptTable, TokenBatch
from forkpoint.policies.texts import Texts


class Scorer(Protocol):
    """The log-probabilities and entropies of a batch, as `Policy.logprobs` gives them."""

    def __call__(
        self,
        batch: TokenBatch,
        *,
        temperature: float = 1.0,
        where: Bool[Tensor, "B T"] | None = None,
        entropy_gradient: bool = False,
    ) -> tuple[Float[Tensor, "B T"], Float[Tensor, "B T"]]:
        """Both are 0 outside `where` (the loss mask)."""
        ...


class Policy(Protocol):
    """A distribution over the next token, with weights, texts and a place to be saved to."""

    model: Any
    """The module whose parameters are trained."""
    texts: Texts
    device: torch.device
    context_length: int
    """Most tokens of a prompt and its rollout together."""

    @property
    def has_adapters(self) -> bool:
        """Whether only low-rank adapters are trained."""
        ...

    def logprobs(
        self,
        batch: TokenBatch,
        *,
        temperature: float = 1.0,
        where: Bool[Tensor, "B T"] | None = None,
        entropy_gradient: bool = False,
    ) -> tuple[Float[Tensor, "B T"], Float[Tensor, "B T"]]:
        """Log-probability of each token and entropy of its distribution, nats; 0 outside `where` (the loss mask).

        The entropy carries a gradient only with `entropy_gradient`.
        """
        ...

    def prompts_once(self, table: PromptTable) -> AbstractContextManager[Scorer]:
        """Scores batches that share the prompts of a table; gradients of the prompts arrive when the block ends."""
        ...

    def save(self, folder: Path) -> None:
        """Writes all that a later load needs."""
        ...
