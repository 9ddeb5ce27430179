"""The oracle's credit on key chains: hand numbers, and the enumerated truth of a policy that sees the prompt alone."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from meter_examples import decoder_subject

from forkpoint.credit import leave_one_out
from forkpoint.errors import TaskError
from forkpoint.meter.oracle import oracle
from forkpoint.meter.truth import Tier
from forkpoint.policies.causal import CausalPolicy
from forkpoint.policies.tiny import attend_prompt
from forkpoint.records import Batch
from forkpoint.tasks.keychain import KeyChain, Settings, key_positions

sys.path.append(str(Path(__file__).parents[1] / "credit"))
from signal_examples import SignalProbe, batch_of, problem, rewarded_group, written

CHAIN = problem(answer="AB", positions=[1, 3], budget=4)


def credit(text: str, chances: tuple[float, float], **changes: object) -> list[float]:
    """The oracle's advantages for a text, when the chance of each key is given."""
    probe = SignalProbe(
        KeyChain(Settings(positions=4, keys=2)), lambda _, text: np.log([0.5, chances[0], 0.5, chances[1]])
    )
    rollout = written(text, **changes)
    (found,) = oracle(batch_of(rewarded_group([rollout], [0.0], of=CHAIN)), probe)
    assert [asked[1][1] + asked[1][3] for asked in probe.asked] == ["AB"], "the chances are those of the right entries"
    return found.advantages.tolist()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("sAsB", [0, 0.4 - 0.2, 0, 1 - 0.4]),
        ("sAsC", [0, 0.4 - 0.2, 0, -0.4]),
        ("sCsB", [0, -0.2, 0, 0]),
    ],
)
def test_a_key_earns_the_change_of_the_chance_to_succeed(text: str, expected: list[float]) -> None:
    assert credit(text.replace("s", "z"), (0.5, 0.4)) == pytest.approx(expected, abs=1e-6)


def test_an_early_end_loses_what_was_still_to_be_had() -> None:
    assert credit("zA", (0.5, 0.4)) == pytest.approx([0, 0.2]), "the text ends after its last token"
    probe = SignalProbe(KeyChain(Settings(positions=4, keys=2)), lambda *_: np.log([0.5, 0.5, 0.5, 0.4]))
    ended = replace(written("zAz"), text="zA")
    (found,) = oracle(batch_of(rewarded_group([ended], [0.0], of=CHAIN)), probe)
    assert found.advantages.tolist() == pytest.approx([0, 0.2, -0.4])


def test_other_tasks_are_refused() -> None:
    probe = SignalProbe(None, lambda *_: np.zeros(2))
    with pytest.raises(TaskError, match="not of the task keychain"):
        oracle(batch_of(rewarded_group([written("ab")], [0.0])), probe)


def truths(subject) -> tuple[Batch, np.ndarray, list[np.ndarray]]:
    probe = subject.probe("test")
    batch = subject.batch(probe, 0)
    truth = subject.whole_truth(batch, probe, Tier.ENUMERATION)
    rows = oracle(batch, probe)
    mine = np.concatenate([row.advantages for row in rows])
    smeared = np.concatenate([row.advantages for row in leave_one_out(batch, probe)])
    return batch, truth.advantages, [mine, smeared]


def test_it_is_the_enumerated_truth_on_keys_and_early_ends_of_a_policy_that_sees_the_prompt_alone() -> None:
    whole = decoder_subject(positions=3, problems=4, group_size=16)
    model = attend_prompt(whole.policy.model)
    with torch.no_grad():
        model.model.layers[0].self_attn.o_proj.weight.mul_(2.0)
    batch, truth, (mine, smeared) = truths(replace(whole, policy=CausalPolicy(model, whole.policy.texts)))
    keys = np.concatenate(
        [
            np.isin(np.arange(len(rollout.tokens)), [*key_positions(group.problem), len(rollout.text)])
            for group in batch.groups
            for rollout in group.rollouts
        ]
    )
    assert len(truth) == len(mine) == len(keys)
    assert np.abs(mine[~keys]).max() == 0
    right = np.corrcoef(mine[keys], truth[keys])[0, 1]
    # It does not know of the early ends to come, which are a few percent here.
    assert right > 0.985 > np.corrcoef(smeared[keys], truth[keys])[0, 1]
