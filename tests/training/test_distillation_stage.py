"""Self-distillation in an RL stage: who is taught what, with which weights; exact resume; what is refused."""

import inspect
from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
from tiny_runs import HEAD, After, differences, fingerprint, finished, make_run, resume, status, tiny_recipe

from forkpoint.assembly.checks import check_recipe
from forkpoint.config.distillation import Distillation
from forkpoint.credit.privileged import Knowledge
from forkpoint.errors import ModelError, RecipeError
from forkpoint.losses import distillation as losses
from forkpoint.probe import ScoreRequest
from forkpoint.records import Batch
from forkpoint.training.distillation import batch_teachers
from forkpoint.training.rl import rewarded

CHAIN = (
    HEAD.partition("[task]")[0]
    + """
[task]
name = "keychain"
positions = 4
keys = 2
[evaluation]
problems = 8
final_problems = 12
max_new_tokens = 4
[doctor]
before = false
every = 0
"""
)
STAGE = """
[[stage]]
name = "taught"
kind = "rl"
updates = 4
problems_per_update = 4
group_size = 4
max_new_tokens = 4
warmup = 0
learning_rate = 1e-2
checkpoint_every = 2
keep_rollouts = "all"
[stage.distillation]
"""


def chain(*overrides):
    return tiny_recipe(STAGE, overrides=overrides, head=CHAIN)


@pytest.fixture
def drawn(tmp_path):
    """A stage's training, and one batch of its rollouts with rewards."""

    def draw(*overrides):
        loop = make_run(tmp_path / f"run{len(list(tmp_path.iterdir()))}", chain(*overrides)).loop("taught")
        training = loop.training
        groups = training._judged(1)[0]
        # One group with a correct rollout: what the verdicts are is no matter here.
        right = replace(groups[0].verdicts[0], correct=True, reason="found")
        groups[0] = replace(groups[0], verdicts=(right, *groups[0].verdicts[1:]))
        batch = rewarded(Batch(groups=tuple(groups), update=1), loop.probe, training.stage)
        return training, batch

    return draw


def test_config_and_code_agree_on_their_names():
    fields = Distillation.model_fields
    assert get_args(fields["knowledge"].annotation) == get_args(Knowledge)
    assert get_args(fields["direction"].annotation) == get_args(losses.Direction)
    assert inspect.signature(losses.bucket_divergence).parameters.keys() == {"student", "teacher", "direction"}


def test_who_is_taught(drawn):
    training, batch = drawn()
    everybody = batch_teachers(training.policy, batch, training.probe, stage=training.stage)
    assert list(everybody) == [rollout.id for rollout in batch.rollouts]
    training, batch = drawn("stage.taught.distillation.where=failed")
    failed = batch_teachers(training.policy, batch, training.probe, stage=training.stage)
    assert list(failed) == [rollout.id for rollout in batch.rollouts][1:]
    training, batch = drawn("stage.taught.distillation.knowledge=sibling")
    told = batch_teachers(training.policy, batch, training.probe, stage=training.stage)
    # Only the first group has a correct rollout, and it is no sibling of its own.
    assert list(told) == [rollout.id for rollout in batch.groups[0].rollouts[1:]]


def test_the_teacher_is_the_policy_itself_with_the_answer_in_its_prompt(drawn):
    training, batch = drawn()
    targets = batch_teachers(training.policy, batch, training.probe, stage=training.stage)
    wrong_training, _ = drawn("stage.taught.distillation.knowledge=wrong_answer")
    others = batch_teachers(training.policy, batch, training.probe, stage=wrong_training.stage)
    rollout = batch.rollouts[0]
    problem = batch.groups[0].problem
    prompt = training.probe.encode_prompt(training.task.privileged_prompt(problem, problem.answer))
    (scores,) = training.probe.score([ScoreRequest(prompt_tokens=prompt, tokens=rollout.tokens)])
    target = targets[rollout.id]
    found = target.logprobs[target.ids == rollout.tokens[:, None]]
    assert found == pytest.approx(scores, abs=1e-5)
    assert not np.allclose(others[rollout.id].logprobs, target.logprobs)


@pytest.mark.parametrize("aggregation", ["token_mean", "constant", "sequence_mean", "prompt_mean"])
def test_the_term_has_a_global_count_of_its_own(drawn, aggregation):
    training, batch = drawn(
        "stage.taught.distillation.where=failed",
        "stage.taught.distillation.coefficient=0.5",
        f"stage.taught.aggregation={aggregation}",
    )
    targets = batch_teachers(training.policy, batch, training.probe, stage=training.stage)
    rows = training.rows(batch.groups, training.credits(batch), targets)
    assert not rows[0].distillation_weights.any()
    assert rows[0].policy_weights.any()
    total = sum(float(row.distillation_weights.sum()) for row in rows)
    # Of the 16 rollouts of up to 4 tokens 15 are taught; only `constant` counts the other, and what is not written.
    written = sum(len(row.tokens) for row in rows[1:])
    assert total == pytest.approx(0.5 * (written / 64 if aggregation == "constant" else 1.0), rel=1e-6)
    written += len(rows[0].tokens)
    expected = written / 64 if aggregation == "constant" else 1.0
    assert sum(float(row.policy_weights.sum()) for row in rows) == pytest.approx(expected, rel=1e-6)


