"""`transfer`: hand-worked gains at home and elsewhere, what is sick, and a run that is evaluated on another task."""

from dataclasses import dataclass

import numpy as np
import pytest
from tiny_runs import BASE, HEAD, RL, After, differences, fingerprint, finished, make_run, resume, tiny_recipe

from forkpoint.assembly.checks import check_recipe
from forkpoint.audits.rows import Row, records_of
from forkpoint.audits.table import run_audits
from forkpoint.audits.transfer import carried_over, transfer
from forkpoint.audits.windows import latest
from forkpoint.cli.worker import work
from forkpoint.errors import ForkpointError, RecipeError
from forkpoint.records import Severity
from forkpoint.store import RunReader
from forkpoint.store.columns import stage_records

OWN, OTHER = "final", "shifted:longer"


def evaluated(stage, base=None, *, problems=100, **solved):
    """The final evaluations of a stage: how many problems of each purpose were solved."""
    names = {"own": OWN, "other": OTHER}
    rows = [
        Row(id=f"{stage}-{kind}-{place}", problem=f"{kind}-{place}", stage=stage, purpose=names[kind], update=4,
            correct=place < count, length=3)
        for kind, count in solved.items() for place in range(problems)
    ]  # fmt: skip
    return records_of(rows, base=base)


def found(before, after, **more):
    (finding,) = transfer(evaluated("rl", base=evaluated("base", **before, **more), **after, **more))
    return finding


def test_half_of_a_gain_carries_over():
    finding = found({"own": 20, "other": 20}, {"own": 80, "other": 50})
    assert finding.severity is Severity.INFO
    assert finding.value == pytest.approx(0.3)
    assert (
        "On longer 20.0% became 50.0%, on its own task 20.0% became 80.0%: 50% of the gain carries over"
        in finding.claim
    )
    assert finding.interval[0] < 0.3 < finding.interval[1]


def test_the_interval_of_the_share_by_hand():
    # a = 0.5 in [0.4, 0.6], b = 0.25 in [0.05, 0.45]: half widths 0.1 and 0.2, so the half width of b / a is
    # sqrt((0.2 / 0.5)^2 + (0.25 * 0.1 / 0.25)^2) = sqrt(0.16 + 0.01).
    own, other = Gain(value=0.5, interval=(0.4, 0.6)), Gain(value=0.25, interval=(0.05, 0.45))
    share, (low, high) = carried_over(own, other)
    assert share == pytest.approx(0.5)
    assert (low, high) == pytest.approx((0.5 - 0.17**0.5, 0.5 + 0.17**0.5))
    assert carried_over(Gain(value=0.5, interval=(-0.1, 1.1)), other) is None


@dataclass
class Gain:
    value: float
    interval: tuple[float, float]

    @property
    def rises(self):
        return self.interval[0] > 0


@pytest.mark.parametrize(
    ("after", "severity"),
    [(45, Severity.INFO), (35, Severity.INFO), (25, Severity.WARNING), (5, Severity.CRITICAL)],
)
def test_what_was_solved_before_and_is_lost_elsewhere_is_sick(after, severity):
    # Newcombe's interval of 0.50 against 0.35 reaches 0.01, of 0.25 it ends at -0.12, of 0.05 at -0.34.
    finding = found({"own": 20, "other": 50}, {"own": 80, "other": after})
    assert finding.severity is severity
    assert finding.value == pytest.approx((after - 50) / 100)


def test_without_a_gain_at_home_nothing_can_carry_over():
    assert "carries over" not in found({"own": 50, "other": 20}, {"own": 55, "other": 40}).claim


def test_wrong_rollouts_elsewhere_are_the_evidence():
    finding = found({"own": 2, "other": 2}, {"own": 8, "other": 7}, problems=10)
    assert finding.evidence == ("rl-other-7", "rl-other-8", "rl-other-9")


def test_what_is_not_there_is_said_or_left_out():
    alone = evaluated("rl", own=5, other=5, problems=10)
    assert transfer(alone) == []
    plain = evaluated("rl", base=evaluated("base", own=5, problems=10), own=5, problems=10)
    (result,) = run_audits(plain, only=["transfer"])
    assert (result.ran, result.lacks) == (False, {"shifted tasks": ("shifted",)})
    half = evaluated("rl", base=evaluated("base", other=5, problems=10), other=2, problems=10)
    assert "its own task" not in transfer(half)[0].claim


def test_the_last_window_of_a_stage_leaves_other_tasks_out():
    records = evaluated("sft", own=5, other=5, problems=10)
    assert np.flatnonzero(latest(records)).tolist() == list(range(10))


SHIFTED = (
    HEAD + '[[evaluation.shifted]]\nname = "three"\nproblems = 10\ntask = { name = "paths", branches = 3, depth = 1 }\n'
)


def test_a_run_is_evaluated_on_the_other_task_too(tmp_path):
    recipe = tiny_recipe(BASE, RL, head=SHIFTED)
    whole = finished(tmp_path / "run", recipe)
    with RunReader(whole.run) as reader:
        evaluation = reader.evaluations("rl", 6, "shifted:three")
        assert len(evaluation.correct) == 10
        assert {len(reader.problem(key).metadata["branches"]) for key in evaluation.problem_keys} == {3}
        assert "shifted:three correct" in reader.metric_names("rl")
        assert len(reader.evaluations("rl", 6, "final").correct) == 12
    records = stage_records(whole.run, "rl", base=stage_records(whole.run, "base"))
    (finding,) = transfer(records)
    assert finding.claim.startswith("On three ")
    plain = finished(tmp_path / "plain", tiny_recipe(BASE, RL))
    same = [name for name in differences(fingerprint(whole), fingerprint(plain)) if name.startswith("weights")]
    assert same == []
    broken = make_run(tmp_path / "broken", recipe)
    work(broken, After(8))
    resume(broken)
    assert differences(fingerprint(broken), fingerprint(whole)) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("depth = 1", "depth = 30"), "at most 62 can be named"),
        (("branches = 3", "branches = 25"), "do not fit the model's context"),
        (('name = "paths", branches', 'name = "pahts", branches'), "evaluation.shifted"),
    ],
)
def test_a_task_that_does_not_fit_is_refused_first(tmp_path, change, message):
    recipe = tiny_recipe(BASE, RL, head=SHIFTED.replace(*change))
    with pytest.raises(ForkpointError, match=message):
        check_recipe(recipe, tmp_path, tmp_path / "run")


def test_a_name_is_given_once():
    twice = SHIFTED + SHIFTED.removeprefix(HEAD)
    with pytest.raises(RecipeError, match="names a task twice"):
        tiny_recipe(BASE, head=twice)
