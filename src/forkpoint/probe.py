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


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Continuation:
    """A rollout taken up again: its first `prefix_length` tokens are kept and the rest is drawn anew.

    Budget, stop strings and temperature are those of the rollout, so the reward means the same.
    """

    problem: Problem
    rollout: Rollout
    prefix_length: int
    index: int
    """Tells the continuations of one prefix apart."""
    purpose: str
    """Who asks; names the random stream."""
    prefix: Ints | None = None
    """`prefix_length` tokens to go on from instead of the rollout's own; their log-probabilities are taken as 0."""


@runtime_checkable
class Stateful(Protocol):
    """A task whose transcripts have a state that all that follows depends on (rule `state_group`)."""

    def state(self, problem: Problem, transcript: str) -> str:
        """The state after a transcript; equal states have equal futures."""
        ...


@runtime_checkable
class Answerable(Protocol):
    """A task whose answer can be asked for in the middle of a rollout (rule `answer_progress`)."""

    def early_answer(self, problem: Problem, transcript: str) -> str:
        """The text that gives the right answer at once after a transcript; empty where none can be right any more.

        The attribute `answer_lead`, where a task has one, is the part of it that every answer begins with.
        """
        ...


@runtime_checkable
class Privileged(Protocol):
    """A task whose prompt can hold knowledge that the policy does not have (rule `privileged`)."""

    def privileged_prompt(self, problem: Problem, knowledge: str) -> str:
        """The prompt with knowledge in it, such as the answer or a solution, as pretraining taught to read it."""
        ...


@runtime_checkable
class Reflective(Protocol):
    """A task whose prompts can hold a failed attempt, and then the hint that it led to (stages that reflect)."""

    def reflection_prompt(self, problem: Problem, attempt: str) -> str:
        """The prompt that shows a failed attempt and asks for a hint, as pretraining taught to read it."""
        ...

    def retry_prompt(self, problem: Problem, reflection: str) -> str:
        """The prompt with the hint in it and without the attempt; raises `TaskError` for a text that is no hint."""
        ...


@runtime_checkable
class Stepped(Protocol):
    """A task that knows where the steps of a rollout begin (causal cuts, reviews)."""

    def cut_points(self, problem: Problem, rollout: Rollout) -> Sequence[int]:
        """Token positions where a step begins, ascending, the first 0; each must follow from the tokens before it."""
        ...


@runtime_checkable
class Solver(Protocol):
    """A task that knows a right next step from anywhere (reviews)."""

    def right_step(self, problem: Problem, transcript: str) -> str:
        """The text of a right next step after a transcript that ends where a step begins; empty where none can be."""
        ...


@runtime_checkable
class Markable(Protocol):
    """A task whose texts may say that something was tried and left (reviews)."""

    def dead_end_mark(self, problem: Problem, before: str, wasted: str) -> str:
        """One marked step that stands for the wasted text after `before`; its verifier reads it as no move."""
        ...


@runtime_checkable
class Relabelable(Protocol):
    """A task in which a failure may have reached another goal (reviews)."""

    def reached(self, problem: Problem, text: str) -> tuple[Problem, str] | None:
        """The problem that a text solved instead, and the part of the text that did; None where it solved none."""
        ...


@runtime_checkable
class Teachable(Protocol):
    """A task that knows what a lesson about its problems looks like (lessons and their audits).

    The attribute `lesson_divider`, where a task has one, stands between two lessons in a prompt; else a new line.
    """

    def lesson_of(self, problem: Problem, text: str, correct: bool) -> Sequence[tuple[str, str]]:
        """Lessons that a rollout speaks for, if it is correct, else against: text, and what it is about."""
        ...

    def right_lesson(self, problem: Problem) -> str:
        """All that a policy must be told to solve the problem, without its answer."""
        ...

    def changed_lessons(self, text: str) -> Sequence[str]:
        """The lesson with its meaning changed, in every way that there is; none where it cannot be read."""
        ...

    def irrelevant_lesson(self, problem: Problem, text: str) -> str:
        """A lesson like this one about something that the problem does not have; empty where there is none."""
        ...


@runtime_checkable
class Bounded(Protocol):
    """A probe whose model says how much it can read."""

    @property
    def context_length(self) -> int:
        """Most tokens of a prompt and what follows it."""
        ...


def fits(probe: object, prompt: int, follow: int) -> bool:
    """Whether a prompt and what follows it, in tokens, fit the probe's model; True where it does not say."""
    return not isinstance(probe, Bounded) or prompt + follow <= probe.context_length


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

    def branch(self, requests: Sequence[Continuation]) -> list[Rollout]:
        """One rollout for each request, in order; of each only the tokens after the prefix are new and counted."""
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

    def encode(self, text: str) -> Ints:
        """The tokens of a text that continues a rollout."""
        ...

    def decode(self, tokens: Ints) -> str:
        """The text of the tokens of a rollout."""
        ...

    def encode_prompt(self, prompt: str) -> Ints:
        """The tokens of a prompt, as a rollout has it."""
        ...

    @property
    def task(self) -> object:
        """The task behind the batch; what a rule needs of it, the protocols above say."""
        ...

    @property
    def cost(self) -> Mapping[str, int]:
        """Spent so far: `sampled_tokens`, `scored_tokens`, `verifier_calls`, `forwards`."""
        ...
