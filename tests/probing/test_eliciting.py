"""Other ways to ask: noise that leaves no trace, leads, temperatures, and what a stage pays for texts."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from test_comparing import KEY, TASK, local, make_policy, make_subject

from forkpoint.audits.canary_answers import Paying
from forkpoint.audits.elicitation import Eliciting, Way
from forkpoint.errors import ContextError
from forkpoint.probe import ScoreRequest
from forkpoint.probing.comparing import SubjectPlan, SubjectProbe
from forkpoint.probing.eliciting import drawn_groups, led, noised
from forkpoint.probing.local import BranchPlan
from forkpoint.records import Outcome, Problem, Verdict
from forkpoint.sampling.engine import LocalSampler
from forkpoint.seeds import Key

PROBLEMS = [TASK.problem(KEY.child("problem", number)) for number in range(3)]


def weights(policy):
    return [weight.detach().clone() for weight in policy.model.parameters()]


def test_noise_has_the_size_that_is_asked_for_and_leaves_no_trace():
    policy = make_policy(1)
    before = weights(policy)
    with noised(policy.model, 0.1, KEY):
        moved = [(now - old).square().mean().sqrt() for now, old in zip(weights(policy), before, strict=True)]
    for change, old in zip(moved, before, strict=True):
        size = old.square().mean().sqrt()
        if old.numel() > 500:
            assert float(change / size) == pytest.approx(0.1, rel=0.15)
        assert float(change) > 0 or float(size) == 0
    assert all(torch.equal(now, old) for now, old in zip(weights(policy), before, strict=True))


def test_weights_return_when_sampling_fails_and_no_noise_touches_nothing():
    policy = make_policy(1)
    before = weights(policy)
    with pytest.raises(ZeroDivisionError), noised(policy.model, 0.5, KEY):
        raise ZeroDivisionError
    assert all(torch.equal(now, old) for now, old in zip(weights(policy), before, strict=True))
    with noised(policy.model, 0.0, KEY):
        assert all(torch.equal(now, old) for now, old in zip(weights(policy), before, strict=True))


def test_the_same_key_gives_the_same_noise():
    policy = make_policy(1)
    found = []
    for key in (KEY, KEY, KEY.child("other")):
        with noised(policy.model, 0.1, key):
            found.append(torch.cat([weight.flatten() for weight in weights(policy)]))
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def drawn(way=None, **options):
    policy = make_policy(1)
    probe = local(policy, "policy")
    plan = BranchPlan(task=TASK, key=KEY.child("drawn"), max_new_tokens=14)
    ways = {} if way is None else {"way": way}
    return probe, drawn_groups(probe, plan, PROBLEMS, samples=2, stage="rl", **ways, **options)


def scored(probe, group, *, lead="", temperature=1.0):
    prompt = probe.encode_prompt(lead + group.problem.prompt)
    return probe.score(
        [
            ScoreRequest(prompt_tokens=prompt, tokens=rollout.tokens, temperature=temperature)
            for rollout in group.rollouts
        ]
    )


@pytest.mark.parametrize(
    ("way", "asked"),
    [
        (None, {}),
        (Way(name="hot", temperature=1.5), {"temperature": 1.5}),
        (Way(name="led", lead="1+1"), {"lead": "1+1"}),
    ],
    ids=["plain", "hot", "led"],
)
def test_what_is_drawn_has_the_likelihood_of_the_way(way, asked):
    probe, groups = drawn(way)
    for group in groups:
        for rollout, score in zip(group.rollouts, scored(probe, group, **asked), strict=True):
            np.testing.assert_allclose(rollout.behavior_logprobs, score, atol=1e-5)
        assert [group.problem.key] * 2 == [rollout.problem_key for rollout in group.rollouts]
        assert "1+1" not in str(group.problem.prompt)[:3]
        assert len(group.verdicts) == 2


def test_noise_is_there_while_texts_are_drawn_and_gone_after():
    probe, groups = drawn(Way(name="noise", noise=0.3))
    apart = [
        np.abs(rollout.behavior_logprobs - score).max()
        for group in groups
        for rollout, score in zip(group.rollouts, scored(probe, group), strict=True)
    ]
    assert min(apart) > 1e-3


def test_a_lead_stands_before_the_text_or_the_first_message_of_the_user():
    plain = PROBLEMS[0]
    assert led(plain, "") is plain
    assert led(plain, "go ").prompt == f"go {plain.prompt}"
    chat = replace(
        plain,
        prompt=(
            {"role": "system", "content": "be brief"},
            {"role": "user", "content": "one"},
            {"role": "user", "content": "two"},
        ),
    )
    assert [message["content"] for message in led(chat, "go ").prompt] == ["be brief", "go one", "two"]
    assert (led(chat, "go ").key, led(chat, "go ").answer) == (plain.key, plain.answer)


def test_a_lead_that_does_not_fit_the_context_is_one_line():
    with pytest.raises(ContextError, match="rl"):
        drawn(Way(name="long", lead="1" * 64))


def test_the_subject_asks_in_every_way_from_streams_of_their_own():
    policy = make_policy(1)
    subject = make_subject(policy, None)
    assert isinstance(subject, Eliciting)
    texts = [
        [rollout.text for group in subject.drawn(way, PROBLEMS, 2) for rollout in group.rollouts]
        for way in (Way(name="one"), Way(name="one"), Way(name="two"))
    ]
    assert texts[0] == texts[1] != texts[2]
    before = weights(policy)
    subject.drawn(Way(name="noise", noise=0.2), PROBLEMS, 1)
    assert all(torch.equal(now, old) for now, old in zip(weights(policy), before, strict=True))


@pytest.mark.parametrize(("pays", "expected"), [("correct", [1.0, 0.0, None, 0.0]), ("score", [0.25, 1.0, None, None])])
def test_a_text_is_paid_what_the_stage_pays(pays, expected):
    said = {
        "right": Verdict(outcome=Outcome.CORRECT, correct=True, score=0.25),
        "hole": Verdict(outcome=Outcome.WRONG, correct=False, score=1.0),
        "late": Verdict(outcome=Outcome.ERROR, correct=None),
        "bare": Verdict(outcome=Outcome.WRONG, correct=False),
    }
    policy = make_policy(1)
    plan = SubjectPlan(task=TASK, key=Key.root(1), max_new_tokens=14, pays=pays)
    subject = SubjectProbe(policy, LocalSampler(policy, slots=8), lambda _, rollout: said[rollout.text], plan=plan)
    assert isinstance(subject, Paying)
    assert subject.paid(Problem(task="t", key="a", prompt="p", answer="1"), list(said)) == expected
