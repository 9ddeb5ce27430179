"""Which rollouts the page shows, and what it shows of each token."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from forkpoint.records import Credit, Group, Problem, Rollout, Verdict
from forkpoint.report.arms import FINAL, Arm
from forkpoint.report.text import prompt_text, shorten, split_evenly, visible
from forkpoint.store import RunReader

SHADES = 5
"""Steps of color on each side of zero."""
MAX_TOKENS = 400
"""Tokens shown of one rollout."""
MAX_ROLLOUTS = 32
"""Rollouts shown of one group."""
MAX_PROMPT = 4000
"""Characters shown of a prompt."""
MAX_EXAMPLES = 4
"""Problems whose final rollouts are shown for every arm."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenView:
    """One token, or a stretch of observation tokens."""

    text: str
    shade: str
    """Class of the style sheet: `n5` (most negative) to `p5`, `z` for zero, `o`: an observation; empty: no credit."""
    title: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutView:
    """One rollout as the page shows it."""

    anchor: str
    id: str
    index: int
    outcome: str
    correct: bool | None
    reason: str
    facts: str
    """Reward, advantage, length, why it ended."""
    tokens: tuple[TokenView, ...]
    hidden: int
    """Tokens that are not shown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupView:
    """The rollouts of one training problem at one update."""

    anchor: str
    stage: str
    update: int
    prompt: str
    answer: str
    correct: int
    size: int
    scale: float
    """Largest absolute advantage in the group: the darkest shade."""
    rollouts: tuple[RolloutView, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ExampleView:
    """One evaluation problem with a final rollout of each arm that kept one."""

    anchor: str
    prompt: str
    answer: str
    solved: int
    cells: tuple[tuple[str, int, RolloutView], ...]
    """Arm, its slot, its rollout."""


def chosen_updates(kept: Sequence[int]) -> list[int]:
    """The first, the middle and the last of the updates whose rollouts were kept.

    >>> chosen_updates([1, 10, 20, 30]), chosen_updates([5])
    ([1, 20, 30], [5])
    """
    return sorted({kept[0], kept[len(kept) // 2], kept[-1]}) if kept else []


def pick_group(groups: Iterable[Group]) -> Group | None:
    """The group that was solved most nearly half of the time; the first of equals."""
    best, least = None, 2.0
    for group in groups:
        verdicts = [verdict.correct for verdict in group.verdicts if verdict.correct is not None]
        share = sum(verdicts) / len(verdicts) if verdicts else 0.0
        if abs(share - 0.5) < least:
            best, least = group, abs(share - 0.5)
    return best


def training_groups(reader: RunReader, texts: Mapping[int, str], prefix: str = "") -> dict[str, list[GroupView]]:
    """For each RL stage one group of each chosen update."""
    found: dict[str, list[GroupView]] = {}
    for slot, stage in enumerate(reader.stages()):
        views = []
        for update in chosen_updates(reader.kept_updates(stage.name)):
            group = pick_group(reader.groups(stage.name, update))
            if group is not None:
                views.append(_group_view(reader, group, texts, f"{prefix}group-{slot}-{update}"))
        if views:
            found[stage.name] = views
    return found


def _group_view(reader: RunReader, group: Group, texts: Mapping[int, str], anchor: str) -> GroupView:
    credits = {rollout.id: reader.credit(rollout.id) for rollout in group.rollouts}
    scale = max((_largest(credit) for credit in credits.values()), default=0.0)
    rewards = dict(zip([rollout.id for rollout in group.rollouts], group.rewards, strict=False))
    views = []
    for rollout in group.rollouts[:MAX_ROLLOUTS]:
        reward, credit = rewards.get(rollout.id), credits[rollout.id]
        facts = [f"reward {reward.total:.2f}"] if reward is not None else []
        facts += _advantage_fact(rollout, credit)
        place = f"{anchor}-{rollout.index}"
        views.append(rollout_view(rollout, reader.verdict(rollout.id), texts, place, (credit, scale), facts))
    return GroupView(
        anchor=anchor,
        stage=group.rollouts[0].stage,
        update=group.rollouts[0].update,
        prompt=shorten(visible(prompt_text(group.problem.prompt)), MAX_PROMPT),
        answer=shorten(visible(group.problem.answer), MAX_PROMPT),
        correct=sum(verdict.correct is True for verdict in group.verdicts),
        size=len(group.rollouts),
        scale=scale,
        rollouts=tuple(views),
    )


def _largest(credit: Credit | None) -> float:
    if credit is None or not len(credit.advantages):
        return 0.0
    return float(np.nan_to_num(np.abs(credit.advantages), posinf=0.0).max())


def _advantage_fact(rollout: Rollout, credit: Credit | None) -> list[str]:
    if credit is None or not rollout.loss_mask.any():
        return []
    trained = credit.advantages[rollout.loss_mask]
    low, high = float(trained.min()), float(trained.max())
    return [f"advantage {low:+.2f}" if low == high else f"advantages {low:+.2f} to {high:+.2f}"]


def rollout_view(
    rollout: Rollout,
    verdict: Verdict | None,
    texts: Mapping[int, str],
    anchor: str,
    shading: tuple[Credit | None, float],
    facts: Sequence[str] = (),
) -> RolloutView:
    """A rollout with its tokens shaded by the credit, relative to the scale; without credit they are plain."""
    tokens = token_views(rollout, texts, *shading)
    length = int(rollout.loss_mask.sum())
    told = [*facts, f"{length} {'token' if length == 1 else 'tokens'} ({rollout.stop_reason})"]
    return RolloutView(
        anchor=anchor,
        id=visible(rollout.id),
        index=rollout.index,
        outcome=str(verdict.outcome) if verdict else "no verdict",
        correct=verdict.correct if verdict else None,
        reason=shorten(visible(verdict.reason), 300) if verdict else "",
        facts=" · ".join(told).replace("-", "\N{MINUS SIGN}"),
        tokens=tuple(tokens),
        hidden=max(0, len(rollout.tokens) - MAX_TOKENS),
    )


def token_views(rollout: Rollout, texts: Mapping[int, str], credit: Credit | None, scale: float) -> list[TokenView]:
    """The first tokens of a rollout; what the environment said is one piece.

    Texts come from the tokenizer; where it lacks a token, the rollout's text is split evenly over all of them.
    """
    ids = [int(token) for token in rollout.tokens]
    known = all(token in texts for token in ids)
    pieces = [texts[token] for token in ids] if known else split_evenly(rollout.text, len(ids))
    views: list[TokenView] = []
    for place, piece in enumerate(pieces[:MAX_TOKENS]):
        if not _is_sampled(rollout, place):
            said = views.pop().text if views and views[-1].shade == "o" else ""
            views.append(TokenView(text=said + _shown(piece), shade="o", title="observation: not trained on"))
            continue
        advantage = float(credit.advantages[place]) if credit is not None else None
        log = f"log-probability {float(rollout.behavior_logprobs[place]):.3f} nats"
        told = log if advantage is None else f"advantage {advantage:+.3f}, {log}"
        views.append(TokenView(text=_shown(piece), shade=shade(advantage, scale), title=f"{_quoted(piece)} {told}"))
    return views


def _is_sampled(rollout: Rollout, place: int) -> bool:
    return bool(rollout.loss_mask[place])


def _shown(piece: str) -> str:
    return visible(piece).replace("\n", "↵\n")


def _quoted(piece: str) -> str:
    return "“" + visible(piece).replace("\n", "\\n").replace("\t", "\\t") + "”"


def shade(advantage: float | None, scale: float) -> str:
    """The class of an advantage relative to the largest one; any that is not zero gets at least the lightest.

    >>> shade(-1.0, 1.0), shade(0.01, 1.0), shade(0.0, 1.0), shade(None, 1.0)
    ('n5', 'p1', 'z', '')
    """
    if advantage is None:
        return ""
    if not np.isfinite(advantage) or advantage == 0 or scale <= 0:
        return "z"
    level = min(SHADES, max(1, round(SHADES * abs(advantage) / scale)))
    return f"{'p' if advantage > 0 else 'n'}{level}"


def examples(reader: RunReader, found: Sequence[Arm], texts: Mapping[int, str], prefix: str = "") -> list[ExampleView]:
    """Problems of the final evaluation with a rollout of every arm side by side.

    First those on which the arms differ most evenly, then one that all solved and one that none did.
    """
    slots = {stage.name: slot for slot, stage in enumerate(reader.stages())}
    by_problem: dict[str, list[tuple[str, Rollout, Verdict | None]]] = {}
    problems: dict[str, Problem] = {}
    for arm in found:
        update = reader.evaluated(arm.name, FINAL)[-1]
        for group in reader.groups(arm.name, update, FINAL):
            first = group.rollouts[0]
            problems[group.problem.key] = group.problem
            by_problem.setdefault(group.problem.key, []).append((arm.name, first, reader.verdict(first.id)))
    solved = {
        key: sum(verdict is not None and verdict.correct is True for _, _, verdict in attempts)
        for key, attempts in by_problem.items()
    }
    views = []
    for place, key in enumerate(pick_examples(solved, {key: len(some) for key, some in by_problem.items()})):
        cells = tuple(
            (
                name,
                slots[name],
                rollout_view(rollout, verdict, texts, f"{prefix}final-{place}-{slots[name]}", (None, 0.0)),
            )
            for name, rollout, verdict in by_problem[key]
        )
        views.append(
            ExampleView(
                anchor=f"{prefix}example-{place}",
                prompt=shorten(visible(prompt_text(problems[key].prompt)), MAX_PROMPT),
                answer=shorten(visible(problems[key].answer), MAX_PROMPT),
                solved=solved[key],
                cells=cells,
            )
        )
    return views


def pick_examples(solved: Mapping[str, int], attempts: Mapping[str, int]) -> list[str]:
    """Keys of at most `MAX_EXAMPLES` problems: two on which arms differ, one all solved, one none solved; then more.

    >>> pick_examples({"a": 0, "b": 2, "c": 1, "d": 0}, {"a": 2, "b": 2, "c": 2, "d": 2})
    ['c', 'b', 'a', 'd']
    """
    mixed = [key for key in solved if 0 < solved[key] < attempts[key]]
    mixed.sort(key=lambda key: (abs(2 * solved[key] - attempts[key]), key))
    everyone = sorted(key for key in solved if solved[key] == attempts[key])
    nobody = sorted(key for key in solved if solved[key] == 0)
    order = [*mixed[:2], *everyone[:1], *nobody[:1], *mixed[2:], *everyone[1:], *nobody[1:]]
    return order[:MAX_EXAMPLES]


def outcome_mark(view: RolloutView) -> str:
    """How the verdict is written: a mark that does not need color, and the outcome."""
    marks = {True: "✓", False: "✗", None: "?"}
    return f"{marks[view.correct]} {view.outcome}"
