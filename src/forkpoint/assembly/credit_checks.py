"""What a stage's credit needs, costs and estimates, found before anything is trained."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from forkpoint.assembly.critics import CriticKind
from forkpoint.assembly.tables import CREDIT_RULES
from forkpoint.config.critic import CriticSettings
from forkpoint.config.recipe import RLStage
from forkpoint.credit.bias import Bias, unbiased
from forkpoint.credit.group import leave_one_out
from forkpoint.credit.masks import wrapped
from forkpoint.credit.needs import (
    CRITIC_FORMULAS,
    REFLECT_FORMULA,
    RULE_DEMANDS,
    WRAPPER_DEMANDS,
    Cost,
    Demands,
    Need,
    Prices,
    Shape,
    credit_cost,
    critic_cost,
    offered,
    reflect_cost,
    unmet,
    workable,
)
from forkpoint.credit.privileged import Knowledge, knowledge_of
from forkpoint.credit.transcripts import step_cuts
from forkpoint.errors import ForkpointError, ModelError, RecipeError, unknown_name
from forkpoint.probe import Answerable, Continuation, Privileged, Probe, SampleRequest, ScoreRequest, Teachable
from forkpoint.records import (
    Batch,
    Credit,
    Floats,
    Group,
    Ints,
    Outcome,
    Problem,
    Reward,
    Rollout,
    Verdict,
    frozen_array,
)
from forkpoint.review.repair import shows_any_text
from forkpoint.tasks.protocol import Task
from forkpoint.verifiers.outside import written_rollout

if TYPE_CHECKING:
    from forkpoint.policies.protocol import Policy

CONTINUING = frozenset({"branch", "tree", "counterfactual"})
"""Rules that value a prefix by rollouts that continue it."""
ASKING = frozenset({"answer_progress", "progressive_confidence"})
"""Rules and wrappers that score early answers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CreditPlan:
    """What a dry run says of a stage's credit."""

    bias: Bias
    cost: Cost | None
    """For each rollout token, at most, with rollouts of the full budget; None for a rule that is not ours."""
    formulas: tuple[str, ...]
    """How the cost comes about, for the rule and each wrapper that costs anything."""
    prices: Prices

    @property
    def token_equivalents(self) -> float | None:
        """The cost in sampled tokens for each rollout token."""
        return None if self.cost is None else self.cost.token_equivalents(self.prices)


def check_needs(where: str, stage: RLStage, task: Task, problem: Problem, *, by_character: bool) -> None:
    """Raises RecipeError for a rule or wrapper that needs what the task or the policy lacks, naming what would do."""
    if stage.truncated == "drop" and stage.credit.rule in CONTINUING:
        raise RecipeError(
            f"{where}: truncated = 'drop' does not go with credit.rule = '{stage.credit.rule}', whose continuations "
            "count as wrong when they run out of budget: use truncated = 'wrong'."
        )
    if stage.reward.pays == "score" and stage.credit.rule in CONTINUING:
        raise RecipeError(
            f"{where}: reward.pays = 'score' does not go with credit.rule = '{stage.credit.rule}', whose continuations "
            "are paid for being correct: use reward.pays = 'correct', or another rule."
        )
    # Every policy can have a critic of some kind; settings that do not fit were refused before.
    met = offered(task, problem, by_character=by_character, critic=True, experts=stage.experts > 0)
    asked: list[tuple[str, str, Mapping[str, Any], Mapping[str, Demands]]] = [
        ("rule", stage.credit.rule, stage.credit.options, RULE_DEMANDS),
        *(("wrap", name, stage.credit.wrap_options.get(name, {}), WRAPPER_DEMANDS) for name in stage.credit.wrap),
    ]
    for key, name, options, table in asked:
        _refuse_unmet(f"{where}: credit.{key} = '{name}'", name, options, table, met, task)
    told = stage.credit.rule == "privileged" and stage.credit.options.get("knowledge") == "feedback"
    check_feedback(f"{where}: credit.options", told, task, problem)


