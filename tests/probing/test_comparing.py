"""Two models at once: against plain softmax tables, alone and in company, and texts that both write."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from forkpoint.audits.early_answers import chains, curves_of
from forkpoint.audits.premature_confidence import premature_confidence
from forkpoint.audits.rows import Row, records_of
from forkpoint.audits.subject import Comparing, Subject, attempts
from forkpoint.audits.table import run_audits
from forkpoint.audits.template_collapse import cross_scores, template_collapse
from forkpoint.audits.token_edits import token_edits
from forkpoint.errors import ContextError, ForkpointError
from forkpoint.policies import causal
from forkpoint.policies.causal import CausalPolicy
from forkpoint.policies.distributions import top_tokens
from forkpoint.policies.texts import Texts, alphabet_tokenizer
from forkpoint.policies.tiny import build_decoder
from forkpoint.probe import SampleRequest, ScoreRequest
from forkpoint.probing.comparing import SubjectPlan, SubjectProbe
from forkpoint.probing.local import BranchPlan, LocalProbe
from forkpoint.records import Group, Rollout, frozen_array
from forkpoint.sampling.engine import LocalSampler
from forkpoint.seeds import Key
from forkpoint.tasks.arithmetic import Arithmetic, Settings
from forkpoint.verifiers.guard import guarded

TASK = Arithmetic(Settings(terms=3))
BUDGET = 14
KEY = Key.root(9)


def make_policy(seed: int, *, extra: str = "") -> CausalPolicy:
    tokenizer = alphabet_tokenizer(f"{TASK.alphabet}{extra}")
    model = build_decoder(
        shape="llama", vocabulary=len(tokenizer), layers=1, width=16, heads=2, context=64, key=Key.root(seed)
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(6.0)
    return CausalPolicy(model, Texts(tokenizer))


def local(policy: CausalPolicy, name: str) -> LocalProbe:
    plan = BranchPlan(task=TASK, key=KEY.child(name), max_new_tokens=BUDGET)
    return LocalProbe(policy, LocalSampler(policy, slots=8), guarded(TASK.verify), plan=plan)


def make_subject(
    mine: CausalPolicy, theirs: CausalPolicy | None, groups: tuple[Group, ...] = (), *, tokens: int = 8192
) -> SubjectProbe:
    plan = SubjectPlan(task=TASK, key=KEY.child("policy"), max_new_tokens=BUDGET)
    base = None if theirs is None else local(theirs, "base")
    return SubjectProbe(
        mine, LocalSampler(mine, slots=8), guarded(TASK.verify), plan=plan, groups=groups, base=base,
        max_batch_tokens=tokens,
    )  # fmt: skip


def sampled(policy: CausalPolicy, count: int = 4, each: int = 2) -> tuple[Group, ...]:
    probe, groups = local(policy, "policy"), []
    for number in range(count):
        problem = TASK.problem(KEY.child("problem", number))
        rollouts = probe.sample(
            [
                SampleRequest(
                    key=KEY.child(number, index), problem=problem, prompt_tokens=probe.encode_prompt(problem.prompt),
                    group_id=str(number), stage="rl", update=1, index=index, max_new_tokens=4 + 5 * index,
                    stop=TASK.stop(problem),
                )
                for index in range(each)
            ]
        )  # fmt: skip
        groups.append(Group(problem=problem, rollouts=tuple(rollouts), verdicts=tuple(probe.verify(problem, rollouts))))
    return tuple(groups)


def solved(policy: CausalPolicy) -> tuple[Group, ...]:
    """Rollouts that say what the task says, two for each problem."""
    made = []
    for group in sampled(policy):
        text = TASK.solve(group.problem)
        tokens = policy.texts.encode(text)
        ones = frozen_array(np.ones(len(tokens)), np.bool_)
        zeros = frozen_array(np.zeros(len(tokens)), np.float32)
        rollouts = tuple(
            replace(each, text=text, tokens=tokens, loss_mask=ones, behavior_logprobs=zeros, spans=())
            for each in group.rollouts
        )
        made.append(replace(group, rollouts=rollouts))
    return tuple(made)


def rollouts_of(groups: tuple[Group, ...]) -> list[Rollout]:
    return [rollout for group in groups for rollout in group.rollouts]


def table(policy: CausalPolicy, prompt: np.ndarray, tokens: np.ndarray) -> torch.Tensor:
    """Log-probabilities of the token at each place after the prompt, [T, V]."""
    ids = torch.from_numpy(np.concatenate([prompt, tokens]).astype(np.int64))[None]
    with torch.no_grad():
        return torch.log_softmax(policy.model(ids).logits[0, len(prompt) - 1 : -1].double(), -1)


@pytest.fixture(scope="module")
def pair() -> tuple[CausalPolicy, CausalPolicy]:
    return make_policy(1), make_policy(2)


@pytest.fixture(scope="module")
def groups(pair: tuple[CausalPolicy, CausalPolicy]) -> tuple[Group, ...]:
    return sampled(pair[0])


def test_it_is_what_audits_ask_for(pair, groups):
    subject = make_subject(*pair, groups)
    assert isinstance(subject, Subject)
    assert isinstance(subject, Comparing)
    assert not isinstance(local(pair[0], "policy"), Subject)


def test_comparisons_are_those_of_plain_tables(pair, groups):
    subject = make_subject(*pair, groups)
    rollouts = rollouts_of(groups)
    for rollout, found in zip(rollouts, subject.compared(rollouts), strict=True):
        p, q = (table(policy, rollout.prompt_tokens, rollout.tokens) for policy in pair)
        tops = p.argmax(-1)
        ranks = [1 + int((q[t] > q[t, tops[t]]).sum()) for t in range(len(tops))]
        mixture = ((p.exp() + q.exp()) / 2).log()
        divergence = ((p.exp() * (p - mixture)).sum(-1) + (q.exp() * (q - mixture)).sum(-1)) / 2
        assert found.tops.tolist() == tops.tolist()
        assert found.ranks.tolist() == ranks
        assert np.allclose(found.entropies, -(q.exp() * q).sum(-1), atol=1e-5)
        assert np.allclose(found.divergences, divergence, atol=1e-6)
        assert 0 < found.divergences.max() <= math.log(2) + 1e-6
    kept = top_tokens(*pair, rollouts)
    assert all((one.ranks == two.ranks).all() for one, two in zip(kept, subject.compared(rollouts), strict=True))
    assert subject.cost["scored_tokens"] == 4 * sum(len(rollout.tokens) for rollout in rollouts)


def test_a_model_is_like_itself(pair, groups):
    subject = make_subject(pair[0], pair[0], groups)
    for found in subject.compared(rollouts_of(groups)):
        assert (found.ranks == 1).all()
        assert np.abs(found.divergences).max() < 1e-7
    told = token_edits(records_of([]), subject)
    assert told[0].value == 0
    assert "0.0%" in told[0].claim


def test_company_padding_and_chunks_change_nothing(pair, groups, monkeypatch):
    rollouts = rollouts_of(groups)
    subject = make_subject(*pair, groups)
    together = subject.compared(rollouts)
    for place, rollout in enumerate(rollouts):
        (alone,) = subject.compared([rollout])
        assert alone.tops.tolist() == together[place].tops.tolist()
        assert np.allclose(alone.divergences, together[place].divergences, atol=1e-6)
        assert np.allclose(alone.entropies, together[place].entropies, atol=1e-5)
    sizes = []
    logits = CausalPolicy.logits
    monkeypatch.setattr(causal, "MAX_LOGITS", 1)
    monkeypatch.setattr(
        CausalPolicy, "logits", lambda self, hidden: (sizes.append(len(hidden)), logits(self, hidden))[1]
    )
    chunked = make_subject(*pair, groups, tokens=20).compared(rollouts[::-1])[::-1]
    assert set(sizes) == {1}
    assert all(np.allclose(a.divergences, b.divergences, atol=1e-6) for a, b in zip(chunked, together, strict=True))
    assert all((a.ranks == b.ranks).all() for a, b in zip(chunked, together, strict=True))


def test_tokens_that_were_not_sampled_are_left_out(pair, groups):
    rollout = rollouts_of(groups)[1]
    mask = frozen_array(np.arange(len(rollout.tokens)) % 2 == 0, np.bool_)
    (found,) = make_subject(*pair, groups).compared([replace(rollout, loss_mask=mask)])
    assert ((found.ranks > 0) == mask).all()
    assert not found.entropies[~mask].any()


def test_edited_texts_take_the_trained_model_where_the_two_differ(pair, groups):
    mine, theirs = pair
    subject = make_subject(mine, theirs, groups)
    starts = attempts(groups)
    made = subject.edited(starts, None)
    assert [one.rollout.tokens.tolist() for one in made] == [
        one.rollout.tokens.tolist() for one in subject.edited(starts, None)
    ]
    for start, one in zip(starts, made, strict=True):
        tokens, prompt = one.rollout.tokens, start.rollout.prompt_tokens
        p, q = table(mine, prompt, tokens), table(theirs, prompt, tokens)
        differ = np.flatnonzero((p.argmax(-1) != q.argmax(-1)).numpy()).tolist()
        assert list(one.places) == differ
        assert tokens[differ].tolist() == p.argmax(-1)[differ].tolist()
        assert not one.unfinished
        assert one.rollout.temperature == start.rollout.temperature
        assert len(tokens) <= BUDGET
        # The text ends with the first end of a line, also where the trained model wrote it.
        assert "\n" not in one.rollout.text[:-1]


def test_no_places_leave_the_base_alone_and_chosen_ones_are_kept(pair, groups):
    mine, theirs = pair
    subject = make_subject(mine, theirs, groups)
    starts = attempts(groups)
    nowhere = subject.edited(starts, [frozen_array([], np.int32)] * len(starts))
    assert all(one.places == () and not one.unfinished for one in nowhere)
    assert subject.cost["sampled_tokens"] == 0
    chosen = [frozen_array([0, 2], np.int32)] * len(starts)
    for start, alone, one in zip(starts, nowhere, subject.edited(starts, chosen), strict=True):
        tops = table(mine, start.rollout.prompt_tokens, one.rollout.tokens).argmax(-1)
        assert list(one.places) == [place for place in (0, 2) if place < len(one.rollout.tokens)]
        assert all(one.rollout.tokens[place] == tops[place] for place in one.places)
        if int(tops[0]) == int(alone.rollout.tokens[0]) and len(alone.rollout.tokens) > 1:
            assert one.rollout.tokens[1] == alone.rollout.tokens[1]


def test_a_base_of_other_tokens_is_refused(pair, groups):
    with pytest.raises(ForkpointError, match="they must be the same"):
        make_subject(pair[0], make_policy(3, extra="xy"), groups).compared(rollouts_of(groups))
    with pytest.raises(ForkpointError, match="no base model"):
        make_subject(pair[0], None, groups).compared(rollouts_of(groups))


def test_cross_scores_do_not_depend_on_company(pair, groups):
    written = solved(pair[0])
    whole = cross_scores(written, make_subject(*pair), KEY)
    small = cross_scores(written, make_subject(*pair, tokens=10), KEY)
    assert whole is not None
    assert small is not None
    assert whole.table.shape == (8, 4)
    assert np.allclose(whole.table, small.table, atol=1e-4)
    for place, one in enumerate(attempts(written)):
        end = one.rollout.text.index("#")
        request = ScoreRequest(prompt_tokens=one.rollout.prompt_tokens, tokens=one.rollout.tokens[:end])
        (alone,) = local(pair[0], "x").score([request])
        assert whole.table[place, whole.own[place]] == pytest.approx(alone.sum(), abs=1e-4)


def test_early_answers_do_not_depend_on_company(pair):
    written = solved(pair[0])
    curves = []
    for tokens in (8192, 12):
        subject = make_subject(*pair, written, tokens=tokens)
        found = chains(written, subject, KEY)
        curves.append(curves_of(found, subject))
    assert len(curves[0]) == 8
    for one, other in zip(*curves, strict=True):
        assert len(one.shares) >= 3
        assert np.allclose(one.given, other.given, atol=1e-6)
        # The written text is right, so both answers are the same.
        assert np.allclose(one.right, one.given, atol=1e-6)


def test_all_three_audits_run_on_a_model_that_knows_nothing(pair, groups):
    subject, records = make_subject(*pair, groups), records_of([])
    for audit in (token_edits, premature_confidence, template_collapse):
        told = audit(records, subject)
        assert all(math.isfinite(finding.value) for finding in told)
    assert len(token_edits(records, subject)) == 5


def test_a_base_with_a_shorter_context_is_not_compared_and_the_rest_is_asked() -> None:
    mine, theirs = make_policy(1), make_policy(2)
    groups = sampled(mine)
    longest = max(len(rollout.prompt_tokens) + len(rollout.tokens) for group in groups for rollout in group.rollouts)
    theirs.context_length = longest - 1
    subject = make_subject(mine, theirs, groups)
    with pytest.raises(ContextError, match=rf"comparing with the base: .* context of {longest - 1}"):
        subject.compared([rollout for group in groups for rollout in group.rollouts])
    # The texts fit, the budget of a fresh text of the base may not.
    theirs.context_length = longest
    prompts = max(len(group.rollouts[0].prompt_tokens) for group in groups)
    assert prompts + BUDGET > longest
    with pytest.raises(ContextError, match=rf"a text of the base: .* and {BUDGET} tokens after it"):
        subject.edited(attempts(groups), None)
    rows = records_of([Row(id="a", problem="p")])
    asked = ["token_edits", "template_collapse"]
    results = {one.audit: one for one in run_audits(rows, only=asked, probe=subject)}
    assert "a text of the base" in results["token_edits"].why
    assert results["template_collapse"].ran
