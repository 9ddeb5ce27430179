"""The engine against plain forwards, against itself with other slots, and its own bookkeeping."""

import itertools
import random
from collections import Counter

import numpy as np
import pytest
import sampling_examples as examples
import torch
from scipy.stats import chi2_contingency

from forkpoint.batching import Row, pad_rows
from forkpoint.errors import ModelError
from forkpoint.policies.causal import CausalPolicy
from forkpoint.records import Rollout, SpanKind, StopReason
from forkpoint.sampling.engine import LocalSampler

STOPS = ((), (".",), ("ab",), ("c;", "ok", "."))
BPE_STOPS = ((), (".",), ("th",), ("é", " w"))


def as_bytes(rollout: Rollout) -> tuple[object, ...]:
    return (
        rollout.id, rollout.tokens.tobytes(), rollout.behavior_logprobs.tobytes(), rollout.loss_mask.tobytes(),
        rollout.text, rollout.stop_reason, rollout.spans,
    )  # fmt: skip


@pytest.mark.parametrize(("kind", "stops"), [("character", STOPS), ("gpt2", STOPS), ("bpe", BPE_STOPS)])
def test_slots_and_order_change_no_byte(kind: str, stops: tuple[tuple[str, ...], ...]) -> None:
    policy = {
        "character": examples.character_policy,
        "gpt2": lambda: examples.character_policy(family="gpt2", context=101),
        "bpe": examples.bpe_policy,
    }[kind]()
    requests = examples.ragged(policy, 300, stops)
    expected = [as_bytes(rollout) for rollout in examples.sample(policy, requests, slots=300)]
    assert {reason for *_, reason, _ in expected} == {StopReason.EOS, StopReason.STOP, StopReason.LENGTH}
    for slots, seed in ((8, None), (32, 1), (300, 2), (128, 3)):
        order = list(range(300))
        if seed is not None:
            random.Random(seed).shuffle(order)
        rollouts = examples.sample(policy, [requests[place] for place in order], slots=slots)
        found = {rollout.id: as_bytes(rollout) for rollout in rollouts}
        assert [found[row[0]] for row in expected] == expected


def test_chat_prompts_go_through_the_engine() -> None:
    policy = examples.bpe_policy()
    prompt = policy.texts.encode_prompt(({"role": "user", "content": "the world"},))
    assert prompt[-1] == policy.texts.eos_id
    rollout = examples.sample(policy, [examples.request(prompt, budget=30)])[0]
    assert np.allclose(rollout.behavior_logprobs, examples.full_logprobs(policy, rollout), atol=1e-4)


def policy_logprobs(policy: CausalPolicy, rollout: Rollout) -> np.ndarray:
    row = Row(prompt=rollout.prompt_tokens, tokens=rollout.tokens, loss_mask=np.ones(len(rollout.tokens), np.bool_))
    with torch.no_grad():
        logprobs, _ = policy.logprobs(pad_rows([row], [0]), temperature=rollout.temperature)
    return logprobs[0].numpy()


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_behavior_log_probabilities_are_the_trainers_and_those_of_a_full_forward(kind: str) -> None:
    policy = examples.character_policy(family=kind)
    rollouts = examples.sample(policy, examples.ragged(policy, 80, STOPS))
    for rollout in rollouts:
        if rollout.temperature == 0:
            assert not rollout.behavior_logprobs.any()
            continue
        assert np.allclose(rollout.behavior_logprobs, policy_logprobs(policy, rollout), atol=1e-5)
        assert np.allclose(rollout.behavior_logprobs, examples.full_logprobs(policy, rollout), atol=1e-4)


def test_every_prefix_of_a_rollout_scores_the_same() -> None:
    policy = examples.character_policy()
    rollout = examples.sample(policy, [examples.request(examples.prompts(policy, 1)[0], budget=24)])[0]
    whole = policy_logprobs(policy, rollout)
    for size in range(1, len(rollout.tokens)):
        row = Row(prompt=rollout.prompt_tokens, tokens=rollout.tokens[:size], loss_mask=np.ones(size, np.bool_))
        with torch.no_grad():
            part, _ = policy.logprobs(pad_rows([row], [0]))
        assert np.allclose(part[0].numpy(), whole[:size], atol=1e-5)


