"""A learned critic for causal language models: values from hidden states, with parameters of its own.

The state before a token is the hidden state that predicts it, so a value knows the prompt and the tokens before, and
nothing after.  No gradient of the critic reaches the policy.
Letters: N tokens, D hidden.
"""

import copy
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from forkpoint.batching import Row, length_buckets, pad_prompts, pad_rows, prompt_chunks
from forkpoint.config.critic import CriticSettings
from forkpoint.config.recipe import StageBase
from forkpoint.credit.critic import rewards_to_go
from forkpoint.errors import TrainingError
from forkpoint.policies.causal import CausalPolicy
from forkpoint.records import Batch, Floats, Rollout, frozen_array
from forkpoint.seeds import Key
from forkpoint.training.critic import fit_metrics
from forkpoint.training.optimization import Optimization

FOLDER = "critic"
"""Weights and moments of the critic, below the model in a checkpoint."""
ValueLoss = Literal["cross_entropy", "squared"]
Array = NDArray[np.float64]


class ValueNetwork:
    """A head on the hidden states of the policy, or (`kind = "network"`) of a copy of it that is trained along.

    `loss`: `cross_entropy` for rewards to go within [0, 1], the value is then a chance; `squared` for any.
    """

    def __init__(
        self,
        policy: CausalPolicy,
        settings: CriticSettings,
        *,
        key: Key,
        loss: ValueLoss = "cross_entropy",
        gamma: float = 1.0,
        max_tokens: int = 8192,
    ) -> None:
        self._settings, self._key, self._loss = settings, key, loss
        self._gamma, self._max_tokens = gamma, max_tokens
        self._own = settings.kind == "network"
        self._policy = _copied(policy) if self._own else policy
        inner = _inner(self._policy)
        self._head = _head(inner.get_output_embeddings().weight.shape[1], settings.hidden, key).to(policy.device)
        parts: dict[str, nn.Module] = {"head": self._head}
        if self._own:
            # Without the output layer, which no value passes through.
            parts["decoder"] = inner.base_model
        plan = StageBase(
            name="critic", updates=1, learning_rate=settings.learning_rate, warmup=0,
            max_grad_norm=settings.max_grad_norm,
        )  # fmt: skip
        self._optimization = Optimization(nn.ModuleDict(parts), plan)

    def values(self, rollouts: Sequence[Rollout]) -> list[Floats]:
        """The value of the state before each token of each rollout, in units of reward."""
        rows = [_row(rollout, np.ones(len(rollout.tokens), np.bool_)) for rollout in rollouts]
        found = self._read(rows, [place for place, row in enumerate(rows) if len(row.tokens)], None)
        return [frozen_array(found.get(place, []), np.float32) for place in range(len(rows))]

    def fit(self, batch: Batch) -> dict[str, float]:
        """Passes over a batch's rewards to go, which are Monte Carlo whatever the lambda of the credit.

        Returns the `fit_metrics` of the values before the fit.

        Raises:
            TrainingError: a reward to go outside [0, 1] under the loss `cross_entropy`; too many gradients in a row
                that are not finite.
        """
        rows = [_row(rollout, rollout.loss_mask) for rollout in batch.rollouts]
        targets = rewards_to_go(batch, gamma=self._gamma)
        places = [place for place, row in enumerate(rows) if row.loss_mask.any()]
        if not places:
            return {}
        self._check(targets)
        kept = None if self._own else self._kept(rows, places)
        before = self._read(rows, places, kept)
        order = self._key.child("order", batch.rollouts[0].id)
        for epoch in range(self._settings.epochs):
            dealt = order.child(epoch).generator().permutation(places)
            for part in np.array_split(dealt, min(self._settings.minibatches, len(places))):
                self._step(rows, targets, part.tolist(), kept)
        return fit_metrics(np.concatenate([before[place] for place in places]), np.concatenate(targets))

    def save(self, folder: Path) -> None:
        """Writes weights and moments into a checkpoint."""
        (folder / FOLDER).mkdir()
        self._optimization.save(folder / FOLDER, weights=True)

    def load(self, folder: Path) -> None:
        """Restores what `save` wrote.

        Raises:
            CheckpointError: a file is missing, damaged, or of another critic.
        """
        self._optimization.load(folder / FOLDER, weights=True)

    def gradient(
        self, rows: Sequence[Row], targets: Sequence[Array], places: Sequence[int], kept: dict[int, Tensor] | None
    ) -> None:
        """Adds the gradient of the mean loss over the trained tokens of the rows at `places`.

        Micro-batches are cut by padded positions alone and divided by one count, so no cut changes it.  `kept` are
        the hidden states where no gradient goes beyond them.
        """
        count = sum(int(rows[place].loss_mask.sum()) for place in places)
        read = self._hidden(rows, places) if kept is None else _stacked(kept, places)
        for bucket, hidden in read:
            target = torch.from_numpy(np.concatenate([targets[place] for place in bucket])).float().to(hidden.device)
            scores = self._scores(hidden)
            if self._loss == "cross_entropy":
                total = binary_cross_entropy_with_logits(scores, target, reduction="sum")
            else:
                total = (scores - target).square().sum()
            (total / count).backward()

    @torch.no_grad()
    def _read(self, rows: Sequence[Row], places: Sequence[int], kept: dict[int, Tensor] | None) -> dict[int, Array]:
        """The values at the trained tokens of the rows at `places`."""
        found: dict[int, Array] = {}
        for bucket, hidden in self._hidden(rows, places) if kept is None else _stacked(kept, places):
            values = self._value(self._scores(hidden)).double().cpu().numpy()
            ends = np.cumsum([int(rows[place].loss_mask.sum()) for place in bucket])
            found |= zip(bucket, np.split(values, ends[:-1]), strict=True)
        return found

    def _step(
        self, rows: Sequence[Row], targets: Sequence[Array], places: Sequence[int], kept: dict[int, Tensor] | None
    ) -> None:
        self.gradient(rows, targets, places, kept)
        self._optimization.step(1)

    def _check(self, targets: Sequence[Array]) -> None:
        flat = np.concatenate(targets)
        if self._loss == "cross_entropy" and (flat.min() < -1e-6 or flat.max() > 1 + 1e-6):
            worst = flat.min() if flat.min() < 0 else flat.max()
            raise TrainingError(
                f"critic.loss = 'cross_entropy': a reward to go of {worst:.3g} lies outside 0 and 1; use 'squared'."
            )

    def _scores(self, hidden: Float[Tensor, "N D"]) -> Float[Tensor, " N"]:
        return self._head(hidden.float())[:, 0]

    def _value(self, scores: Float[Tensor, " N"]) -> Float[Tensor, " N"]:
        return scores.sigmoid() if self._loss == "cross_entropy" else scores

    def _hidden(self, rows: Sequence[Row], places: Sequence[int]) -> Iterator[tuple[list[int], Float[Tensor, "N D"]]]:
        """Places of some rows and the hidden states before their trained tokens, row after row, until all were read.

        Prompts are computed once for the rows that share them; their gradients arrive after the last of these.
        """
        device = self._policy.device
        for chunk in prompt_chunks(rows, places, max_tokens=self._max_tokens):
            table = pad_prompts([rows[place] for place in chunk], device=device)
            with self._policy.shared_states(table) as states:
                for bucket in length_buckets([len(rows[place].tokens) for place in chunk], max_tokens=self._max_tokens):
                    chosen = [chunk[place] for place in bucket]
                    batch = pad_rows(rows, chosen, table=table, device=device)
                    yield chosen, self._policy.hidden(batch, states)[batch.loss_mask]

    @torch.no_grad()
    def _kept(self, rows: Sequence[Row], places: Sequence[int]) -> dict[int, Tensor]:
        """The hidden states of each row, read once for all passes."""
        found: dict[int, Tensor] = {}
        for bucket, hidden in self._hidden(rows, places):
            found |= zip(bucket, hidden.split([int(rows[place].loss_mask.sum()) for place in bucket]), strict=True)
        return found


