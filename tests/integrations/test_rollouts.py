"""Rollouts of other trainers: literal files of each, read to arrays and read again; what is wrong in one line."""

import csv
import json
import zipfile

import numpy as np
import pytest

from forkpoint.errors import ForkpointError
from forkpoint.integrations import rollout_files, rollouts_trl
from forkpoint.integrations.rollouts import FORMATS, detect, foreign_records
from forkpoint.records import STOPS, StopReason

PLAIN = {"prompt": "2+2?", "completion": "it is 4", "correct": True, "step": 1}
VERL = {"input": "2+2?", "output": "it is 4", "gts": "4", "score": 1.0, "step": 3, "acc": 1, "pred": "4"}
TRACE = {
    "id": "t1",
    "task": {"type": "Sum", "key": "k1", "data": {"answer": "4"}},
    "nodes": [
        {"parent": None, "message": {"role": "user", "content": "2+2?"}, "token_ids": [1, 2], "mask": [False, False]},
        {"parent": 0, "message": {"role": "assistant", "content": "dead branch"}, "sampled": True},
        {
            "parent": 0, "message": {"role": "assistant", "content": "it is 4"}, "sampled": True,
            "token_ids": [9, 3, 4], "mask": [False, True, True], "logprobs": [-0.5, -0.25], "finish_reason": "length",
        },
    ],
    "rewards": {"correct_answer": {"score": 1.0, "weight": 2.0}, "style": {"score": 0.5, "weight": 1.0}, "x": None},
    "metrics": {},
    "stop_condition": "agent_completed",
}  # fmt: skip
OLDER = {
    "example_id": 7, "prompt": [{"role": "user", "content": "2+2?"}],
    "completion": [{"role": "assistant", "content": "it is 4"}], "reward": 1.0, "metrics": {"accuracy": 1.0},
    "is_truncated": False,
}  # fmt: skip
SAMPLE = {
    "id": "q1", "epoch": 2, "input": [{"role": "user", "content": "2+2?"}], "target": "4",
    "output": {
        "choices": [{"message": {"role": "assistant", "content": "it is 4"}, "stop_reason": "max_tokens"}],
        "usage": {"output_tokens": 5},
    },
    "scores": {"match": {"value": "C", "answer": "4"}},
}  # fmt: skip
TRL = {"step": 10, "prompt": "2+2?", "completion": "it is 4", "accuracy_reward": 1.0, "style": 0.5, "advantage": 0.7}


def lines(path, *entries, end="\n"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(json.dumps(entry) for entry in entries) + end)
    return path


def one(path, **options):
    (records,) = foreign_records(path, **options)
    return records, list(records.contents(np.arange(len(records))))


def test_plain_with_everything(tmp_path):
    full = {
        **PLAIN, "reward": 0.5, "group": "g", "tokens": [1, 2, 3], "logprobs": [-1, -2, -3.0],
        "trainer_logprobs": [-1.0, -2.0, -3.0], "truncated": True, "answer": "4", "reference": "4", "id": "mine",
        "difficulty": 2, "outcome": "correct",
    }  # fmt: skip
    records, said = one(lines(tmp_path / "a.jsonl", full, PLAIN))
    assert records.ids.tolist() == [b"mine", f"{tmp_path.name}/a.jsonl:2".encode()]
    assert records.correct.tolist() == [1, 1]
    assert records.length.tolist() == [3, 7]
    assert records.stop.tolist() == [STOPS.index(StopReason.LENGTH), -1]
    assert said[0].behavior_logprobs is not None
    assert said[0].behavior_logprobs.tolist() == [-1, -2, -3]
    assert {"trainer_logprobs", "reference", "reward", "difficulty"} <= records.has


def test_verl(tmp_path):
    wrong = {**VERL, "acc": 0, "score": 0.0}
    del wrong["step"]
    lines(tmp_path / "10.jsonl", VERL, VERL)
    records, said = one(lines(tmp_path / "2.jsonl", wrong).parent)
    assert records.update.tolist() == [2, 3, 3]
    assert records.correct.tolist() == [0, 1, 1]
    assert (said[0].prompt, said[1].text, said[1].reference, said[1].answer) == ("2+2?", "it is 4", "4", "4")
    assert {"groups", "updates"} <= records.has