def test_temperature_zero_takes_the_most_probable_token() -> None:
    policy = examples.character_policy()
    rollout = examples.sample(policy, [examples.request(examples.prompts(policy, 1)[0], temperature=0.0)])[0]
    context = rollout.prompt_tokens.tolist()
    for token in rollout.tokens.tolist():
        with torch.no_grad():
            assert int(policy.model(torch.tensor([context])).logits[0, -1].argmax()) == token
        context.append(token)


def test_the_record_is_what_was_asked_for() -> None:
    policy = examples.character_policy()
    asked = examples.request(examples.prompts(policy, 1)[0], index=4, temperature=0.9)
    rollout = examples.sample(policy, [asked])[0]
    assert (rollout.id, rollout.seed, rollout.group_id) == (asked.key.hex, asked.key.hex, "group")
    assert (rollout.stage, rollout.update, rollout.index, rollout.temperature) == ("stage", 3, 4, 0.9)
    assert (rollout.problem_key, rollout.parent_id, rollout.prefix_length) == (examples.PROBLEM.key, None, 0)
    assert rollout.loss_mask.all()
    assert rollout.text == policy.texts.decode(rollout.tokens)
    (span,) = rollout.spans
    assert (span.start, span.end, span.kind, span.policy_version) == (0, len(rollout.tokens), SpanKind.ACTION, 11)
    assert [rollout.tokens.dtype, rollout.behavior_logprobs.dtype, rollout.loss_mask.dtype] == [
        np.int32, np.float32, np.bool_,
    ]  # fmt: skip
    assert not rollout.tokens.flags.writeable


@pytest.mark.parametrize(
    ("kind", "stops"),
    [
        ("character", (".",)), ("character", ("ab",)), ("character", ("c;", "ok", ".")),
        ("two", ("abba", "bbb", "aab")),
        ("bpe", ("é", "the", " w", "lo", "1")), ("byte", ("éa", "√")), ("byte", ("ééé", "aéa", "√é")),
    ],
)  # fmt: skip
def test_stop_strings_end_at_their_first_completion(kind: str, stops: tuple[str, ...]) -> None:
    policy = {
        "character": examples.character_policy,
        "two": lambda: examples.character_policy(alphabet="ab"),
        "bpe": examples.bpe_policy,
        "byte": examples.byte_policy,
    }[kind]()
    found = Counter[StopReason]()
    texts, count = policy.texts, 600 if kind in ("two", "byte") else 100
    asked = [examples.request(examples.prompts(policy, 1)[0], place, budget=80, stop=stops) for place in range(count)]
    for rollout in examples.sample(policy, asked):
        ends = [
            size for size in range(1, len(rollout.tokens) + 1) if has_stop(texts.decode(rollout.tokens[:size]), stops)
        ]
        found[rollout.stop_reason] += 1
        if rollout.stop_reason is StopReason.STOP:
            assert ends == [len(rollout.tokens)]
        else:
            assert ends == []
            last = rollout.tokens[-1] == texts.eos_id
            assert rollout.stop_reason == (StopReason.EOS if last else StopReason.LENGTH)
            assert last or len(rollout.tokens) == 80
    assert found[StopReason.STOP] >= 2


def has_stop(text: str, stops: tuple[str, ...]) -> bool:
    return any(stop in text for stop in stops)


def test_budgets_end_at_the_budget_or_at_the_context() -> None:
    policy = examples.character_policy(context=32, alphabet="ab", family="gpt2")
    with torch.no_grad():
        policy.model.transformer.wte.weight[1] -= 100 * policy.model.transformer.ln_f.weight.sign()
    prompt = np.full(28, 2, np.int32)
    rollouts = examples.sample(policy, [examples.request(prompt, place, budget=9) for place in range(20)])
    assert {len(rollout.tokens) for rollout in rollouts if rollout.stop_reason is StopReason.LENGTH} == {4}
    short = examples.sample(policy, [examples.request(prompt[:3], 99, budget=1)])[0]
    assert len(short.tokens) == 1


