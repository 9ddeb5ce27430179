import json
import unicodedata

import pytest

from forkpoint.report.text import prompt_text, read_tokenizer, shorten, split_evenly, token_texts, visible


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain ü 漢 שלום 🙂", "plain ü 漢 שלום 🙂"),
        ("a\tb\nc", "a\tb\nc"),
        ("\x00\x1b[31m\r\x7f\x85", "\\x00\\x1b[31m\\x0d\\x7f\\x85"),
        ("\u202egnp.exe\u2066\u200f", "\\u202egnp.exe\\u2066\\u200f"),
        ("\ud800\udfffx", "\\ud800\\udfffx"),
        ("\u2028\ufeff\U000e0041", "\\u2028\\ufeff\\U000e0041"),
    ],
)
def test_what_would_hide_is_spelled_out(text, shown):
    assert visible(text) == shown
    assert visible(shown) == shown
    shown.encode("utf-8")


def test_every_character_can_be_written_and_none_reorders():
    shown = visible("".join(map(chr, range(0x30000))))
    shown.encode("utf-8")
    assert not {unicodedata.bidirectional(character) for character in shown} & {
        "RLO",
        "LRO",
        "RLE",
        "LRE",
        "RLI",
        "PDF",
    }


def test_prompts_and_cuts():
    assert prompt_text(({"role": "user", "content": "hi"}, {"role": "system", "content": "x"})) == "user: hi\nsystem: x"
    assert shorten("abc", 3) == "abc"
    assert shorten("abcd", 3) == "abc … (1 more characters)"
    assert [len(part) for part in split_evenly("ab", 4)].count(1) == 2
    assert split_evenly("", 0) == []
    assert "".join(split_evenly("a long text", 7)) == "a long text"


def write(path, tree):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(tree))
    return path


def test_a_byte_level_vocabulary_is_decoded(tmp_path):
    vocabulary = {"Ġhello": 0, "Ċ": 1, "Ã¼": 2, "âĤ": 3, "<think>": 4}
    tree = {
        "model": {"vocab": vocabulary},
        "decoder": {"type": "ByteLevel"},
        "added_tokens": [{"id": 4, "content": "<think>"}],
    }
    texts = read_tokenizer(write(tmp_path / "t.json", tree))
    assert texts == {0: " hello", 1: "\n", 2: "ü", 3: "\\xe2\\x82", 4: "<think>"}


def test_a_unigram_vocabulary_is_decoded(tmp_path):
    tree = {"model": {"vocab": [["<unk>", 0.0], ["▁the", -1.0], ["<0x0A>", -2.0]]}, "decoder": {"type": "Metaspace"}}
    assert read_tokenizer(write(tmp_path / "t.json", tree)) == {0: "<unk>", 1: " the", 2: "\n"}


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"model": {"vocab": 3}}', '{"model": null}', "\ufeff[[["])
def test_a_damaged_tokenizer_is_no_tokenizer(tmp_path, content):
    path = tmp_path / "t.json"
    path.write_text(content)
    assert read_tokenizer(path) == {}
    assert read_tokenizer(tmp_path / "missing.json") == {}


def test_the_newest_checkpoint_that_can_be_read_counts(tmp_path):
    for step, token in (("step-000009", "old"), ("step-000010", "new")):
        write(tmp_path / "stages" / "rl" / step / "tokenizer.json", {"model": {"vocab": {token: 0}}})
    assert token_texts(tmp_path) == {0: "new"}
    (tmp_path / "stages" / "rl" / "step-000010" / "tokenizer.json").write_text("{")
    assert token_texts(tmp_path) == {0: "old"}
    assert token_texts(tmp_path / "nothing") == {}
