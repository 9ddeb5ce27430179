"""The same recipe gives the same run, whole or in pieces."""

import importlib.util
import itertools
import sqlite3

import pytest
from safetensors.numpy import load_file
from tiny_runs import BASE, HEAD, RL, After, differences, fingerprint, finished, make_run, resume, status, tiny_recipe

from forkpoint.cli.worker import work
from forkpoint.errors import CheckpointError
from forkpoint.store import checkpoint_path, latest_checkpoint, stage_folder

SFT = """
[[stage]]
name = "sft"
kind = "sft"
from = "base"
data = "recoveries"
updates = 4
batch_size = 4
checkpoint_every = 1
schedule = "cosine"
weight_decay = 0.1
"""
DISTILLED = """
[[stage]]
name = "distilled"
kind = "sft"
from = "base"
data = "rollouts:base"
examples = 96
updates = 5
batch_size = 3
checkpoint_every = 2
"""
CASES = {
    "pretrain": (BASE, ()),
    "sft": (BASE + SFT, ("stage.base.updates=2",)),
    "rollouts": (BASE + DISTILLED, ("stage.base.updates=2",)),
    "rl": (BASE + RL, ("stage.base.updates=2",)),
    "rl of two updates": (
        BASE + RL,
        ("stage.base.updates=2", "stage.rl.updates_per_batch=2", "stage.rl.loss.name=clipped_surrogate"),
    ),
    "rl with divergence": (
        BASE + RL,
        ("stage.base.updates=2", "stage.rl.divergence.coefficient=0.1", "stage.rl.keep_rollouts=sample:2"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_the_same_recipe_gives_the_same_run_whole_or_in_pieces(case, tmp_path):
    text, overrides = CASES[case]
    recipe = tiny_recipe(text, overrides=overrides)
    whole = fingerprint(finished(tmp_path / "whole", recipe))
    assert whole["metrics"]
    assert differences(fingerprint(finished(tmp_path / "again", recipe)), whole) == []
    pieces = make_run(tmp_path / "pieces", recipe)
    # Stops at the first question, then after ever more units, in every place that a unit can end.
    work(pieces, After(1))
    for count in itertools.count(2):
        if set(status(pieces.run).values()) == {"done"}:
            break
        resume(pieces, After(count))
    assert count > 3
    assert differences(fingerprint(pieces), whole) == []


@pytest.mark.parametrize("stops", range(1, 6))
def test_a_run_stopped_once_equals_the_unbroken_one(stops, tmp_path):
    recipe = tiny_recipe(RL, overrides=("stage.rl.from=policy", "stage.rl.checkpoint_every=0"))
    whole = fingerprint(finished(tmp_path / "whole", recipe))
    assembly = make_run(tmp_path / "broken", recipe)
    work(assembly, After(stops))
    assert status(assembly.run) == {"rl": "stopped"}
    resume(assembly)
    assert differences(fingerprint(assembly), whole) == []


@pytest.mark.skipif(importlib.util.find_spec("peft") is None, reason="the extra `lora` is not installed")
def test_adapters_resume_exactly(tmp_path):
    finished(tmp_path / "base", tiny_recipe(BASE, overrides=("stage.base.updates=2",)))
    model = checkpoint_path(stage_folder(tmp_path / "base", "base"), 2)
    head = HEAD.partition("[policy]")[0] + f'[policy]\nkind = "hf"\npath = "{model}"\n[policy.lora]\nrank = 2\n[task]'
    head += HEAD.partition("[task]")[2]
    text = RL + "[[stage]]\nname='more'\nkind='sft'\nfrom='rl'\ndata='golden'\nupdates=2\nbatch_size=4\n"
    recipe = tiny_recipe(text, overrides=("stage.rl.from=policy", "stage.rl.learning_rate=0.01"), head=head)
    whole = fingerprint(finished(tmp_path / "whole", recipe))
    assembly = make_run(tmp_path / "broken", recipe)
    work(assembly, After(4))
    assert status(assembly.run)["rl"] == "stopped"
    resume(assembly)
    assert differences(fingerprint(assembly), whole) == []
    # The adapters were trained, and a checkpoint is a plain model.
    last = checkpoint_path(stage_folder(assembly.run, "rl"), 6)
    assert not (last / "adapter_config.json").exists()
    before, after = load_file(model / "model.safetensors"), load_file(last / "model.safetensors")
    assert before.keys() == after.keys()
    assert any((before[name] != after[name]).any() for name in before)


def test_another_seed_gives_another_run(tmp_path):
    one = fingerprint(finished(tmp_path / "one", tiny_recipe(BASE)))
    two = fingerprint(finished(tmp_path / "two", tiny_recipe(BASE, overrides=("seed=1",))))
    assert "weights base" in differences(one, two)


def test_the_number_of_slots_changes_nothing(tmp_path):
    recipe = tiny_recipe(RL, overrides=("stage.rl.from=policy",))
    other = tiny_recipe(RL, overrides=("stage.rl.from=policy", "slots=8"))
    one, two = fingerprint(finished(tmp_path / "one", recipe)), fingerprint(finished(tmp_path / "two", other))
    assert differences(one, two) == []


@pytest.mark.parametrize(("key", "value"), [("stage", "other"), ("update", 99)])
def test_a_checkpoint_of_another_stage_or_update_is_refused(key, value, tmp_path, monkeypatch):
    recipe = tiny_recipe(BASE)
    assembly = make_run(tmp_path / "run", recipe)
    work(assembly, After(4))
    path = latest_checkpoint(stage_folder(assembly.run, "base"))
    state = {"stage": "base", "update": int(path.name[-6:]), "identity": {}, key: value}
    monkeypatch.setattr("forkpoint.training.stage.load_state", lambda checkpoint: state)
    with sqlite3.connect(assembly.run / "run.db") as connection:
        connection.execute("UPDATE stages SET status = 'waiting'")
    assert work(assembly, After(99)) == 2
    with sqlite3.connect(assembly.run / "run.db") as connection:
        (message,) = connection.execute("SELECT message FROM stages").fetchone()
    assert f"is of {key} {value}, not" in message


def test_a_damaged_checkpoint_falls_back_to_the_one_before_with_an_event(tmp_path):
    recipe = tiny_recipe(BASE)
    whole = fingerprint(finished(tmp_path / "whole", recipe))
    assembly = make_run(tmp_path / "run", recipe)
    work(assembly, After(5))
    folder = stage_folder(assembly.run, "base")
    newest = latest_checkpoint(folder)
    data = bytearray((newest / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (newest / "model.safetensors").write_bytes(data)
    resume(assembly)
    assert "weights base" not in differences(fingerprint(assembly), whole)
    assert "metrics" not in differences(fingerprint(assembly), whole)
    with sqlite3.connect(assembly.run / "run.db") as connection:
        kinds = [kind for (kind,) in connection.execute("SELECT kind FROM events ORDER BY id")]
    assert "damaged" in kinds


def test_the_last_weights_of_a_parent_have_no_stand_in(tmp_path):
    # A child that silently began from other weights would spoil every comparison.
    assembly = make_run(tmp_path / "run", tiny_recipe(BASE, RL))
    work(assembly, After(6 + 2))
    last = checkpoint_path(stage_folder(assembly.run, "base"), 5)
    (last / "config.json").unlink()
    with sqlite3.connect(assembly.run / "run.db") as connection:
        connection.execute("UPDATE stages SET status = 'done' WHERE name = 'base'")
        connection.execute("UPDATE stages SET status = 'waiting' WHERE name = 'rl'")
    with pytest.raises(CheckpointError, match=r"config\.json is missing"):
        assembly.stage_context("rl", None, After(9))
    assert work(assembly, After(9)) == 2
    assert status(assembly.run) == {"base": "done", "rl": "failed"}
