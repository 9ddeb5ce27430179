"""The doctor's line on dense credit: told where it can be known, never sick."""

import math
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from doctor_examples import healthy_loop, subject_of
from tiny_runs import BASE, HEAD, RL, tiny_recipe

from forkpoint.assembly import Assembly
from forkpoint.doctor import dense
from forkpoint.doctor.dense import dense_credit
from forkpoint.records import Reward, StopReason

CHAINS = HEAD.replace('"paths"\nbranches = 2\ndepth = 1\nwalk_length = 6', '"keychain"\npositions = 6\nkeys = 2')


def chain_loop():
    recipe = tiny_recipe(BASE.replace("walks", "solutions"), RL.replace("[stage.reward]\nlength_penalty = 0.5", ""),
                         head=CHAINS)  # fmt: skip
    return Assembly(recipe=recipe, origin=Path(), run=Path("nowhere"), unrun=True).loop("rl")


def solved(subject):
    """The subject with solutions in the place of the drawn rollouts, the last two of each group with a wrong key."""
    probe, drawn = subject.loop.probe, subject.judged[0]
    groups = []
    for group in drawn.batch.groups:
        text, keys = subject.loop.task.solve(group.problem), group.problem.metadata["positions"]
        rollouts = []
        for place, rollout in enumerate(group.rollouts):
            wrong = keys[place - 2] if place >= 2 else None
            mine = "".join("x" if t == wrong else "stuv"[place] if letter == "s" else letter
                           for t, letter in enumerate(text))  # fmt: skip
            tokens = probe.encode(mine)
            zeros, mask = np.zeros(len(tokens), np.float32), np.ones(len(tokens), np.bool_)
            rollouts.append(replace(rollout, text=mine, tokens=tokens, behavior_logprobs=zeros, loss_mask=mask,
                                    stop_reason=StopReason.LENGTH, spans=()))  # fmt: skip
        verdicts = tuple(probe.verify(group.problem, rollouts))
        rewards = tuple(Reward(total=float(verdict.correct)) for verdict in verdicts)
        groups.append(replace(group, rollouts=tuple(rollouts), verdicts=verdicts, rewards=rewards))
    return replace(subject, judged=(replace(drawn, batch=replace(drawn.batch, groups=tuple(groups))),))


def test_what_is_told_of_solved_chains():
    subject = solved(subject_of(chain_loop()))
    weights = [each.clone() for each in subject.loop.policy.model.parameters()]
    began = time.perf_counter()
    check = dense_credit(subject)
    assert time.perf_counter() - began < 2
    assert check.status == "ok"
    assert "33% of tokens decide" in check.did
    assert check.value > 0
    assert all((old == new).all() for old, new in zip(weights, subject.loop.policy.model.parameters(), strict=True))
    assert all(each.grad is None for each in subject.loop.policy.model.parameters())


def test_gradients_of_large_policies_are_left_out(monkeypatch):
    monkeypatch.setattr("forkpoint.doctor.dense.MOST_PARAMETERS", 10)
    check = dense_credit(solved(subject_of(chain_loop())))
    assert "overlap unknown" in check.did
    assert math.isnan(check.value)
    assert check.ok


@pytest.mark.parametrize(
    ("loop", "said"), [(chain_loop, "too few correct"), (healthy_loop, "unknown|decide")], ids=["chains", "walks"]
)
def test_what_cannot_be_known_is_no_sickness(loop, said):
    check = dense_credit(subject_of(loop()))
    assert check.ok
    assert any(part in check.did for part in said.split("|"))


@pytest.mark.parametrize(
    ("shared", "nats", "said"),
    [
        (0.5, 0.01, "the others are hardly read; rule: counterfactual ("),
        (0.5, 0.5, "the others are read, unsafe without a floor; rule: counterfactual with outcome_floor ("),
        (0.01, 0.5, "the others are read, unsafe without a floor; rule: leave_one_out ("),
        (0.5, None, "the others are unknown; rule: counterfactual ("),
    ],
)
def test_the_line_names_a_rule(shared, nats, said):
    depends = None if nats is None else SimpleNamespace(nats=nats)
    assert said in dense._words(SimpleNamespace(share=0.25), shared, depends)
