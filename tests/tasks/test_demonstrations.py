"""Texts from a file: what a line may say, and where a mistake is."""

import json

import pytest

from forkpoint.errors import TaskError
from forkpoint.tasks.demonstrations import kept_file, read_demonstrations


def written(folder, *lines):
    path = folder / "texts.jsonl"
    path.write_text("".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines))
    return path


def test_prompts_completions_and_where_they_are_from(tmp_path):
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2+2?"}]
    found = read_demonstrations(
        written(
            tmp_path,
            {"prompt": "1+1=", "completion": "2"},
            "",
            {"prompt": chat, "completion": " 4 ", "ends": False, "edit": "ab12", "verification": None},
        )
    )
    assert [(each.prompt, each.text, each.ends) for each in found] == [("1+1=", "2", True), (tuple(chat), " 4 ", False)]
    assert [each.provenance for each in found] == ["file:texts.jsonl:1", "file:texts.jsonl:3 edit:ab12"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"prompt": "1+1="}, r"texts\.jsonl:2: completion is missing"),
        ({"completion": "2"}, r"texts\.jsonl:2: prompt is missing"),
        ({"prompt": "1+1=", "completion": 2}, r"completion must be a text, not int"),
        ({"prompt": "1+1=", "completion": " "}, r"completion is empty"),
        ({"prompt": [], "completion": "2"}, r"prompt is empty"),
        ({"prompt": ["hi"], "completion": "2"}, r"a message of prompt must have a role and a content"),
        ({"prompt": [{"role": "user"}], "completion": "2"}, r"a message of prompt must have a role and a content"),
        ({"prompt": [{"role": "user", "content": 1}], "completion": "2"}, r"content must be a text, not int"),
        ({"prompt": "a", "completion": "b", "ends": "no"}, r"ends must be true or false, not str"),
        ('{"prompt": "a", "prompt": "b", "completion": "c"}', r"the key 'prompt' stands there twice"),
        ('{"prompt": "a"', r"texts\.jsonl:2: not JSON at column"),
        ('{"prompt": "\\ud800", "completion": "c"}', r"prompt holds half a character"),
        ("[" * 100_000, r"texts\.jsonl:2: "),
        ('"' + "a" * 5_000_000 + '"', r"texts\.jsonl:2: the line is longer than 1000000 characters"),
        ({"prompt": "a", "completion": "b", "edit": 7}, r"edit must be a text, not int"),
        ({"prompt": "a", "completion": "b", "edit": "a\nb"}, r"edit must be an id of letters and digits"),
    ],
)
def test_mistakes_are_named_by_their_line(tmp_path, line, message):
    path = written(tmp_path, {"prompt": "1+1=", "completion": "2"}, line)
    with pytest.raises(TaskError, match=message):
        read_demonstrations(path)


def test_a_run_keeps_its_own_copy(tmp_path):
    run, folder = tmp_path / "run", tmp_path / "recipes"
    folder.mkdir()
    original = written(folder, {"prompt": "1", "completion": "2"})
    assert kept_file(run, folder, "texts.jsonl") == original
    copy = kept_file(run, folder, "texts.jsonl", keep=True)
    assert copy.parent.parent == run
    written(folder, {"prompt": "3", "completion": "4"})
    assert kept_file(run, folder, "texts.jsonl", keep=True) == kept_file(run, run, "texts.jsonl") == copy
    (told,) = read_demonstrations(copy, name="texts.jsonl")
    assert (told.prompt, told.provenance) == ("1", "file:texts.jsonl:1")
    for name in ("none.jsonl", "a\0b"):
        with pytest.raises(TaskError, match="cannot be read: "):
            kept_file(run, folder, name, keep=True)


def test_no_file_and_no_text(tmp_path):
    with pytest.raises(TaskError, match=r"cannot be read: No such file"):
        read_demonstrations(tmp_path / "none.jsonl")
    with pytest.raises(TaskError, match="cannot be read: Is a directory"):
        read_demonstrations(tmp_path)
    with pytest.raises(TaskError, match="cannot be read: embedded null byte"):
        read_demonstrations(tmp_path / "a\0b")
    with pytest.raises(TaskError, match="holds no text"):
        read_demonstrations(written(tmp_path, "", " "))
