"""The probe of this process: one policy, one sampler, one guarded verifier, and a count of what they spent."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from forkpoint.batching import Row, length_buckets, pad_rows
from forkpoint.errors import check_context
from forkpoint.policies.protocol import Policy
from forkpoint.probe import Continuation, Sampler, SampleRequest, ScoreRequest
from forkpoint.records import Floats, Ints, Problem, Rollout, StopReason, Verdict, frozen_array
from forkpoint.seeds import Key
from forkpoint.tasks.protocol import Task
from forkpoint.verifiers.guard import Verifier


@dataclass(frozen=True, slots=True, kw_only=True)
class BranchPlan:
    """What continuations of a stage's rollouts need beside the rollouts."""

    task: Task
    key: Key
    """Names the run and the stage."""
    max_new_tokens: int


class LocalProbe:
    """Answers in the order of the requests; continues rollouts only with a `plan`."""

    def __init__(
        self,
        policy: Policy,
        sampler: Sampler,
        verifier: Verifier,
        *,
        max_batch_tokens: int = 8192,
        critic: Callable[[Sequence[Rollout]], list[Floats]] | None = None,
        plan: "BranchPlan | None" = None,
    ) -> None:
        self._policy, self._sampler, self._verifier, self._critic = policy, sampler, verifier, critic
        self._plan = plan
        self._max_batch_tokens = max_batch_tokens
        self._cost = {"sampled_tokens": 0, "scored_tokens": 0, "verifier_calls": 0, "forwards": 0}

    @property
    def policy(self) -> Policy:
        """The policy that answers."""
        return self._policy

    @property
    def context_length(self) -> int:
        """Most tokens of a prompt and what follows it."""
        return self._policy.context_length

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

    def branch(self, requests: Sequence[Continuation]) -> list[Rollout]:
        """One continuation for each request, in order; only new tokens are counted."""
        plan = self._branch_plan
        asked = []
        for request in requests:
            rollout = request.rollout
            parent = rollout if request.prefix is None else _with_prefix(rollout, request.prefix)
            key = plan.key.child("branch", request.purpose, parent.id, request.prefix_length, request.index)
            asked.append(
                SampleRequest(
                    key=key, problem=request.problem, prompt_tokens=rollout.prompt_tokens, group_id=rollout.group_id,
                    stage=rollout.stage, update=rollout.update, index=request.index, temperature=rollout.temperature,
                    max_new_tokens=plan.max_new_tokens, stop=plan.task.stop(request.problem), parent=parent,
                    prefix_length=request.prefix_length,
                )
            )  # fmt: skip
        return self.sample(asked)

    @property
    def _branch_plan(self) -> BranchPlan:
        if self._plan is None:
            raise ValueError("this probe has no plan to continue rollouts by")
        return self._plan

    @property
    def task(self) -> object:
        """The task behind the batch; None where the probe has no plan."""
        return None if self._plan is None else self._plan.task

    def encode(self, text: str) -> Ints:
        """The tokens of a text that continues a rollout."""
        return self._policy.texts.encode(text)

    def decode(self, tokens: Ints) -> str:
        """The text of the tokens of a rollout."""
        return self._policy.texts.decode(tokens)

    def encode_prompt(self, prompt: str) -> Ints:
        """The tokens of a prompt, as a rollout has it."""
        return self._policy.texts.encode_prompt(prompt)

    def score(self, requests: Sequence[ScoreRequest]) -> list[Floats]:
        """The log-probability of each token of each request, nats; requests of one call share their temperature."""
        return self._scored(requests)[0]

    def entropies(self, rollouts: Sequence[Rollout]) -> list[Floats]:
        """The entropy of the distribution that each token of each rollout was drawn from, nats; one scoring pass."""
        requests = [
            ScoreRequest(prompt_tokens=rollout.prompt_tokens, tokens=rollout.tokens, temperature=rollout.temperature)
            for rollout in rollouts
        ]
        return self._scored(requests)[1]

    def _scored(self, requests: Sequence[ScoreRequest]) -> tuple[list[Floats], list[Floats]]:
        """Log-probability and entropy at each token of each request."""
        if len({request.temperature for request in requests}) > 1:
            raise ValueError("score: all requests of one call must have the same temperature")
        if requests and requests[0].temperature <= 0:
            raise ValueError("score: the temperature must be above 0")
        for request in requests:
            check_context("scoring", len(request.prompt_tokens), len(request.tokens), self._policy.context_length)
        rows = [
            Row(prompt=request.prompt_tokens, tokens=request.tokens, loss_mask=np.ones(len(request.tokens), np.bool_))
            for request in requests
        ]
        lengths = [len(row.tokens) for row in rows]
        scores: list[Floats] = [frozen_array([], np.float32)] * len(rows)
        entropies = list(scores)
        filled = [place for place, length in enumerate(lengths) if length]
        for bucket in length_buckets([lengths[place] for place in filled], max_tokens=self._max_batch_tokens):
            places = [filled[place] for place in bucket]
            batch = pad_rows(rows, places, device=self._policy.device)
            with torch.inference_mode():
                found = self._policy.logprobs(batch, temperature=requests[0].temperature)
            for lines, kept in zip(found, (scores, entropies), strict=True):
                for line, place in zip(lines.cpu().numpy(), places, strict=True):
                    kept[place] = frozen_array(line[: lengths[place]].copy(), np.float32)
            self._cost["forwards"] += 1
        self._cost["scored_tokens"] += sum(lengths)
        return scores, entropies

    def values(self, rollouts: Sequence[Rollout]) -> list[Floats]:
        """The critic's value of the state before each token of each rollout; ValueError where there is no critic."""
        if self._critic is None:
            raise ValueError("values: this probe has no critic")
        self._cost["scored_tokens"] += sum(len(rollout.tokens) for rollout in rollouts)
        return self._critic(rollouts)

    def verify(self, problem: Problem, rollouts: Sequence[Rollout]) -> list[Verdict]:
        """The guarded verdict on each rollout."""
        self._cost["verifier_calls"] += len(rollouts)
        return [self._verifier(problem, rollout) for rollout in rollouts]


def _with_prefix(rollout: Rollout, prefix: Ints) -> Rollout:
    """The rollout as if it had begun with other tokens; its own id with a hash of them."""
    count = len(prefix)
    digest = hashlib.sha256(np.ascontiguousarray(prefix, np.int32).tobytes()).hexdigest()[:16]
    return replace(
        rollout,
        id=f"{rollout.id}~{digest}",
        tokens=frozen_array(prefix, np.int32),
        behavior_logprobs=frozen_array(np.zeros(count), np.float32),
        loss_mask=frozen_array(np.zeros(count), np.bool_),
        spans=tuple(replace(span, end=min(span.end, count)) for span in rollout.spans if span.start < count),
        # Something is still to come.
        stop_reason=StopReason.LENGTH,
    )
