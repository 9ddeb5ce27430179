"""What a curriculum remembers comes back to the last bit, or is refused by name."""

import json

import pytest

from forkpoint.curricula.replay import Waiting
from forkpoint.curricula.staircase import Stairs
from forkpoint.curricula.state import FILE, CurriculumState, load_state, save_state
from forkpoint.curricula.tracker import Tally
from forkpoint.errors import CheckpointError

STATE = CurriculumState(
    tallies={"a": Tally(correct=0.1 + 0.2, judged=1 / 3, update=4), "b\ud800": Tally(judged=1e-300)},
    stairs=Stairs(level=2, correct=3, judged=5),
    waiting=(
        Waiting(key="k", source=(1, "x", 3), level=0.7, due=9, uses=1),
        Waiting(key="l", source=(), level=None, due=1),
    ),
)
SETTINGS = {"levels": (0.0, 0.5), "floor": 0.1, "staircase": None}


def test_all_of_it_comes_back(tmp_path):
    save_state(STATE, tmp_path, settings=SETTINGS, update=7)
    assert load_state(tmp_path, settings=SETTINGS, update=7) == STATE
    first = (tmp_path / FILE).read_bytes()
    save_state(load_state(tmp_path, settings=SETTINGS, update=7), tmp_path, settings=SETTINGS, update=7)
    assert (tmp_path / FILE).read_bytes() == first
    save_state(CurriculumState(), tmp_path, settings={}, update=0)
    assert load_state(tmp_path, settings={}, update=0) == CurriculumState()


def without(*path):
    def change(tree):
        here = tree
        for part in path[:-1]:
            here = here[part]
        del here[path[-1]]

    return change


def changed(*path, value):
    def change(tree):
        here = tree
        for part in path[:-1]:
            here = here[part]
        here[path[-1]] = value

    return change


MUTANTS = {
    "format": (without("format"), "format, settings, update or state is missing"),
    "newer format": (changed("format", value=2), "has format 2"),
    "settings": (changed("settings", "floor", value=0.2), "other settings"),
    "update": (changed("update", value=8), "of update 8, not 7"),
    "state": (without("state"), "is missing"),
    "tallies": (without("state", "tallies"), "missing or foreign"),
    "stairs": (without("state", "stairs"), "missing or foreign"),
    "waiting": (without("state", "waiting"), "missing or foreign"),
    "count of a tally": (without("state", "tallies", "a", "judged"), "missing or foreign"),
    "text for a count": (changed("state", "tallies", "a", "judged", value="many"), "tallies.a.judged"),
    "kind of a count": (changed("state", "stairs", "level", value="2"), "missing or foreign"),
    "more": (changed("state", "extra", value=1), "missing or foreign"),
}


@pytest.mark.parametrize("case", MUTANTS)
def test_a_missing_or_foreign_part_is_refused_by_name(case, tmp_path):
    change, message = MUTANTS[case]
    save_state(STATE, tmp_path, settings=SETTINGS, update=7)
    tree = json.loads((tmp_path / FILE).read_text())
    change(tree)
    (tmp_path / FILE).write_text(json.dumps(tree))
    with pytest.raises(CheckpointError, match=message) as caught:
        load_state(tmp_path, settings=SETTINGS, update=7)
    assert FILE in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", [None, "", "[1]", "{", '{"format": NaN}'])
def test_a_missing_or_damaged_file_is_refused_by_name(text, tmp_path):
    if text is not None:
        (tmp_path / FILE).write_text(text)
    with pytest.raises(CheckpointError, match=FILE):
        load_state(tmp_path, settings=SETTINGS, update=7)
