"""Contrastive fork tuning: what the pool holds, the gradient under every split, resume, and its own numbers."""

import itertools
import sqlite3
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from tiny_runs import BASE, After, differences, fingerprint, finished, make_run, resume, status, tiny_recipe

from forkpoint.assembly import Assembly
from forkpoint.assembly.checks import check_recipe
from forkpoint.batching import Row
from forkpoint.cli.output import plan
from forkpoint.cli.worker import work
from forkpoint.errors import RecipeError
from forkpoint.policies.causal import CausalPolicy
from forkpoint.policies.texts import Texts, alphabet_tokenizer
from forkpoint.records import Group, Outcome, Problem, Rollout, StopReason, Verdict, frozen_array
from forkpoint.seeds import Key
from forkpoint.store import RunReader
from forkpoint.training.forks import (
    ForkPool,
    ForksTraining,
    accumulate_forks,
    decision_masks,
    fork_pool,
    group_advantages,
    mixed_groups,
    stand_in_groups,
    weighted_forks,
    without_longest,
)

FORKS = """
[[stage]]
name = "forks"
kind = "forks"
from = "base"
problems = 12
group_size = 8
keep_problems = 8
max_new_tokens = 6
updates = 5
batch_size = 4
learning_rate = 1e-3
warmup = 2
checkpoint_every = 2
evaluate_every = 3
"""
QUICK = ("stage.base.updates=2", "doctor.before=false", "doctor.every=0")


def stage_of(*overrides):
    recipe = tiny_recipe(BASE, FORKS, overrides=tuple(f"stage.forks.{each}" for each in overrides))
    return recipe.get_stage("forks")


def rollout(name, length, *, masked=0):
    mask = np.arange(length) >= masked
    return Rollout(
        id=name, group_id="g", stage="s", update=0, index=0, problem_key="p", seed="0", temperature=1.0, text="",
        prompt_tokens=frozen_array([3, 4], np.int32), tokens=frozen_array(np.arange(length) % 3 + 3, np.int32),
        behavior_logprobs=frozen_array(np.zeros(length), np.float32), loss_mask=frozen_array(mask, np.bool_),
        stop_reason=StopReason.LENGTH,
    )  # fmt: skip


def verdict(letter):
    outcome, correct = {"+": (Outcome.CORRECT, True), "-": (Outcome.WRONG, False), "?": (Outcome.ERROR, None)}[letter]
    return Verdict(outcome=outcome, correct=correct, reason="said so")


def group(name, letters, lengths=None):
    problem = Problem(task="t", key=name, prompt="p", answer="a", difficulty=0.0, metadata={})
    lengths = lengths or [3] * len(letters)
    members = tuple(rollout(f"{name}{place}", length) for place, length in enumerate(lengths))
    return Group(problem=problem, rollouts=members, verdicts=tuple(map(verdict, letters)))


class Entropies:
    """A probe that was told the entropies."""

    def __init__(self, *values):
        self.values = values

    def entropies(self, rollouts):
        if not self.values:
            return [frozen_array(np.linspace(0, 1, len(each.tokens)), np.float32) for each in rollouts]
        return [frozen_array(each, np.float32) for each in self.values]


def names(groups):
    return [each.problem.key for each in groups]


def test_the_problems_nearest_to_one_half_stay_in_their_order():
    groups = [group("a", "+---"), group("b", "++++"), group("c", "++--"), group("d", "----"), group("e", "+++-")]
    assert names(mixed_groups(groups, keep=9)) == ["a", "c", "e"]
    assert names(mixed_groups(groups, keep=2)) == ["a", "c"]
    assert names(mixed_groups(groups, keep=1)) == ["c"]


def test_rollouts_without_a_verdict_leave_their_group():
    (kept,) = mixed_groups([group("a", "+?-?"), group("b", "+??+")], keep=9)
    assert [each.id for each in kept.rollouts] == ["a0", "a2"]


@pytest.mark.parametrize(
    ("letters", "clip", "expected"),
    [
        ("+-", 9.0, [1.0, -1.0]),
        ("+---", 9.0, [3**0.5, *[-(3**-0.5)] * 3]),
        ("+---", 1.5, [1.5, *[-(3**-0.5)] * 3]),
        ("+++-", 1.5, [*[3**-0.5] * 3, -1.5]),
    ],
)
def test_advantages_are_in_deviations_of_the_population_and_clipped(letters, clip, expected):
    assert group_advantages(group("a", letters), clip=clip).tolist() == pytest.approx(expected)


