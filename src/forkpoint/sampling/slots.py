"""The rows of the engine that are being decoded: numpy arrays, one place for each live rollout.

The live rows are always the first `active`; a finished row is replaced by a waiting one or by the last live row,
so no forward is spent on a finished row.
"""

from collections import deque
from dataclasses import dataclass, field

import numpy as np

from forkpoint.probe import SampleRequest
from forkpoint.records import Rollout, Span, SpanKind, StopReason, frozen_array


@dataclass(slots=True, kw_only=True)
class Live:
    """What one live rollout needs beside its arrays."""

    request: SampleRequest
    stops: tuple[str, ...]
    """Stop strings that must be looked for in the text; a single-token stop is in `Slots.stop_ids`."""
    forced: deque[int] = field(default_factory=deque)
    """Observation tokens still to be fed."""
    spans: list[Span] = field(default_factory=list)
    span_start: int = 0
    done: bool = False
    """Whether the environment ended the episode: the rollout ends with the last forced token."""


class Slots:
    """Arrays over slots and positions after the prompt."""

    def __init__(self, slots: int, budget: int) -> None:
        self.active = 0
        self.live: list[Live | None] = [None] * slots
        self.tokens = np.zeros((slots, budget), np.int32)
        self.logprobs = np.zeros((slots, budget), np.float32)
        self.mask = np.zeros((slots, budget), np.bool_)
        self.uniforms = np.zeros((slots, budget), np.float64)
        self.counts = np.zeros(slots, np.int64)
        """Tokens after the prompt so far."""
        self.heads = np.zeros(slots, np.int64)
        """Length of the prompt."""
        self.budgets = np.zeros(slots, np.int64)
        self.temperatures = np.ones(slots, np.float32)
        self.stop_ids = np.full(slots, -1, np.int64)
        self.watched = np.zeros(slots, np.bool_)
        """Rows whose text, forced tokens or environment must be looked at after each token."""

    def admit(self, slot: int, live: Live, *, budget: int, stop_id: int, watched: bool) -> None:
        """Puts a request into a slot; the prefix of its parent is already written."""
        request = live.request
        start = request.prefix_length
        self.live[slot] = live
        self.mask[slot] = False
        if request.parent is not None:
            self.tokens[slot, :start] = request.parent.tokens[:start]
            self.logprobs[slot, :start] = request.parent.behavior_logprobs[:start]
        self.counts[slot], self.heads[slot], self.budgets[slot] = start, len(request.prompt_tokens), budget
        self.temperatures[slot], self.stop_ids[slot], self.watched[slot] = request.temperature, stop_id, watched
        if request.temperature > 0:
            self.uniforms[slot, start:budget] = request.key.uniforms(budget - start, start)
        live.span_start = start

    def append(self, rows: np.ndarray, tokens: np.ndarray, logprobs: np.ndarray) -> None:
        """Writes the sampled tokens of some rows; rows with forced tokens take those instead."""
        places = self.counts[rows]
        self.tokens[rows, places], self.logprobs[rows, places], self.mask[rows, places] = tokens, logprobs, True
        for row in rows[self.watched[rows]]:
            live = self.live[row]
            if live is not None and live.forced:
                place = self.counts[row]
                self.tokens[row, place], self.logprobs[row, place] = live.forced.popleft(), 0.0
                self.mask[row, place] = False
        self.counts[rows] += 1

    def move(self, source: int, target: int) -> None:
        """Copies one slot over another."""
        self.live[target] = self.live[source]
        for name in ("tokens", "logprobs", "mask", "uniforms"):
            array = getattr(self, name)
            array[target] = array[source]
        for name in ("counts", "heads", "budgets", "temperatures", "stop_ids", "watched"):
            array = getattr(self, name)
            array[target] = array[source]

    def close_span(self, row: int, end: int, kind: SpanKind, version: int) -> None:
        """Ends the current span of a row at `end`."""
        live = self.live[row]
        if live is not None and end > live.span_start:
            live.spans.append(Span(start=live.span_start, end=end, kind=kind, policy_version=version))
            live.span_start = end

    def rollout(self, row: int, *, text: str, reason: StopReason, version: int) -> Rollout:
        """The finished rollout of a row."""
        live = self.live[row]
        if live is None:
            raise AssertionError("an empty slot has no rollout")
        count, request = int(self.counts[row]), live.request
        kind = SpanKind.ACTION if count and self.mask[row, count - 1] else SpanKind.OBSERVATION
        self.close_span(row, count, kind, version)
        return Rollout(
            id=request.key.hex,
            group_id=request.group_id,
            stage=request.stage,
            update=request.update,
            index=request.index,
            problem_key=request.problem.key,
            parent_id=request.parent.id if request.parent else None,
            prefix_length=request.prefix_length,
            prompt_tokens=request.prompt_tokens,
            tokens=frozen_array(self.tokens[row, :count].copy(), np.int32),
            behavior_logprobs=frozen_array(self.logprobs[row, :count].copy(), np.float32),
            loss_mask=frozen_array(self.mask[row, :count].copy(), np.bool_),
            spans=tuple(live.spans),
            temperature=request.temperature,
            text=text,
            stop_reason=reason,
            seed=request.key.hex,
        )
