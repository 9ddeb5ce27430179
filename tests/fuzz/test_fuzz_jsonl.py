"""Lines that no careful person writes: every file is read, or refused in one line that names file and line."""

import json

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from forkpoint.errors import TaskError
from forkpoint.tasks.jsonl import Settings, read_entries

QUICK = settings(
    derandomize=True,
    deadline=None,
    max_examples=150,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([10**400, -(10**400), 10**308, 0]),
    st.floats(),
    st.text(max_size=30),
    st.text(st.characters(min_codepoint=0xD7F0, max_codepoint=0xE010), max_size=4),
)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip
KEYS = st.sampled_from(["question", "answer", "kind", "solution"]) | st.text(max_size=8)
LINES = st.one_of(
    st.binary(max_size=60),
    VALUES.map(lambda value: json.dumps(value).encode()),
    st.dictionaries(KEYS, VALUES, max_size=5).map(lambda table: json.dumps(table).encode()),
    st.fixed_dictionaries(
        {"question": VALUES, "answer": VALUES}, optional={"kind": VALUES, "solution": VALUES, "more": VALUES}
    ).map(lambda table: json.dumps(table).encode()),
)


def entries(tmp_path, content, **changes):
    path = tmp_path / "q.jsonl"
    path.write_bytes(content)
    return read_entries(Settings(path=str(path), **changes))


def survives(tmp_path, content, **changes):
    """The entries, or None for a file that was refused in one line."""
    try:
        return entries(tmp_path, content, **changes)
    except TaskError as error:
        message = str(error)
    assert len(message.splitlines()) == 1, repr(message)[:500]
    assert len(message) < 2000
    assert "q.jsonl" in message
    return None


@QUICK
@given(lines=st.lists(LINES, min_size=1, max_size=3))
@example(lines=[b'{"question": "q", "answer": 1' + b"0" * 400 + b"}"])
@example(lines=[b'{"question": "q", "answer": 1e999}'])
@example(lines=[b'{"question": "q\\u0000", "answer": "\\u0000"}'])
@example(lines=[b'{"question": "q", "answer": "1", "a\\nb": 1}'])
@example(lines=[b'{"question": "q", "answer": "1", "kind": "x\\ny"}'])
@example(lines=[b'{"question": "q", "answer": "1", "kind": {"a": "\\u2028"}}'])
@example(lines=[b"\x00" * 40])
@example(lines=[b"\xff\xfe{}"])
def test_any_lines_are_read_or_refused_in_one_line(lines, tmp_path):
    for entry in survives(tmp_path, b"\n".join(lines)) or ():
        assert entry.question.strip()
        assert entry.answer.strip()
        (entry.question + entry.answer + (entry.solution or "")).encode()


@pytest.mark.parametrize(
    "line",
    [
        b'{"question": "q", "answer": ' + b"[" * 100_000,
        b'{"a":' * 20_000,
        b'{"question": "q", "answer": ' + b"9" * 5000 + b"}",
        b'{"question": "' + b"a" * 900_000 + b'", "answer": "1"}',
        b'{"question": "q", "answer": "1", "' + b"k" * 300_000 + b'": 1}',
        b'{"question": "q", "answer": "1", "kind": "' + b"k" * 300_000 + b'"}',
        b'{"question": "q", "answer": "1", "question": "other"}',
        b'{"question": "q", "answer": "\xed\xa0\x80"}',
    ],
)
def test_what_would_cost_or_hide_something_is_refused(line, tmp_path):
    assert survives(tmp_path, line) is None


@QUICK
@given(cut=st.integers(0, 120), bit=st.integers(0, 7))
def test_a_damaged_file_is_read_or_refused(cut, bit, tmp_path):
    good = b"".join(json.dumps({"question": f"1+{n}", "answer": n + 1}).encode() + b"\n" for n in range(4))
    data = bytearray(good)
    data[cut % len(data)] ^= 1 << bit
    survives(tmp_path, bytes(data))
    survives(tmp_path, good[:cut])
