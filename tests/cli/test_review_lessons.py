"""`forkpoint review lessons`: what is added, kept, refused, and what a policy that cannot read says."""

import json
import sys

import pytest
from tiny_runs import finished, tiny_recipe

from forkpoint.cli import main as command
from forkpoint.store import RunReader

HEAD = """
name = "taught"
[policy]
kind = "tiny"
layers = 1
width = 32
heads = 2
context = 96
[task]
name = "dialect"
[evaluation]
problems = 2
final_problems = 2
max_new_tokens = 12
[doctor]
before = false
every = 0
"""
STAGES = '[[stage]]\nname = "base"\nkind = "pretrain"\ndata = "mixed"\nupdates = 2\nbatch_size = 4\n'


@pytest.fixture
def run(tmp_path):
    finished(tmp_path / "run", tiny_recipe(STAGES, head=HEAD))
    return tmp_path / "run"


@pytest.fixture
def call(capsys, monkeypatch):
    def called(*arguments):
        monkeypatch.setattr(sys, "argv", ["forkpoint", "review", "lessons", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            command.main()
        text = capsys.readouterr()
        return stop.value.code, text.out, text.err

    return called


def test_lessons_are_added_once_and_listed(call, run):
    assert "0 of 0 lessons live" in call(run)[1]
    call(run, "--add", "@abd!c")
    code, out, _ = call(run, "--add", "@abd!c", "--add", " @abd!c ", "--json")
    (lesson,) = json.loads(out)["lessons"]
    assert (code, lesson["text"], lesson["deleted"], lesson["audits"]) == (0, "@abd!c", False, [])
    assert "not tried" in call(run)[1]


def test_a_policy_that_cannot_read_is_not_audited(call, run):
    code, _, err = call(run, "--add", "@abd!c", "--audit", "--trials", 4, "--json")
    assert code == 0
    assert "cannot use lessons" in err
    assert "at most" in err
    with RunReader(run) as reader:
        (stored,) = reader.lessons()
    assert (stored.audits, stored.deleted) == ((), False)


def test_rollouts_that_say_nothing_propose_nothing(call, run):
    code, out, err = call(run, "--propose", "--json")
    assert (code, json.loads(out)["lessons"]) == (0, [])
    assert "64 groups: 0 lessons" in err


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("RUN", "--add", "no lesson of this task"), "dialect"),
        (("RUN", "--stage", "x", "--audit"), "no stage 'x'"),
        (("none",), "holds no run"),
    ],
)
def test_mistakes_are_one_line(call, run, arguments, line):
    code, out, err = call(*(run if each == "RUN" else each for each in arguments))
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert line in err
    assert err.count("\n") == 1


def test_what_was_added_outlives_an_audit_that_is_interrupted(call, run, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("forkpoint.cli.review_lessons.reading_gate", interrupted)
    code, _, _ = call(run, "--add", "@abd!c", "--audit", "--trials", 4)
    assert code == 130
    with RunReader(run) as reader:
        assert [stored.lesson.text for stored in reader.lessons()] == ["@abd!c"]
