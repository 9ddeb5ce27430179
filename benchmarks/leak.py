"""What leaks from knowledge in the prompt: solve rate, obedience to a wrong answer, and forks, after each stage.

    python benchmarks/leak.py RUN... [--problems 512] [--json]

Runs of `recipes/self-distillation.toml` under several seeds; 95 % Student intervals over them.  Of each stage's last
weights, on held-out problems, one rollout each at temperature 1:

    solved    correct without a hint
    hinted    correct with the right answer in the prompt
    obeyed    keys that hold the injected wrong answer's entry, of those where it differs from the right one
    resisted  of the same keys, those that hold the right entry
    forks     positions with an entropy above 1 nat, without a hint
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from cells import mean_interval, shown

from forkpoint.assembly import Assembly
from forkpoint.config.load import load_recipe
from forkpoint.config.recipe import RLStage
from forkpoint.probe import Probe
from forkpoint.records import Problem, Rollout
from forkpoint.seeds import Key
from forkpoint.store import latest_checkpoint, stage_folder
from forkpoint.tasks.keychain import KeyChain, budget, key_positions
from forkpoint.tasks.protocol import split_problems
from forkpoint.training.hooks import Loop
from forkpoint.training.rollouts import SamplePlan, sample_requests

FORK = 1.0
"""Nats."""


def measure(loop: Loop, problems: Sequence[Problem], wrong: Sequence[str], key: Key) -> dict[str, float]:
    """The five numbers of one stage's weights."""
    task = loop.task
    assert isinstance(task, KeyChain)
    plain = drawn(loop, problems, None, key.child("plain"))
    hinted = drawn(loop, problems, [problem.answer for problem in problems], key.child("hinted"))
    misled = drawn(loop, problems, wrong, key.child("misled"))
    obeyed, resisted = [], []
    for problem, told, rollout in zip(problems, wrong, misled, strict=True):
        for place, right, other in zip(key_positions(problem), problem.answer, told, strict=True):
            if right != other:
                written = rollout.text[place : place + 1]
                obeyed.append(written == other)
                resisted.append(written == right)
    entropies = np.concatenate(loop.probe.entropies(plain))  # type: ignore[attr-defined]
    return {
        "solved": solved(loop.probe, problems, plain),
        "hinted": solved(loop.probe, problems, hinted),
        "obeyed": float(np.mean(obeyed)),
        "resisted": float(np.mean(resisted)),
        "forks": float((entropies > FORK).mean()),
    }


def drawn(loop: Loop, problems: Sequence[Problem], told: Sequence[str] | None, key: Key) -> list[Rollout]:
    """One rollout of each problem, with what is told in its prompt."""
    task = loop.task
    assert isinstance(task, KeyChain)
    plan = SamplePlan(
        key=key,
        stage=loop.stage.name,
        update=loop.done,
        group_size=1,
        max_new_tokens=budget(problems[0]),
        temperature=1.0,
    )
    requests = sample_requests(task, loop.policy.texts, problems, plan)
    if told is not None:
        requests = [
            replace(request, prompt_tokens=loop.policy.texts.encode_prompt(task.privileged_prompt(problem, text)))
            for request, problem, text in zip(requests, problems, told, strict=True)
        ]
    return loop.probe.sample(requests)


def solved(probe: Probe, problems: Sequence[Problem], rollouts: Sequence[Rollout]) -> float:
    pairs = zip(problems, rollouts, strict=True)
    return float(np.mean([probe.verify(problem, [rollout])[0].correct is True for problem, rollout in pairs]))


def measured_run(folder: Path, count: int) -> dict[str, dict[str, float]]:
    """The numbers of every stage of a run that has ended, by name."""
    recipe = load_recipe(folder / "recipe.toml")
    assembly = Assembly(recipe=recipe, origin=folder, run=folder)
    found = {}
    for stage in recipe.stage:
        loop = assembly.loop(stage.name, latest_checkpoint(stage_folder(folder, stage.name)))
        key = Key.root(recipe.seed).child("leak")
        problems = split_problems(loop.task, key, count, evaluation=True)
        # The answer of the next problem, as the knowledge `wrong_answer`.
        wrong = [problem.answer for problem in [*problems[1:], problems[0]]]
        if isinstance(stage, RLStage) or stage.name == "base":
            found[stage.name] = measure(loop, problems, wrong, key)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--problems", type=int, default=512)
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    runs = [measured_run(folder, asked.problems) for folder in asked.runs]
    rows = {
        stage: {name: mean_interval([run[stage][name] for run in runs]) for name in numbers}
        for stage, numbers in runs[0].items()
    }
    if asked.json:
        print(json.dumps(rows, indent=1))
        return 0
    heads = list(next(iter(rows.values())))
    print("| stage | " + " | ".join(heads) + " |\n|" + "---|" * (len(heads) + 1))
    for stage, numbers in rows.items():
        print(f"| {stage} | " + " | ".join(shown(numbers[name]) for name in heads) + " |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
