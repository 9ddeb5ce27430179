"""The sampler of tabular policies: its draws, its statistics against exact values, and independence of slots."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch

from forkpoint.conformance import check_sampler
from forkpoint.errors import ModelError
from forkpoint.policies.tabular import OFFSET, from_theory
from forkpoint.probe import Sampler, SampleRequest, ScoreRequest
from forkpoint.probing.local import LocalProbe
from forkpoint.records import StopReason
from forkpoint.sampling.draw import draw_tokens
from forkpoint.sampling.tabular import TabularSampler
from forkpoint.seeds import Key
from forkpoint.tasks.lab import Settings, build
from forkpoint.theory.classes import golden_policy, optimal_policy, uniform_policy
from forkpoint.theory.graphs import edge_states
from forkpoint.theory.horizon import table_hit_within
from forkpoint.theory.tables import softmax_policy, solve_table, spread_policy
from forkpoint.verifiers.guard import guarded

LAB = build(Settings(depth=(2, 1, 2), lanes=(2, 3, 2)))
STATES = edge_states(LAB.graph)


def random_policy(seed=0, **more):
    draw = np.random.Generator(np.random.Philox(key=seed))
    return from_theory(softmax_policy(LAB.graph, draw.standard_normal(len(STATES.successors))), **more)


def learned_transformer():
    policy = random_policy(architecture="transformer", window=3)
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in policy.model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=draw))
    return policy


def requests(policy, count, *, lab=LAB, budget=40, temperature=1.0, name="rollout"):
    made = []
    for index in range(count):
        problem = lab.problem(Key.root(0).child(index))
        made.append(
            SampleRequest(
                key=Key.root(0).child(name, index),
                problem=problem,
                prompt_tokens=policy.texts.encode_prompt(problem.prompt),
                group_id="g",
                stage="s",
                update=1,
                index=index,
                max_new_tokens=budget,
                temperature=temperature,
                stop=lab.stop(problem),
            )
        )
    return made


def drawn(policy, asked, slots=256):
    found = {rollout.id: rollout for rollout in TabularSampler(policy, slots=slots).stream(asked)}
    return [found[request.key.hex] for request in asked]


def content(rollouts):
    return [(r.tokens.tobytes(), r.behavior_logprobs.tobytes(), r.stop_reason, r.text) for r in rollouts]


@pytest.mark.parametrize("make", [random_policy, learned_transformer])
def test_it_is_a_sampler_whose_rollouts_do_not_depend_on_slots_or_order(make):
    policy = make()
    sampler = TabularSampler(policy, slots=7)
    assert isinstance(sampler, Sampler)
    asked = requests(policy, 40)
    assert check_sampler(sampler, asked) == []
    assert content(drawn(policy, asked, 3)) == content(drawn(policy, asked, 500))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("make", [random_policy, learned_transformer])
def test_every_token_is_the_inverse_cdf_of_its_uniform_number(make, temperature):
    policy = make()
    asked = requests(policy, 12, temperature=temperature)
    for request, rollout in zip(asked, drawn(policy, asked), strict=True):
        uniforms = request.key.uniforms(len(rollout.tokens))
        walk = [0, *(rollout.tokens - OFFSET).tolist()]
        for place, uniform in enumerate(uniforms):
            seen = ([-1] * 5 + walk[: place + 1])[-policy.edges.window :]
            logits = policy.edges.rows(torch.tensor([seen])).detach()
            choice, logprob = draw_tokens(logits, torch.tensor([uniform]), torch.tensor([temperature]))
            assert walk[place + 1] == STATES.moves(walk[place])[int(choice)]
            assert rollout.behavior_logprobs[place] == pytest.approx(float(logprob), abs=1e-6)


@pytest.mark.parametrize("make", [random_policy, learned_transformer])
def test_sampled_and_trained_logprobs_agree(make):
    policy = make()
    asked = requests(policy, 20)
    probe = LocalProbe(policy, TabularSampler(policy), guarded(LAB.verify))
    for request, rollout in zip(asked, probe.sample(asked), strict=True):
        score = ScoreRequest(prompt_tokens=request.prompt_tokens, tokens=rollout.tokens)
        np.testing.assert_allclose(probe.score([score])[0], rollout.behavior_logprobs, atol=2e-6)


def test_rollouts_end_at_the_target_or_at_the_budget():
    policy = random_policy()
    for request, rollout in zip(requests(policy, 60), drawn(policy, requests(policy, 60)), strict=True):
        verdict = guarded(LAB.verify)(request.problem, rollout)
        assert verdict.correct == (rollout.stop_reason is StopReason.STOP)
        assert rollout.text.endswith(request.stop[0]) == verdict.correct
        assert rollout.text[:-1].count(request.stop[0]) == 0
        assert len(rollout.tokens) == 40 or verdict.correct
        assert "is not an edge" not in verdict.reason


@pytest.mark.parametrize("start", [uniform_policy, optimal_policy, golden_policy])
def test_hit_rates_and_lengths_are_the_exact_ones(start):
    lab = build(Settings(branches=3, depth=2, lanes=2))
    table = spread_policy(start(lab.graph))
    policy = from_theory(table)
    budget, count = 400, 2000
    rollouts = drawn(policy, requests(policy, count, lab=lab, budget=budget))
    hits = np.array([rollout.stop_reason is StopReason.STOP for rollout in rollouts])
    # The prompt is the first edge of the theory's walk, so a budget of T tokens is a horizon of T + 1 edges.
    chances = table_hit_within(table, range(1, budget + 2))
    assert abs(hits.mean() - chances[-1]) < 4 * np.sqrt(0.25 / count)
    lengths = np.array([len(rollout.tokens) for rollout in rollouts])
    # E[min(length, budget)] = sum of P(not hit within t tokens).
    expected = sum(1 - chance for chance in chances[:-1])
    assert abs(lengths.mean() - expected) < 4 * lengths.std() / np.sqrt(count)
    if start is optimal_policy:
        assert abs(lengths.mean() + 1 - solve_table(table).steps.mean()) < 4 * lengths.std() / np.sqrt(count)


def test_temperature_zero_takes_the_most_probable_move():
    policy = random_policy()
    asked = requests(policy, 3, temperature=0.0, budget=10)
    table = policy.to_theory().matrix()
    for rollout in drawn(policy, asked):
        walk = [0, *(rollout.tokens - OFFSET).tolist()]
        for here, there in itertools.pairwise(walk):
            assert table[here, there] == table[here].max()
        assert not rollout.behavior_logprobs.any()


def test_one_list_may_hold_several_temperatures():
    policy = random_policy()
    cold, warm = requests(policy, 5, temperature=0.5), requests(policy, 5, temperature=2.0, name="warm")
    mixed = [request for pair in zip(cold, warm, strict=True) for request in pair]
    assert content(drawn(policy, mixed)) == content(
        [r for pair in zip(drawn(policy, cold), drawn(policy, warm), strict=True) for r in pair]
    )


@pytest.mark.parametrize("make", [random_policy, learned_transformer])
def test_a_rollout_can_be_continued(make):
    policy = make()
    asked = requests(policy, 30)
    first = drawn(policy, asked)
    again = [
        replace(request, parent=parent, prefix_length=len(parent.tokens) // 2)
        for request, parent in zip(asked, first, strict=True)
    ]
    for request, parent, rollout in zip(again, first, drawn(policy, again), strict=True):
        start = request.prefix_length
        # The same key draws the same numbers at the same positions.
        assert rollout.tokens.tolist() == parent.tokens.tolist()
        assert rollout.loss_mask.tolist() == [place >= start for place in range(len(parent.tokens))]
        assert (rollout.parent_id, rollout.prefix_length) == (parent.id, start)
    other = [replace(request, key=request.key.child("branch")) for request in again]
    changed = drawn(policy, other)
    assert all(
        r.tokens[: q.prefix_length].tolist() == p.tokens[: q.prefix_length].tolist()
        for q, p, r in zip(other, first, changed, strict=True)
    )
    assert any(p.tokens.tolist() != r.tokens.tolist() for p, r in zip(first, changed, strict=True))


def test_bad_requests_are_refused():
    policy = random_policy()
    request = requests(policy, 1)[0]
    parent = drawn(policy, [request])[0]
    for bad, error, message in [
        (replace(request, stop=("ab",)), ModelError, "outside"),
        (replace(request, stop=(LAB.alphabet[:2],)), ModelError, "one edge"),
        (replace(request, prompt_tokens=request.prompt_tokens - OFFSET), ModelError, "its graph"),
        (replace(request, prefix_length=3), ValueError, "longer"),
        (replace(request, parent=parent, prefix_length=2, max_new_tokens=2), ValueError, "no room"),
    ]:
        with pytest.raises(error, match=message):
            drawn(policy, [bad])


def test_the_version_is_written_into_the_spans():
    policy = random_policy()
    sampler = TabularSampler(policy)
    sampler.update_weights(7)
    rollout = next(iter(sampler.stream(requests(policy, 1))))
    assert [(span.start, span.end, span.policy_version) for span in rollout.spans] == [(0, len(rollout.tokens), 7)]
