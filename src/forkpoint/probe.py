"""What a credit rule, a review step or an audit may ask of models and verifiers, in numpy terms.

A rule never holds a model: it receives a `Probe` and asks for everything of one update at once.
Log-probabilities are in nats.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from forkpoint.records import Floats, Ints, Problem, Rollout, Verdict
from forkpoint.seeds import Key


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SampleRequest:
    """One rollout to draw."""

    key: Key
    """Names the random numbers and so the rollout: (run seed, stage, purpose, update, problem, index, branch)."""
    problem: Problem
    prompt_tokens: Ints
    group_id: str
    stage: str
    update: int
    index: int
    max_new_tokens: int
    """Budget of tokens after the prompt, observations and prefix included."""
    temperature: float = 1.0
    """0 takes the most probable token."""
    stop: tuple[str, ...] = ()
    """The rollout ends as soon as its text ends with one of these."""
    parent: Rollout | None = None
    """Continue this rollout after its first `prefix_length` tokens."""
    prefix_length: int = 0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ScoreRequest:
    """Tokens to score under the policy: log pi(tokens | prompt_tokens)."""

    prompt_tokens: Ints
    tokens: Ints
    temperature: float = 1.0


@runtime_checkable
class Sampler(Protocol):
    """An engine that draws rollouts.  Rollouts come back as they finish, in any order."""

    def stream(self, requests: Iterable[SampleRequest]) -> Iterator[Rollout]:
        """Every request's rollout, exactly once each."""
        ...

    def update_weights(self, version: int) -> None:
        """Tell the engine that the policy's weights are now `version`."""
        ...


@runtime_checkable
class Probe(Protocol):
    """The models and verifiers behind one update; counts what it spends."""

    def sample(self, requests: Sequence[SampleRequest]) -> list[Rollout]:
        """One rollout for each request, in the order of the requests."""
        ...

    def score(self, requests: Sequence[ScoreRequest]) -> list[Floats]:
        """The log-probability of each token of each request, nats."""
        ...

    def verify(self, problem: Problem, rollouts: Sequence[Rollout]) -> list[Verdict]:
        """The guarded verdict on each rollout."""
        ...

    def values(self, rollouts: Sequence[Rollout]) -> list[Floats]:
        """The critic's value of the state before each token of each rollout, in units of reward."""
        ...

    @property
    def cost(self) -> Mapping[str, int]:
        """Spent so far: `sampled_tokens`, `scored_tokens`, `verifier_calls`, `forwards`."""
        ...
