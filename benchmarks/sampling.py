"""Tokens per second of the local engine against `transformers` `generate`: same weights, same prompts, one run.

    python benchmarks/sampling.py [--repeats 5] [--out FILE.json]

Three loads: groups of 16 with 96-token prompts; geometric lengths (mean 32, cap 256); equal lengths, short prompts.
Each side runs at every thread count and batch size tried and is judged at its best; sides alternate within a repeat.
Lengths are decided beforehand, so both sides make the same number of tokens.  Prints ratios with their spread.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from transformers import StoppingCriteria, StoppingCriteriaList

from forkpoint.policies.causal import CausalPolicy
from forkpoint.policies.texts import Texts, alphabet_tokenizer
from forkpoint.policies.tiny import build_decoder
from forkpoint.probe import SampleRequest
from forkpoint.records import Problem, frozen_array
from forkpoint.sampling.engine import LocalSampler
from forkpoint.seeds import Key

ALPHABET = "abcdefghijklmnopqrstuvwxyz0123456789"
NEVER = 10**9
"""An end-of-sequence id that no token has."""


@dataclass(frozen=True)
class Load:
    name: str
    groups: int
    group_size: int
    prompt_tokens: int
    lengths: Sequence[int]
    target: float


def loads(key: Key) -> list[Load]:
    geometric = np.minimum(key.child("lengths").generator().geometric(1 / 32, 256), 256)
    return [
        Load("groups of 16, 96-token prompts", 16, 16, 96, [32] * 256, 1.5),
        Load("geometric lengths", 256, 1, 16, geometric.tolist(), 3.0),
        Load("equal lengths, short prompts", 256, 1, 16, [64] * 256, 1.0),
    ]


def make_policy() -> CausalPolicy:
    tokenizer = alphabet_tokenizer(ALPHABET)
    model = build_decoder(
        shape="llama", vocabulary=len(tokenizer), layers=4, width=128, heads=4, context=512, key=Key.root(0)
    )
    policy = CausalPolicy(model, Texts(tokenizer))
    policy.texts.eos_id = NEVER
    return policy


def make_requests(load: Load, key: Key) -> list[SampleRequest]:
    draw = key.child(load.name).generator()
    requests = []
    for group in range(load.groups):
        prompt = frozen_array(draw.integers(2, 2 + len(ALPHABET), load.prompt_tokens), np.int32)
        problem = Problem(task="benchmark", key=f"{group:x}", prompt="", answer="")
        for index in range(load.group_size):
            request = SampleRequest(
                key=key.child(load.name, group, index), problem=problem, prompt_tokens=prompt, group_id=str(group),
                stage="benchmark", update=0, index=index, max_new_tokens=load.lengths[group * load.group_size + index],
            )  # fmt: skip
            requests.append(request)
    return requests


class RowLengths(StoppingCriteria):
    """Ends each row at its own length."""

    def __init__(self, ends: torch.Tensor) -> None:
        self.ends = ends

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: object) -> torch.Tensor:
        del scores, kwargs
        return input_ids.shape[1] >= self.ends


def ours(policy: CausalPolicy, requests: list[SampleRequest], slots: int) -> int:
    return sum(len(rollout.tokens) for rollout in LocalSampler(policy, slots=slots).stream(requests))


def theirs(policy: CausalPolicy, requests: list[SampleRequest], batch: int) -> int:
    made = 0
    for start in range(0, len(requests), batch):
        part = requests[start : start + batch]
        prompts = torch.tensor(np.stack([request.prompt_tokens for request in part]), dtype=torch.long)
        lengths = torch.tensor([request.max_new_tokens for request in part])
        criteria = StoppingCriteriaList([RowLengths(prompts.shape[1] + lengths)])
        with torch.inference_mode():
            policy.model.generate(
                prompts, attention_mask=torch.ones_like(prompts), do_sample=True, top_k=0, temperature=1.0,
                max_new_tokens=int(lengths.max()), eos_token_id=NEVER, pad_token_id=0, stopping_criteria=criteria,
            )  # fmt: skip
        made += int(lengths.sum())
    return made


def rate(
    run: Callable[[CausalPolicy, list[SampleRequest], int], int],
    policy: CausalPolicy,
    requests: list[SampleRequest],
    size: int,
    threads: int,
) -> float:
    torch.set_num_threads(threads)
    began = time.perf_counter()
    return run(policy, requests, size) / (time.perf_counter() - began)


def best_setting(run: Callable[..., int], policy: CausalPolicy, requests: list[SampleRequest]) -> tuple[int, int]:
    """Batch size and threads with the highest rate, of one warm run each."""
    settings = [(size, threads) for size in (64, 256) for threads in (1, 2)]
    rate(run, policy, requests, 256, 1)
    return max(settings, key=lambda setting: rate(run, policy, requests, *setting))


def compare(load: Load, policy: CausalPolicy, repeats: int) -> dict[str, object]:
    requests = make_requests(load, Key.root(1))
    mine, other = best_setting(ours, policy, requests), best_setting(theirs, policy, requests)
    rates = [(rate(ours, policy, requests, *mine), rate(theirs, policy, requests, *other)) for _ in range(repeats)]
    ratios = sorted(a / b for a, b in rates)
    return {
        "load": load.name,
        "ratio": statistics.median(ratios),
        "ratio_range": [ratios[0], ratios[-1]],
        "target": load.target,
        "tokens_per_second": statistics.median(a for a, _ in rates),
        "generate_tokens_per_second": statistics.median(b for _, b in rates),
        "batch_and_threads": mine,
        "generate_batch_and_threads": other,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    policy, results = make_policy(), []
    for load in loads(Key.root(0)):
        result = compare(load, policy, arguments.repeats)
        results.append(result)
        low, high = result["ratio_range"]
        print(
            f"{load.name}: {result['ratio']:.2f}x ({low:.2f} to {high:.2f}; target {load.target}x)  "
            f"{result['tokens_per_second']:.0f} against {result['generate_tokens_per_second']:.0f} tokens/s  "
            f"batch, threads {result['batch_and_threads']} against {result['generate_batch_and_threads']}",
            flush=True,
        )
    if arguments.out:
        arguments.out.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
