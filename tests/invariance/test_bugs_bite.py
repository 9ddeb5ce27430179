"""Negative controls: the two published bugs change the gradient where they bite, and do not where they cannot.

Where they bite is worked out beside the code, in exact fractions: a bug is harmless when every trained token keeps its
weight.  The suite's own check must fail on the first kind and hold on the second.
"""

import zlib
from fractions import Fraction

import pytest
from hypothesis import given, seed, settings
from hypothesis import strategies as st
from invariance_cases import (
    AGGREGATIONS,
    BUDGET,
    LIMITS,
    LOSSES,
    distance,
    frozen_rows,
    objective_of,
    policy_of,
    prompt_ids,
    rows_of,
    update_gradient,
    weighted,
)
from invariance_ledger import module_ledger  # noqa: F401

from forkpoint.bugs import Bugs, micro_batch_parts, with_bugs

CAUGHT = 1e-3
CASES = [(loss, aggregation) for loss in LOSSES for aggregation in AGGREGATIONS]
RAGGED = (1, 3, 4, 5, 6, 7, 8, 10)
"""Rows of the ragged kind that have a trained token with a gradient under every loss."""


def control_rows(loss, aggregation, *, even):
    """Rows that all matter, with their own global weights."""
    if even:
        return list(rows_of("table", loss, aggregation, "sequence", even=True))
    rows = frozen_rows("table", "sequence", even=False)
    return weighted([rows[place] for place in RAGGED], LOSSES[loss], aggregation)


def gap(rows, bugs, loss, aggregation):
    """What the suite would report of a trainer with the bug: relative difference to the right gradient."""
    policy, objective = policy_of("table", "float64"), objective_of(loss, "table", "float64")
    broken = with_bugs(rows, bugs, aggregation=aggregation, constant_length=BUDGET)
    parts = [part for share in micro_batch_parts(len(rows), bugs) for part in share]
    return distance(update_gradient(policy, broken, objective, split=parts), update_gradient(policy, rows, objective))


def changes_a_weight(rows, bugs, aggregation, *, counted):
    """Whether the bug changes the weight of any trained token or, where a row is `counted` as one, of any row."""
    parts = [part for share in micro_batch_parts(len(rows), bugs) for part in share]
    if bugs.averaging == "none":
        means = [range(len(rows))]
    elif bugs.averaging == "rank":
        means = [[place for part in share for place in part] for share in micro_batch_parts(len(rows), bugs)]
    else:
        means = parts
    kept = set()
    for share in micro_batch_parts(len(rows), bugs):
        last = len(share) - 1
        allowed = {"none": range(last + 1), "first": [0], "first_and_last": [0, last]}[bugs.accumulation]
        kept |= {place for number in allowed for place in share[number]}
    right = fractions(rows, range(len(rows)), aggregation)
    for mean in means:
        for place, weight in fractions(rows, mean, aggregation).items():
            if place not in kept or weight / len(means) != right[place]:
                return True
        if counted and mean and Fraction(1, len(means) * len(mean)) != Fraction(1, len(rows)):
            return True
    return False


def fractions(rows, places, aggregation):
    """The weight of a trained token of each row when only the rows at `places` are counted."""
    counts = {place: int(rows[place].loss_mask.sum()) for place in places}
    ids = prompt_ids(rows)
    found = {}
    for place, count in counts.items():
        siblings = sum(other for twin, other in counts.items() if ids[twin] == ids[place])
        denominator = {
            "token_mean": sum(counts.values()),
            "constant": len(counts) * BUDGET,
            "sequence_mean": count * len(counts),
            "prompt_mean": siblings * len({ids[twin] for twin in counts}),
        }[aggregation]
        found[place] = Fraction(1, denominator)
    return found


@pytest.mark.parametrize(("loss", "aggregation"), CASES)
def test_every_row_of_the_controls_has_a_gradient(loss, aggregation):
    policy, objective = policy_of("table", "float64"), objective_of(loss, "table", "float64")
    for even in (False, True):
        rows = control_rows(loss, aggregation, even=even)
        whole = update_gradient(policy, rows, objective).norm()
        assert all(float(update_gradient(policy, [row], objective).norm() / whole) > CAUGHT for row in rows)


SETTINGS = [
    {"accumulation": accumulation, "averaging": averaging}
    for accumulation in ("none", "first", "first_and_last")
    for averaging in ("none", "micro_batch", "rank")
]


@pytest.mark.parametrize(("loss", "aggregation"), CASES)
def test_each_bug_is_caught_exactly_where_it_bites(loss, aggregation, ledger):
    counted = "_k2" in loss

    @seed(zlib.crc32(f"{loss}-{aggregation}".encode()))
    @settings(max_examples=12, database=None)
    @given(st.sampled_from(SETTINGS), st.integers(1, 5), st.integers(1, 3), st.booleans(), st.data())
    def holds(switches, micro_batches, ranks, even, data):
        rows = control_rows(loss, aggregation, even=even)
        rows = [rows[place] for place in data.draw(st.permutations(range(len(rows))))]
        bugs = Bugs(**switches, micro_batches=micro_batches, ranks=ranks)
        found = gap(rows, bugs, loss, aggregation)
        if changes_a_weight(rows, bugs, aggregation, counted=counted):
            assert found >= CAUGHT
        else:
            # A weight of other counts is rounded to float32 on another way.
            assert found <= (LIMITS["float32"] if bugs.averaging != "none" else LIMITS["float64"])

    holds()


@pytest.mark.parametrize(
    ("switches", "cut", "bites"),
    [
        ({"accumulation": "first"}, (1, 1), False),
        ({"accumulation": "first"}, (2, 1), True),
        ({"accumulation": "first_and_last"}, (2, 1), False),
        ({"accumulation": "first_and_last"}, (3, 1), True),
        ({"accumulation": "first_and_last"}, (2, 3), False),
        ({"averaging": "micro_batch"}, (1, 1), False),
        ({"averaging": "micro_batch"}, (3, 1), True),
        ({"averaging": "rank"}, (3, 1), False),
        ({"averaging": "rank"}, (1, 3), True),
    ],
)
@pytest.mark.parametrize("loss", LOSSES)
def test_where_the_bugs_bite_a_token_mean(loss, switches, cut, bites, ledger):
    found = gap(
        control_rows(loss, "token_mean", even=False), Bugs(**switches, micro_batches=cut[0], ranks=cut[1]), loss,
        "token_mean",
    )  # fmt: skip
    ledger.control(next(iter(switches)) + " " + next(iter(switches.values())), found, bites=bites)
    assert found >= CAUGHT if bites else found <= LIMITS["float64"]


@pytest.mark.parametrize("averaging", ["micro_batch", "rank"])
@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize("loss", LOSSES)
def test_a_mean_of_means_is_harmless_for_equal_counts(loss, aggregation, averaging):
    # Rows of equal length, grouped by prompt: three parts hold one prompt each.
    rows = sorted(control_rows(loss, aggregation, even=True), key=lambda row: row.prompt.tobytes())
    cut = {"micro_batches": 3} if averaging == "micro_batch" else {"micro_batches": 1, "ranks": 3}
    assert gap(rows, Bugs(averaging=averaging, **cut), loss, aggregation) <= LIMITS["float32"]
