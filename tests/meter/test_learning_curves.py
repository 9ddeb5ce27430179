"""Learning curves: when they end, what they cost, cells that are run once, and the savings made from them."""

import json
from dataclasses import asdict, replace

import numpy as np
import pytest
from meter_examples import decoder_subject

from forkpoint.config.curriculum import Curriculum
from forkpoint.config.divergence import Divergence
from forkpoint.credit import branch, leave_one_out
from forkpoint.errors import ForkpointError, StoreError
from forkpoint.meter.cells import LearningCell, curve_of, missing, run_cell
from forkpoint.meter.learning import Arm, Curve, Point, Race, _training, ended, headroom, learning_curve, to_target
from forkpoint.meter.savings import best_rates, ratio_of_costs, savings
from forkpoint.seeds import Key

RACE = Race(
    problems_per_update=2, group_size=2, max_tokens=48, point_tokens=12, evaluation_problems=8, evaluate_every=2
)
UNIFORM = Arm(name="leave_one_out", rule=leave_one_out)


def point(tokens: int, solved: float | None, trained: float = 0.5) -> Point:
    return Point(
        update=tokens, solved=solved, generated_tokens=tokens, equivalents=2.0 * tokens, seconds=1.0,
        trained_solved=trained,
    )  # fmt: skip


def subject():
    return decoder_subject(problems=2, group_size=2)


def cell(**changes) -> LearningCell:
    given = {"make": subject, "task": {"name": "keychain"}, "policy": "random", "arm": UNIFORM, "race": RACE, "seed": 1}
    return LearningCell(**{**given, **changes})


@pytest.mark.parametrize(
    ("solved", "trained", "end"),
    [
        ((0.1, 0.9, 0.91), (0.1, 0.9, 0.9), "target"),
        ((0.1, 0.95, None), (0.1, 0.9, 0.9), None),
        ((0.1, None, 0.95), (0.1, 0.9, 0.9), None),
        ((0.1, 0.89, 0.95), (0.1, 0.9, 0.9), None),
        ((0.1, None, None, None, None, None), (0.1, 0.8, 0.39, 0.39, 0.39, 0.39), "collapse"),
        ((0.1, None, None, None, None, None), (0.1, 0.8, 0.39, 0.39, 0.41, 0.39), None),
        ((0.1, None, None, None, None, None), (0.1, 0.12, 0.03, 0.03, 0.03, 0.03), None),
        ((0.1, None, None, None, None, None), (0.1, 0.14, 0.03, 0.03, 0.03, 0.03), "collapse"),
    ],
)
def test_a_curve_ends_at_the_target_met_twice_or_when_it_collapsed(solved, trained, end) -> None:
    points = [point(10 * place, *pair) for place, pair in enumerate(zip(solved, trained, strict=True))]
    assert ended(points, Race(max_tokens=1000)) == end
    assert ended(points, Race(max_tokens=10)) == (end or "budget")


def test_the_cost_is_that_of_the_first_of_the_two() -> None:
    curve = Curve(points=(point(0, 0.1), point(5, 0.95), point(9, 0.8), point(12, 0.9), point(15, 0.9)), end="target")
    assert to_target(curve, 0.9) == 12
    assert to_target(curve, 0.9, "equivalents") == 24
    assert to_target(curve, 0.95) is None


def test_a_curve_counts_the_tokens_of_its_rule_and_not_those_of_evaluations() -> None:
    plain = learning_curve(subject(), UNIFORM, RACE, seed=0)
    tokens = [each.generated_tokens for each in plain.points]
    # Two problems, two rollouts of at most three tokens: twelve a point at most, some end early.
    assert all(4 <= more <= 12 for more in np.diff(tokens))
    assert plain.end == "budget"
    assert tokens[-1] >= 48 > tokens[-2]
    assert [each.solved is not None for each in plain.points][:5] == [True, True, False, True, False]
    assert plain.points[-1].equivalents == tokens[-1], "the verifier's call for each rollout is everybody's"
    branching = Arm(name="branch", rule=branch, options={"cuts": "every:1", "continuations": 2})
    dear = learning_curve(subject(), branching, RACE, seed=0)
    assert dear.points[1].generated_tokens > tokens[1]
    assert dear.points[1].equivalents > dear.points[1].generated_tokens
    assert dear.points[0].solved == plain.points[0].solved, "arms of a seed are evaluated on the same draws"


