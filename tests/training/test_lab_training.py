"""Whole runs on the lab through recipes: the critic, PPO, resume, and mistakes that are found before a run."""

import json
import sqlite3
from dataclasses import replace

import numpy as np
import pytest
from tiny_runs import After, differences, digest, fingerprint, finished, make_run, resume, status, tiny_recipe

from forkpoint.assembly import build_policy
from forkpoint.assembly.checks import check_recipe
from forkpoint.cli.worker import work
from forkpoint.errors import CheckpointError, RecipeError, TaskError
from forkpoint.policies.tabular import OFFSET, from_theory, load_tabular
from forkpoint.probing.local import LocalProbe
from forkpoint.records import Batch
from forkpoint.rewards import outcome_rewards
from forkpoint.sampling.tabular import TabularSampler
from forkpoint.seeds import Key
from forkpoint.store import checkpoint_path, stage_folder
from forkpoint.tasks.lab import Settings, build
from forkpoint.tasks.protocol import split_problems
from forkpoint.theory.classes import optimal_policy, uniform_policy
from forkpoint.theory.graphs import PathStar
from forkpoint.theory.tables import policy_text, solve_table, spread_policy
from forkpoint.training.critic import TableCritic
from forkpoint.training.rollouts import SamplePlan, judged_groups
from forkpoint.verifiers.guard import guarded

LAB = build(Settings(branches=2, depth=1, lanes=2))
BUDGET, PENALTY = 7, 0.4
VOCABULARY = LAB.graph.state_count + OFFSET


@pytest.fixture(scope="module")
def groups():
    policy = from_theory(spread_policy(uniform_policy(LAB.graph)))
    plan = SamplePlan(key=Key.root(3), stage="s", update=1, group_size=4, max_new_tokens=BUDGET, temperature=1.0)
    probe = LocalProbe(policy, TabularSampler(policy), guarded(LAB.verify))
    return judged_groups(probe, LAB, policy.texts, split_problems(LAB, Key.root(3), 100, evaluation=False), plan)


def rewarded(groups, penalty):
    batch = Batch(groups=tuple(groups), update=1)
    rewards = iter(outcome_rewards(batch, None, length_penalty=penalty, max_new_tokens=BUDGET))
    return [replace(group, rewards=tuple(next(rewards) for _ in group.rollouts)) for group in batch.groups]


def test_the_critic_learns_the_mean_reward_to_go(groups):
    batch = Batch(groups=tuple(rewarded(groups, PENALTY)), update=1)
    critic = TableCritic(VOCABULARY, rate=0.25)
    expected = {}
    for group in batch.groups:
        for rollout, verdict in zip(group.rollouts, group.verdicts, strict=True):
            walk = [*rollout.prompt_tokens.tolist(), *rollout.tokens.tolist()]
            for place in range(len(rollout.tokens)):
                left = len(rollout.tokens) - place
                expected.setdefault(walk[place], []).append(float(verdict.correct) - PENALTY * left / BUDGET)
    first = critic.fit(batch)
    means = {token: np.mean(returns) for token, returns in expected.items()}
    rollout = batch.rollouts[0]
    previous = [*rollout.prompt_tokens.tolist(), *rollout.tokens.tolist()][:-1]
    assert critic.values([rollout])[0].tolist() == pytest.approx([means[token] for token in previous], rel=1e-6)
    flat = np.array([value for returns in expected.values() for value in returns])
    assert first["critic_error"] == pytest.approx(np.sqrt((flat**2).mean()))
    second = critic.fit(batch)
    assert second["critic_error"] < first["critic_error"]
    assert 0 < second["critic_explained"] < 1
    # What was met before moves a quarter of the way.
    other = Batch(groups=tuple(rewarded(groups, 0.0)), update=2)
    before = critic.values([rollout])[0][0]
    critic.fit(other)
    target = np.mean([float(verdict.correct) for group in other.groups for verdict in group.verdicts])
    assert critic.values([rollout])[0][0] == pytest.approx(before + 0.25 * (target - before), rel=1e-5)


def test_a_critic_is_saved_and_loaded(tmp_path, groups):
    critic, again = (TableCritic(VOCABULARY) for _ in range(2))
    batch = Batch(groups=tuple(rewarded(groups[:20], PENALTY)), update=1)
    critic.fit(batch)
    critic.save(tmp_path)
    again.load(tmp_path)
    for one, two in zip(critic.values(batch.rollouts), again.values(batch.rollouts), strict=True):
        assert one.tobytes() == two.tobytes()
    assert critic.fit(batch) == again.fit(batch)
    with pytest.raises(CheckpointError, match="another critic"):
        TableCritic(5).load(tmp_path)
    with pytest.raises(CheckpointError, match="cannot be read"):
        critic.load(tmp_path / "nothing")


