"""A synthetic run like the recipe `backtrack`: real problems and verdicts of `paths`, walks drawn without a model."""

import json

import numpy as np

from forkpoint.credit import leave_one_out
from forkpoint.records import Batch, Credit, Group, Reward, Rollout, StopReason, UpdateRecord, frozen_array
from forkpoint.seeds import Key
from forkpoint.store import Evaluation, RunWriter, evaluation_results
from forkpoint.tasks import paths
from forkpoint.verifiers.guard import guarded

TASK = paths.build(paths.Settings(branches=3, depth=3))
BUDGET = 24
RECIPE = """
name = "backtrack"
[policy]
kind = "tiny"
[task]
name = "paths"
branches = 3
depth = 3
[[stage]]
name = "base"
kind = "pretrain"
updates = 0
[[stage]]
name = "rlvr"
kind = "rl"
from = "base"
updates = 300
max_new_tokens = 24
"""
VOCABULARY = {character: place for place, character in enumerate(TASK.alphabet)}


def tokenizer_json():
    return json.dumps({"decoder": {"type": "Fuse"}, "model": {"type": "WordLevel", "vocab": VOCABULARY}})


def walk(problem, skill, draw):
    """A walk: search with probability `skill`, else a leaf at random without return, or a random walk below 0."""
    graph = paths.read_prompt(str(problem.prompt))
    if skill < 0:
        return paths.random_walk(graph, BUDGET, draw)
    if draw.random() < skill:
        return paths.search_walk(problem, graph, draw)[:BUDGET]
    branches = problem.metadata["branches"]
    return paths.shortest_path(graph, graph.start, branches[draw.integers(len(branches))][-1])


def rollout(problem, text, *, stage, update, index=0, purpose="train"):
    count = len(text)
    return Rollout(
        id=f"{stage}-{purpose}-{update}-{problem.key}-{index}",
        group_id=f"{stage}-{purpose}-{update}-{problem.key}",
        stage=stage,
        update=update,
        index=index,
        problem_key=problem.key,
        prompt_tokens=frozen_array([1], np.int32),
        tokens=frozen_array([VOCABULARY.get(character, 0) for character in text], np.int32),
        behavior_logprobs=frozen_array(-1.1 * Key.root(index).child(text).uniforms(count), np.float32),
        loss_mask=frozen_array(np.ones(count), np.bool_),
        temperature=1.0,
        text=text,
        stop_reason=StopReason.LENGTH if count >= BUDGET else StopReason.STOP,
        seed="ff",
    )


def group(problem, texts, *, stage, update, purpose="train", rewards=True):
    verify = guarded(TASK.verify)
    rollouts = tuple(
        rollout(problem, text, stage=stage, update=update, index=index, purpose=purpose)
        for index, text in enumerate(texts)
    )
    verdicts = tuple(verify(problem, item) for item in rollouts)
    totals = tuple(
        Reward(total=float(verdict.correct is True) - 0.1 * len(item.tokens) / BUDGET)
        for item, verdict in zip(rollouts, verdicts, strict=True)
    )
    return Group(problem=problem, rollouts=rollouts, verdicts=verdicts, rewards=totals if rewards else ())


def credits_of(groups):
    return leave_one_out(Batch(groups=tuple(groups), update=1), None)


def problems(count, name="evaluation"):
    return [TASK.problem(Key.root(0).child(name, place)) for place in range(count)]


def evaluation(some, skill, *, stage, update, name, keep):
    draw = Key.root(1).child(stage, update, name).generator()
    groups = [
        group(problem, [walk(problem, skill, draw)], stage=stage, update=update, purpose=name, rewards=False)
        for problem in some
    ]
    results = evaluation_results(groups)
    return Evaluation(name=name, results=results, groups=groups[:keep], problems=some)


def write_stage(writer, stage, *, kind, parent, skills, updates, held_out, groups=2, final=True):
    """A stage whose skill goes evenly from the first to the second of `skills`."""
    writer.begin_stage(stage, kind=kind, parent=parent, updates_total=updates)
    writer.rewind(stage, -1)
    draw = Key.root(2).child(stage).generator()
    for update in range(1, updates + 1):
        skill = skills[0] + (skills[1] - skills[0]) * update / updates
        metrics = {"loss": 2 / (1 + update / 20), "entropy": 1.1 - 0.7 * update / updates + 0.05 * draw.random()}
        kept, credits = [], []
        if kind == "rl":
            noise = 0.05 * draw.standard_normal()
            metrics |= {"reward": skill + noise, "correct": skill + noise, "zero_variance": draw.random() * 0.3}
            metrics["length"] = 6 + 6 * skill + draw.random()
            if update == 1 or update % 10 == 0:
                for problem in problems(groups, f"train-{update}"):
                    texts = [walk(problem, skill, draw) for _ in range(16)]
                    kept.append(group(problem, texts, stage=stage, update=update))
                credits = credits_of(kept)
        seconds = 0.9 if kind == "rl" else 0.15
        record = UpdateRecord(
            stage=stage, update=update, metrics=metrics, seconds=seconds, tokens=5000 if kind == "rl" else 0
        )
        writer.record(record, kept, credits)
        if kind == "rl" and update % 50 == 0 and update < updates:
            some = evaluation(held_out[:64], skill, stage=stage, update=update, name="evaluate", keep=0)
            writer.record_evaluation(stage, update, some)
    if final:
        writer.record_evaluation(
            stage, updates, evaluation(held_out, skills[1], stage=stage, update=updates, name="final", keep=16)
        )
        writer.finish_stage(stage)


def new_run(folder, *, name="backtrack"):
    identity = {"forkpoint": "0.1.0", "torch": "2.13.0", "python": "3.11.9", "machine": "x86_64", "threads": 1}
    writer = RunWriter.create(folder, name=name, identity=identity, clock=lambda: 1_790_000_000.0)
    (folder / "recipe.toml").write_text(RECIPE)
    return writer


def small_run(folder, *, name="backtrack"):
    """Two arms, 40 held-out problems, 20 RL updates."""
    held_out = problems(40)
    with new_run(folder, name=name) as writer:
        write_stage(writer, "base", kind="pretrain", parent=None, skills=(-1.0, -1.0), updates=0, held_out=held_out)
        write_stage(writer, "rlvr", kind="rl", parent="base", skills=(0.2, 0.9), updates=20, held_out=held_out)
    checkpoint = folder / "stages" / "rlvr" / "step-000020"
    checkpoint.mkdir(parents=True)
    (checkpoint / "tokenizer.json").write_text(tokenizer_json())
    return folder


def plain_credit(values):
    return Credit(advantages=frozen_array(values, np.float32), rule="leave_one_out", baseline=0.5)
