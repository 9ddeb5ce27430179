"""Saved state that lacks a part, and saved state that was damaged: named before the first update, never guessed."""

import json
import os
import random
import shutil

import pytest
import torch
from kill_runs import assembly_of
from safetensors.torch import load_file, save_file
from saved_runs import stopped_run
from tiny_runs import differences, fingerprint, finished, make_run, status

from forkpoint.store import latest_checkpoint, stage_folder, write_manifest

NORM = "model.norm.weight"
FLIPS = 200
BASE_FILES = {
    "decoder": (
        "config.json", "generation_config.json", "model.safetensors", "state.json", "tokenizer.json",
        "tokenizer_config.json", "trainer.safetensors",
    ),
    "tabular": ("critic.safetensors", "model.safetensors", "policy.json", "state.json", "tabular.json",
                "trainer.safetensors"),
}  # fmt: skip


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    torch.set_num_threads(1)
    return {kind: stopped_run(tmp_path_factory.mktemp("stopped") / kind, kind) for kind in BASE_FILES}


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


def without_tensor(file, name):
    def change(checkpoint):
        tensors = load_file(checkpoint / file)
        del tensors[name]
        save_file(tensors, checkpoint / file, metadata={"format": "pt"})

    return change


def without_key(*path):
    def change(checkpoint):
        tree = json.loads((checkpoint / "state.json").read_text())
        here = tree
        for part in path[:-1]:
            here = here[part]
        del here[path[-1]]
        (checkpoint / "state.json").write_text(json.dumps(tree))

    return change


def without_file(name):
    return lambda checkpoint: (checkpoint / name).unlink()


def without_moments(checkpoint):
    save_file({}, checkpoint / "trainer.safetensors")


MUTANTS = {
    "format": ("decoder", without_key("format"), "lacks 'format'"),
    "list of files": ("decoder", without_key("files"), "lacks 'files'"),
    "state": ("decoder", without_key("state"), "lacks 'state'"),
    "stage": ("decoder", without_key("state", "stage"), "lacks 'stage'"),
    "update, and with it the schedule, the problems and the draws": (
        "decoder", without_key("state", "update"), "lacks 'update'"),
    "recipe": ("decoder", without_key("state", "recipe"), "lacks 'recipe'"),
    "identity": ("tabular", without_key("state", "identity"), "lacks 'identity'"),
    "steps of the optimizer": (
        "decoder", without_tensor("trainer.safetensors", f"step:{NORM}"), f"step of {NORM} is missing"),
    "first moments": (
        "decoder", without_tensor("trainer.safetensors", f"exp_avg:{NORM}"), f"exp_avg of {NORM} is missing"),
    "second moments": (
        "decoder", without_tensor("trainer.safetensors", f"exp_avg_sq:{NORM}"), f"exp_avg_sq of {NORM} is missing"),
    "all moments": ("decoder", without_moments, "trainer.safetensors: step of"),
    "a weight": ("decoder", without_tensor("model.safetensors", NORM), f"lacks 1 of its weights, {NORM}"),
    "logits of a table": ("tabular", without_tensor("model.safetensors", "logits"), "no tabular policy"),
    "values of the critic": ("tabular", without_tensor("critic.safetensors", "values"), "critic.safetensors"),
    "what the critic has met": ("tabular", without_tensor("critic.safetensors", "seen"), "critic.safetensors"),
    **{f"{kind} {name}": (kind, without_file(name), name)
       for kind, names in BASE_FILES.items() for name in names if name != "state.json"},
    "state.json": ("decoder", without_file("state.json"), "no state.json"),
}  # fmt: skip


@pytest.mark.parametrize("mutant", MUTANTS)
def test_state_that_lacks_a_part_is_refused_by_name_before_the_first_update(mutant, stopped, tmp_path):
    kind, change, named = MUTANTS[mutant]
    run = stopped[kind].copied(tmp_path / "run")
    change(run.checkpoints[-1])
    write_manifest(run.checkpoints[-1])
    run.resume()
    assert status(run.folder)[run.stage] == "failed"
    (message,) = run.query(f"SELECT message FROM stages WHERE name = '{run.stage}'")[0]
    assert "\n" not in message
    assert named in message
    assert run.query(f"SELECT max(update_number) FROM updates WHERE stage = '{run.stage}'") == [(4,)]


def test_a_checkpoint_of_another_recipe_is_refused(stopped, tmp_path):
    run = stopped["tabular"].copied(tmp_path / "run")
    path = run.folder / "recipe.toml"
    path.write_text(path.read_text().replace("learning_rate = 0.1", "learning_rate = 0.2"))
    run.resume()
    (message,) = run.query("SELECT message FROM stages")[0]
    assert "step-000004 is of recipe " in message


