"""A policy from a folder in the Hugging Face format; nothing is ever fetched and no code of the folder is run."""

import math
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

from forkpoint.errors import ModelError
from forkpoint.policies.causal import CausalPolicy
from forkpoint.policies.texts import Texts
from forkpoint.seeds import Key

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def load_folder(folder: Path, *, dtype: str = "float32", device: str = "cpu") -> CausalPolicy:
    """The policy in a folder.  Raises ModelError when there is no model, or one without a tokenizer."""
    if not (folder / "config.json").is_file():
        raise ModelError(f"there is no model at {folder}: config.json is missing.")
    logging.disable_progress_bar()
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=DTYPES[dtype], local_files_only=True, trust_remote_code=False
        )
    except (OSError, ValueError, KeyError) as error:
        line = str(error).strip().splitlines()[0]
        raise ModelError(f"the model at {folder} cannot be loaded: {line[:200]}") from None
    return CausalPolicy(model, Texts(tokenizer), device=device)


def add_adapters(
    policy: CausalPolicy, *, rank: int, alpha: float, modules: str | tuple[str, ...], key: Key
) -> CausalPolicy:
    """The policy with low-rank adapters as its only trained weights (arXiv 2106.09685).

    The first factor is drawn from `key`, uniform within 1 / sqrt(fan in); the second is zero, so nothing changes yet.
    Raises ModelError when the extra `lora` is not installed.
    """
    try:
        from peft import LoraConfig, get_peft_model  # noqa: PLC0415  (an optional extra)
    except ImportError:
        raise ModelError("[policy] lora needs the extra `lora`: pip install 'forkpoint[lora]'.") from None
    targets: Any = modules if isinstance(modules, str) else list(modules)
    settings = LoraConfig(r=rank, lora_alpha=alpha, target_modules=targets, task_type="CAUSAL_LM")
    with torch.random.fork_rng(devices=[]):
        model = get_peft_model(policy.model, settings)
    draw = key.generator()
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            if "lora_A" in name:
                values = draw.uniform(-1.0, 1.0, parameter.shape) / math.sqrt(parameter.shape[1])
                parameter.copy_(torch.from_numpy(values).to(parameter.dtype))
    return CausalPolicy(model, policy.texts, device=str(policy.device))