def test_the_longest_leave_and_ties_go_by_the_id():
    pairs = [(rollout(name, length), 0.0) for name, length in (("d", 5), ("a", 9), ("c", 5), ("b", 2), ("e", 5))]
    assert [each.id for each, _ in without_longest(pairs, share=0.0)] == ["d", "a", "c", "b", "e"]
    assert [each.id for each, _ in without_longest(pairs, share=0.2)] == ["d", "c", "b", "e"]
    assert [each.id for each, _ in without_longest(pairs, share=0.4)] == ["d", "c", "b"]
    assert [each.id for each, _ in without_longest(pairs, share=0.6)] == ["c", "b"]
    # What the environment wrote makes no rollout longer.
    replied = [(rollout("a", 9, masked=8), 0.0), (rollout("b", 2), 0.0)]
    assert [each.id for each, _ in without_longest(replied, share=0.5)] == ["a"]


def test_forks_are_above_the_threshold_or_in_the_share_and_always_sampled():
    rollouts = [rollout("a", 4), rollout("b", 3, masked=1)]
    probe = Entropies([0.1, 1.5, 0.5, 0.2], [9.0, 0.5, 0.4])
    masks, reached = decision_masks(rollouts, probe, stage_of("entropy=0.5"))
    assert [mask.tolist() for mask in masks] == [[False, True, False, False], [False, False, False]]
    assert reached == pytest.approx(0.5)
    masks, reached = decision_masks(rollouts, probe, stage_of("share=0.34"))
    # Two of six sampled tokens, and the tie at the second.
    assert [mask.tolist() for mask in masks] == [[False, True, True, False], [False, True, False]]
    assert reached == 0.5
    masks, _ = decision_masks(rollouts, probe, stage_of("gate=false"))
    assert [mask.tolist() for mask in masks] == [[True] * 4, [False, True, True]]


def test_a_pool_holds_advantages_on_forks_alone_and_counts_all_that_was_sampled():
    groups = [group("a", "+---", [3, 3, 3, 9]), group("b", "++++"), group("c", "+-", [2, 2])]
    pool = fork_pool(groups, Entropies(), stage_of("drop_longest=0.2", "share=0.01"))
    # Six rollouts of two problems, without the longest one; the last token of each is its most open.
    assert [row.advantages.tolist() for row in pool.rows] == [
        [0.0, 0.0, pytest.approx(3**0.5)],
        *[[0.0, 0.0, pytest.approx(-(3**-0.5))]] * 2,
        [0.0, 1.0],
        [0.0, -1.0],
    ]
    assert pool.metrics["sampled_tokens"] == 18 + 12 + 4
    assert pool.metrics["correct"] == pytest.approx(6 / 10)
    assert (pool.metrics["pool_problems"], pool.metrics["pool_rollouts"]) == (2, 5)
    assert pool.metrics["fork_share"] == pytest.approx(5 / 13)


def test_positive_only_drops_wrong_rollouts_whole():
    pool = fork_pool([group("a", "+--+")], Entropies(), stage_of("positive_only=true", "drop_longest=0.0"))
    assert len(pool.rows) == 2
    assert all(row.advantages.max() == 1.0 and row.advantages.min() == 0.0 for row in pool.rows)


def test_problems_without_a_contrast_make_an_empty_pool():
    assert fork_pool([group("a", "++"), group("b", "--")], Entropies(), stage_of()).rows == ()


def test_a_stand_in_has_right_and_wrong_rollouts():
    (found,) = stand_in_groups([group("a", "----")])
    assert [each.correct for each in found.verdicts] == [True, False, True, False]


def row(tokens, advantages, *, mask=None, prompt=(3, 4, 5)):
    mask = [True] * len(tokens) if mask is None else mask
    return Row(
        prompt=frozen_array(prompt, np.int32), tokens=frozen_array(tokens, np.int32),
        loss_mask=frozen_array(mask, np.bool_), advantages=frozen_array(advantages, np.float32),
    )  # fmt: skip


ROWS = [
    row([3, 4, 5, 6], [0.0, 1.5, 0.0, 0.5]),
    row([4, 4], [-2.5, 0.0], prompt=(6,)),
    row([5, 3, 3, 4, 6], [0.0, 0.0, -0.5, 0.0, 0.0], mask=[True, False, True, True, False]),
    row([6], [0.0]),
    row([3, 5, 6], [0.75, -0.75, 1.0], prompt=(6,)),
]


def test_both_counts_are_those_of_the_whole_update():
    weighted = weighted_forks(ROWS, anchor=0.7)
    forks, others = 7, 15 - 2 - 7
    assert weighted[0].imitation_weights.tolist() == pytest.approx([0.0, 1.5 / forks, 0.0, 0.5 / forks])
    assert weighted[1].imitation_weights.tolist() == pytest.approx([-2.5 / forks, 0.0])
    assert {each.divergence_weight for each in weighted} == {0.7 / others}


