"""Stages that imitate verified fixes: what is confirmed, who proposes, and what is refused."""

import re

import pytest
from chat_server import completion, replying, serving
from tiny_runs import finished
from walker_recipes import fixing

from forkpoint.assembly.checks import check_recipe
from forkpoint.errors import ForkpointError
from forkpoint.store import RunReader


def test_a_fix_is_imitated_only_when_a_rerollout_confirmed_it(tmp_path):
    more = 'sources = ["solver"]\nmin_drop = 0.25\n'
    recipe = fixing(more)
    finished(tmp_path / "run", recipe)
    with RunReader(tmp_path / "run") as reader:
        edits = reader.edits()
        rollouts = {stored.edit.rollout_id: reader.rollout(stored.edit.rollout_id) for stored in edits}
        (line,) = {event.message for event in reader.events("learn") if event.kind == "review"}
    accepted = [stored for stored in edits if stored.accepted]
    assert accepted
    assert all(stored.verification is not None for stored in edits)
    assert f"{len(accepted)} of {len(edits)} fixes accepted, {len(accepted)} texts" in line
    for stored in accepted:
        # What was right before the fix ends correct more often than what the policy would write itself.
        fixed, resampled = stored.verification.fixed, stored.verification.resampled
        assert fixed[0] / fixed[1] > resampled[0] / resampled[1]
        assert stored.edit.text not in ("", rollouts[stored.edit.rollout_id].text[stored.edit.start :])


@pytest.mark.parametrize("reply", ["zz", "p"])
def test_a_chat_model_proposes_in_a_stage(tmp_path, reply):
    with serving(replying(completion(reply))) as (url, seen):
        more = f'sources = []\nchat = "{url}#wise"\nmin_drop = 0.25\nsuccesses = 0.5\n'
        recipe = fixing(more)
        check_recipe(recipe, tmp_path, tmp_path / "run")
        assert not seen
        finished(tmp_path / "run", recipe)
    assert {body["model"] for _, _, body in seen} == {"wise"}
    with RunReader(tmp_path / "run") as reader:
        edits = reader.edits()
        (line,) = {event.message for event in reader.events("learn") if event.kind == "review"}
    # `zz` is no edge, and the walker reads `p`, which is one here and there.
    assert {stored.edit.source for stored in edits} == ({"wise"} if reply == "p" else set())
    assert "the model cannot use hints" not in line


def test_a_chat_model_that_is_down_is_told(tmp_path):
    more = 'sources = []\nchat = "http://127.0.0.1:9/v1#wise"\nmin_drop = 0.25\nsuccesses = 0.5\n'
    finished(tmp_path / "run", fixing(more))
    with RunReader(tmp_path / "run") as reader:
        (line,) = {event.message for event in reader.events("learn") if event.kind == "review"}
    assert re.search(r"hinges, 0 of 0 fixes accepted, 0 texts", line)
    assert re.search(r"; wise: \d+ texts dropped, such as: .*(ConnectionRefused|not asked)", line)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ('knowledge = ["answer", "feedback"]', r"needs prompts that can hold any text; those of paths cannot"),
        ('chat = "http://h:abc#m"', r"chat: url = 'http://h:abc' must begin with"),
    ],
)
def test_what_a_repair_cannot_use_is_refused_before_anything_runs(tmp_path, more, message):
    with pytest.raises(ForkpointError, match=message):
        check_recipe(fixing(f"{more}\n"), tmp_path, tmp_path / "run")
