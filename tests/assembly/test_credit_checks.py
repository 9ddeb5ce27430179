"""What a dry run says of credit: needs that are not met, lengths, and the plan of bias and cost."""

from functools import partial

import pytest
from tiny_runs import BASE, HEAD, RL, tiny_recipe

from forkpoint.assembly import build_policy, build_task
from forkpoint.assembly.checks import check_recipe
from forkpoint.assembly.credit_checks import (
    check_credit_lengths,
    check_declared,
    check_needs,
    credit_json,
    credit_line,
    plan_credit,
    try_credit,
)
from forkpoint.config.critic import CriticSettings
from forkpoint.credit.privileged import privileged
from forkpoint.errors import ModelError, RecipeError
from forkpoint.seeds import Key


def of(task, *overrides):
    """The stage, the task, a problem and a policy of a small recipe with another task."""
    head = HEAD.replace('name = "paths"\nbranches = 2\ndepth = 1\nwalk_length = 6\n', f'name = "{task}"\n')
    recipe = tiny_recipe(RL, overrides=("stage.rl.from=policy", *overrides), head=head)
    made = build_task(recipe.task)
    return recipe.get_stage("rl"), made, made.problem(Key.root(0)), partial(build_policy, recipe, None)


UNMET = [
    ("countdown", "state_group", ["needs state, which the task countdown lacks", "leave_one_out", "privileged"]),
    ("paths", "privileged", ["needs privileged_prompt, which the task paths lacks", "answer_progress", "state_group"]),
    ("keychain", "answer_progress", ["needs early_answer, which the task keychain lacks", "privileged"]),
    ("paths", "with_experts", ["needs experts"]),
]


@pytest.mark.parametrize(("task", "rule", "parts"), UNMET, ids=[f"{item[0]}-{item[1]}" for item in UNMET])
def test_a_need_that_is_not_met_is_named_with_what_works(task, rule, parts):
    stage, made, problem, _ = of(task)
    stage = stage.model_copy(update={"credit": stage.credit.model_copy(update={"rule": rule})})
    with pytest.raises(RecipeError) as caught:
        check_needs("[[stage]] 'rl'", stage, made, problem, by_character=True)
    message = str(caught.value)
    assert all(part in message for part in (f"credit.rule = '{rule}'", *parts)), message
    works = message.rpartition("what works here:")[2]
    assert rule not in works
    assert "\n" not in message


def test_a_wrapper_that_cannot_be_is_refused_like_a_rule():
    stage, made, problem, _ = of("paths", "stage.rl.credit.wrap=['step_check']")
    with pytest.raises(RecipeError, match=r"credit\.wrap = 'step_check' needs step_check.*fork_mask"):
        check_needs("here", stage, made, problem, by_character=True)


def test_steps_need_tokens_that_are_characters():
    stage, made, problem, _ = of("paths", "stage.rl.credit.rule=state_group")
    check_needs("here", stage, made, problem, by_character=True)
    with pytest.raises(RecipeError, match="characters as tokens"):
        check_needs("here", stage, made, problem, by_character=False)


WRONG = [
    (["stage.rl.credit.wrap=['fork_mas']"], ["credit.wrap = 'fork_mas'", "Did you mean 'fork_mask'?"]),
    (["stage.rl.credit.wrap=['os:system']"], ["credit.wrap = 'os:system' is not known"]),
    (["stage.rl.credit.wrap=['step_check']"], ["needs step_check"]),
    (
        ["stage.rl.credit.wrap=['fork_mask']", "stage.rl.credit.wrap_options={fork_mask={kep=0.1}}"],
        ["credit.wrap_options.fork_mask = 'kep'", "Did you mean 'keep'?"],
    ),
    (
        ["stage.rl.credit.wrap=['fork_mask']", "stage.rl.credit.wrap_options={fork_mask={keep='a'}}"],
        ["keep = 'a' must be float"],
    ),
    (
        ["stage.rl.credit.wrap=['fork_mask']", "stage.rl.credit.wrap_options={fork_mask={keep=2}}"],
        ["keep = 2 must lie above 0"],
    ),
]


