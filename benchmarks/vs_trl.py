"""One update of `RLTraining.unit` against one step of TRL's `GRPOTrainer`: seconds, peak memory, and the gradient.

    python benchmarks/vs_trl.py [--repeats 5] [--quick] [--out FILE.json]

Both sides get the same weights, prompts (48 tokens), group size (16), budget (128), verifier, optimizer and learning
rate, which is so small that the lengths keep their distribution; end of sequence comes by chance, so they are ragged.
Each side runs in a process of its own, which reports times and peak memory; it is judged at its best setting (threads,
batch size), and sides alternate within a repeat.  Lengths are random: seconds per 1000 sampled tokens are given too.
Then TRL gets the rollouts of our own first update, and the gradients that the two optimizers would see are compared.
"""

import argparse
import importlib
import importlib.metadata
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from forkpoint.config.recipe import RLStage
from forkpoint.credit import leave_one_out
from forkpoint.losses import reinforce
from forkpoint.policies.causal import CausalPolicy
from forkpoint.policies.texts import Texts, alphabet_tokenizer
from forkpoint.policies.tiny import build_decoder
from forkpoint.probing.local import LocalProbe
from forkpoint.records import Outcome, Problem, Rollout, Verdict
from forkpoint.sampling.engine import LocalSampler
from forkpoint.seeds import Key, content_hash
from forkpoint.tasks.protocol import split_problems
from forkpoint.training.optimization import Optimization
from forkpoint.training.rl import RLTraining
from forkpoint.verifiers.guard import guarded

ALPHABET = "abcdefghijklmnopqrstuvwxyz0123456789"
COUNTED = frozenset(ALPHABET[::2])
VERSION = "1.16.0"
LEARNING_RATE = 1e-7
MAX_GRAD_NORM = 1e9  # far above any gradient here: neither side scales its own
WRONG = Verdict(outcome=Outcome.WRONG, correct=False)
SPEED_TARGET, COSINE_TARGET = 1.5, 0.999
RATIOS = ("seconds_per_update", "seconds_per_1000_tokens", "cpu_seconds_per_1000_tokens")


@dataclass(frozen=True, kw_only=True)
class Load:
    """What one update has to do."""

    problems: int = 16
    group_size: int = 16
    prompt_tokens: int = 48
    budget: int = 128
    warm_up: int = 1
    updates: int = 3

    @property
    def rollouts(self) -> int:
        return self.problems * self.group_size


@dataclass(frozen=True, kw_only=True)
class Job:
    """One process: a side at one setting.  `accumulation` is how many batches TRL cuts an update into."""

    side: str
    load: Load
    threads: int
    accumulation: int = 1
    seed: int = 0


@dataclass(kw_only=True)
class Log:
    """What a side did: sampled tokens, correct and truncated rollouts of each update; when it began and each ended."""

    tokens: list[int] = field(default_factory=list)
    correct: list[int] = field(default_factory=list)
    truncated: list[int] = field(default_factory=list)
    times: list[tuple[float, float]] = field(default_factory=list)
    gradient: torch.Tensor | None = None


def clocks() -> tuple[float, float]:
    """Seconds that have passed, and seconds that this process has computed: other work disturbs the second less."""
    return time.perf_counter(), time.process_time()


def is_correct(text: str) -> bool:
    """A rule that about half of all texts obey."""
    return sum(character in COUNTED for character in text) % 2 == 0


class ParityTask:
    """Random prompts; right is a text that ends in time and has an even number of the counted characters."""

    def __init__(self, prompt_tokens: int) -> None:
        self.prompt_tokens = prompt_tokens

    def problem(self, key: Key) -> Problem:
        places = key.generator().integers(0, len(ALPHABET), self.prompt_tokens)
        prompt = "".join(ALPHABET[place] for place in places)
        return Problem(task="parity", key=content_hash(prompt), prompt=prompt, answer="")

    def verify(self, _problem: Problem, rollout: Rollout) -> Verdict:
        return Verdict(outcome=Outcome.CORRECT, correct=True) if is_correct(rollout.text) else WRONG

    def stop(self, _problem: Problem) -> tuple[str, ...]:
        return ()


class WatchedOptimization(Optimization):
    """Keeps the gradient that the last step began with."""

    def step(self, update: int) -> dict[str, float]:
        self.gradient = gradient_of(self.parameters)
        return super().step(update)


def gradient_of(parameters: Iterable[torch.Tensor]) -> torch.Tensor:
    return torch.cat([parameter.grad.double().flatten() for parameter in parameters])


