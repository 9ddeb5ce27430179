"""Whole runs of a decoder with a learned critic: warm-up, resume, and mistakes that are found before a run."""

import json
import sqlite3

import pytest
from tiny_runs import HEAD, RL, After, differences, digest, fingerprint, finished, make_run, resume, status, tiny_recipe

from forkpoint.assembly.checks import check_recipe
from forkpoint.cli.worker import work
from forkpoint.errors import RecipeError
from forkpoint.store import checkpoint_path, stage_folder

CRITIC = (
    RL.replace('from = "base"', 'from = "policy"').replace("updates = 6", "updates = 4")
    + """
[stage.credit]
rule = "critic"
[stage.critic]
hidden = 8
warmup_batches = 2
epochs = 2
minibatches = 2
"""
)
FILE = "critic/trainer.safetensors"


def recipe_of(kind, *overrides):
    return tiny_recipe(CRITIC, overrides=(f"stage.rl.critic.kind={kind}", *overrides))


def metric(assembly, name):
    with sqlite3.connect(assembly.run / "run.db") as connection:
        query = "SELECT update_number, value FROM metrics WHERE name = ? ORDER BY update_number"
        return connection.execute(query, (name,)).fetchall()


@pytest.mark.parametrize("kind", ["head", "network"])
def test_a_run_stopped_anywhere_equals_the_unbroken_one(kind, tmp_path):
    recipe = recipe_of(kind)
    whole = finished(tmp_path / "whole", recipe)
    last = checkpoint_path(stage_folder(whole.run, "rl"), 4)
    for stops in (1, 2, 4):
        assembly = make_run(tmp_path / f"broken-{stops}", recipe)
        work(assembly, After(stops))
        assert status(assembly.run) == {"rl": "stopped"}
        resume(assembly)
        assert differences(fingerprint(assembly), fingerprint(whole)) == []
        assert digest(checkpoint_path(stage_folder(assembly.run, "rl"), 4) / FILE) == digest(last / FILE)


def test_warm_up_is_counted_and_leaves_the_policy_s_draws_alone(tmp_path):
    warm, cold = (
        finished(tmp_path / name, recipe_of("head", "stage.rl.updates=2", f"stage.rl.critic.warmup_batches={count}"))
        for name, count in (("warm", 2), ("cold", 0))
    )
    ((first, tokens),) = metric(warm, "critic_warmup_tokens")
    assert (first, metric(cold, "critic_warmup_tokens")) == (1, [])
    assert 0 < tokens <= 2 * 4 * 4 * 6
    with sqlite3.connect(warm.run / "run.db") as one, sqlite3.connect(cold.run / "run.db") as two:
        query = "SELECT tokens FROM updates WHERE update_number = 1"
        assert one.execute(query).fetchone()[0] - two.execute(query).fetchone()[0] == tokens
        # The first rollouts are the same, their credit is not.
        query = "SELECT tokens FROM rollouts WHERE update_number = 1 ORDER BY id"
        assert one.execute(query).fetchall() == two.execute(query).fetchall()
        # Without a warm-up they are credited before the critic has seen anything.
        query = "SELECT DISTINCT baseline FROM credits JOIN rollouts ON rollout_id = id WHERE update_number = 1"
        assert two.execute(query).fetchall() == [(0.0,)]
        query = "SELECT * FROM credits ORDER BY 1"
        assert one.execute(query).fetchall() != two.execute(query).fetchall()
    assert len(metric(warm, "critic_calibration")) == 2
    assert len(metric(warm, "critic_explained")) == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stage.rl.critic.kind": "table"}, "'tiny', which can have: head, network"),
        ({"stage.rl.credit.rule": "leave_one_out"}, "asks for no values; those that do: critic"),
        ({"stage.rl.critic.loss": "cross_entropy"}, r"\[stage.reward\] shapes them"),
        ({"stage.rl.critic.epochs": 0}, "epochs"),
        ({"stage.rl.critic.warm_up": 1}, "warm_up"),
        ({"stage.rl.credit.options": {"alpha": 0.0}}, "must be above 0"),
        ({"stage.rl.credit.options": {"alpha": 0.1, "lam": 0.9}}, "give one"),
        ({"stage.rl.credit.options": {"alpha": "x"}}, "must be float"),
    ],
)
def test_mistakes_are_found_before_the_run(change, message, tmp_path):
    overrides = [f"{key}={json.dumps(value)}" if not isinstance(value, dict) else table(key, value)
                 for key, value in change.items()]  # fmt: skip
    with pytest.raises(RecipeError, match=message):
        check_recipe(tiny_recipe(CRITIC, overrides=tuple(overrides)), tmp_path, tmp_path / "run")


def table(key, value):
    return f"{key}={{{', '.join(f'{name}={json.dumps(item)}' for name, item in value.items())}}}"


def test_a_dry_run_says_what_a_critic_costs_and_whether_it_is_biased(tmp_path):
    def plan(*overrides):
        return check_recipe(tiny_recipe(CRITIC, overrides=overrides), tmp_path, tmp_path / "run")["rl"]

    head = plan("stage.rl.aggregation=constant")
    assert head.bias.unbiased is True
    reading = 1 + (head.cost.scored / 2 - 1)
    assert head.cost.scored == pytest.approx(2 * reading)
    assert "critic: 2 (1 + U / T) scored" in head.formulas
    network = plan("stage.rl.critic.kind=network")
    assert network.cost.scored == pytest.approx(reading * (2 + 3 * 2))
    biased = plan("stage.rl.credit.options={alpha=0.1}").bias
    assert biased.unbiased is False
    assert any("alpha" in reason for reason in biased.reasons)


def test_a_rule_of_somebody_else_may_have_a_critic(tmp_path, monkeypatch):
    (tmp_path / "my_values.py").write_text(
        "from forkpoint.credit import critic\n\n\ndef rule(batch, probe):\n    return critic(batch, probe)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    run = finished(tmp_path / "run", recipe_of("head", "stage.rl.updates=1", "stage.rl.credit.rule=my_values:rule"))
    assert len(metric(run, "critic_error")) == 1


def test_a_critic_without_settings_is_the_usual_one(tmp_path):
    text = CRITIC.partition("[stage.critic]")[0]
    run = finished(tmp_path / "run", tiny_recipe(text, overrides=("stage.rl.updates=1",), head=HEAD))
    assert len(metric(run, "critic_error")) == 1
    assert (checkpoint_path(stage_folder(run.run, "rl"), 1) / FILE).is_file()
