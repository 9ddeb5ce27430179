"""The bridge to TRL against a stand-in with the surface that it uses: right and local denominators, bad scripts."""

import sys
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace

import pytest
import torch

from forkpoint.integrations import trl as bridge
from forkpoint.integrations.trl import LENGTHS, ONE_STEP, BridgeError, accumulation_gap, check_script
from forkpoint.policies.texts import alphabet_tokenizer
from forkpoint.policies.tiny import build_decoder
from forkpoint.seeds import Key

SCRIPT = """
from trl import GRPOTrainer

def make_trainer(**overrides):
    return GRPOTrainer(**{"loss_type": "bnpo", **overrides})
"""
DEAF = """
from trl import GRPOTrainer

def make_trainer(**overrides):
    return GRPOTrainer(per_device_train_batch_size=4, gradient_accumulation_steps=2)
"""


class GRPOTrainer:
    """Accumulates -A log pi with a global mean, or with one mean for each micro-batch (`bnpo`)."""

    made = 0

    def __init__(self, **arguments):
        GRPOTrainer.made += 1
        self.args = SimpleNamespace(**{"loss_type": "dapo", **arguments})
        self.processing_class = alphabet_tokenizer("abcdefgh")
        # Every trainer has other weights: the bridge must copy those of the first.
        self.model = build_decoder(
            shape="llama", vocabulary=10, layers=1, width=16, heads=2, context=64, key=Key.root(GRPOTrainer.made)
        )
        self.reward_funcs, self.callbacks = [None, None], []

    def add_callback(self, callback):
        self.callbacks.append(callback)

    def train(self):
        drawn = self.rollout_func(["a", "b"], self)
        rewards = [sum(found) for found in zip(*(function(**drawn) for function in self.reward_funcs), strict=True)]
        total, batches = sum(map(len, drawn["completion_ids"])), self.args.gradient_accumulation_steps
        size = self.args.per_device_train_batch_size
        assert size * batches == len(rewards)
        for start in range(0, len(rewards), size):
            rows = range(start, start + size)
            mine = sum(len(drawn["completion_ids"][row]) for row in rows)
            divisor = total if self.args.loss_type == "dapo" else mine * batches
            for row in rows:
                prompt, completion = drawn["prompt_ids"][row], drawn["completion_ids"][row]
                logits = self.model(input_ids=torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1]
                logprobs = torch.log_softmax(logits, -1)[torch.arange(len(completion)), torch.tensor(completion)]
                (-(rewards[row] - 0.8) * logprobs.sum() / divisor).backward()
        for callback in self.callbacks:
            callback.on_pre_optimizer_step(self.args, None, None, model=self.model, optimizer=None)


@pytest.fixture(autouse=True)
def trl(monkeypatch):
    module = ModuleType("trl")
    module.GRPOTrainer, module.__spec__ = GRPOTrainer, ModuleSpec("trl", None)
    monkeypatch.setitem(sys.modules, "trl", module)


def test_a_global_denominator_shows_rounding_only():
    found = accumulation_gap(lambda **overrides: GRPOTrainer(**overrides), loss_type="dapo")
    assert found.loss_type == "dapo"
    assert found.gap < 1e-6
    assert found.passed
    assert found.cosine == pytest.approx(1.0)
    assert found.norm_ratio == pytest.approx(1.0)


def test_a_mean_of_means_is_found_in_a_script(tmp_path):
    path = tmp_path / "train.py"
    path.write_text(SCRIPT)
    (found,) = check_script(path)
    assert found.loss_type == "bnpo"
    assert found.gap > 0.1
    assert not found.passed
    both = check_script(path, loss_types=("dapo", "bnpo"))
    assert [gap.passed for gap in both] == [True, False]


def test_settings_reach_the_trainer():
    seen = []
    accumulation_gap(lambda **given: (seen.append(given), GRPOTrainer(**given))[1], settings={"entropy_coef": 0.5})
    assert [(one["per_device_train_batch_size"], one["gradient_accumulation_steps"]) for one in seen] == [
        (8, 1),
        (1, 8),
    ]
    assert all(one["entropy_coef"] == 0.5 and one["learning_rate"] == ONE_STEP["learning_rate"] == 0.0 for one in seen)


def test_the_batch_is_ragged_and_the_same_for_every_trainer():
    first, second = (bridge.fixed_batch(GRPOTrainer()) for _ in range(2))
    assert first == second
    assert tuple(map(len, first.completions)) == LENGTHS
    assert len(set(first.completions)) == len(LENGTHS)
    assert all(completion[-1] == 1 and 1 not in completion[:-1] for completion in first.completions)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (None, "there is no such script"),
        ("x = 1", "defines no function make_trainer"),
        ("def make_trainer(**overrides): return 3", "returned a int, not a GRPOTrainer"),
        (DEAF, "ignores its overrides"),
    ],
)
def test_a_bad_script_is_one_line(source, message, tmp_path):
    path = tmp_path / "script.py"
    if source is not None:
        path.write_text(source)
    with pytest.raises(BridgeError, match=message) as caught:
        check_script(path)
    assert "\n" not in str(caught.value)


def test_an_unknown_loss_type_is_one_line():
    with pytest.raises(BridgeError, match="Did you mean 'dapo'"):
        accumulation_gap(GRPOTrainer, loss_type="dappo")


def test_without_a_gradient_to_read(monkeypatch):
    monkeypatch.setattr(GRPOTrainer, "train", lambda self: None)
    with pytest.raises(BridgeError, match="no gradient to read"):
        accumulation_gap(GRPOTrainer)


def test_without_trl_the_error_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setattr(bridge.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(BridgeError, match="pip install trl datasets"):
        check_script(tmp_path / "script.py")
