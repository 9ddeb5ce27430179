"""One update's gradient: by hand, however it is split, and with or without the rows that carry none."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_runs import BASE, tiny_recipe

from forkpoint.assembly import build_policy
from forkpoint.batching import Row
from forkpoint.errors import RecipeError
from forkpoint.losses import clipped_surrogate, dppo_tv, reinforce, token_weights
from forkpoint.records import frozen_array
from forkpoint.training import components
from forkpoint.training.components import Objective, Reference, accumulate

COUNT = 14


def policy_of(seed=0):
    return build_policy(tiny_recipe(BASE, overrides=(f"seed={seed}",)), Path())


@pytest.fixture(scope="module")
def policy():
    return policy_of()


@pytest.fixture(scope="module")
def reference():
    return policy_of(1)


def gradient(policy):
    parts = [parameter.grad for parameter in policy.model.parameters()]
    flat = torch.cat([torch.zeros(0) if part is None else part.flatten() for part in parts]).clone()
    policy.model.zero_grad(set_to_none=True)
    return flat


def distance(one, two):
    return float((one - two).norm() / two.norm())


def make_rows(aggregation="token_mean", idle=()):
    """Rows of ragged lengths, of prompts that some share, with untrained tokens in between."""
    draw = np.random.Generator(np.random.Philox(key=5))
    prompts = [draw.integers(2, 20, size=size).astype(np.int32) for size in (3, 5, 9)]
    masks = [draw.random(size) < 0.8 for size in draw.integers(1, 30, COUNT)]
    weights = token_weights(masks, [place % 3 for place in range(COUNT)], aggregation=aggregation, constant_length=30)
    rows = []
    for place, (mask, weight) in enumerate(zip(masks, weights, strict=True)):
        advantage = 0.0 if place in idle else draw.normal()
        rows.append(
            Row(
                prompt=frozen_array(prompts[place % 3], np.int32),
                tokens=frozen_array(draw.integers(2, 20, size=len(mask)), np.int32),
                loss_mask=frozen_array(mask, np.bool_),
                # Far from log pi = -3.5 on some tokens, so that trust regions bite, but never near their edges.
                behavior_logprobs=frozen_array(
                    np.where(mask, draw.choice([-3.5, -1.0, -6.0], len(mask)), 0), np.float32
                ),
                advantages=frozen_array(np.where(mask, advantage, 0.0), np.float32),
                policy_weights=weight,
                imitation_weights=weight,
                divergence_weight=0.3 / COUNT,
            )
        )
    return rows


OBJECTIVES = {
    "reinforce": (Objective(policy_loss=reinforce), None),
    "clipped_surrogate": (Objective(policy_loss=clipped_surrogate, temperature=0.7), None),
    "dppo_tv": (Objective(policy_loss=dppo_tv), None),
    "imitation": (Objective(imitation=True), None),
    "sequence_k2": (Objective(policy_loss=reinforce), "sequence_k2"),
    "token_k2": (Objective(imitation=True), "token_k2"),
}  # fmt: skip


def objective_of(name, reference):
    objective, kind = OBJECTIVES[name]
    return replace(objective, reference=Reference(policy=reference, kind=kind)) if kind else objective


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_gradient_does_not_depend_on_the_micro_batches(name, policy, reference):
    objective, rows = objective_of(name, reference), make_rows()
    found = []
    for most in (16, 64, 8192):
        sums = accumulate(policy, rows, objective, max_tokens=most)
        found.append((gradient(policy), sums))
    assert float(found[0][0].norm()) > 1e-3
    for flat, sums in found[:-1]:
        assert distance(flat, found[-1][0]) < 1e-6
        for key, value in found[-1][1].items():
            assert key == "padding_share" or sums[key] == pytest.approx(value, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("aggregation", ["token_mean", "constant", "sequence_mean", "prompt_mean"])
def test_the_gradient_does_not_depend_on_the_order_of_the_rows(aggregation, policy):
    rows, objective = make_rows(aggregation), Objective(policy_loss=reinforce)
    accumulate(policy, rows, objective, max_tokens=64)
    straight = gradient(policy)
    accumulate(policy, rows[::-1], objective, max_tokens=64)
    assert distance(gradient(policy), straight) < 1e-6


def test_skipping_rows_without_advantage_changes_nothing_but_the_work(policy, monkeypatch):
    rows, objective = make_rows(idle=(0, 3, 4, 9)), Objective(policy_loss=reinforce)
    skipping = accumulate(policy, rows, objective, max_tokens=64)
    sparse = gradient(policy)
    monkeypatch.setattr(components, "_has_gradient", lambda row, objective: True)
    full = accumulate(policy, rows, objective, max_tokens=64)
    assert distance(gradient(policy), sparse) < 1e-6
    assert skipping["loss"] == pytest.approx(full["loss"], rel=1e-5)
    assert skipping["trained_tokens"] < full["trained_tokens"]


def test_no_row_with_a_gradient_is_no_work(policy):
    sums = accumulate(policy, make_rows(idle=range(COUNT)), Objective(policy_loss=reinforce), max_tokens=64)
    assert sums == {"mismatch_max": 0.0, "padding_share": 0.0}
    assert all(parameter.grad is None for parameter in policy.model.parameters())


def test_a_reference_reaches_rows_without_advantage(policy, reference):
    objective = Objective(policy_loss=reinforce, reference=Reference(policy=reference, kind="sequence_k2"))
    sums = accumulate(policy, make_rows(idle=range(COUNT)), objective, max_tokens=64)
    assert sums["reference_sequences"] == COUNT
    assert float(gradient(policy).norm()) > 0


def plain_logprobs(policy, row, temperature=1.0):
    """Log-probabilities of a row's tokens by one forward of the Hugging Face model, nothing shared or padded."""
    tokens = torch.tensor(np.concatenate([row.prompt, row.tokens])[None].astype(np.int64))
    logits = policy.model(input_ids=tokens).logits[0].float() / temperature
    start = len(row.prompt)
    return torch.log_softmax(logits, -1)[torch.arange(start - 1, tokens.shape[1] - 1), tokens[0, start:]]


