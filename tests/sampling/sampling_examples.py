"""Small policies with a wide enough choice of tokens, and ragged requests for them."""

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from forkpoint.policies.causal import CausalPolicy
from forkpoint.policies.texts import Texts, alphabet_tokenizer
from forkpoint.probe import SampleRequest
from forkpoint.records import Ints, Problem, Rollout, frozen_array
from forkpoint.sampling.engine import LocalSampler
from forkpoint.seeds import Key
from forkpoint.tasks.protocol import Interactive

ALPHABET = "abcdefgh.;ok "
PROBLEM = Problem(task="toy", key="5", prompt="a", answer="b")


def widened(model: torch.nn.Module, by: float = 6.0) -> torch.nn.Module:
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.mul_(by)
    return model


def character_policy(*, context: int = 160, alphabet: str = ALPHABET, family: str = "llama") -> CausalPolicy:
    tokenizer = alphabet_tokenizer(alphabet)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if family == "gpt2":
            gpt2 = GPT2Config(
                vocab_size=len(tokenizer), n_embd=32, n_layer=2, n_head=2, n_positions=context, pad_token_id=0,
                eos_token_id=1, bos_token_id=1,
            )  # fmt: skip
            return CausalPolicy(widened(GPT2LMHeadModel(gpt2)), Texts(tokenizer))
        llama = LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=context, pad_token_id=0,
            eos_token_id=1, bos_token_id=None,
        )  # fmt: skip
        return CausalPolicy(widened(LlamaForCausalLM(llama)), Texts(tokenizer))


def bpe_policy() -> CausalPolicy:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=290, special_tokens=["<|end|>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )  # fmt: skip
    tokenizer.train_from_iterator(["hello world. é ü the answer is", "the world"], trainer)
    made = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>")
    made.chat_template = "{% for message in messages %}{{ message['content'] }}<|end|>{% endfor %}"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        llama = LlamaConfig(
            vocab_size=len(made), hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4,
            max_position_embeddings=128, pad_token_id=0, eos_token_id=0, bos_token_id=None,
        )  # fmt: skip
        return CausalPolicy(widened(LlamaForCausalLM(llama)), Texts(made))


def byte_policy() -> CausalPolicy:
    """Five single bytes and the end: characters of one, two and three bytes come apart over tokens."""
    bytes_of = dict(zip("é√a".encode(), ("Ã", "©", "â", "Ī", "ļ", "a"), strict=True))
    vocabulary = {"<end>": 0} | {text: place + 1 for place, text in enumerate(bytes_of.values())}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    made = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        llama = LlamaConfig(
            vocab_size=len(made), hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
            max_position_embeddings=128, pad_token_id=0, eos_token_id=0, bos_token_id=None,
        )  # fmt: skip
        return CausalPolicy(LlamaForCausalLM(llama), Texts(made))


def request(
    prompt: Ints, index: int = 0, *, seed: int = 0, budget: int = 20, temperature: float = 1.0,
    stop: tuple[str, ...] = (), parent: Rollout | None = None, prefix: int = 0,
) -> SampleRequest:  # fmt: skip
    return SampleRequest(
        key=Key.root(seed).child("rollout", index), problem=PROBLEM, prompt_tokens=prompt, group_id="group",
        stage="stage", update=3, index=index, max_new_tokens=budget, temperature=temperature, stop=stop,
        parent=parent, prefix_length=prefix,
    )  # fmt: skip


def prompts(policy: CausalPolicy, count: int, *, longest: int = 40) -> list[Ints]:
    draw = np.random.default_rng(7)
    top = len(policy.texts.tokenizer)
    return [frozen_array(draw.integers(2, top, int(draw.integers(1, longest))), np.int32) for _ in range(count)]


def ragged(policy: CausalPolicy, count: int, stops: Sequence[tuple[str, ...]]) -> list[SampleRequest]:
    """Groups of 5 with ragged prompts, budgets, temperatures and stops."""
    shared = prompts(policy, -(-count // 5))
    return [
        request(
            shared[place // 5],
            place,
            budget=1 + (place * 37) % 43,
            temperature=(1.0, 0.7, 1.6, 0.0)[place % 4],
            stop=stops[place % len(stops)],
        )
        for place in range(count)
    ]


def sample(
    policy: CausalPolicy, requests: Iterable[SampleRequest], *, slots: int = 64, environment: Interactive | None = None
) -> list[Rollout]:
    """Rollouts in the order of the requests."""
    listed = list(requests)
    sampler = LocalSampler(policy, slots=slots, environment=environment)
    sampler.update_weights(11)
    found = {rollout.id: rollout for rollout in sampler.stream(listed)}
    assert len(found) == len(listed)
    return [found[made.key.hex] for made in listed]


def full_logprobs(policy: CausalPolicy, rollout: Rollout) -> torch.Tensor:
    """The oracle: one plain forward of the whole sequence, no cache."""
    ids = torch.from_numpy(np.concatenate([rollout.prompt_tokens, rollout.tokens])).long()[None]
    with torch.no_grad():
        logits = policy.model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits[0]
    table = torch.log_softmax(logits.double() / rollout.temperature, dim=-1)[len(rollout.prompt_tokens) - 1 : -1]
    return table.gather(-1, torch.tensor(rollout.tokens.tolist())[:, None])[:, 0]
