"""A causal language model in the Hugging Face format as a policy.

Log-probabilities are natural (nats), in fp32, of the tokens after a prompt.  A prompt that many rows share is
computed once, also in training: its keys and values carry gradients.
Letters: P prompts, U prompt positions, B rows, T positions after the prompt, N scored positions, D hidden, V tokens.
"""

import copy
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers.cache_utils import Cache

from forkpoint.batching import TokenBatch
from forkpoint.policies.cache import capture_cache, prefix_cache
from forkpoint.policies.texts import Texts

MAX_LOGITS = 1 << 24
"""Most logits formed at once while scoring; more are recomputed chunk by chunk in the backward pass."""


class CausalPolicy:
    """A decoder, its tokenizer, and the two forwards that everything is made of: scoring and decoding."""

    def __init__(self, model: Any, texts: Texts, *, device: str = "cpu") -> None:  # noqa: ANN401
        self.model = model.to(device).eval()
        self.texts = texts
        self.device = torch.device(device)
        inner = model.get_base_model() if self.has_adapters else model
        self._decoder = inner.base_model
        self._head = inner.get_output_embeddings()
        self.num_layers = int(inner.config.num_hidden_layers)
        self.context_length = int(inner.config.max_position_embeddings)

    @property
    def num_parameters(self) -> int:
        """All parameters, shared ones once."""
        return sum(parameter.numel() for parameter in self.model.parameters())

    def logits(self, hidden: Float[Tensor, "N D"]) -> Float[Tensor, "N V"]:
        """Next-token logits in fp32."""
        return self._head(hidden).float()

    def forward(self, tokens: Tensor, positions: Tensor, mask: Tensor, cache: Cache) -> Float[Tensor, "R T D"]:
        """Last hidden states; `mask` [R or 1, 1, T, keys] is True where a query may look."""
        return self._decoder(
            input_ids=tokens, position_ids=positions, attention_mask=mask, past_key_values=cache, use_cache=True
        ).last_hidden_state

    def prefill(self, prompts: Int[Tensor, "P U"]) -> tuple[Float[Tensor, "P U D"], Cache]:
        """Hidden states and captured keys and values of right-padded prompts."""
        width = prompts.shape[1]
        positions = torch.arange(width, device=self.device)
        causal = (positions[None, :] <= positions[:, None])[None, None]
        cache = capture_cache(self.num_layers)
        return self.forward(prompts, positions[None].expand(prompts.shape[0], -1), causal, cache), cache

    def hidden(self, batch: TokenBatch) -> Float[Tensor, "B T D"]:
        """The hidden state that predicts each token of each row."""
        heads, captured = self.prefill(batch.prompts)
        first = heads[batch.prompt_index, batch.prompt_lengths[batch.prompt_index] - 1][:, None]
        steps = batch.tokens.shape[1] - 1
        if steps < 1:
            return first
        lengths = batch.prompt_lengths[batch.prompt_index]
        own = torch.arange(steps, device=self.device)
        prompt_mask = torch.arange(batch.prompts.shape[1], device=self.device)[None] < lengths[:, None]
        rows = batch.tokens.shape[0]
        mask = torch.cat(
            [
                prompt_mask[:, None, None, :].expand(-1, -1, steps, -1),
                (own[None, :] <= own[:, None])[None, None].expand(rows, -1, -1, -1),
            ],
            dim=3,
        )
        cache = prefix_cache(captured, batch.prompt_index)
        rest = self.forward(batch.tokens[:, :-1], lengths[:, None] + own[None], mask, cache)
        return torch.cat([first, rest], dim=1)

    def logprobs(
        self, batch: TokenBatch, *, temperature: float = 1.0, where: Bool[Tensor, "B T"] | None = None
    ) -> tuple[Float[Tensor, "B T"], Float[Tensor, "B T"]]:
        """Log-probability of each token and entropy of the distribution that it is drawn from, nats.

        Both are 0 where `where` (default: the loss mask) is False.  The entropy carries no gradient.
        """
        where = batch.loss_mask if where is None else where
        hidden = self.hidden(batch)[where]
        logprob, entropy = self._reduce(hidden, batch.tokens[where], temperature)
        blank = torch.zeros(batch.tokens.shape, dtype=torch.float32, device=self.device)
        return blank.masked_scatter(where, logprob), blank.masked_scatter(where, entropy)

    def _reduce(
        self, hidden: Float[Tensor, "N D"], targets: Int[Tensor, " N"], temperature: float
    ) -> tuple[Tensor, Tensor]:
        """Log-probabilities and entropies without ever holding more than MAX_LOGITS logits."""
        chunk = max(1, MAX_LOGITS // self._head.weight.shape[0])
        if hidden.shape[0] <= chunk:
            return self._reduce_chunk(hidden, targets, temperature)
        parts = [
            checkpoint(self._reduce_chunk, part, target, temperature, use_reentrant=False)
            for part, target in zip(hidden.split(chunk), targets.split(chunk), strict=True)
        ]
        return torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])

    def _reduce_chunk(self, hidden: Tensor, targets: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        logprobs = torch.log_softmax(self.logits(hidden) / temperature, dim=-1)
        chosen = logprobs.gather(-1, targets[:, None])[:, 0]
        with torch.no_grad():
            entropy = -(logprobs.exp() * logprobs).sum(-1)
        return chosen, entropy

    @property
    def has_adapters(self) -> bool:
        """Whether only low-rank adapters are trained."""
        return hasattr(self.model, "peft_config")

    def save(self, folder: Path) -> None:
        """Writes the model and its tokenizer so that Auto classes load them; adapters are merged into a copy."""
        model = copy.deepcopy(self.model).merge_and_unload() if self.has_adapters else self.model
        model.save_pretrained(folder)
        self.texts.tokenizer.save_pretrained(folder)
