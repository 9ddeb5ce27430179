"""Which critic a stage has: refused or named before a run, built beside its policy."""

from typing import TYPE_CHECKING, Literal

from forkpoint.assembly.tables import CREDIT_RULES, CRITIC_RULES
from forkpoint.config.critic import CriticSettings
from forkpoint.config.policies import TabularPolicy
from forkpoint.config.recipe import AnyStage, Recipe, RewardRule, RLStage
from forkpoint.errors import RecipeError
from forkpoint.seeds import Key

if TYPE_CHECKING:
    from forkpoint.policies.protocol import Policy
    from forkpoint.training.critic import Critic

CriticKind = Literal["table", "head", "network"]


def critic_kind(recipe: Recipe, stage: AnyStage) -> CriticKind | None:
    """The kind of a stage's critic; None for a stage without one.

    A critic goes with our rules that ask for values, and with a rule of somebody else where `[stage.critic]` is given.

    Raises:
        RecipeError: settings of a critic that no rule asks, or of a kind or loss that policy or rewards cannot have.
    """
    if not isinstance(stage, RLStage):
        return None
    where, rule, settings = f"[[stage]] '{stage.name}'", stage.credit.rule, stage.critic
    if rule not in CRITIC_RULES and (settings is None or rule in CREDIT_RULES):
        if settings is None:
            return None
        raise RecipeError(
            f"{where}: [stage.critic] is given, but credit.rule = '{rule}' asks for no values; "
            f"those that do: {', '.join(sorted(CRITIC_RULES))}."
        )
    chosen = settings or CriticSettings()
    tabular = isinstance(recipe.policy, TabularPolicy)
    if chosen.kind != "auto" and (chosen.kind == "table") != tabular:
        fitting = "table" if tabular else "head, network"
        raise RecipeError(
            f"{where}: critic.kind = '{chosen.kind}' does not go with [policy] kind = '{recipe.policy.kind}', "
            f"which can have: {fitting}."
        )
    if chosen.loss == "cross_entropy" and stage.reward != RewardRule():
        raise RecipeError(
            f"{where}: critic.loss = 'cross_entropy' needs rewards of 0 and 1, but [stage.reward] shapes them: "
            "use 'squared' or 'auto'."
        )
    if chosen.kind == "auto":
        return "table" if tabular else "head"
    return chosen.kind


def build_critic(recipe: Recipe, stage: AnyStage, policy: "Policy") -> "Critic | None":
    """A fresh critic for a stage that begins with this policy; None for a stage without one.

    Raises:
        RecipeError: as `critic_kind`.
    """
    from forkpoint.policies.causal import CausalPolicy
    from forkpoint.policies.tabular import OFFSET
    from forkpoint.policies.tabular import TabularPolicy as EdgePolicy
    from forkpoint.training.critic import TableCritic
    from forkpoint.training.value_network import ValueNetwork

    kind = critic_kind(recipe, stage)
    if kind is None or not isinstance(stage, RLStage):
        return None
    settings = (stage.critic or CriticSettings()).model_copy(update={"kind": kind})
    gamma = float(stage.credit.options.get("gamma", 1.0))
    if isinstance(policy, EdgePolicy):
        return TableCritic(policy.graph.state_count + OFFSET, rate=settings.rate, gamma=gamma)
    if not isinstance(policy, CausalPolicy):
        raise TypeError(f"no critic for a {type(policy).__name__}")
    squared = settings.loss == "squared" or stage.reward != RewardRule()
    return ValueNetwork(
        policy, settings, key=Key.root(recipe.seed).child(stage.name, "critic"),
        loss="squared" if squared else "cross_entropy", gamma=gamma, max_tokens=stage.max_batch_tokens,
    )  # fmt: skip