@pytest.mark.parametrize(("overrides", "parts"), WRONG, ids=[item[1][0] for item in WRONG])
def test_a_mistake_in_a_wrapper_is_one_line(overrides, parts, tmp_path):
    with pytest.raises(RecipeError) as caught:
        check_recipe(tiny_recipe(BASE, RL, overrides=tuple(overrides)), tmp_path, tmp_path)
    message = str(caught.value)
    assert all(part in message for part in ("[[stage]] 'rl'", *parts)), message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("overrides", "part"),
    [
        (("stage.rl.credit.wrap=['fork_mask', 'fork_mask']",), "names a wrapper twice"),
        (("stage.rl.credit.wrap_options={fork_mask={keep=0.1}}",), "wrap_options = 'fork_mask' is not known"),
    ],
)
def test_a_recipe_that_contradicts_itself_does_not_parse(overrides, part):
    with pytest.raises(RecipeError, match=part):
        tiny_recipe(BASE, RL, overrides=overrides)


def test_knowledge_that_the_task_cannot_show_is_refused():
    stage, made, problem, _ = of("arithmetic", "stage.rl.credit.options={knowledge='feedback'}")
    stage = stage.model_copy(update={"credit": stage.credit.model_copy(update={"rule": "leave_one_out"})})
    options = {"knowledge": "feedback"}

    def rule(batch, probe, **_):
        return privileged(batch, probe, **options)

    stage = stage.model_copy(update={"credit": stage.credit.model_copy(update={"options": {}})})
    with pytest.raises(RecipeError, match="neither an answer nor written steps"):
        try_credit("here", stage, rule, made, problem)
    options["knowledge"] = "answer"
    try_credit("here", stage, rule, made, problem)


def test_feedback_needs_prompts_that_hold_any_text():
    options = ("stage.rl.credit.rule=privileged", "stage.rl.credit.options={knowledge='feedback'}")
    stage, made, problem, _ = of("arithmetic", *options)
    with pytest.raises(RecipeError, match=r"credit\.options: knowledge = 'feedback' needs prompts that can hold any"):
        check_needs("here", stage, made, problem, by_character=True)
    told = stage.model_copy(update={"credit": stage.credit.model_copy(update={"options": {"knowledge": "answer"}})})
    check_needs("here", told, made, problem, by_character=True)


@pytest.mark.parametrize(
    ("task", "rule", "fits", "part"),
    [
        ("arithmetic", "privileged", 46, "a privileged prompt of"),
        ("arithmetic", "answer_progress", 46, "a prompt with an early answer of"),
    ],
)
def test_what_is_asked_must_fit_the_model(task, rule, fits, part):
    stage, made, problem, policy = of(task, f"stage.rl.max_new_tokens={fits}")
    stage = stage.model_copy(update={"credit": stage.credit.model_copy(update={"rule": rule})})
    check_credit_lengths("here", stage, made, policy(), [problem])
    with pytest.raises(ModelError, match=part):
        check_credit_lengths("here", stage.model_copy(update={"max_new_tokens": 56}), made, policy(), [problem])


def test_a_dry_run_returns_a_plan_for_each_rl_stage(tmp_path):
    found = check_recipe(tiny_recipe(BASE, RL), tmp_path, tmp_path)
    assert list(found) == ["rl"]
    assert found["rl"].bias.unbiased is False
    assert found["rl"].token_equivalents == 0.0
    line = credit_line(found["rl"])
    assert line == (
        "gradient biased (aggregation = 'token_mean': divides by the batch's random count of tokens); "
        "credit costs nothing beside the rollouts"
    )


