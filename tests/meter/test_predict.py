"""The prediction before training: planted gradients, rollouts made by hand, policies known by construction."""

import copy
import math
from dataclasses import asdict, replace

import numpy as np
import pytest
from meter_examples import KEY, decoder_subject, lab_subject

from forkpoint.credit.influence import dependence, influence, overlap
from forkpoint.credit.needs import Cost
from forkpoint.errors import ForkpointError
from forkpoint.meter.gradients import products
from forkpoint.meter.measures import Measured
from forkpoint.meter.predict import (
    Tables,
    advice,
    break_even,
    by_character,
    group_tables,
    headroom,
    predict,
    read_signal,
    safety,
    table_overlap,
    verdict_lines,
    worthwhile,
)
from forkpoint.policies.causal import CausalPolicy
from forkpoint.policies.tiny import attend_prompt
from forkpoint.records import Batch, Reward, StopReason

GROUPS, SIZE = 160, 24


def planted(filler_at):
    """Groups whose signal lies on axis 0, deciding noise on axes 0 to 3, and stronger filler noise where it is told."""
    draw = KEY.child("planted", str(filler_at)).generator()
    readers, deciding, filler = (np.zeros((GROUPS, SIZE)) for _ in range(3))
    readers[:, :4] = draw.standard_normal((GROUPS, 4))
    deciding[:, :4] = draw.standard_normal((GROUPS, 4))
    deciding[:, 0] += 2.0
    filler[:, filler_at] = 3.0 * draw.standard_normal((GROUPS, 4))
    parts = {"uniform": deciding + filler, "dense": deciding, "filler": filler, "deciding": deciding}
    return Tables(
        read={name: products(readers, part) for name, part in parts.items()},
        power={name: products(part, part) for name, part in parts.items()},
    )


def test_the_read_signal_by_hand():
    # q_ik q_il off the diagonal: rows (1, 2), (3, 4), (5, 6) give 2, 12, 30 twice each, over 3 * 2 * 1.
    table = np.array([[9.0, 1.0, 2.0], [3.0, 9.0, 4.0], [5.0, 6.0, 9.0]])
    assert read_signal(table) == pytest.approx(2 * (2 + 12 + 30) / 6)


def test_headroom_is_that_of_the_noise_in_the_directions_that_are_read():
    # F is 1 on axes 0 to 3: S = 4, N_d = 4, N_u = 4 + 4 * 9.
    shared, apart = planted(slice(0, 4)), planted(slice(8, 12))
    assert headroom(shared, 1) == pytest.approx((4 + 40) / (4 + 4), rel=0.25)
    assert headroom(shared, 8) == pytest.approx((4 + 5) / (4 + 0.5), rel=0.25)
    assert headroom(apart, 1) == pytest.approx(1.0, abs=0.01)


def test_overlap_is_zero_apart_and_one_on_the_same_directions():
    assert table_overlap(planted(slice(8, 12))) == 0.0
    # Of deciding tokens E(h.c)^2 / E|c|^2 = 8 / 8, of filler 36 / 36.
    assert table_overlap(planted(slice(0, 4))) == pytest.approx(1.0, rel=0.25)
    assert table_overlap(planted(slice(2, 6))) == pytest.approx(0.5, rel=0.25)
    assert math.isnan(overlap((np.zeros((3, 3)), np.ones((3, 3))), (0.0, 1.0)))


def test_rollouts_alone_do_not_pass_for_overlap():
    """A group's own filler and deciding tokens share their prompt; only different groups are compared."""
    table = np.eye(4)
    assert overlap((table, np.ones((4, 4))), (1.0, 1.0)) == 0.0


def made(subject, group, texts):
    """The group with other texts in the place of its rollouts, judged."""
    probe = subject.probe("made")
    rollouts = tuple(
        replace(
            rollout, id=f"{rollout.id}-{text}", text=text, tokens=probe.encode(text),
            behavior_logprobs=np.zeros(len(text), np.float32), loss_mask=np.ones(len(text), np.bool_),
            stop_reason=StopReason.LENGTH,
        )
        for rollout, text in zip(group.rollouts, texts, strict=True)
    )  # fmt: skip
    verdicts = tuple(probe.verify(group.problem, rollouts))
    return replace(
        group, rollouts=rollouts, verdicts=verdicts, rewards=tuple(Reward(total=float(v.correct)) for v in verdicts)
    )


