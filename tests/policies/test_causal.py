"""The policy against the plain forward of transformers: values, gradients, and which models are refused."""

from typing import Any

import numpy as np
import policy_examples as examples
import pytest
import torch

from forkpoint.batching import Row, pad_prompts, pad_rows
from forkpoint.errors import ModelError
from forkpoint.policies import causal
from forkpoint.policies.causal import CausalPolicy
from forkpoint.policies.texts import Texts, alphabet_tokenizer


def rows(*, seed: int = 0, vocabulary: int = examples.VOCABULARY, longest: int = 12) -> list[Row]:
    """Ragged rows, some of which share a prompt."""
    draw = np.random.default_rng(seed)
    prompts = [draw.integers(2, vocabulary, size).astype(np.int32) for size in (1, 9, 5)]
    made = []
    for prompt, length in ((0, longest), (1, 3), (1, 7), (2, 1), (1, 12), (0, 2)):
        mask = draw.random(length) < 0.7
        mask[-1] = True
        tokens = draw.integers(2, vocabulary, length).astype(np.int32)
        made.append(Row(prompt=prompts[prompt], tokens=tokens, loss_mask=mask))
    return made


def plain_logprobs(policy: CausalPolicy, row: Row, temperature: float = 1.0) -> torch.Tensor:
    """The oracle: one sequence through `model(input_ids)`, no cache, no padding."""
    ids = torch.from_numpy(np.concatenate([row.prompt, row.tokens])).long()[None]
    logits = policy.model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits[0]
    table = torch.log_softmax(logits / temperature, dim=-1)
    return table[len(row.prompt) - 1 : -1].gather(-1, torch.from_numpy(row.tokens).long()[:, None])[:, 0]


@pytest.mark.parametrize("family", examples.FAMILIES)
def test_log_probabilities_agree_with_a_plain_forward(family: str) -> None:
    policy = examples.build_policy(family)
    chosen = rows()
    batch = pad_rows(chosen, range(len(chosen)))
    with torch.no_grad():
        logprobs, _ = policy.logprobs(batch, where=torch.ones_like(batch.loss_mask))
        for place, row in enumerate(chosen):
            oracle = plain_logprobs(policy, row)
            assert len(oracle) < 7 or float(oracle.max() - oracle.min()) > 0.1
            assert float((logprobs[place, : len(row.tokens)] - oracle).abs().max()) < 2e-5


# Llama's norms compute in fp32 whatever the weights are; those of GPT-2 and GPT-NeoX do not.
@pytest.mark.parametrize(("family", "allowed"), [("GPT-2", 1e-10), ("GPT-NeoX", 1e-10), ("Llama grouped", 1e-5)])
def test_shared_prompts_give_the_gradient_of_whole_sequences(family: str, allowed: float) -> None:
    policy = examples.build_policy(family)
    policy.model.double()
    chosen = rows()
    batch = pad_rows(chosen, range(len(chosen)))
    weights = torch.linspace(-1.0, 2.0, batch.tokens.numel(), dtype=torch.float64).reshape(batch.tokens.shape)
    logprobs, _ = policy.logprobs(batch, temperature=0.7)
    (logprobs * weights).sum().backward()
    ours = [parameter.grad.clone() for parameter in policy.model.parameters()]
    policy.model.zero_grad()
    for place, row in enumerate(chosen):
        size = len(row.tokens)
        kept = weights[place, :size] * torch.from_numpy(row.loss_mask)
        (plain_logprobs(policy, row, 0.7) * kept).sum().backward()
    for mine, parameter in zip(ours, policy.model.parameters(), strict=True):
        assert float((mine - parameter.grad).norm() / parameter.grad.norm().clamp_min(1e-6)) < allowed


