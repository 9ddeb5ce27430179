"""What a run will need: disk, memory, time, from sizes of tensors and the seconds of a short measurement."""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from forkpoint.config.recipe import AnyStage, RLStage
from forkpoint.doctor.check import Check
from forkpoint.doctor.subject import Subject
from forkpoint.files import free_bytes
from forkpoint.policies.protocol import Policy
from forkpoint.records import Severity

MEMINFO = Path("/proc/meminfo")
MOMENTS = 2
"""Tensors that AdamW keeps for each trained parameter."""
ROW_BYTES = 1024
"""Of a rollout in the database beside its arrays (measured: 1.0 kB at 64 tokens)."""
TOKEN_BYTES = 4 + 4 + 1 + 4 + 2
"""Of a token: id, log-probability, mask, advantage, text."""


def checkpoint_bytes(policy: Policy) -> int:
    """Bytes of one checkpoint: the weights and the optimizer's moments of what is trained."""
    weights = trained = 0
    for parameter in policy.model.parameters():
        size = parameter.numel() * parameter.dtype.itemsize
        weights += size
        trained += size if parameter.requires_grad else 0
    return weights + MOMENTS * trained


def stage_bytes(stage: AnyStage, checkpoint: int, tokens: float) -> int:
    """Bytes that a stage leaves on the disk at its fullest; `tokens` is the mean length of a rollout."""
    made = (stage.updates // stage.checkpoint_every if stage.checkpoint_every else 0) + 1
    # The newest is whole before the oldest goes.
    disk = (min(made, stage.keep_checkpoints) + 1) * checkpoint
    if not isinstance(stage, RLStage):
        return disk
    batches = stage.updates // stage.updates_per_batch
    rule, _, number = stage.keep_rollouts.partition(":")
    groups = min(int(number), stage.problems_per_update) if rule == "sample" else stage.problems_per_update
    kept = -(-batches // int(number)) if rule == "every" else batches
    return disk + int(kept * groups * stage.group_size * (ROW_BYTES + TOKEN_BYTES * tokens))


def disk(subject: Subject) -> Check:
    """The run fits on the disk."""
    lengths = [len(rollout.tokens) for judged in subject.judged for rollout in judged.batch.rollouts]
    tokens = float(np.mean(lengths)) if lengths else _longest(subject.stages)
    size = checkpoint_bytes(subject.loop.policy)
    stages = subject.stages or (subject.loop.stage,)
    needed = sum(stage_bytes(stage, size, tokens) for stage in stages)
    left = max(0, needed - _used(subject.loop.run))
    free = free_bytes(subject.loop.run)
    return Check(
        name="disk",
        did=f"added up checkpoints of {size / 1e6:.3g} MB and kept rollouts of {len(stages)} stages: "
        "gigabytes still to be written, against those free",
        value=left / 1e9,
        bound=free / 1e9,
        ok=left <= free,
        remedy="Keep fewer checkpoints (keep_checkpoints) or rollouts (keep_rollouts), or run elsewhere (--runs).",
    )


def _longest(stages: Sequence[AnyStage]) -> float:
    return max((float(stage.max_new_tokens) for stage in stages if isinstance(stage, RLStage)), default=0.0)


def _used(folder: Path) -> int:
    """Bytes that a run has on the disk already."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) if folder.is_dir() else 0


def memory(subject: Subject) -> Check:
    """Weights, gradients, moments and one micro-batch fit into what is free."""
    policy, stage = subject.loop.policy, subject.loop.stage
    trained = sum(each.numel() * each.dtype.itemsize for each in policy.model.parameters() if each.requires_grad)
    # The weights are there; their gradients and moments are not, and a reference is a second copy.
    needed = (1 + MOMENTS) * trained + (checkpoint_bytes(policy) - MOMENTS * trained if _second(stage) else 0)
    needed += stage.max_batch_tokens * _activations(policy)
    free = free_memory(policy)
    return Check(
        name="memory",
        did="added up gradients, moments and the activations of one micro-batch: gigabytes, against those free",
        value=needed / 1e9,
        bound=free / 1e9 if free else None,
        ok=not free or needed <= free,
        remedy="Lower max_batch_tokens or slots, train adapters, or take a smaller number format.",
        severity=Severity.WARNING,
    )


def _second(stage: AnyStage) -> bool:
    return isinstance(stage, RLStage) and stage.divergence is not None


def _activations(policy: Policy) -> int:
    """Bytes for each token of a micro-batch: some thirty numbers of the hidden size in each layer."""
    config = getattr(policy.model, "config", None)
    layers, width = getattr(config, "num_hidden_layers", 1), getattr(config, "hidden_size", 64)
    return 4 * 30 * int(layers) * int(width)


def free_memory(policy: Policy) -> int:
    """Free bytes where the policy lives; 0 where that cannot be told."""
    if policy.device.type == "cuda":
        return int(torch.cuda.mem_get_info(policy.device)[0])
    try:
        text = MEMINFO.read_text(encoding="ascii")
    except OSError:
        return 0
    found = re.search(r"^MemAvailable:\s+(\d+) kB", text, re.MULTILINE)
    return int(found[1]) * 1024 if found else 0


def duration(subject: Subject) -> Check:
    """How long the rest of the stage will take; only reported."""
    stage = subject.loop.stage
    left = stage.updates - subject.loop.done
    if subject.loop.steps:
        seconds = sum(step.seconds for step in subject.loop.steps) / len(subject.loop.steps)
    else:
        seconds = _estimate(subject)
    return Check(
        name="time",
        did=f"{'timed the last unit' if subject.loop.steps else 'scaled up what a small batch took'} "
        f"({seconds:.3g} s an update): hours for the {left} updates left, evaluations apart",
        value=seconds * left / 3600,
        bound=None,
        ok=True,
        remedy="",
    )


def _estimate(subject: Subject) -> float:
    """Seconds of an update, scaled by the number of rollouts or texts."""
    stage, drawn = subject.loop.stage, max(1, len(subject.rows))
    size = stage.problems_per_update * stage.group_size if isinstance(stage, RLStage) else stage.batch_size
    share = 1 / stage.updates_per_batch if isinstance(stage, RLStage) else 1.0
    # Decoding is batched: more rollouts cost less than in proportion.
    growth = (size / drawn) ** 0.5 if isinstance(stage, RLStage) else 1.0
    gradient = subject.timings.get("gradient finite", 0.0)
    return share * (subject.sample_seconds * growth + gradient * size / drawn)
