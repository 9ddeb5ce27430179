"""prime-rl's rollouts: `rollouts/step_N/train_rollouts.jsonl`, one object a rollout.

Two layouts: traces of verifiers 1 (`nodes`, `rewards`, `task`), and rollouts before (`prompt`, `completion`,
`example_id`, `reward`, `metrics`).
"""

import re
from collections.abc import Mapping
from typing import Any

from forkpoint.audits.rows import TRAIN, Row
from forkpoint.integrations.rollout_fields import (
    Raw,
    Where,
    by_reward,
    floats,
    inner,
    ints,
    label,
    message_text,
    needed,
    number,
    text,
    tool_rounds,
)
from forkpoint.records import Contents, StopReason

LIMITS = ("max_turns", "max_input_tokens", "max_output_tokens", "max_total_tokens", "max_tokens", "length")
"""Conditions that cut a rollout off."""
_STEP = re.compile(r"step_(\d{1,9})", re.ASCII)


def matches(raw: Raw) -> bool:
    """Whether an entry looks like one."""
    return {"nodes", "rewards"} <= set(raw) or {"prompt", "completion", "example_id", "reward"} <= set(raw)


def row(raw: Raw, where: Where) -> Row:
    """The rollout of a line."""
    return _trace(raw, where) if "nodes" in raw else _older(raw, where)


def _trace(raw: Raw, where: Where) -> Row:
    nodes = raw["nodes"]
    if not isinstance(nodes, list) or not all(isinstance(node, dict) for node in nodes):
        raise where.wrong("'nodes' must be a list of objects.")
    path = _path(nodes, where)
    begin = next((place for place, node in enumerate(path) if node.get("sampled")), len(path))
    prompt = message_text([node.get("message") or "" for node in path[:begin]]) or ""
    said = message_text([node.get("message") or "" for node in path[begin:] if node.get("sampled")]) or ""
    tokens, logprobs = _sampled(path, where)
    reward = _total(raw.get("rewards"), where)
    task = inner(raw, "task")
    return Row(
        id=label(raw, "id") or where.id, problem=label(task, "key", "hash") or prompt,
        group=label(inner(inner(raw, "info"), "prime_rl"), "group_id"), purpose=_purpose(where), update=_step(where),
        length=len(tokens) if tokens else None,
        turns=tool_rounds([node.get("message") for node in path[begin:]]), stop=_stop(raw, path),
        correct=by_reward(_correct(raw), reward, where), reward=reward,
        said=Contents(prompt=prompt, text=said, reference=label(inner(task, "data"), "answer"),
                      tokens=ints({"tokens": tokens or None}, where, "tokens"),
                      behavior_logprobs=floats({"logprobs": logprobs or None}, where, "logprobs")),
    )  # fmt: skip


def _path(nodes: list[dict[str, Any]], where: Where) -> list[dict[str, Any]]:
    """The messages from a root to the last one."""
    path: list[dict[str, Any]] = []
    place: Any = len(nodes) - 1 if nodes else None
    while place is not None:
        if type(place) is not int or not 0 <= place < len(nodes) or len(path) >= len(nodes):
            raise where.wrong("'nodes' has a parent that is no node before it.")
        path.append(nodes[place])
        place = nodes[place].get("parent")
    return path[::-1]


def _sampled(path: list[dict[str, Any]], where: Where) -> tuple[list[Any], list[Any]]:
    """Sampled tokens with their log-probabilities; no log-probabilities where some lack them."""
    tokens: list[Any] = []
    logprobs: list[Any] = []
    for node in path:
        ids, mask = node.get("token_ids") or [], node.get("mask") or []
        if not isinstance(ids, list) or not isinstance(mask, list) or len(ids) != len(mask):
            raise where.wrong("'token_ids' and 'mask' of a node must be lists of one length.")
        tokens += [token for token, sampled in zip(ids, mask, strict=True) if sampled]
        found = node.get("logprobs") or []
        logprobs += found if isinstance(found, list) else []
    return tokens, logprobs if len(logprobs) == len(tokens) else []


def _total(rewards: object, where: Where) -> float | None:
    """The weighted sum of named rewards; None where scoring did not run."""
    if not isinstance(rewards, Mapping):
        return None
    found = [reward for reward in rewards.values() if isinstance(reward, Mapping)]
    parts = [(number(part, where, "score"), number(part, where, "weight")) for part in found]
    known = [score * (1.0 if weight is None else weight) for score, weight in parts if score is not None]
    return sum(known) if known else None


def _correct(raw: Raw) -> bool | None:
    """What a reward or metric of 0 or 1 that is named after correctness says."""
    for table in (raw.get("rewards"), raw.get("metrics")):
        for name, value in table.items() if isinstance(table, Mapping) else ():
            score = value.get("score") if isinstance(value, Mapping) else value
            if ("correct" in str(name) or "accura" in str(name)) and isinstance(score, int | float) and score in (0, 1):
                return bool(score)
    return None


def _stop(raw: Raw, path: list[dict[str, Any]]) -> StopReason | None:
    cut = raw.get("stop_condition") in LIMITS or any(node.get("finish_reason") == "length" for node in path[-1:])
    cut = cut or raw.get("is_truncated") is True
    known = raw.get("stop_condition") is not None or "is_truncated" in raw
    return StopReason.LENGTH if cut else StopReason.STOP if known else None


def _step(where: Where) -> int | None:
    found = _STEP.search(where.path.parent.name)
    return int(found[1]) if found else None


def _purpose(where: Where) -> str:
    return "eval" if "eval" in where.path.name else TRAIN


def _older(raw: Raw, where: Where) -> Row:
    prompt, reward = needed(raw, where, "prompt"), number(raw, where, "reward")
    return Row(
        id=where.id, problem=label(raw, "example_id") or prompt, purpose=_purpose(where), update=_step(where),
        turns=tool_rounds(raw.get("completion")),
        correct=by_reward(_correct(raw), reward, where), stop=_stop(raw, []), reward=reward,
        said=Contents(prompt=prompt, text=needed(raw, where, "completion"), reference=text(raw, where, "answer")),
    )  # fmt: skip
