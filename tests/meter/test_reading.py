"""A whole reading: what each rule scores on a table whose truth is exact, the plan of its cost, the trained decoder."""

from dataclasses import replace

import numpy as np
import pytest
from meter_examples import decoder_subject, lab_subject, rule

from forkpoint.errors import CheckpointError, ForkpointError
from forkpoint.meter.document import planned_tokens, reading_document
from forkpoint.meter.pretraining import Pretraining, pretrained
from forkpoint.meter.reading import Extent, take_reading
from forkpoint.meter.subject import Rule, give_credit
from forkpoint.meter.truth import Tier, truth_credits
from forkpoint.meter.variants import VARIANTS, variant
from forkpoint.tasks.keychain import KeyChain, Settings


def quiet(what: str, done: int, total: int) -> None:
    assert 0 < done <= total, what


def perfect(subject) -> Rule:
    """The truth as a rule."""
    return Rule(
        name="perfect",
        give=lambda batch, probe: truth_credits(batch, subject.whole_truth(batch, probe, Tier.EXACT)),
    )


def test_the_truth_as_a_rule_scores_one_and_the_group_rules_little():
    subject = lab_subject(budget=10, problems=6, group_size=6)
    rules = [perfect(subject), rule("leave_one_out"), rule("survivors"), rule("critic")]
    reading = take_reading(subject, rules, Extent(tier=Tier.EXACT, batches=6, seeds=2), quiet)
    found = {each.name: each for each in reading.rules}
    full = found["perfect"]
    assert [full.measures[name].value for name in ("straw", "pearson", "spearman")] == pytest.approx([1.0] * 3)
    assert full.measures["auroc"].value == 1.0
    assert full.gradient is not None
    assert full.gradient.bias.value == 0.0
    assert full.gradient.over_oracle.value == pytest.approx(1.0)
    for name in ("leave_one_out", "survivors", "critic"):
        assert 0.02 < found[name].measures["straw"].value < 0.5
    assert reading.rollouts == 72
    assert reading.reliability == 1.0
    assert reading.labels == "threshold"
    assert found["leave_one_out"].cost["relative"] == 1.0


def test_a_reading_is_a_function_of_the_key():
    subject = lab_subject(problems=4, group_size=4)
    extent = Extent(tier=Tier.MONTE_CARLO, positions=12, continuations=16, batches=3, oracle_continuations=1)
    one, two = (reading_document(take_reading(subject, [rule("leave_one_out")], extent, quiet)) for _ in range(2))
    assert one == two
    assert one["places"] == 12
    assert one["rules"][0]["gradient"]["bias"]["interval"]


def test_a_drawn_truth_costs_what_was_planned():
    subject = decoder_subject(positions=6, problems=3, group_size=4)
    extent = Extent(tier=Tier.MONTE_CARLO, positions=10, continuations=20, batches=0, seeds=1)
    reading = take_reading(subject, [rule("leave_one_out")], extent, quiet)
    planned = planned_tokens(subject, extent)
    assert reading.labels == "keys"
    # Every rollout has the same share of keys, and every token of it the same credit.
    assert reading.rules[0].measures["auroc"].value == pytest.approx(0.5, abs=0.1)
    assert planned["rollouts"] == 3 * 4 * 6
    assert 0.4 * planned["truth"] < reading.truth_cost["sampled_tokens"] <= 1.7 * planned["truth"]
    assert planned["oracle gradients"] == 0
    assert planned_tokens(subject, replace(extent, tier=Tier.ENUMERATION))["truth"] == 0


def test_extra_tokens_of_a_rule_are_its_cost():
    subject = lab_subject(problems=2, group_size=4)

    def dear(batch, probe):
        fresh = subject.batch(probe, "dear")
        assert fresh.groups
        return truth_credits(batch, subject.whole_truth(batch, probe, Tier.EXACT))

    extent = Extent(tier=Tier.EXACT, batches=0)
    cost = take_reading(subject, [Rule(name="dear", give=dear)], extent, quiet).rules[0].cost
    assert cost["relative"] == pytest.approx(2.0, abs=0.3)
    assert cost["verifier_calls"] == 1.0


def test_credits_that_do_not_fit_are_refused():
    subject = lab_subject(problems=2, group_size=2)
    batch = subject.batch(subject.probe("batch"), "a")
    with pytest.raises(ForkpointError, match="do not fit"):
        give_credit(Rule(name="short", give=lambda batch, probe: []), batch, subject.probe("rule"))


def test_the_most_exact_tier_is_taken():
    assert lab_subject().best_tier is Tier.EXACT
    assert decoder_subject(positions=3).best_tier is Tier.ENUMERATION
    assert decoder_subject(positions=8).best_tier is Tier.MONTE_CARLO


def test_a_trained_decoder_is_kept_and_taken_again(tmp_path):
    task, plan = decoder_subject().task, Pretraining(corpus="demonstrator", updates=2, width=16, layers=1, heads=2)
    told = []
    first = pretrained(
        task, plan, identity="a", cache=tmp_path, progress=lambda done, total: told.append((done, total))
    )
    assert told == [(1, 2), (2, 2)]
    again = pretrained(task, plan, identity="a", cache=tmp_path, progress=lambda *_: pytest.fail("trained twice"))
    other = pretrained(task, replace(plan, seed=1), identity="a", cache=tmp_path)
    weights = [next(policy.model.parameters()).detach().numpy() for policy in (first, again, other)]
    assert (weights[0] == weights[1]).all()
    assert np.abs(weights[0] - weights[2]).max() > 0
    assert len(list(tmp_path.iterdir())) == 2
    for place in tmp_path.rglob("model.safetensors"):
        place.write_bytes(place.read_bytes()[:-4] + b"rest")
    with pytest.raises(CheckpointError):
        pretrained(task, plan, identity="a", cache=tmp_path)


def test_the_first_updates_of_a_decoder_may_see_the_prompt_alone():
    task, plan = decoder_subject().task, Pretraining(corpus="demonstrator", updates=3, width=16, layers=1, heads=2)
    made = {first: pretrained(task, replace(plan, prompt_updates=first), identity="a") for first in (0, 2, 3)}
    blind = pretrained(task, replace(plan, outputs_attend="prompt"), identity="a")
    weights = {first: next(policy.model.parameters()).detach().numpy() for first, policy in made.items()}
    assert all(policy.sees_outputs and policy.model.config.outputs_attend == "all" for policy in made.values())
    assert np.abs(weights[0] - weights[2]).max() > 0
    assert np.abs(weights[2] - weights[3]).max() > 0
    assert (weights[3] == next(blind.model.parameters()).detach().numpy()).all()
    dense = pretrained(task, replace(plan, prompt_updates=2, prompt_corpus="solutions"), identity="a")
    assert np.abs(weights[2] - next(dense.model.parameters()).detach().numpy()).max() > 0
    unseen = pretrained(task, replace(plan, prompt_corpus="solutions"), identity="a")
    assert (weights[0] == next(unseen.model.parameters()).detach().numpy()).all()


def test_variants_differ_in_filler_length_and_what_tokens_see():
    assert variant("A").settings["filler"] == "own"
    assert (variant("F").settings["positions"], variant("F").settings["filler"]) == (128, "lookup")
    assert [name for name in VARIANTS if variant(name).outputs_attend == "prompt"] == ["C", "D"]
    for blind, usual in ("CE", "DF"):
        assert variant(blind).settings == variant(usual).settings
    for found in VARIANTS.values():
        KeyChain(Settings(**found.settings))
    with pytest.raises(ForkpointError, match="Known: A, B, C, D, E, F, G, H"):
        variant("I")
