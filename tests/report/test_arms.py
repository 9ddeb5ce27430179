import json
from dataclasses import replace

import pytest
import report_examples as examples

from forkpoint.records import Outcome
from forkpoint.report import arms, arms_json, arms_table, wilson_interval
from forkpoint.report.arms import compare_with_parents
from forkpoint.store import Evaluation, EvaluationResult, RunReader, StageStatus


def result(key, *, correct, length, index=0, parts=None):
    outcome = {True: Outcome.CORRECT, False: Outcome.WRONG, None: Outcome.ERROR}[correct]
    return EvaluationResult(
        problem_key=key, index=index, correct=correct, outcome=outcome, length=length, parts=parts or {}
    )


def walked(entered, left, moves):
    return {"wrong_entered": float(entered), "wrong_left": float(left), "moves": float(moves)}


def run_with(folder, results, *, stages=("rlvr",), recipe=True):
    with examples.new_run(folder) as writer:
        for stage in stages:
            writer.begin_stage(stage, kind="rl", parent="base" if stage == "rlvr" else None, updates_total=3)
            writer.record_evaluation(stage, 3, Evaluation(name="final", results=results[stage]))
            writer.finish_stage(stage)
    if not recipe:
        (folder / "recipe.toml").unlink()
    with RunReader(folder) as reader:
        return arms(reader), compare_with_parents(reader, arms(reader))


def test_an_arm_by_hand(tmp_path):
    results = [
        result("a", correct=True, length=3, parts=walked(0, 0, 3)),
        result("b", correct=True, length=9, parts=walked(2, 2, 9)),
        result("c", correct=False, length=3, parts=walked(1, 0, 3)),
        result("d", correct=False, length=24, parts=walked(5, 4, 24)),
        result("e", correct=None, length=1),
    ]
    [arm], _ = run_with(tmp_path, {"rlvr": results})
    assert arm.solve_rate == 0.5
    assert arm.interval == wilson_interval(2, 4)
    # (3 + 9 + 24 + 24) / 4: both unsolved count as the budget, the short one too.
    assert (arm.moves, arm.budget, arm.unit) == (15.0, 24, "moves")
    assert arm.left_wrong_branch == pytest.approx(6 / 8)
    assert (arm.problems, arm.samples, arm.unjudged) == (4, 4, 1)
    assert (arm.name, arm.kind, arm.parent) == ("rlvr", "rl", "base")
    assert arm.moves_interval[0] <= arm.moves <= arm.moves_interval[1]


def test_samples_of_a_problem_are_averaged_first(tmp_path):
    results = [result("a", correct=True, length=5, index=i) for i in range(3)] + [result("b", correct=False, length=5)]
    [arm], _ = run_with(tmp_path, {"rlvr": results})
    assert (arm.solve_rate, arm.moves) == (0.5, (5 + 24) / 2)
    assert (arm.problems, arm.samples, arm.unit) == (2, 4, "tokens")
    assert arm.interval == wilson_interval(1, 2)
    assert (arm.left_wrong_branch, arm.left_interval) == (None, None)


def test_questions_are_resampled_not_samples(tmp_path):
    """Sixteen samples of each of two problems tell little about other problems: the interval must stay wide."""
    results = [
        result(key, correct=i < count, length=5, index=i) for key, count in (("a", 2), ("b", 14)) for i in range(16)
    ]
    [arm], _ = run_with(tmp_path, {"rlvr": results})
    assert arm.solve_rate == 0.5
    assert arm.interval == (2 / 16, 14 / 16)


def test_no_wrong_branch_entered(tmp_path):
    [arm], _ = run_with(tmp_path, {"rlvr": [result("a", correct=True, length=3, parts=walked(0, 0, 3))]})
    assert arm.left_wrong_branch is None


def test_without_a_recipe_the_budget_is_the_longest_rollout(tmp_path):
    results = [result("a", correct=True, length=4), result("b", correct=False, length=2)]
    [arm], _ = run_with(tmp_path, {"rlvr": results}, recipe=False)
    assert (arm.budget, arm.moves) == (4, 4.0)


def test_only_finished_stages_are_arms(tmp_path):
    results = [result("a", correct=True, length=4)]
    with examples.new_run(tmp_path) as writer:
        for stage, status in (("base", StageStatus.DONE), ("rlvr", StageStatus.STOPPED)):
            writer.begin_stage(stage, kind="rl")
            writer.record_evaluation(stage, 0, Evaluation(name="final", results=results))
            writer.finish_stage(stage, status=status)
        writer.begin_stage("late", kind="sft")
        writer.finish_stage("late")
        writer.begin_stage("broken", kind="sft")
        writer.record_evaluation("broken", 0, Evaluation(name="final", results=[replace(results[0], correct=None)]))
        writer.finish_stage("broken")
    with RunReader(tmp_path) as reader:
        assert [arm.name for arm in arms(reader)] == ["base"]


def test_an_arm_is_compared_with_its_parent_on_shared_problems(tmp_path):
    base = [result(key, correct=key in "ab", length=4) for key in "abcdx"]
    rlvr = [result(key, correct=key in "bcd", length=4) for key in "dcbay"]
    _, gaps = run_with(tmp_path, {"base": base, "rlvr": rlvr}, stages=("base", "rlvr"))
    assert list(gaps) == ["rlvr"]
    # Of a, b, c, d the arm solved b, c, d and the parent a, b.
    assert (gaps["rlvr"].value, gaps["rlvr"].problems) == (0.25, 4)
    assert gaps["rlvr"].p_value == 1.0


def test_arms_as_data_and_as_a_table(tmp_path):
    folder = examples.small_run(tmp_path / "run")
    with RunReader(folder) as reader:
        found = arms(reader)
    tree = json.loads(json.dumps(arms_json(found), allow_nan=False))
    assert [arm["name"] for arm in tree["arms"]] == ["base", "rlvr"]
    assert {"name", "solve_rate", "interval", "moves", "left_wrong_branch"} <= set(tree["arms"][0])
    assert tree["arms"][1]["interval"] == list(found[1].interval)
    assert (found[1].updates, found[1].sampled_tokens, found[1].problems) == (20, 100_000, 40)
    assert found[1].seconds == pytest.approx(18.0)
    table = arms_table(found)
    assert {len(row) for row in table} == {7}
    assert table[2][:2] == ["rlvr", f"{found[1].solve_rate:.3f}"]
    assert arms_table([])[0][0] == "arm"
    plain = [replace(arm, left_wrong_branch=None, unit="tokens") for arm in found]
    assert "wrong branches left" not in arms_table(plain)[0]
    assert "mean tokens, unsolved = budget" in arms_table(plain)[0]
