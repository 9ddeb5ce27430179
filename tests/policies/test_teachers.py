"""A policy as its own teacher: targets and divergences against dense formulas, chunks, and shared prompts."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from policy_examples import ALPHABET, build_policy

from forkpoint.batching import Row, pad_prompts, pad_rows
from forkpoint.losses.distillation import distillation
from forkpoint.policies import teachers
from forkpoint.policies.teachers import named_tokens, student_scores, students_once, teacher_targets
from forkpoint.records import frozen_array

DIRECTIONS = ("reverse", "forward", "jsd")
WARM = 0.7


@pytest.fixture(scope="module")
def policy():
    # GPT-2 has no norm that rounds to single precision on the way.
    made = build_policy("GPT-2")
    made.model.double()
    return made


def rows_of(lengths=(4, 1, 7, 5), prompts=(2, 5, 3), told=0):
    """Ragged rows with holes; with `told` more tokens in front of each prompt."""
    draw = np.random.Generator(np.random.Philox(key=7))
    heads = [draw.integers(2, 2 + len(ALPHABET), size) for size in prompts]
    rows = []
    for place, length in enumerate(lengths):
        tokens, mask = draw.integers(2, 2 + len(ALPHABET), length), draw.random(length) < 0.8
        prompt = np.concatenate([np.full(told, 3 + place % 3), heads[place % len(heads)]])
        rows.append(
            Row(
                prompt=frozen_array(prompt, np.int32),
                tokens=frozen_array(tokens, np.int32),
                loss_mask=frozen_array(mask | (np.arange(length) == 0), np.bool_),
            )
        )
    return rows


def plain(policy, row, temperature=WARM):
    """Log-probabilities [T, V] of one row by the model's own forward."""
    tokens = torch.tensor(np.concatenate([row.prompt, row.tokens]).astype(np.int64))
    logits = policy.model(input_ids=tokens[None], use_cache=False).logits[0]
    return torch.log_softmax(logits[len(row.prompt) - 1 : -1] / temperature, -1)


def taught(policy, top_k=None, weights=True):
    """Student rows with the targets of rows that are told more."""
    targets = teacher_targets(policy, rows_of(told=2), top_k=top_k, temperature=WARM, max_tokens=64)
    return [
        replace(
            row,
            teacher=target,
            distillation_weights=frozen_array(np.where(row.loss_mask, 0.25 + 0.5 * place, 0.0), np.float32)
            if weights
            else row.distillation_weights,
        )
        for place, (row, target) in enumerate(zip(rows_of(), targets, strict=True))
    ]


def dense(student, teacher, direction):
    """The divergence of each position over all tokens, written out."""
    s, t = student.exp(), teacher.exp()
    if direction == "reverse":
        return (s * (student - teacher)).sum(-1)
    if direction == "forward":
        return (t * (teacher - student)).sum(-1)
    middle = ((s + t) / 2).log()
    return 0.5 * (s * (student - middle)).sum(-1) + 0.5 * (t * (teacher - middle)).sum(-1)


def ours(policy, rows, direction):
    """The term and its gradient."""
    batch = pad_rows(rows, range(len(rows)))
    scores = student_scores(policy, batch, direction=direction, temperature=WARM)
    output = distillation(scores.divergence, batch.distillation_weights)
    output.loss.backward()
    return float(output.loss.detach()), taken_gradient(policy), scores


def taken_gradient(policy):
    parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in policy.model.parameters()]
    policy.model.zero_grad(set_to_none=True)
    return torch.cat([part.flatten() for part in parts])


def distance(one, two):
    return float((one - two).norm() / two.norm())


@pytest.mark.parametrize("max_tokens", [1, 16, 64])
def test_targets_are_the_policy_under_the_told_prompt(policy, max_tokens):
    rows = [
        *rows_of(told=2),
        Row(prompt=np.array([2], np.int32), tokens=np.zeros(0, np.int32), loss_mask=np.zeros(0, bool)),
    ]
    found = teacher_targets(policy, rows, top_k=5, temperature=WARM, max_tokens=max_tokens)
    for row, target in zip(rows[:-1], found, strict=False):
        expected = plain(policy, row).detach().numpy()
        best = -np.sort(-expected, axis=-1)
        assert target.logprobs == pytest.approx(best[:, :5], rel=1e-6)
        assert np.take_along_axis(expected, target.ids.astype(int), -1) == pytest.approx(best[:, :5], rel=1e-12)
        assert np.exp(target.tails) == pytest.approx(np.exp(best[:, 5:]).sum(-1), rel=1e-5)
        assert np.exp(target.logprobs).sum(-1) + np.exp(target.tails) == pytest.approx(
            np.ones(len(row.tokens)), rel=1e-5
        )
    assert found[-1].ids.shape == (0, 5)
    # Nothing of the teacher carries a gradient, and the arrays are read-only.
    assert all(parameter.grad is None for parameter in policy.model.parameters())
    with pytest.raises(ValueError, match="read-only"):
        found[0].logprobs[0] = 0


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_loss_and_gradient_are_those_of_the_dense_formula(policy, direction):
    rows = taught(policy)
    total = torch.zeros((), dtype=torch.float64)
    for row, told in zip(rows, rows_of(told=2), strict=True):
        with torch.no_grad():
            teacher = plain(policy, told).float().double()
        weights = torch.from_numpy(row.distillation_weights.copy()).double()
        total = total + (weights * dense(plain(policy, row), teacher, direction)).sum()
    total.backward()
    expected = taken_gradient(policy)
    loss, gradient, scores = ours(policy, rows, direction)
    assert loss == pytest.approx(float(total.detach()), rel=1e-12)
    assert distance(gradient, expected) < 1e-12
    assert float(expected.norm()) > 1e-3
    assert scores.divergence.shape == (4, 7)
    assert (scores.divergence[~pad_rows(rows, range(4)).loss_mask] == 0).all()


