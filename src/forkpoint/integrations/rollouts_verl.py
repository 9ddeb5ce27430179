"""verl's rollout dumps (`trainer.rollout_data_dir`): one file `STEP.jsonl` for each step, one object a completion.

Fields: `input`, `output`, `score`, `step`, `gts`, and what the reward function returned beside it, such as `acc`.
"""

from forkpoint.audits.rows import Row
from forkpoint.integrations.rollout_fields import Raw, Where, by_reward, label, needed, number, truth, whole
from forkpoint.records import Contents


def matches(raw: Raw) -> bool:
    """Whether an entry looks like one."""
    return {"input", "output", "score"} <= set(raw)


def row(raw: Raw, where: Where) -> Row:
    """The rollout of a line."""
    prompt, reward = needed(raw, where, "input"), number(raw, where, "score")
    told = raw.get("acc") if raw.get("acc") in (0, 1) else raw.get("correct")
    correct = None if told is None else truth({"acc": told}, where, "acc")
    stem = where.path.stem
    step = whole(raw, where, "step")
    return Row(
        id=where.id, problem=prompt, group=label(raw, "uid", "index"),
        update=step if step is not None else int(stem) if stem.isdecimal() and len(stem) < 10 else None,
        correct=by_reward(correct, reward, where), reward=reward,
        said=Contents(prompt=prompt, text=needed(raw, where, "output"), answer=label(raw, "pred"),
                      reference=label(raw, "gts")),
    )  # fmt: skip
