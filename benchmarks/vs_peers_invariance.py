"""Does the gradient depend on how 8 rows are cut: one batch of 8 against 8 batches of 1?  TRL's answer beside ours.

    python benchmarks/vs_peers_invariance.py [--json OUT.json]

Both sides get the same weights, prompts, completions of 2 to 29 tokens, and rewards.  TRL's `GRPOTrainer` is asked for
each of its loss types, and with two settings that it normalizes apart; ours for the loss and aggregation that mean the
same, where there are such.  Differences are relative, in float32; the cosine compares the two sides' whole batches.
"""

import argparse
import importlib.metadata
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from forkpoint.batching import Row
from forkpoint.integrations.trl import (
    GROUP,
    LENGTHS,
    LOSS_TYPES,
    ONE_STEP,
    REWARDS,
    FixedBatch,
    accumulation_gap,
    fixed_batch,
    step_gradient,
)
from forkpoint.losses import clipped_surrogate, token_weights
from forkpoint.policies.causal import CausalPolicy
from forkpoint.policies.texts import Texts, alphabet_tokenizer
from forkpoint.policies.tiny import build_decoder
from forkpoint.records import frozen_array
from forkpoint.seeds import Key
from forkpoint.training.components import Objective, accumulate

ALPHABET = "abcdefghijklmnopqrstuvwxyz0123456789"
SAME = {"grpo": "sequence_mean", "dr_grpo": "constant", "dapo": "token_mean", "bnpo": "token_mean"}
"""TRL's loss type to the aggregation that means the same over the whole batch."""
EXTRAS: Mapping[str, Mapping[str, Any]] = {
    "dapo, entropy_coef = 0.01": {"loss_type": "dapo", "entropy_coef": 0.01},
    "dapo, top_entropy_quantile = 0.5": {"loss_type": "dapo", "top_entropy_quantile": 0.5},
}


def make_policy() -> CausalPolicy:
    tokenizer = alphabet_tokenizer(ALPHABET)
    model = build_decoder(
        shape="qwen3", vocabulary=len(tokenizer), layers=2, width=64, heads=4, context=64, key=Key.root(0)
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4.0 if parameter.ndim >= 2 else 1.0)
    return CausalPolicy(model, Texts(tokenizer))


def make_trainer(**overrides: Any) -> Any:
    """The hook that `forkpoint.integrations.trl` documents."""
    from datasets import Dataset  # noqa: PLC0415  (benchmark only)
    from transformers import PrinterCallback  # noqa: PLC0415
    from trl import GRPOConfig, GRPOTrainer  # noqa: PLC0415

    policy = make_policy()
    settings = {
        "output_dir": str(Path(tempfile.gettempdir()) / "forkpoint-vs-peers"), "use_cpu": True,
        "scale_rewards": "none", "beta": 0.0,
        "gradient_checkpointing": False, "dataloader_pin_memory": False, **overrides,
    }  # fmt: skip
    if settings.get("loss_type") == "luspo":
        settings["importance_sampling_level"] = "sequence"
    trainer = GRPOTrainer(
        model=policy.model, reward_funcs=lambda **_: [], args=GRPOConfig(**settings),
        processing_class=policy.texts.tokenizer, train_dataset=Dataset.from_dict({"prompt": ["abc", "defg"]}),
    )  # fmt: skip
    trainer.remove_callback(PrinterCallback)
    return trainer


def our_rows(batch: FixedBatch, aggregation: Any) -> list[Row]:
    """The batch as rows, with the advantage that TRL uses without scaling: reward minus the mean of the group."""
    masks = [np.ones(len(completion), np.bool_) for completion in batch.completions]
    ids = [place // GROUP for place in range(len(LENGTHS))]
    weights = token_weights(masks, ids, aggregation=aggregation, constant_length=ONE_STEP["max_completion_length"])
    means = np.repeat(np.reshape(REWARDS, (-1, GROUP)).mean(1), GROUP)
    return [
        Row(
            prompt=frozen_array(prompt, np.int32),
            tokens=frozen_array(completion, np.int32),
            loss_mask=mask,
            advantages=frozen_array(np.full(len(mask), reward - mean), np.float32),
            policy_weights=weight,
        )
        for prompt, completion, mask, weight, reward, mean in zip(
            batch.prompts, batch.completions, masks, weights, batch.rewards, means, strict=True
        )
    ]


def on_policy(logprobs: torch.Tensor, _behavior: torch.Tensor, *terms: torch.Tensor) -> Any:
    """The clipped surrogate at ratio 1, as TRL computes a first step: the policy itself sampled."""
    return clipped_surrogate(logprobs, logprobs.detach(), *terms)


def our_gradient(batch: FixedBatch, aggregation: str, split: list[list[int]]) -> torch.Tensor:
    policy = make_policy()
    rows = our_rows(batch, aggregation)
    accumulate(policy, rows, Objective(policy_loss=on_policy), max_tokens=1, split=split)
    return torch.cat([parameter.grad.double().flatten() for parameter in policy.model.parameters()])


def compare(name: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """One line of the table."""
    theirs = accumulation_gap(make_trainer, settings=settings)
    line: dict[str, Any] = {"setting": name, "trl": theirs.gap, "trl_norm_ratio": theirs.norm_ratio}
    aggregation = SAME.get(name)
    if aggregation:
        trainer = make_trainer(**ONE_STEP, **settings, per_device_train_batch_size=8, gradient_accumulation_steps=1)
        batch = fixed_batch(trainer)
        whole = our_gradient(batch, aggregation, [list(range(8))])
        cut = our_gradient(batch, aggregation, [[place] for place in range(8)])
        other = step_gradient(trainer, batch)
        line["aggregation"] = aggregation
        line["ours"] = float((cut - whole).norm() / whole.norm())
        line["cosine"] = float(other @ whole / (other.norm() * whole.norm()))
    return line


def show(line: Mapping[str, Any]) -> None:
    ours = f"{line['ours']:.1e}" if "ours" in line else "-"
    cosine = f"{line['cosine']:.6f}" if "cosine" in line else "-"
    print(
        f"{line['setting']:34} {line['trl']:10.1e} {ours:>10} {cosine:>10}  {line.get('aggregation', '')}", flush=True
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="OUT", help="also write every number there")
    arguments = parser.parse_args()
    versions = [found.version for found in importlib.metadata.distributions(name="trl")]
    if not versions:
        raise SystemExit("this benchmark needs trl: pip install trl==1.16.0 datasets")
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    torch.set_num_threads(1)
    print(f"8 x 1 against 1 x 8, relative difference of the gradient; TRL {versions[0]}")
    print(f"{'loss_type':34} {'TRL':>10} {'ours':>10} {'cosine':>10}  our aggregation")
    lines = []
    for name, settings in {**{name: {"loss_type": name} for name in LOSS_TYPES}, **EXTRAS}.items():
        lines.append(compare(name, settings))
        show(lines[-1])
    if arguments.json:
        arguments.json.write_text(json.dumps({"trl": versions[0], "lines": lines}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
