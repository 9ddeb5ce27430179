"""`forkpoint meter`, called in this process on small tasks."""

import json
import re
import sys

import pytest
from tiny_runs import BASE, finished, tiny_recipe

from forkpoint.cli.main import main
from forkpoint.report.meter import render_meter, straw_chart

LAB = ["--task", "lab", "--set", "branches=2", "--set", "depth=1", "--set", "lanes=2", "--max-new-tokens", "8",
       "--problems", "4", "--group-size", "4"]  # fmt: skip


@pytest.fixture
def call(monkeypatch, capsys):
    def called(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["forkpoint", "meter", *words])
        with pytest.raises(SystemExit) as exit_:
            main()
        out = capsys.readouterr()
        return int(exit_.value.code or 0), out.out, out.err

    return called


def test_a_table_json_and_a_page(call, tmp_path):
    code, out, err = call(*LAB, "--rules", "leave_one_out,critic", "--batches", "3", "--out", str(tmp_path))
    assert code == 0
    assert "exact: the policy sees only the task's state" in out
    assert re.search(r"leave_one_out +0\.\d\d \[", out)
    assert "budget: at most" in err
    document = json.loads((tmp_path / "meter.json").read_text())
    assert [rule["rule"] for rule in document["rules"]] == ["leave_one_out", "critic"]
    page = (tmp_path / "meter.html").read_text()
    assert page.index("<svg") < page.index("<table")
    assert "leave_one_out" in page
    assert page == render_meter(document)


def test_json_is_the_same_document(call):
    words = [*LAB, "--rules", "leave_one_out", "--batches", "0", "--json"]
    (_, one, _), (_, two, _) = call(*words), call(*words)
    first, second = json.loads(one), json.loads(two)
    assert first.pop("seconds") > 0
    assert second.pop("seconds") > 0
    assert first == second
    assert first["tier"] == "exact"
    assert first["rules"][0]["gradient"] is None
    assert first["rules"][0]["straw"]["value"] >= 0


def test_a_decoder_is_trained_and_its_truth_drawn(call, tmp_path):
    words = ["--set", "positions=6", "--set", "keys=1", "--updates", "2", "--positions", "4", "--continuations", "8",
             "--problems", "2", "--group-size", "2", "--batches", "3", "--cache", str(tmp_path), "--json"]  # fmt: skip
    code, out, err = call(*words)
    assert code == 0
    assert "pretraining: 2/2" in err
    document = json.loads(out)
    assert document["tier"] == "monte-carlo"
    assert document["continuations"] == 8
    assert document["planned_tokens"]["truth"] > 0
    assert document["planned_tokens"]["oracle gradients"] > 0
    _, _, err = call(*words)
    assert "pretraining" not in err


def test_the_policy_of_a_run(call, tmp_path):
    finished(tmp_path / "run", tiny_recipe(BASE))
    code, out, _ = call("--task", "paths", "--set", "branches=2", "--set", "depth=1", "--run", f"{tmp_path}/run:base",
                        "--max-new-tokens", "6", "--positions", "4", "--continuations", "4", "--batches", "0",
                        "--problems", "2", "--group-size", "4", "--rules", "leave_one_out", "--json")  # fmt: skip
    assert code == 0
    assert json.loads(out)["policy"].endswith("run:base")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--rules", "leave_on_out"], "Did you mean 'leave_one_out'?"),
        (["--rules", "leave_one_out,leave_one_out"], "named twice"),
        (["--rules", "leave_one_out,"], "names with commas"),
        (["--variant", "Z"], "Known: A, B, C, D, E, F"),
        (["--task", "lab", "--variant", "A"], "one of keychain"),
        (["--task", "keychains"], "Did you mean 'keychain'?"),
        (["--task", "countdown"], "--max-new-tokens"),
        (["--task", "countdown", "--max-new-tokens", "8"], "name a policy with --run"),
        (["--batches", "2"], "at least 3"),
        (["--option", "survivors.x=1", "--rules", "leave_one_out"], "rule.key=value"),
        (["--option", "group_mean_std.dof=1", "--rules", "group_mean_std"], "Did you mean 'ddof'?"),
        ([*LAB, "--option", "group_mean_std.ddof=3", "--rules", "group_mean_std"], "ddof = 3 must be 0 or 1"),
        ([*LAB, "--option", "branch.cuts=3", "--rules", "branch"], "--option branch.cuts = 3 must be str."),
        ([*LAB, "--option", "branch.cuts=foo", "--rules", "branch"], "'foo' is not known. Known: every:N"),
        ([*LAB, "--option", "critic.lam=2", "--rules", "critic"], "lam = 2 must lie in [0, 1]"),
        ([*LAB, "--learn", "1", "--rates", "abc"], "--rates = 'abc': write different numbers"),
        (["--tier", "exact", "--updates", "0"], "sees only the task's state"),
        (["--tier", "enumeration", "--updates", "0"], "too much can be written"),
    ],
)
def test_mistakes_are_one_line(call, words, said):
    code, out, err = call(*words)
    assert code == 2
    assert out == ""
    assert said in err.strip().splitlines()[-1]


def test_a_straw_is_filled_as_far_as_the_rule_lets_through():
    rules = [
        {"rule": name, "straw": {"value": value, "interval": [value, value]}, "cost": {"relative": cost}}
        for name, value, cost in (("dear", 1.0, 150.0), ("half <b>", 0.5, 1.0), ("none", None, 1.0))
    ]
    chart = str(straw_chart(rules))
    assert chart.index("half") < chart.index("none") < chart.index("dear")
    assert "<b>" not in chart
    assert "150 times" in chart
    filled = [float(width) for width in re.findall(r'width="([\d.]+)" height="14" rx="[\d.]+" class="dot', chart)]
    assert filled[1] == pytest.approx(2 * filled[0], rel=0.01)