@pytest.fixture(scope="module")
def known():
    """Six problems with two right and two wrong rollouts each, filler different at every position; one without."""
    subject = decoder_subject(positions=5, problems=24, group_size=4)
    groups = []
    for group in subject.batch(subject.probe("batch"), "known").groups:
        (key,), right = group.problem.metadata["positions"], group.problem.answer
        entries = 2 * right + 2 * "AB".replace(right, "")
        fillers = [letter * key + entry + letter * (4 - key) for letter, entry in zip("stuv", entries, strict=True)]
        if key >= 2:
            groups.append(made(subject, group, fillers))
    last = groups[6]
    key = last.problem.metadata["positions"][0]
    hopeless = made(subject, last, [letter * key + "x" + letter * (4 - key) for letter in "stuv"])
    batch = Batch(groups=(*groups[:6], hopeless), update=0)
    return subject, batch, influence(batch, subject.probe("rule"), by_character=True)


def test_only_keys_decide_and_nothing_is_known_without_a_correct_rollout(known):
    _, batch, found = known
    masks = iter(found.decides)
    for group in batch.groups[:6]:
        for mask in [next(masks) for _ in group.rollouts]:
            assert np.flatnonzero(mask).tolist() == group.problem.metadata["positions"]
    assert list(masks) == [None] * 4
    assert found.share == pytest.approx(1 / 5)


def test_advice_by_hand_can_be_written_down(known):
    chosen = advice(*known, pays=True, safe=None)
    assert asdict(chosen)["options"] == {"cuts": "every:1", "alternatives": 2}
    assert (chosen.rule, chosen.wrap) == ("counterfactual", ("outcome_floor",))
    assert advice(*known, pays=True, safe=True).wrap == ()
    assert advice(*known, pays=None, safe=True).rule == "leave_one_out"
    assert chosen.cost.verifier_calls == pytest.approx(2.0)


def test_a_group_without_a_correct_rollout_is_unknown_even_where_a_swap_repairs_one(known):
    subject, batch, _ = known
    group = batch.groups[0]
    wrong = tuple(replace(verdict, correct=False) for verdict in group.verdicts)
    failed = replace(group, verdicts=wrong, rewards=(Reward(total=0.0),) * 4)
    found = influence(Batch(groups=(failed,), update=0), subject.probe("rule"), by_character=True)
    assert found.decides == (None,) * 4
    assert any(credit.advantages.any() for credit in found.credits)


def test_nothing_depends_on_filler_that_comes_later(known):
    subject, batch, found = known
    first = np.arange(5) == 0
    assert dependence(batch, replace(found, decides=(first,) * 28), subject.probe("rule")) is None


def test_unequal_lengths_tell_of_correct_rollouts_alone(known):
    subject, batch, _ = known
    group = batch.groups[0]
    texts = [rollout.text for rollout in group.rollouts]
    uneven = Batch(groups=(made(subject, group, [*texts[:3], texts[3][:-1]]),), update=0)
    masks = influence(uneven, subject.probe("rule"), by_character=True).decides
    assert [mask is None for mask in masks] == [False, False, True, True]
    assert all(mask[group.problem.metadata["positions"][0]] for mask in masks[:2])


def test_dependence_of_an_autoregressive_decoder(known):
    subject, batch, found = known
    depends = dependence(batch, found, subject.probe("rule"))
    assert depends.rollouts == 24
    assert depends.nats > 4 * depends.error > 0
    assert dependence(batch, replace(found, decides=(None,) * 28), subject.probe("rule")) is None


class Last:
    """A probe whose scores are those of the last deciding token, 0 elsewhere."""

    def __init__(self, probe, masks):
        self.probe, self.masks = probe, masks

    def score(self, requests):
        places = [np.flatnonzero(mask)[-1] for mask in self.masks if mask is not None for _ in range(2)]
        scores = self.probe.score(requests)
        return [np.where(np.arange(len(one)) == at, one, 0) for one, at in zip(scores, places, strict=True)]


