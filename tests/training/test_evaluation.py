"""Evaluations: held-out problems alone, the same for every stage, counted by hand."""

from dataclasses import replace
from pathlib import Path

import pytest
from tiny_runs import BASE, RL, tiny_recipe

from forkpoint.assembly import Assembly
from forkpoint.records import Group, Outcome, Problem, Verdict
from forkpoint.training.evaluation import evaluate, means
from forkpoint.verifiers.outside import written_rollout


@pytest.fixture(scope="module")
def assembly():
    recipe = tiny_recipe(BASE, RL, overrides=("evaluation.samples=2", "stage.rl.from=policy"))
    return Assembly(recipe=recipe, origin=Path(), run=Path("nowhere"))


@pytest.fixture(scope="module")
def context(assembly):
    return assembly.stage_context("rl", None, lambda: False)


def test_problems_are_held_out_and_the_same_for_every_stage(assembly, context):
    other = assembly.stage_context("base", None, lambda: False)
    assert all(problem.is_evaluation for problem in context.final_plan.problems)
    assert context.final_plan.problems == other.final_plan.problems
    assert context.plan.problems == context.final_plan.problems[:8]
    assert len(context.final_plan.problems) == 12


def test_an_evaluation_holds_every_sample_and_the_evidence_of_some(context):
    policy = context.load_policy(None, None)
    probe, _ = context.make_probe(policy)
    found, metrics = evaluate(probe, policy.texts, context.plan, stage="rl", update=4, name="final", keep=3)
    assert len(found.results) == 16
    assert [group.problem for group in found.groups] == list(context.plan.problems[:3])
    kept = {rollout.id for group in found.groups for rollout in group.rollouts}
    assert {result.rollout_id for result in found.results} == kept | {None}
    assert found.problems == context.plan.problems
    assert metrics["evaluation_correct"] == sum(result.correct for result in found.results) / 16
    assert metrics["evaluation_length"] == sum(result.length for result in found.results) / 16
    again, _ = evaluate(probe, policy.texts, context.plan, stage="rl", update=4, name="final", keep=0)
    assert [replace(result, rollout_id=None) for result in found.results] == list(again.results)


def test_the_means_leave_out_what_could_not_be_judged():
    problem = Problem(task="t", key="0", prompt="p", answer="a")
    rollouts = tuple(written_rollout(problem, "x" * size) for size in (1, 2, 6))
    verdicts = (
        Verdict(outcome=Outcome.CORRECT, correct=True),
        Verdict(outcome=Outcome.ERROR, correct=None),
        Verdict(outcome=Outcome.WRONG, correct=False),
    )
    group = Group(problem=problem, rollouts=rollouts, verdicts=verdicts)
    assert means([group]) == {"evaluation_correct": 0.5, "evaluation_length": 3.0}
    assert means([]) == {"evaluation_length": 0.0}
