"""The comparison of fork tuning with RL, read from a run of two updates each."""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
from tiny_runs import BASE, RL, finished, tiny_recipe

SCRIPT = Path(__file__).resolve().parent.parent / "benchmarks" / "forks.py"
FORKS = """
[[stage]]
name = "forks"
kind = "forks"
from = "base"
problems = 12
group_size = 8
keep_problems = 8
max_new_tokens = 6
updates = 2
batch_size = 4
learning_rate = 0.01
"""
FEW = ("stage.base.updates=2", "stage.rl.updates=2", "doctor.before=false", "doctor.every=0")


@pytest.fixture(scope="module")
def forks() -> ModuleType:
    spec = importlib.util.spec_from_file_location("forks_benchmark", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["forks_benchmark"] = module
    spec.loader.exec_module(module)
    return module


def test_the_table_has_what_the_run_recorded(forks, tmp_path, monkeypatch, capsys):
    run = finished(tmp_path / "run", tiny_recipe(BASE, FORKS, RL, overrides=FEW)).run
    base, tuned, rl = forks.read_run(run, base="base", against="rl")
    assert (base.arm, tuned.arm, rl.arm) == ("base", "forks", "rl")
    assert (base.generated_tokens, base.agreement) == (0, None)
    # 96 rollouts against two updates of 16.
    assert tuned.generated_tokens > 2 * rl.generated_tokens > 0
    assert tuned.generated_ratio == tuned.generated_tokens / rl.generated_tokens
    assert tuned.trained_ratio == tuned.trained_tokens / rl.trained_tokens
    assert rl.against_other is None
    assert tuned.against_base.problems == tuned.problems == 12
    assert tuned.against_other.value == pytest.approx(tuned.solve_rate - rl.solve_rate)
    for line in (tuned, rl):
        assert 0 < line.agreement.same <= line.agreement.positions
        low, high = line.agreement_interval
        assert low <= line.agreement.share <= high
    monkeypatch.setattr(sys, "argv", ["forks.py", str(run), "--json", str(tmp_path / "out.json")])
    forks.main()
    assert f"| forks | {tuned.solve_rate:.3f} (" in capsys.readouterr().out
    kept = json.loads((tmp_path / "out.json").read_text())
    assert [each["arm"] for each in kept] == ["base", "forks", "rl"]
    assert kept[1]["agreement"]["positions"] == tuned.agreement.positions
