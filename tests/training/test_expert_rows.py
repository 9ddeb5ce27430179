"""Expert rows: which tokens they hold, and that the whole update is what a formula says."""

from dataclasses import replace

import numpy as np
import torch

from forkpoint.assembly.tables import build_task
from forkpoint.losses import mixed_policy
from forkpoint.policies.causal import CausalPolicy
from forkpoint.policies.texts import Texts, alphabet_tokenizer
from forkpoint.policies.tiny import build_decoder
from forkpoint.records import Group, Reward
from forkpoint.seeds import Key
from forkpoint.training.components import Objective, accumulate
from forkpoint.training.experts import expert_example, expert_rows


def policy() -> CausalPolicy:
    task = build_task({"name": "arithmetic"})
    tokenizer = alphabet_tokenizer(task.alphabet)
    model = build_decoder(
        shape="qwen3", vocabulary=len(tokenizer), layers=1, width=16, heads=2, context=96, key=Key.root(0)
    )
    return CausalPolicy(model, Texts(tokenizer))


def test_an_expert_ends_as_a_rollout_does() -> None:
    task, made = build_task({"name": "arithmetic"}), policy()
    problem = task.problem(Key.root(1))
    example = expert_example(task, made.texts, problem)
    prompt = made.texts.encode_prompt(problem.prompt)
    assert not example.loss_mask[: len(prompt)].any()
    assert example.loss_mask[len(prompt) :].all()
    assert made.texts.decode(example.tokens[len(prompt) :]) == task.solve(problem)


def test_gradient_of_an_expert_row_is_that_of_the_formula() -> None:
    task, made = build_task({"name": "arithmetic"}), policy()
    problem = task.problem(Key.root(1))
    group = Group(problem=problem, rollouts=(), verdicts=(), rewards=(Reward(total=0.0), Reward(total=1.0)))
    (row,) = expert_rows(task, made.texts, [group], 1)
    count = int(row.loss_mask.sum())
    row = replace(row, expert_weights=np.where(row.loss_mask, 1 / count, 0.0).astype(np.float32))
    accumulate(made, [row], Objective(policy_loss=mixed_policy, experts=True), max_tokens=4096)
    found = {name: parameter.grad.clone() for name, parameter in made.model.named_parameters()}
    made.model.zero_grad()
    tokens = torch.from_numpy(np.concatenate([row.prompt, row.tokens]).astype(np.int64))[None]
    logits = made.model(input_ids=tokens).logits[0, len(row.prompt) - 1 : -1].log_softmax(-1)
    probability = logits.gather(-1, tokens[0, len(row.prompt) :, None])[:, 0].exp()
    # One success in two: the expert beats a mean of 1/2.
    (-0.5 * (probability / (probability + 0.1)).mean()).backward()
    for name, parameter in made.model.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad, rtol=1e-4, atol=1e-7)
