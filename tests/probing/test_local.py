"""The probe of this process: order, scores against a plain forward, and what it counts."""

from collections.abc import Iterable, Iterator
from typing import cast

import numpy as np
import pytest
import torch

from forkpoint.batching import Row, pad_rows
from forkpoint.errors import ContextError
from forkpoint.policies.causal import CausalPolicy
from forkpoint.policies.texts import Texts, alphabet_tokenizer
from forkpoint.policies.tiny import build_decoder
from forkpoint.probe import Continuation, Probe, Sampler, SampleRequest, ScoreRequest, fits
from forkpoint.probing.local import BranchPlan, LocalProbe
from forkpoint.records import Outcome, Problem, Rollout, Verdict, frozen_array
from forkpoint.sampling.engine import LocalSampler
from forkpoint.seeds import Key
from forkpoint.tasks.protocol import Task

PROBLEM = Problem(task="toy", key="5", prompt="ab", answer="c")


class Reversed:
    """A sampler that hands its rollouts back in the wrong order."""

    def __init__(self, inner: Sampler) -> None:
        self.inner = inner

    def stream(self, requests: Iterable[SampleRequest]) -> Iterator[Rollout]:
        yield from list(self.inner.stream(requests))[::-1]

    def update_weights(self, version: int) -> None:
        self.inner.update_weights(version)


