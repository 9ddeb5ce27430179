"""The weights: hand-worked numbers, and the same gradient for any split of an update."""

import numpy as np
import pytest
import torch

from forkpoint.losses import LOSSES
from forkpoint.losses.aggregation import token_weights

MODES = ("token_mean", "constant", "sequence_mean", "prompt_mean")
# Four rows of two prompts: 2, 1, 0 and 3 trained tokens.
MASKS = [
    np.array([True, False, True]),
    np.array([True]),
    np.array([False, False]),
    np.array([True, True, True, False]),
]
PROMPTS = [7, 7, 7, 3]


@pytest.mark.parametrize(
    ("mode", "row_weights"),
    [
        ("token_mean", [1 / 6, 1 / 6, 0, 1 / 6]),
        ("constant", [1 / 20, 1 / 20, 0, 1 / 20]),  # four rows, though one has nothing to train
        ("sequence_mean", [1 / 6, 1 / 3, 0, 1 / 9]),  # three rows with tokens
        ("prompt_mean", [1 / 6, 1 / 6, 0, 1 / 6]),  # two prompts, three tokens each
    ],
)
def test_hand_worked_weights(mode, row_weights):
    weights = token_weights(MASKS, PROMPTS, aggregation=mode, constant_length=5)
    for row, mask, value in zip(weights, MASKS, row_weights, strict=True):
        assert row.dtype == np.float32
        assert not row.flags.writeable
        np.testing.assert_array_equal(row, np.where(mask, np.float32(value), np.float32(0)))


def test_prompt_mean_weighs_prompts_equally_whatever_their_tokens():
    masks = [np.ones(1, bool), np.ones(8, bool), np.ones(1, bool), np.zeros(4, bool)]
    weights = token_weights(masks, [5, -2, 5, 9], aggregation="prompt_mean", constant_length=1)
    # Prompt 9 has no trained token and leaves the denominator; prompt 5 has two tokens in two rows.
    assert [float(row.sum()) for row in weights] == [0.25, 0.5, 0.25, 0.0]


@pytest.mark.parametrize("mode", ["token_mean", "sequence_mean", "prompt_mean"])
def test_means_sum_to_one(mode):
    weights = token_weights(MASKS, PROMPTS, aggregation=mode, constant_length=5)
    assert sum(float(row.sum()) for row in weights) == pytest.approx(1.0, rel=1e-6)


@pytest.mark.parametrize("mode", MODES)
def test_nothing_to_train_gives_zeros(mode):
    masks = [np.zeros(3, bool), np.zeros(0, bool)]
    weights = token_weights(masks, [0, 0], aggregation=mode, constant_length=5)
    assert [row.tolist() for row in weights] == [[0.0, 0.0, 0.0], []]
    assert token_weights([], [], aggregation=mode, constant_length=5) == []


def test_constant_does_not_depend_on_luck():
    """The weight of a token stays the same when another row loses its tokens."""
    full = token_weights([np.ones(2, bool), np.ones(2, bool)], [0, 0], aggregation="constant", constant_length=4)
    half = token_weights([np.ones(2, bool), np.zeros(2, bool)], [0, 0], aggregation="constant", constant_length=4)
    np.testing.assert_array_equal(full[0], half[0])


def test_refusals():
    mask = np.ones(1, bool)
    with pytest.raises(ValueError, match="1 masks but 2 prompt ids"):
        token_weights([mask], [0, 1], aggregation="token_mean", constant_length=1)
    with pytest.raises(ValueError, match="constant_length = 0"):
        token_weights([mask], [0], aggregation="constant", constant_length=0)
    with pytest.raises(ValueError, match="'mean' is not known"):
        token_weights([mask], [0], aggregation="mean", constant_length=1)


def _padded(rows, width, filler):
    padded = torch.full((len(rows), width), filler, dtype=torch.float64)
    for i, row in enumerate(rows):
        padded[i, : len(row)] = row
    return padded


def _gradient(name, parameter, data, weights, parts):
    """The summed gradient over micro-batches, each padded to its own width with what padding may hold."""
    total = torch.zeros_like(parameter)
    for part in parts:
        width = max(len(data[i][0]) for i in part) + len(part) % 3
        logprobs = [torch.log_softmax(data[i][0] @ parameter, dim=-1)[:, 0] for i in part]
        output = LOSSES[name](
            _padded(logprobs, width, -torch.inf),
            _padded([data[i][1] for i in part], width, torch.nan),
            _padded([data[i][2] for i in part], width, 1e30),
            _padded([torch.tensor(weights[i]).double() for i in part], width, 0.0),
        )
        total += torch.autograd.grad(output.loss, parameter)[0]
    return total


def _update(seed):
    """Nine ragged rows of an update: a parameter, (features, behavior, advantages) of each, masks, prompts."""
    rng = np.random.default_rng(seed)
    parameter = torch.tensor(rng.normal(size=(4, 5)), requires_grad=True)
    data, masks = [], []
    for length in rng.integers(1, 12, size=9):
        features = torch.tensor(rng.normal(size=(length, 4)))
        exact = torch.log_softmax(features @ parameter, dim=-1)[:, 0].detach()
        stale = exact + torch.tensor(0.3 * rng.normal(size=length))
        data.append((features, stale, torch.full((length,), rng.normal(), dtype=torch.float64)))
        masks.append(rng.random(length) < 0.7)
    return parameter, data, masks, rng.integers(0, 4, size=9).tolist()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", sorted(LOSSES))
@pytest.mark.parametrize("seed", range(3))
def test_any_split_gives_the_same_gradient(mode, name, seed):
    parameter, data, masks, prompts = _update(seed)
    weights = token_weights(masks, prompts, aggregation=mode, constant_length=16)
    whole = _gradient(name, parameter, data, weights, [range(9)])
    assert whole.norm() > 1e-4
    order = np.random.default_rng(seed).permutation(9)
    for parts in ([[i] for i in range(9)], [order[:1], order[1:3], order[3:]], [order[:8], order[8:]]):
        split = _gradient(name, parameter, data, weights, parts)
        assert (split - whole).norm() <= 1e-12 * whole.norm()


@pytest.mark.parametrize("mode", MODES)
def test_weights_made_after_the_split_would_be_wrong(mode):
    """The control: a mean of the means of micro-batches is another gradient."""
    parameter, data, masks, prompts = _update(0)
    weights = token_weights(masks, prompts, aggregation=mode, constant_length=16)
    whole = _gradient("reinforce", parameter, data, weights, [range(9)])
    parts = [range(2), range(2, 9)]
    late = [
        row / len(parts)
        for part in parts
        for row in token_weights(
            [masks[i] for i in part], [prompts[i] for i in part], aggregation=mode, constant_length=16
        )
    ]
    assert (_gradient("reinforce", parameter, data, late, parts) - whole).norm() > 0.01 * whole.norm()