def test_no_forward_is_spent_on_finished_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = examples.character_policy(alphabet="abcdefghijklmnopqrstuvwxyz")
    draw = np.random.default_rng(0)
    lengths = np.clip(draw.geometric(1 / 16, 400), 1, 120)
    prompt = examples.prompts(policy, 1, longest=8)[0]
    steps: list[int] = []
    forward = CausalPolicy.forward

    def spy(self: CausalPolicy, tokens: torch.Tensor, *rest: object) -> torch.Tensor:
        if tokens.shape[1] == 1:
            steps.append(tokens.shape[0])
        return forward(self, tokens, *rest)

    monkeypatch.setattr(CausalPolicy, "forward", spy)
    asked = [examples.request(prompt, place, budget=int(size)) for place, size in enumerate(lengths)]
    rollouts = examples.sample(policy, asked, slots=40)
    # The first token of each rollout comes with its prompt.
    fed = sum(len(rollout.tokens) - 1 for rollout in rollouts)
    longest = max(len(rollout.tokens) for rollout in rollouts)
    assert len(steps) <= fed / 40 + longest
    assert sum(steps) < fed + 8 * len(steps)
    assert max(steps) == 40


def test_a_list_that_fits_needs_one_forward_per_further_token(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = examples.character_policy()
    calls: list[int] = []
    forward = CausalPolicy.forward

    def spy(self: CausalPolicy, tokens: torch.Tensor, *rest: object) -> torch.Tensor:
        calls.append(tokens.shape[1])
        return forward(self, tokens, *rest)

    monkeypatch.setattr(CausalPolicy, "forward", spy)
    prompt = examples.prompts(policy, 1)[0]
    rollouts = examples.sample(policy, [examples.request(prompt, place, budget=20) for place in range(16)])
    longest = max(len(rollout.tokens) for rollout in rollouts)
    assert Counter(size > 1 for size in calls) == {True: 1, False: longest - 1}
    assert examples.sample(policy, []) == []
    calls.clear()
    examples.sample(policy, [examples.request(prompt, place, budget=1) for place in range(16)])
    assert len(calls) == 1


def test_a_continuation_keeps_its_parents_prefix() -> None:
    policy = examples.character_policy()
    prompt = examples.prompts(policy, 1)[0]
    parent = next(
        rollout
        for rollout in examples.sample(policy, [examples.request(prompt, place, budget=40) for place in range(40)])
        if len(rollout.tokens) > 20
    )
    child = examples.sample(policy, [examples.request(prompt, 1, seed=5, budget=40, parent=parent, prefix=9)])[0]
    assert (child.parent_id, child.prefix_length) == (parent.id, 9)
    assert child.tokens[:9].tolist() == parent.tokens[:9].tolist()
    assert child.behavior_logprobs[:9].tobytes() == parent.behavior_logprobs[:9].tobytes()
    assert not child.loss_mask[:9].any()
    assert child.loss_mask[9:].all()
    assert len(child.tokens) <= 40
    assert [(span.start, span.end) for span in child.spans] == [(0, 9), (9, len(child.tokens))]
    assert np.allclose(child.behavior_logprobs, examples.full_logprobs(policy, child), atol=1e-4)
    again = examples.sample(
        policy, [examples.request(prompt, 2, budget=41, parent=child, prefix=len(child.tokens) - 1)]
    )[0]
    assert again.tokens[: len(child.tokens) - 1].tolist() == child.tokens[:-1].tolist()
    assert [span.end for span in again.spans[:2]] == [9, len(child.tokens) - 1]


def test_the_same_stream_continues_a_parent_as_the_parent_went_on() -> None:
    policy = examples.character_policy()
    asked = examples.request(examples.prompts(policy, 1)[0], 3, budget=30)
    parent = examples.sample(policy, [asked])[0]
    assert len(parent.tokens) > 6
    again = examples.request(asked.prompt_tokens, 3, budget=30, parent=parent, prefix=5)
    assert examples.sample(policy, [again])[0].tokens.tolist() == parent.tokens.tolist()


def test_a_continuation_has_the_distribution_of_the_longer_prompt() -> None:
    policy = examples.character_policy()
    prompt = examples.prompts(policy, 1)[0]
    parent = next(
        rollout
        for rollout in examples.sample(policy, [examples.request(prompt, place) for place in range(40)])
        if len(rollout.tokens) > 8
    )
    longer = np.concatenate([prompt, parent.tokens[:5]]).astype(np.int32)
    continued = [examples.request(prompt, place, seed=1, budget=7, parent=parent, prefix=5) for place in range(3000)]
    direct = [examples.request(longer, place, seed=2, budget=2) for place in range(3000)]
    tables = [
        Counter(tuple(rollout.tokens[start:].tolist()) for rollout in examples.sample(policy, asked, slots=512))
        for asked, start in ((continued, 5), (direct, 0))
    ]
    often = [key for key, count in (tables[0] + tables[1]).items() if count >= 40]
    counts = np.array([[table[key] for key in often] for table in tables])
    rest = 3000 - counts.sum(1, keepdims=True)
    table = np.concatenate([counts, rest], axis=1)
    assert chi2_contingency(table[:, table.sum(0) > 0]).pvalue > 1e-4


def test_a_stop_string_may_begin_in_the_prefix() -> None:
    policy = examples.character_policy()
    prompt = examples.prompts(policy, 1)[0]
    asked = [examples.request(prompt, place, budget=60, stop=("ab", "c;", "ok", "de", "fg")) for place in range(60)]
    parents = [made for made in examples.sample(policy, asked) if made.stop_reason is StopReason.STOP]
    assert len(parents) > 3
    for parent in parents:
        place, size = parent.index, len(parent.tokens)
        again = examples.request(
            prompt, place, budget=60, stop=("ab", "c;", "ok", "de", "fg"), parent=parent, prefix=size - 1
        )
        child = examples.sample(policy, [again])[0]
        assert (child.tokens.tolist(), child.stop_reason) == (parent.tokens.tolist(), StopReason.STOP)


def test_wrong_requests_are_refused() -> None:
    policy = examples.character_policy(context=32)
    prompt = examples.prompts(policy, 1, longest=9)[0]
    parent = examples.sample(policy, [examples.request(prompt, 0, budget=6)])[0]
    size = len(parent.tokens)
    with pytest.raises(ModelError, match="a prompt of 32 tokens leaves no room in the model's context of 32"):
        examples.sample(policy, [examples.request(np.full(32, 2, np.int32))])
    with pytest.raises(ModelError, match="a prompt of 0 tokens"):
        examples.sample(policy, [examples.request(prompt[:0])])
    with pytest.raises(ValueError, match="longer than what it is taken from"):
        examples.sample(policy, [examples.request(prompt, parent=parent, prefix=size + 1)])
    with pytest.raises(ValueError, match="longer than what it is taken from"):
        examples.sample(policy, [examples.request(prompt, prefix=1)])
    with pytest.raises(ValueError, match="leaves no room in a budget of 3"):
        examples.sample(policy, [examples.request(prompt, parent=parent, prefix=3, budget=3)])
    done = next(
        made
        for seed in itertools.count()
        for made in examples.sample(policy, [examples.request(prompt, seed=seed)])
        if made.stop_reason is StopReason.EOS
    )
    with pytest.raises(ValueError, match="is over"):
        examples.sample(policy, [examples.request(prompt, parent=done, prefix=len(done.tokens), budget=22)])


def test_weights_that_turned_into_no_numbers_are_an_error() -> None:
    policy = examples.character_policy()
    with torch.no_grad():
        policy.model.get_output_embeddings().weight[5] = float("nan")
    for temperature in (1.0, 0.0):
        with pytest.raises(ModelError, match="not finite"):
            examples.sample(policy, [examples.request(examples.prompts(policy, 1)[0], temperature=temperature)])


def test_slots_are_a_multiple_of_eight_and_at_least_eight() -> None:
    policy = examples.character_policy()
    assert [LocalSampler(policy, slots=slots).slots for slots in (1, 8, 9, 300)] == [8, 8, 16, 304]
