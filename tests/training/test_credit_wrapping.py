"""Wrappers and credit metrics in the trainer: the rule first, its wrappers around it, their numbers in the metrics."""

import sqlite3
from dataclasses import replace

import numpy as np
import pytest
from tiny_runs import BASE, RL, finished, tiny_recipe

from forkpoint.credit import leave_one_out
from forkpoint.credit.masks import PENALTY_SLOPE
from forkpoint.credit.privileged import privileged
from forkpoint.credit.state_group import state_group
from forkpoint.errors import RecipeError
from forkpoint.records import Batch
from forkpoint.training.rl import rewarded
from forkpoint.training.rollouts import SamplePlan, judged_groups

WRAP = (
    "stage.rl.credit.wrap=['progressive_confidence', 'confident_mask']",
    "stage.rl.credit.wrap_options={confident_mask={below=0.5}}",
)


@pytest.fixture(scope="module")
def assembly(tmp_path_factory):
    return finished(tmp_path_factory.mktemp("runs") / "run", tiny_recipe(BASE, RL, overrides=WRAP))


def metrics(assembly, name):
    with sqlite3.connect(assembly.run / "run.db") as connection:
        rows = connection.execute("SELECT value FROM metrics WHERE name = ?", (name,))
        return [value for (value,) in rows]


def drawn(loop):
    plan = SamplePlan(key=loop.key.child("test"), stage="rl", update=1, group_size=4, max_new_tokens=6, temperature=1.0)
    problems = [loop.task.problem(loop.key.child(i)) for i in range(4)]
    groups = judged_groups(loop.probe, loop.task, loop.policy.texts, problems, plan)
    return rewarded(Batch(groups=tuple(groups), update=1), loop.probe, loop.stage)


def test_wrapped_credit_reaches_the_metrics_and_the_cost(assembly):
    premature = metrics(assembly, "credit_premature")
    assert len(premature) == 6
    assert all(abs(value) <= sum(w for w in PENALTY_SLOPE if w > 0) for value in premature)
    assert all(count > 0 for count in metrics(assembly, "credit_scored_tokens"))


def test_the_trainers_credits_are_the_rule_with_its_wrappers(assembly):
    loop = assembly.loop("rl")
    batch = drawn(loop)
    found, base = loop.training.credits(batch), leave_one_out(batch, None)
    changed = 0
    for rollout, credit, plain in zip(batch.rollouts, found, base, strict=True):
        open_tokens = rollout.behavior_logprobs < np.log(0.5)
        expected = np.where(open_tokens, plain.advantages - credit.details["premature"], 0.0)
        assert credit.advantages == pytest.approx(expected, abs=1e-6)
        changed += int((credit.advantages != plain.advantages).any())
    assert changed
    assert loop.training.credits(Batch(groups=(), update=1)) == []


def test_rules_over_states_and_knowledge_work_with_the_real_probe(assembly):
    loop = assembly.loop("rl")
    batch = drawn(loop)
    credits = state_group(batch, loop.probe)
    assert any(credit.details["shared_states"] > 0 for credit in credits)
    assert not any(
        credit.advantages[~rollout.loss_mask].any() for credit, rollout in zip(credits, batch.rollouts, strict=True)
    )
    with pytest.raises(ValueError, match="privileged_prompt"):
        privileged(batch, loop.probe)


@pytest.mark.parametrize(("given", "what"), [([None] * 16, "NoneType"), ("x" * 16, "str"), (7, "int")])
def test_what_is_no_credit_is_refused(assembly, given, what):
    loop = assembly.loop("rl")
    strange = replace(loop.training, credit_rule=lambda batch, probe, **_: given)
    with pytest.raises(RecipeError, match=f"gave no list of credits but one of {what}"):
        strange.credits(drawn(loop))


def test_another_number_of_credits_is_refused(assembly):
    loop = assembly.loop("rl")
    short = replace(loop.training, credit_rule=lambda batch, probe, **_: [])
    with pytest.raises(RecipeError, match=r"gave 0 credits, not 16"):
        short.credits(drawn(loop))
