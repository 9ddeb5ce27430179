"""Stages that imitate a file: which texts, in which order, and what is refused before anything runs."""

import json

import pytest
from tiny_runs import BASE, After, differences, fingerprint, finished, make_run, resume, tiny_recipe

from forkpoint.assembly import Assembly
from forkpoint.assembly.checks import check_recipe
from forkpoint.assembly.examination import examine_run
from forkpoint.assembly.pools import TextSource, text_draw
from forkpoint.cli.worker import work
from forkpoint.errors import ModelError, RecipeError, TaskError

LEARN = """
[[stage]]
name = "learn"
kind = "sft"
from = "base"
data = "file:texts.jsonl"
updates = 4
batch_size = 2
checkpoint_every = 1
"""
QUICK = ("stage.base.updates=2",)


def texts_of(folder, assembly, count):
    """Provenance, text and number of imitated tokens of the first texts."""
    policy = assembly._policy(assembly._final_checkpoint("base"))
    stage = assembly.recipe.get_stage("learn")
    source = TextSource(assembly=assembly, stage=stage, task=assembly.task(stage), texts=policy.texts, writer=None)
    draw, spent = text_draw(source)
    assert spent == 0
    told = [text for update in range(1, count + 1) for text in draw(update)]
    return [(text.provenance, policy.texts.decode(text.tokens), int(text.loss_mask.sum())) for text in told]


def written(folder, *lines):
    (folder / "texts.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))


def test_a_stage_imitates_a_file_beside_its_recipe(tmp_path):
    written(
        tmp_path,
        {"prompt": "sab", "completion": "ab"},
        {"prompt": "sab", "completion": "ba", "ends": False, "edit": "cafe"},
        {"prompt": "s", "completion": "abab"},
    )
    recipe = tiny_recipe(BASE, LEARN, overrides=QUICK)
    check_recipe(recipe, tmp_path, tmp_path / "run")
    made = make_run(tmp_path / "run", recipe)
    made = Assembly(recipe=recipe, origin=tmp_path, run=made.run)
    assert work(made, After(4)) == 0
    # What the run began with it goes on with, whatever became of the file; a run elsewhere has its copy.
    first = (tmp_path / "texts.jsonl").read_text()
    written(tmp_path, {"prompt": "s", "completion": "b"})
    resume(made)
    assert [each.stage for each in examine_run(recipe, made.run)] == ["base", "learn"]
    (tmp_path / "texts.jsonl").write_text(first)
    seen = texts_of(tmp_path, made, 3)
    # Each once before any comes again; the end is imitated where the text ends.
    assert sorted(seen[:3]) == [
        ("file:texts.jsonl:1", "sabab", 3), ("file:texts.jsonl:2 edit:cafe", "sabba", 2),
        ("file:texts.jsonl:3", "sabab", 5),
    ]  # fmt: skip
    assert sorted(seen[3:]) == sorted(seen[:3])
    whole = make_run(tmp_path / "whole", recipe)
    whole = Assembly(recipe=recipe, origin=tmp_path, run=whole.run)
    work(whole, After(100))
    assert differences(fingerprint(made), fingerprint(whole)) == []


def test_a_file_has_an_order(tmp_path):
    written(tmp_path, *({"prompt": "s", "completion": "ab" * length} for length in range(1, 6)))
    recipe = tiny_recipe(BASE, LEARN + 'order = "fixed"\n', overrides=QUICK)
    made = Assembly(
        recipe=recipe, origin=tmp_path, run=finished(tmp_path / "run", tiny_recipe(BASE, overrides=QUICK)).run
    )
    seen = [name for name, _, _ in texts_of(tmp_path, made, 5)]
    assert seen[:5] == seen[5:]
    assert len(set(seen)) == 5


@pytest.mark.parametrize(
    ("line", "error", "message"),
    [
        ({"prompt": "s", "completion": "ab" * 500}, ModelError, r"texts\.jsonl:1: a text of 100. tokens does not fit"),
        (
            {"prompt": "s", "completion": "Ω"},
            ModelError,
            r"texts\.jsonl:1: the character 'Ω' .* is outside the model's",
        ),
        ({"prompt": "s"}, TaskError, r"texts\.jsonl:1: completion is missing"),
    ],
)
def test_a_file_that_does_not_fit_is_refused_first(tmp_path, line, error, message):
    written(tmp_path, line)
    for recipe in (tiny_recipe(BASE, LEARN), tiny_recipe(BASE.rstrip() + '\n[stage.mix]\ndata = "file:texts.jsonl"\n')):
        with pytest.raises(error, match=message):
            check_recipe(recipe, tmp_path, tmp_path / "run")


def test_a_file_is_no_review(tmp_path):
    with pytest.raises(RecipeError, match=r"review goes with data = 'edits:STAGE'"):
        tiny_recipe(BASE, LEARN + "[stage.review]\nproblems = 4\n")
