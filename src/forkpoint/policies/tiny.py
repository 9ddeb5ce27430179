"""Small policies: standard Hugging Face decoders built from a config, with a tokenizer made from an alphabet."""

from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, Qwen3Config, Qwen3ForCausalLM

from forkpoint.seeds import Key


def build_decoder(
    *, shape: str, vocabulary: int, layers: int, width: int, heads: int, context: int, key: Key
) -> PreTrainedModel:
    """A decoder with weights drawn from `key`: normal with standard deviation 0.02, norms one, biases zero.

    `shape` is `llama` or `qwen3`; embeddings and head are tied.
    """
    common: dict[str, Any] = {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "intermediate_size": 64 * -(-(width * 8 // 3) // 64),
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "head_dim": width // heads,
        "max_position_embeddings": context,
        "tie_word_embeddings": True,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "bos_token_id": None,
    }
    with torch.random.fork_rng(devices=[]):
        model = Qwen3ForCausalLM(Qwen3Config(**common)) if shape == "qwen3" else LlamaForCausalLM(LlamaConfig(**common))
    draw = key.child("weights").generator()
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            if parameter.ndim >= 2:
                values = draw.standard_normal(parameter.shape) * 0.02
                parameter.copy_(torch.from_numpy(values).to(parameter.dtype))
            elif "norm" not in name:
                parameter.zero_()
    return model


def attend_prompt(model: PreTrainedModel, *, alone: bool = True) -> PreTrainedModel:
    """The model, marked so that `CausalPolicy` lets the tokens of a rollout see the prompt and themselves alone.

    Without `alone` they see all before them, as usual.  The mark is saved with the model; of other libraries none
    heeds it.
    """
    model.config.outputs_attend = "prompt" if alone else "all"
    return model
