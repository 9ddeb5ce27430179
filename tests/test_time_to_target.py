"""Time to target against TRL: what is counted, the split of the gain by hand, the mask, the cells; without TRL."""

import importlib
import json
import sys
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch

from forkpoint.errors import ForkpointError, StoreError
from forkpoint.meter.cells import curve_of
from forkpoint.meter.learning import Point, Race
from forkpoint.meter.subject import Subject
from forkpoint.policies.causal import CausalPolicy
from forkpoint.policies.texts import Texts, alphabet_tokenizer
from forkpoint.policies.tiny import attend_prompt, build_decoder
from forkpoint.records import StopReason
from forkpoint.seeds import Key
from forkpoint.tasks.keychain import KeyChain
from forkpoint.tasks.keychain import Settings as KeyChainSettings
from forkpoint.tasks.paths import Paths
from forkpoint.tasks.paths import Settings as PathsSettings
from forkpoint.tasks.protocol import split_problems

BENCHMARKS = str(Path(__file__).resolve().parent.parent / "benchmarks")
RACE = Race(problems_per_update=2, group_size=2, max_tokens=400, point_tokens=8, evaluate_every=3)


@pytest.fixture(scope="module")
def benchmark():
    sys.path.insert(0, BENCHMARKS)
    yield importlib.import_module("time_to_target")
    sys.path.remove(BENCHMARKS)


@pytest.fixture(scope="module")
def learning(benchmark):
    return importlib.import_module("trl_learning")


def subject_of(task, *, hidden=False, budget=4):
    tokenizer = alphabet_tokenizer(task.alphabet)
    model = build_decoder(
        shape="qwen3", vocabulary=len(tokenizer), layers=2, width=16, heads=2, context=128, key=Key.root(3)
    )
    policy = CausalPolicy(attend_prompt(model) if hidden else model, Texts(tokenizer))
    return Subject(policy=policy, task=task, key=Key.root(0), max_new_tokens=budget)


def keychain(**settings):
    return KeyChain(KeyChainSettings(positions=4, keys=2, filler="lookup", **settings))


def problems_of(subject, count=4):
    return split_problems(subject.task, Key.root(1), count, evaluation=False)


