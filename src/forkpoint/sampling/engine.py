"""The local engine: batched decoding with a preallocated key-value cache.

Prompts are computed once per group, finished rows are replaced by waiting ones, and no forward is spent on a finished
row.  Every token is a pure function of its request's key and the weights, whatever the number of slots and the order
of requests: at least 8 rows a forward, and cache views that are multiples of 64 positions, keep the arithmetic the same.
"""

from collections import deque
from collections.abc import Iterable, Iterator

import numpy as np
import torch

from forkpoint.policies.cache import SlotCache
from forkpoint.policies.causal import CausalPolicy
from forkpoint.probe import SampleRequest
from forkpoint.records import Rollout, SpanKind, StopReason
from forkpoint.sampling.draw import draw_tokens
from forkpoint.sampling.prefill import MIN_ROWS, Prefill, round_up
from forkpoint.sampling.slots import Live, Slots
from forkpoint.tasks.protocol import Interactive

VIEW = 64


class LocalSampler:
    """Draws rollouts with a policy in this process."""

    def __init__(self, policy: CausalPolicy, *, slots: int = 256, environment: Interactive | None = None) -> None:
        self.policy = policy
        self.slots = round_up(max(slots, MIN_ROWS), 8)
        self.version = 0
        self._environment = environment

    def update_weights(self, version: int) -> None:
        """Records the version; the weights are the policy's own, so nothing is copied."""
        self.version = version

    def stream(self, requests: Iterable[SampleRequest]) -> Iterator[Rollout]:
        """Every request's rollout, as they finish."""
        listed = list(requests)
        if listed:
            with torch.inference_mode():
                yield from _Decoding(self, listed, self._environment).run()


