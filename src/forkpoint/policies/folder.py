"""A policy from a folder in the Hugging Face format; nothing is ever fetched and no code of the folder is run."""

import math
import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

from forkpoint.errors import ModelError
from forkpoint.policies.causal import CausalPolicy
from forkpoint.policies.texts import Texts
from forkpoint.seeds import Key

DTYPES = {
    "float64": torch.float64,
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


def load_folder(folder: Path, *, dtype: str = "float32", device: str = "cpu") -> CausalPolicy:
    """The policy in a folder.

    Raises ModelError when there is no model, no tokenizer, a weight too few, or a model that `CausalPolicy` refuses.
    """
    if not (folder / "config.json").is_file():
        raise ModelError(f"there is no model at {folder}: config.json is missing.")
    torch_dtype, loud = DTYPES[dtype], logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch_dtype, local_files_only=True, trust_remote_code=False, output_loading_info=True
        )
    except (AttributeError, KeyError, OSError, RuntimeError, SafetensorError, TypeError, ValueError) as error:
        line = " ".join(str(error).split()) or "no more is known"
        raise ModelError(f"the model at {folder} cannot be loaded: {type(error).__name__}: {line[:200]}") from None
    finally:
        logging.set_verbosity(loud)
    # Where it was loaded from is no part of a tokenizer: a resumed run must save the same bytes.
    for name in ("is_local", "local_files_only"):
        tokenizer.init_kwargs.pop(name, None)
    model, report = loaded
    absent = sorted(report["missing_keys"])
    if absent:
        raise ModelError(f"the model at {folder} lacks {len(absent)} of its weights, {absent[0]} for one.")
    if not set(tokenizer.get_vocab()) - set(tokenizer.all_special_tokens):
        raise ModelError(f"the model at {folder} has no tokenizer.")
    return CausalPolicy(model, Texts(tokenizer), device=device)


def add_adapters(
    policy: CausalPolicy, *, rank: int, alpha: float, modules: str | tuple[str, ...], key: Key
) -> CausalPolicy:
    """The policy with low-rank adapters as its only trained weights (arXiv 2106.09685).

    The first factor is drawn from `key`, uniform within 1 / sqrt(fan in); the second is zero, so nothing changes yet.
    Raises ModelError when the extra `lora` is not installed, and for modules that the model does not have.
    """
    try:
        from peft import LoraConfig, get_peft_model  # noqa: PLC0415  (an optional extra)
    except ImportError:
        raise ModelError("[policy] lora needs the extra `lora`: pip install 'forkpoint[lora]'.") from None
    targets: Any = modules if isinstance(modules, str) else list(modules)
    settings = LoraConfig(r=rank, lora_alpha=alpha, target_modules=targets, task_type="CAUSAL_LM")
    try:
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # peft asks transformers by names that are on their way out
            model = get_peft_model(policy.model, settings)
    except ValueError as error:
        raise ModelError(f"[policy] lora: {' '.join(str(error).split())[:200]}") from None
    draw = key.generator()
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            if "lora_A" in name:
                values = draw.uniform(-1.0, 1.0, parameter.shape) / math.sqrt(parameter.shape[1])
                parameter.copy_(torch.from_numpy(values).to(parameter.dtype))
    return CausalPolicy(model, policy.texts, device=str(policy.device))
