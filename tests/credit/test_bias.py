"""Whether a gradient is unbiased: every reason alone, and the verdict against enumerated expectations."""

import itertools

import numpy as np
import pytest
from tiny_runs import BASE, RL, tiny_recipe

from forkpoint.credit.bias import unbiased
from forkpoint.credit.group import leave_one_out
from forkpoint.credit.masks import WRAPPERS
from forkpoint.losses.aggregation import token_weights
from forkpoint.records import Batch, Group, Outcome, Problem, Reward, Rollout, StopReason, Verdict

PLAIN = ("stage.rl.aggregation=constant",)


def verdict(*overrides, **changes):
    return unbiased(tiny_recipe(BASE, RL, overrides=(*PLAIN, *overrides)).get_stage("rl"), **changes)


def test_the_plain_configuration_is_unbiased():
    assert verdict() == verdict("stage.rl.loss.name=clipped_surrogate")
    assert verdict().unbiased is True
    assert verdict().reasons == ()


BIASED = [
    (["stage.rl.aggregation=token_mean"], "random count of tokens"),
    (["stage.rl.aggregation=sequence_mean"], "its own length"),
    (["stage.rl.aggregation=prompt_mean"], "each group"),
    (["stage.rl.truncated=drop"], "how they ended"),
    (["stage.rl.credit.rule=group_mean_std"], "standard deviation"),
    (["stage.rl.credit.rule=max_rl"], "mean reward"),
    (["stage.rl.credit.rule=critic", "stage.rl.credit.options={lam=0.95}"], "lam below 1"),
    (["stage.rl.credit.rule=critic", "stage.rl.credit.options={alpha=0.05}"], "alpha bootstraps"),
    (["stage.rl.credit.rule=critic", "stage.rl.credit.options={lam=1.0, gamma=0.9}"], "gamma below 1"),
    (["stage.rl.credit.rule=privileged"], "log-ratio"),
    (["stage.rl.credit.rule=answer_progress"], "added to the reward"),
    (["stage.rl.credit.rule=answer_progress", "stage.rl.credit.options={outcome=false}"], "stands in for"),
    (["stage.rl.credit.rule=state_group", "stage.rl.credit.options={form='sum'}"], "form = 'sum'"),
    (["stage.rl.credit.rule=tree", "stage.rl.credit.options={weighting='inverse_sqrt'}"], "do not sum to 1"),
    (["stage.rl.credit.rule=counterfactual"], "rest = 'keep'"),
    (["stage.rl.credit.wrap=['fork_mask']"], "fork_mask"),
    (["stage.rl.credit.wrap=['confident_mask']"], "confident_mask"),
    (["stage.rl.credit.wrap=['positive_only']"], "positive_only"),
    (["stage.rl.credit.wrap=['progressive_confidence']"], "progressive_confidence"),
    (["stage.rl.credit.wrap=['step_check']"], "step_check"),
    (["stage.rl.updates_per_batch=2", "stage.rl.loss.name=dppo_tv"], "updates_per_batch = 2"),
    (["stage.rl.divergence={coefficient=0.1, kind='token_k2'}"], "token_k2"),
    (["stage.rl.curriculum={oversample=1, refill=1}"], "how they turned out"),
    (["stage.rl.curriculum={oversample=1, keep_variance=0.9}"], "how they turned out"),
    (["stage.rl.curriculum={oversample=2}"], "solved before"),
    (["stage.rl.bugs.averaging=rank"], "published bug"),
    (["stage.rl.entropy_bonus=0.01"], "entropy_bonus = 0.01: pays for entropy"),
    (
        ["stage.rl.experts=1", "stage.rl.loss.name=mixed_policy", "stage.rl.credit.rule=with_experts"],
        "an expert's tokens",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("overrides", "reason"), BIASED, ids=[" ".join(item[0]) for item in BIASED])
def test_each_reason_alone(overrides, reason):
    found = verdict(*overrides)
    assert found.unbiased is False
    assert any(reason in each for each in found.reasons)
    assert len(found.reasons) == (2 if "mixed_policy" in " ".join(overrides) else 1)


UNBIASED = [
    ["stage.rl.credit.rule=survivors"],
    ["stage.rl.credit.rule=batch_baseline"],
    ["stage.rl.credit.rule=branch"],
    ["stage.rl.credit.rule=tree"],
    ["stage.rl.credit.rule=state_group"],
    ["stage.rl.credit.rule=critic"],
    ["stage.rl.credit.rule=critic", "stage.rl.credit.options={alpha=0.05, floor=1.0}"],
    ["stage.rl.credit.rule=counterfactual", "stage.rl.credit.options={rest='resample'}"],
    ["stage.rl.credit.rule=privileged", "stage.rl.credit.options={strength=0}"],
    ["stage.rl.credit.rule=answer_progress", "stage.rl.credit.options={weight=0}"],
    ["stage.rl.credit.wrap=['fork_mask']", "stage.rl.credit.wrap_options={fork_mask={keep=1}}"],
    ["stage.rl.credit.wrap=['step_check']", "stage.rl.credit.wrap_options={step_check={penalty=0}}"],
    ["stage.rl.divergence={coefficient=0.1}"],
    ["stage.rl.curriculum={oversample=1}"],
]


@pytest.mark.parametrize("overrides", UNBIASED, ids=[" ".join(item) for item in UNBIASED])
def test_configurations_without_a_reason(overrides):
    assert verdict(*overrides).unbiased is True


def test_reasons_add_up():
    found = verdict(
        "stage.rl.aggregation=token_mean", "stage.rl.credit.rule=max_rl", "stage.rl.reward.length_penalty=0"
    )
    assert len(found.reasons) == 2


def test_what_is_not_ours_cannot_be_told():
    found = verdict("stage.rl.credit.rule=my.module:rule")
    assert found.unbiased is None
    assert found.reasons == ("credit.rule = 'my.module:rule' is not ours",)
    assert verdict("stage.rl.credit.rule=my.module:rule", "stage.rl.aggregation=token_mean").unbiased is False


def test_rollouts_of_one_length_make_every_mean_a_constant():
    for name in ("token_mean", "sequence_mean", "prompt_mean"):
        assert verdict(f"stage.rl.aggregation={name}", fixed_length=True).unbiased is True


# Texts of one or two tokens: 0 ends.  The policy is a row of logits for each place.
TEXTS = ((0,), (1, 0), (1, 1))
REWARD = {(0,): 0.4, (1, 0): 1.0, (1, 1): 0.0}


def score(logits, text):
    rows = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    scores = [np.zeros_like(logits) for _ in text]
    for t, token in enumerate(text):
        scores[t][t] = np.eye(2)[token] - rows[t]
    return np.prod([rows[t][token] for t, token in enumerate(text)]), scores, [rows[t][a] for t, a in enumerate(text)]


def written(text, chances):
    count = len(text)
    return Rollout(
        id=str(text), group_id="g", stage="rl", update=0, index=0, problem_key="0", prompt_tokens=np.zeros(1, np.int32),
        tokens=np.array(text, np.int32), behavior_logprobs=np.log(np.array(chances, np.float32)), seed="0",
        loss_mask=np.ones(count, np.bool_), temperature=1.0, text="x" * count, stop_reason=StopReason.STOP,
    )  # fmt: skip


def expected_gradient(known, *, aggregation, wrap, fixed):
    total = np.zeros((2, 2))
    texts = TEXTS[1:] if fixed else TEXTS
    for members in itertools.product(texts, repeat=2):
        group = Group(
            problem=Problem(task="t", key="1", prompt="", answer=""),
            rollouts=tuple(written(text, known[text][2]) for text in members),
            verdicts=(Verdict(outcome=Outcome.WRONG, correct=False),) * 2,
            rewards=tuple(Reward(total=REWARD[text]) for text in members),
        )
        batch = Batch(groups=(group,), update=0)
        credits = leave_one_out(batch, None)
        for name in wrap:
            credits = WRAPPERS[name](credits, batch, None)
        masks = [rollout.loss_mask for rollout in batch.rollouts]
        weights = token_weights(masks, [0, 0], aggregation=aggregation, constant_length=2)
        for text, credit, weight in zip(members, credits, weights, strict=True):
            both = known[members[0]][0] * known[members[1]][0]
            total += both * sum(w * a * s for w, a, s in zip(weight, credit.advantages, known[text][1], strict=True))
    return total


@pytest.mark.parametrize("fixed", [False, True])
@pytest.mark.parametrize("wrap", [(), ("positive_only",), ("confident_mask",), ("fork_mask",)])
@pytest.mark.parametrize("aggregation", ["constant", "token_mean", "sequence_mean", "prompt_mean"])
def test_the_verdict_is_what_enumeration_finds(aggregation, wrap, fixed):
    logits = np.array([[-80.0, 0.0] if fixed else [0.3, 0.1], [-3.0, 0.2]])
    known = {text: score(logits, text) for text in TEXTS}
    truth = sum(p * REWARD[text] * sum(scores) for text, (p, scores, _) in known.items())
    found = expected_gradient(known, aggregation=aggregation, wrap=wrap, fixed=fixed)
    cosine = (found * truth).sum() / np.linalg.norm(found) / np.linalg.norm(truth)
    said = verdict(f"stage.rl.aggregation={aggregation}", f"stage.rl.credit.wrap={list(wrap)}", fixed_length=fixed)
    if said.unbiased:
        assert cosine == pytest.approx(1.0, abs=1e-6)
    elif not fixed:
        # With one decision only left, every gradient points the same way.
        assert cosine < 1 - 1e-6
