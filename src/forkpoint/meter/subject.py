"""What is measured: a policy on a task, the batches it writes, and the rules that give them credit."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from forkpoint.config.critic import CriticSettings
from forkpoint.credit import CreditRule
from forkpoint.errors import ForkpointError
from forkpoint.meter.enumeration import MOST_SEQUENCES, Language, enumerated_truth
from forkpoint.meter.truth import Progress, Tier, Truth, sampled_places, sampled_truth, table_truth
from forkpoint.policies.causal import CausalPolicy
from forkpoint.policies.protocol import Policy
from forkpoint.policies.tabular import OFFSET, TabularPolicy
from forkpoint.probe import Probe
from forkpoint.probing.local import BranchPlan, LocalProbe
from forkpoint.records import Batch, Credit, Rollout
from forkpoint.rewards import outcome_rewards
from forkpoint.sampling.engine import LocalSampler
from forkpoint.sampling.tabular import TabularSampler
from forkpoint.seeds import Key
from forkpoint.tasks.lab import Lab
from forkpoint.tasks.protocol import Interactive, Task, split_problems
from forkpoint.theory.graphs import edge_states
from forkpoint.training.critic import Critic, TableCritic
from forkpoint.training.rl import usable
from forkpoint.training.rollouts import SamplePlan, judged_groups
from forkpoint.training.value_network import ValueNetwork
from forkpoint.verifiers.guard import guarded

STAGE = "meter"
USUAL = CriticSettings()
CRITIC_BATCHES = 8
"""Batches that a critic is fitted to before it is asked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """A credit rule under its name."""

    name: str
    give: CreditRule
    """With its options bound."""
    critic: bool = False
    """Whether it asks the probe for values."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """A policy on a task, and how it is drawn from."""

    policy: Policy
    task: Task
    key: Key
    max_new_tokens: int
    problems: int = 8
    """Groups of a batch."""
    group_size: int = 8
    temperature: float = 1.0
    slots: int = 256
    values: CriticSettings = USUAL
    """The critic of a language model; a table has one value for each of its edges."""

    def probe(self, purpose: str, critic: Critic | None = None) -> LocalProbe:
        """A fresh probe, which counts from 0; `purpose` names the stream of its continuations."""
        verifier = guarded(self.task.verify, fixed_length=getattr(self.task, "budget", None))
        plan = BranchPlan(task=self.task, key=self.key.child(purpose), max_new_tokens=self.max_new_tokens)
        values = None if critic is None else critic.values
        return LocalProbe(self.policy, self._sampler, verifier, critic=values, plan=plan)

    @property
    def _sampler(self) -> LocalSampler | TabularSampler:
        if isinstance(self.policy, TabularPolicy):
            return TabularSampler(self.policy, slots=self.slots)
        if not isinstance(self.policy, CausalPolicy):
            raise TypeError(f"no engine samples from a {type(self.policy).__name__}")
        environment = self.task if isinstance(self.task, Interactive) else None
        return LocalSampler(self.policy, slots=self.slots, environment=environment)

    def batch(self, probe: Probe, *parts: str | int) -> Batch:
        """A fresh batch of judged and rewarded groups, named by `parts`; truncated rollouts count as wrong.

        Raises:
            ForkpointError: no group of two rollouts could be judged.
        """
        key = self.key.child("batch", *parts)
        problems = split_problems(self.task, key.child("problems"), self.problems, evaluation=False)
        plan = SamplePlan(
            key=key.child("rollouts"), stage=STAGE, update=0, group_size=self.group_size,
            max_new_tokens=self.max_new_tokens, temperature=self.temperature,
        )  # fmt: skip
        judged = judged_groups(probe, self.task, self.policy.texts, problems, plan)
        groups = [usable(group, drop_truncated=False) for group in judged]
        batch = Batch(groups=tuple(group for group in groups if len(group.rollouts) > 1), update=0)
        if not batch.groups:
            raise ForkpointError(f"meter: no group of two rollouts of the task {self.task.name} could be judged.")
        rewards = iter(outcome_rewards(batch, probe, max_new_tokens=self.max_new_tokens))
        return replace(
            batch,
            groups=tuple(
                replace(group, rewards=tuple(next(rewards) for _ in group.rollouts)) for group in batch.groups
            ),
        )

    def critic(self) -> Critic:
        """A critic of the policy, fitted to `CRITIC_BATCHES` batches of its own.

        Raises:
            ForkpointError: no group of two rollouts could be judged.
        """
        critic, probe = self.fresh_critic(), self.probe("critic")
        for number in range(CRITIC_BATCHES):
            critic.fit(self.batch(probe, "critic", number))
        return critic

    def fresh_critic(self) -> Critic:
        """A critic of the policy that has seen nothing."""
        if isinstance(self.policy, TabularPolicy):
            return TableCritic(self.policy.graph.state_count + OFFSET)
        if not isinstance(self.policy, CausalPolicy):
            raise TypeError(f"no critic for a {type(self.policy).__name__}")
        return ValueNetwork(self.policy, self.values, key=self.key.child("critic", "weights"))

    @property
    def best_tier(self) -> Tier:
        """The most exact tier that this policy and task allow."""
        if isinstance(self.policy, TabularPolicy) and self.policy.architecture == "table":
            return Tier.EXACT if isinstance(self.task, Lab) and self.temperature == 1.0 else Tier.MONTE_CARLO
        short = isinstance(self.policy, CausalPolicy) and not isinstance(self.task, Interactive)
        count = len(self.policy.texts.tokenizer) ** min(self.max_new_tokens, 64) if short else MOST_SEQUENCES + 1
        return Tier.ENUMERATION if count <= MOST_SEQUENCES else Tier.MONTE_CARLO

    @property
    def language(self) -> Language:
        """What the policy can write: legal moves of a table, any token of a language model."""
        texts = self.policy.texts
        if isinstance(self.policy, TabularPolicy):
            states = edge_states(self.policy.graph)
            return Language(
                following=lambda prompt, words: [
                    move + OFFSET for move in states.moves((words[-1] if words else int(prompt[-1])) - OFFSET)
                ],
                text=lambda words: texts.decode(np.asarray(words)), eos=None, budget=self.max_new_tokens,
            )  # fmt: skip
        everything = range(len(texts.tokenizer))
        return Language(
            following=lambda prompt, words: everything, text=lambda words: texts.decode(np.asarray(words)),  # noqa: ARG005
            eos=texts.eos_id, budget=self.max_new_tokens,
        )  # fmt: skip

    def whole_truth(self, batch: Batch, probe: Probe, tier: Tier) -> Truth:
        """The truth of every token of a batch, for the two exact tiers."""
        if tier is Tier.EXACT:
            if not isinstance(self.policy, TabularPolicy):
                raise ForkpointError("--tier exact needs a policy that sees only the task's state: a table of the lab.")
            return table_truth(self.policy.to_theory(), batch, budget=self.max_new_tokens)
        return enumerated_truth(batch, probe, self.language, self.task.stop)

    def truth(
        self, batch: Batch, probe: Probe, tier: Tier, *, positions: int, continuations: int, key: Key,
        progress: Progress | None = None,
    ) -> Truth:  # fmt: skip
        """The truth of every token, or by nested Monte Carlo of `positions` of them."""
        if tier is not Tier.MONTE_CARLO:
            return self.whole_truth(batch, probe, tier)
        places = sampled_places(batch, positions, key)
        return sampled_truth(batch, probe, places, continuations=continuations, progress=progress)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Given:
    """The credit of a batch under a rule, and what it cost beyond the batch."""

    credits: list[Credit]
    cost: Mapping[str, int]


def give_credit(rule: Rule, batch: Batch, probe: Probe) -> Given:
    """The credits of a rule, in the order of `batch.rollouts`.

    Raises:
        ForkpointError: the rule refuses; it gives another number of credits than there are rollouts, or of another
            length.
    """
    before = dict(probe.cost)
    try:
        credits = rule.give(batch, probe)
    except ValueError as error:
        # How rules refuse an option, or a batch that they cannot serve.
        raise ForkpointError(f"--rules {rule.name}: {error}") from None
    fitting = len(credits) == len(batch.rollouts) and all(map(_fits, batch.rollouts, credits))
    if not fitting:
        raise ForkpointError(f"--rules {rule.name}: it gave {len(credits)} credits that do not fit the rollouts.")
    return Given(credits=credits, cost={name: count - before.get(name, 0) for name, count in probe.cost.items()})


def _fits(rollout: Rollout, credit: Credit) -> bool:
    return credit.advantages.shape == rollout.tokens.shape
