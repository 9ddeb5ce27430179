"""AdamW with a learning-rate schedule that is a function of the update, so that only its moments need saving."""

import math
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from forkpoint.config.recipe import StageBase
from forkpoint.errors import CheckpointError, TrainingError

FILE = "trainer.safetensors"
"""Moments of the optimizer, beside the model in a checkpoint."""
_MOMENTS = ("step", "exp_avg", "exp_avg_sq")
_FINAL = 0.1
"""Share of the peak at which the decaying schedules end."""


def learning_rate(stage: StageBase, update: int) -> float:
    """The step size of update 1, 2, ...: linear warm-up, then constant, linear or cosine decay."""
    if update <= stage.warmup:
        return stage.learning_rate * update / (stage.warmup + 1)
    progress = (update - stage.warmup) / max(1, stage.updates - stage.warmup)
    shape = {"constant": 1.0, "linear": 1.0 - progress, "cosine": 0.5 * (1.0 + math.cos(math.pi * progress))}[
        stage.schedule
    ]
    return stage.learning_rate * (_FINAL + (1.0 - _FINAL) * shape)


class Optimization:
    """The optimizer of one stage and its trained parameters."""

    def __init__(self, model: Any, stage: StageBase) -> None:  # noqa: ANN401
        self._stage = stage
        self._named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
        decayed = [parameter for _, parameter in self._named if parameter.ndim >= 2]
        plain = [parameter for _, parameter in self._named if parameter.ndim < 2]
        self._optimizer = torch.optim.AdamW(
            [{"params": decayed, "weight_decay": stage.weight_decay}, {"params": plain, "weight_decay": 0.0}],
            lr=stage.learning_rate,
            betas=stage.betas,
        )

        self._bad = 0

    @property
    def parameters(self) -> list[Tensor]:
        """What is trained."""
        return [parameter for _, parameter in self._named]

    def step(self, update: int) -> dict[str, float]:
        """Takes one step on the accumulated gradients; a gradient that is not finite is dropped and counted.

        A parameter that no row reached has the gradient 0: skipping a backward pass changes no step.

        Raises:
            TrainingError: as many in a row were not finite as the stage allows.
        """
        for parameter in self.parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        norm = float(torch.nn.utils.clip_grad_norm_(self.parameters, self._stage.max_grad_norm).detach())
        rate = learning_rate(self._stage, update)
        finite = math.isfinite(norm)
        self._bad = 0 if finite else self._bad + 1
        if self._bad >= self._stage.max_bad_updates:
            raise TrainingError(
                f"stage '{self._stage.name}', update {update}: {self._bad} updates in a row without a finite gradient "
                f"(max_bad_updates = {self._stage.max_bad_updates}); a lower learning_rate or max_grad_norm may help."
            )
        if finite:
            for group in self._optimizer.param_groups:
                group["lr"] = rate
            self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return {"grad_norm": norm if finite else 0.0, "learning_rate": rate, "skipped": float(not finite)}

    def skip(self, update: int) -> dict[str, float]:
        """The metrics of an update that had nothing to learn from: no step is taken, and it is counted."""
        return {"grad_norm": 0.0, "learning_rate": learning_rate(self._stage, update), "skipped": 1.0}

    def save(self, folder: Path, *, weights: bool) -> None:
        """Writes the moments; with `weights` also the trained parameters (adapters, which the model folder lacks).

        Before the first step they are written as the zeros that they stand for, so that none can be missing.
        """
        tensors: dict[str, Tensor] = {}
        for name, parameter in self._named:
            for key, value in (self._optimizer.state.get(parameter) or _fresh(parameter)).items():
                tensors[f"{key}:{name}"] = torch.as_tensor(value).detach().cpu().contiguous()
            if weights:
                tensors[f"weight:{name}"] = parameter.detach().cpu().contiguous()
        save_file(tensors, folder / FILE)

    def load(self, folder: Path, *, weights: bool) -> None:
        """Restores what `save` wrote.

        Raises:
            CheckpointError: a tensor is missing, has another shape or type, or belongs to no parameter.
        """
        try:
            tensors = load_file(folder / FILE)
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{folder / FILE} cannot be read: {str(error).splitlines()[0]}") from None
        for name, parameter in self._named:
            found, fresh = {}, {**_fresh(parameter), "weight": parameter}
            for key in (*_MOMENTS, *(("weight",) if weights else ())):
                value = tensors.pop(f"{key}:{name}", None)
                if value is None or (value.shape, value.dtype) != (fresh[key].shape, fresh[key].dtype):
                    raise CheckpointError(f"{folder / FILE}: {key} of {name} is missing or does not fit the model.")
                found[key] = value if key == "step" else value.to(parameter.device)
            if weights:
                with torch.no_grad():
                    parameter.copy_(found.pop("weight"))
            self._optimizer.state[parameter] = found
        if tensors:
            raise CheckpointError(f"{folder / FILE} holds {next(iter(tensors))}, which the model does not have.")


def _fresh(parameter: Tensor) -> dict[str, Tensor]:
    """The moments of a parameter before its first step."""
    zeros = torch.zeros_like(parameter, requires_grad=False)
    return {"step": torch.zeros(()), "exp_avg": zeros, "exp_avg_sq": zeros.clone()}
