"""`forkpoint meter --learn`, called in this process on a small table and a small decoder."""

import json
import re
import sys

import pytest

from forkpoint.cli.main import main

LAB = ["--task", "lab", "--set", "branches=2", "--set", "depth=1", "--set", "lanes=2", "--max-new-tokens", "8",
       "--problems", "4", "--group-size", "4", "--batches", "0"]  # fmt: skip
CHAIN = ["--task", "keychain", "--set", "positions=4", "--set", "keys=1", "--set", "operations=1", "--set", "values=1",
         "--updates", "2", "--batches", "0", "--positions", "2", "--continuations", "2"]  # fmt: skip


@pytest.fixture
def call(monkeypatch, capsys):
    def called(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["forkpoint", "meter", *words])
        with pytest.raises(SystemExit) as exit_:
            main()
        out = capsys.readouterr()
        return int(exit_.value.code or 0), out.out, out.err

    return called


def test_curves_are_kept_and_the_page_shows_what_they_saved(call, tmp_path):
    words = [*LAB, "--rules", "batch_baseline", "--learn", "2", "--rates", "0.1", "--learn-tokens", "9000"]
    code, out, err = call(*words, "--out", str(tmp_path))
    assert code == 0
    assert "learning: 4 curves, at most 36,000 generated tokens" in err
    assert "tokens to target" in out
    assert re.search(r"equivalents +seconds +uniform", out)
    names = sorted(path.name for path in (tmp_path / "learning").iterdir())
    assert names == [f"{arm}-0.1-{seed}.json" for arm in ("batch_baseline", "leave_one_out") for seed in (0, 1)]
    document = json.loads((tmp_path / "meter.json").read_text())
    rows = {row["arm"]: row for row in document["learning"]["rows"]}
    assert rows["leave_one_out"]["seeds"] == 2
    assert rows["leave_one_out"]["ratio"] == pytest.approx(1)
    assert "Learning" in (tmp_path / "meter.html").read_text()
    code, _, err = call(*words, "--out", str(tmp_path))
    assert code == 0
    assert "seed 0:" not in err, "finished curves are not run again"


def test_on_keychain_an_oracle_runs_beside_the_rules(call):
    code, out, err = call(*CHAIN, "--rules", "counterfactual", "--learn", "1", "--learn-tokens", "1", "--json")
    assert code == 0, err
    rows = json.loads(out)["learning"]["rows"]
    assert [row["arm"] for row in rows] == ["leave_one_out", "oracle", "counterfactual"]
    assert [row["solved"] for row in rows] == [0, 0, 0]


@pytest.mark.parametrize("rates", ["", "fast", "1e-3,1e-3", "2", "0"])
def test_rates_that_are_none_are_one_line(call, rates):
    code, _, err = call(*LAB, "--rules", "leave_one_out", "--learn", "1", "--rates", rates)
    assert code == 2
    assert "--rates" in err.splitlines()[-1] or "--rates" in err
