"""What each credit rule and wrapper needs of a task and a model, and what it costs beside the rollouts.

Costs are per rollout token.  Letters: T tokens of a rollout, S steps of it, U tokens of its prompt, G rollouts of one
problem, K continuations of one cut, C cuts of a rollout, M alternatives of one step.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import Any, TypeAlias

from forkpoint.credit.cuts import read_cuts
from forkpoint.credit.masks import StepChecked
from forkpoint.probe import Answerable, Privileged, Stateful, Stepped, Teachable
from forkpoint.records import Problem


class Need(StrEnum):
    """What a rule asks for beside the rewards."""

    ANSWER_KEY = "answer_key"
    """A reference answer in every problem."""
    REPLY = "reply"
    """An environment that answers turns."""
    STATE = "state"
    """The task method `state`."""
    EARLY_ANSWER = "early_answer"
    """The task method `early_answer`."""
    PRIVILEGED_PROMPT = "privileged_prompt"
    """The task method `privileged_prompt`, and a policy that learned to read such prompts."""
    LESSONS = "lesson_of"
    """The task method `lesson_of`, and the others of tasks that know lessons."""
    STEP_CHECK = "step_check"
    """The task method `wrong_steps`."""
    CUT_POINTS = "cut_points"
    """The task method `cut_points`."""
    CHARACTERS = "characters"
    """A policy whose tokens are single characters, so that the text before a token is known."""
    CRITIC = "critic"
    """A learned critic: a table for a tabular policy, a network for a language model."""
    JUDGE = "judge"
    """A model that judges."""
    EXPERTS = "experts"
    """Solutions of the task in each group: `experts` of the stage."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """The sizes that a cost depends on."""

    tokens: float
    """T: tokens of a rollout."""
    prompt_tokens: float
    """U."""
    steps: float
    """S."""
    answer_tokens: float
    """Tokens of an early answer."""
    group_size: int
    """G."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prices:
    """What one of each is worth in sampled tokens."""

    sampled: float = 1.0
    scored: float = 0.3
    """A forward without sampling, on a CPU at about a million parameters; less on a GPU, where decoding waits."""
    verifier_call: float = 1.0
    """An exact verifier in the process; one in a child, or a judge, costs far more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What a rule spends for each rollout token, beside the rollout."""

    sampled: float = 0.0
    """Tokens drawn."""
    scored: float = 0.0
    """Tokens read by a scoring forward, context included."""
    verifier_calls: float = 0.0

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(
            sampled=self.sampled + other.sampled,
            scored=self.scored + other.scored,
            verifier_calls=self.verifier_calls + other.verifier_calls,
        )

    def token_equivalents(self, prices: Prices = Prices()) -> float:
        """The cost in sampled tokens for each rollout token.

        >>> Cost(scored=1.0, verifier_calls=0.5).token_equivalents(Prices(scored=0.3, verifier_call=1.0))
        0.8
        """
        return prices.sampled * self.sampled + prices.scored * self.scored + prices.verifier_call * self.verifier_calls


CostFormula: TypeAlias = Callable[[Mapping[str, Any], Shape], Cost]
"""(options of the rule, sizes) -> the cost of one rollout token."""


def _free(options: Mapping[str, Any], shape: Shape) -> Cost:
    del options, shape
    return Cost()


def _privileged(options: Mapping[str, Any], shape: Shape) -> Cost:
    """One reading of prompt and rollout: (U + T) / T; nothing at strength 0."""
    if options.get("strength", 0.5) == 0:
        return Cost()
    return Cost(scored=(shape.prompt_tokens + shape.tokens) / shape.tokens)


def _questions(cuts: float, shape: Shape) -> Cost:
    """At each of evenly spaced cuts the prompt, the text before and the answer are read."""
    before = shape.tokens * (cuts - 1) / (2 * cuts)
    return Cost(scored=cuts * (shape.prompt_tokens + before + shape.answer_tokens) / shape.tokens)


def _answer_progress(options: Mapping[str, Any], shape: Shape) -> Cost:
    """S readings of (U + text before + answer) tokens."""
    del options
    return _questions(shape.steps, shape)


def _progressive_confidence(options: Mapping[str, Any], shape: Shape) -> Cost:
    """At most six readings."""
    del options
    return _questions(min(6.0, shape.steps), shape)


def _fork_mask(options: Mapping[str, Any], shape: Shape) -> Cost:
    """Entropies are one reading of prompt and rollout; surprisal is at hand."""
    read = options.get("measure", "surprisal") == "entropy"
    return Cost(scored=1 + shape.prompt_tokens / shape.tokens) if read else Cost()


