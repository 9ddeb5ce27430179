"""Checks of rewards and advantages, held against formulas of their own."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from forkpoint.bugs import Bugs
from forkpoint.config.recipe import ForksStage, RLStage
from forkpoint.doctor.check import Check
from forkpoint.doctor.subject import Judged, Subject
from forkpoint.records import Batch, Credit, Group, Outcome, Severity, Verdict
from forkpoint.training.rl import RLTraining, rewarded

Numbers: TypeAlias = NDArray[np.float64]
ROUNDING = 1e-5
"""Relative to the largest advantage: they are stored in float32, which is exact to 6e-8."""
ZERO_SUM = frozenset({"leave_one_out", "group_mean_std", "max_rl"})
"""Rules whose advantages of a group have the mean 0."""


def _leave_one_out(rewards: Numbers, _: Mapping[str, float]) -> Numbers:
    return (rewards - rewards.mean()) * len(rewards) / (len(rewards) - 1)


def _group_mean_std(rewards: Numbers, options: Mapping[str, float]) -> Numbers:
    centred = rewards - rewards.mean()
    freedom = len(rewards) - int(options.get("ddof", 1))
    return centred / (np.sqrt((centred**2).sum() / freedom) + options.get("epsilon", 1e-4))


def _max_rl(rewards: Numbers, _: Mapping[str, float]) -> Numbers:
    return np.zeros(len(rewards)) if rewards.mean() == 0 else (rewards - rewards.mean()) / rewards.mean()


FORMULAS: Mapping[str, Callable[[Numbers, Mapping[str, float]], Numbers]] = MappingProxyType(
    {"leave_one_out": _leave_one_out, "group_mean_std": _group_mean_std, "max_rl": _max_rl}
)
"""Rules whose advantages of a group are a function of its rewards alone, one number for each rollout."""


def advantages_finite(subject: Subject) -> Check:
    """Every advantage is a finite number, and 0 where nothing is trained."""
    broken = stray = 0
    for judged in subject.judged:
        for rollout, credit in zip(judged.batch.rollouts, judged.credits, strict=True):
            fits = credit.advantages.shape == rollout.tokens.shape
            broken += not fits or not bool(np.isfinite(credit.advantages).all())
            stray += fits and bool((credit.advantages[~rollout.loss_mask] != 0).any())
    return Check(
        name="advantages finite",
        did=f"looked at the advantages of {sum(len(judged.credits) for judged in subject.judged)} rollouts: "
        f"{broken} hold a number that is not finite or have another length, {stray} lie outside the mask",
        value=broken + stray,
        bound=0,
        ok=broken + stray == 0,
        remedy="Look at the credit rule: a division by a spread of 0, or a reward that is not finite.",
    )


def advantage_mean(subject: Subject) -> Check:
    """Advantages have the mean 0 in each group, for rules that promise it."""
    rule = _rule(subject)
    worst = max((_mean_error(group, mine) for group, mine in _by_group(subject)), default=0.0)
    promised = rule in ZERO_SUM
    return Check(
        name="advantage mean",
        did=f"took the mean advantage of each group under {rule}: the largest, relative to the largest advantage"
        + ("" if promised else " (this rule does not promise 0)"),
        value=worst,
        bound=ROUNDING if promised else None,
        ok=worst <= ROUNDING or not promised,
        remedy="The baseline is not the one of the rule: a factor G / (G - 1) belongs to reward and baseline alike.",
    )


def credit_formula(subject: Subject) -> Check:
    """Advantages are those that the rule's formula gives for the rewards."""
    rule, options = _rule(subject), _options(subject)
    formula = FORMULAS.get(rule)
    worst = 0.0
    for group, mine in _by_group(subject) if formula else ():
        wanted = formula(_rewards(group), options) if formula else np.zeros(0)
        scale = max(float(np.abs(wanted).max()), 1e-12)
        for value, rollout, credit in zip(wanted, group.rollouts, mine, strict=True):
            found = credit.advantages[rollout.loss_mask]
            worst = max(worst, float(np.abs(found - value).max()) / scale if len(found) else 0.0)
    did = f"took the advantages of {rule} again from the rewards: the largest relative difference"
    return Check(
        name="credit formula",
        did=did if formula else f"no second formula is known for {rule}",
        value=worst,
        bound=ROUNDING if formula else None,
        ok=worst <= ROUNDING or formula is None,
        remedy="Compare the rule with docs/credit.md: its scale or its baseline is another.",
    )


