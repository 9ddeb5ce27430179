"""No alarm on healthy runs: every credit rule, aggregation, loss and task, briefly.

A few of the runs each time; all sixty with FORKPOINT_LONG=1 (`make test-doctor`).
"""

import itertools
import os
from pathlib import Path

import pytest
from doctor_examples import healthy_loop, subject_of
from tiny_runs import HEAD, finished, tiny_recipe

from forkpoint.assembly import Assembly
from forkpoint.assembly.examination import examine_recipe
from forkpoint.config import load_recipe
from forkpoint.doctor import examine
from forkpoint.records import Severity
from forkpoint.store import RunReader

LONG = bool(os.environ.get("FORKPOINT_LONG"))
RECIPES = Path(__file__).resolve().parents[2] / "recipes"
RULES = ("leave_one_out", "group_mean_std", "max_rl", "survivors", "batch_baseline")
AGGREGATIONS = ("token_mean", "constant", "sequence_mean", "prompt_mean")
LOSSES = (("reinforce", 1), ("clipped_surrogate", 2), ("dppo_tv", 2))
TASKS = (
    ("paths", "walks", ["task.branches=2", "task.depth=1", "task.walk_length=6"]),
    ("arithmetic", "solutions", []),
    ("countdown", "solutions", []),
    ("keychain", "solutions", []),
)
STAGES = """
[[stage]]
name = "base"
kind = "pretrain"
data = "{data}"
updates = 1
batch_size = 4
[[stage]]
name = "rl"
kind = "rl"
from = "base"
updates = 2
problems_per_update = 3
group_size = 3
max_new_tokens = 12
"""
VARIANTS = list(itertools.product(RULES, AGGREGATIONS, LOSSES))


def variant(place):
    """The recipe of one of sixty runs; what is not in the product goes round at other rates."""
    rule, aggregation, (loss, parts) = VARIANTS[place]
    name, data, settings = TASKS[place % 4 if place % 3 == 0 else 0]
    chosen = [
        f"stage.rl.credit.rule={rule}", f"stage.rl.aggregation={aggregation}", f"stage.rl.loss.name={loss}",
        f"stage.rl.updates_per_batch={parts}", f"task.name={name}", "doctor.every=1", "evaluation.problems=2",
        "evaluation.final_problems=2", "evaluation.max_new_tokens=12", f"seed={place}", "policy.context=192",
        f"stage.rl.temperature={(1.0, 0.7, 1.4)[place % 3]}", f"policy.shape={('qwen3', 'llama')[place % 2]}",
        *settings,
    ]  # fmt: skip
    if rule != "max_rl":
        chosen.append(f"stage.rl.reward.length_penalty={(0.0, 0.3)[place // 2 % 2]}")
    if place % 5 == 0:
        chosen.append(f"stage.rl.divergence.coefficient={0.05 * (1 + place % 2)}")
        chosen.append(f"stage.rl.divergence.kind={('sequence_k2', 'token_k2')[place % 2]}")
    if place % 7 == 0:
        chosen += ["stage.rl.max_batch_tokens=16", 'stage.rl.keep_rollouts="all"']
    head = HEAD.split("[task]")[0] + '[task]\nname = "paths"\n[evaluation]\nmax_new_tokens = 12\n'
    return tiny_recipe(STAGES.format(data=data), overrides=tuple(chosen), head=head)


def alarms(folder):
    with RunReader(folder) as reader:
        found = reader.findings()
    assert len(found) >= 3
    return [finding.claim for finding in found if finding.severity is not Severity.INFO]


@pytest.mark.parametrize("place", range(60) if LONG else (0, 21, 47))
def test_a_healthy_run_raises_no_alarm(place, tmp_path):
    assembly = finished(tmp_path / "run", variant(place))
    assert alarms(assembly.run) == []


def test_a_stage_with_experts_raises_no_alarm():
    chosen = ("stage.rl.experts=1", "stage.rl.loss.name=mixed_policy", "stage.rl.credit.rule=with_experts")
    assert [check for check in examine(subject_of(healthy_loop(*chosen)), alone=True) if not check.ok] == []


def test_a_stage_that_is_paid_by_the_score_raises_no_alarm():
    """No rollout of the first batch is right, so the sign of the reward is told by made-up verdicts."""
    checks = examine(subject_of(healthy_loop("stage.rl.reward.pays=score")), alone=True)
    assert [check for check in checks if not check.ok] == []
    sign = next(check for check in checks if check.name == "reward sign")
    assert ("made-up" in sign.did, sign.value) == (True, 1.0)


SHORT_RECIPES = {"backtrack": "rlvr", "lab-rl": "reinforce-early"}
CHOSEN = sorted(path.stem for path in RECIPES.glob("*.toml")) if LONG else sorted(SHORT_RECIPES)


def test_a_stage_that_only_asks_what_a_policy_earns_is_watched_and_not_sick():
    checks = examine(subject_of(healthy_loop("stage.rl.learning_rate=1e-12")), alone=True)
    named = {check.name: check.status for check in checks if not check.ok}
    assert named == {"weights reached the sampler": "watch"}


@pytest.mark.parametrize("name", CHOSEN)
def test_no_check_of_a_shipped_recipe_is_sick(name):
    recipe = load_recipe(RECIPES / f"{name}.toml")
    stage = None if LONG else SHORT_RECIPES[name]
    sick = [
        (each.stage, check)
        for each in examine_recipe(recipe, RECIPES, Path("nowhere"), stage=stage)
        for check in each.checks
        if check.status == "sick"
    ]
    assert sick == []


def test_a_recipe_that_was_not_run_still_has_every_stage():
    recipe = load_recipe(RECIPES / "backtrack.toml")
    assembly = Assembly(recipe=recipe, origin=RECIPES, run=Path("nowhere"), unrun=True)
    loop = assembly.loop("distilled")
    assert loop.done == 0
    assert len(loop.training.draw(1)) == recipe.get_stage("distilled").batch_size
