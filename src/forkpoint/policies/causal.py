"""A causal language model in the Hugging Face format as a policy.

Log-probabilities are natural (nats), in fp32, of the tokens after a prompt.  A prompt that many rows share is
computed once, also in training: its keys and values carry gradients.
A model whose config says `outputs_attend = "prompt"` sees, from each token after the prompt, the prompt and that token
alone: its tokens depend on each other only through the one before.  A laboratory for credit, no way to build models.
Letters: P prompts, U prompt positions, B rows, T positions after the prompt, N scored positions, D hidden, V tokens.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers.cache_utils import Cache
from transformers.utils import logging

from forkpoint.batching import PromptTable, Row, TokenBatch, pad_rows
from forkpoint.errors import ModelError
from forkpoint.policies.cache import PromptStates, capture_cache, prefix_cache
from forkpoint.policies.protocol import Scorer
from forkpoint.policies.texts import Texts

MAX_LOGITS = 1 << 24
"""Most logits formed at once while scoring; more are recomputed chunk by chunk in the backward pass."""


_UNFIT = (AttributeError, IndexError, KeyError, NotImplementedError, RuntimeError, TypeError, ValueError)
"""What a model of another kind raises when it is run as a causal decoder."""


class CausalPolicy:
    """A decoder, its tokenizer, and the two forwards that everything is made of: scoring and decoding.

    Raises ModelError for a model whose logits are not its head over its decoder, or whose attention is not causal
    and full (or as `outputs_attend` says): one small forward is compared with the model's own.
    """

    def __init__(self, model: Any, texts: Texts, *, device: str = "cpu") -> None:  # noqa: ANN401
        self.model = model.to(device).eval()
        self.texts = texts
        self.device = torch.device(device)
        inner = model.get_base_model() if self.has_adapters else model
        try:
            self._decoder = inner.base_model
            self._head = inner.get_output_embeddings()
            self.num_layers = int(inner.config.num_hidden_layers)
            self.context_length = _context_length(inner.config)
            self.sees_outputs = getattr(inner.config, "outputs_attend", "all") != "prompt"
            fault = self._fault(inner.config)
        except _UNFIT as error:
            fault = f"{type(error).__name__}: {str(error).strip() or 'no more is known'}".splitlines()[0][:200]
        if fault:
            raise ModelError(f"a model of type '{inner.config.model_type}' like this one cannot be used: {fault}.")

    @torch.no_grad()
    def _fault(self, config: Any) -> str | None:  # noqa: ANN401
        """Why the policy cannot be trusted, or None."""
        vocabulary = self._head.weight.shape[0]
        largest = max(self.texts.tokenizer.get_vocab().values())
        if largest >= vocabulary:
            return f"its tokenizer has the token {largest}, but its head ends at {vocabulary - 1}"
        if getattr(config, "final_logit_softcapping", None):
            return "it caps its logits (final_logit_softcapping)"
        tokens = (np.arange(min(6, self.context_length)) * 7 % vocabulary).astype(np.int32)
        cuts = (1, len(tokens) - 1)
        rows = [
            Row(prompt=tokens[:cut], tokens=tokens[cut:], loss_mask=np.ones(len(tokens) - cut, np.bool_))
            for cut in cuts
        ]
        batch = pad_rows(rows, (0, 1), device=self.device)
        ours = self.logits(self.hidden(batch)[batch.loss_mask])
        ids = torch.from_numpy(tokens).long().to(self.device)[None].expand(2, -1)
        places = torch.arange(len(tokens), device=self.device)
        shown = torch.ones_like(ids)
        if not self.sees_outputs:
            shown = self.visible(places[None], places, torch.tensor(cuts, device=self.device))
        plain = self.model(input_ids=ids, attention_mask=shown, use_cache=False).logits
        theirs = torch.cat([plain[0, :-1], plain[1, -2:-1]]).to(ours.dtype)
        allowed = 1e-3 if plain.dtype.itemsize >= 4 else 0.1
        if not bool(theirs.isfinite().all()):
            return "its logits are not finite numbers"
        gap = float((ours - theirs).abs().max() / theirs.abs().max().clamp_min(1e-30))
        return (
            None
            if gap <= allowed
            else f"its logits are not those of its head over its decoder (relative gap {gap:.1g})"
        )

    @property
    def num_parameters(self) -> int:
        """All parameters, shared ones once."""
        return sum(parameter.numel() for parameter in self.model.parameters())

    def logits(self, hidden: Float[Tensor, "N D"]) -> Float[Tensor, "N V"]:
        """Next-token logits, in fp32 or better."""
        logits = self._head(hidden)
        return logits.to(torch.promote_types(logits.dtype, torch.float32))

    def forward(self, tokens: Tensor, positions: Tensor, mask: Tensor, cache: Cache) -> Float[Tensor, "R T D"]:
        """Last hidden states; `mask` [R or 1, 1, T, keys] is True where a query may look."""
        return self._decoder(
            input_ids=tokens, position_ids=positions, attention_mask=mask, past_key_values=cache, use_cache=True
        ).last_hidden_state

    def visible(
        self, queries: Int[Tensor, "R T"], keys: Int[Tensor, " K"], heads: Int[Tensor, " R"] | None
    ) -> Bool[Tensor, "R 1 T K"]:
        """Which positions each query may look at; `heads` are the lengths of the prompts, None: all is prompt."""
        mask = keys <= queries[..., None]
        if heads is not None and not self.sees_outputs:
            mask = mask & ((keys < heads[:, None, None]) | (keys == queries[..., None]))
        return mask[:, None]

    def prefill(
        self, prompts: Int[Tensor, "P U"], heads: Int[Tensor, " P"] | None = None
    ) -> tuple[Float[Tensor, "P U D"], Cache]:
        """Hidden states and captured keys and values of right-padded prompts.

        `heads`: where the prompts end whose first tokens of a rollout stand behind them.
        """
        positions = torch.arange(prompts.shape[1], device=self.device)
        cache = capture_cache(self.num_layers)
        places = positions.clamp(max=self.context_length - 1)
        mask = self.visible(positions[None], positions, heads)
        return self.forward(prompts, places[None].expand(prompts.shape[0], -1), mask, cache), cache

    def prompt_states(self, prompts: Int[Tensor, "P U"], lengths: Int[Tensor, " P"]) -> PromptStates:
        """What rows need of their right-padded prompts."""
        hidden, cache = self.prefill(prompts)
        return PromptStates(last=hidden[torch.arange(len(lengths), device=self.device), lengths - 1], cache=cache)

    @contextmanager
    def shared_states(self, table: PromptTable) -> Iterator[PromptStates]:
        """The states of a table's prompts; gradients of the prompts arrive when the block ends.

        Batches see copies that collect their gradients, so the prompts are computed, and differentiated, once.
        """
        states = self.prompt_states(table.prompts, table.lengths)
        if not states.last.requires_grad:
            yield states
            return
        copies = states.detached()
        yield copies
        pairs = [
            (mine, shared.grad)
            for mine, shared in zip(states.tensors(), copies.tensors(), strict=True)
            if shared.grad is not None and mine.requires_grad
        ]
        if pairs:
            torch.autograd.backward([mine for mine, _ in pairs], [gradient for _, gradient in pairs])

    @contextmanager
    def prompts_once(self, table: PromptTable) -> Iterator[Scorer]:
        """Scores batches that share the prompts of a table, by `shared_states`."""
        with self.shared_states(table) as states:
            yield partial(self.logprobs, states=states)

    def hidden(self, batch: TokenBatch, states: PromptStates | None = None) -> Float[Tensor, "B T D"]:
        """The hidden state that predicts each token of each row; `states` are those of the batch's prompts."""
        states = states or self.prompt_states(batch.prompts, batch.prompt_lengths)
        first = states.last[batch.prompt_index][:, None]
        steps = batch.tokens.shape[1] - 1
        if steps < 1:
            return first[:, : batch.tokens.shape[1]]
        lengths = batch.prompt_lengths[batch.prompt_index]
        own = torch.arange(steps, device=self.device)
        prompt_mask = torch.arange(batch.prompts.shape[1], device=self.device)[None] < lengths[:, None]
        rows = batch.tokens.shape[0]
        # Positions are counted from the end of each prompt here, so every head is 0.
        among = self.visible(own[None], own, torch.zeros(1, dtype=torch.long, device=self.device))
        mask = torch.cat(
            [prompt_mask[:, None, None, :].expand(-1, -1, steps, -1), among.expand(rows, -1, -1, -1)], dim=3
        )
        cache = prefix_cache(states.cache, batch.prompt_index)
        # Padding may reach past the context, where learned positions end.
        positions = (lengths[:, None] + own[None]).clamp(max=self.context_length - 1)
        rest = self.forward(batch.tokens[:, :-1], positions, mask, cache)
        return torch.cat([first, rest], dim=1)

    def logprobs(
        self,
        batch: TokenBatch,
        *,
        temperature: float = 1.0,
        where: Bool[Tensor, "B T"] | None = None,
        states: PromptStates | None = None,
        entropy_gradient: bool = False,
    ) -> tuple[Float[Tensor, "B T"], Float[Tensor, "B T"]]:
        """Log-probability of each token and entropy of the distribution that it is drawn from, nats.

        Both are 0 where `where` (default: the loss mask) is False.  The entropy carries a gradient only with
        `entropy_gradient`.
        """
        where = batch.loss_mask if where is None else where
        hidden = self.hidden(batch, states)[where]
        logprob, entropy = self._reduce(hidden, batch.tokens[where], temperature, entropy_gradient)
        blank = torch.zeros(batch.tokens.shape, dtype=logprob.dtype, device=self.device)
        return blank.masked_scatter(where, logprob), blank.masked_scatter(where, entropy)

    def _reduce(
        self, hidden: Float[Tensor, "N D"], targets: Int[Tensor, " N"], temperature: float, entropy_gradient: bool
    ) -> tuple[Tensor, Tensor]:
        """Log-probabilities and entropies without ever holding more than MAX_LOGITS logits, also in the backward pass.

        A chunk keeps its hidden states alone; its logits are computed again for its gradient.
        """
        chunk = max(1, MAX_LOGITS // self._head.weight.shape[0])
        if hidden.shape[0] <= chunk:
            return self._reduce_chunk(hidden, targets, temperature, entropy_gradient)
        parts = [
            checkpoint(self._reduce_chunk, part, target, temperature, entropy_gradient, use_reentrant=False)
            for part, target in zip(hidden.split(chunk), targets.split(chunk), strict=True)
        ]
        return torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])

    def _reduce_chunk(
        self, hidden: Tensor, targets: Tensor, temperature: float, entropy_gradient: bool
    ) -> tuple[Tensor, Tensor]:
        logprobs = torch.log_softmax(self.logits(hidden) / temperature, dim=-1)
        chosen = logprobs.gather(-1, targets[:, None])[:, 0]
        with torch.set_grad_enabled(entropy_gradient and torch.is_grad_enabled()):
            entropy = -(logprobs.exp() * logprobs).sum(-1)
        return chosen, entropy

    @property
    def has_adapters(self) -> bool:
        """Whether only low-rank adapters are trained."""
        return hasattr(self.model, "peft_config")

    def save(self, folder: Path) -> None:
        """Writes the model and its tokenizer so that Auto classes load them; adapters are merged into a copy."""
        logging.disable_progress_bar()
        model = copy.deepcopy(self.model).merge_and_unload() if self.has_adapters else self.model
        model.save_pretrained(folder)
        self.texts.tokenizer.save_pretrained(folder)


def _context_length(config: Any) -> int:  # noqa: ANN401
    """Positions within which attention is full and positions are what the model was made for.

    A window of attention and a switch of rotary frequencies both begin at a length: shorter texts never meet them.
    """
    kinds = set(getattr(config, "layer_types", None) or ["sliding_attention"])
    if not kinds <= {"full_attention", "sliding_attention"}:
        raise ValueError(f"it has layers of the kinds {', '.join(sorted(kinds))}")
    limits = [config.max_position_embeddings]
    if "sliding_attention" in kinds:
        limits.append(getattr(config, "sliding_window", None))
    rotary = getattr(config, "rope_parameters", None) or {}
    if rotary.get("rope_type") == "longrope":
        limits.append(rotary["original_max_position_embeddings"])
    return min(int(limit) for limit in limits if limit)