@pytest.fixture(scope="module")
def policies():
    assembly = Assembly(recipe=tiny_recipe(BASE), origin=Path(), run=Path("nowhere"))
    context = assembly.stage_context("base", None, lambda: False)
    made = context.load_policy(None, None), context.load_policy(None, None)
    with torch.no_grad():
        for policy, scale in zip(made, (3.0, 5.0), strict=True):
            for parameter in policy.model.parameters():
                parameter.mul_(scale if parameter.ndim >= 2 else 1.0)
    return made


def gradient(policy, base, rows, **options):
    policy.model.zero_grad()
    sums = accumulate_forks(policy, base, rows, max_tokens=options.pop("max_tokens", 4096), **options)
    found = torch.cat([parameter.grad.flatten() for parameter in policy.model.parameters()])
    assert all(parameter.grad is None for parameter in base.model.parameters())
    return found.clone(), sums


def oracle(policy, base, rows, *, anchor, temperature):
    """The loss as the page writes it, each row in a forward of its own without padding or cache."""
    contrast, divergences, forks = [], [], 0
    for each in rows:
        ids = torch.from_numpy(np.concatenate([each.prompt, each.tokens])).long()[None]
        start = len(each.prompt) - 1
        mine, theirs = (
            torch.log_softmax(one.model(input_ids=ids, use_cache=False).logits[0, start:-1] / temperature, dim=-1)
            for one in (policy, base)
        )
        for place, token in enumerate(each.tokens.tolist()):
            if each.advantages[place]:
                contrast.append(-float(each.advantages[place]) * mine[place, token])
                forks += 1
            elif each.loss_mask[place]:
                reference = theirs[place].detach()
                divergences.append((reference.exp() * (reference - mine[place])).sum())
    return torch.stack(contrast).sum() / forks + anchor * torch.stack(divergences).mean()