def zero_variance(subject: Subject) -> Check:
    """The share of groups that have no advantage at all."""
    groups = _by_group(subject)
    idle = sum(not any(credit.advantages.any() for credit in mine) for _, mine in groups)
    share = idle / max(1, len(groups))
    return Check(
        name="zero variance",
        did=f"looked for advantages in {len(groups)} groups: this share has none, and teaches nothing"
        + (" (too few to judge by)" if len(groups) < 8 else ""),
        value=share,
        bound=0.999,
        ok=share <= 0.999 or len(groups) < 8,
        remedy="Every group is all right or all wrong: take easier or harder problems, or larger groups.",
        severity=Severity.WARNING,
    )


def reward_sign(subject: Subject) -> Check:
    """Correct rollouts are rewarded above wrong ones of their group; if none are, a pair is made up."""
    pairs = right = 0
    for judged in subject.judged:
        for group in judged.batch.groups:
            here, agreeing = _agreement(group)
            pairs, right = pairs + here, right + agreeing
    made_up = pairs == 0
    if made_up:
        pairs, right = _made_up(subject)
    share = right / max(1, pairs)
    what = "made-up verdicts, since no group has both" if made_up else "verdicts"
    return Check(
        name="reward sign",
        did=f"compared {pairs} pairs of a correct and a wrong rollout by their {what}: "
        "this share has the greater reward where it is correct",
        value=share,
        bound=0.5,
        ok=share > 0.5 or pairs == 0,
        remedy="Reward and outcome disagree: look for a flipped sign, or shaping that outweighs the outcome.",
    )


def _agreement(group: Group) -> tuple[int, int]:
    """Pairs of a correct and a wrong rollout, and those of them in which the correct one has the greater reward."""
    judged = list(zip(group.verdicts, group.rewards, strict=True))
    good = [reward.total for verdict, reward in judged if verdict.correct is True]
    bad = [reward.total for verdict, reward in judged if verdict.correct is False]
    return len(good) * len(bad), sum(high > low for high in good for low in bad)


def _made_up(subject: Subject) -> tuple[int, int]:
    """The same for the drawn groups, the first rollout called correct and the others wrong."""
    training = subject.loop.training
    groups = subject.judged[0].batch.groups if subject.judged else ()
    if not groups or not isinstance(training, RLTraining):
        return 0, 0
    right = Verdict(outcome=Outcome.CORRECT, correct=True, score=1.0)
    wrong = Verdict(outcome=Outcome.WRONG, correct=False, score=0.0)
    made = tuple(replace(group, verdicts=(right, *(wrong for _ in group.rollouts[1:])), rewards=()) for group in groups)
    batch = rewarded(Batch(groups=made, update=subject.loop.done), subject.loop.probe, training.stage)
    counts = [_agreement(group) for group in batch.groups]
    return sum(pair[0] for pair in counts), sum(pair[1] for pair in counts)