def make_policy(load: Load) -> CausalPolicy:
    tokenizer = alphabet_tokenizer(ALPHABET)
    context = load.prompt_tokens + load.budget
    model = build_decoder(
        shape="qwen3", vocabulary=len(tokenizer), layers=4, width=128, heads=4, context=context, key=Key.root(0)
    )
    return CausalPolicy(model, Texts(tokenizer))


def make_training(job: Job, optimization: type[Optimization] = Optimization) -> RLTraining:
    load = job.load
    stage = RLStage(
        name="rl", kind="rl", updates=load.warm_up + load.updates, learning_rate=LEARNING_RATE, warmup=0,
        max_grad_norm=MAX_GRAD_NORM, problems_per_update=load.problems, group_size=load.group_size,
        max_new_tokens=load.budget,
    )  # fmt: skip
    policy, task = make_policy(load), ParityTask(load.prompt_tokens)
    sampler = LocalSampler(policy)
    return RLTraining(
        stage=stage, task=task, policy=policy, probe=LocalProbe(policy, sampler, guarded(task.verify)),
        optimization=optimization(policy.model, stage), weights_changed=sampler.update_weights,
        key=Key.root(job.seed), credit_rule=leave_one_out, policy_loss=reinforce,
    )  # fmt: skip


def make_prompts(job: Job) -> list[str]:
    """The prompts that `RLTraining` takes for the same job, update after update."""
    load = job.load
    task, key = ParityTask(load.prompt_tokens), Key.root(job.seed).child("problems")
    return [
        str(problem.prompt)
        for update in range(1, load.warm_up + load.updates + 1)
        for problem in split_problems(task, key.child(update), load.problems, evaluation=False)
    ]


def run_ours(job: Job) -> Log:
    log, training = Log(), make_training(job)
    log.times.append(clocks())
    for update in range(1, job.load.warm_up + job.load.updates + 1):
        (step,) = training.unit(update)
        log.times.append(clocks())
        log.tokens.append(step.tokens)
        log.correct.append(round(step.metrics["correct"] * job.load.rollouts))
        log.truncated.append(round(step.metrics["truncated"] * job.load.rollouts))
    return log


def trl_settings(job: Job, folder: str, steps: int) -> dict[str, Any]:
    """TRL at its fastest for this model: no checkpointing of activations, no half precision emulated by the CPU."""
    load = job.load
    return {
        "output_dir": folder, "max_steps": steps, "seed": job.seed, "use_cpu": True, "bf16": False,
        "gradient_checkpointing": False, "dataloader_pin_memory": False,
        "per_device_train_batch_size": load.rollouts // job.accumulation,
        "gradient_accumulation_steps": job.accumulation, "num_generations": load.group_size,
        "max_completion_length": load.budget, "temperature": 1.0, "shuffle_dataset": False,
        "learning_rate": LEARNING_RATE, "lr_scheduler_type": "constant", "warmup_steps": 0, "weight_decay": 0.0,
        "adam_beta1": 0.9, "adam_beta2": 0.95, "max_grad_norm": MAX_GRAD_NORM,
        "beta": 0.0, "num_iterations": 1, "loss_type": "dapo", "scale_rewards": "none",
        "disable_tqdm": True, "report_to": "none", "logging_strategy": "no", "save_strategy": "no",
    }  # fmt: skip


def make_reward(policy: CausalPolicy, log: Log) -> Callable[..., list[float]]:
    """The verdict of `ParityTask` behind its guard, in TRL's terms."""

    def parity(completions: list[str], completion_ids: list[list[int]], **_: object) -> list[float]:
        ended = [tokens[-1] == policy.texts.eos_id for tokens in completion_ids]
        rewards = [float(done and is_correct(text)) for text, done in zip(completions, ended, strict=True)]
        log.tokens.append(sum(map(len, completion_ids)))
        log.correct.append(int(sum(rewards)))
        log.truncated.append(len(ended) - sum(ended))
        return rewards

    return parity


