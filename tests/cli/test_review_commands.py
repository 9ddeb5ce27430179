"""`forkpoint review`: from stored rollouts to verified fixes, in pieces, and what mistakes look like."""

import json
import re
import shutil
import sys

import numpy as np
import pytest
from tiny_runs import finished, tiny_recipe
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from forkpoint.assembly.reviewer import stage_reviewer
from forkpoint.cli import main as command
from forkpoint.cli import review_run
from forkpoint.records import EditKind, Group, Outcome, Problem, Rollout, StopReason, Verdict
from forkpoint.review.postmortem import Review, make_edit
from forkpoint.store import RunReader, RunWriter
from forkpoint.tasks.demonstrations import read_demonstrations

HEAD = """
name = "walk"
[policy]
kind = "hf"
path = "package:backtrack"
[task]
name = "paths"
[evaluation]
problems = 2
final_problems = 2
max_new_tokens = 8
[doctor]
before = false
every = 0
"""
STAGES = """
[[stage]]
name = "base"
kind = "pretrain"
updates = 0
[[stage]]
name = "rl"
kind = "rl"
from = "base"
updates = 1
problems_per_update = 16
group_size = 8
max_new_tokens = 8
keep_rollouts = "all"
"""


@pytest.fixture(scope="module")
def walked(tmp_path_factory):
    """A run whose walks have eight moves, so that a wrong branch costs the game."""
    folder = tmp_path_factory.mktemp("reviewed") / "run"
    finished(folder, tiny_recipe(STAGES, head=HEAD))
    return folder


@pytest.fixture
def run(walked, tmp_path):
    return shutil.copytree(walked, tmp_path / "run")


