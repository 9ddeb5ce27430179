"""Records to tensors: buckets, padding, and the rows of texts and rollouts."""

import itertools
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from forkpoint.batching import (
    Row,
    length_buckets,
    pad_rows,
    padding_share,
    prompt_chunks,
    sampled_row,
    text_row,
)
from forkpoint.records import Credit, Rollout, SampledExample, StopReason, TextExample, frozen_array


def text(tokens: list[int], trained: list[bool]) -> TextExample:
    return TextExample(
        tokens=frozen_array(tokens, np.int32), loss_mask=frozen_array(trained, np.bool_), provenance="test"
    )


@given(st.lists(st.integers(0, 300), max_size=120), st.sampled_from([1, 50, 400, 4096, 10**9]))
def test_buckets_hold_every_row_once_within_their_limits(lengths: list[int], max_tokens: int) -> None:
    buckets = length_buckets(lengths, max_tokens=max_tokens)
    assert sorted(place for bucket in buckets for place in bucket) == list(range(len(lengths)))
    assert all(buckets)
    for bucket in buckets:
        padded = len(bucket) * max(lengths[place] for place in bucket)
        assert len(bucket) == 1 or padded <= max_tokens
    assert padding_share(lengths, buckets) <= 0.1 + 1e-9
    flat = [lengths[place] for bucket in buckets for place in bucket]
    assert flat == sorted(flat)
    assert length_buckets(list(lengths), max_tokens=max_tokens) == buckets


@given(st.lists(st.integers(1, 60), min_size=1, max_size=60), st.randoms(use_true_random=False))
def test_the_shapes_of_buckets_depend_on_the_lengths_alone(lengths: list[int], shuffle: object) -> None:
    order = list(range(len(lengths)))
    shuffle.shuffle(order)  # type: ignore[attr-defined]
    shuffled = [lengths[place] for place in order]

    def shapes(values: list[int]) -> list[list[int]]:
        return [[values[place] for place in bucket] for bucket in length_buckets(values, max_tokens=600)]

    assert shapes(lengths) == shapes(shuffled)


@given(st.lists(st.integers(1, 40), min_size=1, max_size=30).filter(lambda lengths: len(set(lengths)) <= 6))
def test_no_other_cut_is_cheaper(lengths: list[int]) -> None:
    def cost(buckets: list[list[int]]) -> int:
        return sum(len(bucket) * max(bucket) + 20 for bucket in buckets)

    buckets = length_buckets(lengths, max_tokens=10**6, overhead=20, max_padding=1.0)
    values = sorted(set(lengths))
    choices = []
    for kept in itertools.product((False, True), repeat=len(values) - 1):
        edges = [0, *(place + 1 for place, cut in enumerate(kept) if cut), len(values)]
        choices.append(cost([[size for size in lengths if size in values[a:b]] for a, b in itertools.pairwise(edges)]))
    assert cost([[lengths[place] for place in bucket] for bucket in buckets]) == min(choices)


def test_the_cut_is_the_cheapest_one() -> None:
    # One bucket pads 10 positions of 210; a second one costs 256.
    assert length_buckets([10] * 10 + [11] * 10, max_tokens=10**6) == [list(range(20))]
    # One bucket would pad 3000 positions; two cost 256 more.
    assert length_buckets([40] * 10 + [10] * 100, max_tokens=10**6) == [list(range(10, 110)), list(range(10))]
    # 90 padded positions are cheaper than a bucket, but are more than a tenth.
    assert length_buckets([10, 100], max_tokens=10**6) == [[0], [1]]
    assert length_buckets([10, 100], max_tokens=10**6, max_padding=0.5) == [[0, 1]]
    assert length_buckets([], max_tokens=8) == []


def test_a_bucket_over_the_limit_is_split_evenly() -> None:
    assert [len(bucket) for bucket in length_buckets([10] * 9, max_tokens=40)] == [3, 3, 3]
    assert length_buckets([50, 60], max_tokens=40) == [[0], [1]]


def test_padding_share_by_hand() -> None:
    assert padding_share([1, 3, 5], [[0, 1], [2]]) == pytest.approx(2 / 11)
    assert padding_share([], []) == 0.0


def test_the_prompt_of_a_text_is_what_is_not_trained_at_its_beginning() -> None:
    row = text_row(text([5, 6, 7, 8, 9], [False, False, True, False, True]))
    assert row.prompt.tolist() == [5, 6]
    assert row.tokens.tolist() == [7, 8, 9]
    assert row.loss_mask.tolist() == [True, False, True]
    whole = text_row(text([5, 6, 7], [True, True, True]))
    assert (whole.prompt.tolist(), whole.tokens.tolist(), whole.loss_mask.tolist()) == ([5], [6, 7], [True, True])
    untrained = text_row(text([5, 6, 7], [False, False, False]))
    assert (untrained.prompt.tolist(), untrained.tokens.tolist()) == ([5, 6, 7], [])