def test_alone_leaves_the_policy_gradient_out(drawn):
    training, batch = drawn("stage.taught.distillation.alone=true")
    targets = batch_teachers(training.policy, batch, training.probe, stage=training.stage)
    credits = training.credits(batch)
    assert any(credit.advantages.any() for credit in credits)
    assert not any(row.advantages.any() for row in training.rows(batch.groups, credits, targets))
    training, batch = drawn()
    assert any(row.advantages.any() for row in training.rows(batch.groups, training.credits(batch), targets))


def test_a_stage_says_how_far_its_teacher_is_and_what_it_cost(tmp_path):
    assembly = finished(tmp_path / "run", chain("stage.taught.distillation.alone=true"))
    found = fingerprint(assembly)["metrics"]
    values = {
        name: [row["value"] for row in found if row["name"] == name]
        for name in ("teacher_divergence", "distillation_scored_tokens", "sampled_tokens")
    }
    assert values["distillation_scored_tokens"] == values["sampled_tokens"][:4]
    assert len(values["teacher_divergence"]) == 4
    assert all(value > 0 for value in values["teacher_divergence"])


OFF_POLICY = tuple(
    f"stage.taught.{setting}"
    for setting in (
        "updates_per_batch=2", "loss.name=clipped_surrogate", "distillation.top_k=3", "distillation.where=failed",
        "distillation.direction=jsd",
    )
)  # fmt: skip


@pytest.mark.parametrize("overrides", [(), OFF_POLICY], ids=["on-policy", "two updates"])
def test_a_run_in_pieces_equals_the_unbroken_one(overrides, tmp_path):
    recipe = chain(*overrides)
    whole = fingerprint(finished(tmp_path / "whole", recipe))
    assembly = make_run(tmp_path / "broken", recipe)
    resume(assembly, After(1))
    assert status(assembly.run) == {"taught": "stopped"}
    resume(assembly)
    assert differences(fingerprint(assembly), whole) == []


def test_distillation_changes_the_run(tmp_path):
    plain = tiny_recipe(STAGE.replace("[stage.distillation]\n", ""), head=CHAIN)
    one, two = fingerprint(finished(tmp_path / "one", plain)), fingerprint(finished(tmp_path / "two", chain()))
    assert "weights taught" in differences(one, two)


LAB = 'name = "t"\n[policy]\nkind = "tabular"\n[task]\nname = "lab"\n'
REFUSED = [
    (
        chain("task={name='paths'}"),
        RecipeError,
        "with knowledge = 'answer' needs privileged_prompt, which the task paths",
    ),
    (chain("policy.context=16"), ModelError, "a privileged prompt of 13 tokens and a rollout of 4 do not fit"),
    (
        chain("stage.taught.distillation.knowledge=feedback"),
        RecipeError,
        "distillation: knowledge = 'feedback' needs prompts that can hold any text; those of keychain cannot",
    ),
    (chain("stage.taught.bugs.averaging=rank"), RecipeError, "does not go with emulated bugs"),
    (tiny_recipe(STAGE, head=LAB), RecipeError, "needs a causal language model"),
]


@pytest.mark.parametrize(("recipe", "error", "part"), REFUSED, ids=["task", "context", "feedback", "bugs", "tabular"])
def test_what_cannot_be_is_refused_before_anything_is_trained(recipe, error, part, tmp_path):
    with pytest.raises(error) as caught:
        check_recipe(recipe, tmp_path, tmp_path)
    message = str(caught.value)
    assert "[[stage]] 'taught': distillation" in message
    assert part in message
    assert "\n" not in message


@pytest.mark.parametrize(("setting", "allowed"), [
    ("coefficient=0", "greater than 0"),
    ("knowledge=anything", "answer, feedback, lessons, sibling, solution, wrong_answer"),
    ("top_k=2000", "1024"),
    ("direction=both", "forward, jsd, reverse"),
    ("wher=all", "wher"),
])  # fmt: skip
def test_settings_out_of_bounds_are_refused(setting, allowed):
    with pytest.raises(RecipeError) as caught:
        chain(f"stage.taught.distillation.{setting}")
    assert "distillation" in str(caught.value)
    assert allowed in str(caught.value)


def test_a_good_recipe_passes(tmp_path):
    plan = check_recipe(chain(), tmp_path, tmp_path)["taught"]
    # A prompt of 9 tokens and a rollout of 4 are read once for 4 tokens.
    assert plan.cost.scored == pytest.approx(13 / 4)
    assert "teacher: 1 + U / T scored" in plan.formulas


def test_the_doctor_finds_nothing_wrong_with_a_stage_that_only_distils(tmp_path):
    finished(tmp_path / "run", chain("stage.taught.distillation.alone=true", "doctor.before=true", "doctor.every=2"))
