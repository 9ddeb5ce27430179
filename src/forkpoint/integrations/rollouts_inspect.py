"""Logs of inspect-ai, `.json` or `.eval`: each sample is an evaluation rollout, its epochs are samples of one problem.

Values of scores: C or 1 is correct, I, N or 0 is not, anything else is not told.  The first score counts.
"""

from collections.abc import Mapping

from forkpoint.audits.rows import Row
from forkpoint.integrations.rollout_fields import (
    Raw,
    Where,
    by_reward,
    inner,
    label,
    message_text,
    needed,
    text,
    tool_rounds,
)
from forkpoint.records import Contents, Outcome, StopReason

PURPOSE = "inspect"
VALUES = {"C": True, "I": False, "N": False}
STOPPED = {"stop": StopReason.STOP, "max_tokens": StopReason.LENGTH, "model_length": StopReason.LENGTH}


def matches(raw: Raw) -> bool:
    """Whether an entry looks like one."""
    return {"id", "epoch", "input"} <= set(raw)


def row(raw: Raw, where: Where) -> Row:
    """The rollout of a sample."""
    prompt = needed(raw, where, "input")
    output = inner(raw, "output")
    choices = output.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], Mapping) else {}
    completion = message_text(choice.get("message")) or text(output, where, "completion")
    scores = inner(raw, "scores")
    score = next((value for value in scores.values() if isinstance(value, Mapping)), {})
    value = score.get("value")
    reward = float(value) if isinstance(value, int | float) else None
    told = VALUES.get(value) if isinstance(value, str) else bool(value) if value in (0, 1) else None
    usage = inner(output, "usage")
    spent = usage.get("output_tokens")
    failed = raw.get("error") is not None
    return Row(
        id=f"{label(raw, 'id')}/{label(raw, 'epoch')}", problem=label(raw, "id") or prompt, purpose=PURPOSE,
        length=spent if type(spent) is int and 0 <= spent < 2**31 else None,
        turns=tool_rounds(raw.get("messages")),
        correct=None if failed else by_reward(told, reward, where), outcome=Outcome.ERROR if failed else None,
        stop=STOPPED.get(str(choice.get("stop_reason"))), reward=reward,
        said=Contents(prompt=prompt, text=completion, answer=text(score, where, "answer"),
                      reference=text(raw, where, "target")),
    )  # fmt: skip
