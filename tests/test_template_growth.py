"""The table of grown collapse by hand, and what is measured of a stage of a small run."""

import importlib
import json
import math
import sys
from pathlib import Path
from types import ModuleType

import pytest
from tiny_runs import finished

from forkpoint.config import parse_recipe
from forkpoint.config.load import load_recipe
from forkpoint.config.recipe import RLStage, parent

ROOT = Path(__file__).resolve().parent.parent
NAMES = ("cells", "audit_panel", "template_growth")
SMALL = """
name = "template-collapse-grown"
[policy]
kind = "tiny"
layers = 1
width = 16
heads = 2
context = 64
[task]
name = "quiz"
terms = 2
[evaluation]
problems = 4
final_problems = 4
max_new_tokens = 8
[[stage]]
name = "base"
kind = "pretrain"
data = "solutions"
updates = 40
batch_size = 16
learning_rate = 1e-2
"""


@pytest.fixture
def growth(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    for name in NAMES:
        monkeypatch.delitem(sys.modules, name, raising=False)
    module = importlib.import_module("template_growth")
    monkeypatch.setattr(module, "CELLS", tmp_path / "cells")
    yield module
    for name in NAMES:
        sys.modules.pop(name, None)


def test_the_table_by_hand(growth: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    """Of 1 and 3: mean 2, standard deviation sqrt 2, standard error 1, Student's t of one degree 12.7062."""
    folder = growth.CELLS / "template-growth"
    folder.mkdir(parents=True)
    for seed, information in ((0, 1.0), (1, 3.0)):
        stages = [{"stage": "full", "solved": 0.5, "information": information}, {"stage": "base", "solved": None}]
        (folder / f"{seed}.json").write_text(json.dumps({"seed": seed, "stages": stages}))
    growth.print_table([0, 1, 2])
    lines = capsys.readouterr().out.splitlines()
    cells = [cell.strip() for cell in lines[2].split("|")]
    assert cells[1:5] == ["full", "2", "0.5 [0.5, 0.5]", "2 [-10.7, 14.7]"]
    assert [cell.strip() for cell in lines[3].split("|")][3:5] == ["-", "-"]


def test_what_is_measured_of_a_stage(growth: ModuleType, tmp_path: Path) -> None:
    run = tmp_path / "run"
    finished(run, parse_recipe(SMALL))
    found = growth.measured(run, "base")
    assert found["stage"] == "base"
    assert 0 <= found["finished"] <= 1
    assert 0 <= found["solved"] <= 1
    assert found["cap"] == pytest.approx(math.log(found["prompts"]))
    assert found["information"] <= found["cap"] + 1e-9


def test_the_arms_differ_in_one_thing_each(growth: ModuleType) -> None:
    stages = {stage.name: stage for stage in load_recipe(growth.RECIPE).stage if isinstance(stage, RLStage)}
    full, unpaid, healthy = stages["full"], stages["unpaid"], stages["healthy"]
    assert (parent(full), full.updates + stages["half"].updates) == ("half", unpaid.updates)
    assert full.entropy_bonus == stages["half"].entropy_bonus == healthy.entropy_bonus > unpaid.entropy_bonus == 0
    assert full.curriculum == unpaid.curriculum
    assert healthy.curriculum is None
    same = ("problems_per_update", "group_size", "max_new_tokens", "learning_rate")
    assert len({tuple(getattr(stage, name) for name in same) for stage in stages.values()}) == 1