def _cut_places(options: Mapping[str, Any], shape: Shape, *, usual: str, most: int) -> list[float]:
    """Where a rollout is cut after its beginning; `unlikely` cuts after every token, which is the most it can."""
    rule = read_cuts(options.get("cuts", usual))
    gap = rule.stride * (shape.tokens / shape.steps if rule.kind == "steps" else 1.0)
    count = min(most, max(0, math.ceil(shape.tokens / gap) - 1))
    return [gap * (k + 1) for k in range(count)]


def _continued(options: Mapping[str, Any], shape: Shape, *, usual: int) -> Cost:
    """K rollouts of the remaining tokens from each cut, each verified: K sum_c (1 - c / T) and K C / T."""
    places = _cut_places(options, shape, usual="unlikely:0.9", most=options.get("max_cuts", 16))
    count = options.get("continuations", usual)
    left = sum(1 - place / shape.tokens for place in places)
    return Cost(sampled=count * left, verifier_calls=count * len(places) / shape.tokens)


def _branch(options: Mapping[str, Any], shape: Shape) -> Cost:
    return _continued(options, shape, usual=4)


def _tree(options: Mapping[str, Any], shape: Shape) -> Cost:
    return _continued(options, shape, usual=2)


def _counterfactual(options: Mapping[str, Any], shape: Shape) -> Cost:
    """M (C + 1) / T verifications; with `resample` also M rollouts of what follows each step."""
    starts = [0.0, *_cut_places(options, shape, usual="steps", most=math.ceil(shape.tokens))]
    others = len(set(options.get("alphabet", ""))) or min(options.get("alternatives", 4), shape.group_size - 1)
    left = sum(1 - end / shape.tokens for end in starts[1:]) if options.get("rest", "keep") == "resample" else 0.0
    return Cost(sampled=others * left, verifier_calls=others * len(starts) / shape.tokens)


_Choice: TypeAlias = Callable[[Mapping[str, Any]], frozenset[Need]]
"""Options of a rule -> what they need beside what the rule always needs."""


def _nothing(options: Mapping[str, Any]) -> frozenset[Need]:
    del options
    return frozenset()


def _cut_needs(options: Mapping[str, Any]) -> frozenset[Need]:
    return frozenset({Need.CUT_POINTS}) if str(options.get("cuts", "")).startswith("steps") else frozenset()


def _swap_needs(options: Mapping[str, Any]) -> frozenset[Need]:
    steps = _cut_needs({"cuts": "steps", **options})
    swapped = options.get("alphabet") or options.get("rest", "keep") == "keep"
    return steps | {Need.CHARACTERS} if swapped else steps


def _told_needs(options: Mapping[str, Any]) -> frozenset[Need]:
    keyed = options.get("knowledge", "answer") in ("answer", "wrong_answer", "solution")
    taught = options.get("knowledge") == "lessons"
    return frozenset({Need.ANSWER_KEY}) if keyed else frozenset({Need.LESSONS}) if taught else frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class Demands:
    """What a rule or wrapper needs and what it spends."""

    needs: frozenset[Need] = frozenset()
    choices: _Choice = _nothing
    """What its options need too."""
    cost: CostFormula = _free
    formula: str = "0"
    """The cost in words, for people."""


_TRANSCRIPT = frozenset({Need.CUT_POINTS, Need.CHARACTERS})
_CONTINUED = "sampled: K sum over cuts c of (1 - c / T); verified: K C / T"
_ASKING = Demands(
    needs=_TRANSCRIPT | {Need.ANSWER_KEY, Need.EARLY_ANSWER},
    cost=_answer_progress,
    formula="scored: S (U + answer) / T + (S - 1) / 2",
)

RULE_DEMANDS: Mapping[str, Demands] = MappingProxyType(
    {
        "leave_one_out": Demands(),
        "group_mean_std": Demands(),
        "max_rl": Demands(),
        "survivors": Demands(),
        "batch_baseline": Demands(),
        "with_experts": Demands(needs=frozenset({Need.EXPERTS})),
        "critic": Demands(needs=frozenset({Need.CRITIC})),
        "branch": Demands(choices=_cut_needs, cost=_branch, formula=_CONTINUED),
        "tree": Demands(choices=_cut_needs, cost=_tree, formula=_CONTINUED),
        "counterfactual": Demands(
            choices=_swap_needs,
            cost=_counterfactual,
            formula="verified: M (C + 1) / T; with resample also sampled: M times what follows each step",
        ),
        "privileged": Demands(
            needs=frozenset({Need.PRIVILEGED_PROMPT}),
            choices=_told_needs,
            cost=_privileged,
            formula="scored: 1 + U / T",
        ),
        "answer_progress": _ASKING,
        "state_group": Demands(needs=_TRANSCRIPT | {Need.STATE}),
    }
)
"""The credit rules by the name that a recipe uses."""

