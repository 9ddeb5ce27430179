"""Walks of a tabular policy, all rollouts at once.

One step of all live walks costs a few array operations.  Every token is a pure function of its request's key and the
weights: inverse CDF in float64, as `draw.draw_tokens`, over the legal moves in the order of the states.
Letters: R live walks, M the most legal moves of a state, W the edges that the policy sees.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from forkpoint.errors import ModelError
from forkpoint.policies.moves import TableModel
from forkpoint.policies.tabular import OFFSET, TabularPolicy
from forkpoint.probe import SampleRequest
from forkpoint.records import Floats, Rollout, Span, SpanKind, StopReason, frozen_array
from forkpoint.sampling.draw import draw_tokens
from forkpoint.tasks.lab import write_states

Ids: TypeAlias = NDArray[np.int64]
Draw: TypeAlias = Callable[[Ids, NDArray[np.float64]], tuple[Ids, Floats]]
"""(windows [R, W], uniforms [R]) -> (places among the legal moves [R], log-probabilities [R])."""


class TabularSampler:
    """Draws rollouts with a tabular policy in this process."""

    def __init__(self, policy: TabularPolicy, *, slots: int = 256) -> None:
        self.policy, self.slots, self.version = policy, slots, 0
        moves = policy.edges.moves
        self._offsets = moves.offsets.cpu().numpy()
        self._successors = moves.successors.cpu().numpy()

    def update_weights(self, version: int) -> None:
        """Records the version; the weights are the policy's own, so nothing is copied."""
        self.version = version

    def stream(self, requests: Iterable[SampleRequest]) -> Iterator[Rollout]:
        """Every request's rollout, `slots` of them at a time."""
        remaining = iter(requests)
        while chunk := list(islice(remaining, self.slots)):
            for temperature in sorted({request.temperature for request in chunk}):
                yield from self._walk([request for request in chunk if request.temperature == temperature])

    def _walk(self, requests: Sequence[SampleRequest]) -> Iterator[Rollout]:
        """The walks of requests of one temperature."""
        heads = [self._head(request) for request in requests]
        targets = np.array([self._target(request) for request in requests])
        budgets = np.array([self._budget(request) for request in requests])
        uniforms = np.stack([_uniforms(request, int(budgets.max())) for request in requests])
        draw = _drawing(self.policy, requests[0].temperature)
        window, steps = self.policy.edges.window, uniforms.shape[1]
        walks = np.full((len(requests), window + steps), -1, np.int64)
        for row, head in enumerate(heads):
            walks[row, max(0, window - len(head)) : window] = head[-window:]
        logprobs = np.zeros((len(requests), steps), np.float32)
        counts = np.zeros(len(requests), np.int64)
        live = np.arange(len(requests))
        for step in range(steps):
            if not len(live):
                break
            recent = walks[live, step : step + window]
            places, chosen = draw(recent, uniforms[live, step])
            states = self._successors[self._offsets[recent[:, -1]] + places]
            walks[live, window + step], logprobs[live, step] = states, chosen
            counts[live] += 1
            live = live[(states != targets[live]) & (counts[live] < budgets[live])]
        for row, request in enumerate(requests):
            walk = walks[row, window : window + counts[row]]
            yield self._rollout(request, walk, logprobs[row, : counts[row]], hit=bool(walk[-1] == targets[row]))

    def _head(self, request: SampleRequest) -> Ids:
        """The edge states before the first drawn one: the prompt and the parent's prefix."""
        prefix = request.prompt_tokens[:0] if request.parent is None else request.parent.tokens[: request.prefix_length]
        states = np.concatenate([request.prompt_tokens, prefix]).astype(np.int64) - OFFSET
        if not len(states) or states.min() < 0 or states.max() >= self.policy.edges.moves.count:
            raise ModelError("a prompt of a tabular policy holds the edges of its graph and nothing else.")
        return states

    def _target(self, request: SampleRequest) -> int:
        """The edge state that ends the walk; -1 where none does."""
        tokens = [self.policy.texts.encode(stop) for stop in request.stop]
        if len(tokens) > 1 or any(len(token) != 1 for token in tokens):
            raise ModelError("a rollout of a tabular policy is ended by one edge.")
        return int(tokens[0][0]) - OFFSET if tokens else -1

    def _budget(self, request: SampleRequest) -> int:
        """Tokens to draw."""
        parent, start = request.parent, request.prefix_length
        if start > (0 if parent is None else len(parent.tokens)):
            raise ValueError(f"a prefix of {start} tokens is longer than what it is taken from")
        budget = min(request.max_new_tokens, self.policy.context_length - len(request.prompt_tokens)) - start
        if budget < 1:
            raise ValueError(f"a prefix of {start} tokens leaves no room in a budget of {request.max_new_tokens}")
        return budget

    def _rollout(self, request: SampleRequest, walk: Ids, logprobs: Floats, *, hit: bool) -> Rollout:
        start, parent, name = request.prefix_length, request.parent, request.key.hex
        tokens, mask = walk + OFFSET, np.ones(len(walk), np.bool_)
        spans: tuple[Span, ...] = ()
        if parent is not None and start:
            tokens = np.concatenate([parent.tokens[:start], tokens])
            logprobs = np.concatenate([parent.behavior_logprobs[:start], logprobs])
            mask = np.arange(len(tokens)) >= start
            version = parent.spans[0].policy_version if parent.spans else self.version
            spans = (Span(start=0, end=start, kind=SpanKind.ACTION, policy_version=version),)
        action = Span(start=start, end=len(tokens), kind=SpanKind.ACTION, policy_version=self.version)
        return Rollout(
            id=name,
            group_id=request.group_id,
            stage=request.stage,
            update=request.update,
            index=request.index,
            problem_key=request.problem.key,
            parent_id=parent.id if parent else None,
            prefix_length=start,
            prompt_tokens=request.prompt_tokens,
            tokens=frozen_array(tokens.astype(np.int32), np.int32),
            behavior_logprobs=frozen_array(logprobs.copy(), np.float32),
            loss_mask=frozen_array(mask, np.bool_),
            spans=(*spans, action),
            temperature=request.temperature,
            text=write_states(tokens - OFFSET),
            stop_reason=StopReason.STOP if hit else StopReason.LENGTH,
            seed=name,
        )