@pytest.mark.parametrize("family", ["GPT-2", "GPT-NeoX"])
def test_prompts_computed_once_for_several_batches_give_the_same_gradient(family: str) -> None:
    policy = examples.build_policy(family)
    policy.model.double()
    chosen = rows()
    table = pad_prompts(chosen)
    forwards = 0

    def count(*_: Any) -> None:
        nonlocal forwards
        forwards += 1

    handle = policy.model.base_model.register_forward_hook(count)
    with policy.prompts_once(table) as score:
        for places in ([0, 3], [1, 5], [2, 4]):
            score(pad_rows(chosen, places, table=table))[0].square().sum().backward()
    handle.remove()
    assert forwards == 4  # the prompts once, and each batch
    ours = [parameter.grad.clone() for parameter in policy.model.parameters()]
    policy.model.zero_grad()
    for row in chosen:
        kept = plain_logprobs(policy, row) * torch.from_numpy(row.loss_mask)
        kept.square().sum().backward()
    for mine, parameter in zip(ours, policy.model.parameters(), strict=True):
        assert float((mine - parameter.grad).norm() / parameter.grad.norm().clamp_min(1e-6)) < 1e-10


def test_prompts_once_leaves_a_frozen_policy_without_a_graph() -> None:
    policy = examples.build_policy()
    policy.model.requires_grad_(False)
    chosen = rows()
    table = pad_prompts(chosen)
    with policy.prompts_once(table) as score:
        logprobs, _ = score(pad_rows(chosen, range(6), table=table))
    assert not logprobs.requires_grad
    assert torch.equal(logprobs, policy.logprobs(pad_rows(chosen, range(6)))[0])


def test_the_gradient_reaches_only_masked_tokens_and_where_takes_its_place() -> None:
    policy = examples.build_policy()
    batch = pad_rows(rows(), range(6))
    logprobs, entropy = policy.logprobs(batch)
    assert torch.equal(logprobs == 0, ~batch.loss_mask)
    assert torch.equal(entropy == 0, ~batch.loss_mask)
    assert not entropy.requires_grad
    everywhere, _ = policy.logprobs(batch, where=torch.ones_like(batch.loss_mask))
    assert torch.allclose(everywhere[batch.loss_mask], logprobs[batch.loss_mask], atol=1e-5)


def test_entropy_is_that_of_the_tempered_distribution() -> None:
    policy = examples.build_policy()
    row = rows()[1]
    batch = pad_rows([row], [0])
    with torch.no_grad():
        _, entropy = policy.logprobs(batch, temperature=1.5, where=torch.ones_like(batch.loss_mask))
        ids = torch.from_numpy(np.concatenate([row.prompt, row.tokens])).long()[None]
        logits = policy.model(input_ids=ids).logits[0, len(row.prompt) - 1 : -1]
        oracle = torch.distributions.Categorical(logits=logits / 1.5).entropy()
    assert torch.allclose(entropy[0], oracle, atol=1e-5)


def test_right_padding_and_company_change_nothing() -> None:
    policy = examples.build_policy("Qwen3")
    chosen = rows()
    with torch.no_grad():
        together, _ = policy.logprobs(pad_rows(chosen, range(6)))
        for place, row in enumerate(chosen):
            alone, _ = policy.logprobs(pad_rows([row], [0]))
            assert torch.allclose(together[place, : len(row.tokens)], alone[0], atol=1e-5)


def test_chunks_of_logits_give_the_same_values_and_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = examples.build_policy()
    batch = pad_rows(rows(), range(6))
    results = []
    for most in (1 << 24, 3 * examples.VOCABULARY, 1):
        monkeypatch.setattr(causal, "MAX_LOGITS", most)
        logprobs, entropy = policy.logprobs(batch)
        policy.model.zero_grad()
        logprobs.square().sum().backward()
        results.append((logprobs, entropy, [parameter.grad for parameter in policy.model.parameters()]))
    for logprobs, entropy, gradients in results[1:]:
        assert torch.allclose(logprobs, results[0][0], atol=1e-6)
        assert torch.allclose(entropy, results[0][1], atol=1e-6)
        for mine, theirs in zip(gradients, results[0][2], strict=True):
            assert float((mine - theirs).norm() / theirs.norm()) < 1e-5
    with torch.inference_mode():
        assert torch.allclose(policy.logprobs(batch)[0], results[0][0], atol=1e-6)