@pytest.fixture
def call(capsys, monkeypatch):
    def called(*arguments):
        monkeypatch.setattr(sys, "argv", ["forkpoint", "review", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            command.main()
        text = capsys.readouterr()
        return stop.value.code, text.out, text.err

    return called


def test_from_a_rollout_to_a_verified_fix(call, run, tmp_path):
    code, out, err = call("propose", run, "--rollouts", 40, "--sources", "sibling,solver", "--json")
    assert code == 0
    found = json.loads(out)
    assert found["reviewed"] == 40
    assert found["proposals"] >= found["hinges"] >= 1
    assert "at most 200000 tokens of continuations" in err
    code, out, err = call("verify", run, "--continuations", 32, "--json")
    tried = json.loads(out)
    assert (code, tried["tried"], tried["waiting"]) == (0, found["proposals"], 0)
    assert tried["accepted"] >= 1
    with RunReader(run) as reader:
        edits = reader.edits()
    good = next(stored for stored in edits if stored.accepted)
    code, out, _ = call("list", run, "--accepted")
    assert good.edit.id[:8] in out
    code, out, _ = call("show", run, good.edit.id[:6])
    assert "hinge: \N{MINUS SIGN}0." in out
    assert f"edit {good.edit.id[:8]}" in out
    code, out, _ = call("export", run, tmp_path / "fixes.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "fixes.jsonl").read_text().splitlines()]
    assert len(lines) == tried["accepted"]
    mine = next(line for line in lines if line["edit"] == good.edit.id)
    with RunReader(run) as reader:
        rollout = reader.rollout(good.edit.rollout_id)
    assert mine["completion"] == rollout.text[: good.edit.start] + good.edit.text
    # A stage with data = "file:fixes.jsonl" imitates them, and nothing after the fix.
    told = read_demonstrations(tmp_path / "fixes.jsonl")
    assert [(each.prompt, each.text) for each in told] == [(line["prompt"], line["completion"]) for line in lines]
    assert not any(each.ends for each in told)
    assert good.edit.id in " ".join(each.provenance for each in told)
    made = json.loads(call("export", run, tmp_path / "short.jsonl", "--no-prefix", "--json")[1])
    assert made == {"path": str(tmp_path / "short.jsonl"), "fixes": tried["accepted"]}
    short = next(json.loads(line) for line in (tmp_path / "short.jsonl").read_text().splitlines())
    assert short["prompt"] + short["completion"] == lines[0]["prompt"] + lines[0]["completion"]


def test_nothing_is_reviewed_twice_and_what_was_broken_off_goes_on(call, run, monkeypatch):
    whole = json.loads(call("propose", run, "--rollouts", 12, "--sources", "solver", "--json")[1])
    with RunReader(run) as reader:
        expected, first = reader.reviews(), reader.edits()
    call("propose", run, "--rollouts", 100, "--sources", "solver")
    with RunReader(run) as reader:
        assert {review.rollout_id for review in expected} < {review.rollout_id for review in reader.reviews()}
    code, out, _ = call("propose", run, "--sources", "solver")
    assert (code, out) == (0, "nothing was left to review; --fresh draws new rollouts\n")
    bare = shutil.copytree(run, run.parent / "bare")
    with RunWriter.open(bare) as writer:
        writer._connection.execute("DELETE FROM verdicts")
    code, out, _ = call("propose", bare, "--sources", "solver")
    assert re.match(r"nothing could be reviewed: none of the \d+ rollouts that 'rl' kept has a verdict; --fresh", out)
    # The same in two pieces: the second call ends after its first portion.
    other = shutil.copytree(run, run.parent / "other")
    with RunWriter.open(other) as writer:
        writer._connection.execute("DELETE FROM reviews")
        writer._connection.execute("DELETE FROM edits")
    held = review_run.held
    calls = []

    def once(*arguments, **options):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return held(*arguments, **options)

    monkeypatch.setattr(review_run, "held", once)
    monkeypatch.setattr(review_run, "TOGETHER", 1)
    assert call("propose", other, "--rollouts", 12, "--sources", "solver")[0] == 130
    with RunReader(other) as reader:
        done = len(reader.reviews())
    assert 0 < done < 12
    monkeypatch.setattr(review_run, "held", held)
    call("propose", other, "--rollouts", 12 - done, "--sources", "solver")
    with RunReader(other) as reader:
        assert reader.reviews() == expected
        assert reader.edits() == first
    assert whole["reviewed"] == 12


def test_a_spent_budget_leaves_the_rest_to_be_reviewed(call, run):
    code, out, err = call("propose", run, "--rollouts", 12, "--sources", "solver", "--budget", 60, "--json")
    assert code == 0
    assert json.loads(out)["tokens"] <= 60
    assert "the budget is spent" in err
    with RunReader(run) as reader:
        assert all(review.hinge is not None for review in reader.reviews())


def test_what_a_stage_cut_out_is_neither_tried_nor_listed(call, run):
    with RunReader(run) as reader:
        rollout = next(iter(reader.groups("rl"))).rollouts[0]
    cut = make_edit(rollout.id, EditKind.PRUNE, 0, 2, "", "review")
    with RunWriter.open(run) as writer:
        writer.record_reviews([], [cut])
    assert call("verify", run)[1].startswith("nothing waits to be tried")
    listed = call("list", run)[1]
    assert "0 of 0 fixes; 1 spans that stages cut or marked are not listed" in listed
    assert cut.id[:8] not in listed
    assert json.loads(call("list", run, "--json")[1])["edits"][0]["state"] == "in a story"


def test_a_person_has_the_last_word(call, run):
    call("propose", run, "--rollouts", 12, "--sources", "solver")
    with RunReader(run) as reader:
        edit = reader.edits()[0].edit.id
    assert call("accept", run, edit[:6]) == (0, f"edit {edit}: accepted by hand\n", "")
    assert "accepted by hand" in call("list", run, "--accepted")[1]
    assert call("reject", run, edit)[0] == 0
    assert edit[:8] not in call("list", run, "--accepted")[1]


def test_fresh_rollouts_and_successes(call, run):
    asked = ("propose", run, "--stage", "base", "--fresh", "--successes", "--rollouts", 6, "--json")
    found = json.loads(call(*asked)[1])
    assert (found["reviewed"], found["proposals"], found["gate"]) == (6, 0, None)
    with RunReader(run) as reader:
        assert all(review.correct for review in reader.reviews())
        keys = {reader.rollout(review.rollout_id).problem_key for review in reader.reviews()}
        assert not any(reader.problem(key).is_evaluation for key in keys)


def test_the_rollouts_of_a_stage_are_gone_on_with_under_its_own_budget(tmp_path):
    recipe = tiny_recipe(STAGES.replace("problems_per_update = 16", "problems_per_update = 2"),
                         head=HEAD.replace("max_new_tokens = 8", "max_new_tokens = 5"))  # fmt: skip
    finished(tmp_path / "run", recipe)
    assert stage_reviewer(tmp_path / "run", "rl").max_new_tokens == 8
    assert stage_reviewer(tmp_path / "run", "base").max_new_tokens == 5


def test_fresh_rollouts_without_anything_to_review_are_told(call, run, monkeypatch):
    monkeypatch.setattr(review_run, "_worth", lambda group, *, successes: [])
    assert "of the fresh rollouts none that is not reviewed yet failed" in call("propose", run, "--fresh",
                                                                               "--rollouts", 1)[1]  # fmt: skip
    assert call("propose", run, "--fresh", "--rollouts", 1, "--successes")[1].endswith("reviewed yet was right\n")


def test_the_gate_is_told(call, run):
    code, out, err = call("propose", run, "--rollouts", 4, "--json")
    assert code == 0
    assert "has no privileged_prompt" in err
    assert "has no privileged_prompt" in json.loads(out)["gate"]


@pytest.mark.parametrize("sources", ["policy", "", ","])
def test_no_rollout_is_used_up_when_nobody_can_propose(call, run, sources):
    code, _, err = call("propose", run, "--sources", sources)
    assert code == 2
    assert "nobody is left to propose a fix" in err
    with RunReader(run) as reader:
        assert reader.reviews() == []


def test_what_a_budget_left_untried_still_waits(call, run):
    call("propose", run, "--rollouts", 40, "--sources", "sibling,solver")
    with RunReader(run) as reader:
        proposed = len(reader.edits())
    few = json.loads(call("verify", run, "--continuations", 32, "--budget", 500, "--json")[1])
    assert few["waiting"] > 0
    assert few["tried"] + few["waiting"] == proposed
    with RunReader(run) as reader:
        assert sum(stored.verification is None for stored in reader.edits()) == few["waiting"]
    rest = json.loads(call("verify", run, "--continuations", 32, "--json")[1])
    assert (rest["tried"], rest["waiting"]) == (few["waiting"], 0)


def test_an_interrupted_verification_keeps_what_it_decided(call, run, monkeypatch):
    call("propose", run, "--rollouts", 40, "--sources", "sibling,solver")
    monkeypatch.setattr(review_run, "TESTED_TOGETHER", 2)
    verified, calls = review_run.verified, []

    def twice(*arguments, **options):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return verified(*arguments, **options)

    monkeypatch.setattr(review_run, "verified", twice)
    code, _, err = call("verify", run, "--continuations", 16)
    assert code == 130
    assert err.endswith("stopped; 4 fixes are decided and kept, the same command goes on\ninterrupted\n")
    with RunReader(run) as reader:
        assert sum(stored.verification is not None for stored in reader.edits()) == 4


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("propose", "RUN", "--stage", "x"), "x"),
        (("propose", "RUN", "--sources", "oracle"), "--sources = 'oracle' is not known"),
        (("propose", "RUN", "--chat", "localhost"), "--chat = 'localhost' must be URL#MODEL"),
        (("propose", "RUN", "--chat", "ftp://a#m"), "must begin with http"),
        (("propose", "RUN", "--knowledge", "weather"), "--knowledge = 'weather' is not known"),
        (("propose", "RUN", "--knowledge", ","), "--knowledge is empty: name some of answer, sibling, feedback"),
        (("propose", "RUN", "--knowledge", "feedback"), "needs prompts that can hold any text; those of paths cannot"),
        (("show", "RUN", "zz"), "'zz' names no review or edit"),
        (("export", "RUN", "/dev/null"), "is no regular file"),
        (("accept", "RUN", ""), "'' names no review or edit"),
        (("list", "none"), "holds no run"),
        (("verify", "none"), "holds no run"),
        (("propose", "none"), "holds no run"),
    ],
)
def test_mistakes_are_one_line(call, run, arguments, line):
    code, out, err = call(*(run if each == "RUN" else each for each in arguments))
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert line in err
    assert err.count("\n") == 1