def test_the_row_of_a_rollout() -> None:
    rollout = Rollout(
        id="r", group_id="g", stage="s", update=1, index=0, problem_key="1",
        prompt_tokens=frozen_array([2, 3], np.int32), tokens=frozen_array([4, 5], np.int32),
        behavior_logprobs=frozen_array([-0.5, -0.25], np.float32), loss_mask=frozen_array([True, False], np.bool_),
        temperature=1.0, text="", stop_reason=StopReason.EOS, seed="",
    )  # fmt: skip
    credit = Credit(advantages=frozen_array([2.0, 0.0], np.float32), rule="test")
    row = sampled_row(SampledExample(rollout=rollout, credit=credit))
    assert (row.prompt.tolist(), row.tokens.tolist(), row.loss_mask.tolist()) == ([2, 3], [4, 5], [True, False])
    assert (row.behavior_logprobs.tolist(), row.advantages.tolist()) == ([-0.5, -0.25], [2.0, 0.0])
    assert len(row.policy_weights) == 0


def made_row(prompt: list[int], tokens: list[int], weight: float) -> Row:
    size = len(tokens)
    return Row(
        prompt=frozen_array(prompt, np.int32), tokens=frozen_array(tokens, np.int32),
        loss_mask=frozen_array([True] * size, np.bool_),
        behavior_logprobs=frozen_array([-weight] * size, np.float32),
        advantages=frozen_array([weight] * size, np.float32),
        policy_weights=frozen_array([2 * weight] * size, np.float32),
        imitation_weights=frozen_array([3 * weight] * size, np.float32), divergence_weight=4 * weight,
    )  # fmt: skip


def test_padded_rows_hold_shared_prompts_once_and_pad_on_the_right_with_nothing() -> None:
    rows = [made_row([7], [1, 2, 3], 0.5), made_row([7, 8, 9], [4], 1.0), made_row([7], [5, 6], 2.0)]
    batch = pad_rows(rows, [2, 1, 0])
    assert batch.prompts.tolist() == [[7, 0, 0], [7, 8, 9]]
    assert batch.prompt_lengths.tolist() == [1, 3]
    assert batch.prompt_index.tolist() == [0, 1, 0]
    assert batch.tokens.tolist() == [[5, 6, 0], [4, 0, 0], [1, 2, 3]]
    assert batch.loss_mask.tolist() == [[True, True, False], [True, False, False], [True, True, True]]
    assert batch.advantages.tolist() == [[2.0, 2.0, 0.0], [1.0, 0.0, 0.0], [0.5, 0.5, 0.5]]
    assert torch.equal(batch.behavior_logprobs, -batch.advantages)
    assert torch.equal(batch.policy_weights, 2 * batch.advantages)
    assert torch.equal(batch.imitation_weights, 3 * batch.advantages)
    assert batch.divergence_weights.tolist() == [8.0, 4.0, 2.0]
    assert batch.rows == (2, 1, 0)
    assert (batch.tokens.dtype, batch.advantages.dtype) == (torch.int64, torch.float32)


def test_streams_that_a_row_lacks_are_zero() -> None:
    row = Row(prompt=np.array([1], np.int32), tokens=np.array([2, 3], np.int32), loss_mask=np.ones(2, np.bool_))
    batch = pad_rows([row], [0])
    assert not batch.policy_weights.any()
    assert not batch.imitation_weights.any()
    assert Counter(batch.divergence_weights.tolist()) == {0.0: 1}


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(1, 9)), min_size=1, max_size=30), st.integers(1, 40))
def test_prompt_chunks_keep_prompts_whole_and_within_the_budget(pairs: list[tuple[int, int]], budget: int) -> None:
    rows = [
        Row(
            prompt=np.full(prompt + 1, prompt, np.int32),
            tokens=np.zeros(size, np.int32),
            loss_mask=np.ones(size, np.bool_),
        )
        for prompt, size in pairs
    ]
    chunks = prompt_chunks(rows, range(len(rows)), max_tokens=budget)
    assert sorted(place for chunk in chunks for place in chunk) == list(range(len(rows)))
    held = [{rows[place].prompt.tobytes() for place in chunk} for chunk in chunks]
    assert sum(map(len, held)) == len(set().union(*held))
    for prompts in held:
        assert len(prompts) == 1 or sum(len(prompt) // 4 for prompt in prompts) <= budget