class Clock:
    """One second passes at every look, ten in an evaluation."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        self.now += 1.0
        return self.now

    def evaluate(self, shares):
        left = iter(shares)

        def found(update):
            self.now += 10.0
            return next(left)

        return found


def recorder(learning, shares, race=RACE):
    clock = Clock()
    made = learning.Recorder(name="trl", race=race, every=2, evaluate=clock.evaluate(shares), clock=clock)
    made.start()
    return made


def test_a_curve_ends_at_the_second_evaluation_on_target_and_evaluations_cost_no_time(learning):
    watch = recorder(learning, [0.2, 0.5, 0.91, 0.95])
    for update, right in enumerate([0, 0, 4, 4, 4, 4, 4, 4, 4, 4], 1):
        watch.completed([4, 4, 4, 3], [True] * right + [False] * (4 - right))
        watch.updated(update)
        if watch.end:
            break
    # The mean of the last three points is 0.2, 0.07, 0.4, 0.67, 1, 1; evaluations are due at the third point and near.
    assert [point.update for point in watch.points] == [0, 2, 4, 6, 8, 10]
    assert [point.solved for point in watch.points] == [0.2, None, 0.5, None, 0.91, 0.95]
    assert [point.trained_solved for point in watch.points] == [0.2, 0.0, 1.0, 1.0, 1.0, 1.0]
    assert [point.generated_tokens for point in watch.points] == [0, 30, 60, 90, 120, 150]
    # One look at the clock opens each stretch, one closes it.
    assert [point.seconds for point in watch.points] == [0, 1, 2, 3, 4, 5]
    assert watch.end == "target"


def test_a_curve_without_the_target_ends_with_its_tokens(learning):
    watch = recorder(learning, [0.2] * 9)
    for update in range(1, 100):
        watch.completed([100], [False, True])
        watch.updated(update)
        if watch.end:
            break
    assert (update, watch.end, watch.points[-1].generated_tokens) == (4, "budget", 400)


@pytest.mark.parametrize("hidden", [True, False])
def test_the_plain_model_behind_the_mask_sees_what_the_policy_sees(learning, hidden):
    subject = subject_of(keychain(), hidden=hidden)
    problems = problems_of(subject)
    policy = subject.policy
    length = learning.prompt_length(policy, [problem.prompt for problem in problems])
    policy.model.config.use_cache = True

    class Trainer:
        model = policy.model
        generation_config = None

        @staticmethod
        def _get_per_token_logps_and_entropies(model, ids, shown, kept):
            logits = model(input_ids=ids, attention_mask=shown).logits[:, -kept - 1 : -1]
            return torch.log_softmax(logits, -1).gather(-1, ids[:, -kept:, None])[..., 0], None, None

    with torch.random.fork_rng():
        torch.manual_seed(0)
        Trainer.generation_config = policy.model.generation_config
        Trainer.generation_config.update(do_sample=True, max_new_tokens=4, pad_token_id=0)
        if hidden:
            with pytest.raises(ForkpointError, match=r"nats; at most 0\.0001"):
                learning.check_same_policy(Trainer, subject, problems)
            learning.hide_outputs(policy, length)
        assert learning.check_same_policy(Trainer, subject, problems) < 1e-5


def test_problems_are_those_of_our_curve(learning):
    subject = subject_of(keychain())
    found = learning.training_problems(subject, RACE, Key.root(5))
    # 400 tokens, four rollouts of at least one token: a hundred updates.
    assert len(found) == 200
    second = split_problems(subject.task, Key.root(5).child("problems", 2), 2, evaluation=False)
    assert [problem.key for problem in found[2:4]] == [problem.key for problem in second]


def test_completions_are_judged_by_the_guarded_verifier(learning):
    subject = subject_of(keychain())
    (problem,) = problems_of(subject, 1)
    right = subject.policy.texts.encode(subject.task.solve(problem)).tolist()
    watch = recorder(learning, [0.1])
    reward = learning.make_reward(subject, {problem.prompt: problem}, watch)
    short = [*right[:-1], subject.policy.texts.eos_id]
    assert reward(prompts=[problem.prompt] * 2, completion_ids=[right, short]) == [1.0, 0.0]
    assert (watch.tokens, watch.right) == (8, [True, False])


def test_a_walk_ends_at_its_goal(learning):
    subject = subject_of(Paths(PathsSettings(branches=2, depth=2)), budget=6)
    (problem,) = problems_of(subject, 1)
    texts = subject.policy.texts
    walk = texts.encode(problem.answer).tolist()
    stop = texts.encode(subject.task.stop(problem)[0]).tolist()[0]
    assert learning.cut([*walk, 0, 0], {stop, texts.eos_id}) == walk
    assert learning.cut([5, 6], {stop, texts.eos_id} - {5, 6}) == [5, 6]
    record = learning.completed(subject, problem, walk)
    assert (record.stop_reason, record.text) == (StopReason.STOP, problem.answer)
    assert learning.completed(subject, problem, walk[:-1]).stop_reason is StopReason.LENGTH
    assert learning.completed(subject, problem, [*walk[:-1], texts.eos_id]).stop_reason is StopReason.EOS
    np.testing.assert_array_equal(record.tokens, walk)


def test_prompts_of_two_lengths_are_refused(learning):
    with pytest.raises(ForkpointError, match=r"one length, not \[2, 3\]"):
        learning.prompt_length(subject_of(keychain()).policy, ["aa", "aab"])


def document(arm, seed, tokens, seconds, *, rate=1e-3, end="target"):
    solved = 0.95 if end == "target" else 0.4
    points = [
        Point(update=i, solved=solved if i else 0.1, generated_tokens=tokens * i, equivalents=0.0, seconds=seconds * i,
              trained_solved=0.5)
        for i in range(3)
    ]  # fmt: skip
    rows = [[getattr(point, name) for name in Point.__dataclass_fields__] for point in points]
    settings = {"name": arm, "learning_rate": rate}
    return {"arm": settings, "race": {"target": 0.9, "max_tokens": 4000}, "seed": seed, "end": end, "points": rows}


def test_the_gain_splits_into_engine_and_credit(benchmark):
    # TRL: 1000 tokens in 8 s.  Ours: 500 in 1 s: engine (8 / 1000) / (1 / 500) = 4, credit 2.
    found = [document("trl", seed, 1000, 8.0) for seed in range(3)]
    found += [document("leave_one_out", seed, 500, 1.0) for seed in range(3)]
    found += [document("leave_one_out", seed, 400, 9.0, rate=3e-4, end="budget") for seed in range(3)]
    theirs, ours = benchmark.gains(found, Key.root(0))
    assert (theirs.arm, theirs.ratio, theirs.engine, theirs.credit) == ("trl", 1.0, 1.0, 1.0)
    assert (ours.learning_rate, ours.solved, ours.seeds) == (1e-3, 3, 3)
    assert (ours.tokens, ours.seconds) == (500, 1.0)
    assert ours.ratio == pytest.approx(8.0)
    assert ours.engine == pytest.approx(4.0)
    assert ours.credit == pytest.approx(2.0)
    assert ours.interval == pytest.approx((8.0, 8.0))


def test_seeds_that_one_side_lacks_do_not_count(benchmark):
    found = [document("trl", 0, 1000, 8.0), document("trl", 1, 9000, 90.0), document("leave_one_out", 0, 500, 1.0)]
    ours = benchmark.gains(found, Key.root(0))[1]
    assert (ours.ratio, ours.engine, ours.credit, ours.interval) == pytest.approx((8.0, 4.0, 2.0, None))
    lonely = benchmark.gains([document("leave_one_out", 0, 500, 1.0)], Key.root(0))
    assert (lonely[0].ratio, lonely[0].engine) == (None, None)


def test_an_unsolved_seed_counts_at_the_whole_budget_and_makes_a_bound(benchmark, capsys):
    # TRL broke down after 2000 of 4000 tokens, 16 s: it is charged 32 s.
    found = [document("trl", 0, 1000, 8.0, end="collapse"), document("leave_one_out", 0, 500, 1.0)]
    rows = benchmark.gains(found, Key.root(0))
    assert rows[1].ratio == pytest.approx(32.0)
    benchmark.print_table({"paths": rows})
    lines = capsys.readouterr().out.splitlines()
    assert "| 0 of 1, 1 collapsed | 32 | 4 | 8.000 |" in lines[2]
    assert lines[3].endswith("| >= 32.00 | 4.00 | >= 8.00 |")


def arguments(**given):
    usual = {"what": "table", "tracks": None, "best": None, "quick": False, "cache": Path("nowhere"), "tuning": False}
    return Namespace(**usual | given)


def test_the_experiment_names_cells_that_can_be_made(benchmark, tmp_path):
    for quick in (False, True):
        plan = benchmark.read_plan(arguments(quick=quick), tmp_path)
        tuned = benchmark.asked_cells("tune", plan)
        assert len({(each.track, each.arm, each.rate, each.seed) for each in tuned}) == len(tuned)
        names = [benchmark.make_cell(each, plan).name for each in tuned]
        assert names[0].startswith("trl-")
        arms = [[each.arm for each in tuned if each.track == track] for track in plan.experiment["tracks"]]
        assert all(each.count("trl") == each.count("leave_one_out") for each in arms)
    assert {each.seed for each in benchmark.asked_cells("run", plan)} == {0}


def test_reported_seeds_take_the_rate_of_the_tuning_seed(benchmark, tmp_path):
    plan = benchmark.read_plan(arguments(tracks="paths", best="max_rl"), tmp_path)
    tuned = benchmark.asked_cells("tune", plan)
    assert {each.arm for each in tuned} == {"trl", "leave_one_out", "max_rl"}
    assert benchmark.asked_cells("run", plan) == []
    (tmp_path / "paths").mkdir()
    for each in tuned:
        cell = benchmark.make_cell(each, plan)
        tokens = 500 if each.rate == 3e-4 else 900
        curve = curve_of(document(each.arm, each.seed, tokens, 1.0))
        made = benchmark.cell_document(cell, curve)
        (tmp_path / "paths" / f"{cell.name}.json").write_text(json.dumps(made))
    asked = benchmark.asked_cells("run", plan)
    assert {each.rate for each in asked} == {3e-4}
    assert [each.arm for each in asked[:3]] == ["trl", "leave_one_out", "max_rl"]
    assert [each.seed for each in asked[::3]] == plan.experiment["seeds"]
    plan.experiment["tracks"]["paths"]["race"] = {"max_tokens": 7}
    with pytest.raises(StoreError, match="other settings"):
        benchmark.read_documents("paths", [100], plan)


@pytest.mark.parametrize("given", [{"tracks": "pahts"}, {"best": "leave_on_out"}])
def test_an_unknown_name_is_one_line(benchmark, given, tmp_path):
    with pytest.raises(ForkpointError, match="Did you mean"):
        benchmark.read_plan(arguments(**given), tmp_path)


def test_without_trl_its_cells_are_refused(benchmark, monkeypatch, tmp_path):
    monkeypatch.setattr(benchmark.importlib.metadata, "distributions", lambda **_: [])
    cells = benchmark.asked_cells("tune", benchmark.read_plan(arguments(), tmp_path))
    with pytest.raises(ForkpointError, match=r"pip install trl=="):
        benchmark.check_trl(cells)
    benchmark.check_trl([each for each in cells if each.arm != "trl"])