def run_trl(job: Job, *, rollout_func: Callable[..., dict[str, Any]] | None = None) -> Log:
    """Trains with TRL; `rollout_func` replaces its sampling, and then the gradient is kept."""
    from datasets import Dataset  # noqa: PLC0415  (benchmark only, and it would swell the memory of our side)
    from transformers import PrinterCallback, TrainerCallback  # noqa: PLC0415
    from trl import GRPOConfig, GRPOTrainer  # noqa: PLC0415

    log, policy, prompts = Log(), make_policy(job.load), make_prompts(job)
    tokenizer = policy.texts.tokenizer
    assert tokenizer(prompts[0])["input_ids"] == policy.texts.encode_prompt(prompts[0]).tolist()

    class Watch(TrainerCallback):
        def on_train_begin(self, *_: object, **__: object) -> None:
            log.times.append(clocks())

        on_step_end = on_train_begin

        def on_pre_optimizer_step(self, *_: object, model: torch.nn.Module, **__: object) -> None:
            if rollout_func is not None:
                log.gradient = gradient_of(model.parameters())

    with tempfile.TemporaryDirectory() as folder:
        settings = GRPOConfig(**trl_settings(job, folder, len(prompts) // job.load.problems))
        trainer = GRPOTrainer(
            model=policy.model, reward_funcs=make_reward(policy, log), args=settings, processing_class=tokenizer,
            train_dataset=Dataset.from_dict({"prompt": prompts}), callbacks=[Watch()], rollout_func=rollout_func,
        )  # fmt: skip
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return log


def compare_gradients(job: Job) -> dict[str, Any]:
    """Our first gradient against TRL's on the same rollouts; `leave_one_out` is G / (G - 1) times TRL's advantage."""
    job = replace(job, load=replace(job.load, warm_up=0, updates=1))
    training = make_training(job, WatchedOptimization)
    (step,) = training.unit(1)
    rollouts = [rollout for group in step.groups for rollout in group.rollouts]
    asked = [str(group.problem.prompt) for group in step.groups for _ in group.rollouts]

    def replay(prompts: Sequence[str], _trainer: object) -> dict[str, Any]:
        assert list(prompts) == asked
        return {
            "prompt_ids": [rollout.prompt_tokens.tolist() for rollout in rollouts],
            "completion_ids": [rollout.tokens.tolist() for rollout in rollouts],
            "logprobs": [rollout.behavior_logprobs.tolist() for rollout in rollouts],
        }

    log = run_trl(job, rollout_func=replay)
    assert log.correct == [sum(verdict.correct is True for group in step.groups for verdict in group.verdicts)]
    mine, other = training.optimization.gradient, log.gradient
    return {
        "accumulation": job.accumulation,
        "cosine": float(mine @ other / (mine.norm() * other.norm())),
        "norm_ratio": float(other.norm() / mine.norm()),
        "norm_ratio_expected": (job.load.group_size - 1) / job.load.group_size,
    }


def peak_mib() -> float:
    """Peak resident memory of this process, MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def work(job: Job) -> dict[str, Any]:
    """What one process measures, after its warm-up."""
    torch.set_num_threads(job.threads)
    if job.side == "parity":
        return compare_gradients(job)
    if job.side == "trl":
        importlib.import_module("trl.trainer.grpo_trainer")
    imported = peak_mib()
    log = run_ours(job) if job.side == "ours" else run_trl(job)
    load, skipped = job.load, job.load.warm_up
    assert len(log.times) == len(log.tokens) + 1 == skipped + load.updates + 1
    seconds, computed = (end - start for start, end in zip(log.times[skipped], log.times[-1], strict=True))
    tokens, rollouts = sum(log.tokens[skipped:]), load.updates * load.rollouts
    return {
        "threads": job.threads,
        "accumulation": job.accumulation,
        "seconds_per_update": seconds / load.updates,
        "seconds_per_1000_tokens": 1000 * seconds / tokens,
        "cpu_seconds_per_1000_tokens": 1000 * computed / tokens,
        "tokens_per_rollout": tokens / rollouts,
        "correct": sum(log.correct[skipped:]) / rollouts,
        "truncated": sum(log.truncated[skipped:]) / rollouts,
        "peak_mib": peak_mib(),
        "peak_growth_mib": peak_mib() - imported,
    }


def spawn(job: Job) -> dict[str, float]:
    """What a fresh process measures."""
    quiet = {"TRL_EXPERIMENTAL_SILENCE": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, __file__, "--job", json.dumps(asdict(job))]
    done = subprocess.run(command, env={**os.environ, **quiet}, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{job} failed:\n{done.stderr[-4000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def compare_speed(load: Load, repeats: int, threads: Sequence[int], cuts: Sequence[int]) -> dict[str, Any]:
    """Both sides at their best settings: those with the fewest seconds per token, of one run each."""
    jobs = {
        "ours": [Job(side="ours", load=load, threads=count) for count in threads],
        "trl": [Job(side="trl", load=load, threads=count, accumulation=cut) for count in threads for cut in cuts],
    }
    tried = {side: [spawn(job) for job in mine] for side, mine in jobs.items()}
    costs = {side: [run["seconds_per_1000_tokens"] for run in mine] for side, mine in tried.items()}
    ours, theirs = (jobs[side][costs[side].index(min(costs[side]))] for side in ("ours", "trl"))
    runs: dict[str, list[dict[str, float]]] = {"ours": [], "trl": []}
    for repeat in range(repeats):
        for job in (ours, theirs) if repeat % 2 == 0 else (theirs, ours):
            runs[job.side].append(spawn(replace(job, seed=repeat + 1)))
    medians = {
        side: {name: statistics.median(run[name] for run in done) for name in done[0]} for side, done in runs.items()
    }
    result = {"load": asdict(load), **medians, "runs": runs, "tried": tried}
    for name in RATIOS:
        ratios = sorted(b[name] / a[name] for a, b in zip(runs["ours"], runs["trl"], strict=True))
        result[f"{name}_ratio"] = {"median": statistics.median(ratios), "range": [ratios[0], ratios[-1]]}
    return result


def check_same_work(result: dict[str, Any], load: Load) -> None:
    """Fails when lengths or success rates of the two sides differ by more than chance: five standard errors."""
    runs = result["runs"]
    rollouts = len(runs["ours"]) * load.updates * load.rollouts
    for name in ("tokens_per_rollout", "correct", "truncated"):
        ours, theirs = (statistics.mean(run[name] for run in runs[side]) for side in ("ours", "trl"))
        # Geometric lengths cut at a budget spread less than their mean; a share spreads by at most one half.
        spread = ours if name == "tokens_per_rollout" else 0.5
        if abs(ours - theirs) > 5 * spread * (2 / rollouts) ** 0.5:
            raise SystemExit(f"the sides do different work: {name} is {ours:.3f} against {theirs:.3f}")


def show_speed(result: dict[str, Any]) -> None:
    for name in RATIOS:
        ratio = result[f"{name}_ratio"]
        low, high = ratio["range"]
        print(
            f"{name.replace('_', ' ')}: {result['ours'][name]:.3f} against {result['trl'][name]:.3f}, "
            f"{ratio['median']:.2f}x ({low:.2f} to {high:.2f}; target {SPEED_TARGET}x)"
        )
    for side in ("ours", "trl"):
        run = result[side]
        print(
            f"{side}: {run['tokens_per_rollout']:.1f} tokens per rollout, {run['correct']:.2f} correct, "
            f"{run['truncated']:.2f} truncated; peak memory {run['peak_mib']:.0f} MiB, of which "
            f"{run['peak_growth_mib']:.0f} MiB after the imports; best at {run['threads']:.0f} threads, "
            f"{run['accumulation']:.0f} accumulated batches"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, help="default 5; 2 with --quick")
    parser.add_argument("--quick", action="store_true", help="small load, one thread: shows that it runs, no more")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--job", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.job:
        given = json.loads(arguments.job)
        print(json.dumps(work(Job(**{**given, "load": Load(**given["load"])}))))
        return
    if VERSION not in {found.version for found in importlib.metadata.distributions(name="trl")}:
        raise SystemExit(f"this benchmark needs trl {VERSION}: pip install trl=={VERSION} datasets")
    busy = os.getloadavg()[0]
    load, threads, cuts, repeats = Load(), (1, 2), (1, 4, 16), 5
    if arguments.quick:
        load, threads, cuts, repeats = Load(problems=4, group_size=8, budget=48, updates=2), (1,), (1, 4), 2
    parity = [spawn(Job(side="parity", load=load, threads=1, accumulation=cut)) for cut in (1, 4)]
    for found in parity:
        print(
            f"first gradient, TRL accumulation {found['accumulation']}: cosine {found['cosine']:.7f} (target "
            f"{COSINE_TARGET}), norm ratio {found['norm_ratio']:.6f} (expected {found['norm_ratio_expected']:.6f})",
            flush=True,
        )
    speed = compare_speed(load, arguments.repeats or repeats, threads, cuts)
    show_speed(speed)
    if arguments.out:
        result = {"trl": VERSION, "load_average_before": busy, "parity": parity, "speed": speed}
        arguments.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    check_same_work(speed, load)


if __name__ == "__main__":
    main()
