"""`forkpoint audit RUN --models`: a tiny run whose models are asked, what that says first, and mistakes."""

import json
import re
import shutil
import sys

import pytest
from tiny_runs import BASE, RL, finished, tiny_recipe

from forkpoint.cli import main as command
from forkpoint.store import RunReader

ASKING = "token_edits,premature_confidence,template_collapse"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("audited") / "run"
    finished(folder, tiny_recipe(BASE, RL.replace("updates = 6", "updates = 6\nlearning_rate = 0.03")))
    return folder


@pytest.fixture
def call(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)

    def called(*arguments):
        monkeypatch.setattr(sys, "argv", ["forkpoint", "audit", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            command.main()
        text = capsys.readouterr()
        return stop.value.code, text.out, text.err

    return called


def test_the_models_of_a_run_are_asked_and_the_cost_is_told(call, run):
    code, out, err = call(run, "--models", "--only", ASKING, "--json")
    assert code == 0
    base, rl = json.loads(out)["stages"]
    ran = {stage["stage"]: {each["audit"]: each["ran"] for each in stage["audits"]} for stage in (base, rl)}
    assert ran["rl"] == dict.fromkeys(ASKING.split(","), True)
    # The first stage starts from nothing.
    assert ran["base"] == {**ran["rl"], "token_edits": False}
    findings = {each["audit"]: each["findings"] for each in rl["audits"]}
    assert 0 < findings["token_edits"][0]["value"] < 1
    assert findings["template_collapse"]
    assert "rl: template_collapse scores up to" in err
    with RunReader(run) as reader:
        kept = len([one for one in reader.findings("rl") if one.audit in ASKING])
    assert kept == sum(map(len, findings.values()))
    # An audit of the records alone leaves them where they are.
    assert call(run)[0] == 0
    with RunReader(run) as reader:
        assert len([one for one in reader.findings("rl") if one.audit in ASKING]) == kept


def test_without_models_they_say_what_they_lack_and_a_named_base_is_taken(call, run):
    code, out, _ = call(run, "--only", "template_collapse", "--no-store")
    assert (code, "not run: lacks probe" in out) == (0, True)
    code, out, _ = call(
        run, "--models", "--only", "token_edits", "--stage", "rl", "--base", f"{run}:rl", "--no-store", "--json"
    )
    assert json.loads(out)["stages"][0]["audits"][0]["findings"][0]["value"] == 0


def test_models_of_foreign_rollouts_are_refused(call, tmp_path):
    path = tmp_path / "rollouts.jsonl"
    path.write_text('{"prompt": "a", "completion": "b"}\n')
    code, _, err = call(path, "--models")
    assert code == 2
    assert "--models goes with a run of ours" in err


def test_a_budget_beyond_the_context_is_one_line_and_the_records_are_audited(call, tmp_path):
    folder = tmp_path / "short"
    finished(folder, tiny_recipe(BASE, overrides=("evaluation.max_new_tokens=60",)))
    code, out, err = call(folder, "--models", "--no-store")
    assert code == 0
    (line,) = [line for line in err.splitlines() if "context" in line]
    assert re.fullmatch(
        r"stage 'base': a prompt of \d+ tokens and 60 tokens after it do not fit the model's context of 64. "
        r"The models are not asked.",
        line,
    )
    assert "template_collapse   not run: lacks probe" in out
    assert "length_and_format   ok" in out


def test_other_ways_to_ask_are_tried_and_the_verifier_is_asked_for_canaries(call, run):
    only = ("--only", "sabotage,reward_hacking", "--no-store")
    code, out, err = call(run, "--models", "--stage", "rl", *only, "--elicit", "go ", "--elicit", "a>b", "--json")
    assert code == 0
    sabotage, hacking = json.loads(out)["stages"][0]["audits"]
    (found,) = [each for each in sabotage["findings"] if "Asked plainly" in each["claim"]]
    assert "the prompt after 'go '" in found["claim"]
    assert "(interval for the best of 6)" in found["claim"]
    assert any("Texts that answer nothing" in each["claim"] for each in hacking["findings"])
    assert (sabotage["lacks"].get("elicitation"), hacking["lacks"].get("canary answers")) == (None, None)
    assert re.search(r"rl: sabotage scores up to 0 tokens, samples \d+", err)
    code, out, _ = call(run, "--stage", "rl", *only, "--json")
    assert json.loads(out)["stages"][0]["audits"][0]["lacks"]["elicitation"] == ["draws"]


def test_a_text_to_elicit_with_needs_models_and_must_be_readable(call, run):
    code, _, err = call(run, "--elicit", "go ")
    assert code == 2
    assert "--elicit goes with --models" in err
    assert call(run, "--models", "--elicit", "")[2] == "error: --elicit = '': the text is empty.\n"
    code, out, err = call(
        run, "--models", "--only", "sabotage", "--stage", "rl", "--elicit", "\N{SNOWMAN}", "--no-store"
    )
    assert (code, out) == (2, "")
    assert re.search(r"--elicit: the character '.*' of the text '.*' is outside the model's alphabet", err)
    # A text beyond the context is one way less; what the others and the records say stays.
    code, out, _ = call(run, "--models", "--only", "sabotage", "--stage", "rl", "--elicit", "a" * 99, "--no-store")
    assert re.search(r"Asked plainly .*weight noise 0.2 .* Beyond the context: the prompt after 'a+\u2026\.", out)


def test_a_model_folder_is_asked_about_the_rollouts_of_another_trainer(call, run, tmp_path):
    """The export of a stage and its checkpoints, as another trainer would leave them."""
    with RunReader(run) as reader:
        names = [stage.name for stage in reader.stages()]
    assert names == ["base", "rl"]
    base, model = (sorted((run / "stages" / name).glob("step-*"))[-1] for name in names)
    rollouts = tmp_path / "rl.jsonl"
    with RunReader(run) as reader:
        rows = [
            {"prompt": group.problem.prompt, "completion": rollout.text, "correct": verdict.correct, "step": 1}
            for update in reader.kept_updates("rl")
            for group in reader.groups("rl", update)
            for rollout, verdict in zip(group.rollouts, group.verdicts, strict=True)
        ]
    rollouts.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    named = ("--model", model, "--base-model", base, "--answer-lead", ">")
    code, out, err = call(rollouts, *named, "--only", ASKING, "--json")
    assert code == 0
    ran = {each["audit"]: each for each in json.loads(out)["stages"][0]["audits"]}
    assert 0 < ran["token_edits"]["findings"][0]["value"] <= 1
    assert ran["template_collapse"]["findings"]
    assert re.search(r"rollouts: token_edits scores up to \d+ tokens, samples 0\n", err)
    assert call(rollouts, "--model", model, "--answer-lead", "\N{SNOWMAN}")[0] == 2
    assert "--answer-lead: the character" in call(rollouts, "--model", model, "--answer-lead", "\N{SNOWMAN}")[2]
    code, out, err = call(rollouts, "--model", model, "--only", "token_edits,premature_confidence", "--json")
    assert "scores up to" not in err
    assert json.loads(out)["stages"][0]["audits"][0]["lacks"] == {"edits": ["base"]}
    assert (
        call(rollouts, "--model", model, "--elicit", "")[2]
        == "error: --elicit goes with --models: the text is put before the prompts of a model.\n"
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--base-model", "x"], "--base-model goes with --model."),
        (["--answer-lead", "#"], "--answer-lead goes with --model."),
        (["--raw-prompts"], "--raw-prompts goes with --model."),
        (
            ["--models", "--elicit", ""],
            "--models goes with a run of ours, rollouts.jsonl holds rollouts: name their --model.",
        ),
        (["--dtype", "float16"], "--dtype goes with --model."),
        (["--model", "nowhere"], "there is no model at nowhere: config.json is missing."),
        (["--models"], "--models goes with a run of ours, rollouts.jsonl holds rollouts: name their --model."),
    ],
)
def test_options_of_model_folders_that_do_not_go_together(call, tmp_path, options, message):
    (tmp_path / "rollouts.jsonl").write_text('{"prompt": "a", "completion": "b", "correct": true}\n')
    code, out, err = call("rollouts.jsonl", *options)
    assert (code, out) == (2, "")
    assert err == f"error: {message}\n"


def test_a_model_folder_does_not_go_with_a_run(call, run):
    code, _, err = call(run, "--model", "x")
    assert (code, "--model goes with rollouts of another trainer" in err) == (2, True)


def test_rollouts_that_the_model_cannot_read_leave_the_audits_of_records(call, run, tmp_path):
    rows = [{"prompt": f"{n} + 1?", "completion": f"#{n}", "correct": False, "step": 1} for n in range(40)]
    (tmp_path / "a.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    model = sorted((run / "stages" / "rl").glob("step-*"))[-1]
    code, out, err = call("a.jsonl", "--model", model, "--only", "coverage,template_collapse", "--fail-on", "sick")
    assert code == 0
    assert "the model can read none of the 40 rollouts: the character" in err
    assert "The model is not asked." in err
    assert "template_collapse   not run: lacks probe" in out
    code, _, err = call("a.jsonl", "--model", model, "--only", "coverage")
    assert "no model is asked: --only names no audit that asks one" in err


def test_a_stage_without_a_checkpoint_leaves_the_audits_of_records(call, run, tmp_path):
    copy = tmp_path / "cut"
    shutil.copytree(run, copy)
    shutil.rmtree(copy / "stages" / "rl")
    code, out, err = call(copy, "--models", "--only", "template_collapse,coverage", "--no-store")
    assert code == 0
    assert "has no checkpoint: it is not trained yet, or its files are gone. The models are not asked." in err
    assert "rl: " in out
