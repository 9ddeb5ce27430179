"""Records to tensors: the only place that pads.

A row is a prompt and the tokens after it, with one stream of numbers per token for each loss component.  Rows that
share a prompt hold it once.  Letters: P prompts, U prompt positions, B rows, T positions after the prompt.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from forkpoint.records import Bools, ExpertExample, Floats, Ints, SampledExample, TextExample, frozen_array

_NO_FLOATS = frozen_array([], np.float32)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TeacherTargets:
    """What a teacher says at each of T tokens: K tokens by name, all others as one bucket.  Nats."""

    ids: Ints
    """[T, K]."""
    logprobs: Floats
    """[T, K], of the named tokens."""
    tails: Floats
    """[T], log of the probability of all others; -inf where every token is named."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Row:
    """One sequence to train on.  Weights already hold the global denominators, so that losses are plain sums."""

    prompt: Ints
    """At least one token; never predicted."""
    tokens: Ints
    loss_mask: Bools
    behavior_logprobs: Floats = field(default_factory=lambda: _NO_FLOATS)
    advantages: Floats = field(default_factory=lambda: _NO_FLOATS)
    policy_weights: Floats = field(default_factory=lambda: _NO_FLOATS)
    """Policy-gradient weight of each token."""
    expert_weights: Floats = field(default_factory=lambda: _NO_FLOATS)
    """Weight of each token of an expert in the loss `mixed_policy`."""
    imitation_weights: Floats = field(default_factory=lambda: _NO_FLOATS)
    """Cross-entropy weight of each token."""
    divergence_weight: float = 0.0
    """Weight of the row in a sequence-level divergence to the reference."""
    distillation_weights: Floats = field(default_factory=lambda: _NO_FLOATS)
    """Weight of each token's divergence from the teacher."""
    entropy_weights: Floats = field(default_factory=lambda: _NO_FLOATS)
    """Weight of the entropy of each token's distribution in the entropy bonus."""
    teacher: TeacherTargets | None = None
    """Must be given where a distillation weight is not 0; K is that of the other rows."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TeacherTensors:
    """The teachers of rows as padded tensors; 0 where a row has none, or has ended."""

    ids: Int[Tensor, "B T K"]
    logprobs: Float[Tensor, "B T K"]
    tails: Float[Tensor, "B T"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TokenBatch:
    """Rows as padded tensors.  Padding is on the right and has loss_mask False and weight 0."""

    prompts: Int[Tensor, "P U"]
    prompt_lengths: Int[Tensor, " P"]
    prompt_index: Int[Tensor, " B"]
    """Which prompt a row continues."""
    tokens: Int[Tensor, "B T"]
    loss_mask: Bool[Tensor, "B T"]
    behavior_logprobs: Float[Tensor, "B T"]
    advantages: Float[Tensor, "B T"]
    policy_weights: Float[Tensor, "B T"]
    expert_weights: Float[Tensor, "B T"]
    imitation_weights: Float[Tensor, "B T"]
    divergence_weights: Float[Tensor, " B"]
    distillation_weights: Float[Tensor, "B T"]
    entropy_weights: Float[Tensor, "B T"]
    teacher: TeacherTensors | None
    """None: no row has a teacher."""
    rows: tuple[int, ...]
    """Places of the rows in the list that was batched."""


def sampled_row(example: SampledExample) -> Row:
    """The row of a sampled rollout, its weights still to be set."""
    rollout = example.rollout
    return Row(
        prompt=rollout.prompt_tokens,
        tokens=rollout.tokens,
        loss_mask=rollout.loss_mask,
        behavior_logprobs=rollout.behavior_logprobs,
        advantages=example.credit.advantages,
    )


def expert_row(example: ExpertExample, advantage: float) -> Row:
    """The row of an expert's text, cut as by `text_row`; its weights still to be set."""
    row = text_row(example)
    return replace(row, advantages=frozen_array(np.where(row.loss_mask, advantage, 0.0), np.float32))


def text_row(example: TextExample | ExpertExample) -> Row:
    """The row of a text: the untrained tokens at its beginning, at least one, are the prompt."""
    trained = np.flatnonzero(example.loss_mask)
    start = max(1, int(trained[0])) if len(trained) else len(example.tokens)
    return Row(prompt=example.tokens[:start], tokens=example.tokens[start:], loss_mask=example.loss_mask[start:])


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PromptTable:
    """The distinct prompts of some rows, padded on the right."""

    prompts: Int[Tensor, "P U"]
    lengths: Int[Tensor, " P"]
    places: Mapping[bytes, int]
    """Prompt to its row in the table."""


def pad_prompts(rows: Sequence[Row], *, device: torch.device | str = "cpu") -> PromptTable:
    """The table of the rows' prompts, in order of appearance."""
    places: dict[bytes, int] = {}
    for row in rows:
        places.setdefault(row.prompt.tobytes(), len(places))
    distinct = [np.frombuffer(data, np.int32) for data in places]
    table = np.zeros((len(distinct), max(map(len, distinct))), np.int64)
    for place, prompt in enumerate(distinct):
        table[place, : len(prompt)] = prompt
    lengths = torch.tensor([len(prompt) for prompt in distinct], device=device)
    return PromptTable(prompts=torch.from_numpy(table).to(device), lengths=lengths, places=places)