def token_weights_global(subject: Subject) -> Check:
    """Every token weighs what the aggregation says for the whole update, whatever it will be split into."""
    stage = subject.loop.stage
    if isinstance(stage, RLStage):
        found = [row.policy_weights if len(row.policy_weights) else row.expert_weights for row in subject.rows]
        wanted = _weights(subject, stage)
    elif isinstance(stage, ForksStage):
        # Fork tokens weigh A / |D|; the others are anchored, and weigh nothing here.
        count = sum(int(np.count_nonzero(row.advantages)) for row in subject.rows)
        wanted = [1.0 / max(1, count)] * len(subject.rows)
        forks = [row.advantages != 0 for row in subject.rows]
        found = [
            np.where(fork, row.imitation_weights / np.where(fork, row.advantages, 1.0), row.loss_mask / max(1, count))
            for fork, row in zip(forks, subject.rows, strict=True)
        ]
    else:
        count = sum(int(row.loss_mask.sum()) for row in subject.rows)
        found, wanted = [row.imitation_weights for row in subject.rows], [1.0 / max(1, count)] * len(subject.rows)
    worst = 0.0
    for row, weights, value in zip(subject.rows, found, wanted, strict=True):
        fits = len(weights) == len(row.loss_mask)
        gap = float(np.abs(weights - row.loss_mask * value).max(initial=0.0)) / value if fits and value else float(fits)
        worst = max(worst, gap if fits else np.inf)
    name = stage.aggregation if isinstance(stage, RLStage) else "token_mean"
    return Check(
        name="token weights",
        did=f"took the weights of {len(subject.rows)} rows again from their counts, as {name} says: "
        "the largest relative difference",
        value=worst,
        bound=ROUNDING,
        ok=worst <= ROUNDING,
        remedy="Count once over the whole update, before any split: a mean of means weighs short parts more.",
        severity=Severity.CRITICAL if stage.bugs == Bugs() else Severity.WARNING,
    )


def _weights(subject: Subject, stage: RLStage) -> list[float]:
    """The weight of a trained token of each row of the drawn batch."""
    counts = np.array([int(row.loss_mask.sum()) for row in subject.rows])
    places = [place for place, group in enumerate(subject.judged[0].batch.groups) for _ in group.rollouts]
    places += [place for place in range(len(subject.judged[0].batch.groups)) for _ in range(stage.experts)]
    prompts: dict[int, int] = {}
    for place, count in zip(places, counts, strict=True):
        prompts[place] = prompts.get(place, 0) + int(count)
    match stage.aggregation:
        case "token_mean":
            divisors = [counts.sum()] * len(counts)
        case "constant":
            divisors = [len(counts) * stage.max_new_tokens] * len(counts)
        case "sequence_mean":
            divisors = list((counts > 0).sum() * counts)
        case "prompt_mean":
            divisors = [sum(total > 0 for total in prompts.values()) * prompts[place] for place in places]
    return [1.0 / max(1, int(divisor)) for divisor in divisors]


def _rule(subject: Subject) -> str:
    """The rule with its wrappers, which keep none of its promises."""
    stage = subject.loop.stage
    return " in ".join((stage.credit.rule, *stage.credit.wrap)) if isinstance(stage, RLStage) else ""


def _options(subject: Subject) -> Mapping[str, float]:
    stage = subject.loop.stage
    return stage.credit.options if isinstance(stage, RLStage) else {}


def _rewards(group: Group) -> Numbers:
    return np.array([reward.total for reward in group.rewards], np.float64)


def _by_group(subject: Subject) -> list[tuple[Group, Sequence[Credit]]]:
    return [pair for judged in subject.judged for pair in _pairs(judged)]


def _pairs(judged: Judged) -> list[tuple[Group, Sequence[Credit]]]:
    """Each group that has rollouts with its credits."""
    start = 0
    pairs: list[tuple[Group, Sequence[Credit]]] = []
    for group in judged.batch.groups:
        end = start + len(group.rollouts)
        if group.rollouts:
            pairs.append((group, judged.credits[start:end]))
        start = end
    return pairs


def _mean_error(group: Group, credits: Sequence[Credit]) -> float:
    """The mean over rollouts of their (one) advantage, relative to the largest."""
    values = [
        float(credit.advantages[rollout.loss_mask].mean()) if rollout.loss_mask.any() else 0.0
        for rollout, credit in zip(group.rollouts, credits, strict=True)
    ]
    largest = max(abs(value) for value in values)
    return abs(float(np.mean(values))) / largest if largest else 0.0
