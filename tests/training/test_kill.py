"""A process killed at a write, in a child that SIGKILL ends; the resume equals the unbroken run."""

import os
import signal

import pytest
import torch
from tiny_runs import BASE, RL, Never, differences, fingerprint, finished, make_run, resume, status, tiny_recipe

from forkpoint.cli.worker import work
from forkpoint.files import fault_from_text, install_fault_hook
from forkpoint.store import RunWriter, list_checkpoints, stage_folder

TEXT = BASE + RL
OVERRIDES = (
    "stage.base.updates=3",
    "stage.rl.updates=4",
    "evaluation.final_problems=4",
    "evaluation.problems=4",
    "stage.rl.keep_checkpoints=1",
)
PLACES = [
    "stage.after-commit#2",  # a stage is claimed and has not begun
    "record.before-commit#1",  # before any checkpoint
    "checkpoint.before-files#1",
    "write.torn#2",  # half a manifest
    "publish.before-rename#1",
    "publish.after-rename#2",
    "record.after-commit#3",  # rows beyond the last checkpoint
    "evaluation.before-commit#2",
    "remove.after-rename#1",  # an old checkpoint on its way out
    "record.before-commit#6",  # within the second stage
    "evaluation.after-commit#5",  # all done but for saying so
]


@pytest.fixture(scope="module")
def recipe():
    return tiny_recipe(TEXT, overrides=OVERRIDES)


@pytest.fixture(scope="module")
def whole(recipe, tmp_path_factory):
    torch.set_num_threads(1)
    return fingerprint(finished(tmp_path_factory.mktemp("whole") / "run", recipe))


def killed(assembly, fault):
    """Works in a child until the fault kills it."""
    child = os.fork()
    if child == 0:
        code = 99
        try:
            with RunWriter.open(assembly.run) as writer:
                writer.requeue()
            install_fault_hook(fault_from_text(fault))
            code = work(assembly, Never())
        finally:
            os._exit(code)
    _, ended = os.waitpid(child, 0)
    assert os.WIFSIGNALED(ended), f"{fault} was never reached"
    assert os.WTERMSIG(ended) == signal.SIGKILL


@pytest.mark.parametrize("place", PLACES)
def test_a_killed_run_goes_on_to_the_same_end(place, recipe, whole, tmp_path):
    assembly = make_run(tmp_path / "run", recipe)
    killed(assembly, f"{place}:kill")
    resume(assembly)
    assert set(status(assembly.run).values()) == {"done"}
    assert differences(fingerprint(assembly), whole) == []
    for stage in recipe.stage:
        folder = stage_folder(assembly.run, stage.name)
        assert sorted(folder.iterdir()) == list_checkpoints(folder)


def test_killed_again_and_again(recipe, whole, tmp_path):
    assembly = make_run(tmp_path / "run", recipe)
    for place in (
        "record.before-commit#2",
        "rewind.before-commit#1",
        "publish.before-rename#1",
        "stage.before-begin#1",
    ):
        killed(assembly, f"{place}:kill")
    resume(assembly)
    assert differences(fingerprint(assembly), whole) == []


@pytest.mark.parametrize("place", ["record.before-commit#2", "checkpoint.before-files#1", "write.torn#2"])
def test_a_full_disk_fails_the_stage_with_the_path_and_the_run_goes_on_later(place, recipe, whole, tmp_path):
    assembly = make_run(tmp_path / "run", recipe)
    install_fault_hook(fault_from_text(f"{place}:enospc"))
    assert work(assembly, Never()) == 2
    install_fault_hook(None)
    assert status(assembly.run) == {"base": "failed", "rl": "waiting"}
    resume(assembly)
    assert differences(fingerprint(assembly), whole) == []
