"""The learned critic of a decoder: against enumerated values, and what must not depend on how it is computed."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from forkpoint.assembly import build_task
from forkpoint.config.critic import CriticSettings
from forkpoint.errors import CheckpointError, TrainingError
from forkpoint.meter.enumeration import enumerated_tree
from forkpoint.meter.subject import Subject
from forkpoint.policies.causal import CausalPolicy
from forkpoint.policies.texts import Texts, alphabet_tokenizer
from forkpoint.policies.tiny import build_decoder
from forkpoint.records import Outcome, Reward, Verdict, frozen_array
from forkpoint.seeds import Key
from forkpoint.training.critic import fit_metrics, warm_up
from forkpoint.training.value_network import ValueNetwork, _row

KEY = Key.root(3)
KINDS = ("head", "network")


def settings(kind="head", **changes):
    return CriticSettings(kind=kind, hidden=16, **changes)


def network(subject, kind="head", *, max_tokens=8192, loss="cross_entropy", gamma=1.0, **changes):
    return ValueNetwork(
        subject.policy, settings(kind, **changes), key=KEY, loss=loss, gamma=gamma, max_tokens=max_tokens
    )


@pytest.fixture(scope="module")
def subject():
    """A random decoder that writes three characters, each of which depends on all before it."""
    torch.set_num_threads(1)
    task = build_task({"name": "keychain", "positions": 3, "keys": 1, "operations": 1, "values": 1, "entries": 2})
    tokenizer = alphabet_tokenizer(task.alphabet)
    model = build_decoder(
        shape="llama", vocabulary=len(tokenizer), layers=1, width=16, heads=2, context=64, key=KEY.child("model")
    )
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.mul_(8.0)
    policy = CausalPolicy(model, Texts(tokenizer))
    return Subject(policy=policy, task=task, key=KEY, max_new_tokens=3, problems=8, group_size=8)


def verdict_of(rollout):
    """Right where most tokens are even, so that each token moves the value."""
    right = bool(np.mean(rollout.tokens % 2 == 0) > 0.5)
    return Verdict(outcome=Outcome.CORRECT if right else Outcome.WRONG, correct=right)


def with_totals(batch, total, verdict=verdict_of):
    """The batch judged anew, its rewards a function of the verdict."""
    groups = []
    for group in batch.groups:
        verdicts = tuple(verdict(rollout) for rollout in group.rollouts)
        groups.append(
            replace(group, verdicts=verdicts, rewards=tuple(Reward(total=total(each.correct)) for each in verdicts))
        )
    return replace(batch, groups=tuple(groups))


@pytest.fixture(scope="module")
def batches(subject):
    probe = subject.probe("batches")
    return [with_totals(subject.batch(probe, number), float) for number in range(3)]


class Judge:
    """A probe that judges by `verdict_of`."""

    def __init__(self, probe):
        self.score = probe.score

    def verify(self, problem, rollouts):
        return [verdict_of(rollout) for rollout in rollouts]


@pytest.fixture(scope="module")
def many(subject):
    """Many rollouts of two problems, and the exact value of the state before each of their tokens."""
    large = replace(subject, problems=2, group_size=256)
    batch = with_totals(large.batch(large.probe("batches"), "many"), float)
    found = []
    for group in batch.groups:
        judge = Judge(subject.probe("truth"))
        tree = enumerated_tree(group, judge, subject.language, subject.task.stop(group.problem))
        for rollout in group.rollouts:
            words = tuple(rollout.tokens.tolist())
            found += [tree.values[words[:t]] for t in range(len(words))]
    return batch, np.array(found)


def weights(critic):
    return [parameter.detach().clone() for parameter in critic._optimization.parameters]


def same(one, two):
    return all(torch.equal(mine, theirs) for mine, theirs in zip(one, two, strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_it_learns_the_enumerated_values(kind, subject, many):
    batch, truth = many
    critic = network(subject, kind, epochs=60 if kind == "head" else 10, minibatches=8)
    before = {name: parameter.clone() for name, parameter in subject.policy.model.named_parameters()}
    for _ in range(2):
        critic.fit(batch)
    found = np.concatenate(critic.values(batch.rollouts))
    assert truth.std() > 0.15
    # A head knows what the policy happens to keep of the past; a decoder of its own learns what to keep.
    assert np.corrcoef(found, truth)[0, 1] > {"head": 0.8, "network": 0.9}[kind]
    # Much nearer than the best constant, from which the truth is its own spread away.
    assert np.sqrt(((found - truth) ** 2).mean()) < 0.6 * truth.std()
    after = dict(subject.policy.model.named_parameters())
    assert all(torch.equal(before[name], parameter) and parameter.grad is None for name, parameter in after.items())


@pytest.mark.parametrize("kind", KINDS)
def test_it_begins_with_one_value_for_every_state(kind, subject, batches):
    assert set(np.concatenate(network(subject, kind).values(batches[0].rollouts)).tolist()) == {0.5}
    squared = network(subject, kind, loss="squared")
    assert set(np.concatenate(squared.values(batches[0].rollouts)).tolist()) == {0.0}
    assert network(subject).values([]) == []


@pytest.mark.parametrize("kind", KINDS)
def test_values_do_not_depend_on_the_split_or_the_company(kind, subject, batches):
    one, two = network(subject, kind, epochs=12), network(subject, kind, max_tokens=16)
    one.fit(batches[0])
    for mine, theirs in zip(one._optimization.parameters, two._optimization.parameters, strict=True):
        theirs.data.copy_(mine.data)
    rollouts = batches[1].rollouts
    whole = one.values(rollouts)
    assert np.ptp(np.concatenate(whole)) > 0.01
    for mine, theirs, rollout in zip(whole, two.values(rollouts), rollouts, strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-6)
        np.testing.assert_allclose(mine, one.values([rollout])[0], atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_the_gradient_does_not_depend_on_the_split(kind, subject, batches):
    found = []
    rows = [_row(rollout, rollout.loss_mask) for rollout in batches[0].rollouts]
    targets = [np.full(int(row.loss_mask.sum()), place % 2, float) for place, row in enumerate(rows)]
    start = network(subject, kind)
    start.fit(batches[1])
    for size in (8192, 40, 16):
        critic = copy.deepcopy(start)
        critic._max_tokens = size
        critic.gradient(rows, targets, range(len(rows)), None)
        found.append(torch.cat([parameter.grad.flatten() for parameter in critic._optimization.parameters]))
    assert found[0].norm() > 0
    for other in found[1:]:
        assert float((found[0] - other).norm() / found[0].norm()) < 1e-5


def test_the_gradient_is_that_of_the_loss(subject, batches):
    """Central differences of the mean cross-entropy over tokens, through shared prompts and the whole decoder."""
    critic = network(subject, "network", max_tokens=64)
    critic.fit(batches[1])
    rows = [_row(rollout, rollout.loss_mask) for rollout in batches[0].rollouts]
    targets = [np.full(int(row.loss_mask.sum()), float(place % 3 == 0)) for place, row in enumerate(rows)]
    critic.gradient(rows, targets, range(len(rows)), None)
    flat = np.concatenate(targets)

    def loss():
        values = np.concatenate(critic.values(batches[0].rollouts)).astype(np.float64)
        return -(flat * np.log(values) + (1 - flat) * np.log1p(-values)).mean()

    moved = [parameter for parameter in critic._optimization.parameters if parameter.ndim == 2]
    direction = [parameter.grad / parameter.grad.norm() for parameter in moved]
    slope = float(sum((step * parameter.grad).sum() for step, parameter in zip(direction, moved, strict=True)))
    sides = []
    with torch.no_grad():
        for sign in (1, -2):
            for parameter, step in zip(moved, direction, strict=True):
                parameter.add_(sign * 1e-2 * step)
            sides.append(loss())
    assert (sides[0] - sides[1]) / 2e-2 == pytest.approx(slope, rel=0.03)


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_batches_give_the_same_weights(kind, subject, batches):
    one, two = network(subject, kind), network(subject, kind)
    assert one.fit(batches[0]) == two.fit(batches[0])
    assert one.fit(batches[1]) == two.fit(batches[1])
    assert same(weights(one), weights(two))
    other = ValueNetwork(subject.policy, settings(kind), key=KEY.child("other"))
    other.fit(batches[0])
    other.fit(batches[1])
    assert not same(weights(one), weights(other))


@pytest.mark.parametrize("kind", KINDS)
def test_it_goes_on_from_a_checkpoint_as_if_nothing_had_happened(kind, subject, batches, tmp_path):
    unbroken, before = network(subject, kind), network(subject, kind)
    for batch in batches[:2]:
        unbroken.fit(batch)
    before.fit(batches[0])
    before.save(tmp_path)
    after = network(subject, kind)
    after.load(tmp_path)
    after.fit(batches[1])
    assert same(weights(unbroken), weights(after))
    with pytest.raises(CheckpointError, match="missing or does not fit"):
        ValueNetwork(subject.policy, CriticSettings(kind=kind, hidden=8), key=KEY).load(tmp_path)
    with pytest.raises(CheckpointError, match="cannot be read"):
        after.load(tmp_path / "nothing")


def test_a_value_knows_the_past_alone(subject, batches):
    critic = network(subject, "network", epochs=8, learning_rate=0.02)
    critic.fit(batches[0])
    rollout = max(batches[1].rollouts, key=lambda each: len(each.tokens))
    cut = 1
    tokens = rollout.tokens.copy()
    tokens[cut:] = (tokens[cut:] - 1) % (len(subject.policy.texts.tokenizer) - 2) + 2
    changed = replace(rollout, tokens=frozen_array(tokens, np.int32))
    one, two = critic.values([rollout, changed])
    np.testing.assert_allclose(one[: cut + 1], two[: cut + 1], atol=1e-6)
    assert abs(one[cut + 1] - two[cut + 1]) > 1e-4


def test_untrained_tokens_teach_nothing_but_have_values(subject, batches):
    group = batches[0].groups[0]
    masked = [
        replace(each, loss_mask=frozen_array(np.arange(len(each.tokens)) > 0, np.bool_)) for each in group.rollouts
    ]
    batch = replace(batches[0], groups=(replace(group, rollouts=tuple(masked)),))
    critic = network(subject)
    critic.fit(batch)
    assert [len(values) for values in critic.values(masked)] == [len(each.tokens) for each in masked]
    blank = [replace(each, loss_mask=frozen_array(np.zeros(len(each.tokens)), np.bool_)) for each in group.rollouts]
    before = weights(critic)
    assert critic.fit(replace(batch, groups=(replace(group, rollouts=tuple(blank)),))) == {}
    assert same(before, weights(critic))


def test_rewards_beyond_chances_need_the_squared_loss(subject, batches):
    priced = with_totals(batches[0], lambda right: float(right) - 0.5)
    with pytest.raises(TrainingError, match=r"reward to go of -0\.5 lies outside 0 and 1; use 'squared'"):
        network(subject).fit(priced)
    critic = network(subject, loss="squared", epochs=40)
    metrics = critic.fit(priced)
    assert "critic_brier" not in metrics
    assert critic.fit(priced)["critic_error"] < metrics["critic_error"]
    assert np.concatenate(critic.values(priced.rollouts)).min() < 0


def test_discount_reaches_the_targets(subject, batches):
    right = Verdict(outcome=Outcome.CORRECT, correct=True)
    always = with_totals(batches[0], float, lambda rollout: right)
    critic = network(subject, gamma=0.5, epochs=80, learning_rate=0.02)
    critic.fit(always)
    firsts = [values[0] for values in critic.values(always.rollouts)]
    paid = np.mean([0.5 ** (len(each.tokens) - 1) for each in always.rollouts])
    assert paid < 0.5
    assert np.mean(firsts) == pytest.approx(paid, abs=0.06)


def test_metrics_by_hand():
    values, targets = np.array([0.25, 0.25, 0.75, 0.75]), np.array([0.0, 1.0, 1.0, 1.0])
    found = fit_metrics(values, targets)
    # Squares .0625, .5625, .0625, .0625; the variance is .1875.
    assert found["critic_brier"] == pytest.approx(0.1875)
    assert found["critic_error"] == pytest.approx(0.1875**0.5)
    assert found["critic_explained"] == pytest.approx(0.0)
    # Bins .25: mean .5, off by .25; .75: mean 1, off by .25.
    assert found["critic_calibration"] == pytest.approx(0.25)
    graded = fit_metrics(values, np.array([0.5, 0.5, 1.0, 1.0]))
    assert graded["critic_explained"] == pytest.approx(0.0)
    assert "critic_brier" not in graded
    assert fit_metrics(np.zeros(3), np.zeros(3))["critic_explained"] == 0.0
    assert fit_metrics(np.zeros(0), np.zeros(0)) == {}


def test_calibration_is_zero_where_every_bin_is_right():
    draw = KEY.child("calibration").generator()
    values = np.repeat(draw.random(10), 100)
    noise = np.tile([0.3, -0.3], 500)
    assert fit_metrics(values, values + noise)["critic_calibration"] == pytest.approx(0.0)
    assert fit_metrics(values, values + noise + 0.2)["critic_calibration"] == pytest.approx(0.2)


def test_warm_up_counts_what_it_sampled_and_fits_in_order(subject, batches):
    one, two = network(subject), network(subject)
    asked = []

    def sample(number):
        asked.append(number)
        return batches[number]

    found = warm_up(one, sample, 3)
    for batch in batches[:2]:
        two.fit(batch)
    last = two.fit(batches[2])
    tokens = sum(int(rollout.loss_mask.sum()) for batch in batches[:3] for rollout in batch.rollouts)
    assert asked == [0, 1, 2]
    assert found["critic_warmup_tokens"] == tokens
    assert found["critic_warmup_error"] == last["critic_error"]
    assert same(weights(one), weights(two))
    assert warm_up(one, sample, 0) == {}
