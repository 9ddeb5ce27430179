"""The nouns: frozen records that every part of the library passes on.

Per-token arrays run over the tokens after the prompt and are read-only: int32 ids, float32 numbers, bool masks.
Log-probabilities are in nats.  Letters: G rollouts of one problem, T positions.
Records that hold arrays compare by identity (`eq=False`).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Ints: TypeAlias = NDArray[np.int32]
Floats: TypeAlias = NDArray[np.float32]
Bools: TypeAlias = NDArray[np.bool_]
Message: TypeAlias = Mapping[str, str]
"""A chat message: `role` and `content`."""


class Outcome(StrEnum):
    """The typed result of verification."""

    CORRECT = "correct"
    WRONG = "wrong"
    DECLINED = "declined"
    """The model says that it does not know."""
    UNPARSEABLE = "unparseable"
    """No answer in the declared form was found."""
    TRUNCATED = "truncated"
    """Set by the guard from the stop reason, never by a verifier."""
    ABSTAINED = "abstained"
    """The verifier could not tell."""
    ERROR = "error"
    """The verifier failed: raised, hung, ran out of memory, or was killed."""


class StopReason(StrEnum):
    """Why a rollout ended."""

    EOS = "eos"
    """The model wrote its end-of-sequence token."""
    STOP = "stop"
    """A stop string of the request was reached."""
    LENGTH = "length"
    """The budget of new tokens, or the model's context, was used up."""
    DONE = "done"
    """The environment ended the episode."""


class SpanKind(StrEnum):
    """What a span of a rollout is."""

    THINK = "think"
    ANSWER = "answer"
    ACTION = "action"
    OBSERVATION = "observation"
    STEP = "step"