def by_hand(policy, rows, terms, temperature=1.0):
    """The gradient of the sum over trained tokens of `terms(row, log pi)`."""
    total = torch.zeros(())
    for row in rows:
        mask = torch.tensor(row.loss_mask)
        total = total + terms(row, plain_logprobs(policy, row, temperature))[mask].sum()
    total.backward()
    return gradient(policy), float(total.detach())


def number(values):
    return torch.tensor(np.asarray(values))


def test_the_policy_gradient_by_hand(policy):
    rows = make_rows()
    count = sum(int(row.loss_mask.sum()) for row in rows)
    expected, loss = by_hand(policy, rows, lambda row, logp: -number(row.advantages) * logp / count)
    sums = accumulate(policy, rows, Objective(policy_loss=reinforce), max_tokens=100)
    assert distance(gradient(policy), expected) < 1e-5
    assert sums["loss"] == pytest.approx(loss, rel=1e-4)
    assert sums["trained_tokens"] == count


def test_the_clipped_surrogate_by_hand(policy):
    rows, sides = make_rows("constant"), []

    def terms(row, logp):
        advantage = number(row.advantages)
        ratio = (logp - number(row.behavior_logprobs)).exp()
        clipped = ((advantage > 0) & (ratio > 1.2)) | ((advantage < 0) & (ratio < 0.8))
        sides.append(int(clipped[torch.tensor(row.loss_mask)].sum()))
        return torch.where(clipped, 0.0, -ratio * advantage) / (30 * COUNT)

    expected, _ = by_hand(policy, rows, terms, temperature=0.7)
    sums = accumulate(policy, rows, Objective(policy_loss=clipped_surrogate, temperature=0.7), max_tokens=100)
    assert distance(gradient(policy), expected) < 1e-5
    assert sums["clipped_tokens"] == sum(sides) > 0


def test_imitation_by_hand(policy):
    rows = make_rows("sequence_mean")
    shares = {id(row): 1 / (int(row.loss_mask.sum()) * sum(bool(r.loss_mask.any()) for r in rows)) for row in rows if row.loss_mask.any()}  # fmt: skip  # noqa: E501
    expected, loss = by_hand(policy, rows, lambda row, logp: -logp * shares.get(id(row), 0.0))
    sums = accumulate(policy, rows, Objective(imitation=True), max_tokens=100)
    assert distance(gradient(policy), expected) < 1e-5
    assert sums["loss"] == pytest.approx(loss, rel=1e-4)


def test_divergences_by_hand(policy, reference):
    rows = make_rows()

    def sequence():
        total = torch.zeros(())
        for row in rows:
            with torch.no_grad():
                anchor = plain_logprobs(reference, row)
            gap = ((plain_logprobs(policy, row) - anchor) * number(row.loss_mask)).sum()
            total = total + 0.3 / COUNT * 0.5 * gap.square()
        total.backward()
        return gradient(policy)

    objective = Objective(reference=Reference(policy=reference, kind="sequence_k2"))
    accumulate(policy, rows, objective, max_tokens=100)
    assert distance(gradient(policy), sequence()) < 1e-5

    def token(row, logp):
        with torch.no_grad():
            anchor = plain_logprobs(reference, row)
        return 0.3 / COUNT * number(row.policy_weights) * 0.5 * (logp - anchor).square()

    expected, _ = by_hand(policy, rows, token)
    accumulate(policy, rows, Objective(reference=Reference(policy=reference, kind="token_k2")), max_tokens=100)
    assert distance(gradient(policy), expected) < 1e-5

    half = [
        replace(row, advantages=row.advantages * (np.arange(len(row.tokens)) % 2).astype(np.float32)) for row in rows
    ]
    idle, _ = by_hand(policy, half, lambda row, logp: token(row, logp) * number(row.advantages == 0))
    charge = Reference(policy=reference, kind="token_k2", where="uncredited")
    accumulate(policy, half, Objective(reference=charge), max_tokens=100)
    assert distance(gradient(policy), idle) < 1e-5
    assert distance(idle, expected) > 0.1


def test_entropy_and_mismatch_by_hand(policy):
    rows = make_rows()
    entropy, worst = 0.0, 0.0
    with torch.no_grad():
        for row in rows:
            tokens = torch.tensor(np.concatenate([row.prompt, row.tokens])[None].astype(np.int64))
            logp = torch.log_softmax(policy.model(input_ids=tokens).logits[0].float(), -1)[len(row.prompt) - 1 : -1]
            mask = torch.tensor(row.loss_mask)
            entropy += float(-(logp.exp() * logp).sum(-1)[mask].sum())
            gap = (plain_logprobs(policy, row) - number(row.behavior_logprobs)).abs()[mask]
            worst = max([worst, *gap.tolist()])
    sums = accumulate(policy, rows, Objective(policy_loss=reinforce), max_tokens=100)
    gradient(policy)
    assert sums["entropy_sum"] == pytest.approx(entropy, rel=1e-5)
    assert sums["mismatch_max"] == pytest.approx(worst, rel=1e-4)


def test_a_loss_that_returns_something_else_is_refused(policy):
    with pytest.raises(RecipeError, match="gave no LossOutput but int"):
        accumulate(policy, make_rows(), Objective(policy_loss=lambda *_: 3), max_tokens=10_000)
