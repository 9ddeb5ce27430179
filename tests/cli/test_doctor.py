"""`forkpoint doctor` on a recipe, on a run and on a script for another trainer: table, JSON, exit codes."""

import json
import sys
from pathlib import Path

import pytest
import torch
from tiny_runs import BASE, HEAD, RL, finished, tiny_recipe

from forkpoint.cli import main as command
from forkpoint.integrations import trl
from forkpoint.integrations.trl import AccumulationGap
from forkpoint.records import Reward
from forkpoint.training import rl


@pytest.fixture
def call(capsys, monkeypatch):
    """The command: exit code, standard output, standard error."""

    def called(*arguments):
        monkeypatch.setattr(sys, "argv", ["forkpoint", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            command.main()
        text = capsys.readouterr()
        return stop.value.code, text.out, text.err

    return called


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "tiny.toml"
    path.write_text(HEAD + BASE + RL)
    return path


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    finished(folder, tiny_recipe(BASE, RL))
    return folder


def test_a_recipe_is_checked_stage_by_stage(call, recipe):
    before = set(recipe.parent.iterdir())
    code, out, err = call("doctor", recipe)
    assert (code, err) == (0, "")
    assert "base on the policy as built: " in out
    assert "rl on the policy as built: " in out
    assert "gradient invariance" in out
    assert "weights reached the sampler" in out
    assert set(recipe.parent.iterdir()) == before


def test_a_run_is_checked_on_its_last_checkpoints(call, run):
    code, out, _ = call("doctor", run, "--stage", "rl", "--json")
    told = json.loads(out)
    assert (code, told["ok"]) == (0, True)
    (stage,) = told["stages"]
    assert stage["weights"].endswith("step-000006")
    checks = {check["name"]: check for check in stage["checks"]}
    # 2 groups drawn afresh beside the 4 that the run kept of its last update.
    assert "of 6 groups" in checks["groups complete"]["did"]
    assert checks["sampler = trainer"]["status"] == "ok"
    assert checks["sampler = trainer"]["value"] <= checks["sampler = trainer"]["bound"] == 1e-4


def test_a_sick_loop_exits_with_one(call, recipe, monkeypatch):
    def flipped(batch, probe, **options):
        return [Reward(total=-float(v.correct is True)) for g in batch.groups for v in g.verdicts]

    monkeypatch.setattr(rl, "outcome_rewards", flipped)
    code, out, _ = call("doctor", recipe, "--stage", "rl", "--set", "stage.rl.updates=2")
    assert code == 1
    assert "sick: reward sign. Reward and outcome disagree" in out
    code, out, _ = call("doctor", recipe, "--stage", "rl", "--json")
    assert (code, json.loads(out)["ok"]) == (1, False)


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        ([], "name a recipe or a run folder"),
        (["nowhere.toml"], "there is no recipe at nowhere.toml"),
        (["{folder}"], "is neither a recipe nor a run folder"),
        (["{folder}/runz"], "runz is neither a recipe nor a run folder"),
        (["{recipe}", "--stage", "rll"], "--stage = 'rll' is not known. Did you mean 'rl'?"),
        (["{recipe}", "--set", "stage.rl.credit.rule=x"], "credit.rule = 'x' is not known"),
    ],
)
def test_what_it_refuses(arguments, part, call, recipe):
    given = [each.format(folder=recipe.parent, recipe=recipe) for each in arguments]
    code, out, err = call("doctor", *given)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert part in err


def test_a_run_without_a_checkpoint_is_refused(call, run, tmp_path):
    (tmp_path / "recipe.toml").write_text((run / "recipe.toml").read_text())
    (tmp_path / "run.db").write_bytes((run / "run.db").read_bytes())
    code, _, err = call("doctor", tmp_path)
    assert code == 2
    assert "has a checkpoint yet" in err


@pytest.mark.parametrize(("gap", "code"), [(1e-6, 0), (0.3, 1)])
def test_the_numbers_of_another_trainer(gap, code, call, monkeypatch):
    record = AccumulationGap(loss_type="bnpo", gap=gap, cosine=0.99, norm_ratio=1.1, tolerance=1e-4)
    seen = []
    monkeypatch.setattr(trl, "check_script", lambda path: seen.append(path) or [record])
    found, out, err = call("doctor", "--trl", "script.py")
    assert found == code
    assert "bnpo" in out
    assert ("depend on how the batch is split" in err) == bool(code)
    found, out, _ = call("doctor", "--trl", "script.py", "--json")
    assert found == code
    assert json.loads(out)["checks"][0]["loss_type"] == "bnpo"
    assert json.loads(out)["ok"] is (not code)
    assert seen == [Path("script.py")] * 2
