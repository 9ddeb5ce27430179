"""Does the gradient of a TRL trainer depend on how an update is cut into micro-batches?

TRL is imported here only when a question is asked, and is no dependency.  A script that wants to be asked defines

    def make_trainer(**overrides):
        return GRPOTrainer(
            model=..., reward_funcs=..., train_dataset=..., processing_class=...,
            args=GRPOConfig(**{"output_dir": "...", "loss_type": "bnpo", **overrides}),
        )

and nothing that trains at import.  The overrides are fields of `GRPOConfig` and must win.  Prompts, completions and
rewards are replaced by fixed ones, so no text is generated and no reward function of the script is called.
"""

import importlib
import importlib.util
import runpy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor
from transformers import TrainerCallback

from forkpoint.errors import ForkpointError, unknown_name
from forkpoint.seeds import Key

TrainerFactory: TypeAlias = Callable[..., Any]
"""`make_trainer(**overrides)`: a fresh `GRPOTrainer` whose `GRPOConfig` has the overrides."""

LOSS_TYPES = ("grpo", "dr_grpo", "dapo", "bnpo", "cispo", "sapo", "luspo", "vespo")
"""The values of `loss_type` in TRL 1.16."""
LENGTHS = (3, 17, 6, 29, 2, 11, 23, 8)
"""Tokens of the fixed completions, end of sequence included."""
REWARDS = (1.0, 0.0, 0.25, 0.0, 0.5, 1.0, 0.0, 1.0)
GROUP = 4
"""Completions of one prompt."""
TOLERANCE = {torch.float64: 1e-4, torch.float32: 1e-4, torch.float16: 0.02, torch.bfloat16: 0.05}
"""Largest relative difference that rounding may explain, by the precision of the weights."""
ONE_STEP: Mapping[str, Any] = {
    "max_steps": 1, "num_generations": GROUP, "max_completion_length": max(LENGTHS), "num_iterations": 1,
    "steps_per_generation": None, "generation_batch_size": None, "use_vllm": False, "disable_dropout": True,
    "bf16": False, "fp16": False, "learning_rate": 0.0, "max_grad_norm": 0.0, "report_to": "none",
    "logging_strategy": "no", "save_strategy": "no", "eval_strategy": "no", "disable_tqdm": True,
}  # fmt: skip
"""What a trainer is asked for beside the cut: one step without dropout, clipping of the norm, logs or files."""


class BridgeError(ForkpointError):
    """A script or its trainer cannot be asked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FixedBatch:
    """Eight completions of two prompts, as token ids, with their rewards."""

    prompts: tuple[tuple[int, ...], ...]
    completions: tuple[tuple[int, ...], ...]
    rewards: tuple[float, ...] = REWARDS


@dataclass(frozen=True, slots=True, kw_only=True)
class AccumulationGap:
    """One trainer's gradient of the same batch: 8 rows at once against 8 micro-batches of 1 row."""

    loss_type: str
    gap: float
    """Norm of the difference over the norm of the gradient of the whole batch."""
    cosine: float
    norm_ratio: float
    """Norm with accumulation over norm without."""
    tolerance: float

    @property
    def passed(self) -> bool:
        """Whether rounding explains the difference."""
        return self.gap <= self.tolerance


def check_script(path: Path, *, loss_types: Sequence[str] = ()) -> list[AccumulationGap]:
    """The gap of the trainer that a script defines, for its own `loss_type` or for each of those given.

    Runs the script's code in this process.  Nothing is trained: the learning rate is 0, the one step is thrown away.

    Raises:
        BridgeError: no TRL, no such script, no `make_trainer` in it, a trainer of another kind, an unknown loss type.
    """
    _grpo_trainer()
    if not path.is_file():
        raise BridgeError(f"{path}: there is no such script.")
    make_trainer = runpy.run_path(str(path), run_name="forkpoint_trl_script").get("make_trainer")
    if not callable(make_trainer):
        raise BridgeError(f"{path} defines no function make_trainer(**overrides) that returns a GRPOTrainer.")
    return [accumulation_gap(make_trainer, loss_type=name) for name in loss_types or (None,)]


