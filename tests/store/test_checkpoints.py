import errno
import hashlib
import json
import os
import random
import resource
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from store_examples import Killed, fail_at, points_of

from forkpoint.errors import CheckpointError, StoreError
from forkpoint.files import install_fault_hook
from forkpoint.store import (
    checkpoint_path,
    checkpoint_update,
    clean_checkpoints,
    latest_checkpoint,
    list_checkpoints,
    load_manifest,
    load_state,
    prune_checkpoints,
    save_checkpoint,
    stage_folder,
    verify_checkpoint,
)
from forkpoint.store.checkpoints import write_manifest


def write_model(value):
    def write(folder):
        save_file({"w": np.full(64, value, np.float32)}, folder / "model.safetensors")
        (folder / "parts").mkdir()
        (folder / "parts" / "value.json").write_text(str(value))

    return write


def save(folder, update, value=None):
    value = update if value is None else value
    return save_checkpoint(
        checkpoint_path(folder, update), write_model(value), state={"update": update, "value": value}
    )


def value_of(path):
    state = load_state(path)
    assert load_file(path / "model.safetensors")["w"][0] == state["value"]
    return state["value"]


def test_a_checkpoint_holds_files_state_and_manifest(tmp_path):
    path = save(tmp_path / "stages" / "rl", 100)
    assert path == tmp_path / "stages" / "rl" / "step-000100"
    assert load_state(path) == {"update": 100, "value": 100}
    manifest = json.loads((path / "manifest.json").read_text())
    assert set(manifest) == {"model.safetensors", "parts/value.json", "state.json"}
    data = (path / "model.safetensors").read_bytes()
    assert manifest["model.safetensors"] == {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    assert verify_checkpoint(path) == load_manifest(path) == manifest
    assert [p.name for p in path.parent.iterdir()] == ["step-000100"]


def test_state_keeps_what_json_cannot(tmp_path):
    state = {"best": float("inf"), "$key": "a\ud800", "queue": [1, [2, None]]}
    path = save_checkpoint(checkpoint_path(tmp_path, 0), lambda folder: None, state=state)
    assert load_state(path) == state


def test_names_of_checkpoints(tmp_path):
    assert checkpoint_update(checkpoint_path(tmp_path, 1_234_567)) == 1_234_567
    with pytest.raises(ValueError, match="-1"):
        checkpoint_path(tmp_path, -1)
    for name in ("step-1", "step-000001x", "latest", "step-\u0661\u0661\u0661\u0661\u0661\u0661"):
        with pytest.raises(CheckpointError, match="not named"):
            save_checkpoint(tmp_path / name, lambda folder: None, state={})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["../x", "", ".hidden", "a/b", "a b", "x\n"])
def test_a_stage_cannot_leave_its_run(tmp_path, name):
    with pytest.raises(StoreError, match="cannot name a folder"):
        stage_folder(tmp_path, name)
    assert stage_folder(tmp_path, "rl-2.b_c") == tmp_path / "stages" / "rl-2.b_c"


def test_a_save_that_fails_anywhere_leaves_the_previous_one(tmp_path):
    save(tmp_path / "probe", 1)
    points = points_of(lambda: save(tmp_path / "probe", 2))
    assert {"checkpoint.before-files", "write.torn", "publish.before-sync", "publish.before-rename"} <= set(points)
    published = points.index("publish.after-rename")
    for place, point in enumerate(points):
        for error in (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), Killed()):
            folder = tmp_path / f"{place}-{type(error).__name__}"
            save(folder, 1)
            fail_at(place, error)
            with pytest.raises((StoreError, Killed)) as caught:
                save(folder, 2)
            install_fault_hook(None)
            assert value_of(latest_checkpoint(folder)) == (2 if place >= published else 1), point
            if isinstance(error, OSError):
                assert "No space left" in str(caught.value)
                assert str(folder) in str(caught.value)
                assert {p.name for p in folder.iterdir()} <= {"step-000001", "step-000002"}
            clean_checkpoints(folder)
            assert {p.name for p in folder.iterdir()} <= {"step-000001", "step-000002"}
            save(folder, 2, value=22)
            assert value_of(latest_checkpoint(folder)) == 22


def test_replacing_a_checkpoint_loses_none_at_any_point(tmp_path):
    save(tmp_path / "probe", 1)
    points = points_of(lambda: save(tmp_path / "probe", 1, value=7))
    assert "checkpoint.aside" in points
    published = points.index("publish.after-rename")
    for place in range(len(points)):
        for error in (OSError(errno.ENOSPC, "full"), Killed()):
            folder = tmp_path / f"{place}-{type(error).__name__}"
            save(folder, 1)
            fail_at(place, error)
            with pytest.raises((StoreError, Killed)):
                save(folder, 1, value=7)
            install_fault_hook(None)
            clean_checkpoints(folder)
            assert [p.name for p in folder.iterdir()] == ["step-000001"]
            assert value_of(latest_checkpoint(folder)) == (7 if place >= published else 1)