def test_padding_may_reach_past_the_context_of_learned_positions() -> None:
    policy = examples.build_policy("GPT-2", n_positions=13)
    chosen = rows()
    with torch.no_grad():
        logprobs, _ = policy.logprobs(pad_rows(chosen[:4], range(4)))
    oracle = plain_logprobs(policy, chosen[1]).detach() * torch.from_numpy(chosen[1].loss_mask)
    assert torch.allclose(logprobs[1, :3], oracle, atol=1e-5)


def test_a_batch_without_tokens_has_no_log_probabilities() -> None:
    row = Row(prompt=np.array([2], np.int32), tokens=np.array([], np.int32), loss_mask=np.array([], np.bool_))
    logprobs, _ = examples.build_policy().logprobs(pad_rows([row], [0]))
    assert logprobs.shape == (1, 0)


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("Gemma2ForCausalLM", examples.GROUPED | {"head_dim": 8}, "caps its logits"),
    ("CohereForCausalLM", examples.GROUPED, "not those of its head"),
    ("GraniteForCausalLM", examples.GROUPED | {"logits_scaling": 8.0}, "not those of its head"),
    ("LlamaForCausalLM", examples.GROUPED | {"attn_implementation": "eager"}, "not those of its head"),
    ("MambaForCausalLM", {"vocab_size": examples.VOCABULARY, "hidden_size": 32, "num_hidden_layers": 1}, "layers of"),
    ("BloomForCausalLM", {"vocab_size": examples.VOCABULARY, "hidden_size": 32, "n_layer": 1, "n_head": 4}, "bloom"),
]


@pytest.mark.parametrize(("name", "settings", "why"), REFUSED, ids=[f"{row[0]}" for row in REFUSED])
def test_a_model_that_would_be_wrong_is_refused(name: str, settings: dict[str, Any], why: str) -> None:
    model = examples.build_model(name, settings)
    with pytest.raises(ModelError, match=why) as caught:
        CausalPolicy(model, Texts(alphabet_tokenizer(examples.ALPHABET)))
    assert "\n" not in str(caught.value)


def test_weights_that_are_no_numbers_and_too_large_a_tokenizer_are_refused() -> None:
    model = examples.build_model(*examples.FAMILIES["Llama"])
    with pytest.raises(ModelError, match="the token 31, but its head ends at 30"):
        CausalPolicy(model, Texts(alphabet_tokenizer(examples.ALPHABET + "0")))
    with torch.no_grad():
        model.get_output_embeddings().weight[3] = float("nan")
    with pytest.raises(ModelError, match="not finite"):
        CausalPolicy(model, Texts(alphabet_tokenizer(examples.ALPHABET)))


def test_a_window_of_attention_shortens_the_context() -> None:
    assert examples.build_policy("Mistral", sliding_window=24).context_length == 24
    assert examples.build_policy("Mistral", sliding_window=4096).context_length == 64
    assert examples.build_policy("Gemma3", sliding_window=16).context_length == 16
    assert examples.build_policy("Qwen2", sliding_window=16, use_sliding_window=False).context_length == 64


def test_rotary_frequencies_that_change_at_a_length_shorten_the_context() -> None:
    rotary = {
        "rope_type": "longrope", "rope_theta": 10000.0, "short_factor": [1.0] * 4, "long_factor": [4.0] * 4,
        "factor": 2.0, "original_max_position_embeddings": 32,
    }  # fmt: skip
    settings = examples.GROUPED | {
        "rope_parameters": rotary, "original_max_position_embeddings": 32, "bos_token_id": 1,
    }  # fmt: skip
    model = examples.build_model("Phi3ForCausalLM", settings)
    assert CausalPolicy(model, Texts(alphabet_tokenizer(examples.ALPHABET))).context_length == 32
