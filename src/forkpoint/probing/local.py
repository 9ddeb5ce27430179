"""The probe of this process: one policy, one sampler, one guarded verifier, and a count of what they spent."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch

from forkpoint.batching import Row, length_buckets, pad_rows
from forkpoint.policies.protocol import Policy
from forkpoint.probe import Sampler, SampleRequest, ScoreRequest
from forkpoint.records import Floats, Problem, Rollout, Verdict, frozen_array
from forkpoint.verifiers.guard import Verifier


class LocalProbe:
    """Answers in the order of the requests."""

    def __init__(
        self,
        policy: Policy,
        sampler: Sampler,
        verifier: Verifier,
        *,
        max_batch_tokens: int = 8192,
        critic: Callable[[Sequence[Rollout]], list[Floats]] | None = None,
    ) -> None:
        self._policy, self._sampler, self._verifier, self._critic = policy, sampler, verifier, critic
        self._max_batch_tokens = max_batch_tokens
        self._cost = {"sampled_tokens": 0, "scored_tokens": 0, "verifier_calls": 0, "forwards": 0}

    @property
    def cost(self) -> Mapping[str, int]:
        """Spent so far: sampled and scored tokens, verifier calls, scoring forwards."""
        return dict(self._cost)

    def sample(self, requests: Sequence[SampleRequest]) -> list[Rollout]:
        """One rollout for each request."""
        if len({request.key for request in requests}) < len(requests):
            raise ValueError("sample: two requests of one call have the same key")
        found = {rollout.id: rollout for rollout in self._sampler.stream(requests)}
        rollouts = [found[request.key.hex] for request in requests]
        self._cost["sampled_tokens"] += sum(int(rollout.loss_mask.sum()) for rollout in rollouts)
        return rollouts

    def score(self, requests: Sequence[ScoreRequest]) -> list[Floats]:
        """The log-probability of each token of each request, nats; requests of one call share their temperature."""
        if len({request.temperature for request in requests}) > 1:
            raise ValueError("score: all requests of one call must have the same temperature")
        if requests and requests[0].temperature <= 0:
            raise ValueError("score: the temperature must be above 0")
        rows = [
            Row(prompt=request.prompt_tokens, tokens=request.tokens, loss_mask=np.ones(len(request.tokens), np.bool_))
            for request in requests
        ]
        lengths = [len(row.tokens) for row in rows]
        scores: list[Floats] = [frozen_array([], np.float32)] * len(rows)
        filled = [place for place, length in enumerate(lengths) if length]
        for bucket in length_buckets([lengths[place] for place in filled], max_tokens=self._max_batch_tokens):
            places = [filled[place] for place in bucket]
            batch = pad_rows(rows, places, device=self._policy.device)
            with torch.inference_mode():
                logprobs, _ = self._policy.logprobs(batch, temperature=requests[0].temperature)
            for line, place in zip(logprobs.cpu().numpy(), places, strict=True):
                scores[place] = frozen_array(line[: lengths[place]].copy(), np.float32)
            self._cost["forwards"] += 1
        self._cost["scored_tokens"] += sum(lengths)
        return scores

    def values(self, rollouts: Sequence[Rollout]) -> list[Floats]:
        """The critic's value of the state before each token of each rollout; ValueError where there is no critic."""
        if self._critic is None:
            raise ValueError("values: this probe has no critic")
        return self._critic(rollouts)

    def verify(self, problem: Problem, rollouts: Sequence[Rollout]) -> list[Verdict]:
        """The guarded verdict on each rollout."""
        self._cost["verifier_calls"] += len(rollouts)
        return [self._verifier(problem, rollout) for rollout in rollouts]