def test_a_real_kill_at_every_point(tmp_path):
    points = points_of(lambda: save(tmp_path / "probe", 2))
    names = [f"{name}#{points[: i + 1].count(name)}" for i, name in enumerate(points)]
    chosen = [
        name for name in names if name.split("#")[0] in ("write.torn", "publish.before-rename", "publish.after-rename")
    ]
    code = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_checkpoints import save
from pathlib import Path
save(Path(sys.argv[1]), 2)
"""
    for name in chosen:
        folder = tmp_path / name
        save(folder, 1)
        environment = {**os.environ, "FORKPOINT_FAULT": f"{name}:kill"}
        killed = subprocess.run([sys.executable, "-c", code, str(folder)], env=environment, timeout=60)
        assert killed.returncode == -signal.SIGKILL
        clean_checkpoints(folder)
        assert value_of(latest_checkpoint(folder)) == (2 if "after-rename" in name else 1)
        assert {p.name for p in folder.iterdir()} <= {"step-000001", "step-000002"}


def test_tensors_that_do_not_fit_are_one_line(tmp_path):
    save(tmp_path, 1)

    def too_big(folder):
        save_file({"w": np.zeros(100_000, np.float32)}, folder / "model.safetensors")

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(StoreError, match="step-000002"):
            save_checkpoint(checkpoint_path(tmp_path, 2), too_big, state={})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert [p.name for p in tmp_path.iterdir()] == ["step-000001"]
    assert value_of(latest_checkpoint(tmp_path)) == 1


def test_an_error_of_safetensors_is_one_of_the_store(tmp_path):
    def fail(folder):
        raise SafetensorError("disk")

    with pytest.raises(StoreError, match="tensors could not be written: disk"):
        save_checkpoint(checkpoint_path(tmp_path, 1), fail, state={})
    assert list(tmp_path.iterdir()) == []


def test_a_bug_of_the_caller_is_not_hidden_and_leaves_nothing(tmp_path):
    def fail(folder):
        (folder / "half").write_bytes(b"x")
        raise KeyError("bug")

    with pytest.raises(KeyError):
        save_checkpoint(checkpoint_path(tmp_path, 1), fail, state={})
    with pytest.raises(ValueError, match=r"state\.json is written by"):
        save_checkpoint(checkpoint_path(tmp_path, 1), lambda folder: (folder / "state.json").touch(), state={})
    with pytest.raises(CheckpointError, match="neither a file nor a folder"):
        save_checkpoint(checkpoint_path(tmp_path, 1), lambda folder: (folder / "link").symlink_to("/"), state={})
    assert list(tmp_path.iterdir()) == []


FILES = ("model.safetensors", "parts/value.json", "state.json", "manifest.json")


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(tmp_path, name):
    path = save(tmp_path, 1)
    (path / name).unlink()
    with pytest.raises(CheckpointError, match=name):
        load_state(path)


@pytest.mark.parametrize("name", ["extra", "parts/extra", ".hidden", ".tmp-x"])
def test_an_extra_file_is_named(tmp_path, name):
    path = save(tmp_path, 1)
    (path / name).write_bytes(b"")
    with pytest.raises(CheckpointError, match=f"{name} does not belong"):
        load_state(path)


def test_an_extra_file_of_an_exported_model_says_what_to_do(tmp_path):
    (tmp_path / "model.bin").write_bytes(b"x")
    write_manifest(tmp_path)
    (tmp_path / "README.md").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"README\.md does not belong.*remove it, or manifest\.json to have"):
        verify_checkpoint(tmp_path)


def test_all_files_may_be_read_by_those_who_may_read_the_state(tmp_path):
    def write(folder):
        write_model(1)(folder)
        (folder / "model.safetensors").chmod(0o600)

    path = save_checkpoint(checkpoint_path(tmp_path, 1), write, state={})
    modes = {file.stat().st_mode for file in path.rglob("*") if file.is_file()}
    assert modes == {(path / "state.json").stat().st_mode}


def test_no_permission_is_no_damage(tmp_path, monkeypatch):
    save(tmp_path, 1)
    save(tmp_path, 2)

    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("forkpoint.store.checkpoints._digest", refuse)
    with pytest.raises(StoreError, match=r"step-000002.*cannot be read: Permission denied") as caught:
        latest_checkpoint(tmp_path, damaged=pytest.fail)
    assert not isinstance(caught.value, CheckpointError)


def test_every_flipped_bit_and_every_truncation_is_detected(tmp_path):
    path = save(tmp_path, 1)
    choice = random.Random(0)
    for name in FILES:
        file = path / name
        original = file.read_bytes()
        bits = choice.sample(range(8 * len(original)), min(60, 8 * len(original)))
        for bit in bits:
            altered = bytearray(original)
            altered[bit // 8] ^= 1 << (bit % 8)
            file.write_bytes(altered)
            with pytest.raises(CheckpointError):
                verify_checkpoint(path)
        for size in {0, len(original) // 2, len(original) - 1}:
            file.write_bytes(original[:size])
            with pytest.raises(CheckpointError, match=name):
                verify_checkpoint(path)
        file.write_bytes(original)
    verify_checkpoint(path)


def test_every_byte_of_the_manifest_counts(tmp_path):
    path = save_checkpoint(checkpoint_path(tmp_path, 1), lambda folder: None, state={})
    file = path / "manifest.json"
    original = file.read_bytes()
    for bit in range(0, 8 * len(original), 3):
        altered = bytearray(original)
        altered[bit // 8] ^= 1 << (bit % 8)
        file.write_bytes(altered)
        with pytest.raises(CheckpointError):
            verify_checkpoint(path)


HOSTILE = [
    b"[" * 200_000,
    b"{}",
    b"[]",
    b"null",
    b"\xff\xfe",
    b'{"state.json": {}}',
    b'{"state.json": {"sha256": 1, "bytes": true}}',
    b'{"../../etc/passwd": {"sha256": "x", "bytes": 1}, "state.json": {"sha256": "x", "bytes": 1}}',
    b'{"state.json": {"sha256": "x", "bytes": ' + b"9" * 10_000 + b"}}",
]


@pytest.mark.parametrize("content", HOSTILE, ids=range(len(HOSTILE)))
def test_a_hostile_manifest_is_refused(tmp_path, content):
    path = save(tmp_path, 1)
    (path / "manifest.json").write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        load_state(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["model.safetensors", "manifest.json", "parts"])
def test_links_and_pipes_are_refused_without_being_opened(tmp_path, name):
    path = save(tmp_path, 1)
    (path / name).rename(tmp_path / "elsewhere")
    (path / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError):
        load_state(path)
    (path / name).unlink()
    os.mkfifo(path / name)
    with pytest.raises(CheckpointError):
        load_state(path)


def test_the_latest_is_by_number_and_ignores_what_is_no_checkpoint(tmp_path):
    assert latest_checkpoint(tmp_path / "none") is None
    assert latest_checkpoint(tmp_path) is None
    for update in (999_999, 2, 1_000_000):
        save(tmp_path, update)
    (tmp_path / ".tmp-step-2000000-1-a").mkdir()
    (tmp_path / "step-2000000.bak").mkdir()
    (tmp_path / "step-3000000").write_bytes(b"")
    assert latest_checkpoint(tmp_path) == checkpoint_path(tmp_path, 1_000_000)
    assert [checkpoint_update(path) for path in list_checkpoints(tmp_path)] == [2, 999_999, 1_000_000]


def test_a_damaged_one_is_passed_over_but_never_in_silence(tmp_path):
    for update in (1, 2, 3):
        save(tmp_path, update)
    for update in (2, 3):
        (checkpoint_path(tmp_path, update) / "state.json").unlink()
    told = []
    assert latest_checkpoint(tmp_path, damaged=told.append) == checkpoint_path(tmp_path, 1)
    assert [type(error) for error in told] == [CheckpointError] * 2
    with pytest.raises(CheckpointError, match=r"step-000003.state\.json is missing; a resume goes on from the"):
        latest_checkpoint(tmp_path)
    assert latest_checkpoint(tmp_path, verify=False) == checkpoint_path(tmp_path, 3)
    (checkpoint_path(tmp_path, 1) / "model.safetensors").unlink()
    told.clear()
    with pytest.raises(
        CheckpointError, match=r"no checkpoint .* is whole .*model\.safetensors is missing.*begin the stage"
    ):
        latest_checkpoint(tmp_path, damaged=told.append)
    assert len(told) == 3


def test_pruning_keeps_the_newest(tmp_path):
    for update in (1, 2, 10, 11):
        save(tmp_path, update)
    assert prune_checkpoints(tmp_path, 2) == [checkpoint_path(tmp_path, 1), checkpoint_path(tmp_path, 2)]
    assert prune_checkpoints(tmp_path, 2) == []
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-000010", "step-000011"]
    with pytest.raises(ValueError, match="keep = 0"):
        prune_checkpoints(tmp_path, 0)


def test_pruning_after_a_damaged_one_was_passed_over_keeps_what_was_saved_since(tmp_path):
    for update in (2, 4, 6, 5):
        save(tmp_path, update)
    prune_checkpoints(tmp_path, 2, newest=checkpoint_path(tmp_path, 5))
    assert list_checkpoints(tmp_path) == [checkpoint_path(tmp_path, 4), checkpoint_path(tmp_path, 5)]


def test_pruning_killed_anywhere_leaves_whole_checkpoints(tmp_path):
    def prepare(folder):
        for update in (1, 2, 3):
            save(folder, update)
        return folder

    points = points_of(lambda: prune_checkpoints(prepare(tmp_path / "probe"), 1))
    prunes = [point for point in points if point.startswith("remove.")]
    for place in range(len(prunes)):
        folder = prepare(tmp_path / str(place))
        fail_at(place, Killed())
        with pytest.raises(Killed):
            prune_checkpoints(folder, 1)
        install_fault_hook(None)
        clean_checkpoints(folder)
        for path in list_checkpoints(folder):
            verify_checkpoint(path)
        assert latest_checkpoint(folder) == checkpoint_path(folder, 3)