def test_a_policy_that_is_gone_is_told(call, run):
    shutil.rmtree(run / "stages")
    code, _, err = call("propose", run)
    assert (code, err) == (
        2,
        f"error: stage 'rl' of {run} has no checkpoint: it is not trained yet, or its files are gone.\n",
    )


def test_an_export_reads_tokens_as_the_policy_does(call, tmp_path):
    """Characters of several tokens stay whole, and an environment's reply is prompt, not text to imitate."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: place for place, letter in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    text = "x ≤ 2√3; no"
    tokens, start = tokenizer.encode(text).ids, len(tokenizer.encode("x ≤ 2√3;").ids)
    mask = np.arange(len(tokens)) >= 2
    rollout = Rollout(
        id="r", group_id="g", stage="rl", update=0, index=0, problem_key="k", prompt_tokens=np.array([1], np.int32),
        tokens=np.array(tokens, np.int32), behavior_logprobs=np.zeros(len(tokens), np.float32), loss_mask=mask,
        temperature=1.0, text=text, stop_reason=StopReason.EOS, seed="0",
    )  # fmt: skip
    edits = [make_edit("r", EditKind.FIX, place, len(tokens), " so", "solver") for place in (start, start - 3)]
    problem = Problem(task="t", key="k", prompt="q?", answer="1")
    verdict = Verdict(outcome=Outcome.WRONG, correct=False)
    run = tmp_path / "run"
    with RunWriter.create(run, name="demo", identity={}) as writer:
        writer.begin_stage("rl", kind="rl")
        group = Group(problem=problem, rollouts=(rollout,), verdicts=(verdict,))
        writer.record_rollouts([group], stage="rl", update=0, purpose="train")
        review = Review(rollout_id="r", correct=False, cuts=(0,), values=(), hinge=None, first_error=None)
        writer.record_reviews([review], edits)
        writer.decide(edits[0].id, "accepted")
    assert "has no checkpoint: without its tokenizer" in call("export", run, tmp_path / "out.jsonl")[2]
    (run / "stages" / "rl" / "step-000001").mkdir(parents=True)
    tokenizer.save(str(run / "stages" / "rl" / "step-000001" / "tokenizer.json"))
    assert call("export", run, tmp_path / "out.jsonl")[0] == 0
    (made,) = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert (made["prompt"], made["completion"], made["ends"]) == ("q?x ", "≤ 2√3; so", False)
    with RunWriter.open(run) as writer:
        writer.decide(edits[1].id, "accepted")
    assert "begins within a character" in call("export", run, tmp_path / "out.jsonl")[2]