def test_prime_rl_of_both_layouts(tmp_path):
    records, said = one(lines(tmp_path / "rollouts" / "step_12" / "train_rollouts.jsonl", TRACE))
    assert (records.update[0], records.reward[0], records.correct[0], records.length[0]) == (12, 2.5, 1, 2)
    assert records.stop[0] == STOPS.index(StopReason.LENGTH)
    assert (said[0].prompt, said[0].text, said[0].reference) == ("2+2?", "it is 4", "4")
    assert said[0].tokens is not None
    assert said[0].tokens.tolist() == [3, 4]
    records, said = one(lines(tmp_path / "older" / "step_3" / "eval_rollouts.jsonl", OLDER))
    assert (records.update[0], records.purposes, records.correct[0]) == (3, ("train", "eval"), 1)
    assert said[0].text == "it is 4"


def test_inspect_as_json_and_archive(tmp_path):
    bad = {**SAMPLE, "epoch": 1, "scores": {"match": {"value": "I"}}}
    failed = {**SAMPLE, "epoch": 3, "error": {"message": "no"}}
    (tmp_path / "log.json").write_text(json.dumps({"version": 2, "eval": {}, "samples": [bad, SAMPLE, failed]}))
    with zipfile.ZipFile(tmp_path / "log.eval", "w") as archive:
        archive.writestr("header.json", "{}")
        for sample in (SAMPLE, bad, failed):
            archive.writestr(f"samples/q1_epoch_{sample['epoch']}.json", json.dumps(sample))
    for name in ("log.json", "log.eval"):
        records, said = one(tmp_path / name)
        assert records.correct.tolist() == [0, 1, -1]
        assert records.purposes[records.purpose[0]] == "inspect"
        assert records.length.tolist() == [5, 5, 5]
        assert (said[1].text, said[1].answer, said[1].reference) == ("it is 4", "4", "4")


CALL, ANSWER, LAST = (
    {"role": "assistant", "content": "look it up"}, {"role": "tool", "content": "4"},
    {"role": "assistant", "content": "it is 4"},
)  # fmt: skip


@pytest.mark.parametrize(
    "entry",
    [
        {**PLAIN, "completion": [CALL, ANSWER, ANSWER, CALL, ANSWER, LAST]},
        {**PLAIN, "turns": 2},
        {**OLDER, "completion": [CALL, ANSWER, CALL, ANSWER, LAST]},
        {**TRL, "completion": [CALL, ANSWER, CALL, ANSWER, ANSWER, LAST]},
        {**SAMPLE, "messages": [{"role": "user", "content": "2+2?"}, CALL, ANSWER, CALL, ANSWER, LAST]},
        {**TRACE, "nodes": [
            {"parent": None, "message": {"role": "user", "content": "2+2?"}},
            {"parent": 0, "message": CALL, "sampled": True}, {"parent": 1, "message": ANSWER},
            {"parent": 1, "message": {"role": "tool", "content": "of a branch that ended"}},
            {"parent": 2, "message": CALL, "sampled": True}, {"parent": 4, "message": ANSWER},
            {"parent": 5, "message": LAST, "sampled": True},
        ]},
    ],
    ids=["plain", "plain field", "prime-rl before", "trl", "inspect", "prime-rl"],
)  # fmt: skip
def test_tool_rounds_are_counted(tmp_path, entry):
    records, said = one(lines(tmp_path / "a.jsonl", entry))
    assert records.turns.tolist() == [2]
    assert "turns" in records.has
    assert (said[0].text or "").endswith("it is 4")


def test_without_messages_tool_rounds_are_unknown_and_without_tools_none(tmp_path):
    records, _ = one(lines(tmp_path / "a.jsonl", PLAIN, {**PLAIN, "completion": [LAST]}))
    assert records.turns.tolist() == [-1, 0]
    assert "turns" in records.has
    assert "turns" not in one(lines(tmp_path / "b.jsonl", PLAIN))[0].has


