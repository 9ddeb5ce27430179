import dataclasses
import math
import sqlite3

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from store_examples import LONE, finding, frozen, group, problem

from forkpoint.records import Credit, Outcome, Reward, Rollout, Span, SpanKind, StopReason, Verdict
from forkpoint.store import evaluation_results
from forkpoint.store.rows import (
    credit_from,
    credit_row,
    evaluation_from,
    evaluation_row,
    finding_from,
    finding_row,
    metric_from,
    metric_rows,
    problem_from,
    problem_row,
    reward_from,
    rollout_from,
    rollout_row,
    verdict_from,
    verdict_row,
)
from forkpoint.store.schema import migrate

names = st.text(alphabet="abc123", min_size=1, max_size=6)
any_text = st.text(alphabet=st.characters(), max_size=20)
counts = st.integers(0, 2**31 - 1)
int32 = st.integers(-(2**31), 2**31 - 1)


@st.composite
def any_rollout(draw):
    size = draw(st.integers(0, 6))
    spans = st.builds(Span, start=counts, end=counts, kind=st.sampled_from(SpanKind), policy_version=counts)
    return Rollout(
        id=draw(names),
        group_id=draw(names),
        stage="rl",
        update=draw(counts),
        index=draw(counts),
        problem_key="a1",
        parent_id=draw(st.none() | names),
        prefix_length=draw(counts),
        prompt_tokens=draw(arrays.arrays(np.int32, st.integers(0, 4), elements=int32)),
        tokens=draw(arrays.arrays(np.int32, size, elements=int32)),
        behavior_logprobs=draw(arrays.arrays(np.float32, size, elements=st.floats(width=32))),
        loss_mask=draw(arrays.arrays(np.bool_, size)),
        spans=tuple(draw(st.lists(spans, max_size=3))),
        temperature=draw(st.floats(0, 10)),
        text=draw(any_text),
        stop_reason=draw(st.sampled_from(StopReason)),
        seed=draw(names),
    )


def same(left, right):
    for field in dataclasses.fields(left):
        a, b = getattr(left, field.name), getattr(right, field.name)
        if isinstance(a, np.ndarray):
            assert a.dtype == b.dtype
            assert a.tobytes() == b.tobytes(), field.name
            assert not b.flags.writeable
        else:
            assert a == b, field.name
            assert type(a) is type(b), field.name


@pytest.fixture(scope="module")
def tables():
    connection = sqlite3.connect(":memory:", isolation_level=None)
    connection.row_factory = sqlite3.Row
    migrate(connection, "memory")
    connection.execute("INSERT INTO stages VALUES ('rl', 0, 'rl', NULL, 'running', 0, 0, NULL, 0, '')")
    store(connection, "problems", problem_row(problem("a1")))
    yield connection
    connection.close()


def store(connection, table, row):
    marks = ", ".join(f":{name}" for name in row)
    connection.execute(f"INSERT OR REPLACE INTO {table} ({', '.join(row)}) VALUES ({marks})", row)
    return connection.execute(
        f"SELECT * FROM {table} ORDER BY rowid DESC" if table == "rollouts" else f"SELECT * FROM {table}"
    ).fetchone()


@given(any_rollout())
def test_any_rollout_comes_back_bit_for_bit(tables, rollout):
    same(rollout, rollout_from(store(tables, "rollouts", rollout_row(rollout, purpose="train", position=0))))


def test_a_problem_comes_back_with_text_or_messages():
    for prompt in ("go " + LONE, ({"role": "user", "content": "go"},), ""):
        original = dataclasses.replace(problem(), prompt=prompt, answer=LONE, metadata={"a": [1, {"b": None}]})
        assert problem_from(problem_row(original)) == original


@pytest.mark.parametrize("correct", [True, False, None])
@pytest.mark.parametrize("score", [None, 0.0, 0.5, math.inf])
@pytest.mark.parametrize("answer", [None, "", LONE])
def test_a_verdict_comes_back(correct, score, answer):
    verdict = Verdict(
        outcome=Outcome.ABSTAINED, correct=correct, score=score, answer=answer, reason=LONE, parts={"a": math.inf}
    )
    assert verdict_from(verdict_row("x", verdict)) == verdict


def test_a_reward_and_a_credit_come_back_together_or_alone():
    reward = Reward(total=-math.inf, steps=(0.5, math.inf))
    credit = Credit(
        advantages=frozen([math.nan, 1.0], np.float32), rule="r", baseline=None, cost={"t": 2.0}, details={"a": 1}
    )
    for given_reward, given_credit in ((reward, credit), (reward, None), (None, credit), (Reward(total=0.0), None)):
        row = credit_row("x", given_reward, given_credit)
        assert reward_from(row) == given_reward
        found = credit_from(row)
        if given_credit is None:
            assert found is None
        else:
            same(given_credit, found)


def test_a_reward_that_is_nan_stays_nan():
    assert math.isnan(reward_from(credit_row("x", Reward(total=math.nan), None)).total)


def test_a_finding_comes_back():
    for original in (
        finding(),
        dataclasses.replace(finding(), interval=None, threshold=None, claim=LONE, value=math.inf),
    ):
        assert finding_from(finding_row(original, stage=None, update=None)) == original


def test_metrics_come_back_with_nan_and_infinities():
    values = {"a": 1.5, "b": math.nan, "c": math.inf, "d": -math.inf, "e": np.float32(0.5), "f": 3}
    rows = {row["name"]: row for row in metric_rows("rl", 1, values)}
    for name, value in values.items():
        assert np.array_equal(metric_from(rows[name]), value, equal_nan=True)
    assert [rows[name]["value"] for name in "bcd"] == [None] * 3


def test_an_evaluation_counts_the_tokens_of_the_policy_only():
    results = evaluation_results([group()])
    assert [result.length for result in results] == [2, 2]
    assert [(result.index, result.correct, result.score) for result in results] == [(0, False, 0.0), (1, True, 0.25)]


def test_the_arrays_of_an_evaluation_tell_wrong_from_unknown():
    results = [
        dataclasses.replace(evaluation_results([group()])[0], index=i, correct=correct, score=score, parts=parts)
        for i, (correct, score, parts) in enumerate(
            [(True, 1.0, {"a": 1.0}), (False, None, {}), (None, math.nan, {"b": 2.0})]
        )
    ]
    found = evaluation_from([evaluation_row(result, stage="rl", update=1, name="evaluate") for result in results])
    assert found.correct.tolist() == [True, False, False]
    assert found.known.tolist() == [True, True, False]
    assert np.array_equal(found.score, [1.0, np.nan, np.nan], equal_nan=True)
    assert np.array_equal(found.parts["a"], [1.0, np.nan, np.nan], equal_nan=True)
    assert np.array_equal(found.parts["b"], [np.nan, np.nan, 2.0], equal_nan=True)
    assert found.index.tolist() == [0, 1, 2]


def test_an_empty_evaluation_is_empty_arrays():
    found = evaluation_from([])
    assert found.correct.shape == found.score.shape == (0,)
