"""The rows of the engine that are being decoded: numpy arrays, one place for each live rollout.

A finished row leaves a hole, which the next waiting request takes; holes that none takes are closed with the last live
rows before the next forward, so none is spent on a finished row.
"""

from collections import deque
from dataclasses import dataclass, field, replace

import numpy as np

from forkpoint.probe import SampleRequest
from forkpoint.records import Rollout, Span, SpanKind, StopReason, frozen_array

_SCALARS = ("counts", "heads", "budgets", "temperatures", "stop_ids", "watched")


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
    turn_start: int = 0
    """Where the policy's turn began: after the environment's last reply."""
    done: bool = False
    """Whether the environment ended the episode: the rollout ends with the last forced token."""


class Slots:
    """Arrays over slots and positions after the prompt."""

    def __init__(self, slots: int, budget: int) -> None:
        self.active = 0
        """Rows in use, holes included."""
        self.holes: list[int] = []
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

    @property
    def free(self) -> int:
        """How many requests can be admitted."""
        return len(self.holes) + len(self.live) - self.active

    def seats(self, count: int) -> list[int]:
        """The places of the next `count` requests: holes first, then new rows."""
        kept = max(0, len(self.holes) - count)
        found, self.holes = self.holes[kept:], self.holes[:kept]
        start, self.active = self.active, self.active + count - len(found)
        return [*found, *range(start, self.active)]

    def get(self, row: int) -> Live:
        """The live rollout of a row."""
        live = self.live[row]
        if live is None:
            raise AssertionError("an empty slot is asked for its rollout")
        return live

    def admit(self, slot: int, live: Live, *, budget: int, stop_id: int, watched: bool) -> None:
        """Puts a request into a slot, with the tokens, log-probabilities and spans of its parent's prefix."""
        request = live.request
        start, parent = request.prefix_length, request.parent
        self.live[slot] = live
        self.mask[slot] = False
        if parent is not None:
            self.tokens[slot, :start] = parent.tokens[:start]
            self.logprobs[slot, :start] = parent.behavior_logprobs[:start]
            live.spans.extend(replace(span, end=min(span.end, start)) for span in parent.spans if span.start < start)
        self.counts[slot], self.heads[slot], self.budgets[slot] = start, len(request.prompt_tokens), budget
        self.temperatures[slot], self.stop_ids[slot], self.watched[slot] = request.temperature, stop_id, watched
        if request.temperature > 0:
            self.uniforms[slot, start:budget] = request.key.uniforms(budget - start, start)
        live.span_start = start

    def append(self, rows: np.ndarray, tokens: np.ndarray, logprobs: np.ndarray) -> None:
        """Writes the sampled tokens of some rows; rows with forced tokens take those instead."""
        places = self.counts[rows]
        self.tokens[rows, places], self.logprobs[rows, places], self.mask[rows, places] = tokens, logprobs, True
        for row in rows[self.watched[rows]].tolist():
            forced = self.get(row).forced
            if forced:
                place = self.counts[row]
                self.tokens[row, place], self.logprobs[row, place], self.mask[row, place] = forced.popleft(), 0.0, False
        self.counts[rows] += 1

    def compact(self) -> list[tuple[int, int]]:
        """Closes all holes; returns the moves (from, to) that it took."""
        holes, self.holes = set(self.holes), []
        end = self.active - len(holes)
        sources = [row for row in range(end, self.active) if row not in holes]
        moves = list(zip(sources, sorted(hole for hole in holes if hole < end), strict=True))
        for source, target in moves:
            self.live[target], self.live[source] = self.live[source], None
        if moves:
            taken, given = zip(*moves, strict=True)
            for name in ("tokens", "logprobs", "mask", "uniforms", *_SCALARS):
                array = getattr(self, name)
                array[list(given)] = array[list(taken)]
        self.active = end
        return moves

    def close_span(self, row: int, end: int, kind: SpanKind, version: int) -> None:
        """Ends the current span of a row at `end`."""
        live = self.get(row)
        if end > live.span_start:
            live.spans.append(Span(start=live.span_start, end=end, kind=kind, policy_version=version))
            live.span_start = end

    def release(self, row: int, *, text: str, reason: StopReason, version: int) -> Rollout:
        """The finished rollout of a row, which becomes a hole."""
        live = self.get(row)
        count, request, name = int(self.counts[row]), live.request, live.request.key.hex
        self.close_span(row, count, SpanKind.ACTION if self.mask[row, count - 1] else SpanKind.OBSERVATION, version)
        self.live[row] = None
        self.holes.append(row)
        return Rollout(
            id=name,
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
            seed=name,
        )