def make_policy() -> CausalPolicy:
    tokenizer = alphabet_tokenizer("abcdef")
    model = build_decoder(
        shape="llama", vocabulary=len(tokenizer), layers=1, width=16, heads=2, context=64, key=Key.root(0)
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(5.0)
    return CausalPolicy(model, Texts(tokenizer))


def judge(problem: Problem, rollout: Rollout) -> Verdict:
    assert problem == PROBLEM
    return Verdict(outcome=Outcome.CORRECT, correct=True, answer=rollout.id)


@pytest.fixture
def policy() -> CausalPolicy:
    return make_policy()


@pytest.fixture
def probe(policy: CausalPolicy) -> LocalProbe:
    return LocalProbe(policy, Reversed(LocalSampler(policy, slots=8)), judge, max_batch_tokens=40)


def request(index: int) -> SampleRequest:
    return SampleRequest(
        key=Key.root(0).child(index), problem=PROBLEM, prompt_tokens=frozen_array([2, 3], np.int32), group_id="g",
        stage="s", update=1, index=index, max_new_tokens=12,
    )  # fmt: skip


def scored(tokens: list[int], temperature: float = 1.0) -> ScoreRequest:
    return ScoreRequest(
        prompt_tokens=frozen_array([2, 3, 4], np.int32), tokens=frozen_array(tokens, np.int32), temperature=temperature
    )


def test_it_is_a_probe_and_its_sampler_a_sampler(probe: LocalProbe, policy: CausalPolicy) -> None:
    assert isinstance(probe, Probe)
    assert isinstance(LocalSampler(policy), Sampler)


def test_it_says_how_much_its_policy_can_read(probe: LocalProbe, policy: CausalPolicy) -> None:
    room = policy.context_length
    assert fits(probe, room - 3, 3)
    assert not fits(probe, room - 3, 4)


def test_rollouts_come_in_the_order_of_the_requests(probe: LocalProbe) -> None:
    asked = [request(index) for index in (5, 3, 9, 0, 1, 2, 4, 6, 7, 8)]
    rollouts = probe.sample(asked)
    assert [rollout.index for rollout in rollouts] == [made.index for made in asked]
    assert probe.cost["sampled_tokens"] == sum(len(rollout.tokens) for rollout in rollouts)
    assert probe.sample([]) == []
    with pytest.raises(ValueError, match="same key"):
        probe.sample([request(1), request(2), request(1)])


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_scores_are_those_of_a_plain_forward(probe: LocalProbe, policy: CausalPolicy, temperature: float) -> None:
    draw = np.random.default_rng(0)
    lists = [draw.integers(1, 8, size).tolist() for size in (3, 0, 17, 1, 9, 30, 5)]
    scores = probe.score([scored(tokens, temperature) for tokens in lists])
    for tokens, score in zip(lists, scores, strict=True):
        assert (score.dtype, score.shape, score.flags.writeable) == (np.float32, (len(tokens),), False)
        ids = torch.tensor([[2, 3, 4, *tokens]])
        with torch.no_grad():
            table = torch.log_softmax(policy.model(ids).logits[0] / temperature, -1)
        oracle = [float(table[2 + place, token]) for place, token in enumerate(tokens)]
        assert np.allclose(score, oracle, atol=1e-5)
    assert probe.cost == {
        "sampled_tokens": 0,
        "scored_tokens": 65,
        "verifier_calls": 0,
        "forwards": probe.cost["forwards"],
    }
    assert 2 <= probe.cost["forwards"] <= 6
    assert probe.score([]) == []


def test_scores_agree_with_what_the_sampler_recorded(probe: LocalProbe) -> None:
    rollouts = probe.sample([request(index) for index in range(6)])
    scores = probe.score(
        [ScoreRequest(prompt_tokens=rollout.prompt_tokens, tokens=rollout.tokens) for rollout in rollouts]
    )
    for rollout, score in zip(rollouts, scores, strict=True):
        assert np.allclose(score, rollout.behavior_logprobs, atol=1e-5)


def test_mixed_or_zero_temperatures_are_refused(probe: LocalProbe) -> None:
    with pytest.raises(ValueError, match="the same temperature"):
        probe.score([scored([3], 1.0), scored([3], 0.5)])
    with pytest.raises(ValueError, match="above 0"):
        probe.score([scored([3], 0.0)])


def test_verdicts_come_from_the_verifier_and_are_counted(probe: LocalProbe) -> None:
    rollouts = probe.sample([request(index) for index in range(3)])
    verdicts = probe.verify(PROBLEM, rollouts)
    assert [verdict.answer for verdict in verdicts] == [rollout.id for rollout in rollouts]
    assert probe.cost["verifier_calls"] == 3


def test_scoring_takes_no_gradient(probe: LocalProbe, policy: CausalPolicy) -> None:
    probe.score([scored([3, 4])])
    assert all(parameter.grad is None for parameter in policy.model.parameters())
    row = Row(prompt=np.array([2], np.int32), tokens=np.array([3], np.int32), loss_mask=np.ones(1, np.bool_))
    logprobs, _ = policy.logprobs(pad_rows([row], [0]))
    logprobs.sum().backward()
    assert any(parameter.grad is not None for parameter in policy.model.parameters())


class Toy:
    """Of a task only what a continuation needs."""

    def stop(self, problem: Problem) -> tuple[str, ...]:
        return ("f",)


def test_a_branch_keeps_its_prefix_and_the_terms_of_its_rollout(policy: CausalPolicy) -> None:
    plan = BranchPlan(task=cast("Task", Toy()), key=Key.root(3), max_new_tokens=12)
    probe = LocalProbe(policy, LocalSampler(policy, slots=8), judge, plan=plan)
    request = SampleRequest(
        key=Key.root(2), problem=PROBLEM, prompt_tokens=probe.encode_prompt("ab"), group_id="g", stage="rl", update=4,
        index=0, max_new_tokens=12, stop=("f",),
    )  # fmt: skip
    (rollout,) = probe.sample([request])
    assert len(rollout.tokens) > 3
    spent = probe.cost["sampled_tokens"]
    other = probe.encode("abc")
    asked = [
        Continuation(problem=PROBLEM, rollout=rollout, prefix_length=2, index=0, purpose="test"),
        Continuation(problem=PROBLEM, rollout=rollout, prefix_length=2, index=1, purpose="test"),
        Continuation(problem=PROBLEM, rollout=rollout, prefix_length=3, index=0, purpose="test", prefix=other),
    ]
    first, second, third = probe.branch(asked)
    assert [found.prefix_length for found in (first, second, third)] == [2, 2, 3]
    assert first.tokens[:2].tolist() == second.tokens[:2].tolist() == rollout.tokens[:2].tolist()
    assert third.tokens[:3].tolist() == other.tolist()
    assert not first.loss_mask[:2].any()
    assert first.loss_mask[2:].all()
    assert first.parent_id == rollout.id != third.parent_id
    assert max(len(found.tokens) for found in (first, second, third)) <= 12
    new = sum(int(found.loss_mask.sum()) for found in (first, second, third))
    assert probe.cost["sampled_tokens"] - spent == new
    again = probe.branch(asked)
    assert [r.tokens.tolist() for r in again] == [r.tokens.tolist() for r in (first, second, third)]
    assert first.tokens.tolist() != second.tokens.tolist()


def test_without_a_plan_nothing_is_continued(probe: LocalProbe) -> None:
    assert probe.task is None
    with pytest.raises(ValueError, match="no plan"):
        probe.branch([])


def test_entropies_are_those_of_the_distributions(policy: CausalPolicy, probe: LocalProbe) -> None:
    request = SampleRequest(
        key=Key.root(2), problem=PROBLEM, prompt_tokens=probe.encode_prompt("ab"), group_id="g", stage="rl", update=4,
        index=0, max_new_tokens=6, temperature=0.7,
    )  # fmt: skip
    (rollout,) = probe.sample([request])
    spent = probe.cost["scored_tokens"]
    (found,) = probe.entropies([rollout])
    assert probe.cost["scored_tokens"] - spent == len(rollout.tokens)
    tokens = torch.from_numpy(np.concatenate([rollout.prompt_tokens, rollout.tokens]).astype(np.int64))[None]
    with torch.no_grad():
        logits = policy.model(input_ids=tokens).logits[0, len(rollout.prompt_tokens) - 1 : -1] / 0.7
    expected = torch.distributions.Categorical(logits=logits).entropy().numpy()
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_what_reaches_past_the_context_is_refused_and_the_last_position_is_not(probe: LocalProbe) -> None:
    def request(prompt: int, tokens: int) -> ScoreRequest:
        return ScoreRequest(
            prompt_tokens=frozen_array(np.ones(prompt), np.int32), tokens=frozen_array(np.ones(tokens), np.int32)
        )

    assert len(probe.score([request(40, 24)])[0]) == 24
    with pytest.raises(ContextError, match=r"prompt of 40 tokens and 25 tokens after it .* context of 64"):
        probe.score([request(3, 4), request(40, 25)])