def test_a_decoder_that_sees_the_prompt_alone_reads_no_filler_but_its_neighbor(known):
    subject, batch, found = known
    # The token before a key is fed in where the key is predicted: it is kept, and all others are replaced.
    kept = replace(found, decides=tuple(mask if mask is None else mask | np.roll(mask, -1) for mask in found.decides))
    blind = CausalPolicy(attend_prompt(copy.deepcopy(subject.policy.model)), subject.policy.texts)
    nats = [
        dependence(batch, kept, Last(each.probe("rule"), kept.decides)).nats
        for each in (subject, replace(subject, policy=blind))
    ]
    assert nats[0] > 0.05
    assert nats[1] < 1e-5


def test_parameters_apart_do_not_overlap_and_shared_ones_do(known):
    """Of a table every edge has its own parameters: tokens after some edges decide, those after others do not."""
    table = lab_subject(budget=8, problems=8, group_size=8)
    batch = table.batch(table.probe("batch"), "apart")
    befores = [np.append(each.prompt_tokens[-1:], each.tokens[:-1]) for each in batch.rollouts]
    masks = tuple(before % 2 == 0 for before in befores)
    assert all(mask.sum() > 0 for mask in masks)
    apart = replace(influence(batch, table.probe("rule"), by_character=False), decides=masks)
    tables = group_tables(table, batch, apart, lambda *_: None)
    assert np.diag(tables.power["filler"]).sum() > 0
    assert table_overlap(tables) == pytest.approx(0.0, abs=1e-12)
    assert table_overlap(group_tables(*known, lambda *_: None)) > 0.05


def test_a_prediction_of_a_decoder_and_its_words():
    subject = decoder_subject(positions=4, scale=3.0, problems=8, group_size=8)
    found = predict(subject, groups=16)
    assert found == predict(subject, groups=16)
    assert found.influence == "counterfactual"
    assert found.overlap.value > 0.05
    assert found.headroom.value > 0
    assert 0 < found.filler_noise < 1
    lines = verdict_lines(found)
    assert len(lines) == 3
    assert "head-room" in lines[0]
    assert lines[2].startswith("train with")


def test_a_table_is_asked_by_continuations():
    subject = lab_subject(budget=8, problems=8, group_size=8)
    assert not by_character(subject)
    found = predict(subject, groups=8)
    assert found.influence == "branch"
    assert found.dependence is None
    # Continuations cost several rollouts, so head-room pays from far above the usual threshold, also where it does not.
    assert found.least > 2
    assert found.pays is not True or found.headroom.value >= found.least
    if found.pays is not None:
        assert f"(from {found.least:.3g})" in verdict_lines(found)[0]


def test_too_little_is_said_to_be_unknown():
    subject = decoder_subject(positions=3, scale=0.01, problems=4, group_size=2)
    found = predict(subject, groups=4)
    assert found.pays is None
    assert found.advice.rule == "leave_one_out"
    assert verdict_lines(found)[0].startswith("not known")
    with pytest.raises(ForkpointError, match="at least 4"):
        predict(subject, groups=3)


def measured(value, low):
    return Measured(value=value, interval=(low, 2 * value))


def test_worth_and_break_even_by_hand():
    verdicts = Cost(verifier_calls=2.0)
    assert worthwhile(measured(3.0, 1.5), verdicts) is True
    assert worthwhile(measured(3.0, 0.9), verdicts) is None
    assert worthwhile(measured(1.2, 1.1), verdicts) is False
    assert worthwhile(measured(3.0, 1.5), Cost(sampled=2.5)) is False
    assert worthwhile(measured(float("nan"), 0.0), verdicts) is None
    assert break_even(3.0, verdicts) == pytest.approx(1.0)
    assert break_even(3.0, Cost(sampled=1.0, verifier_calls=2.0)) == pytest.approx(0.5)


def test_safety_by_hand(known):
    subject, batch, found = known
    read = replace(dependence(batch, found, subject.probe("rule")), nats=0.5)
    little = replace(read, nats=0.01)
    assert safety(read, 0.0, sees_outputs=True) is False
    assert safety(little, 0.9, sees_outputs=False) is True
    assert safety(little, 0.9, sees_outputs=True) is None
    assert safety(little, 0.01, sees_outputs=True) is True
    assert safety(None, 0.01, sees_outputs=True) is None
