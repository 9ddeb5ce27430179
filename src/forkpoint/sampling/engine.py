"""The local engine: batched decoding with a preallocated key-value cache.

Prompts are computed once per group, finished rows are replaced by waiting ones, and no forward is spent on a finished
row.  Every token is a pure function of its request's key and the weights, whatever the number of slots and the order of
requests: at least 8 rows a forward, and cache views that are multiples of 16 positions, keep the arithmetic the same.
"""

from collections import deque
from collections.abc import Iterable, Iterator

import numpy as np
import torch

from forkpoint.errors import ModelError
from forkpoint.policies.cache import SlotCache
from forkpoint.policies.causal import CausalPolicy
from forkpoint.probe import SampleRequest
from forkpoint.records import Rollout, SpanKind, StopReason
from forkpoint.sampling.draw import draw_tokens
from forkpoint.sampling.prefill import MIN_ROWS, Prefill, round_up
from forkpoint.sampling.slots import Live, Slots
from forkpoint.tasks.protocol import Interactive

WIDTH, VIEW = 64, 16
"""Positions of the cache, and of what a forward sees of it, are multiples of these."""
_OVER = (StopReason.EOS, StopReason.DONE)


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
        self.width = round_up(reach, WIDTH)
        self.cache: SlotCache | None = None
        self.finished: list[Rollout] = []
        self.turns = () if environment is None else tuple(environment.turn_ends())
        self.eos = -1 if sampler.policy.texts.eos_id is None else sampler.policy.texts.eos_id
        self.enders: dict[tuple[int, tuple[str, ...]], bool] = {}

    def _budget(self, request: SampleRequest) -> int:
        """Most tokens after the prompt.  Raises ModelError for a prompt that the model's context cannot hold."""
        prompt, context, start = len(request.prompt_tokens), self.policy.context_length, request.prefix_length
        if not 0 < prompt < context:
            raise ModelError(f"a prompt of {prompt} tokens leaves no room in the model's context of {context}.")
        parent = request.parent
        if start > (0 if parent is None else len(parent.tokens)):
            raise ValueError(f"a prefix of {start} tokens is longer than what it is taken from")
        if parent is not None and start == len(parent.tokens) and parent.stop_reason in _OVER:
            raise ValueError(f"the rollout {parent.id} is over: nothing can continue it")
        budget = min(request.max_new_tokens, context - prompt)
        if start >= budget:
            raise ValueError(f"a prefix of {start} tokens leaves no room in a budget of {budget}")
        return budget

    def run(self) -> Iterator[Rollout]:
        """Decodes until nothing waits and nothing is live."""
        while True:
            while self.waiting and self.slots.free:
                self._admit()
                yield from self._drain()
            self._compact()
            if self.slots.active == 0:
                return
            self._step()
            yield from self._drain()

    def _drain(self) -> Iterator[Rollout]:
        done, self.finished = self.finished, []
        yield from done

    def _admit(self) -> None:
        """Fills free slots; the first token of each comes from the prompt's own logits."""
        chosen = [self.waiting.popleft() for _ in range(min(self.slots.free, len(self.waiting)))]
        seats = np.array(self.slots.seats(len(chosen)))
        logits = None
        for cache, chunk_logits, places, rows in self.prefill.get(chosen):
            if self.cache is None:
                self.cache = SlotCache(cache, self.capacity, self.width)
            slots = torch.from_numpy(seats[places]).to(self.policy.device)
            index = torch.tensor(rows, device=self.policy.device)
            self.cache.fill(slots, cache, index, min(self.prefill.width, self.width))
            if logits is None:
                logits = chunk_logits.new_zeros((len(chosen), chunk_logits.shape[1]))
            logits[places] = chunk_logits
        for seat, number in zip(seats.tolist(), chosen, strict=True):
            self._seat(seat, number)
        if logits is not None:
            self._take(seats, logits)

    def _seat(self, slot: int, number: int) -> None:
        request, texts = self.requests[number], self.policy.texts
        stop_id, stops = -1, request.stop
        if texts.by_character and len(stops) == 1 and len(stops[0]) == 1:
            stop_id, stops = int(texts.encode(stops[0])[0]), ()
        live = Live(request=request, stops=stops)
        self.slots.admit(slot, live, budget=self.budgets[number], stop_id=stop_id, watched=bool(stops or self.turns))
        if self.turns and request.parent is not None:
            self._resume(slot, live, request.parent)

    def _resume(self, row: int, live: Live, parent: Rollout) -> None:
        """Puts a continued episode where its parent stood: at the end of a turn or within the environment's reply."""
        start = live.request.prefix_length
        replies = [span for span in parent.spans if span.kind is SpanKind.OBSERVATION]
        live.turn_start = max((span.end for span in replies if span.end <= start), default=0)
        within = [span.start for span in replies if span.start <= start < span.end]
        if within or (start and self._just_ended(row, self.turns, live.turn_start)):
            self._reply(row, live, within[0] if within else start)

    def _compact(self) -> None:
        """Closes the holes that no request fills with the last live rows."""
        moves = self.slots.compact()
        if moves and self.cache is not None:
            sources, targets = (torch.tensor(places, device=self.policy.device) for places in zip(*moves, strict=True))
            self.cache.move(sources, targets)

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
        heads = torch.from_numpy(slots.heads[:rows]).to(device)
        mask = self.policy.visible(places[:, None], torch.arange(view, device=device), heads)
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
        drawn, chosen = tokens.cpu().numpy().astype(np.int32), logprobs.cpu().numpy()
        if np.isnan(chosen).any():
            raise ModelError("the model gives no distribution to sample from: its logits are not finite numbers.")
        slots.append(rows, drawn, chosen)
        written = slots.tokens[rows, slots.counts[rows] - 1]
        sampled = slots.mask[rows, slots.counts[rows] - 1]
        ended = sampled & ((written == self.eos) | (written == slots.stop_ids[rows]))
        ended |= (slots.counts[rows] >= slots.budgets[rows]) | slots.watched[rows]
        for row in rows[ended].tolist():
            reason = self._reason(row, slots.get(row))
            if reason is not None:
                text = self.policy.texts.decode(slots.tokens[row, : slots.counts[row]])
                self.finished.append(slots.release(row, text=text, reason=reason, version=self.version))

    def _reason(self, row: int, live: Live) -> StopReason | None:
        """Why the row ends after its newest token, or None; lets the environment answer a finished turn."""
        slots, count = self.slots, int(self.slots.counts[row])
        if slots.mask[row, count - 1]:
            newest = int(slots.tokens[row, count - 1])
            if newest == self.eos:
                return StopReason.EOS
            if newest == slots.stop_ids[row] or self._just_ended(row, live.stops, 0):
                return StopReason.STOP
            if self._just_ended(row, self.turns, live.turn_start):
                slots.close_span(row, count, SpanKind.ACTION, self.version)
                self._reply(row, live, count)
        elif not live.forced:
            slots.close_span(row, count, SpanKind.OBSERVATION, self.version)
            live.turn_start = count
        if live.done and not live.forced:
            return StopReason.DONE
        return StopReason.LENGTH if count >= slots.budgets[row] else None

    def _just_ended(self, row: int, stops: tuple[str, ...], begin: int) -> bool:
        """Whether the newest token completed one of the strings, all of it at or after `begin`.

        Only a tail is decoded: every character takes at most four bytes, and a token of text holds at least one.
        """
        count = int(self.slots.counts[row])
        if not stops or not self._may_end(int(self.slots.tokens[row, count - 1]), stops):
            return False
        reach = 4 * max(map(len, stops)) + 1
        tail = self.slots.tokens[row, max(begin, count - reach) : count]
        text, before = self.policy.texts.decode(tail), self.policy.texts.decode(tail[:-1])
        return any(text.count(stop) > before.count(stop) for stop in stops)

    def _may_end(self, token: int, stops: tuple[str, ...]) -> bool:
        """Whether the token can hold the last character of a string, or a byte of it."""
        known = self.enders.get((token, stops))
        if known is None:
            # Twice, because some decoders drop the space before the first token.
            text = self.policy.texts.decode([token, token])
            known = self.enders[token, stops] = "\ufffd" in text or any(stop[-1] in text for stop in stops)
        return known

    def _reply(self, row: int, live: Live, turn_end: int) -> None:
        """Asks the environment about the tokens before `turn_end`; what the row lacks of its reply will be fed."""
        if self.environment is None:
            return
        transcript = self.policy.texts.decode(self.slots.tokens[row, :turn_end])
        reply = self.environment.reply(live.request.problem, transcript)
        given = int(self.slots.counts[row]) - turn_end
        live.forced.extend(self.policy.texts.encode(reply.observation).tolist()[given:])
        live.done = reply.done
