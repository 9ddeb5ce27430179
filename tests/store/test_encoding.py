import json
import math
import sqlite3

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from forkpoint.records import Outcome
from forkpoint.store.encoding import (
    decode_bools,
    decode_floats,
    decode_ints,
    decode_json,
    decode_text,
    encode_array,
    encode_json,
    encode_text,
    number,
    split_numbers,
)

any_text = st.text(alphabet=st.characters(), max_size=8) | st.sampled_from(
    ["$", "$float", "$text", "$x61", "\ud83d\ude00"]
)
any_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | any_text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(any_text, inner, max_size=3),
    max_leaves=12,
)


@given(any_json)
def test_json_comes_back_as_it_was(value):
    text = encode_json(value)
    text.encode("utf-8")
    json.loads(text, parse_constant=pytest.fail)
    assert decode_json(text) == value


def test_json_keeps_nan_apart_from_none():
    assert math.isnan(decode_json(encode_json([float("nan"), None]))[0])
    assert decode_json(encode_json([float("nan"), None]))[1] is None
    assert encode_json(-math.inf) == '{"$float":"-inf"}'


def test_json_of_numpy_enums_and_tuples_is_plain():
    value = {"a": np.float32(0.5), "b": np.arange(2), "c": (Outcome.CORRECT,), "d": np.bool_(True)}
    assert encode_json(value) == '{"a":0.5,"b":[0,1],"c":["correct"],"d":true}'


@pytest.mark.parametrize("value", [b"x", {1: 2}, {1, 2}, object()])
def test_json_refuses_what_it_would_change(value):
    with pytest.raises(TypeError, match="cannot be stored"):
        encode_json(value)


def test_readable_text_stays_readable():
    assert encode_json("$5 and \u4e2d") == '"$5 and \u4e2d"'
    assert encode_text("\u4e2d\x00") == "\u4e2d\x00"


@given(any_text)
def test_text_survives_a_column(text):
    connection = sqlite3.connect(":memory:")
    connection.execute("CREATE TABLE t (x ANY) STRICT")
    connection.execute("INSERT INTO t VALUES (?)", (encode_text(text),))
    assert decode_text(connection.execute("SELECT x FROM t").fetchone()[0]) == text
    connection.close()


@given(st.none() | st.floats(), st.none() | st.floats())
def test_numbers_come_back_as_they_were(a, b):
    row = split_numbers(a=a, b=b)
    assert all(row[name] is None or math.isfinite(row[name]) for name in "ab")
    for name, value in (("a", a), ("b", b)):
        found = number(row, name)
        assert found is value is None or found == value or (math.isnan(found) and math.isnan(value))


def test_arrays_are_little_endian_and_read_only():
    assert encode_array(np.array([1, -1], np.int32)) == b"\x01\0\0\0\xff\xff\xff\xff"
    assert encode_array(np.array([1.0], np.float32)) == b"\0\0\x80\x3f"
    assert encode_array(np.array([True, False])) == b"\x01\x00"
    for decode, dtype in ((decode_ints, np.int32), (decode_floats, np.float32), (decode_bools, np.bool_)):
        array = decode(b"\x01\0\0\0")
        assert array.dtype == dtype
        assert not array.flags.writeable
        assert decode(b"").shape == (0,)
