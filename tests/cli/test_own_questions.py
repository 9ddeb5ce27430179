"""A run of the user's own questions: it keeps the file, and whoever reads the run later reads the same."""

import json
import shutil
import sys
from pathlib import Path

import pytest
from tiny_runs import After, finished, make_run, resume, tiny_recipe

from forkpoint.assembly import Assembly
from forkpoint.assembly.checks import check_recipe
from forkpoint.assembly.reviewer import stage_reviewer
from forkpoint.assembly.tables import kept_task
from forkpoint.cli import main as command
from forkpoint.cli.worker import work
from forkpoint.config import load_recipe
from forkpoint.errors import TaskError
from forkpoint.tasks.demonstrations import kept_copy

MODEL = Path(__file__).parents[2] / "recipes" / "data" / "byte-model"
HEAD = f"""
name = "own"
[policy]
kind = "hf"
path = "{MODEL}"
[task]
name = "jsonl"
path = "questions.jsonl"
suffix = " Think."
[evaluation]
problems = 2
final_problems = 2
[doctor]
before = false
every = 0
"""
STAGE = """
[[stage]]
name = "rl"
kind = "rl"
from = "policy"
updates = 2
problems_per_update = 2
group_size = 2
max_new_tokens = 5
checkpoint_every = 1
"""


def questions(path, answer):
    rows = [{"question": f"{number}+{number}=", "answer": str(answer)} for number in range(40)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def recipe(tmp_path):
    questions(tmp_path / "questions.jsonl", 7)
    return tiny_recipe(STAGE, head=HEAD)


def assembled(run):
    return Assembly(recipe=load_recipe(run / "recipe.toml"), origin=run, run=run)


def answers(task):
    return {entry.answer for entry in task._entries.values()}


def test_a_resume_reads_the_questions_that_the_run_began_with(recipe, tmp_path):
    made = make_run(tmp_path / "run", recipe, origin=tmp_path)
    work(made, After(1))
    questions(tmp_path / "questions.jsonl", 9)
    again = Assembly(recipe=recipe, origin=tmp_path, run=tmp_path / "run")
    resume(again)
    assert answers(again.task(recipe.stage[0])) == {"7"}


def test_readers_of_a_run_find_its_questions(recipe, tmp_path, monkeypatch, capsys):
    run = tmp_path / "run"
    finished(run, recipe, origin=tmp_path)
    (tmp_path / "questions.jsonl").unlink()
    assert answers(assembled(run).task(recipe.stage[0])) == {"7"}
    assert stage_reviewer(run, "rl").max_new_tokens == 5
    monkeypatch.setattr(sys, "argv", ["forkpoint", "evaluate", f"{run}:rl", "--task", "jsonl", "--problems", "2",
                                      "--json"])  # fmt: skip
    with pytest.raises(SystemExit) as stop:
        command.main()
    assert stop.value.code == 0
    assert json.loads(capsys.readouterr().out)["max_new_tokens"] == 5
    shutil.rmtree(run / "texts")
    with pytest.raises(SystemExit) as stop:
        command.main()
    assert stop.value.code == 2
    assert "--task jsonl needs a file: " in capsys.readouterr().err


def test_a_check_before_a_run_reads_the_users_file(recipe, tmp_path):
    finished(tmp_path / "run", recipe, origin=tmp_path)
    (tmp_path / "questions.jsonl").write_text("nonsense\n")
    with pytest.raises(TaskError, match=r"questions\.jsonl:1: not JSON"):
        check_recipe(recipe, tmp_path, tmp_path / "run")


def test_only_files_that_a_task_of_ours_reads_are_kept(tmp_path):
    questions(tmp_path / "q.jsonl", 1)
    own = {"name": "jsonl", "path": "q.jsonl"}
    assert kept_task(own, tmp_path / "run", tmp_path) == own
    kept = kept_task(own, tmp_path / "run", tmp_path, keep=True)
    assert kept["path"] == str(kept_copy(tmp_path / "run", "q.jsonl").resolve())
    lost = {"name": "jsonl", "path": "lost.jsonl"}
    assert kept_task(lost, tmp_path / "run", tmp_path, keep=True) == lost
    for other in ({"name": "paths"}, {"name": "my.module:task", "path": "q.jsonl"}):
        assert kept_task(other, tmp_path / "run", tmp_path, keep=True) is other
