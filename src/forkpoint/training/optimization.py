"""AdamW with a learning-rate schedule that is a function of the update, so that only its moments need saving."""

import math
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from forkpoint.config.recipe import StageBase
from forkpoint.errors import CheckpointError

FILE = "trainer.safetensors"
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

    @property
    def parameters(self) -> list[Tensor]:
        """What is trained."""
        return [parameter for _, parameter in self._named]

    def step(self, update: int) -> dict[str, float]:
        """Takes one step on the accumulated gradients; a gradient that is not finite is dropped and counted."""
        norm = float(torch.nn.utils.clip_grad_norm_(self.parameters, self._stage.max_grad_norm).detach())
        rate = learning_rate(self._stage, update)
        finite = math.isfinite(norm)
        if finite:
            for group in self._optimizer.param_groups:
                group["lr"] = rate
            self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return {"grad_norm": norm if finite else 0.0, "learning_rate": rate, "skipped": float(not finite)}

    def save(self, folder: Path, *, weights: bool) -> None:
        """Writes the moments, and with `weights` the trained parameters too (adapters, which the model folder lacks)."""
        tensors: dict[str, Tensor] = {}
        for name, parameter in self._named:
            for key, value in self._optimizer.state.get(parameter, {}).items():
                tensors[f"{key}:{name}"] = torch.as_tensor(value).detach().cpu().contiguous()
            if weights:
                tensors[f"weight:{name}"] = parameter.detach().cpu().contiguous()
        save_file(tensors, folder / FILE)

    def load(self, folder: Path) -> None:
        """Restores what `save` wrote.  Raises CheckpointError when it belongs to another model."""
        tensors = load_file(folder / FILE)
        for name, parameter in self._named:
            state = {key: tensors.pop(f"{key}:{name}", None) for key in ("step", "exp_avg", "exp_avg_sq", "weight")}
            weight = state.pop("weight")
            if weight is not None:
                with torch.no_grad():
                    parameter.copy_(weight)
            found = {key: value for key, value in state.items() if value is not None}
            if found and (len(found) < 3 or found["exp_avg"].shape != parameter.shape):
                raise CheckpointError(f"{folder / FILE}: the optimizer state of {name} does not fit the model.")
            if found:
                self._optimizer.state[parameter] = {
                    key: value if key == "step" else value.to(parameter.device) for key, value in found.items()
                }
        if tensors:
            raise CheckpointError(f"{folder / FILE} holds {next(iter(tensors))}, which the model does not have.")
