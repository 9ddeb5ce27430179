"""Small random models of many families, an alphabet tokenizer, and a byte-level BPE tokenizer with a chat template."""

from collections.abc import Mapping
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from forkpoint.policies.causal import CausalPolicy
from forkpoint.policies.texts import Texts, alphabet_tokenizer

ALPHABET = "abcdefghijklmnopqrstuvwxyz .;"
VOCABULARY = len(ALPHABET) + 2
COMMON = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "max_position_embeddings": 64, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": None,
}  # fmt: skip
GROUPED = COMMON | {"num_key_value_heads": 2}
GPT2 = {
    "vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 40, "pad_token_id": 0,
    "eos_token_id": 1, "bos_token_id": 1,
}  # fmt: skip
FAMILIES: dict[str, tuple[str, Mapping[str, Any]]] = {
    "Llama": ("LlamaForCausalLM", COMMON),
    "Llama grouped": ("LlamaForCausalLM", GROUPED),
    "Qwen3": ("Qwen3ForCausalLM", GROUPED | {"head_dim": 8}),
    "Qwen2": ("Qwen2ForCausalLM", GROUPED),
    "Mistral": ("MistralForCausalLM", GROUPED | {"sliding_window": None}),
    "Gemma": ("GemmaForCausalLM", GROUPED | {"head_dim": 8}),
    "Gemma3": ("Gemma3ForCausalLM", GROUPED | {"head_dim": 8}),
    "GPT-2": ("GPT2LMHeadModel", GPT2),
    "GPT-NeoX": ("GPTNeoXForCausalLM", COMMON),
}


def build_model(name: str, settings: Mapping[str, Any], *, seed: int = 0) -> PreTrainedModel:
    """A random model with weights large enough that every position matters."""
    kind = getattr(transformers, name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: PreTrainedModel = kind(kind.config_class(**settings))
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim >= 2:
                    parameter.mul_(8.0)
    return model.eval()


def build_policy(family: str = "Llama", *, seed: int = 0, **changes: Any) -> CausalPolicy:
    name, settings = FAMILIES[family]
    return CausalPolicy(build_model(name, {**settings, **changes}, seed=seed), Texts(alphabet_tokenizer(ALPHABET)))


TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] | trim }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CORPUS = [
    "the quick brown fox jumps over the lazy dog",
    "two plus three is five",
    "user system assistant",
    "a,b;c. é ü",
]


def bpe_tokenizer(*, template: str | None = TEMPLATE, bos: bool = False) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=specials, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )  # fmt: skip
    tokenizer.train_from_iterator(CORPUS, trainer)
    made = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>",
        additional_special_tokens=["<|im_start|>"], bos_token="<|endoftext|>" if bos else None,
    )  # fmt: skip
    made.chat_template = template
    return made


def bpe_policy() -> CausalPolicy:
    texts = Texts(bpe_tokenizer())
    settings = GROUPED | {"vocab_size": len(texts.tokenizer), "max_position_embeddings": 256, "head_dim": 8}
    return CausalPolicy(build_model("Qwen3ForCausalLM", settings), texts)