def frozen_array(values: object, dtype: type[np.generic]) -> NDArray[Any]:
    """A read-only array of `values` with `dtype`; copies only when it must."""
    array = np.asarray(values, dtype=dtype)
    if array.flags.writeable:
        array = array.copy() if array is values else array
        array.flags.writeable = False
    return array


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One question of a task with its reference answer, which the policy never sees."""

    task: str
    key: str
    """Content hash; decides train or evaluation (see `is_evaluation`)."""
    prompt: str | tuple[Message, ...]
    answer: str
    difficulty: float = 0.0
    metadata: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_evaluation(self) -> bool:
        """Whether the problem belongs to the evaluation split (one key in ten)."""
        return int(self.key, 16) % 10 == 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """Positions `start` to `end` (exclusive) of a rollout's tokens, and the weights that wrote them."""

    start: int
    end: int
    kind: SpanKind
    policy_version: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Rollout:
    """One attempt: everything sampled for one problem, with the environment's replies in between."""

    id: str
    """Hash of (run seed, stage, purpose, update, problem, index, branch)."""
    group_id: str
    stage: str
    update: int
    index: int
    """Place in the group, from 0."""
    problem_key: str
    parent_id: str | None = None
    """The rollout whose first `prefix_length` tokens this one continues."""
    prefix_length: int = 0
    prompt_tokens: Ints
    tokens: Ints
    behavior_logprobs: Floats
    """Nats, under the distribution that was really sampled from; 0.0 on observation tokens."""
    loss_mask: Bools
    """False on observation tokens and on the prefix of a parent."""
    spans: tuple[Span, ...] = ()
    temperature: float
    text: str
    stop_reason: StopReason
    seed: str
    """Hex key of the counter-based stream that drew the tokens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What a verifier says of one rollout."""

    outcome: Outcome
    correct: bool | None
    """The binary truth, the only thing filters, curricula and reports read.  None: it could not be told."""
    score: float | None = None
    """Graded quality in [0, 1] where the task has one; never 0 by accident."""
    answer: str | None = None
    """The answer that was found in the rollout."""
    reason: str = ""
    parts: Mapping[str, float] = field(default_factory=dict)

    @property
    def usable(self) -> bool:
        """Whether the verifier could tell: abstained and failed verdicts never become a reward."""
        return self.outcome not in (Outcome.ABSTAINED, Outcome.ERROR)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reward:
    """The number that training uses."""

    total: float
    steps: tuple[float, ...] | None = None
    """Optional reward of each step; their sum is part of `total`."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Credit:
    """One advantage per token with where it came from."""

    advantages: Floats
    """0 where the rollout's loss_mask is False."""
    rule: str
    baseline: float | None = None
    cost: Mapping[str, float] = field(default_factory=dict)
    """Extra cost of this rollout's credit: sampled tokens, scored tokens, verifier calls."""
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Group:
    """The rollouts of one problem with their verdicts and rewards, in index order."""

    problem: Problem
    rollouts: tuple[Rollout, ...]
    verdicts: tuple[Verdict, ...]
    rewards: tuple[Reward, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Batch:
    """All groups of one update."""

    groups: tuple[Group, ...]
    update: int

    @property
    def rollouts(self) -> tuple[Rollout, ...]:
        """Every rollout, group by group."""
        return tuple(rollout for group in self.groups for rollout in group.rollouts)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SampledExample:
    """A sampled rollout with its credit: may enter any loss."""

    rollout: Rollout
    credit: Credit


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TextExample:
    """Text that was never sampled by this policy: imitation only, the type says so."""

    tokens: Ints
    loss_mask: Bools
    """True on the tokens to imitate; the first token is never predicted."""
    provenance: str


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ExpertExample:
    """An expert's text, accepted only by the loss named `mixed_policy`."""

    tokens: Ints
    loss_mask: Bools
    provenance: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LossOutput:
    """One scalar to minimise (a torch scalar) and detached diagnostics."""

    loss: Any
    diagnostics: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateRecord:
    """What one optimiser step did."""

    stage: str
    update: int
    metrics: Mapping[str, float]
    seconds: float
    tokens: int
    """Tokens sampled for this update."""


class Severity(StrEnum):
    """How much a finding matters."""

    INFO = "info"
    WARNING = "warning"
    CRITICAL = "critical"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What an audit claims about a run, with the rollouts that let a reader check it."""

    audit: str
    severity: Severity
    claim: str
    value: float
    interval: tuple[float, float] | None = None
    threshold: float | None = None
    evidence: Sequence[str] = ()


class EditKind(StrEnum):
    """What a review does to a rollout."""

    KEEP = "keep"
    """Dead ends and the way back stay."""
    PRUNE = "prune"
    """Dead ends are cut out."""
    SUMMARISE = "summarise"
    """A dead end becomes one marked step."""
    FIX = "fix"
    """The prefix with a better step after it; nothing that follows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Edit:
    """A proposal of a review: tokens `start` to `end` (exclusive) of a rollout become `text`."""

    id: str
    """Hash of the other fields."""
    rollout_id: str
    kind: EditKind
    start: int
    end: int
    text: str
    source: str
    """Who wrote the text: policy, sibling, solver, the name of a model; the review itself where nothing is new."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lesson:
    """A sentence for the prompt of later problems."""

    id: str
    """Hash of task and text."""
    task: str
    text: str
    about: str = ""
    """What a problem must share for the lesson to be retrieved; empty: every problem of the task."""
    origin: tuple[str, ...] = ()
    """Ids of the rollouts that it was drawn from."""
    helpful: int = 0
    """Audits in which it helped."""
    harmful: int = 0
    """Audits in which it did not."""


SHIFTED = "shifted:"
"""What the purpose of rollouts on another task than the stage's own begins with."""
OUTCOMES: tuple[Outcome, ...] = tuple(Outcome)
"""`Records.outcome` counts in this order."""
STOPS: tuple[StopReason, ...] = tuple(StopReason)
"""`Records.stop` counts in this order."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Contents:
    """What one rollout said; None for what was not kept."""

    prompt: str | None = None
    text: str | None = None
    answer: str | None = None
    """What the verifier took for the answer."""
    reference: str | None = None
    """The reference answer of its problem."""
    tokens: Ints | None = None
    behavior_logprobs: Floats | None = None
    """Nats."""
    trainer_logprobs: Floats | None = None
    """Nats, of the same tokens, under the policy that was trained."""
    loss_mask: Bools | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Records:
    """What an audit reads: the rollouts of one stage as arrays over N rollouts, in the order of their updates.

    `has` names what is known at all; an entry that is not known is -1 or nan.
    """

    run: str
    stage: str
    has: frozenset[str]
    """Of: updates (two or more), groups, correct, outcomes, held_out, reward, length, turns, stops,
    difficulty, evaluations, shifted, parts, prompt, text, answer, reference, tokens, behavior_logprobs,
    trainer_logprobs, metrics."""
    ids: NDArray[np.bytes_]
    update: Ints
    purposes: tuple[str, ...]
    """The first one is `train`; the others name evaluations."""
    purpose: NDArray[np.int8]
    """Place in `purposes`."""
    problem: NDArray[np.uint64]
    """Hash of the problem."""
    group: NDArray[np.uint64]
    """Hash of the group."""
    length: Ints
    unit: str = "tokens"
    """Of `length`: tokens, or characters where no tokens were kept."""
    correct: NDArray[np.int8]
    """1, 0, or -1."""
    outcome: NDArray[np.int8]
    """Place in `OUTCOMES`, or -1."""
    stop: NDArray[np.int8]
    """Place in `STOPS`, or -1."""
    reward: NDArray[np.float64]
    difficulty: Floats
    turns: Ints | None = None
    """Tool rounds: answers of tools to calls of one message; -1 where it is not known."""
    held_out: NDArray[np.int8] | None = None
    """1, 0, or -1: what a verifier says that training did not use; None where none was asked."""
    parts: Mapping[str, Floats] = field(default_factory=dict)
    """Parts of the verdicts."""
    metrics: Mapping[str, tuple[Ints, NDArray[np.float64]]] = field(default_factory=dict)
    """Updates and values of each metric of the stage."""
    kept: Bools
    """Whether `contents` can say anything of the rollout."""
    contents: Callable[[NDArray[np.int64]], Iterator[Contents]]
    """The contents of the rows that are named, one each, in their order; nothing is held."""
    base: "Records | None" = None
    """What the stage is compared with."""
    skipped: int = 0
    """Entries of a foreign file that could not be read."""

    def __len__(self) -> int:
        return len(self.update)

    @property
    def training(self) -> Bools:
        """Which rollouts were sampled to train on."""
        return self.purpose == 0

    def lacks(self, needs: Sequence[str]) -> tuple[str, ...]:
        """Those of `needs` that are not there."""
        return tuple(name for name in needs if name not in self.has)