def gpt2(seed):
    """A model that computes in the type of its weights throughout; the norms of most others do not."""
    config = transformers.GPT2Config(
        vocab_size=12, n_embd=16, n_layer=2, n_head=2, n_positions=32, pad_token_id=0, eos_token_id=1, bos_token_id=1
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = transformers.GPT2LMHeadModel(config)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(6.0 if parameter.ndim >= 2 else 1.0)
    return CausalPolicy(model, Texts(alphabet_tokenizer("abcdefghij")))


@pytest.mark.parametrize(("dtype", "allowed"), [(torch.float32, 1e-6), (torch.float64, 1e-12)])
def test_no_split_changes_the_gradient(dtype, allowed):
    policy, base = gpt2(1), gpt2(2)
    for each in (policy, base):
        each.model.to(dtype)
    rows = weighted_forks(ROWS, anchor=0.4)
    whole, sums = gradient(policy, base, rows)
    splits = [[[0], [1], [2], [3], [4]], [[4, 2], [], [0, 3, 1]], [[3], [0, 1, 2, 4]]]
    for options in (*({"split": split} for split in splits), {"max_tokens": 4}):
        found, again = gradient(policy, base, rows, **options)
        assert float((found - whole).norm() / whole.norm()) < allowed
        assert again["loss"] == pytest.approx(sums["loss"], rel=1e-5)
        assert (again["fork_tokens"], again["anchor_tokens"]) == (7.0, 6.0)


def test_the_gradient_is_that_of_the_definition(policies):
    policy, base = policies
    for each in policies:
        each.model.double()
    found, sums = gradient(policy, base, weighted_forks(ROWS, anchor=0.4), temperature=0.8)
    policy.model.zero_grad()
    loss = oracle(policy, base, ROWS, anchor=0.4, temperature=0.8)
    loss.backward()
    expected = torch.cat([parameter.grad.flatten() for parameter in policy.model.parameters()])
    # Weights are held in float32.
    assert float((found - expected).norm() / expected.norm()) < 1e-6
    assert sums["loss"] == pytest.approx(float(loss.detach()), rel=1e-6)
    assert sums["anchor_kl_sum"] > 0.1


def test_at_the_base_only_forks_pull(policies):
    policy, _ = policies
    rows = weighted_forks(ROWS, anchor=5.0)
    twin = Assembly(recipe=tiny_recipe(BASE), origin=Path(), run=Path("nowhere"))
    base = twin.stage_context("base", None, lambda: False).load_policy(None, None)
    base.model.double().load_state_dict(policy.model.double().state_dict())
    with_anchor, sums = gradient(policy, base, rows)
    without, _ = gradient(policy, base, weighted_forks(ROWS, anchor=0.0))
    assert abs(sums["anchor_kl_sum"]) < 1e-12
    assert float((with_anchor - without).norm() / without.norm()) < 1e-10


def test_without_a_gate_nothing_is_anchored(policies):
    policy, base = policies
    every = [replace(each, advantages=frozen_array(np.where(each.loss_mask, 1.0, 0.0), np.float32)) for each in ROWS]
    _, sums = gradient(policy, base, weighted_forks(every, anchor=0.4))
    assert (sums["fork_tokens"], sums["anchor_tokens"]) == (13.0, 0.0)


def test_every_rollout_comes_once_before_any_again():
    pool = [row([3 + place % 4], [1.0], prompt=(place,)) for place in range(7)]
    training = ForksTraining(
        stage=stage_of("batch_size=3"), policy=None, base=None, optimization=None,
        pool=ForkPool(rows=tuple(pool), metrics={}, seconds=0.0), key=Key.root(0),
    )  # fmt: skip
    order = [int(each.prompt[0]) for update in range(1, 15) for each in training.rows(update)]
    epochs = [order[start : start + 7] for start in range(0, 42, 7)]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 3
    assert [int(each.prompt[0]) for each in training.rows(5)] == order[12:15]


def test_a_run_in_pieces_equals_the_unbroken_one(tmp_path):
    recipe = tiny_recipe(BASE, FORKS, overrides=QUICK)
    whole = fingerprint(finished(tmp_path / "whole", recipe))
    pieces = make_run(tmp_path / "pieces", recipe)
    work(pieces, After(1))
    for count in itertools.count(2):
        if set(status(pieces.run).values()) == {"done"}:
            break
        resume(pieces, After(count))
    assert count > 3
    assert differences(fingerprint(pieces), whole) == []
    with RunReader(pieces.run) as reader:
        names = set(reader.metric_names("forks"))
        assert {"loss", "fork_tokens", "anchor_kl", "sampled_tokens", "trained_tokens"} <= names
        updates, _, tokens = reader.updates("forks")
        # What the pool cost stands at the first update, once.
        assert updates.tolist() == [1, 2, 3, 4, 5]
        assert tokens[0] == reader.metrics("forks", "sampled_tokens")[1][0] > 12 * 8
        assert tokens[1:].tolist() == [0, 0, 0, 0]
        assert reader.metrics("forks", "sampled_tokens")[0].tolist() == [1]


def test_right_forks_become_likelier_and_wrong_ones_less_likely(tmp_path):
    recipe = tiny_recipe(BASE, FORKS, overrides=(*QUICK, "stage.forks.updates=30", "stage.forks.checkpoint_every=0"))
    run = finished(tmp_path / "run", recipe)
    with RunReader(run.run) as reader:
        loss = reader.metrics("forks", "fork_loss")[1]
        anchor = reader.metrics("forks", "anchor_kl")[1]
    assert loss[-10:].mean() < loss[:3].mean() - 0.1
    assert abs(anchor[0]) < 1e-6 < anchor[-1]


def test_a_base_without_contrast_says_so(tmp_path):
    few = ("problems=1", "keep_problems=1", "group_size=2", "max_new_tokens=1")
    recipe = tiny_recipe(BASE, FORKS, overrides=(*QUICK, *(f"stage.forks.{each}" for each in few)))
    run = make_run(tmp_path / "run", recipe)
    assert work(run, After(99)) == 2
    with sqlite3.connect(run.run / "run.db") as connection:
        (message,) = connection.execute("SELECT message FROM stages WHERE name = 'forks'").fetchone()
    assert message.startswith("stage 'forks': none of 1 problems had right and wrong rollouts")


def test_a_stage_that_was_not_run_is_examined_with_stand_ins(tmp_path):
    assembly = Assembly(recipe=tiny_recipe(BASE, FORKS), origin=tmp_path, run=tmp_path / "none", unrun=True)
    loop = assembly.loop("forks")
    assert len(loop.training.rows(1)) == 4


def test_the_plan_counts_the_pool_and_not_the_updates():
    row = plan(tiny_recipe(BASE, FORKS))[1]
    assert (row["kind"], row["rollouts"], row["max_sampled_tokens"]) == ("forks", 96, 96 * 6)


def test_a_table_of_moves_is_refused_in_one_line(tmp_path):
    head = 'name = "t"\n[policy]\nkind = "tabular"\n[task]\nname = "lab"\n'
    recipe = tiny_recipe(FORKS, overrides=("stage.forks.from=policy",), head=head)
    with pytest.raises(RecipeError, match=r"^\[\[stage\]\] 'forks': kind = 'forks' needs a causal language model .*$"):
        check_recipe(recipe, tmp_path, tmp_path / "run")


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("keep_problems=13", "keep_problems = 13 must be at most problems = 12"),
        ("group_size=1", "group_size = 1: input should be greater than or equal to 2"),
        ("share=0.0", "share"),
        ("bugs.averaging=rank", "bugs are emulated in stages of the other kinds only"),
    ],
)
def test_settings_out_of_bounds_are_refused(setting, message):
    with pytest.raises(RecipeError, match=message):
        stage_of(setting)
