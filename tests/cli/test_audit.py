"""`forkpoint audit scorer`: exit codes, JSON, and mistakes in one line."""

import importlib.util
import json
import re
import sys
from pathlib import Path

import pytest

from forkpoint.cli import main as command
from forkpoint.tasks.gym import REFUSED

DOCS = Path(__file__).resolve().parents[2] / "docs" / "verifiers.md"
GOOD = "def honest(completion, answer):\n    return float((completion or '').strip() == answer)\n"
BAD = "def kind(prompt, completion, answer):\n    return 1.0 if completion else 0.0\n"
needs_gym = pytest.mark.skipif(
    importlib.util.find_spec("reasoning_gym") is None, reason="the extra `gym` is not installed"
)


@pytest.fixture
def call(capsys, monkeypatch, tmp_path):
    """The command in a folder with two functions: exit code, standard output, standard error."""
    (tmp_path / "my_scorers.py").write_text(GOOD + BAD)
    monkeypatch.chdir(tmp_path)

    def called(*arguments):
        monkeypatch.setattr(sys, "path", [*sys.path])
        monkeypatch.setattr(sys, "argv", ["forkpoint", "audit", "scorer", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            command.main()
        text = capsys.readouterr()
        return stop.value.code, text.out, text.err

    return called


def test_a_task_of_ours_is_clean_and_the_exit_code_says_so(call):
    code, out, _ = call("paths", "--problems", 2)
    assert code == 0
    assert "paths, 2 problems: clean" in out
    assert "reference (must be 1)" in out


def test_functions_of_the_user(call):
    code, out, _ = call("my_scorers:honest", "--problems", 1)
    assert code == 0, out
    code, out, _ = call("my_scorers:kind", "--problems", 1, "--json")
    assert code == 1
    told = json.loads(out)
    assert told["verdict"] == "refuse"
    assert "constant 0" in told["faults"]["accepted"]
    assert told["attacks"][0]["attack"] == "reference (must be 1)"
    assert call("my_scorers:kind", "--problems", 1, "--fail-on", "effect")[0] == 0


def test_the_problems_of_a_task_can_be_lent_to_a_function(call):
    code, out, _ = call("my_scorers:honest", "--task", "paths", "--problems", 1, "--json")
    assert json.loads(out)["faults"] == {}
    assert code == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["path"], "Did you mean 'paths'"),
        (["paths", "--fail-on", "accept"], "Did you mean 'accepted'"),
        (["paths", "--task", "lab"], "--task goes with a function of your own"),
        (["paths", "--only", "gcd"], "--only goes with the name gym"),
        (["my_scorers:absent"], "AttributeError"),
    ],
)
def test_mistakes_are_one_line_and_exit_2(call, arguments, message):
    code, out, err = call(*arguments)
    assert (code, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1


@needs_gym
def test_a_table_of_datasets(call):
    code, out, err = call("gym", "--only", "gcd,rush_hour", "--problems", 1, "--json")
    assert code == 1
    told = {row["name"]: row["verdict"] for row in json.loads(out)["scorers"]}
    assert told == {"gym:gcd": "clean", "gym:rush_hour": "refuse"}
    assert "gym:gcd: clean" in err


@needs_gym
def test_an_unknown_dataset_is_one_line(call):
    code, _, err = call("gym:gdc")
    assert code == 2
    assert "Did you mean 'gcd'" in err


def test_the_page_refuses_what_the_task_refuses():
    rows = re.findall(r"^\| `(\w+)` \| (.+?) \|", DOCS.read_text(encoding="utf-8"), re.MULTILINE)
    told = {name: why for name, why in rows if why in set(REFUSED.values())}
    assert told == dict(REFUSED)
