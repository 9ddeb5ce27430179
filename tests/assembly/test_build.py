"""A recipe to objects: names to functions, folders, budgets, alphabets."""

from pathlib import Path

import pytest
from tiny_runs import BASE, HEAD, RL, finished, tiny_recipe

from forkpoint.assembly import (
    CREDIT_RULES,
    LOSSES,
    TASKS,
    build_task,
    evaluation_budget,
    model_folder,
    package_model,
    resolve,
    run_identity,
)
from forkpoint.assembly.build import shared_alphabet
from forkpoint.config.policies import FolderPolicy
from forkpoint.errors import RecipeError
from forkpoint.store import RunReader
from forkpoint.tasks.paths import PUNCTUATION, Paths

SFT = "[[stage]]\nname='sft'\nkind='sft'\nfrom='base'\ndata='rollouts:rl'\nexamples=2\nupdates=1\n"


def test_every_name_of_a_table_is_a_function():
    for table in (CREDIT_RULES, LOSSES):
        for name in table:
            assert resolve("where", name, table).__name__ == name
    assert resolve("where", "math:sqrt", {})(9.0) == 3.0
    assert set(TASKS) >= {"paths", "keychain", "arithmetic", "countdown", "jsonl", "gym"}


def test_a_task_is_built_from_its_table():
    task = build_task({"name": "paths", "branches": 4, "depth": 2})
    assert isinstance(task, Paths)
    assert (task.settings.branches, task.settings.depth) == (4, 2)
    with pytest.raises(RecipeError, match=r"\[task\] name is missing"):
        build_task({})
    with pytest.raises(RecipeError, match=r"--task name = 'x' is not known"):
        build_task({"name": "x"}, where="--task")


def test_paths_of_a_recipe_are_seen_from_its_own_folder(tmp_path):
    spec = FolderPolicy(kind="hf", path="models/a")
    assert model_folder(spec, tmp_path) == tmp_path / "models" / "a"
    assert model_folder(FolderPolicy(kind="hf", path="/b"), tmp_path) == Path("/b")
    with pytest.raises(RecipeError, match="package = 'none' is not known"):
        package_model("none")


def test_an_evaluation_has_the_budget_that_is_said_or_that_of_the_stage():
    head = HEAD.replace("max_new_tokens = 6\n", "")
    text = BASE + RL + RL.replace('"rl"', '"rl2"', 1).replace("max_new_tokens = 6", "max_new_tokens = 9")
    recipe = tiny_recipe(text, head=head)
    assert [evaluation_budget(recipe, stage) for stage in recipe.stage] == [9, 6, 9]
    said = tiny_recipe(text)
    assert [evaluation_budget(said, stage) for stage in said.stage] == [6, 6, 6]


def test_a_tiny_policy_reads_the_tasks_of_all_stages():
    recipe = tiny_recipe(
        BASE, RL, overrides=("stage.rl.task.name=paths", "stage.rl.task.branches=9", "stage.rl.task.depth=4")
    )
    alphabet = shared_alphabet(recipe, Path())
    assert len(alphabet) == len(set(alphabet)) == 52 + len(PUNCTUATION)


def test_a_run_is_identified_by_versions_machine_and_threads():
    identity = run_identity(tiny_recipe(BASE, overrides=("threads=3",)))
    assert identity["threads"] == 3
    assert {"forkpoint", "torch", "transformers", "numpy", "python", "machine"} <= set(identity)


def test_no_correct_rollout_to_imitate_is_said_in_one_line(tmp_path):
    recipe = tiny_recipe(BASE, RL, SFT, overrides=("stage.base.updates=0", "stage.rl.updates=0", "seed=2"))
    with pytest.raises(AssertionError):
        finished(tmp_path / "run", recipe)
    with RunReader(tmp_path / "run") as reader:
        assert reader.stage("sft").message == "stage 'sft': none of 2 rollouts of 'rl' was correct."
