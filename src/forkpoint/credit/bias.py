"""Whether a stage's gradient estimates the gradient of the expected reward: computed from the whole configuration.

What is judged is the sum that the optimizer is given, in expectation and up to one constant factor; what the optimizer
then does with it (Adam, clipping of the norm) is left out, and so are verdicts that could not be told.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, TypeAlias

from forkpoint.config.curriculum import Curriculum
from forkpoint.config.recipe import RLStage


@dataclass(frozen=True, slots=True, kw_only=True)
class Bias:
    """What is known of a stage's gradient."""

    unbiased: bool | None
    """None: a rule or loss is not ours, and nothing else is wrong, so nobody can tell."""
    reasons: tuple[str, ...] = ()
    """Why it is not, or cannot be told; empty where it is unbiased."""


_Reason: TypeAlias = Callable[[Mapping[str, Any]], str | None]
"""Options of a rule -> why it is biased, or None."""


def _never(options: Mapping[str, Any]) -> str | None:
    del options
    return None


def _always(reason: str) -> _Reason:
    return lambda _: reason


def _critic(options: Mapping[str, Any]) -> str | None:
    if options.get("gamma", 1.0) < 1:
        return "critic: gamma below 1 discounts a reward that the objective does not discount"
    if options.get("lam", 1.0) < 1:
        return "critic: lam below 1 puts the errors of the values into the gradient"
    if options.get("alpha") is not None and options.get("floor", 0.95) < 1:
        return "critic: alpha bootstraps from values, by the whole length of a rollout"
    return None


def _privileged(options: Mapping[str, Any]) -> str | None:
    if options.get("strength", 0.5) == 0 or options.get("clip", 0.2) == 0:
        return None
    return "privileged: the size of an advantage follows a log-ratio of the very token that it multiplies"


def _answer_progress(options: Mapping[str, Any]) -> str | None:
    if not options.get("outcome", True):
        return "answer_progress: the progress of a probability stands in for the reward"
    if options.get("weight", 1.0) == 0:
        return None
    return "answer_progress: the progress of a probability is added to the reward"


def _state_group(options: Mapping[str, Any]) -> str | None:
    if options.get("form", "baseline") == "sum" and options.get("weight", 1.0) > 0:
        return "state_group: form = 'sum' weighs a state by how often others visit it"
    return None


def _tree(options: Mapping[str, Any]) -> str | None:
    if options.get("weighting", "inverse") == "inverse":
        return None
    return "tree: weights of 1 / sqrt(leaves) do not sum to 1 for each token"


def _counterfactual(options: Mapping[str, Any]) -> str | None:
    if options.get("rest", "keep") == "resample":
        return None
    return "counterfactual: rest = 'keep' judges tokens that were written in view of the step that was swapped"


RULE_BIAS: Mapping[str, _Reason] = MappingProxyType(
    {
        "leave_one_out": _never,
        "survivors": _never,
        "batch_baseline": _never,
        "group_mean_std": _always("group_mean_std: divides by the group's standard deviation"),
        "max_rl": _always("max_rl: divides by the group's mean reward, for the likelihood of success"),
        "with_experts": _always("with_experts: a baseline with the expert in it goes with tokens of the expert"),
        "critic": _critic,
        "branch": _never,
        "tree": _tree,
        "counterfactual": _counterfactual,
        "privileged": _privileged,
        "answer_progress": _answer_progress,
        "state_group": _state_group,
    }
)

WRAPPER_BIAS: Mapping[str, _Reason] = MappingProxyType(
    {
        "fork_mask": lambda options: (
            None if options.get("keep", 0.2) == 1 else "fork_mask: leaves out tokens, chosen within the batch"
        ),
        "confident_mask": _always("confident_mask: leaves out tokens by the probability that they were drawn with"),
        "outcome_floor": _never,
        "positive_only": _always("positive_only: leaves out negative advantages"),
        "progressive_confidence": lambda options: (
            None if options.get("penalty", 1.0) == 0 else "progressive_confidence: adds a penalty on early confidence"
        ),
        "step_check": lambda options: (
            None if options.get("penalty", 0.5) == 0 else "step_check: adds a penalty on wrong steps"
        ),
    }
)