def flipped(checkpoint, chooser, files):
    """A file of the checkpoint with one bit flipped; returns its name and what undoes it."""
    name = chooser.choice(files)
    original = (checkpoint / name).read_bytes()
    bit = chooser.randrange(8 * len(original))
    data = bytearray(original)
    data[bit // 8] ^= 1 << (bit % 8)
    (checkpoint / name).write_bytes(data)
    return name, original


@pytest.mark.parametrize("kind", BASE_FILES)
def test_a_flipped_bit_anywhere_is_named_and_the_one_before_is_used(kind, stopped, tmp_path):
    run = stopped[kind].copied(tmp_path / "run")
    before, newest = run.checkpoints
    chooser = random.Random(kind)
    for _ in range(FLIPS):
        name, original = flipped(newest, chooser, (*BASE_FILES[kind], "manifest.json"))
        told = []
        assert latest_checkpoint(newest.parent, damaged=told.append) == before
        (error,) = told
        # A flip in the manifest may speak of the file that the line was about.
        assert name in str(error) or (name == "manifest.json" and str(newest) in str(error))
        (newest / name).write_bytes(original)
    assert latest_checkpoint(newest.parent, damaged=told.append) == newest


def test_every_missing_or_shortened_file_is_named(stopped, tmp_path):
    run = stopped["decoder"].copied(tmp_path / "run")
    before, newest = run.checkpoints
    for name in (*BASE_FILES["decoder"], "manifest.json"):
        original = (newest / name).read_bytes()
        for size in (None, 0, 1, len(original) // 2, len(original) - 1):
            told = []
            (newest / name).unlink(missing_ok=True)
            if size is not None:
                (newest / name).write_bytes(original[:size])
            assert latest_checkpoint(newest.parent, damaged=told.append) == before
            assert name in str(told[0])
        (newest / name).write_bytes(original)


@pytest.mark.parametrize("kind", BASE_FILES)
def test_after_a_damage_the_run_goes_on_from_the_one_before_to_the_same_end(kind, stopped, tmp_path):
    run = stopped[kind].copied(tmp_path / "run")
    whole = fingerprint(finished(tmp_path / "whole", run.recipe))
    newest = run.checkpoints[-1]
    (newest / "trainer.safetensors").write_bytes((newest / "trainer.safetensors").read_bytes()[:-9])
    run.resume()
    found = fingerprint(finished_assembly(run))
    assert differences(found, whole) == []
    (event,) = run.query("SELECT stage, message FROM events WHERE kind = 'damaged'")
    assert event[0] == run.stage
    assert "step-000004/trainer.safetensors has" in event[1]
    # The damaged one was replaced.
    assert [path.name for path in run.checkpoints] == ["step-000004", "step-000006"]


def finished_assembly(run):
    assert set(status(run.folder).values()) == {"done"}
    return assembly_of(run.folder, run.recipe)


def test_without_a_whole_checkpoint_the_stage_is_not_begun_again_in_silence(stopped, tmp_path):
    run = stopped["tabular"].copied(tmp_path / "run")
    for path in run.checkpoints:
        (path / "critic.safetensors").unlink()
    run.resume()
    assert status(run.folder) == {"ppo": "failed"}
    (message,) = run.query("SELECT message FROM stages")[0]
    assert "is whole" in message
    assert "step-000002/critic.safetensors is missing" in message
    assert len(run.query("SELECT * FROM updates")) == 4
    # As the message says.
    whole = fingerprint(finished(tmp_path / "whole", run.recipe))
    shutil.rmtree(stage_folder(run.folder, "ppo"))
    run.resume()
    assert differences(fingerprint(finished_assembly(run)), whole) == []


def test_a_copy_elsewhere_goes_on_to_the_same_end(stopped, tmp_path):
    run = stopped["decoder"].copied(tmp_path / "another place" / "é" / "run")
    whole = fingerprint(finished(tmp_path / "whole", run.recipe))
    run.resume()
    assert differences(fingerprint(finished_assembly(run)), whole) == []


def test_a_checkpoint_of_another_stage_or_run_is_refused(stopped, tmp_path):
    run = stopped["decoder"].copied(tmp_path / "run")
    newest = run.checkpoints[-1]
    shutil.rmtree(newest)
    shutil.copytree(stage_folder(run.folder, "base") / "step-000002", newest)
    run.resume()
    (message,) = run.query("SELECT message FROM stages WHERE name = 'rl'")[0]
    assert "step-000004 is of stage base, not rl" in message


def test_records_older_than_the_checkpoints_leave_no_hole(stopped, tmp_path):
    run = stopped["tabular"].copied(tmp_path / "run")
    make_run(tmp_path / "early", run.recipe)
    for name in ("run.db", "run.db-wal", "run.db-shm"):
        (run.folder / name).unlink(missing_ok=True)
    shutil.copy(tmp_path / "early" / "run.db", run.folder / "run.db")
    run.resume()
    (message,) = run.query("SELECT message FROM stages")[0]
    assert "'ppo' has records of 0 updates, but a checkpoint of update 4: run.db is older" in message
    assert run.query("SELECT count(*) FROM updates") == [(0,)]
