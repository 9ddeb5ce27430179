"""A critic over states: what a value function of the policy's last edge can know, fitted to rewards to go.

For a policy that is a table the last edge is all that the policy sees.  The target is hidden, and so is the time left:
the value is the mean over both, and as a baseline it adds no bias.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from forkpoint.credit.critic import rewards_to_go
from forkpoint.errors import CheckpointError
from forkpoint.records import Batch, Floats, Rollout, frozen_array

FILE = "critic.safetensors"
"""The values of a table, beside the model in a checkpoint."""
BINS = 10
"""Of the values, for their calibration."""


class Critic(Protocol):
    """Learned state values: an auxiliary module that a stage trains and saves beside its policy."""

    def values(self, rollouts: Sequence[Rollout]) -> list[Floats]:
        """The value of the state before each token of each rollout."""
        ...

    def fit(self, batch: Batch) -> dict[str, float]:
        """Learns from a rewarded batch; returns metrics."""
        ...

    def save(self, folder: Path) -> None:
        """Writes the critic into a checkpoint."""
        ...

    def load(self, folder: Path) -> None:
        """Restores what `save` wrote."""
        ...


class TableCritic:
    """One value for each token: the mean reward to go after it, a running mean over batches."""

    def __init__(self, vocabulary: int, *, rate: float = 0.5, gamma: float = 1.0) -> None:
        self._rate, self._gamma = rate, gamma
        self._values = np.zeros(vocabulary)
        self._seen = np.zeros(vocabulary, np.bool_)

    def values(self, rollouts: Sequence[Rollout]) -> list[Floats]:
        """The value of the state before each token: of the token before it."""
        return [frozen_array(self._values[previous_tokens(rollout)], np.float32) for rollout in rollouts]

    def fit(self, batch: Batch) -> dict[str, float]:
        """V <- V + rate (mean reward to go - V) in each state met; a state met first takes the mean itself.

        Returns the `fit_metrics` of the values before the fit.
        """
        states = [previous_tokens(rollout)[rollout.loss_mask] for rollout in batch.rollouts]
        if not states:
            return {}
        flat, targets = np.concatenate(states), np.concatenate(rewards_to_go(batch, gamma=self._gamma))
        metrics = fit_metrics(self._values[flat], targets)
        self._move(flat, targets)
        return metrics

    def _move(self, states: NDArray[np.int32], targets: NDArray[np.float64]) -> None:
        size = len(self._values)
        counts = np.bincount(states, minlength=size)
        met = counts > 0
        means = np.bincount(states, weights=targets, minlength=size)[met] / counts[met]
        rates = np.where(self._seen[met], self._rate, 1.0)
        self._values[met] += rates * (means - self._values[met])
        self._seen |= met

    def save(self, folder: Path) -> None:
        """Writes values and which states were met."""
        save_file({"values": self._values, "seen": self._seen}, folder / FILE)

    def load(self, folder: Path) -> None:
        """Restores what `save` wrote.

        Raises:
            CheckpointError: the file is missing, damaged, or of another critic.
        """
        try:
            found = load_file(folder / FILE)
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{folder / FILE} cannot be read: {str(error).splitlines()[0]}") from None
        wanted = {"values": self._values.shape, "seen": self._seen.shape}
        for name in sorted({*wanted, *found}):
            if name not in found or found[name].shape != wanted.get(name):
                raise CheckpointError(f"{folder / FILE}: {name} is missing or of another critic.")
        self._values, self._seen = found["values"].copy(), found["seen"].copy()


def previous_tokens(rollout: Rollout) -> NDArray[np.int32]:
    """The token before each token of a rollout."""
    return np.concatenate([rollout.prompt_tokens[-1:], rollout.tokens])[: len(rollout.tokens)]


def warm_up(critic: Critic, sample: Callable[[int], Batch], batches: int) -> dict[str, float]:
    """Fits a critic to so many batches of a policy that stays as it is, before any credit is taken from it.

    Returns `critic_warmup_tokens`, the trained tokens of these batches, and the `fit_metrics` of the last one under the
    names `critic_warmup_...`; nothing for no batches.
    """
    tokens, found = 0, dict[str, float]()
    for number in range(batches):
        batch = sample(number)
        tokens += sum(int(rollout.loss_mask.sum()) for rollout in batch.rollouts)
        found = critic.fit(batch)
    named = {name.replace("critic_", "critic_warmup_"): value for name, value in found.items()}
    return {"critic_warmup_tokens": float(tokens), **named} if batches else {}


def fit_metrics(values: NDArray[np.float64], targets: NDArray[np.float64]) -> dict[str, float]:
    """How values stand to the rewards to go that followed, over the tokens of a batch; nothing for no tokens.

    `critic_error`: root of the mean squared error, in units of reward.
    `critic_explained`: the share of the variance of the reward to go that the values explain; below 0 they harm.
    `critic_calibration`: mean distance of the mean reward to go from the mean value, over ten bins of the values with
    equally many tokens (at least one each), in units of reward.
    `critic_brier`: the mean squared error once more, only where every reward to go is 0 or 1 (Brier 1950).

    >>> fit_metrics(np.array([0.5, 0.5]), np.array([0.0, 1.0]))["critic_brier"]
    0.25
    """
    if not len(targets):
        return {}
    error = targets - values
    square, variance = float(np.mean(error**2)), float(np.var(targets))
    found = {
        "critic_error": square**0.5,
        "critic_explained": 1.0 - square / variance if variance > 0 else 0.0,
        "critic_calibration": _calibration(values, error),
    }
    return {**found, "critic_brier": square} if np.isin(targets, (0.0, 1.0)).all() else found


def _calibration(values: NDArray[np.float64], error: NDArray[np.float64]) -> float:
    """Tokens of one value stay in one bin: what cannot be told apart is judged together."""
    edges = np.unique(np.quantile(values, np.linspace(0.0, 1.0, BINS + 1)[1:-1]))
    bins = np.searchsorted(edges, values, side="right")
    return float(np.abs(np.bincount(bins, weights=error)).sum() / len(values))