def check_declared(
    where: str, stage: RLStage, rule: Callable[..., Any], task: Task, problem: Problem, *, by_character: bool
) -> None:
    """Raises RecipeError for a rule of somebody else whose attribute `needs` names what is not there.

    It may name any of `Need`; a critic is there where `[stage.critic]` is given, a judge never.
    """
    declared = getattr(rule, "needs", ())
    if stage.credit.rule in CREDIT_RULES or not declared:
        return
    at = f"{where}: credit.rule = '{stage.credit.rule}'"
    for name in declared:
        if name not in set(Need):
            raise RecipeError(unknown_name(f"{at}: needs", str(name), map(str, Need)))
    met = offered(
        task, problem, by_character=by_character, critic=stage.critic is not None, experts=stage.experts > 0
    )  # fmt: skip
    lacks = lacking(Demands(needs=frozenset(map(Need, declared))), {}, met, task)
    if lacks:
        raise RecipeError(f"{at} needs {lacks}; what works here: {', '.join(workable(RULE_DEMANDS, met))}.")


def check_feedback(where: str, told: bool, task: Task, problem: Problem) -> None:
    """Raises RecipeError where feedback is to be `told` and the task's prompts cannot hold any text."""
    if told and not shows_any_text(task, problem):
        raise RecipeError(
            f"{where}: knowledge = 'feedback' needs prompts that can hold any text; those of {task.name} cannot."
        )


def check_rule_needs(where: str, name: str, options: Mapping[str, Any], task: Task, problem: Problem) -> None:
    """Raises RecipeError for a rule that needs what the task lacks, whatever the stage; critics are not looked at."""
    met = offered(task, problem, by_character=task.alphabet is not None, critic=True)
    _refuse_unmet(f"{where} {name}", name, options, RULE_DEMANDS, met, task)


def _refuse_unmet(
    where: str, name: str, options: Mapping[str, Any], table: Mapping[str, Demands], met: frozenset[Need], task: Task
) -> None:
    needs = lacking(table[name], options, met, task) if name in table else ""
    if needs:
        raise RecipeError(f"{where} needs {needs}; what works here: {', '.join(workable(table, met))}.")


def lacking(demands: Demands, options: Mapping[str, Any], met: frozenset[Need], task: Task) -> str:
    """What is demanded and not met, in words; empty where nothing is."""
    return ", ".join(_LACKS[need].format(task=task.name) for need in unmet(demands, options, met))


_LACKS: Mapping[Need, str] = MappingProxyType(
    {
        Need.CHARACTERS: "characters as tokens, which this policy does not have",
        Need.CRITIC: "a critic: give [stage.critic]",
        Need.EXPERTS: "experts, but the stage has none",
        Need.ANSWER_KEY: "an answer key, which the problems of the task {task} lack",
        Need.REPLY: "replies, which the task {task} lacks",
        Need.JUDGE: "a judge, which the recipe lacks",
        **{
            need: f"{need}, which the task {{task}} lacks"
            for need in (
                Need.STATE, Need.EARLY_ANSWER, Need.PRIVILEGED_PROMPT, Need.LESSONS, Need.STEP_CHECK, Need.CUT_POINTS,
            )
        },
    }
)  # fmt: skip


class StandIn:
    """A probe that spends nothing: numbers are 0, a continuation is the rollout itself, and wrong."""

    def __init__(self, task: Task) -> None:
        self.task = task

    @property
    def cost(self) -> Mapping[str, int]:
        """Nothing."""
        return {"sampled_tokens": 0, "scored_tokens": 0, "verifier_calls": 0, "forwards": 0}

    def sample(self, requests: Sequence[SampleRequest]) -> list[Rollout]:
        """A text of one character for each request."""
        return [written_rollout(request.problem, "x") for request in requests]

    def branch(self, requests: Sequence[Continuation]) -> list[Rollout]:
        """The rollout that each request would continue."""
        return [request.rollout for request in requests]

    def score(self, requests: Sequence[ScoreRequest]) -> list[Floats]:
        """Zeros."""
        return [frozen_array(np.zeros(len(request.tokens)), np.float32) for request in requests]

    def values(self, rollouts: Sequence[Rollout]) -> list[Floats]:
        """Zeros."""
        return [frozen_array(np.zeros(len(rollout.tokens)), np.float32) for rollout in rollouts]

    def entropies(self, rollouts: Sequence[Rollout]) -> list[Floats]:
        """Zeros."""
        return [frozen_array(np.zeros(len(rollout.tokens)), np.float32) for rollout in rollouts]

    def verify(self, problem: Problem, rollouts: Sequence[Rollout]) -> list[Verdict]:
        """That each rollout is wrong."""
        del problem
        return [Verdict(outcome=Outcome.WRONG, correct=False)] * len(rollouts)

    def encode(self, text: str) -> Ints:
        """One token a character."""
        return frozen_array(np.zeros(len(text)), np.int32)

    def decode(self, tokens: Ints) -> str:
        """One character a token."""
        return "0" * len(tokens)

    def encode_prompt(self, prompt: str) -> Ints:
        """One token a character."""
        return self.encode(prompt)