WRAPPER_DEMANDS: Mapping[str, Demands] = MappingProxyType(
    {
        "fork_mask": Demands(cost=_fork_mask, formula="scored: 1 + U / T with the measure entropy, else 0"),
        "confident_mask": Demands(),
        "outcome_floor": Demands(),
        "positive_only": Demands(),
        "progressive_confidence": Demands(
            needs=_ASKING.needs, cost=_progressive_confidence, formula="scored: as answer_progress with S at most 6"
        ),
        "step_check": Demands(needs=_TRANSCRIPT | {Need.STEP_CHECK}),
    }
)
"""The wrappers by the name that a recipe uses."""


CRITIC_FORMULAS: Mapping[str, str] = MappingProxyType(
    {"head": "critic: 2 (1 + U / T) scored", "network": "critic: (2 + 3 epochs) (1 + U / T) scored"}
)
"""What a learned critic costs, in words, by its kind; a table costs nothing."""


def critic_cost(kind: str, epochs: int, shape: Shape) -> Cost:
    """The cost of a critic for each rollout token: two readings of prompt and rollout, for the credit and for the fit.

    Each pass that fits a `network` is three more, since a backward pass costs two readings.
    """
    readings = {"head": 2.0, "network": 2.0 + 3.0 * epochs}.get(kind, 0.0)
    return Cost(scored=readings * (1 + shape.prompt_tokens / shape.tokens))


def offered(
    task: object, problem: Problem, *, by_character: bool, critic: bool, experts: bool = False
) -> frozenset[Need]:
    """The needs that a task, one of its problems and the policy can meet."""
    met = {
        Need.ANSWER_KEY: bool(problem.answer),
        Need.REPLY: callable(getattr(task, "reply", None)),
        Need.STATE: isinstance(task, Stateful),
        Need.EARLY_ANSWER: isinstance(task, Answerable),
        Need.PRIVILEGED_PROMPT: isinstance(task, Privileged),
        Need.LESSONS: isinstance(task, Teachable),
        Need.STEP_CHECK: isinstance(task, StepChecked),
        Need.CUT_POINTS: isinstance(task, Stepped),
        Need.CHARACTERS: by_character,
        Need.CRITIC: critic,
        Need.EXPERTS: experts,
    }
    return frozenset(need for need, holds in met.items() if holds)


def unmet(demands: Demands, options: Mapping[str, Any], met: Iterable[Need]) -> list[Need]:
    """The needs of a rule with these options that are not met, by name."""
    return sorted((demands.needs | demands.choices(options)) - frozenset(met))


def workable(table: Mapping[str, Demands], met: Iterable[Need]) -> list[str]:
    """The names in a table whose needs are all met under the usual options, by name.

    >>> workable(WRAPPER_DEMANDS, {Need.STEP_CHECK, Need.CUT_POINTS, Need.CHARACTERS})
    ['confident_mask', 'fork_mask', 'outcome_floor', 'positive_only', 'step_check']
    """
    found = frozenset(met)
    return sorted(name for name, demands in table.items() if not unmet(demands, {}, found))


REFLECT_FORMULA = "reflections: F K (R + T) / (G T) sampled"
"""F failures of G attempts, K reflections of R tokens on each, and as many retries of T."""


def reflect_cost(failures: int, reflections: int, tokens: int, shape: Shape) -> Cost:
    """What reflections of `tokens` and their retries cost for each token of the attempts, where enough of these fail.

    >>> shape = Shape(tokens=10, prompt_tokens=4, steps=1, answer_tokens=1, group_size=4)
    >>> reflect_cost(1, 4, 20, shape)
    Cost(sampled=3.0, scored=0.0, verifier_calls=0.1)
    """
    tried = min(failures, shape.group_size) * reflections / shape.group_size
    return Cost(sampled=tried * (tokens + shape.tokens) / shape.tokens, verifier_calls=tried / shape.tokens)


def credit_cost(
    rule: str,
    options: Mapping[str, Any],
    wrap: Iterable[str],
    wrap_options: Mapping[str, Mapping[str, Any]],
    shape: Shape,
) -> Cost | None:
    """The cost of a rule with its wrappers for each rollout token; None for a rule that is not ours."""
    if rule not in RULE_DEMANDS:
        return None
    total = RULE_DEMANDS[rule].cost(options, shape)
    for name in wrap:
        total += WRAPPER_DEMANDS[name].cost(wrap_options.get(name, {}), shape)
    return total
