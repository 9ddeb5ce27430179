"""Rollouts of a policy that is asked in another way: hotter, with noise on its weights, after another text."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import torch
from torch import nn

from forkpoint.audits.elicitation import Way
from forkpoint.errors import check_context
from forkpoint.probe import SampleRequest
from forkpoint.probing.local import BranchPlan, LocalProbe
from forkpoint.records import Group, Problem
from forkpoint.seeds import Key

PLAIN = Way(name="plain")


def drawn_groups(
    probe: LocalProbe, plan: BranchPlan, problems: Sequence[Problem], *, samples: int, stage: str, way: Way = PLAIN
) -> list[Group]:
    """As many fresh rollouts of each problem, with their verdicts; the weights are as before afterwards.

    Raises:
        ContextError: a prompt and the budget of a rollout do not fit the context.
    """
    encode = probe.policy.texts.encode_prompt
    requests = [
        SampleRequest(
            key=plan.key.child(problem.key, index), problem=problem,
            prompt_tokens=encode(led(problem, way.lead).prompt), group_id=problem.key, stage=stage, update=0,
            index=index, max_new_tokens=plan.max_new_tokens, temperature=way.temperature, stop=plan.task.stop(problem),
        )
        for problem in problems
        for index in range(samples)
    ]  # fmt: skip
    for request in requests:
        length = len(request.prompt_tokens)
        check_context(f"stage '{stage}'", length, plan.max_new_tokens, probe.policy.context_length)
    with noised(probe.policy.model, way.noise, plan.key.child("noise")):
        rollouts = probe.sample(requests)
    groups = []
    for place, problem in enumerate(problems):
        mine = tuple(rollouts[place * samples : (place + 1) * samples])
        groups.append(Group(problem=problem, rollouts=mine, verdicts=tuple(probe.verify(problem, mine))))
    return groups


def led(problem: Problem, lead: str) -> Problem:
    """The problem with a text before its prompt; of messages before the first one of the user."""
    if not lead:
        return problem
    if isinstance(problem.prompt, str):
        return replace(problem, prompt=lead + problem.prompt)
    places = [place for place, message in enumerate(problem.prompt) if message["role"] == "user"]
    messages = list(problem.prompt)
    for place in places[:1]:
        messages[place] = {**messages[place], "content": lead + messages[place]["content"]}
    return replace(problem, prompt=tuple(messages))


@contextmanager
def noised(model: nn.Module, scale: float, key: Key) -> Iterator[None]:
    """Gaussian noise on every weight, of `scale` times the root mean square of its tensor (arXiv 2412.01784).

    The weights are those of before, to the bit, when the block ends.
    """
    weights = [weight for weight in model.parameters() if weight.is_floating_point()] if scale else []
    kept = [weight.detach().to("cpu", copy=True) for weight in weights]
    generator = key.generator()
    try:
        with torch.no_grad():
            for weight in weights:
                size = float(weight.float().square().mean().sqrt())
                noise = torch.from_numpy(generator.standard_normal(tuple(weight.shape), dtype=np.float32))
                weight.add_((scale * size * noise).to(device=weight.device, dtype=weight.dtype))
        yield
    finally:
        with torch.no_grad():
            for weight, before in zip(weights, kept, strict=True):
                weight.copy_(before)
