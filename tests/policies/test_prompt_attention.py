"""A decoder whose outputs see the prompt and themselves alone: scored, decoded, continued and reloaded the same way."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from forkpoint.batching import Row, pad_rows
from forkpoint.policies.causal import CausalPolicy
from forkpoint.policies.folder import load_folder
from forkpoint.policies.texts import Texts, alphabet_tokenizer
from forkpoint.policies.tiny import attend_prompt, build_decoder
from forkpoint.probe import SampleRequest
from forkpoint.records import Problem
from forkpoint.sampling.engine import LocalSampler
from forkpoint.seeds import Key

PROMPT = np.array([3, 4, 5, 6, 7], np.int32)


def policy(attend: str = "prompt") -> CausalPolicy:
    tokenizer = alphabet_tokenizer("abcdefgh")
    model = build_decoder(
        shape="qwen3", vocabulary=len(tokenizer), layers=2, width=16, heads=2, context=64,
        key=Key.root(4),
    )  # fmt: skip
    if attend == "prompt":
        attend_prompt(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(6.0 if parameter.ndim > 1 else 1.0)
    return CausalPolicy(model, Texts(tokenizer))


def logprobs(chosen: CausalPolicy, tokens: list[int]) -> np.ndarray:
    row = Row(prompt=PROMPT, tokens=np.array(tokens, np.int32), loss_mask=np.ones(len(tokens), np.bool_))
    with torch.no_grad():
        return chosen.logprobs(pad_rows([row, row], (0, 1)))[0][0].numpy()


def request(index: int, parent=None, prefix_length: int = 0) -> SampleRequest:
    return SampleRequest(
        key=Key.root(1).child(index, prefix_length),
        problem=Problem(task="t", key="k", prompt="", answer="", difficulty=None, metadata={}),
        prompt_tokens=PROMPT, group_id="g", stage="s", update=1, index=index, max_new_tokens=12, temperature=1.0,
        stop=(), parent=parent, prefix_length=prefix_length,
    )  # fmt: skip


def sampled(chosen: CausalPolicy, requests):
    return {rollout.id: rollout for rollout in LocalSampler(chosen).stream(requests)}


@pytest.mark.parametrize("attend", ["prompt", "all"])
def test_a_token_depends_on_the_prompt_and_the_one_before_alone(attend: str) -> None:
    chosen = policy(attend)
    one, other = logprobs(chosen, [3, 4, 5, 6, 7]), logprobs(chosen, [8, 9, 5, 6, 7])
    same = np.abs(one[3:] - other[3:]).max()
    assert np.abs(one[:3] - other[:3]).max() > 1e-3
    assert same < 1e-6 if attend == "prompt" else same > 1e-3


def test_its_prompt_is_read_as_by_any_decoder() -> None:
    assert logprobs(policy(), [3])[0] == pytest.approx(logprobs(policy("all"), [3])[0], abs=1e-6)
    assert abs(logprobs(policy(), [3, 4, 5])[2] - logprobs(policy("all"), [3, 4, 5])[2]) > 1e-3


def test_what_is_decoded_is_what_is_scored() -> None:
    chosen = policy()
    for rollout in sampled(chosen, [request(index) for index in range(20)]).values():
        assert logprobs(chosen, rollout.tokens.tolist()) == pytest.approx(rollout.behavior_logprobs, abs=1e-4)


def test_a_continuation_sees_its_prefix_no_more_than_the_rollout_did() -> None:
    chosen = policy()
    (parent,) = (each for each in sampled(chosen, [request(0)]).values())
    assert len(parent.tokens) > 6
    found = sampled(chosen, [replace(request(index, parent, cut)) for index in range(6) for cut in (1, 3, 5)])
    assert len({each.prefix_length for each in found.values()}) == 3
    for rollout in found.values():
        assert logprobs(chosen, rollout.tokens.tolist()) == pytest.approx(rollout.behavior_logprobs, abs=1e-4)


def test_a_saved_one_comes_back_as_it_was(tmp_path) -> None:
    chosen = policy()
    chosen.save(tmp_path)
    loaded = load_folder(tmp_path)
    assert not loaded.sees_outputs
    assert logprobs(loaded, [3, 4, 5, 6]) == pytest.approx(logprobs(chosen, [3, 4, 5, 6]), abs=1e-6)
