"""What a recipe may say of the policy."""

from typing import Annotated, Literal, TypeAlias

from pydantic import Field, model_validator

from forkpoint.config.strict import Strict


class TinyPolicy(Strict):
    """A small decoder built from these sizes, with a tokenizer made from the task's alphabet."""

    kind: Literal["tiny"]
    shape: Literal["qwen3", "llama"] = "qwen3"
    """Architecture; `qwen3` normalizes queries and keys, which learns look-ups several times faster."""
    layers: Annotated[int, Field(ge=1, le=24)] = 3
    """Decoder layers, 1 to 24."""
    width: Annotated[int, Field(ge=8, le=1024)] = 96
    """Hidden size, 8 to 1024; a multiple of `heads`."""
    heads: Annotated[int, Field(ge=1, le=32)] = 4
    """Attention heads, 1 to 32; `width / heads` must be even."""
    context: Annotated[int, Field(ge=8, le=8192)] = 256
    """Most tokens of a prompt and its rollout together, 8 to 8192."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Number format of the weights."""
    device: str = "cpu"
    """Where the policy lives: `cpu`, `cuda`, `cuda:1`."""

    @model_validator(mode="after")
    def _heads_divide(self) -> "TinyPolicy":
        if self.width % self.heads or (self.width // self.heads) % 2:
            raise ValueError(f"width = {self.width} must be an even multiple of heads = {self.heads}")
        return self


class LoRA(Strict):
    """Low-rank adapters (arXiv 2106.09685); needs the extra `lora`."""

    rank: Annotated[int, Field(ge=1, le=512)] = 16
    """Rank of the adapters, 1 to 512."""
    alpha: Annotated[float, Field(gt=0)] = 32.0
    """Scale of the adapters is alpha / rank."""
    modules: str | tuple[str, ...] = "all-linear"
    """Which modules get adapters."""


class FolderPolicy(Strict):
    """A causal language model in the Hugging Face format, in a local folder."""

    kind: Literal["hf"]
    path: str
    """Folder, seen from the recipe's own; `package:NAME` is a model shipped with Forkpoint."""
    lora: LoRA | None = None
    """Train adapters instead of all weights."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Number format that the weights are loaded in, whatever the folder holds."""
    device: str = "cpu"
    """Where the policy lives: `cpu`, `cuda`, `cuda:1`."""


class TabularPolicy(Strict):
    """A policy over the moves of the task `lab`: a table of logits, or a transformer that begins as that table."""

    kind: Literal["tabular"]
    architecture: Literal["table", "transformer"] = "table"
    """`table`: one logit for each legal move; `transformer`: one attention head over the last edges added to it."""
    window: Annotated[int, Field(ge=1, le=1024)] = 8
    """Edges that the transformer sees, 1 to 1024; a table sees the last one."""
    start: str = "uniform"
    """`uniform` (the pretrained policy), `golden`, `optimal`, or a policy file of the lab, seen from the recipe."""
    dtype: Literal["float32", "float64"] = "float32"
    """Number format of the weights."""
    device: str = "cpu"
    """Where the policy lives: `cpu`, `cuda`, `cuda:1`."""


Policy: TypeAlias = Annotated[TinyPolicy | FolderPolicy | TabularPolicy, Field(discriminator="kind")]
