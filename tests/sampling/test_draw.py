"""Inverse CDF: edges of u, zero-probability tokens, temperature, and the distribution as a whole."""

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from forkpoint.sampling.draw import draw_tokens
from forkpoint.seeds import Key

TOP = 1 - 2.0**-24


def draw(logits: torch.Tensor, uniforms: list[float] | np.ndarray, temperature: float = 1.0) -> list[int]:
    rows = torch.as_tensor(np.asarray(uniforms))
    tokens, _ = draw_tokens(logits.expand(len(rows), -1), rows, torch.full((len(rows),), temperature))
    return tokens.tolist()


def test_hand_worked_quantiles() -> None:
    logits = torch.tensor([0.1, 0.2, 0.3, 0.4]).log()
    assert draw(logits, [0.0, 0.09, 0.11, 0.29, 0.31, 0.59, 0.61, TOP]) == [0, 0, 1, 1, 2, 2, 3, 3]


def test_a_token_of_probability_zero_is_never_drawn() -> None:
    none = -torch.inf
    logits = torch.tensor([none, 0.0, none, 0.0, none])
    assert draw(logits, [0.0, 2.0**-60, 0.4999999, 0.5, 0.5000001, TOP, 1 - 2.0**-53]) == [1, 1, 1, 3, 3, 3, 3]
    underflow = torch.tensor([-200.0, 0.0, -200.0])
    assert draw(underflow, [0.0, 0.5, TOP, 1 - 2.0**-53]) == [1, 1, 1, 1]


def test_the_last_token_is_reached_where_float32_sums_end_below_one() -> None:
    draws = Key.root(0).generator()
    logits = torch.from_numpy(draws.standard_normal((256, 997)).astype(np.float32) * 3)
    ends = torch.log_softmax(logits, -1).exp().cumsum(-1)[:, -1]
    assert float(ends.min()) < TOP, "no row of this test has a float32 sum below u"
    uniforms = torch.full((256,), 1 - 2.0**-53, dtype=torch.float64)
    tokens, logprobs = draw_tokens(logits, uniforms, torch.ones(256))
    assert bool(((tokens >= 0) & (tokens < 997)).all())
    assert bool(logprobs.isfinite().all())


def test_boundaries_are_those_of_float64_sums() -> None:
    logits = torch.from_numpy(Key.root(2).generator().standard_normal(500).astype(np.float32))
    sums = torch.log_softmax(logits, -1).exp().numpy().astype(np.float64).cumsum()
    edges = sums[:-1] / sums[-1]
    assert draw(logits, edges - 1e-12) == list(range(499))
    assert draw(logits, edges + 1e-12) == list(range(1, 500))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_frequencies_are_those_of_the_tempered_distribution(temperature: float) -> None:
    logits = torch.tensor([0.0, 1.0, -1.0, 2.0, 0.5, -3.0, 1.5, 0.2])
    expected = torch.softmax(logits.double() / temperature, -1).numpy()
    tokens = draw(logits, Key.root(1).child("chi").uniforms(200_000), temperature)
    counts = np.bincount(tokens, minlength=8)
    assert chisquare(counts, expected * 200_000).pvalue > 1e-4


def test_log_probabilities_are_those_of_the_tempered_distribution() -> None:
    logits = torch.tensor([[0.0, 1.0, 2.0]]).repeat(3, 1)
    tokens, logprobs = draw_tokens(
        logits, torch.tensor([0.5, 0.5, 0.5], dtype=torch.float64), torch.tensor([1.0, 0.5, 0.0])
    )
    for row, temperature in ((0, 1.0), (1, 0.5)):
        oracle = torch.log_softmax(logits[row] / temperature, -1)[tokens[row]]
        assert torch.allclose(logprobs[row], oracle)
    assert tokens[2] == 2
    assert logprobs[2].numpy().tobytes() == np.float32(0).tobytes()


def test_logits_that_are_no_numbers_stay_visible() -> None:
    logits = torch.tensor([[0.0, float("nan")], [0.0, float("nan")]])
    _, logprobs = draw_tokens(logits, torch.tensor([0.5, 0.5]), torch.tensor([1.0, 0.0]))
    assert bool(logprobs.isnan().all())