_AGGREGATIONS: Mapping[str, str] = MappingProxyType(
    {
        "token_mean": "aggregation = 'token_mean': divides by the batch's random count of tokens",
        "sequence_mean": "aggregation = 'sequence_mean': divides each rollout by its own length",
        "prompt_mean": "aggregation = 'prompt_mean': divides each group by its own random count of tokens",
    }
)


def unbiased(stage: RLStage, *, fixed_length: bool = False) -> Bias:
    """Whether a stage's gradient is unbiased, with every reason why it is not.

    `fixed_length`: every rollout of the task has as many tokens, so that no mean over tokens divides by chance.
    A length penalty and a divergence `sequence_k2` belong to the objective and are no bias.
    """
    reasons = [*_rule_reasons(stage), *_loss_reasons(stage)]
    if not fixed_length and stage.aggregation in _AGGREGATIONS:
        reasons.append(_AGGREGATIONS[stage.aggregation])
    if stage.truncated == "drop" and not fixed_length:
        reasons.append("truncated = 'drop': leaves out rollouts by how they ended")
    if stage.curriculum is not None:
        reasons += _selection_reasons(stage.curriculum)
    if stage.bugs.accumulation != "none" or stage.bugs.averaging != "none":
        reasons.append("bugs: a published bug is emulated")
    unknown = [
        f"{key} = '{name}' is not ours"
        for key, name, known in (
            ("credit.rule", stage.credit.rule, stage.credit.rule in RULE_BIAS),
            ("loss.name", stage.loss.name, stage.loss.name in _LOSSES),
        )
        if not known
    ]
    if reasons:
        return Bias(unbiased=False, reasons=tuple(reasons + unknown))
    return Bias(unbiased=None if unknown else True, reasons=tuple(unknown))


def _selection_reasons(curriculum: Curriculum) -> list[str]:
    reasons = []
    if curriculum.refill or curriculum.keep_variance < 1:
        reasons.append("curriculum: refill or keep_variance chooses groups by how they turned out")
    if curriculum.oversample > 1 or curriculum.staircase is not None or curriculum.replay is not None:
        reasons.append("curriculum: draws problems by what was solved before, so their weights change")
    return reasons


def _rule_reasons(stage: RLStage) -> list[str]:
    asked = [(RULE_BIAS, stage.credit.rule, stage.credit.options)]
    asked += [(WRAPPER_BIAS, name, stage.credit.wrap_options.get(name, {})) for name in stage.credit.wrap]
    found = [table[name](options) for table, name, options in asked if name in table]
    return [reason for reason in found if reason is not None]


_LOSSES = frozenset({"reinforce", "clipped_surrogate", "dppo_tv", "mixed_policy"})


def _loss_reasons(stage: RLStage) -> list[str]:
    reasons = []
    if stage.loss.name == "mixed_policy":
        reasons.append("loss mixed_policy: learns from an expert's tokens, which the policy did not draw")
    if stage.updates_per_batch > 1:
        reasons.append(
            f"updates_per_batch = {stage.updates_per_batch}: after the first update the {stage.loss.name} loss clips "
            "or masks ratios"
        )
    if stage.distillation is not None:
        reasons.append("distillation: pulls to a teacher, with the distribution of states held fixed")
    if stage.reflect is not None:
        reasons.append("reflect: climbs the chance that a retry succeeds too, through its reflection alone")
    if stage.entropy_bonus > 0:
        reasons.append(
            f"entropy_bonus = {stage.entropy_bonus:g}: pays for entropy beside the reward, with the distribution of "
            "states held fixed"
        )
    if stage.divergence is not None and stage.divergence.kind == "token_k2":
        reasons.append("divergence token_k2: holds the distribution of states fixed")
    return reasons