def try_credit(where: str, stage: RLStage, rule: Callable[..., Any], task: Task, problem: Problem) -> None:
    """Calls our own rule and its wrappers once, on two written rollouts, so that options out of bounds are refused."""
    chosen = stage.credit
    # A rule of somebody else may ask for what the stand-in does not have.
    made = rule if chosen.rule in CREDIT_RULES else leave_one_out
    options = chosen.options if chosen.rule in CREDIT_RULES else {}

    def give(batch: Batch, probe: Probe) -> list[Credit]:
        return wrapped(made(batch, probe, **options), batch, probe, wrap=chosen.wrap, options=chosen.wrap_options)

    try_rule(where, give, task, problem)


def try_rule(where: str, give: Callable[[Batch, Probe], list[Credit]], task: Task, problem: Problem) -> None:
    """Calls a rule of ours once, on two written rollouts; what it refuses becomes a RecipeError."""
    try:
        give(Batch(groups=(_written_group(task, problem),), update=0), StandIn(task))
    except ValueError as error:
        raise RecipeError(f"{where}: {error}") from None
    except ForkpointError as error:
        raise RecipeError(f"{where}: credit: {error}") from None


def _right_text(task: Task, problem: Problem) -> str:
    """A text that the verifier accepts, or a single character where there is no answer key."""
    return task.solve(problem) if problem.answer else "x"


def _written_group(task: Task, problem: Problem) -> Group:
    """A right text of a problem and one of a single character, as if a policy had written them."""
    rollouts = tuple(written_rollout(problem, text) for text in (_right_text(task, problem), "x"))
    verdicts = (
        Verdict(outcome=Outcome.CORRECT, correct=True, reason="the answer is right"),
        Verdict(outcome=Outcome.WRONG, correct=False, reason="the answer is wrong"),
    )
    return Group(problem=problem, rollouts=rollouts, verdicts=verdicts, rewards=(Reward(total=1.0), Reward(total=0.0)))


def check_credit_lengths(where: str, stage: RLStage, task: Task, policy: "Policy", problems: Sequence[Problem]) -> None:
    """Raises ModelError when what the credit asks about does not fit the model's context beside a whole rollout."""
    prompts = [policy.texts.encode_prompt(problem.prompt) for problem in problems]
    longest, what = 0, ""
    if stage.credit.rule == "privileged":
        knowledge: Knowledge = stage.credit.options.get("knowledge", "answer")
        longest, what = told_length(task, policy, problems, knowledge), "privileged prompt"
    elif {stage.credit.rule, *stage.credit.wrap} & ASKING and isinstance(task, Answerable):
        answers = [policy.texts.encode(task.early_answer(problem, "")) for problem in problems]
        sizes = [len(prompt) + len(answer) for prompt, answer in zip(prompts, answers, strict=True)]
        longest, what = max(sizes, default=0), "prompt with an early answer"
    if longest + stage.max_new_tokens > policy.context_length:
        raise ModelError(
            f"{where}: credit: a {what} of {longest} tokens and a rollout of {stage.max_new_tokens} do not fit the "
            f"model's context of {policy.context_length}."
        )