def _stacked(kept: dict[int, Tensor], places: Sequence[int]) -> Iterator[tuple[list[int], Tensor]]:
    yield list(places), torch.cat([kept[place] for place in places])


def _row(rollout: Rollout, mask: NDArray[np.bool_]) -> Row:
    return Row(prompt=rollout.prompt_tokens, tokens=rollout.tokens, loss_mask=frozen_array(mask, np.bool_))


def _copied(policy: CausalPolicy) -> CausalPolicy:
    return CausalPolicy(copy.deepcopy(policy.model), policy.texts, device=str(policy.device))


def _inner(policy: CausalPolicy) -> Any:  # noqa: ANN401
    """The model without its adapters' wrapping; they stay in its layers."""
    return policy.model.get_base_model() if policy.has_adapters else policy.model


def _head(width: int, hidden: int, key: Key) -> nn.Sequential:
    """A linear map to one score, or one over `hidden` units; the last layer is zero, so every value begins equal."""
    sizes = [width, hidden, 1] if hidden else [width, 1]
    layers = [nn.utils.skip_init(nn.Linear, one, two) for one, two in itertools.pairwise(sizes)]
    with torch.no_grad():
        for layer in layers:
            layer.weight.zero_()
            layer.bias.zero_()
        if hidden:
            drawn = key.child("head").generator().standard_normal((hidden, width)) / np.sqrt(width)
            layers[0].weight.copy_(torch.from_numpy(drawn))
    return nn.Sequential(layers[0], nn.Tanh(), layers[1]) if hidden else nn.Sequential(layers[0])