def _uniforms(request: SampleRequest, width: int) -> NDArray[np.float64]:
    """The request's uniform numbers after its prefix; position i of a rollout takes number i of the stream."""
    if request.temperature == 0:
        return np.zeros(width)
    return request.key.uniforms(width, request.prefix_length)


def _drawing(policy: TabularPolicy, temperature: float) -> Draw:
    model = policy.edges
    if isinstance(model, TableModel) and temperature > 0:
        return _table_drawing(model, temperature)

    def draw(recent: Ids, uniforms: NDArray[np.float64]) -> tuple[Ids, Floats]:
        with torch.inference_mode():
            logits = model.rows(torch.from_numpy(recent).to(policy.device))
            numbers = torch.from_numpy(uniforms).to(policy.device)
            temperatures = torch.full((len(recent),), temperature, device=policy.device)
            places, chosen = draw_tokens(logits, numbers, temperatures)
        return places.cpu().numpy(), chosen.float().cpu().numpy()

    return draw


@torch.no_grad()
def _table_drawing(model: TableModel, temperature: float) -> Draw:
    """The drawing of `draw_tokens` with the softmax and the cumulative sums of all states taken once."""
    rows = torch.log_softmax(model.table() / temperature, dim=-1)
    cumulative = rows.exp().double().cumsum(-1).cpu().numpy()
    logprobs, ends = rows.float().cpu().numpy(), cumulative[:, -1].copy()
    last = (cumulative < cumulative[:, -1:]).sum(-1)

    def draw(recent: Ids, uniforms: NDArray[np.float64]) -> tuple[Ids, Floats]:
        newest = recent[:, -1]
        below = cumulative[newest] <= (uniforms * ends[newest])[:, None]
        places = np.minimum(below.sum(-1), last[newest])
        return places, logprobs[newest, places]

    return draw
