"""`evaluate`, `export`, `report`, `task` and help, called in this process on one small run."""

import itertools
import json
import math
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny_runs import BASE, RL, digest, finished, tiny_recipe
from transformers import AutoModelForCausalLM, AutoTokenizer

from forkpoint.cli import main as command
from forkpoint.cli import task
from forkpoint.cli.evaluate import pass_at_k, summarize
from forkpoint.cli.export import COLUMNS
from forkpoint.cli.output import finite, visible
from forkpoint.records import Outcome
from forkpoint.seeds import Key
from forkpoint.store import EvaluationResult, RunReader, checkpoint_path, stage_folder
from forkpoint.tasks.paths import Settings, build

TASK = ["--task", "paths", "--set", "branches=2", "--set", "depth=1"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    finished(folder, tiny_recipe(BASE, RL))
    return folder


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


def test_evaluate_prints_shares_with_intervals(call, run):
    code, out, err = call("evaluate", f"{run}:rl", *TASK, "--problems", 20, "--samples", 4, "--k", "1,4")
    assert code == 0
    assert "20 problems, 80 rollouts" in out
    rows = {line.split("  ")[0].strip(): line for line in out.splitlines()}
    assert {"pass@1", "pass@4", "tokens", "moves", "outcome wrong"} <= set(rows)
    assert " to " in rows["pass@4"]
    assert "80 rollouts" in err


def test_evaluate_as_json_is_a_function_of_its_arguments(call, run):
    arguments = ["evaluate", f"{run}:rl", *TASK, "--problems", 12, "--max-new-tokens", 6, "--json"]
    told = [json.loads(call(*arguments)[1]) for _ in range(2)]
    assert told[0] == told[1]
    assert told[0]["problems"] == told[0]["rollouts"] == 12
    assert told[0]["max_new_tokens"] == 6
    assert sum(outcome["value"] for outcome in told[0]["outcomes"].values()) == pytest.approx(1.0)
    other = json.loads(call(*arguments, "--seed", 1)[1])
    assert other != told[0]


def test_evaluate_takes_checkpoints_and_model_folders(call, run, tmp_path):
    checkpoint = checkpoint_path(stage_folder(run, "rl"), 6)
    arguments = [*TASK, "--problems", 3, "--max-new-tokens", 4, "--json"]
    first = json.loads(call("evaluate", checkpoint, *arguments)[1])
    second = json.loads(call("evaluate", f"{run}:rl", *arguments)[1])
    assert first["pass"] == second["pass"]
    assert first["tokens"] == second["tokens"]
    assert call("export", run, "--to", "hf", "--stage", "rl", "--out", tmp_path / "model")[0] == 0
    third = json.loads(call("evaluate", tmp_path / "model", *arguments)[1])
    assert third["tokens"] == first["tokens"]


@pytest.mark.parametrize(
    ("model", "more", "part"),
    [
        ("nowhere", [], "there is no model at nowhere"),
        ("nowhere:rl", [], "nowhere holds no run"),
        ("{run}", [], "name a stage of it, {run}:STAGE. It has: base, rl."),
        ("{run}:rll", [], "no stage 'rll'"),
        ("package:nothing", [], "'nothing'"),
        ("{run}:rl", ["--set", "branchs=3"], "Did you mean 'branches'?"),
        ("{run}:rl", ["--k", "2"], "pass@2 needs 1 <= k <= --samples = 1"),
        ("{run}:rl", ["--k", "a"], "write numbers with commas"),
        ("{run}:rl", ["--samples", "0"], "Must be >= 1"),
        ("{run}:rl", ["--temperature", "-1"], "Must be >= 0"),
        ("{run}:rl", ["--max-new-tokens", "60"], "do not fit the model's context of 64"),
        ("{run}:rl", ["--set", "branches=5", "--set", "depth=6"], "outside the model's alphabet"),
        ("{run}:rl", ["--device", "gpu"], "'gpu' cannot be used here"),
    ],
)
def test_what_evaluate_refuses(model, more, part, call, run):
    code, out, err = call("evaluate", model.format(run=run), *TASK, *more)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert part.format(run=run) in err


def test_a_damaged_checkpoint_is_not_evaluated(call, tmp_path):
    folder = tmp_path / "run"
    finished(folder, tiny_recipe(BASE, overrides=("stage.base.updates=1",)))
    path = checkpoint_path(stage_folder(folder, "base"), 1)
    data = bytearray((path / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (path / "model.safetensors").write_bytes(data)
    code, _, err = call("evaluate", path, *TASK)
    assert code == 2
    assert "was altered" in err


def test_pass_at_k_counts_the_subsets():
    for samples in range(1, 7):
        for correct, k in itertools.product(range(samples + 1), range(1, samples + 1)):
            drawn = list(itertools.combinations([1] * correct + [0] * (samples - correct), k))
            assert pass_at_k(correct, samples, k) == pytest.approx(np.mean([any(subset) for subset in drawn]))


def result(key, correct, length, outcome=None, **parts):
    outcome = outcome or {True: Outcome.CORRECT, False: Outcome.WRONG, None: Outcome.ERROR}[correct]
    return EvaluationResult(problem_key=key, correct=correct, outcome=outcome, length=length, parts=parts)


def test_the_summary_by_hand():
    results = [
        *(result("a", correct, length, moves=float(length)) for correct, length in [(True, 2), (False, 4)]),
        *(result("b", correct, 6, moves=1.0) for correct in (True, True)),
        *(result("c", correct, 1, moves=5.0) for correct in (False, None)),
        *(result("d", correct, 3) for correct in (None, None)),
    ]
    found = summarize(results, [1, 2], 0)
    assert (found["problems"], found["rollouts"], found["unjudged"]) == (4, 8, 3)
    # Problems a, b, c with 1/2, 1 and 0; the fourth could not be judged at all.
    assert found["pass"]["1"]["value"] == pytest.approx(0.5)
    assert found["pass"]["1"]["problems"] == 3
    # Only a and b have two samples that could be judged.
    assert (found["pass"]["2"]["value"], found["pass"]["2"]["problems"]) == (1.0, 2)
    assert found["tokens"]["value"] == pytest.approx((3 + 6 + 1 + 3) / 4)
    assert found["outcomes"]["error"]["value"] == pytest.approx(1.5 / 4)
    assert found["parts"]["moves"]["value"] == pytest.approx((3 + 1 + 5) / 3)
    for entry in (found["pass"]["1"], found["tokens"], *found["outcomes"].values()):
        assert entry["interval"][0] <= entry["value"] <= entry["interval"][1]
    nothing = summarize([result("a", None, 1)], [1], 0)
    assert nothing["pass"]["1"] == {"value": None, "interval": None, "problems": 0}


def test_an_exported_model_is_plain_and_the_last_one(call, run, tmp_path):
    target = tmp_path / "model"
    code, out, _ = call("export", run, "--to", "hf", "--stage", "rl", "--out", target)
    last = checkpoint_path(stage_folder(run, "rl"), 6)
    assert code == 0
    assert out == f"{last} -> {target}\n"
    names = {path.name for path in target.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= names
    assert not names & {"trainer.safetensors", "state.json"}
    assert digest(target / "model.safetensors") == digest(last / "model.safetensors")
    model = AutoModelForCausalLM.from_pretrained(target, local_files_only=True)
    weights = load_file(last / "model.safetensors")
    assert all(torch.equal(model.state_dict()[name], value) for name, value in weights.items())
    assert AutoTokenizer.from_pretrained(target, local_files_only=True).decode([2, 3]) == "ab"


def rows_of(run):
    with RunReader(run) as reader:
        kept = [("train", r) for r in reader.rollouts("rl")]
        kept += [("final", r) for r in [*reader.rollouts("base", None, "final"), *reader.rollouts("rl", None, "final")]]
        credits = dict(reader.credits("rl"))
        verdicts = {r.id: reader.verdict(r.id) for _, r in kept}
    return kept, credits, verdicts


def same_rows(rows, run):
    kept, credits, verdicts = rows_of(run)
    assert sorted(row["id"] for row in rows) == sorted(r.id for _, r in kept)
    by_id = {row["id"]: row for row in rows}
    with RunReader(run) as reader:
        difficulties = {key: reader.problem(key).difficulty for key in {row["problem_key"] for row in rows}}
    for purpose, rollout in kept:
        row = by_id[rollout.id]
        assert set(row) == set(COLUMNS)
        assert row["purpose"] == purpose
        assert row["difficulty"] == difficulties[row["problem_key"]]
        assert row["text"] == rollout.text
        assert row["tokens"] == rollout.tokens.tolist()
        assert row["logprobs"] == rollout.behavior_logprobs.tolist()
        assert row["prompt"].count("|") == 1
        credit = credits.get(rollout.id)
        assert row["advantages"] == (credit.advantages.tolist() if credit else None)
        assert (row["reward"] is None) == (credit is None)
        assert row["outcome"] == verdicts[rollout.id].outcome
        assert row["correct"] == verdicts[rollout.id].correct


def test_exported_lines_hold_every_rollout(call, run, tmp_path):
    target = tmp_path / "rows.jsonl"
    code, out, _ = call("export", run, "--to", "jsonl", "--out", target, "--json")
    rows = [json.loads(line) for line in target.read_text().splitlines()]
    assert code == 0
    assert json.loads(out) == {"run": str(run), "stage": None, "to": "jsonl", "out": str(target), "rollouts": len(rows)}
    same_rows(rows, run)
    call("export", run, "--to", "jsonl", "--stage", "base", "--out", tmp_path / "base.jsonl")
    assert {json.loads(line)["stage"] for line in (tmp_path / "base.jsonl").read_text().splitlines()} == {"base"}


def test_exported_tables_hold_the_same(call, run, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet", reason="the extra `arrow` is not installed")
    target = tmp_path / "rows.parquet"
    assert call("export", run, "--to", "parquet", "--out", target)[0] == 0
    table = parquet.read_table(target)
    assert table.column_names == list(COLUMNS)
    same_rows(table.to_pylist(), run)
    assert [path.name for path in tmp_path.iterdir()] == ["rows.parquet"]


def test_parquet_needs_its_extra(call, run, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    code, _, err = call("export", run, "--to", "parquet", "--out", tmp_path / "rows.parquet")
    assert code == 2
    assert err == "error: --to parquet needs the extra `arrow`: pip install 'forkpoint[arrow]'.\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("to", ["hf", "jsonl", "parquet"])
def test_an_existing_target_stays_as_it_is(to, call, run, tmp_path):
    target = tmp_path / "target"
    target.write_text("mine")
    code, _, err = call("export", run, "--to", to, "--stage", "rl", "--out", target)
    assert code == 2
    assert err == f"error: {target} exists already: name another with --out.\n"
    assert target.read_text() == "mine"


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--to", "inspect"], '"inspect" for --to. Choose from: "hf", "jsonl", "parquet"'),
        (["--to", "hf"], "--stage is missing: whose model? "),
        (["--to", "hf", "--stage", "x"], "no stage 'x'. It has: base, rl."),
        (["--to", "jsonl", "--out", "/nowhere/x"], "the folder /nowhere does not exist"),
        ([], "--to"),
    ],
)
def test_what_export_refuses(arguments, part, call, run):
    code, out, err = call("export", run, *arguments)
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert part in err


def test_exports_without_a_name_lie_here(call, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    call("export", run, "--to", "jsonl")
    call("export", run, "--to", "hf", "--stage", "rl")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tiny-rl", "tiny.jsonl"]


def test_the_report_is_written_again(call, run):
    (run / "report.html").unlink(missing_ok=True)
    code, out, _ = call("report", run)
    assert code == 0
    assert f"report: {run}/report.html" in out
    page = (run / "report.html").read_text()
    assert page.startswith("<!doctype html>") or page.lower().startswith("<!doctype")
    code, out, _ = call("report", run, "--json")
    assert [arm["name"] for arm in json.loads(out)["arms"]] == ["base", "rl"]
    assert len(json.loads(call("report", run, run, "--json")[1])["runs"]) == 2
    assert call("report")[0] == 2
    code, _, err = call("report", run / "none")
    assert (code, err.count("\n")) == (2, 1)


def test_tasks_are_listed_shown_and_checked(call):
    listed = {row["name"] for row in json.loads(call("task", "list", "--json")[1])["tasks"]}
    assert {"paths", "keychain", "arithmetic", "countdown", "dialect", "jsonl", "gym"} <= listed
    about = {row["name"]: row["about"] for row in json.loads(call("task", "list", "--json")[1])["tasks"]}
    assert about["dialect"].startswith("Chains whose signs")
    assert about["paths"].startswith("walk a star of paths")
    code, out, _ = call("task", "list")
    assert code == 0
    assert all(len(line.split(maxsplit=1)) == 2 for line in out.splitlines())
    shown = json.loads(call("task", "show", "paths", "--set", "branches=2", "--count", 2, "--json")[1])
    assert {row["name"] for row in shown["settings"]} >= {"branches", "depth", "lanes"}
    assert len(shown["problems"]) == 2
    assert set(shown["corpora"]) == {"walks", "golden", "recoveries"}
    code, out, _ = call("task", "show", "paths", "--difficulty", "0")
    assert code == 0
    assert "Branches of the star" in out
    assert "corpus golden" in out


@pytest.mark.parametrize("name", ["paths", "keychain", "arithmetic", "countdown", "dialect"])
def test_our_tasks_pass_their_check(name, call):
    code, out, _ = call("task", "check", name, "--count", 10, "--json")
    told = json.loads(out)
    assert code == 0
    assert (told["ok"], told["accepted"], told["faults"]) == (True, 10, [])
    assert told["refused"] == told["wrong"] > 0
    assert "10 of 10 reference answers accepted" in call("task", "check", name, "--count", 10)[1]


def test_a_check_that_fails_exits_with_one(call, monkeypatch):
    class Bad:
        def __init__(self, task):
            self._task = task

        def __getattr__(self, name):
            return getattr(self._task, name)

        def solve(self, problem):
            return "\x1b[31mno"

    real = task._task
    monkeypatch.setattr(task, "_task", lambda name, settings: Bad(real(name, settings)))
    code, out, _ = call("task", "check", "paths", "--count", 3)
    assert code == 1
    assert "0 of 3 reference answers accepted" in out
    assert "\x1b" not in out


class Console:
    """Standard input of a program that pipes one line."""

    def __init__(self, line):
        self._line = line

    def isatty(self):
        return False

    def readline(self):
        return self._line


@pytest.mark.parametrize(("right", "code"), [(True, 0), (False, 1)])
def test_a_problem_can_be_played(right, code, call, monkeypatch):
    paths = build(Settings())
    answer = paths.solve(paths.problem(Key.root(3).child("play")))
    monkeypatch.setattr(sys, "stdin", Console(answer + "\n" if right else "zz\n"))
    found, out, _ = call("task", "play", "paths", "--seed", 3)
    assert found == code
    assert ("correct: reached the goal" in out) == right
    assert f"a right answer: {answer}" in out


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["task", "show", "path"], "Did you mean 'paths'?"),
        (["evaluate", "x", "--task", "pths"], "Did you mean 'paths'?"),
        (["task", "show", "paths", "--set", "depth=x"], "depth = 'x'"),
        (["task", "show", "paths", "--count", "0"], "Must be >= 1"),
        (["task", "show", "paths", "--difficulty", "2"], "Must be <= 1"),
        (["task", "chek", "paths"], 'Did you mean "check"?'),
        (["task", "show"], "NAME requires an argument"),
        (["rn"], 'Did you mean "run"?'),
        (["run"], "RECIPE requires an argument"),
        (["run", "x.toml", "--dry-rn"], "Did you mean --dry-run?"),
        (["run", "x.toml"], "there is no recipe at x.toml"),
        (["--helpp"], "Available commands"),
        (["report", "--jsn", "x"], "--json"),
    ],
)
def test_a_mistake_on_the_command_line_is_one_line(arguments, part, call):
    code, out, err = call(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert part in err


@pytest.mark.parametrize("words", [["--help"], ["run", "--help"], ["evaluate", "-h"], ["export", "-h"], ["task", "-h"],
                                   ["task", "check", "-h"], ["report", "-h"], ["--version"]])  # fmt: skip
def test_help_goes_to_standard_output(words, call):
    code, out, err = call(*words)
    assert (code, err) == (0, "")
    assert out.strip()
    assert "Parameters\n---" not in out
    if words == ["--help"]:
        for name, (_, about) in command.COMMANDS.items():
            assert name in out
            assert about.split()[0] in out


def test_numbers_that_json_cannot_hold_become_null():
    assert finite({"a": (math.nan, 1.0), "b": [math.inf]}) == {"a": [None, 1.0], "b": [None]}
    assert visible("a\x1b[31m\u202eb\ud800\nc") == "a\\x1b[31m\\u202eb\\ud800\nc"
