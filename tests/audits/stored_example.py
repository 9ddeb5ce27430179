"""A run folder with two stages, written without a policy."""

from pathlib import Path

import numpy as np

from forkpoint.records import (
    Group,
    Outcome,
    Problem,
    Reward,
    Rollout,
    Span,
    SpanKind,
    StopReason,
    UpdateRecord,
    Verdict,
)
from forkpoint.seeds import Key, content_hash
from forkpoint.store import Evaluation, RunWriter, evaluation_results


def group(stage: str, update: int, number: int, *, right: int, size: int = 4, purpose: str = "train") -> Group:
    """A group whose first `right` rollouts are correct."""
    problem = Problem(task="sums", key=content_hash("sums", number), prompt=f"{number} + 1?", answer=str(number + 1),
                      difficulty=float(number))  # fmt: skip
    name = Key.root(0).child(stage, purpose, update, number).hex
    rollouts, verdicts = [], []
    for index in range(size):
        correct = index < right
        length = 3 + index
        rollouts.append(
            Rollout(
                id=Key.root(0).child(stage, purpose, update, number, index).hex, group_id=name, stage=stage,
                update=update, index=index, problem_key=problem.key, prompt_tokens=np.array([1], dtype=np.int32),
                tokens=np.arange(length, dtype=np.int32), behavior_logprobs=np.full(length, -0.5, dtype=np.float32),
                loss_mask=np.ones(length, dtype=np.bool_), temperature=1.0, text=f"it is {number + 1 + (not correct)}",
                stop_reason=StopReason.EOS if index else StopReason.LENGTH, seed="00",
                spans=tuple(
                    Span(start=at, end=at + 1, kind=SpanKind.OBSERVATION if at else SpanKind.ACTION, policy_version=0)
                    for at in range(index + 1)
                ),
            )
        )  # fmt: skip
        verdicts.append(
            Verdict(outcome=Outcome.CORRECT if correct else Outcome.WRONG, correct=correct, answer=str(number + 1),
                    parts={"moves": float(length)})
        )  # fmt: skip
    rewards = tuple(Reward(total=float(verdict.correct is True)) for verdict in verdicts)
    return Group(problem=problem, rollouts=tuple(rollouts), verdicts=tuple(verdicts), rewards=rewards)


def stored_run(folder: Path, *, late: int = 2, problems: int = 24) -> Path:
    """A run with `base`, evaluated, and `rl` of four updates; `late`: correct ones of a group from update 3 on."""
    with RunWriter.create(folder, name="made", identity={}) as writer:
        for stage, parent in (("base", None), ("rl", "base")):
            writer.add_stage(stage, kind="rl", parent=parent, updates_total=4)
        for update in range(1, 5):
            right = 1 if update < 3 else late
            groups = [group("rl", update, number, right=right) for number in range(problems)]
            record = UpdateRecord(stage="rl", update=update, metrics={"mismatch_max": 1e-6}, seconds=1.0, tokens=9)
            writer.record(record, groups)
        for stage, right in (("base", 1), ("rl", late)):
            groups = [group(stage, 0, number, right=right, purpose="final") for number in range(problems)]
            results = evaluation_results(groups)
            kept = {rollout.id for rollout in groups[0].rollouts}
            results = [result for result in results if result.rollout_id in kept] + [
                result.__class__(problem_key=result.problem_key, index=result.index, correct=result.correct,
                                 outcome=result.outcome, length=result.length, parts=result.parts)
                for result in results if result.rollout_id not in kept
            ]  # fmt: skip
            evaluation = Evaluation(name="final", results=results, groups=groups[:1],
                                    problems=[made.problem for made in groups])  # fmt: skip
            writer.record_evaluation(stage, 0, evaluation)
    return folder
