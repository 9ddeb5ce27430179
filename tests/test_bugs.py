"""Emulated bugs against weights worked by hand."""

import numpy as np
import pytest

from forkpoint.batching import Row
from forkpoint.bugs import Bugs, micro_batch_parts, with_bugs
from forkpoint.records import frozen_array


def row(length: int, weight: float, prompt: int = 1) -> Row:
    tokens = frozen_array(np.ones(length), np.int32)
    return Row(
        prompt=frozen_array([prompt], np.int32),
        tokens=tokens,
        loss_mask=frozen_array(np.ones(length), np.bool_),
        policy_weights=frozen_array(np.full(length, weight), np.float32),
        divergence_weight=0.25,
    )


def weights(rows: list[Row]) -> list[float]:
    return [float(each.policy_weights[0]) for each in rows]


RAGGED = [row(length, 1 / 10) for length in (1, 2, 3, 4)]


def test_no_bug_changes_nothing() -> None:
    assert with_bugs(RAGGED, Bugs(micro_batches=2)) == RAGGED


def test_mean_of_means_by_hand() -> None:
    # Parts of 3 and of 7 tokens: a token weighs 1/2 of 1/3, and 1/2 of 1/7, instead of 1/10.
    found = with_bugs(RAGGED, Bugs(averaging="micro_batch", micro_batches=2))
    assert weights(found) == pytest.approx([1 / 6, 1 / 6, 1 / 14, 1 / 14])
    assert [each.divergence_weight for each in found] == [0.25] * 4
    assert weights(with_bugs(RAGGED, Bugs(averaging="rank", micro_batches=2))) == pytest.approx([0.1] * 4)
    ranks = with_bugs(RAGGED, Bugs(averaging="rank", micro_batches=1, ranks=2))
    assert weights(ranks) == pytest.approx(weights(found))


def test_mean_of_means_cannot_bite_where_counts_are_equal() -> None:
    equal = [row(3, 1 / 12) for _ in range(4)]
    found = with_bugs(equal, Bugs(averaging="micro_batch", micro_batches=2, ranks=2))
    assert weights(found) == pytest.approx([1 / 12] * 4)


def test_a_token_divergence_follows_its_tokens() -> None:
    found = with_bugs(RAGGED[:3], Bugs(averaging="micro_batch", micro_batches=2), token_divergence=True)
    assert [each.divergence_weight for each in found] == [0.25] * 3
    found = with_bugs(RAGGED[:3], Bugs(averaging="micro_batch", micro_batches=2))
    assert [each.divergence_weight for each in found] == [0.1875, 0.1875, 0.375]


def test_mean_of_means_keeps_the_aggregation() -> None:
    rows = [row(length, 1 / (4 * length)) for length in (1, 2, 3, 4)]
    found = with_bugs(rows, Bugs(averaging="micro_batch", micro_batches=2), aggregation="sequence_mean")
    assert weights(found) == pytest.approx([1 / (4 * length) for length in (1, 2, 3, 4)])


@pytest.mark.parametrize(
    ("bug", "parts", "kept"),
    [
        ("first", 1, [0, 1, 2, 3]),
        ("first", 2, [0, 1]),
        ("first", 4, [0]),
        ("first_and_last", 2, [0, 1, 2, 3]),
        ("first_and_last", 4, [0, 3]),
    ],
)
def test_lost_micro_batches_have_no_weight(bug: str, parts: int, kept: list[int]) -> None:
    found = with_bugs(RAGGED, Bugs.model_validate({"accumulation": bug, "micro_batches": parts}))
    assert [place for place, each in enumerate(found) if each.policy_weights.any()] == kept
    assert [place for place, each in enumerate(found) if each.divergence_weight] == kept


def test_every_rank_loses_its_own() -> None:
    assert micro_batch_parts(4, Bugs(micro_batches=2, ranks=2)) == [[[0], [1]], [[2], [3]]]
    found = with_bugs(RAGGED, Bugs(accumulation="first", micro_batches=2, ranks=2))
    assert [place for place, each in enumerate(found) if each.policy_weights.any()] == [0, 2]


def test_more_parts_than_rows() -> None:
    assert micro_batch_parts(1, Bugs(micro_batches=3)) == [[[0], [], []]]
    found = with_bugs(RAGGED[:1], Bugs(averaging="micro_batch", micro_batches=4))
    assert weights(found) == pytest.approx([1 / 4])
