"""Records to rows and back: pure functions, column names as in `schema`."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from forkpoint.records import (
    Bools,
    Credit,
    Finding,
    Group,
    Ints,
    Outcome,
    Problem,
    Reward,
    Rollout,
    Severity,
    Span,
    SpanKind,
    StopReason,
    Verdict,
)
from forkpoint.store.encoding import (
    Row,
    decode_bools,
    decode_floats,
    decode_ints,
    decode_json,
    decode_text,
    encode_array,
    encode_json,
    encode_text,
    number,
    split_numbers,
)


class StageStatus(StrEnum):
    """Where a stage stands."""

    WAITING = "waiting"
    RUNNING = "running"
    DONE = "done"
    STOPPED = "stopped"
    FAILED = "failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class StageRecord:
    """One stage of a run."""

    name: str
    kind: str
    parent: str | None
    status: StageStatus
    updates_done: int
    updates_total: int
    started: float | None
    """Unix seconds; None before it began."""
    seconds: float
    """Spent in its updates."""
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that happened in a run."""

    time: float
    """Unix seconds."""
    stage: str | None
    kind: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationResult:
    """One sample of one problem in one evaluation."""

    problem_key: str
    index: int = 0
    """Which sample of the problem, from 0."""
    correct: bool | None
    outcome: Outcome
    score: float | None = None
    length: int
    """Tokens that the policy wrote."""
    rollout_id: str | None = None
    parts: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Evaluation:
    """One evaluation: what every sample came to, and the rollouts of it that are kept as evidence."""

    name: str = "evaluate"
    """Which set of problems; also the purpose under which its rollouts are kept."""
    results: Sequence[EvaluationResult]
    groups: Sequence[Group] = ()
    problems: Sequence[Problem] = ()
    """Problems to keep although no rollout of theirs is kept."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class EvaluationArrays:
    """An evaluation as arrays over its samples, ordered by problem key and index, so that two of them pair up."""

    problem_keys: tuple[str, ...]
    index: Ints
    correct: Bools
    """False where it could not be told; see `known`."""
    known: Bools
    """Whether the verifier could tell."""
    outcomes: tuple[Outcome, ...]
    score: NDArray[np.float64]
    """NaN where there is none."""
    length: Ints
    """Tokens that the policy wrote."""
    rollout_ids: tuple[str | None, ...]
    parts: Mapping[str, NDArray[np.float64]]
    """Each part of the verdicts; NaN where a sample has none."""


def evaluation_results(groups: Sequence[Group]) -> list[EvaluationResult]:
    """One result for each rollout of evaluated groups."""
    return [
        EvaluationResult(
            problem_key=rollout.problem_key,
            index=rollout.index,
            correct=verdict.correct,
            outcome=verdict.outcome,
            score=verdict.score,
            length=int(rollout.loss_mask.sum()),
            rollout_id=rollout.id,
            parts=verdict.parts,
        )
        for group in groups
        for rollout, verdict in zip(group.rollouts, group.verdicts, strict=True)
    ]


def problem_row(problem: Problem) -> dict[str, Any]:
    """The row of a problem."""
    return {
        "key": problem.key,
        "task": problem.task,
        "prompt": encode_json(problem.prompt),
        "answer": encode_text(problem.answer),
        "difficulty": problem.difficulty,
        "metadata": encode_json(problem.metadata),
    }


def problem_from(row: Row) -> Problem:
    """The problem of a row; tuples in its metadata come back as lists."""
    prompt = decode_json(row["prompt"])
    return Problem(
        task=row["task"],
        key=row["key"],
        prompt=prompt if isinstance(prompt, str) else tuple(prompt),
        answer=decode_text(row["answer"]),
        difficulty=row["difficulty"],
        metadata=decode_json(row["metadata"]),
    )


def rollout_row(rollout: Rollout, *, purpose: str, position: int) -> dict[str, Any]:
    """The row of a rollout."""
    return {
        "id": rollout.id,
        "group_id": rollout.group_id,
        "stage": rollout.stage,
        "purpose": purpose,
        "update_number": rollout.update,
        "position": position,
        "idx": rollout.index,
        "problem_key": rollout.problem_key,
        "parent_id": rollout.parent_id,
        "prefix_length": rollout.prefix_length,
        "prompt_tokens": encode_array(rollout.prompt_tokens),
        "tokens": encode_array(rollout.tokens),
        "behavior_logprobs": encode_array(rollout.behavior_logprobs),
        "loss_mask": encode_array(rollout.loss_mask),
        "spans": encode_json([[span.start, span.end, span.kind, span.policy_version] for span in rollout.spans]),
        "temperature": rollout.temperature,
        "text": encode_text(rollout.text),
        "stop_reason": str(rollout.stop_reason),
        "seed": rollout.seed,
    }


def rollout_from(row: Row) -> Rollout:
    """The rollout of a row."""
    spans = tuple(
        Span(start=start, end=end, kind=SpanKind(kind), policy_version=version)
        for start, end, kind, version in decode_json(row["spans"])
    )
    return Rollout(
        id=row["id"],
        group_id=row["group_id"],
        stage=row["stage"],
        update=row["update_number"],
        index=row["idx"],
        problem_key=row["problem_key"],
        parent_id=row["parent_id"],
        prefix_length=row["prefix_length"],
        prompt_tokens=decode_ints(row["prompt_tokens"]),
        tokens=decode_ints(row["tokens"]),
        behavior_logprobs=decode_floats(row["behavior_logprobs"]),
        loss_mask=decode_bools(row["loss_mask"]),
        spans=spans,
        temperature=row["temperature"],
        text=decode_text(row["text"]),
        stop_reason=StopReason(row["stop_reason"]),
        seed=row["seed"],
    )


def verdict_row(rollout_id: str, verdict: Verdict) -> dict[str, Any]:
    """The row of a verdict."""
    return {
        "rollout_id": rollout_id,
        "outcome": str(verdict.outcome),
        "correct": verdict.correct,
        **split_numbers(score=verdict.score),
        "answer": encode_text(verdict.answer),
        "reason": encode_text(verdict.reason),
        "parts": encode_json(verdict.parts),
    }


def verdict_from(row: Row) -> Verdict:
    """The verdict of a row."""
    return Verdict(
        outcome=Outcome(row["outcome"]),
        correct=None if row["correct"] is None else bool(row["correct"]),
        score=number(row, "score"),
        answer=None if row["answer"] is None else decode_text(row["answer"]),
        reason=decode_text(row["reason"]),
        parts=decode_json(row["parts"]),
    )


def credit_row(rollout_id: str, reward: Reward | None, credit: Credit | None) -> dict[str, Any]:
    """The row of a rollout's reward and credit; either may be missing."""
    numbers = split_numbers(reward=reward.total if reward else None, baseline=credit.baseline if credit else None)
    return {
        "rollout_id": rollout_id,
        **numbers,
        "reward_steps": encode_json(reward.steps) if reward and reward.steps is not None else None,
        "rule": credit.rule if credit else None,
        "advantages": encode_array(credit.advantages) if credit else None,
        "cost": encode_json(credit.cost) if credit else None,
        "details": encode_json(credit.details) if credit else None,
    }


