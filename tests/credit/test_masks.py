"""Wrappers around credit: hand numbers, order, and where the entropy mask picks the wrong tokens."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from signal_examples import SignalProbe, batch_of, problem, rewarded_group, written

from forkpoint.credit.group import leave_one_out
from forkpoint.credit.masks import (
    PENALTY_SLOPE,
    WRAPPERS,
    confident_mask,
    credit_metrics,
    fork_mask,
    outcome_floor,
    positive_only,
    progressive_confidence,
    step_check,
    wrapped,
)
from forkpoint.records import Credit
from forkpoint.seeds import Key
from forkpoint.tasks.arithmetic import Arithmetic
from forkpoint.tasks.keychain import KeyChain, Settings, exact_advantages, key_positions


def two(logprobs=((-0.05, -2.0, -0.3), (-1.0, -0.01)), masks=((1, 1, 1), (1, 1))):
    rollouts = [
        written(text, logprobs=nats, mask=mask) for text, nats, mask in zip(("bcd", "ef"), logprobs, masks, strict=True)
    ]
    return batch_of(rewarded_group(rollouts, [1.0, 0.0]))


def advantages(credits):
    return [credit.advantages.tolist() for credit in credits]


def test_fork_mask_keeps_the_most_open_tokens_of_the_whole_batch():
    batch = two()
    base = leave_one_out(batch, None)
    assert advantages(fork_mask(base, batch, None, keep=0.4)) == [[0, 1, 0], [-1, 0]]
    assert advantages(fork_mask(base, batch, None, keep=0.2)) == [[0, 1, 0], [0, 0]]
    assert advantages(fork_mask(base, batch, None, keep=1.0)) == advantages(base)


def test_fork_mask_ranks_trained_tokens_only():
    batch = two(masks=((1, 0, 1), (1, 1)))
    assert advantages(fork_mask(leave_one_out(batch, None), batch, None, keep=0.25)) == [[0, 0, 0], [-1, 0]]


def test_fork_mask_by_entropy_asks_the_probe():
    class Knowing(SignalProbe):
        def entropies(self, rollouts):
            return [np.array([9, 0, 0], np.float32), np.array([0, 9], np.float32)]

    batch = two()
    base = leave_one_out(batch, None)
    assert advantages(fork_mask(base, batch, Knowing(None), keep=0.4, measure="entropy")) == [[1, 0, 0], [0, -1]]
    with pytest.raises(ValueError, match="knows entropies"):
        fork_mask(base, batch, SignalProbe(None), measure="entropy")


def chains(filler_entropy, count=64):
    """Demonstrated key chains with the demonstrator's own log-probabilities, and each token's true advantage."""
    task = KeyChain(Settings(positions=16, keys=3, filler_entropy=filler_entropy, demonstrator_accuracy=0.7))
    usual = {"high": np.full(8, 1 / 8), "low": np.array([0.95] + [0.05 / 7] * 7)}[filler_entropy]
    draw = np.random.Generator(np.random.Philox(key=11))
    one = task.problem(Key.root(1))
    keys = key_positions(one)
    rollouts, truths, rewards = [], [], []
    for _ in range(count):
        text, nats = [], []
        for t in range(16):
            if t in keys:
                right = draw.random() < 0.7
                entry = one.answer[keys.index(t)]
                others = [c for c in task.entries if c != entry]
                text.append(entry if right else others[draw.integers(len(others))])
                nats.append(np.log(0.7 if right else 0.3 / len(others)))
            else:
                place = draw.choice(8, p=usual)
                text.append("stuvwxyz"[place])
                nats.append(np.log(usual[place]))
        rollouts.append(written("".join(text), logprobs=nats))
        truths.append(exact_advantages(one, "".join(text), [0.7] * 3))
        rewards.append(float(all(text[p] == e for p, e in zip(keys, one.answer, strict=True))))
    return batch_of(rewarded_group(rollouts, rewards, of=one)), truths, keys


def agreement(credits, truths):
    return float(np.corrcoef(np.concatenate([c.advantages for c in credits]), np.concatenate(truths))[0, 1])


def entropies(batch, keys, filler_entropy):
    usual = {"high": np.log(8), "low": 0.05 * np.log(7 / 0.05) - 0.95 * np.log(0.95)}[filler_entropy]
    key = -(0.7 * np.log(0.7) + 0.3 * np.log(0.3 / 7))
    return [np.array([key if t in keys else usual for t in range(16)], np.float32) for _ in batch.rollouts]


@pytest.mark.parametrize("measure", ["entropy", "surprisal"])
def test_the_mask_helps_where_forks_have_the_entropy_and_fails_where_filler_has_it(measure):
    class Knowing(SignalProbe):
        def entropies(self, rollouts):
            return found

    scores = {}
    for filler in ("low", "high"):
        batch, truths, keys = chains(filler)
        found = entropies(batch, keys, filler)
        base = leave_one_out(batch, None)
        credits = fork_mask(base, batch, Knowing(None), measure=measure, keep=0.1875)
        scores[filler] = agreement(credits, truths), agreement(base, truths)
        on_keys = sum(np.abs(c.advantages[keys]).sum() for c in credits)
        if filler == "high" and measure == "entropy":
            # Filler is the more open: not one deciding token is trained on.
            assert on_keys == 0
    assert scores["low"][0] > scores["low"][1] + 0.05
    assert scores["high"][0] < scores["high"][1]


def test_confident_mask_by_hand():
    batch = two()
    base = leave_one_out(batch, None)
    # exp(-.05) = .951 and exp(-.01) = .990 are sure; .135, .741 and .368 are not.
    assert advantages(confident_mask(base, batch, None)) == [[0, 1, 1], [-1, 0]]
    assert advantages(confident_mask(base, batch, None, below=0.5)) == [[0, 1, 0], [-1, 0]]


def test_outcome_floor_mixes_in_leave_one_out():
    batch = two(masks=((1, 0, 1), (1, 1)))
    dense = [Credit(advantages=np.array(row, np.float32), rule="r") for row in ((2, 0, 0), (0, -4))]
    smeared = advantages(leave_one_out(batch, None))
    assert smeared == [[1, 0, 1], [-1, -1]]
    assert advantages(outcome_floor(dense, batch, None)) == [[1.75, 0, 0.25], [-0.25, -3.25]]
    assert advantages(outcome_floor(dense, batch, None, share=1.0)) == smeared
    assert advantages(outcome_floor(dense, batch, None, share=0.0)) == advantages(dense)
    with pytest.raises(ValueError, match=r"share = 1\.5"):
        outcome_floor(dense, batch, None, share=1.5)


@given(st.lists(st.floats(-5, 5, width=32), min_size=1, max_size=6))
def test_positive_only_leaves_what_was_above_its_baseline(numbers):
    (found,) = positive_only([Credit(advantages=np.array(numbers, np.float32), rule="r")], two(), None)
    assert found.advantages.tolist() == [max(number, 0.0) for number in numbers]


class Sure:
    """Each character is a step; the answer is one token."""

    def __init__(self, cuts=None):
        self.cuts = cuts

    def cut_points(self, problem, rollout):
        return range(len(rollout.tokens))

    def early_answer(self, problem, transcript):
        return "1"


def penalty(confidences):
    """What a rollout of six steps is charged for these confidences."""
    batch = batch_of(rewarded_group([written("bcdefg"), written("hijklm")], [1.0, 0.0]))
    probe = SignalProbe(Sure(), lambda prompt, text: [np.log(confidences[len(prompt) - 1])])
    credits = progressive_confidence(leave_one_out(batch, None), batch, probe)
    assert credits[0].details["premature"] == pytest.approx(1 - credits[0].advantages[0], abs=1e-6)
    assert len(set(credits[0].advantages.tolist())) == 1
    return credits[0].details["premature"]


def test_early_confidence_pays_and_late_confidence_earns():
    assert penalty([1, 1, 1, 1e-9, 1e-9, 1e-9]) == pytest.approx(0.9, abs=1e-6)
    assert penalty([1e-9, 1e-9, 1e-9, 1, 1, 1]) == pytest.approx(-0.9, abs=1e-6)
    assert penalty([0.1, 0.2, 0.3, 0.4, 0.5, 0.6]) == pytest.approx(-0.35, abs=1e-6)
    assert penalty([0.7] * 6) == pytest.approx(0.0, abs=1e-6)
    assert sum(PENALTY_SLOPE) == pytest.approx(0.0)


def test_checkpoints_lie_at_equal_shares_of_the_way():
    batch = batch_of(rewarded_group([written("bcdefghijkl"), written("b")], [1.0, 0.0]))
    probe = SignalProbe(Sure(), lambda prompt, text: [-1.0])
    found = progressive_confidence(leave_one_out(batch, None), batch, probe)
    assert [len(prompt) - 1 for prompt, _ in probe.asked] == [0, 2, 4, 6, 8, 10]
    # One step only: the same confidence six times, so nothing to pay.
    assert found[1].advantages == pytest.approx([-1.0])


def test_step_check_charges_wrong_steps_alone():
    task = Arithmetic()
    one = problem(answer="14", prompt="3+4*2=?\n", chain="3+4*2")
    texts = ["3+4=7;7*2=14;#14\n", "3+4=8;8*2=16;#16\n", "3+4=7;7*2=14;#15\n"]
    batch = batch_of(rewarded_group([written(text) for text in texts], [1.0, 0.0, 0.0], of=one))
    base = leave_one_out(batch, None)
    found = step_check(base, batch, SignalProbe(task), penalty=0.25)
    assert advantages(found)[0] == advantages(base)[0]
    assert advantages(found)[1] == [-0.75] * 6 + [-0.5] * 11
    assert advantages(found)[2] == [-0.5] * 13 + [-0.75] * 4
    assert [credit.details["wrong_steps"] for credit in found] == [0, 1, 1]
    with pytest.raises(ValueError, match="wrong_steps"):
        step_check(base, batch, SignalProbe(Sure()))


def test_wrappers_compose_in_the_order_of_the_recipe():
    task = Arithmetic()
    one = problem(answer="14", prompt="3+4*2=?\n", chain="3+4*2")
    rollouts = [written("3+4=8;#14\n"), written("#15\n")]
    batch = batch_of(rewarded_group(rollouts, [1.0, 0.0], of=one))
    base = leave_one_out(batch, None)
    options = {"step_check": {"penalty": 3.0}}
    inner, outer = (
        wrapped(base, batch, SignalProbe(task), wrap=order, options=options)
        for order in (["step_check", "positive_only"], ["positive_only", "step_check"])
    )
    assert advantages(inner)[0][:6] == [0.0] * 6
    assert advantages(outer)[0][:6] == [-2.0] * 6
    assert inner[0].details["wrong_steps"] == 1
    assert wrapped(base, batch, SignalProbe(task), wrap=[], options={}) == base
    with pytest.raises(ValueError, match="Did you mean 'fork_mask'"):
        wrapped(base, batch, SignalProbe(task), wrap=["fork_mas"], options={})


@pytest.mark.parametrize("name", sorted(WRAPPERS))
def test_no_wrapper_puts_advantage_on_untrained_tokens(name):
    task = Arithmetic()
    one = problem(answer="14", prompt="3+4*2=?\n", chain="3+4*2")
    mask = [0, 1] * 8 + [0]
    rollouts = [
        written(text, logprobs=np.linspace(-3, 0, 17), mask=mask)
        for text in ("3+4=8;8*2=16;#16\n", "3+4=7;7*2=14;#14\n")
    ]
    batch = batch_of(rewarded_group(rollouts, [0.0, 1.0], of=one))
    probe = SignalProbe(task, lambda prompt, text: np.full(len(text), -0.1 * len(prompt)))
    for credit, rollout in zip(WRAPPERS[name](leave_one_out(batch, None), batch, probe), rollouts, strict=True):
        assert credit.advantages.dtype == np.float32
        assert not credit.advantages[~rollout.loss_mask].any()
        assert credit.advantages.any() or name == "positive_only"


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("fork_mask", {"keep": 0.0}), ("fork_mask", {"keep": 1.1}), ("fork_mask", {"measure": "loss"}),
        ("confident_mask", {"below": 0.0}), ("confident_mask", {"below": 1.5}), ("step_check", {"penalty": -1.0}),
    ],
)  # fmt: skip
def test_options_out_of_bounds_are_refused(name, options):
    batch = two()
    with pytest.raises(ValueError, match=name):
        WRAPPERS[name](leave_one_out(batch, None), batch, None, **options)


def test_metrics_are_means_over_the_credits_that_have_the_number():
    made = [
        Credit(advantages=np.zeros(1), rule="r", details={"premature": 0.5, "values": [1.0], "name": "x"}),
        Credit(advantages=np.zeros(1), rule="r", details={"premature": 0.25, "gate_open": True}),
    ]
    assert credit_metrics(made) == {"credit_premature": 0.375, "credit_gate_open": 1.0}
    assert credit_metrics([]) == {}