HEAD = """
name = "lab"
slots = 512
[policy]
kind = "tabular"
architecture = "table"
[task]
name = "lab"
branches = 2
depth = 2
lanes = 2
[evaluation]
problems = 32
final_problems = 64
max_new_tokens = 100
"""
PPO = """
[[stage]]
name = "ppo"
kind = "rl"
updates = {updates}
problems_per_update = 32
group_size = 4
max_new_tokens = 100
updates_per_batch = 2
learning_rate = 0.1
warmup = 0
aggregation = "constant"
checkpoint_every = 4
keep_rollouts = "sample:2"
[stage.credit]
rule = "critic"
[stage.credit.options]
lam = 0.95
[stage.loss]
name = "clipped_surrogate"
[stage.reward]
length_penalty = 0.5
"""
SFT = """
[[stage]]
name = "golden"
kind = "sft"
data = "golden"
updates = 20
batch_size = 16
learning_rate = 0.3
"""


def final_policy(assembly, stage):
    folder = stage_folder(assembly.run, stage)
    return load_tabular(checkpoint_path(folder, assembly.recipe.get_stage(stage).updates)).to_theory()


def test_ppo_with_a_critic_learns_to_turn_back_and_imitation_does_not(runs):
    assembly = finished(runs / "lab", tiny_recipe(PPO.format(updates=120), SFT, head=HEAD))
    uniform = solve_table(spread_policy(uniform_policy(PathStar.regular(branches=2, depth=2, lanes=2)))).steps.mean()
    steps = {name: solve_table(final_policy(assembly, name)).steps.mean() for name in ("ppo", "golden")}
    assert steps["ppo"] < 1.1 * (4 * 2 * 2 + 2 * 2 - 2 * 2)
    assert steps["golden"] > 0.9 * uniform
    with sqlite3.connect(assembly.run / "run.db") as connection:
        query = "SELECT update_number, value FROM metrics WHERE name = 'critic_error' ORDER BY update_number"
        errors = [value for _, value in connection.execute(query)]
    assert len(errors) == 60
    assert errors[-1] < 0.5 * errors[0]


@pytest.mark.parametrize("architecture", ["table", "transformer"])
def test_a_killed_run_with_a_critic_goes_on_as_if_nothing_had_happened(runs, architecture):
    recipe = tiny_recipe(PPO.format(updates=12), head=HEAD.replace('"table"', f'"{architecture}"'))
    whole = finished(runs / "whole", recipe)
    stopped = make_run(runs / "stopped", recipe)
    work(stopped, After(3))
    assert status(stopped.run) == {"ppo": "stopped"}
    resume(stopped)
    assert differences(fingerprint(whole), fingerprint(stopped)) == []
    last = checkpoint_path(stage_folder(whole.run, "ppo"), 12)
    other = checkpoint_path(stage_folder(stopped.run, "ppo"), 12)
    assert digest(last / "critic.safetensors") == digest(other / "critic.safetensors")


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"task.name": "paths"}, RecipeError, "needs the task lab"),
        ({"policy.start": "nothing.json"}, RecipeError, "golden, optimal, uniform"),
        ({"stage.ppo.credit.options.lam": 2}, RecipeError, r"must lie in \[0, 1\]"),
        ({"stage.ppo.credit.options.lambda": 1}, RecipeError, "lam"),
    ],
)
def test_mistakes_are_found_before_the_run(change, error, message, runs):
    head = HEAD.replace("lanes = 2\n", "") if "task.name" in change else HEAD
    overrides = tuple(f"{key}={json.dumps(value)}" for key, value in change.items())
    with pytest.raises(error, match=message):
        check_recipe(tiny_recipe(PPO.format(updates=4), overrides=overrides, head=head), runs, runs / "lab")


def test_stages_must_walk_in_one_graph_and_a_table_of_values_needs_a_table(runs):
    other = PPO.format(updates=4) + '[stage.task]\nname = "lab"\nbranches = 3\n'
    with pytest.raises(RecipeError, match="same graph"):
        check_recipe(tiny_recipe(other, head=HEAD), runs, runs / "lab")
    tiny = HEAD.replace('kind = "tabular"\narchitecture = "table"', 'kind = "tiny"')
    wrong = ("stage.ppo.critic.kind=table",)
    with pytest.raises(RecipeError, match=r"critic\.kind = 'table' does not go with \[policy\] kind = 'tiny'"):
        check_recipe(tiny_recipe(PPO.format(updates=4), head=tiny, overrides=wrong), runs, runs / "lab")


def test_a_policy_file_may_be_the_start(runs):
    graph = PathStar.regular(branches=2, depth=2, lanes=2)
    (runs / "start.json").write_text(policy_text(spread_policy(optimal_policy(graph))))
    (runs / "other.json").write_text(
        policy_text(spread_policy(optimal_policy(PathStar.regular(branches=3, depth=1, lanes=1))))
    )
    recipe = tiny_recipe(PPO.format(updates=4), overrides=("policy.start=start.json",), head=HEAD)
    assert solve_table(build_policy(recipe, runs).to_theory()).steps.mean() == pytest.approx(16, rel=1e-6)
    with pytest.raises(TaskError, match="belongs to the graph"):
        build_policy(tiny_recipe(PPO.format(updates=4), overrides=("policy.start=other.json",), head=HEAD), runs)