def prompt_chunks(rows: Sequence[Row], places: Sequence[int], *, max_tokens: int) -> list[list[int]]:
    """The places in runs whose distinct prompts hold at most `max_tokens` tokens together (one prompt may hold more).

    Rows of one prompt stay together, so that it is computed once.
    """
    members: dict[bytes, list[int]] = {}
    for place in places:
        members.setdefault(rows[place].prompt.tobytes(), []).append(place)
    chunks: list[list[int]] = []
    room = 0
    for group in members.values():
        length = len(rows[group[0]].prompt)
        if not chunks or length > room:
            chunks.append([])
            room = max_tokens
        chunks[-1] += group
        room -= length
    return chunks


def pad_rows(
    rows: Sequence[Row],
    places: Sequence[int],
    *,
    table: PromptTable | None = None,
    device: torch.device | str = "cpu",
) -> TokenBatch:
    """The padded tensors of the rows at `places`; `table` holds their prompts, others too, if it is given."""
    chosen = [rows[place] for place in places]
    table = table or pad_prompts(chosen, device=device)
    index = [table.places[row.prompt.tobytes()] for row in chosen]
    width = max(len(row.tokens) for row in chosen)

    def pad(name: str, dtype: type[np.generic]) -> Tensor:
        table = np.zeros((len(chosen), width), dtype)
        for place, row in enumerate(chosen):
            values = getattr(row, name)
            table[place, : len(values)] = values
        return torch.from_numpy(table).to(device)

    return TokenBatch(
        prompts=table.prompts,
        prompt_lengths=table.lengths,
        prompt_index=torch.tensor(index, device=device),
        tokens=pad("tokens", np.int64),
        loss_mask=pad("loss_mask", np.bool_),
        behavior_logprobs=pad("behavior_logprobs", np.float32),
        advantages=pad("advantages", np.float32),
        policy_weights=pad("policy_weights", np.float32),
        expert_weights=pad("expert_weights", np.float32),
        imitation_weights=pad("imitation_weights", np.float32),
        divergence_weights=torch.tensor([row.divergence_weight for row in chosen], dtype=torch.float32, device=device),
        distillation_weights=pad("distillation_weights", np.float32),
        entropy_weights=pad("entropy_weights", np.float32),
        teacher=_pad_teachers([row.teacher for row in chosen], width, device),
        rows=tuple(places),
    )


def _pad_teachers(
    teachers: Sequence[TeacherTargets | None], width: int, device: torch.device | str
) -> TeacherTensors | None:
    """The tensors of the teachers; None where there is none."""
    named = {teacher.ids.shape[1] for teacher in teachers if teacher is not None}
    if not named:
        return None
    (tokens,) = named
    ids = np.zeros((len(teachers), width, tokens), np.int64)
    logprobs, tails = np.zeros(ids.shape, np.float32), np.zeros(ids.shape[:2], np.float32)
    for place, teacher in enumerate(teachers):
        if teacher is not None:
            length = len(teacher.tails)
            ids[place, :length], logprobs[place, :length] = teacher.ids, teacher.logprobs
            tails[place, :length] = teacher.tails
    made = [torch.from_numpy(table).to(device) for table in (ids, logprobs, tails)]
    return TeacherTensors(ids=made[0], logprobs=made[1], tails=made[2])


def length_buckets(
    lengths: Sequence[int], *, max_tokens: int, overhead: int = 256, max_padding: float = 0.1
) -> list[list[int]]:
    """Places of the rows, cut into buckets of similar length.

    Exact dynamic programme over the distinct lengths: least padded positions plus `overhead` positions for each bucket;
    the price of padding doubles until its share is at most `max_padding`.  Buckets over `max_tokens` padded positions
    are split.  Ascending in length, ties in the order given, so the result is a function of the lengths alone.
    """
    order = sorted(range(len(lengths)), key=lambda place: (lengths[place], place))
    values = sorted(set(lengths))
    counts = np.bincount(np.searchsorted(values, [lengths[place] for place in order]), minlength=len(values))
    price = 1.0
    while True:
        cuts = _best_cuts(np.asarray(values), counts, overhead / price)
        ends = np.cumsum(counts)
        edges = [0] + [int(ends[cut]) for cut in cuts]
        buckets = [order[start:end] for start, end in itertools.pairwise(edges)]
        if price > 1e6 or padding_share(lengths, buckets) <= max_padding:
            break
        price *= 2
    return [part for bucket in buckets for part in _split(bucket, max(1, max_tokens // max(1, lengths[bucket[-1]])))]


def _best_cuts(values: np.ndarray, counts: np.ndarray, overhead: float) -> list[int]:
    """Last place of each bucket, for buckets of consecutive distinct lengths."""
    totals = np.concatenate([[0], np.cumsum(counts)])
    best, back = np.zeros(len(values) + 1), np.zeros(len(values) + 1, np.int64)
    for end in range(1, len(values) + 1):
        costs = best[:end] + (totals[end] - totals[:end]) * values[end - 1] + overhead
        back[end] = int(np.argmin(costs))
        best[end] = costs[back[end]]
    cuts, end = [], len(values)
    while end > 0:
        cuts.append(end - 1)
        end = int(back[end])
    return cuts[::-1]


def _split(bucket: list[int], size: int) -> list[list[int]]:
    parts = -(-len(bucket) // size)
    return [part.tolist() for part in np.array_split(np.asarray(bucket), parts)]


def padding_share(lengths: Sequence[int], buckets: Sequence[Sequence[int]]) -> float:
    """Share of padded positions among all positions of the buckets."""
    padded = sum(len(bucket) * max(lengths[place] for place in bucket) for bucket in buckets)
    return 1.0 - sum(lengths[place] for bucket in buckets for place in bucket) / padded if padded else 0.0
