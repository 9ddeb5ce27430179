"""The panel of patients: its recipes, its counts and intervals by hand, and one cell from run to table."""

import importlib
import json
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
from scipy.special import betaincinv

from forkpoint.assembly.checks import check_recipe
from forkpoint.audits.table import AUDITS
from forkpoint.config.load import load_recipe
from forkpoint.config.recipe import parent
from forkpoint.errors import ForkpointError

ROOT = Path(__file__).resolve().parent.parent
RECIPES = ROOT / "recipes" / "patients"

SMALL = """
name = "small"
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
max_new_tokens = 6
[[stage]]
name = "base"
kind = "pretrain"
data = "solutions"
updates = 1
batch_size = 4
[[stage]]
name = "full"
kind = "rl"
from = "base"
updates = 1
problems_per_update = 2
group_size = 2
max_new_tokens = 6
[[stage]]
name = "healthy"
kind = "sft"
from = "base"
data = "solutions"
updates = 1
batch_size = 4
"""


@pytest.fixture
def panel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    for name in ("cells", "audit_panel"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    cells, module = importlib.import_module("cells"), importlib.import_module("audit_panel")
    monkeypatch.setattr(cells, "CELLS", tmp_path / "cells")
    yield module
    for name in ("cells", "audit_panel"):
        sys.modules.pop(name, None)


def small_panel(panel: ModuleType, folder: Path) -> object:
    (folder / "small.toml").write_text(SMALL)
    return panel.Panel(
        base="base", doses=("full", "half"), controls=("healthy",), cures=("cure",),
        patients={"advantage_collapse": folder / "small.toml"}, tuning=(9,), seeds=(3, 4),
        temperatures={"full": 2.0},
    )  # fmt: skip


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.toml")), ids=lambda path: path.stem)
def test_every_recipe_can_be_run(path: Path, tmp_path: Path) -> None:
    recipe = load_recipe(path)
    check_recipe(recipe, path.parent, tmp_path / "run")
    assert all(stage.updates <= 150 for stage in recipe.stage if path.stem != "base")


def test_every_audit_has_a_patient_with_doses_and_a_healthy_twin(panel: ModuleType) -> None:
    read = panel.read_panel(panel.EXPERIMENT)
    assert {panel.audit_of(patient) for patient in read.patients} == set(AUDITS)
    for audit, path in read.patients.items():
        stages = {stage.name: stage for stage in load_recipe(path).stage}
        made_here = set(read.temperatures) if audit == "mismatch" else set()
        assert {read.base, *read.doses, *read.controls} <= set(stages) | made_here
        assert parent(stages[read.base]) is None
        assert parent(stages["healthy"]) == read.base
        assert load_recipe(path).evaluation.shifted
    cells = read.cells()
    assert len(cells) == len(read.patients) * len(read.seeds) == 78
    assert not {cell.place for cell in cells} & {cell.place for cell in read.cells(tuning=True)}


@pytest.mark.parametrize(
    ("line", "wrong", "message"),
    [
        ('coverage = "coverage.toml"', 'covrage = "coverage.toml"', "Did you mean 'coverage'"),
        ("tuning = [100, ", "tuning = [5, ", "share a seed"),
    ],
)
def test_a_mistaken_panel_is_refused(panel: ModuleType, tmp_path: Path, line: str, wrong: str, message: str) -> None:
    text = panel.EXPERIMENT.read_text()
    assert line in text
    (tmp_path / "panel.toml").write_text(text.replace(line, wrong))
    with pytest.raises(ForkpointError, match=message):
        panel.read_panel(tmp_path / "panel.toml")


def test_exact_intervals(panel: ModuleType) -> None:
    assert panel.clopper_pearson(0, 0) == (0.0, 1.0)
    # None of 60: 1 - 0.025 ** (1 / 60); all of 6: 0.025 ** (1 / 6).
    assert panel.clopper_pearson(0, 60) == pytest.approx((0.0, 1 - 0.025 ** (1 / 60)))
    assert panel.clopper_pearson(6, 6) == pytest.approx((0.025 ** (1 / 6), 1.0))
    assert panel.clopper_pearson(5, 6) == pytest.approx((betaincinv(5, 2, 0.025), betaincinv(6, 1, 0.975)))


def cell(seed: int, full: str, healthy: str, *, half: str | None = None, values: tuple[float, ...] = (0.5,)) -> dict:
    def said(status: str) -> dict:
        findings = [{"status": status, "value": value, "interval": None, "claim": "why"} for value in values]
        return {"advantage_collapse": {"status": status, "findings": findings}}

    stages = {"full": said(full), "healthy": said(healthy)} | ({"half": said(half)} if half else {})
    return {"patient": "advantage_collapse", "seed": seed, "stages": stages, "solved": {"full": seed / 10, "base": 1.0}}


def test_the_table_by_hand(panel: ModuleType, tmp_path: Path) -> None:
    made = small_panel(panel, tmp_path)
    documents = [
        cell(1, "sick", "ok", half="watch", values=(0.25, 3.0)),
        cell(2, "watch", "sick", values=(0.75,)),
        cell(3, "sick", "not run", values=(0.5, 1.0)),
    ]
    # An audit that ran and had nothing to say is no healthy run that it passed.
    silent = cell(4, "sick", "ok")
    silent["stages"] = {"healthy": {"advantage_collapse": {"status": "ok", "findings": []}}}
    documents.append({**silent, "solved": {}})
    other = {**cell(1, "sick", "ok", values=(9.0,)), "patient": "coverage"}
    (row,) = panel.table_rows(made, [*documents, other])
    names = ("full", "half", "cure", "healthy")
    assert {name: tuple(row[name][key] for key in ("sick", "watch", "runs")) for name in names} == {
        "full": (2, 1, 3), "half": (0, 1, 1), "cure": (0, 0, 0), "healthy": (1, 0, 3),
    }  # fmt: skip
    assert row["full"]["interval"] == pytest.approx(panel.clopper_pearson(2, 3), rel=1e-4)
    full = next(each for each in panel.value_rows(made, [*documents, other]) if each["stage"] == "full")
    assert (full["seeds"], full["solved"]["mean"]) == (3, pytest.approx(0.2))
    assert [each["mean"] for each in full["values"]] == [0.5]
    # 0.25, 0.75 and 0.5: Student's 4.3027 times 0.25 over the root of 3.
    assert full["values"][0]["interval"] == pytest.approx([0.5 - 0.6210, 0.5 + 0.6210], abs=1e-4)
    assert panel.flagged(made, documents) == ["advantage_collapse 2 healthy: advantage_collapse: why"]


def test_a_second_patient_has_a_row_of_its_own_and_healthy_runs_count_once(panel: ModuleType, tmp_path: Path) -> None:
    made = small_panel(panel, tmp_path)
    recipe = made.patients["advantage_collapse"]
    made = replace(made, patients={**made.patients, "advantage_collapse-grown": recipe})
    second = {**cell(1, "watch", "sick"), "patient": "advantage_collapse-grown"}
    rows = panel.table_rows(made, [cell(1, "sick", "ok"), cell(2, "sick", "ok"), second])
    counts = [[(row[name]["sick"], row[name]["runs"]) for name in ("full", "healthy")] for row in rows]
    assert [row["audit"] for row in rows] == ["advantage_collapse", "advantage_collapse-grown"]
    assert counts == [[(2, 2), (1, 3)], [(0, 1), (0, 0)]]


def test_who_is_asked_about_whom(panel: ModuleType, tmp_path: Path) -> None:
    """Healthy stages are read by all audits, sick ones by those on records and by their own."""
    made = small_panel(panel, tmp_path)
    models = {"token_edits", "premature_confidence", "template_collapse"}
    assert {name for name in AUDITS if panel.asks_models(name)} == models
    assert made.audits("healthy", "coverage") == tuple(AUDITS)
    assert set(made.audits("full", "coverage")) == set(AUDITS) - models
    assert set(made.audits("full", "token_edits")) == set(AUDITS) - models | {"token_edits"}


def test_a_cell_from_run_to_table(panel: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = small_panel(panel, tmp_path)
    cells = made.cells()[:1]
    panel.run_panel(made, cells, tmp_path / "runs", jobs=1, budget=-1.0)
    assert not cells[0].place.exists()
    panel.run_panel(made, cells, tmp_path / "runs", jobs=1, budget=300.0)
    record = json.loads(cells[0].place.read_text())
    assert (record["patient"], record["seed"]) == ("advantage_collapse", 3)
    assert set(record["stages"]) == {"full", "healthy"}
    assert set(record["stages"]["healthy"]) == set(AUDITS)
    assert record["stages"]["healthy"]["template_collapse"]["status"] != "not run"
    assert len(record["stages"]["healthy"]["mismatch"]["findings"]) == 3
    assert "template_collapse" not in record["stages"]["full"]
    assert record["stages"]["full"]["advantage_collapse"]["findings"][0]["value"] in (0.0, 0.5, 1.0)
    assert record["parents"] == {"base": None, "full": "base", "healthy": "base"}
    assert not (tmp_path / "runs" / cells[0].name).exists()
    assert cells[0].place.stat().st_size < 10_000
    written = cells[0].place.stat().st_mtime_ns
    panel.run_panel(made, cells, tmp_path / "runs", jobs=1, budget=300.0)
    assert cells[0].place.stat().st_mtime_ns == written
    panel.print_tables(made, panel.stored(cells))
    assert "| `advantage_collapse` |" in capsys.readouterr().out
