"""The runner of experiment cells: skips what is done, goes on where it stopped, and its table by hand."""

import importlib
import importlib.util
import json
import math
import sys
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent

RECIPE = """
name = "small"
[policy]
kind = "tiny"
layers = 1
width = 16
heads = 2
context = 64
[task]
name = "arithmetic"
terms = 2
[evaluation]
problems = 4
final_problems = 4
max_new_tokens = 8
[[stage]]
name = "base"
kind = "pretrain"
data = "solutions"
updates = 2
batch_size = 4
[[stage]]
name = "next"
kind = "sft"
from = "base"
data = "solutions"
updates = 1
batch_size = 4
"""


@pytest.fixture
def cells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("cells", ROOT / "benchmarks" / "cells.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "cells", module)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "CELLS", tmp_path / "cells")
    return module


def test_a_finished_cell_is_not_run_again(cells: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "small.toml").write_text(RECIPE)
    experiment = tmp_path / "one.toml"
    experiment.write_text('recipe = "small.toml"\nseeds = [3]\nreference = ["base"]\n[arms]\nall = []\n')
    found, references = cells.read_experiment(experiment)
    cells.run_cells(found, tmp_path / "runs", jobs=1, budget=120.0)
    record = json.loads(found[0].place.read_text())
    assert [(stage["stage"], stage["parent"], stage["problems"]) for stage in record["stages"]] == [
        ("base", None, 4), ("next", "base", 4),
    ]  # fmt: skip
    assert (record["seed"], record["arm"]) == (3, "all")
    parameters = record["stages"][0]["flops"] / 6 / record["stages"][0]["trained_tokens"]
    assert parameters == int(parameters) > 1000
    assert not list((tmp_path / "runs").glob("one-*/run.db"))
    written = found[0].place.stat().st_mtime_ns
    cells.run_cells(found, tmp_path / "runs", jobs=1, budget=120.0)
    assert found[0].place.stat().st_mtime_ns == written
    assert len(cells.table_rows(list(cells.stored(found)), references)) == 2


def test_a_spent_budget_starts_nothing(cells: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "small.toml").write_text(RECIPE)
    experiment = tmp_path / "one.toml"
    experiment.write_text('recipe = "small.toml"\nseeds = [3]\nreference = ["base"]\n[arms]\nall = []\n')
    found, _ = cells.read_experiment(experiment)
    cells.run_cells(found, tmp_path / "runs", jobs=1, budget=-1.0)
    assert not found[0].place.exists()


def stage(name: str, parent: str | None, correct: int, flops: float) -> dict[str, object]:
    return {"stage": name, "parent": parent, "correct": correct, "problems": 10, "flops": flops, "sampled_tokens": 1,
            "grad_norm": 1.0}  # fmt: skip


def test_table_by_hand(cells: ModuleType) -> None:
    records = [
        {"arm": "all", "seed": seed, "stages": [stage("a", None, first, 2e15), stage("b", "a", second, 1e15)]}
        for seed, first, second in ((0, 4, 6), (1, 6, 6))
    ]
    base, child = cells.table_rows(records, ["a"])
    assert (base["mean"], child["mean"]) == (0.5, pytest.approx(0.6))
    # Standard deviation .1414, 12.706 standard errors of .1 on one degree of freedom.
    assert base["interval"] == [pytest.approx(0.5 - 1.2706, abs=1e-3), pytest.approx(0.5 + 1.2706, abs=1e-3)]
    assert (base["petaflops"], child["petaflops"]) == (2.0, 3.0)
    assert base["minus a"] is None
    assert child["minus a"]["mean"] == pytest.approx(0.1)


def test_solvable_sets_by_hand(cells: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    monkeypatch.delitem(sys.modules, "solvable", raising=False)
    solvable = importlib.import_module("solvable")
    stages = [
        {"stage": "able", "tries": [[64] * 3, [64, 64, 64]]},
        {"stage": "base", "tries": [[64] * 3, [0, 1, 32]]},
        {"stage": "rl", "tries": [[64] * 3, [64, 0, 64]]},
    ]
    base, rl = solvable.rows_of([{"arm": "rarely", "seed": 0, "stages": stages}])
    assert (base["stage"], base["gained"], base["lost"]) == ("base", 0, 0)
    assert (rl["gained"], rl["lost"], rl["p"]) == (1, 1, 1.0)
    assert base["pass@1"]["mean"] == pytest.approx((1 / 64 + 1 / 2) / 3)
    assert base["pass@8"]["mean"] == pytest.approx((8 / 64 + 1 - math.comb(32, 8) / math.comb(64, 8)) / 3)
    assert base["pass@64"]["mean"] == rl["pass@64"]["mean"] == pytest.approx(2 / 3)


def test_the_samples_of_each_problem_are_kept_in_order_of_its_key(cells: ModuleType) -> None:
    found = SimpleNamespace(problem_keys=("b", "b", "a", "a", "a"), correct=np.array([True, False, True, True, False]))
    assert cells.solved_of(found) == [[3, 2], [2, 1]]


def test_a_chain_of_stages_ends_with_its_last_evaluation(cells: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """A base, ten updates of search at 100 tokens with two evaluations, and an imitation that drew 50 tokens before."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    monkeypatch.delitem(sys.modules, "tokens_to_target", raising=False)
    target = importlib.import_module("tokens_to_target")
    common = {"updates": 10, "curve": []}
    stages = {
        "base": {**stage("base", None, 1, 0.0), **common, "kind": "pretrain", "sampled_tokens": 0},
        "search": {**stage("search", "base", 6, 0.0), "updates": 10, "kind": "rl", "sampled_tokens": 100,
                   "curve": [[5, 4, 10], [10, 6, 10]]},
        "learn": {**stage("learn", "search", 9, 0.0), **common, "kind": "sft", "sampled_tokens": 50},
    }  # fmt: skip
    assert list(target.chain_curve(stages, "learn")) == [(50.0, 0.4), (100.0, 0.6), (150.0, 0.9)]
    assert list(target.chain_curve(stages, "search")) == [(50.0, 0.4), (100.0, 0.6)]
    # A search whose last evaluation on its way was of earlier weights counts with the one that ends it, too.
    stages["search"] |= {"curve": [[5, 4, 10]]}
    assert list(target.chain_curve(stages, "learn")) == [(50.0, 0.4), (100.0, 0.6), (150.0, 0.9)]
    # What a stage says before its first update was said by the one before it.
    after = {**stage("after", "learn", 0, 0.0), "updates": 10, "kind": "rl", "sampled_tokens": 100,
             "curve": [[0, 8, 10], [10, 10, 10]]}  # fmt: skip
    found = list(target.chain_curve({**stages, "after": after}, "after"))
    assert found == [(50.0, 0.4), (100.0, 0.6), (150.0, 0.9), (250.0, 1.0)]
    # A last evaluation confirms the one before it, and is confirmed by none.
    assert target.reached(list(target.chain_curve(stages, "learn")), 0.9) is None
    assert target.reached(list(target.chain_curve(stages, "learn")), 0.6) == 100.0


def test_a_part_is_made_once_and_read_back(
    cells: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made: list[str] = []

    def part(name: str) -> dict[str, int]:
        made.append(name)
        return {"length": len(name)}

    parts = {name: partial(part, name) for name in ("one", "three")}
    cells.make_parts(tmp_path / "parts", {"one": parts["one"]})
    assert [name for name, _ in cells.read_parts(tmp_path / "parts", parts)] == ["one"]
    cells.make_parts(tmp_path / "parts", parts)
    assert made == ["one", "three"]
    assert capsys.readouterr().out.splitlines() == ["one", "one is done", "three"]
    # One that does not fit is made anew; none is begun when the budget is spent.
    cells.make_parts(tmp_path / "parts", parts, fits=lambda found: found["length"] > 3)
    cells.make_parts(tmp_path / "parts", {**parts, "seven": partial(part, "seven")}, budget=-1.0)
    assert made == ["one", "three", "one"]
    assert capsys.readouterr().out.splitlines()[-1] == "seven waits: the budget is spent"
    found = dict(cells.read_parts(tmp_path / "parts", parts))
    assert {name: each["length"] for name, each in found.items()} == {"one": 3, "three": 5}
    assert set(found["one"]) == {"date", "versions", "length"}