def test_an_arm_may_choose_its_problems() -> None:
    chosen = Curriculum(levels=(0.0, 1.0), oversample=2)
    plain, picked = UNIFORM, replace(UNIFORM, name="selected", curriculum=chosen)
    task, policy = cell(arm=plain).asked, cell(arm=picked).asked
    assert "curriculum" not in task["arm"], "cells that were run before arms had one are still theirs"
    assert policy["arm"]["curriculum"]["levels"] == [0.0, 1.0]
    steps = [_training(subject(), arm, RACE, Key.root(0))[0].unit(1)[0] for arm in (plain, picked)]
    assert "pass_rate_unfiltered" not in steps[0].metrics
    assert steps[1].metrics["selected_share"] == 0.5, "two of four candidates"


def test_an_arm_may_be_held_near_its_start() -> None:
    charge = Divergence(coefficient=0.5, kind="token_k2", where="uncredited")
    held = replace(UNIFORM, name="anchored", divergence=charge)
    assert cell(arm=held).asked["arm"]["divergence"]["where"] == "uncredited"
    reference = _training(subject(), held, RACE, Key.root(0))[0].reference
    assert reference is not None
    assert reference.where == "uncredited"
    last = learning_curve(subject(), held, RACE, seed=0).points[-1]
    assert last.equivalents == pytest.approx(1.3 * last.generated_tokens), "the start reads every rollout once"


def test_a_ratio_is_to_the_arm_that_is_named() -> None:
    def document(name: str, tokens: int) -> dict:
        points = [list(asdict(point(spent, solved)).values()) for spent, solved in ((0, 0.1), (tokens, 0.9))]
        more = list(asdict(point(2 * tokens, 0.9)).values())
        arm = {"name": name, "learning_rate": 1e-3}
        return {"arm": arm, "race": asdict(RACE), "seed": 0, "end": "target", "points": [*points, more]}

    documents = [document("mixed", 60), document("selected", 20)]
    assert [row.ratio for row in savings(documents, key=Key.root(0))] == [None, None]
    found = [row.ratio for row in savings(documents, key=Key.root(0), reference="mixed")]
    assert np.allclose(found, [1.0, 3.0])


def test_a_rate_of_zero_changes_nothing_and_a_high_one_does() -> None:
    race = replace(RACE, group_size=8, max_tokens=400, point_tokens=48, evaluation_problems=64, evaluate_every=1)
    still = learning_curve(subject(), replace(UNIFORM, learning_rate=1e-12), race, seed=0)
    wild = learning_curve(subject(), replace(UNIFORM, learning_rate=0.1), race, seed=0)
    assert [each.trained_solved for each in still.points[:2]] == [each.trained_solved for each in wild.points[:2]]
    assert [each.solved for each in still.points[2:]] != [each.solved for each in wild.points[2:]]


def test_settings_out_of_bounds_are_refused_by_name() -> None:
    with pytest.raises(ForkpointError, match="leave_one_out: "):
        learning_curve(subject(), replace(UNIFORM, learning_rate=7.0), RACE, seed=0)
    masked = Arm(name="masked", rule=leave_one_out, wrap=("fork_mask",), wrap_options={"fork_mask": {"keep": 2}})
    with pytest.raises(ForkpointError, match="masked: fork_mask: keep = 2"):
        learning_curve(subject(), masked, RACE, seed=0)


