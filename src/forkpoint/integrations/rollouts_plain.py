"""Plain rollouts, one object a line, as docs/import.md defines them; the exports of a run of ours are such."""

from forkpoint.audits.rows import TRAIN, Row
from forkpoint.errors import unknown_name
from forkpoint.integrations.rollout_fields import (
    Raw,
    Where,
    bools,
    by_reward,
    first,
    floats,
    ints,
    label,
    needed,
    number,
    text,
    tool_rounds,
    truth,
    whole,
)
from forkpoint.records import Contents, Outcome, StopReason

STOPPED = {"stop": StopReason.STOP, "length": StopReason.LENGTH, "eos": StopReason.EOS, "done": StopReason.DONE}


def matches(raw: Raw) -> bool:
    """Whether an entry looks like one."""
    return "prompt" in raw and ("completion" in raw or "text" in raw) and ("correct" in raw or "reward" in raw)


def row(raw: Raw, where: Where) -> Row:
    """The rollout of an entry."""
    prompt, completion = needed(raw, where, "prompt"), text(raw, where, "completion", "text")
    reward, correct = number(raw, where, "reward"), truth(raw, where, "correct")
    outcome = label(raw, "outcome")
    if outcome is not None and outcome not in set(Outcome):
        raise where.wrong(unknown_name("outcome", outcome, map(str, Outcome)))
    stop = STOPPED.get(label(raw, "stop_reason") or "")
    if stop is None and truth(raw, where, "truncated") is not None:
        stop = StopReason.LENGTH if truth(raw, where, "truncated") else StopReason.EOS
    tokens = ints(raw, where, "tokens")
    parts = {"tokens": tokens, "behavior_logprobs": floats(raw, where, "logprobs"),
             "trainer_logprobs": floats(raw, where, "trainer_logprobs"),
             "loss_mask": bools(raw, where, "loss_mask")}  # fmt: skip
    sizes = {name: len(values) for name, values in parts.items() if values is not None}
    if len(set(sizes.values())) > 1:
        raise where.wrong(f"lists of different lengths: {', '.join(f'{name} {n}' for name, n in sizes.items())}.")
    return Row(
        id=label(raw, "id") or where.id, problem=label(raw, "problem", "problem_key") or prompt,
        group=label(raw, "group", "group_id"), stage=label(raw, "stage") or "rollouts",
        purpose=label(raw, "purpose") or TRAIN, update=whole(raw, where, "step", "update"),
        length=next(iter(sizes.values()), whole(raw, where, "length")), turns=_turns(raw, where),
        correct=by_reward(correct, reward, where), outcome=None if outcome is None else Outcome(outcome), stop=stop,
        reward=reward, difficulty=number(raw, where, "difficulty"),
        said=Contents(prompt=prompt, text=completion, answer=text(raw, where, "answer"),
                      reference=text(raw, where, "reference"), **parts),  # type: ignore[arg-type]
    )  # fmt: skip


def _turns(raw: Raw, where: Where) -> int | None:
    told = whole(raw, where, "turns")
    if told is not None and told < 0:
        raise where.wrong(f"'turns' = {told} must be at least 0.")
    return tool_rounds(first(raw, "completion", "text")) if told is None else told
