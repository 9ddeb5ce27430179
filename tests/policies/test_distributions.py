"""Whole distributions of two policies against plain softmax tables, in one piece and in chunks."""

import numpy as np
import policy_examples as examples
import pytest
import torch

from forkpoint.policies import causal
from forkpoint.policies.causal import CausalPolicy
from forkpoint.policies.distributions import agreement, forward_kl, token_logprobs, top_tokens
from forkpoint.records import Rollout, StopReason, frozen_array

POSITIONS = 7


@pytest.fixture(scope="module")
def pair() -> tuple[CausalPolicy, CausalPolicy]:
    policies = examples.build_policy("Llama", seed=1), examples.build_policy("Llama", seed=2)
    for policy in policies:
        policy.model.double()
    return policies


def states(seed: int) -> torch.Tensor:
    draw = np.random.default_rng(seed)
    return torch.from_numpy(draw.standard_normal((POSITIONS, 32))).requires_grad_()


def rollout(tokens: list[int], mask: list[bool], *, prompt: tuple[int, ...] = (3, 4)) -> Rollout:
    return Rollout(
        id=str(tokens), group_id="g", stage="s", update=0, index=0, problem_key="p",
        prompt_tokens=frozen_array(prompt, np.int32), tokens=frozen_array(tokens, np.int32),
        behavior_logprobs=frozen_array(np.zeros(len(tokens)), np.float32), loss_mask=frozen_array(mask, np.bool_),
        temperature=1.0, text="", stop_reason=StopReason.LENGTH, seed=0,
    )  # fmt: skip


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_the_divergence_is_the_sum_over_the_vocabulary(pair, temperature):
    policy, base = pair
    mine, theirs = states(1), states(2)
    found = forward_kl(policy, mine, base, theirs, temperature=temperature)
    p, q = (torch.softmax(each.logits(h) / temperature, dim=-1) for each, h in ((policy, mine), (base, theirs)))
    expected = (q * (q / p).log()).sum(dim=-1)
    assert float(expected.detach().min()) > 1e-3
    assert torch.allclose(found, expected, rtol=1e-10, atol=1e-12)
    found.sum().backward()
    assert theirs.grad is None
    (slope,) = torch.autograd.grad(expected.sum(), mine)
    assert torch.allclose(mine.grad, slope, rtol=1e-9, atol=1e-12)


def test_a_policy_does_not_diverge_from_itself(pair):
    policy, _ = pair
    hidden = states(3)
    found = forward_kl(policy, hidden, policy, hidden.detach())
    assert float(found.detach().abs().max()) < 1e-14
    found.sum().backward()
    assert float(hidden.grad.abs().max()) < 1e-13


@pytest.mark.parametrize("limit", [1, examples.VOCABULARY * 4])
def test_chunks_change_neither_values_nor_gradients(pair, limit, monkeypatch):
    policy, base = pair
    tokens = torch.arange(POSITIONS)

    def both() -> list[torch.Tensor]:
        mine, theirs = states(1), states(2)
        values = [forward_kl(policy, mine, base, theirs), token_logprobs(policy, mine, tokens, temperature=0.7)]
        (values[0].square().sum() + values[1].sum()).backward()
        return [*(value.detach() for value in values), mine.grad]

    whole = both()
    seen = []
    logits = CausalPolicy.logits
    monkeypatch.setattr(causal, "MAX_LOGITS", limit)
    monkeypatch.setattr(
        CausalPolicy, "logits", lambda self, hidden: (seen.append(len(hidden)), logits(self, hidden))[1]
    )
    assert all(torch.allclose(one, two, rtol=1e-12, atol=1e-14) for one, two in zip(both(), whole, strict=True))
    for found, tables in ((forward_kl, 2), (token_logprobs, 1)):
        # Two tables at once must fit together.
        seen.clear()
        found(policy, states(1), *((base, states(2)) if tables == 2 else (tokens,)))
        assert max(seen) == max(1, limit // (tables * examples.VOCABULARY))


def test_token_logprobs_are_those_of_the_policy(pair):
    policy, _ = pair
    hidden, tokens = states(4), torch.arange(POSITIONS) + 3
    expected = torch.log_softmax(policy.logits(hidden) / 0.7, dim=-1)[torch.arange(POSITIONS), tokens]
    assert torch.allclose(token_logprobs(policy, hidden, tokens, temperature=0.7), expected, rtol=0, atol=1e-14)


def test_ranks_and_entropies_are_those_of_a_plain_forward(pair):
    policy, base = pair
    rollouts = [
        rollout([5, 6, 7, 8, 9], [True, True, False, True, True]),
        rollout([4], [True], prompt=(9, 8, 7)),
        rollout([6, 6], [False, False]),
        rollout([], []),
    ]
    found = top_tokens(policy, base, rollouts, max_batch_tokens=6)
    for each, one in zip(found, rollouts, strict=True):
        ids = torch.from_numpy(np.concatenate([one.prompt_tokens, one.tokens])).long()[None]
        tables = [
            torch.log_softmax(p.model(input_ids=ids, use_cache=False).logits[0], dim=-1).detach()
            for p in (policy, base)
        ]
        for place in range(len(one.tokens)):
            if not one.loss_mask[place]:
                assert (each.ranks[place], each.entropies[place]) == (0, 0.0)
                continue
            mine, theirs = (table[len(one.prompt_tokens) + place - 1] for table in tables)
            order = theirs.argsort(descending=True).tolist()
            assert each.ranks[place] == order.index(int(mine.argmax())) + 1
            assert each.entropies[place] == pytest.approx(float(-(theirs.exp() * theirs).sum()), abs=1e-5)
    assert max(int(each.ranks.max(initial=0)) for each in found) > 1


def test_a_policy_agrees_with_itself_everywhere(pair):
    policy, _ = pair
    result = agreement(top_tokens(policy, policy, [rollout([5, 6, 7], [True, False, True])]))
    assert (result.positions, result.same, result.share) == (2, 2, 1.0)
    assert result.entropy > 0
    assert result.entropy_different is None
    assert result.rank_different is None


def test_no_position_is_no_disagreement():
    result = agreement([])
    assert (result.positions, result.share, result.entropy) == (0, 1.0, 0.0)