class _Decoding:
    """One list of requests on its way through the slots."""

    def __init__(self, sampler: LocalSampler, requests: list[SampleRequest], environment: Interactive | None) -> None:
        self.policy, self.version, self.environment = sampler.policy, sampler.version, environment
        self.requests = requests
        self.waiting = deque(range(len(requests)))
        self.prefill = Prefill(sampler.policy, requests)
        slots = min(sampler.slots, round_up(max(len(requests), MIN_ROWS), 8))
        self.budgets = [self._budget(request) for request in requests]
        self.slots = Slots(slots, max(self.budgets))
        self.capacity = slots
        reach = max(len(request.prompt_tokens) + budget for request, budget in zip(requests, self.budgets, strict=True))
        self.width = round_up(reach, VIEW)
        self.cache: SlotCache | None = None
        self.finished: list[Rollout] = []

    def _budget(self, request: SampleRequest) -> int:
        room = self.policy.context_length - len(request.prompt_tokens)
        return max(request.prefix_length + 1, min(request.max_new_tokens, room))

    def run(self) -> Iterator[Rollout]:
        """Decodes until nothing waits and nothing is live."""
        while True:
            self._admit()
            yield from self._drain()
            if self.slots.active == 0 and not self.waiting:
                return
            if self.slots.active:
                self._step()
                yield from self._drain()

    def _drain(self) -> Iterator[Rollout]:
        done, self.finished = self.finished, []
        yield from done

    def _admit(self) -> None:
        """Fills the free slots; the first token of each comes from the prompt's own logits."""
        free = self.capacity - self.slots.active
        chosen = [self.waiting.popleft() for _ in range(min(free, len(self.waiting)))]
        if not chosen:
            return
        first = self.slots.active
        logits = None
        for cache, chunk_logits, places, rows in self.prefill.get(chosen):
            if self.cache is None:
                self.cache = SlotCache(cache, self.capacity, self.width)
            slots = torch.tensor([first + place for place in places], device=self.policy.device)
            index = torch.tensor(rows, device=self.policy.device)
            self.cache.fill(slots, cache, index, min(self.prefill.width, self.width))
            if logits is None:
                logits = chunk_logits.new_zeros((len(chosen), chunk_logits.shape[1]))
            logits[places] = chunk_logits
        for place, number in enumerate(chosen):
            self._seat(first + place, number)
        self.slots.active += len(chosen)
        if logits is not None:
            self._take(np.arange(first, self.slots.active), logits)

    def _seat(self, slot: int, number: int) -> None:
        request, texts = self.requests[number], self.policy.texts
        turns = self.environment.turn_ends() if self.environment is not None else ()
        stop_id, stops = -1, request.stop
        if texts.by_character and len(stops) == 1 and len(stops[0]) == 1:
            stop_id, stops = int(texts.encode(stops[0])[0]), ()
        live = Live(request=request, stops=stops)
        self.slots.admit(slot, live, budget=self.budgets[number], stop_id=stop_id, watched=bool(stops or turns))

    def _step(self) -> None:
        """One token for every live row."""
        slots, active = self.slots, self.slots.active
        rows = min(round_up(max(active, MIN_ROWS), 8), self.capacity)
        last = slots.counts[:rows] - 1
        positions = np.clip(slots.heads[:rows] + last, 0, self.width - 1)
        view = round_up(int(positions[:active].max()) + 1, VIEW)
        device = self.policy.device
        tokens = torch.from_numpy(slots.tokens[np.arange(rows), np.clip(last, 0, None)].astype(np.int64)).to(device)
        places = torch.from_numpy(positions).to(device)
        mask = (torch.arange(view, device=device)[None] <= places[:, None])[:, None, None]
        if self.cache is None:
            raise AssertionError("rows are live before any prompt was computed")
        hidden = self.policy.forward(tokens[:, None], places[:, None], mask, self.cache.at(places, view))
        self._take(np.arange(active), self.policy.logits(hidden[:, 0])[:active])

    def _take(self, rows: np.ndarray, logits: torch.Tensor) -> None:
        """Draws, writes, and ends what is finished."""
        slots = self.slots
        uniforms = torch.from_numpy(slots.uniforms[rows, slots.counts[rows]])
        temperatures = torch.from_numpy(slots.temperatures[rows])
        tokens, logprobs = draw_tokens(logits, uniforms.to(logits.device), temperatures.to(logits.device))
        drawn = tokens.cpu().numpy().astype(np.int32)
        slots.append(rows, drawn, logprobs.cpu().numpy())
        written = slots.tokens[rows, slots.counts[rows] - 1]
        sampled = slots.mask[rows, slots.counts[rows] - 1]
        eos = self.policy.texts.eos_id
        ended = (sampled & (written == (-1 if eos is None else eos))) | (sampled & (written == slots.stop_ids[rows]))
        ended |= (slots.counts[rows] >= slots.budgets[rows]) | slots.watched[rows]
        for row in rows[ended][::-1]:
            reason = self._reason(int(row))
            if reason is not None:
                self._finish(int(row), reason)

    def _reason(self, row: int) -> StopReason | None:
        """Why the row ends after its newest token, or None; lets the environment answer a finished turn."""
        slots, live = self.slots, self.slots.live[row]
        if live is None:
            raise AssertionError("an empty slot cannot end")
        count = int(slots.counts[row])
        newest, sampled = int(slots.tokens[row, count - 1]), bool(slots.mask[row, count - 1])
        if sampled and newest == self.policy.texts.eos_id:
            return StopReason.EOS
        if sampled and (newest == slots.stop_ids[row] or self._just_ended(row, live.stops)):
            return StopReason.STOP
        if sampled and self.environment is not None and self._just_ended(row, self.environment.turn_ends()):
            self._reply(row, live)
        if not sampled and not live.forced:
            slots.close_span(row, count, SpanKind.OBSERVATION, self.version)
        if live.done and not live.forced:
            return StopReason.DONE
        return StopReason.LENGTH if count >= slots.budgets[row] else None

    def _just_ended(self, row: int, stops: tuple[str, ...]) -> bool:
        """Whether the newest token completed one of the strings.

        Only a tail is decoded: every character takes at least one byte, and a token of text holds at least one.
        """
        if not stops:
            return False
        count = int(self.slots.counts[row])
        reach = 4 * max(len(stop) for stop in stops) + 1
        begin = max(self.slots.live[row].span_start, count - reach)  # type: ignore[union-attr]
        tail = self.slots.tokens[row, begin:count]
        decode = self.policy.texts.decode
        text = decode(tail)
        before = decode(tail[:-1])
        return any(text.count(stop) > before.count(stop) for stop in stops)

    def _reply(self, row: int, live: Live) -> None:
        count = int(self.slots.counts[row])
        if self.environment is None:
            return
        transcript = self.policy.texts.decode(self.slots.tokens[row, :count])
        reply = self.environment.reply(live.request.problem, transcript)
        self.slots.close_span(row, count, SpanKind.ACTION, self.version)
        live.forced.extend(int(token) for token in self.policy.texts.encode(reply.observation))
        live.done = reply.done

    def _finish(self, row: int, reason: StopReason) -> None:
        """Takes the rollout out and closes the hole with the last live row."""
        slots = self.slots
        text = self.policy.texts.decode(slots.tokens[row, : slots.counts[row]])
        self.finished.append(slots.rollout(row, text=text, reason=reason, version=self.version))
        slots.active -= 1
        if row != slots.active:
            slots.move(slots.active, row)
            if self.cache is not None:
                self.cache.move(slots.active, row)
        slots.live[slots.active] = None
