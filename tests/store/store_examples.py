"""Records to store, and what a database holds."""

import numpy as np

from forkpoint.files import connect_database, install_fault_hook
from forkpoint.records import (
    Credit,
    Finding,
    Group,
    Outcome,
    Problem,
    Reward,
    Rollout,
    Severity,
    Span,
    SpanKind,
    StopReason,
    UpdateRecord,
    Verdict,
)
from forkpoint.store import Evaluation, RunWriter, evaluation_results

LONE = "a\ud800b\udc00\x00c"
"""Lone surrogates and a NUL."""


class Killed(BaseException):
    """What a kill looks like from inside: nothing catches it."""


def frozen(values, dtype):
    array = np.array(values, dtype=dtype)
    array.flags.writeable = False
    return array


def problem(key="a1"):
    return Problem(task="paths", key=key, prompt=f"find {key}", answer="7", difficulty=0.25, metadata={"depth": 3})


def rollout(*, stage="rl", update=1, index=0, key="a1", text="<think>x</think>7", purpose="train"):
    return Rollout(
        id=f"{stage}-{purpose}-{update}-{key}-{index}",
        group_id=f"{stage}-{purpose}-{update}-{key}",
        stage=stage,
        update=update,
        index=index,
        problem_key=key,
        prompt_tokens=frozen([1, 2], np.int32),
        tokens=frozen([3, 4, 5], np.int32),
        behavior_logprobs=frozen([-0.5, -0.25, 0.0], np.float32),
        loss_mask=frozen([True, True, False], np.bool_),
        spans=(Span(start=0, end=2, kind=SpanKind.THINK, policy_version=update),),
        temperature=1.0,
        text=text,
        stop_reason=StopReason.EOS,
        seed="ff",
    )


def group(*, stage="rl", update=1, key="a1", size=2, purpose="train", rewards=True):
    rollouts = tuple(rollout(stage=stage, update=update, index=i, key=key, purpose=purpose) for i in range(size))
    verdicts = tuple(
        Verdict(
            outcome=Outcome.CORRECT if i % 2 else Outcome.WRONG,
            correct=bool(i % 2),
            score=i / 4,
            answer="7",
            parts={"form": float(i)},
        )
        for i in range(size)
    )
    totals = tuple(Reward(total=float(i % 2)) for i in range(size)) if rewards else ()
    return Group(problem=problem(key), rollouts=rollouts, verdicts=verdicts, rewards=totals)


def credit(value=0.5):
    return Credit(
        advantages=frozen([value, -value, 0.0], np.float32), rule="leave_one_out", baseline=0.5, details={"n": 2}
    )


def update(number=1, *, stage="rl", **metrics):
    return UpdateRecord(stage=stage, update=number, metrics=metrics or {"loss": 1 / number}, seconds=0.5, tokens=10)


def finding(audit="lucky", value=0.5):
    return Finding(
        audit=audit,
        severity=Severity.WARNING,
        claim="half of the successes are lucky",
        value=value,
        interval=(0.4, 0.6),
        threshold=0.2,
        evidence=("rl-train-1-a1-0",),
    )


def evaluation(*, stage="rl", number=1, keys=("b2", "a1"), kept=True, name="evaluate"):
    groups = [group(stage=stage, update=number, key=key, purpose=name, rewards=False) for key in keys]
    return Evaluation(name=name, results=evaluation_results(groups), groups=groups if kept else ())


def new_run(folder, *stages):
    writer = RunWriter.create(folder, name="demo", identity={"threads": 1}, clock=lambda: 5.0)
    for stage in stages:
        writer.begin_stage(stage, kind="rl", updates_total=10)
    return writer


def record(writer, number, *, stage="rl"):
    groups = [group(stage=stage, update=number, key=key) for key in ("c3", "a1")]
    writer.record(
        update(number, stage=stage),
        groups,
        [credit(value) for value in (0.1, 0.2, 0.3, 0.4)],
        [evaluation(stage=stage, number=number)],
    )


def dump(folder):
    """Every row of every table, and whether SQLite finds the file sound."""
    connection = connect_database(folder / "run.db", readonly=True)
    tables = [row[0] for row in connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table' ORDER BY 1")]
    content = {
        name: [tuple(row) for row in connection.execute(f"SELECT * FROM {name} ORDER BY 1, 2")] for name in tables
    }
    sound = connection.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
    sound = sound and not connection.execute("PRAGMA foreign_key_check").fetchall()
    connection.close()
    assert sound
    return content


def points_of(action):
    """The fault points that an action passes, in order."""
    seen = []
    install_fault_hook(seen.append)
    try:
        action()
    finally:
        install_fault_hook(None)
    return seen


def fail_at(place, error):
    """Raise `error` at the fault point number `place` from now."""
    seen = []

    def hook(name):
        seen.append(name)
        if len(seen) - 1 == place:
            raise error

    install_fault_hook(hook)