def accumulation_gap(
    make_trainer: TrainerFactory, *, loss_type: str | None = None, settings: Mapping[str, Any] | None = None
) -> AccumulationGap:
    """How much the gradient differs between one batch of 8 and 8 accumulated batches of 1, relative to the first.

    The rows, their rewards and the weights are the same, so a trainer whose denominators are global shows rounding.
    Needs one process and one device; weights are copied, so the factory may share a model between its trainers.

    Args:
        make_trainer: makes a fresh `GRPOTrainer` with the given fields of `GRPOConfig`.
        loss_type: instead of the trainer's own.
        settings: more fields of `GRPOConfig`, such as `entropy_coef`.

    Raises:
        BridgeError: no TRL, an unknown loss type, a trainer of another kind, or one whose gradients cannot be read.
    """
    trainer_class = _grpo_trainer()
    if loss_type is not None and loss_type not in LOSS_TYPES:
        raise BridgeError(unknown_name("loss_type", loss_type, LOSS_TYPES))
    chosen = {**ONE_STEP, **({} if loss_type is None else {"loss_type": loss_type}), **(settings or {})}
    found: list[Tensor] = []
    weights: dict[str, Tensor] = {}
    for rows, batches in ((len(LENGTHS), 1), (1, len(LENGTHS))):
        trainer = make_trainer(**chosen, per_device_train_batch_size=rows, gradient_accumulation_steps=batches)
        _check(trainer, trainer_class, rows, batches)
        if weights:
            trainer.model.load_state_dict(weights)
        weights = weights or {name: value.detach().clone() for name, value in trainer.model.state_dict().items()}
        found.append(step_gradient(trainer, fixed_batch(trainer)))
    whole, cut = found
    return AccumulationGap(
        loss_type=str(trainer.args.loss_type),
        gap=float((cut - whole).norm() / whole.norm()),
        cosine=float(cut @ whole / (cut.norm() * whole.norm())),
        norm_ratio=float(cut.norm() / whole.norm()),
        tolerance=TOLERANCE[next(trainer.model.parameters()).dtype],
    )


def fixed_batch(trainer: Any) -> FixedBatch:  # noqa: ANN401
    """The batch for a trainer: random tokens of its vocabulary, ragged, each completion ended."""
    tokenizer = trainer.processing_class
    special = {tokenizer.eos_token_id, tokenizer.pad_token_id}
    known = [token for token in range(trainer.model.config.get_text_config().vocab_size) if token not in special]
    draw = Key.root(0).child("trl").generator()
    prompts = [tuple(draw.choice(known, size).tolist()) for size in (5, 9)]
    return FixedBatch(
        prompts=tuple(prompts[place // GROUP] for place in range(len(LENGTHS))),
        completions=tuple((*draw.choice(known, size - 1).tolist(), tokenizer.eos_token_id) for size in LENGTHS),
    )


def step_gradient(trainer: Any, batch: FixedBatch) -> Tensor:  # noqa: ANN401
    """The gradient that the trainer's optimizer sees in its first step on the batch, as one float64 vector.

    Raises BridgeError where a parameter's gradient cannot be read, as under DeepSpeed or FSDP.
    """
    kept: list[Tensor] = []

    class Keep(TrainerCallback):
        def on_pre_optimizer_step(self, *_: Any, **found: Any) -> None:  # noqa: ANN401
            gradients = [parameter.grad for parameter in found["model"].parameters() if parameter.requires_grad]
            kept.extend(gradient.detach().double().cpu().flatten() for gradient in gradients if gradient is not None)

    def replay(_prompts: Sequence[Any], _trainer: object) -> dict[str, Any]:
        return {
            "prompt_ids": [list(prompt) for prompt in batch.prompts],
            "completion_ids": [list(completion) for completion in batch.completions],
            "logprobs": [[-1.0] * len(completion) for completion in batch.completions],
        }

    def reward(completion_ids: Sequence[Sequence[int]], **_: object) -> list[float]:
        known = dict(zip(batch.completions, batch.rewards, strict=True))
        return [known[tuple(map(int, completion))] for completion in completion_ids]

    trainer.rollout_func = replay
    trainer.reward_funcs = [reward for _ in trainer.reward_funcs]
    trainer.add_callback(Keep())
    trainer.train()
    if not kept or not bool(torch.cat(kept).any()):
        raise BridgeError("the trainer's first step has no gradient to read: use one process, no DeepSpeed or FSDP.")
    return torch.cat(kept)


def _check(trainer: Any, trainer_class: Any, rows: int, batches: int) -> None:  # noqa: ANN401
    if not isinstance(trainer, trainer_class):
        raise BridgeError(f"make_trainer returned a {type(trainer).__name__}, not a GRPOTrainer.")
    arguments = trainer.args
    if (arguments.per_device_train_batch_size, arguments.gradient_accumulation_steps) != (rows, batches):
        raise BridgeError("make_trainer ignores its overrides: they must win over the script's own settings.")


def _grpo_trainer() -> Any:  # noqa: ANN401
    """TRL's class; raises BridgeError with how to get it."""
    if importlib.util.find_spec("trl") is None:
        raise BridgeError("this check needs TRL, which is not installed: pip install trl datasets.")
    return importlib.import_module("trl").GRPOTrainer