@pytest.mark.parametrize("top_k", [1, 3, 9])
def test_what_a_bucket_leaves_out_is_its_mass_times_the_divergence_within(policy, top_k):
    """KL over named tokens and one bucket = full KL - s(rest) KL(s | rest, t | rest): never above, and so bounded."""
    whole, few = taught(policy), taught(policy, top_k)
    full = ours(policy, whole, "reverse")[2].divergence
    found = ours(policy, few, "reverse")[2].divergence
    missing = 0.0
    for place, (row, told) in enumerate(zip(few, rows_of(told=2), strict=True)):
        with torch.no_grad():
            student, teacher = plain(policy, row), plain(policy, told)
        rest = torch.ones_like(student, dtype=torch.bool).scatter(
            -1, torch.from_numpy(row.teacher.ids.astype(np.int64)), False
        )
        for at in np.flatnonzero(row.loss_mask):
            s, t = student[at, rest[at]].exp(), teacher[at, rest[at]].exp()
            left_out = float((s * ((s / s.sum()) / (t / t.sum())).log()).sum())
            assert left_out >= 0
            assert float(found[place, at].detach()) == pytest.approx(
                float(full[place, at].detach()) - left_out, abs=2e-6
            )
            missing += left_out
    assert missing > 1e-3


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_all_tokens_named_is_exact(policy, direction):
    vocabulary = policy.model.get_output_embeddings().weight.shape[0]
    one, two = ours(policy, taught(policy), direction), ours(policy, taught(policy, vocabulary), direction)
    assert one[0] == two[0]
    assert torch.equal(one[1], two[1])
    assert np.isneginf(taught(policy)[0].teacher.tails).all()


@pytest.mark.parametrize("top_k", [None, 3])
def test_chunks_change_nothing(policy, top_k, monkeypatch):
    rows = taught(policy, top_k)
    whole = ours(policy, rows, "jsd")
    monkeypatch.setattr(teachers, "MAX_LOGITS", 3 * policy.model.get_output_embeddings().weight.shape[0])
    cut = ours(policy, rows, "jsd")
    assert cut[0] == pytest.approx(whole[0], rel=1e-12)
    assert distance(cut[1], whole[1]) < 1e-12
    again = taught(policy, top_k)
    assert [row.teacher.ids.tolist() for row in again] == [row.teacher.ids.tolist() for row in rows]


def test_log_probabilities_and_entropies_are_those_of_the_policy(policy):
    batch = pad_rows(taught(policy), range(4))
    scores = student_scores(policy, batch, direction="reverse", temperature=WARM)
    logprobs, entropy = policy.logprobs(batch, temperature=WARM)
    assert torch.equal(scores.logprobs, logprobs)
    assert torch.equal(scores.entropy, entropy)
    untaught = pad_rows(rows_of(), range(4))
    assert student_scores(policy, untaught, direction="reverse").divergence is None


def test_a_row_without_a_teacher_beside_rows_with_one(policy):
    rows = taught(policy)
    rows[2] = rows_of()[2]
    batch = pad_rows(rows, range(4))
    scores = student_scores(policy, batch, direction="reverse", temperature=WARM)
    assert (scores.divergence[2] == 0).all()
    assert scores.divergence[3].sum() > 0
    assert scores.logprobs[2].abs().sum() > 0


def test_prompts_are_differentiated_once(policy):
    rows = taught(policy)
    expected = ours(policy, rows, "reverse")[1]
    table = pad_prompts(rows)
    with students_once(policy, table, "reverse") as score:
        for part in ([0, 2], [1, 3]):
            batch = pad_rows(rows, part, table=table)
            distillation(score(batch, temperature=WARM).divergence, batch.distillation_weights).loss.backward()
    assert distance(taken_gradient(policy), expected) < 1e-12


def test_how_many_tokens_are_named():
    assert [named_tokens(256, None), named_tokens(257, None), named_tokens(9, 100), named_tokens(999, 7)] == [
        256,
        100,
        9,
        7,
    ]