def reward_from(row: Row) -> Reward | None:
    """The reward of a row of `credits`, None where it has none."""
    total = number(row, "reward")
    if total is None:
        return None
    return Reward(total=total, steps=None if row["reward_steps"] is None else tuple(decode_json(row["reward_steps"])))


def credit_from(row: Row) -> Credit | None:
    """The credit of a row of `credits`, None where it has a reward only."""
    if row["rule"] is None:
        return None
    return Credit(
        advantages=decode_floats(row["advantages"]),
        rule=row["rule"],
        baseline=number(row, "baseline"),
        cost=decode_json(row["cost"]),
        details=decode_json(row["details"]),
    )


def evaluation_row(result: EvaluationResult, *, stage: str, update: int, name: str) -> dict[str, Any]:
    """The row of one sample of an evaluation."""
    return {
        "stage": stage,
        "update_number": update,
        "name": name,
        "problem_key": result.problem_key,
        "idx": result.index,
        "correct": result.correct,
        "outcome": str(result.outcome),
        **split_numbers(score=result.score),
        "length": result.length,
        "rollout_id": result.rollout_id,
        "parts": encode_json(result.parts),
    }


def evaluation_from(rows: Sequence[Row]) -> EvaluationArrays:
    """The arrays of an evaluation's rows."""
    scores = [number(row, "score") for row in rows]
    parts = [decode_json(row["parts"]) for row in rows]
    names = sorted({name for part in parts for name in part})
    return EvaluationArrays(
        problem_keys=tuple(row["problem_key"] for row in rows),
        index=np.array([row["idx"] for row in rows], dtype=np.int32),
        correct=np.array([row["correct"] == 1 for row in rows], dtype=np.bool_),
        known=np.array([row["correct"] is not None for row in rows], dtype=np.bool_),
        outcomes=tuple(Outcome(row["outcome"]) for row in rows),
        score=np.array([np.nan if score is None else score for score in scores], dtype=np.float64),
        length=np.array([row["length"] for row in rows], dtype=np.int32),
        rollout_ids=tuple(row["rollout_id"] for row in rows),
        parts={name: np.array([part.get(name, np.nan) for part in parts], dtype=np.float64) for name in names},
    )


def finding_row(finding: Finding, *, stage: str | None, update: int | None) -> dict[str, Any]:
    """The row of a finding."""
    low, high = finding.interval if finding.interval is not None else (None, None)
    return {
        "stage": stage,
        "update_number": update,
        "audit": finding.audit,
        "severity": str(finding.severity),
        "claim": encode_text(finding.claim),
        **split_numbers(value=finding.value, low=low, high=high, threshold=finding.threshold),
        "evidence": encode_json(list(finding.evidence)),
    }


def finding_from(row: Row) -> Finding:
    """The finding of a row."""
    value, low, high = (number(row, name) for name in ("value", "low", "high"))
    if value is None:
        raise ValueError("a finding without its value")
    return Finding(
        audit=row["audit"],
        severity=Severity(row["severity"]),
        claim=decode_text(row["claim"]),
        value=value,
        interval=None if low is None or high is None else (low, high),
        threshold=number(row, "threshold"),
        evidence=tuple(decode_json(row["evidence"])),
    )


def stage_from(row: Row) -> StageRecord:
    """The stage of a row."""
    return StageRecord(
        name=row["name"],
        kind=row["kind"],
        parent=row["parent"],
        status=StageStatus(row["status"]),
        updates_done=row["updates_done"],
        updates_total=row["updates_total"],
        started=row["started"],
        seconds=row["seconds"],
        message=decode_text(row["message"]),
    )


def metric_rows(stage: str, update: int, metrics: Mapping[str, float]) -> Iterator[dict[str, Any]]:
    """The rows of one update's metrics."""
    for name, value in metrics.items():
        finite = bool(np.isfinite(value))
        yield {
            "stage": stage,
            "update_number": update,
            "name": name,
            "value": float(value) if finite else None,
            "special": None if finite else str(float(value)),
        }


def metric_from(row: Row) -> float:
    """The value of a row of `metrics`."""
    return float(row["special"] if row["value"] is None else row["value"])