def test_the_plan_of_a_rule_that_costs():
    stage, made, problem, policy = of(
        "keychain", "task.positions=8", "task.keys=2", "stage.rl.max_new_tokens=8", "policy.context=64"
    )
    stage = stage.model_copy(update={"credit": stage.credit.model_copy(update={"rule": "privileged"})})
    plan = plan_credit(stage, made, policy(), problem)
    # Rollouts of one length: token_mean is no bias here; the prompt has 17 tokens, the rollout 8.
    assert plan.bias.reasons == ("privileged: " + plan.bias.reasons[0].partition(": ")[2],)
    assert plan.cost.scored == pytest.approx((17 + 8) / 8)
    assert plan.token_equivalents == pytest.approx(0.3 * 25 / 8)
    line = credit_line(plan)
    assert "gradient biased (privileged" in line
    assert "3.12 scored at 0.3" in line
    assert credit_json(plan)["cost_per_token"] == {"sampled": 0.0, "scored": 3.125, "verifier_calls": 0.0}
    assert credit_json(plan)["unbiased"] is False


def test_a_rule_of_somebody_else_has_no_known_cost():
    stage, made, problem, policy = of("paths", "stage.rl.aggregation=constant", "task.depth=1")
    stage = stage.model_copy(update={"credit": stage.credit.model_copy(update={"rule": "my.module:rule"})})
    plan = plan_credit(stage, made, policy(), problem)
    assert plan.cost is None
    assert credit_line(plan) == (
        "gradient bias not known (credit.rule = 'my.module:rule' is not ours); credit costs what its own rule asks for"
    )
    assert credit_json(plan)["token_equivalents"] is None


@pytest.mark.parametrize("rule", ["branch", "tree", "counterfactual"])
def test_continuations_do_not_go_with_dropped_truncation(rule):
    stage, made, problem, _ = of("paths", "stage.rl.truncated=drop", f"stage.rl.credit.rule={rule}")
    with pytest.raises(RecipeError, match="truncated = 'drop' does not go with"):
        check_needs("[[stage]] 'rl'", stage, made, problem, by_character=True)
    kept = stage.model_copy(update={"truncated": "wrong"})
    check_needs("[[stage]] 'rl'", kept, made, problem, by_character=True)


@pytest.mark.parametrize("rule", ["branch", "tree", "counterfactual"])
def test_continuations_do_not_go_with_scores(rule):
    stage, made, problem, _ = of("arithmetic", "stage.rl.reward.pays=score", f"stage.rl.credit.rule={rule}")
    with pytest.raises(RecipeError, match=r"reward\.pays = 'score' does not go with credit\.rule = "):
        check_needs("[[stage]] 'rl'", stage, made, problem, by_character=True)
    plain = stage.model_copy(update={"reward": stage.reward.model_copy(update={"pays": "correct"})})
    check_needs("[[stage]] 'rl'", plain, made, problem, by_character=True)


def own(*needs):
    def rule(batch, probe):
        return []

    rule.needs = needs
    return rule


@pytest.mark.parametrize(
    ("task", "needs", "message"),
    [
        ("paths", ("reply",), "needs replies, which the task paths lacks; what works here: .*leave_one_out"),
        ("paths", ("judge",), "needs a judge, which the recipe lacks"),
        ("paths", ("state", "critic"), r"needs a critic: give \[stage.critic\]; what works here"),
        ("countdown", ("state",), "needs state, which the task countdown lacks"),
        ("paths", ("sate",), r"credit.rule = 'my:rule': needs = 'sate' is not known. Did you mean 'state'\?"),
    ],
)
def test_a_rule_of_somebody_else_may_say_what_it_needs(task, needs, message):
    stage, made, problem, _ = of(task)
    stage = stage.model_copy(update={"credit": stage.credit.model_copy(update={"rule": "my:rule"})})
    with pytest.raises(RecipeError, match=message):
        check_declared("[[stage]] 'rl'", stage, own(*needs), made, problem, by_character=True)
    check_declared("[[stage]] 'rl'", stage, own(), made, problem, by_character=False)
    with_critic = stage.model_copy(update={"critic": CriticSettings()})
    if made.name == "paths":
        check_declared(
            "[[stage]] 'rl'", with_critic, own("state", "critic", "cut_points"), made, problem, by_character=False
        )
    check_declared("[[stage]] 'rl'", stage, own("characters"), made, problem, by_character=True)
    with pytest.raises(RecipeError, match="needs characters as tokens"):
        check_declared("[[stage]] 'rl'", stage, own("characters"), made, problem, by_character=False)