def test_trl_as_parquet_and_csv(tmp_path):
    rows = [{**TRL, "step": 20}, {**TRL, "accuracy_reward": 0.0, "style": float("nan")}]
    with (tmp_path / "completions.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(TRL))
        writer.writeheader()
        writer.writerows(rows)
    records, said = one(tmp_path / "completions.csv")
    assert records.update.tolist() == [10, 20]
    assert records.reward.tolist() == [0.0, 1.5]
    assert records.correct.tolist() == [0, 1]
    assert said[0].text == "it is 4"
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    folder = tmp_path / "completions"
    folder.mkdir()
    for place, row in enumerate(rows):
        parquet.write_table(pyarrow.Table.from_pylist([row] * 3), folder / f"completions_0000{place}.parquet")
    records, said = one(folder)
    assert records.update.tolist() == [10] * 3 + [20] * 3
    assert [part.text for part in said] == ["it is 4"] * 6
    assert records.unit == "characters"


def test_a_table_that_trl_writes_again_counts_once(tmp_path):
    """Two updates for each batch: TRL logs the batch of step 1 again at step 2, that of step 3 again at step 4."""
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    batches = [[{**TRL, "completion": f"it is {batch + place}"} for place in range(3)] for batch in (0, 10)]
    folder = tmp_path / "completions"
    folder.mkdir()
    written = []
    for step, batch in ((1, 0), (2, 0), (3, 1), (4, 1), (10, 0)):
        rows = [{**row, "step": step} for row in batches[batch]]
        written += rows
        parquet.write_table(pyarrow.Table.from_pylist(rows), folder / f"completions_{step:05d}.parquet")
    records, said = one(folder)
    # Only what repeats the table just before is the same batch.
    assert records.update.tolist() == [1] * 3 + [3] * 3 + [10] * 3
    assert [part.text for part in said] == [f"it is {number}" for number in (0, 1, 2, 10, 11, 12, 0, 1, 2)]
    assert records.ids[3] == b"completions/completions_00003.parquet:1"
    with (tmp_path / "all.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(TRL))
        writer.writeheader()
        writer.writerows(written)
    assert one(tmp_path / "all.csv")[0].update.tolist() == [1] * 3 + [3] * 3 + [10] * 3
    # One other advantage makes another batch.
    rows = [{**row, "step": 2} for row in batches[0][:2]] + [{**batches[0][2], "step": 2, "advantage": 0.1}]
    parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "completions_00002.parquet")
    assert one(folder)[0].update.tolist() == [1] * 3 + [2] * 3 + [3] * 3 + [10] * 3


def test_large_tables_are_taken_as_they_come(monkeypatch):
    monkeypatch.setattr(rollouts_trl, "MAX_TABLE", 2)
    entries = [(0, place, place, {"step": place // 3, "completion": place % 3}) for place in range(9)]
    assert list(rollouts_trl.fresh(entries)) == entries
    monkeypatch.setattr(rollouts_trl, "MAX_TABLE", 3)
    assert list(rollouts_trl.fresh(entries)) == entries[:3]
    assert list(rollouts_trl.fresh([])) == []


@pytest.mark.parametrize("name", ["correct", "reward"])
def test_a_reward_function_may_have_the_name_of_a_field(tmp_path, name):
    """TRL names the column after the function; the other columns still count."""
    row = {key: value for key, value in TRL.items() if key != "accuracy_reward"} | {name: 1.0}
    assert detect((lines(tmp_path / "a.jsonl", row),)) == "trl"
    records, _ = one(tmp_path / "a.jsonl")
    assert records.reward.tolist() == [1.5]
    assert records.correct.tolist() == ([1] if name == "correct" else [-1])
    assert detect((lines(tmp_path / "b.jsonl", {**PLAIN, "reward": 1.0}),)) == "plain"


def test_correct_can_be_told_from_the_reward(tmp_path):
    row = {"prompt": "a", "completion": "b", "reward": 0.8}
    assert "correct" not in one(lines(tmp_path / "a.jsonl", row))[0].has
    assert one(tmp_path / "a.jsonl", correct_at=0.5)[0].correct.tolist() == [1]


def test_stages_are_told_apart(tmp_path):
    path = lines(tmp_path / "a.jsonl", {**PLAIN, "stage": "one"}, {**PLAIN, "stage": "two"}, {**PLAIN, "stage": "one"})
    assert [(records.stage, len(records)) for records in foreign_records(path)] == [("one", 2), ("two", 1)]


def test_a_half_written_last_line_is_counted_and_left_out(tmp_path):
    path = lines(tmp_path / "a.jsonl", PLAIN, PLAIN, end='\n{"prompt": "2+')
    records, said = one(path)
    assert (len(records), records.skipped, len(said)) == (2, 1, 2)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"prompt": "a"\n' + json.dumps(PLAIN) + "\n", "a.jsonl:1: no JSON"),
        (json.dumps([1]) + "\n" + json.dumps(PLAIN) + "\n", "a.jsonl:1: must be an object with fields, is list"),
        (json.dumps({"foo": 1}), "no known trainer (fields: foo)"),
        ("", "no rollouts in it"),
        (json.dumps({**PLAIN, "correct": 0.5}), "a.jsonl:1: 'correct' = 0.5 must be true or false"),
        (json.dumps({**PLAIN, "correct": "yes"}), "'correct' must be a number, is str"),
        (json.dumps({**PLAIN, "tokens": [1, 2], "logprobs": [0.0]}), "lists of different lengths"),
        (json.dumps({**PLAIN, "tokens": [2**40]}), "whole numbers below 2147483648"),
        (json.dumps({**PLAIN, "tokens": ["x"]}), "must hold numbers only"),
        (json.dumps({**PLAIN, "step": 1.5}), "must be a whole number"),
        (json.dumps({**PLAIN, "turns": -1}), "a.jsonl:1: 'turns' = -1 must be at least 0"),
        (json.dumps({**PLAIN, "prompt": 5}), "'prompt' must be a text or a list of messages, is int"),
        (json.dumps({**PLAIN, "outcome": "corect"}), "Did you mean 'correct'"),
        ("[" * 100_000 + "\n" + json.dumps(PLAIN) + "\n", "a.jsonl:1: no JSON"),
        (json.dumps({**TRACE, "nodes": [{"parent": 0}]}), "a parent that is no node before it"),
        (json.dumps({**TRACE, "nodes": [{"token_ids": [1], "mask": []}]}), "lists of one length"),
    ],
)
def test_mistakes_are_one_line_with_file_and_line(tmp_path, content, message):
    path = tmp_path / "a.jsonl"
    path.write_text(content)
    with pytest.raises(ForkpointError) as caught:
        foreign_records(path)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


def test_other_files_are_refused_in_one_line(tmp_path, monkeypatch):
    for name, content, message in (
        ("a.txt", b"x", "rollouts end in"),
        ("a.parquet", b"PAR1", "no Parquet file"),
        ("a.eval", b"PK", "no log of inspect-ai"),
        ("a.json", b"{}", "it has no list of samples"),
    ):
        (tmp_path / name).write_bytes(content)
        if name.endswith("parquet"):
            pytest.importorskip("pyarrow")
        with pytest.raises(ForkpointError, match=message):
            foreign_records(tmp_path / name)
    with pytest.raises(ForkpointError, match="neither a run nor"):
        foreign_records(tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ForkpointError, match="holds no files of rollouts"):
        foreign_records(tmp_path / "empty")
    monkeypatch.setattr(rollout_files, "MAX_ENTRY", 20)
    with pytest.raises(ForkpointError, match=r"a.jsonl:1: a line has more"):
        foreign_records(lines(tmp_path / "a.jsonl", PLAIN))


def test_parquet_without_the_extra(tmp_path, monkeypatch):
    (tmp_path / "a.parquet").write_bytes(b"")
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(ForkpointError, match=r"pip install 'forkpoint\[arrow\]'"):
        foreign_records(tmp_path / "a.parquet")


def test_a_format_can_be_named(tmp_path):
    path = lines(tmp_path / "a.jsonl", PLAIN)
    assert detect((path,), "trl") == "trl"
    with pytest.raises(ForkpointError, match="Did you mean 'verl'"):
        foreign_records(path, format="verll")
    assert set(FORMATS) == {"inspect", "prime-rl", "verl", "trl", "plain"}


def test_messages_of_many_shapes_and_odd_numbers(tmp_path):
    parts = [{"role": "assistant", "reasoning_content": "think", "content": [{"type": "text", "text": "it is 4"}]}]
    row = {**PLAIN, "completion": parts, "reward": float("inf"), "prompt": "\ud800"}
    records, said = one(lines(tmp_path / "a.jsonl", row))
    assert said[0].text == "think\nit is 4"
    assert not np.isfinite(records.reward).any()


def test_every_entry_is_read_again_where_it_stands(tmp_path):
    rows = [{**PLAIN, "completion": f"text {place} é", "step": 9 - place} for place in range(9)]
    for half in (0, 1):
        lines(tmp_path / "many" / f"{half}.jsonl", *rows[half::2])
    records, said = one(tmp_path / "many")
    assert [part.text for part in said] == [f"text {9 - update} é" for update in records.update.tolist()]
    backward = np.arange(len(records))[::-1].copy()
    assert [part.text for part in records.contents(backward)] == [part.text for part in said][::-1]
