"""What `state.json` must hold before a resume believes it, with manifests that agree."""

import json

import pytest

from forkpoint.errors import CheckpointError
from forkpoint.store import checkpoint_path, load_state, save_checkpoint, verify_checkpoint, write_manifest


def write_parts(folder):
    (folder / "model").write_bytes(b"weights")
    (folder / "parts").mkdir()
    (folder / "parts" / "value.json").write_text("1")


def save(folder, update):
    return save_checkpoint(checkpoint_path(folder, update), write_parts, state={"update": update})


@pytest.mark.parametrize("key", ["format", "files", "state"])
def test_a_state_that_lacks_a_part_is_refused_by_its_name(tmp_path, key):
    path = save(tmp_path, 1)
    wrapped = json.loads((path / "state.json").read_text())
    for changed, message in (
        ({name: value for name, value in wrapped.items() if name != key}, f"state.json lacks '{key}'"),
        ({**wrapped, key: "x"}, f"holds str as '{key}'"),
    ):
        (path / "state.json").write_text(json.dumps(changed))
        write_manifest(path)
        with pytest.raises(CheckpointError, match=message):
            load_state(path)


@pytest.mark.parametrize("text", ["[]", "1", "{", "\x00", "[" * 9999])
def test_a_state_of_another_form_is_refused(tmp_path, text):
    path = save(tmp_path, 1)
    (path / "state.json").write_text(text)
    write_manifest(path)
    with pytest.raises(CheckpointError, match=r"state\.json (lacks 'format'|cannot be read)") as found:
        load_state(path)
    assert "\n" not in str(found.value)


def test_a_state_of_a_newer_version_is_refused(tmp_path):
    path = save(tmp_path, 1)
    wrapped = json.loads((path / "state.json").read_text())
    (path / "state.json").write_text(json.dumps({**wrapped, "format": 2}))
    write_manifest(path)
    with pytest.raises(CheckpointError, match="has format 2, this forkpoint knows 1"):
        load_state(path)


def test_a_file_that_vanished_with_its_line_of_the_manifest_is_missed(tmp_path):
    path = save(tmp_path, 1)
    (path / "parts" / "value.json").unlink()
    write_manifest(path)
    verify_checkpoint(path)
    with pytest.raises(CheckpointError, match=r"parts.value\.json is missing"):
        load_state(path)
    (path / "parts" / "value.json").write_text("1")
    (path / "more.json").write_text("1")
    write_manifest(path)
    with pytest.raises(CheckpointError, match=r"more\.json does not belong"):
        load_state(path)