def test_a_cell_is_run_once_and_gives_the_same_curve(tmp_path) -> None:
    first = run_cell(cell(), tmp_path)
    assert not missing([cell()], tmp_path)
    assert missing([cell(seed=2)], tmp_path)
    again = run_cell(cell(make=lambda: pytest.fail("run twice")), tmp_path)
    assert json.loads(json.dumps(first)) == again
    unstored = run_cell(cell(), None)
    for mine, theirs in zip(curve_of(again).points, curve_of(unstored).points, strict=True):
        assert replace(mine, seconds=0.0) == replace(theirs, seconds=0.0)


def test_a_cell_keeps_what_was_told_of_its_updates(tmp_path) -> None:
    seen: dict[int, float] = {}

    def watch(update, metrics):
        seen[update] = metrics["correct"]

    found = run_cell(cell(), tmp_path, watch=watch, told=lambda: {"updates": len(seen)})
    assert list(seen) == list(range(1, found["points"][-1][0] + 1))
    assert found["updates"] == run_cell(cell(), tmp_path)["updates"] == len(seen)


def test_a_cell_of_other_settings_is_not_taken_for_this_one(tmp_path) -> None:
    run_cell(cell(), tmp_path)
    with pytest.raises(StoreError, match="other settings"):
        run_cell(cell(race=replace(RACE, target=0.5)), tmp_path)
    (place,) = tmp_path.glob("*.json")
    place.write_text("{")
    with pytest.raises(StoreError, match="cannot be read"):
        run_cell(cell(), tmp_path)


def document(arm: str, rate: float, seed: int, tokens: int, end: str = "target") -> dict:
    solved = 0.95 if end == "target" else 0.5
    points = [point(0, 0.1), point(tokens, solved), point(tokens + 10, solved)]
    rows = [[getattr(each, name) for name in Point.__dataclass_fields__] for each in points]
    asked = {"name": arm, "learning_rate": rate}
    return {"arm": asked, "race": {"target": 0.9, "max_tokens": 1000}, "seed": seed, "end": end, "points": rows}


def test_savings_are_ratios_to_the_uniform_arm_at_its_best_rate() -> None:
    made = [
        *(document("leave_one_out", 1e-3, seed, 400 * (seed + 1)) for seed in range(3)),
        *(document("leave_one_out", 3e-3, seed, 100, "budget") for seed in range(3)),
        *(document("oracle", 1e-3, seed, 100 * (seed + 1)) for seed in range(3)),
        *(document("branch", 1e-3, seed, 200 * (seed + 1)) for seed in range(3)),
    ]
    rows = {(row.arm, row.learning_rate): row for row in savings(made, key=Key.root(0))}
    assert rows["oracle", 1e-3].ratio == pytest.approx(4)
    assert rows["oracle", 1e-3].headroom == pytest.approx(1)
    found = rows["branch", 1e-3]
    assert found.ratio == pytest.approx(2)
    assert found.headroom == pytest.approx(0.5)
    assert found.interval == pytest.approx((2, 2)), "the same ratio at every seed"
    assert found.costs["generated_tokens"] == 400
    assert found.costs["equivalents"] == 800
    lost = rows["leave_one_out", 3e-3]
    assert lost.solved == 0
    assert lost.costs["generated_tokens"] == pytest.approx(1000), "unsolved seeds count the whole budget"
    assert lost.costs["equivalents"] == pytest.approx(2000)
    assert best_rates(list(rows.values()))["leave_one_out"].learning_rate == 1e-3


def test_there_is_no_share_of_no_headroom() -> None:
    assert headroom(100.0, 50.0, 100.0) is None
    made = [document("leave_one_out", 1e-3, 0, 100), document("branch", 1e-3, 0, 50)]
    (_, row) = savings(made, key=Key.root(0))
    assert (row.headroom, row.interval) == (None, None)
    assert row.ratio == pytest.approx(2)


def test_seeds_that_both_have_are_pairs() -> None:
    first, second = {0: 100.0, 1: 200.0, 2: 400.0, 3: 5.0}, {0: 50.0, 1: 100.0, 2: 200.0}
    value, interval = ratio_of_costs(first, second, Key.root(0))
    assert value == pytest.approx(2)
    assert interval == pytest.approx((2, 2))
