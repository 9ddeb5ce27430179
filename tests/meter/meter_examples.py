"""Small subjects: a table on two branches, and a random decoder that writes three characters."""

from typing import Any

import torch

from forkpoint.assembly import CREDIT_RULES, build_task, resolve
from forkpoint.meter.subject import Rule, Subject
from forkpoint.policies.causal import CausalPolicy
from forkpoint.policies.tabular import from_theory
from forkpoint.policies.texts import Texts, alphabet_tokenizer
from forkpoint.policies.tiny import build_decoder
from forkpoint.seeds import Key
from forkpoint.tasks.lab import Lab
from forkpoint.theory.classes import uniform_policy
from forkpoint.theory.tables import spread_policy

KEY = Key.root(3)


def rule(name: str) -> Rule:
    return Rule(name=name, give=resolve("rule", name, CREDIT_RULES), critic=name == "critic")


def lab_subject(*, budget: int = 6, **changes: Any) -> Subject:
    """A uniform walk that finds the leaf now and then."""
    task = build_task({"name": "lab", "branches": 2, "depth": 1, "lanes": 2})
    assert isinstance(task, Lab)
    policy = from_theory(spread_policy(uniform_policy(task.graph)))
    return Subject(policy=policy, task=task, key=KEY, max_new_tokens=budget, **changes)


def decoder_subject(*, positions: int = 3, scale: float = 8.0, **changes: Any) -> Subject:
    """A random decoder whose filler and keys depend on everything before them."""
    settings = {"positions": positions, "keys": 1, "operations": 1, "values": 1, "entries": 2}
    task = build_task({"name": "keychain", **settings})
    tokenizer = alphabet_tokenizer(task.alphabet or "")
    model: Any = build_decoder(
        shape="llama", vocabulary=len(tokenizer), layers=1, width=16, heads=2, context=64, key=KEY.child("model")
    )
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.mul_(scale)
    policy = CausalPolicy(model, Texts(tokenizer))
    return Subject(policy=policy, task=task, key=KEY, max_new_tokens=positions, **changes)
