"""Descending perplexity."""

import numpy as np
import pytest

from forkpoint.curricula.order import descending_perplexity, mean_nll


def test_the_mean_is_over_what_is_trained_on():
    logprobs = np.log(np.array([0.5, 0.25, 1.0], np.float32))
    assert mean_nll(logprobs, np.array([True, True, False])) == pytest.approx((np.log(2) + np.log(4)) / 2)
    assert mean_nll(logprobs, np.zeros(3, np.bool_)) == 0.0


def test_a_long_text_is_not_surprising_for_its_length():
    long, short = np.full(100, -0.1, np.float32), np.full(2, -1.0, np.float32)
    nlls = [mean_nll(each, np.ones(len(each), np.bool_)) for each in (long, short)]
    assert descending_perplexity(nlls) == [1, 0]


def test_impossible_is_most_surprising_and_not_a_number_is_refused():
    assert descending_perplexity([1.0, float("inf"), 1.0]) == [1, 0, 2]
    with pytest.raises(ValueError, match="not a number"):
        descending_perplexity([1.0, float("nan")])
