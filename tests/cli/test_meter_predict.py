"""`forkpoint meter --predict`, called in this process on small tasks and recipes."""

import json
import sys
from pathlib import Path

import pytest
from tiny_runs import BASE, HEAD, RL, finished, tiny_recipe

from forkpoint.cli.main import main

KEYCHAIN = ["--predict", "--set", "positions=4", "--set", "keys=1", "--set", "entries=2", "--updates", "2",
            "--group-size", "4"]  # fmt: skip


@pytest.fixture
def call(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)

    def called(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["forkpoint", "meter", *words])
        with pytest.raises(SystemExit) as exit_:
            main()
        out = capsys.readouterr()
        return int(exit_.value.code or 0), out.out, out.err

    return called


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "tiny.toml"
    path.write_text(HEAD + BASE + RL)
    return path


def test_a_tiny_decoder_as_a_table_and_as_json(call):
    words = [*KEYCHAIN, "--groups", "6", "--cache", "decoders"]
    code, out, _ = call(*words)
    assert code == 0
    assert "head-room" in out
    assert "6 groups, 24 rollouts" in out
    code, out, _ = call(*words, "--json", "--out", "told")
    document = json.loads(out)
    assert json.loads(Path("told/meter.json").read_text()) == document
    assert f"(from {document['least']:.3g})" in document["lines"][0] or document["headroom"]["value"] is None
    assert code == 0
    assert document["influence"] == "counterfactual"
    assert document["groups"] == 6
    assert set(document["noise"]) == {"uniform", "dense"}
    assert document["lines"]


def test_a_recipe_on_the_policy_as_built(call, recipe):
    code, out, err = call(str(recipe), "--predict", "--groups", "4", "--json")
    assert code == 0
    assert "--run RUN:STAGE" in err
    document = json.loads(out)
    assert document["policy"] == "as built"
    assert document["stage"] == "rl"
    assert document["problems_per_update"] == 4
    assert document["rollouts"] == 16


def test_the_parent_in_the_run_folder_is_taken(call, recipe, tmp_path):
    finished(tmp_path / "runs" / "tiny", tiny_recipe(BASE))
    code, out, err = call("--predict", f"{recipe}:rl", "--groups", "4", "--json")
    assert code == 0
    assert json.loads(out)["policy"].endswith("tiny:base")
    assert "as built" not in err
    code, out, _ = call("--predict", str(recipe), "--run", "runs/tiny:base", "--groups", "4", "--json")
    assert json.loads(out)["policy"] == "runs/tiny:base"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["tiny.toml"], "read with --predict"),
        (["tiny.toml:lr", "--predict"], "Did you mean 'rl'?"),
        (["tiny.toml:base", "--predict"], "Known: rl"),
        (["tiny.toml", "--predict", "--groups", "3"], "at least 4"),
        (["nowhere.toml", "--predict"], "nowhere.toml"),
        (["tiny.toml", "--predict", "--variant", "A"], "--variant does not go with tiny.toml"),
        (["tiny.toml", "--predict", "--task", "lab"], "--task does not go with tiny.toml"),
    ],
)
def test_mistakes_are_one_line(call, recipe, words, said):
    del recipe
    code, out, err = call(*words)
    assert code == 2
    assert out == ""
    assert said in err.strip().splitlines()[-1]


def test_a_recipe_without_rl_is_refused(call, tmp_path):
    (tmp_path / "plain.toml").write_text(HEAD + BASE)
    code, _, err = call("plain.toml", "--predict")
    assert code == 2
    assert "no stage of kind rl" in err