def told_length(task: Task, policy: "Policy", problems: Sequence[Problem], knowledge: Knowledge) -> int:
    """Tokens of the longest privileged prompt of the problems; 0 for a task that has none."""
    if not isinstance(task, Privileged):
        return 0
    groups = tuple(_written_group(task, problem) for problem in problems)
    asked_of = Batch(groups=groups, update=0)
    if knowledge == "lessons" and isinstance(task, Teachable):
        # All that could be told stands for the lessons that will be.
        told = knowledge_of(asked_of, task, knowledge={each.key: task.right_lesson(each) for each in problems})
    else:
        told = knowledge_of(asked_of, task, knowledge=knowledge)
    asked = zip((problem for problem in problems for _ in range(2)), told, strict=True)
    texts = [task.privileged_prompt(problem, text) for problem, text in asked if text is not None]
    return max((len(policy.texts.encode_prompt(text)) for text in texts), default=0)


def plan_credit(
    stage: RLStage, task: Task, policy: "Policy", problem: Problem, *, critic: CriticKind | None = None
) -> CreditPlan:
    """Whether the stage's gradient is unbiased, and what its credit and critic cost at rollouts of the full budget."""
    solution = written_rollout(problem, _right_text(task, problem))
    length = max(1, len(solution.tokens))
    steps = len(step_cuts(task, problem, solution)) * stage.max_new_tokens / length
    answer = task.early_answer(problem, "") if isinstance(task, Answerable) else ""
    shape = Shape(
        tokens=stage.max_new_tokens,
        prompt_tokens=len(policy.texts.encode_prompt(problem.prompt)),
        steps=max(1.0, steps),
        answer_tokens=len(policy.texts.encode(answer)),
        group_size=stage.group_size,
    )
    chosen = stage.credit
    demands = [RULE_DEMANDS[chosen.rule]] if chosen.rule in RULE_DEMANDS else []
    demands += [WRAPPER_DEMANDS[name] for name in chosen.wrap]
    cost = credit_cost(chosen.rule, chosen.options, chosen.wrap, chosen.wrap_options, shape)
    formulas = [each.formula for each in demands if each.formula != "0"]
    if critic is not None and critic in CRITIC_FORMULAS:
        cost = None if cost is None else cost + critic_cost(critic, (stage.critic or CriticSettings()).epochs, shape)
        formulas.append(CRITIC_FORMULAS[critic])
    if stage.distillation is not None:
        cost = None if cost is None else cost + RULE_DEMANDS["privileged"].cost({}, shape)
        formulas.append("teacher: 1 + U / T scored")
    if stage.reflect is not None:
        asked = stage.reflect
        spent = reflect_cost(asked.failures, asked.reflections, asked.max_new_tokens, shape)
        cost = None if cost is None else cost + spent
        formulas.append(REFLECT_FORMULA)
    return CreditPlan(
        bias=unbiased(stage, fixed_length=hasattr(task, "budget")),
        cost=cost,
        formulas=tuple(formulas),
        prices=Prices(),
    )


def credit_line(plan: CreditPlan) -> str:
    """One line for people: unbiased or why not, and the cost."""
    known = {True: "unbiased", False: "biased", None: "bias not known"}[plan.bias.unbiased]
    why = f" ({'; '.join(plan.bias.reasons)})" if plan.bias.reasons else ""
    if plan.cost is None or plan.token_equivalents is None:
        return f"gradient {known}{why}; credit costs what its own rule asks for"
    if not plan.token_equivalents:
        return f"gradient {known}{why}; credit costs nothing beside the rollouts"
    prices, cost = plan.prices, plan.cost
    return (
        f"gradient {known}{why}; credit costs {plan.token_equivalents:.3g} sampled tokens for each rollout token, at "
        f"most: {cost.sampled:.3g} sampled, {cost.scored:.3g} scored at {prices.scored:g}, {cost.verifier_calls:.3g} "
        f"verifier calls at {prices.verifier_call:g} ({'; '.join(plan.formulas)})"
    )


def credit_json(plan: CreditPlan) -> dict[str, Any]:
    """The plan for programs."""
    return {
        "unbiased": plan.bias.unbiased,
        "reasons": list(plan.bias.reasons),
        "cost_per_token": None if plan.cost is None else asdict(plan.cost),
        "prices": asdict(plan.prices),
        "token_equivalents": plan.token_equivalents,
        "formulas": list(plan.formulas),
    }
