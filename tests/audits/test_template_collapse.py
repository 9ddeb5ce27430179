"""Mutual information of prompt and reasoning: by hand, and on policies whose information is known."""

import math

import numpy as np
import pytest
from subject_example import ScriptedSubject, codes, group, written

from forkpoint.audits.rows import records_of
from forkpoint.audits.template_collapse import (
    CrossScores,
    collapse,
    cross_scores,
    findings,
    planned_cost,
    pointwise,
    template_collapse,
)
from forkpoint.records import Severity, Span, SpanKind
from forkpoint.seeds import Key

KEY = Key.root(0)


def scores(table, own, *, problems=None, lengths=None):
    own = np.array(own)
    return CrossScores(
        table=np.array(table, dtype=np.float64),
        own=own,
        lengths=np.full(len(own), 4) if lengths is None else np.array(lengths),
        problems=own.astype(np.uint64) if problems is None else np.array(problems, dtype=np.uint64),
    )


def channel(prompts, keep):
    """log p(z | x): the prompt's own word with probability `keep`, else any word, all alike."""
    return np.log(np.full((prompts, prompts), (1 - keep) / prompts) + keep * np.eye(prompts) + 1e-300)


def information(prompts, keep):
    """Closed form: log P less the entropy of a row."""
    own, other = keep + (1 - keep) / prompts, (1 - keep) / prompts
    return math.log(prompts) + own * math.log(own) + (prompts - 1) * (other * math.log(other) if other else 0.0)


def test_two_by_two_by_hand():
    # p(z1|x1) = .8, p(z1|x2) = .2, p(z2|x1) = .4, p(z2|x2) = .4: both are written at x1 and at x2.
    made = scores(np.log([[0.8, 0.2], [0.4, 0.4]]), [0, 1])
    matched, marginal = pointwise(made)
    assert matched == pytest.approx(np.log([0.8, 0.4]))
    assert marginal == pytest.approx(np.log([0.5, 0.4]))
    found = collapse(made, KEY)
    assert found.information == pytest.approx(math.log(1.6) / 2)
    assert found.entropy == pytest.approx(-math.log(0.32) / 2)
    assert found.marginal_entropy == pytest.approx(found.entropy + found.information)
    assert found.entropy_per_token == pytest.approx(found.entropy / 4)
    # The first is told apart, the second is a tie of two.
    assert found.retrieval == pytest.approx(0.75)
    assert (found.chance, found.cap) == (0.5, math.log(2))
    assert found.spread == pytest.approx(abs(math.log(0.5 / 0.4)) / 2)
    assert found.z_score == pytest.approx(found.information / (found.spread + 1e-3))
    assert collapse(made, KEY, earlier=1.0).spread == pytest.approx(0.9 + 0.1 * found.spread)


def test_a_function_of_the_prompt_has_all_of_its_information_and_a_template_none():
    full = collapse(scores(channel(8, 1.0), range(8)), KEY)
    assert full.information == pytest.approx(math.log(8))
    assert (full.share, full.retrieval) == (pytest.approx(1), 1)
    none = collapse(scores(channel(8, 0.0), range(8)), KEY)
    assert (none.information, none.retrieval) == (pytest.approx(0), pytest.approx(1 / 8))
    assert none.interval == pytest.approx((0, 0))
    assert none.entropy == pytest.approx(math.log(8))


def test_the_information_of_a_noisy_policy_lies_in_its_interval():
    prompts, each, keep = 24, 4, 0.5
    table, truth = channel(prompts, keep), information(prompts, keep)
    chance = np.exp(table)
    inside, errors = 0, []
    for number in range(200):
        rng = Key.root(5).child(number).generator()
        own = np.repeat(np.arange(prompts), each)
        words = [rng.choice(prompts, p=chance[prompt] / chance[prompt].sum()) for prompt in own]
        # Row n: the log-probability of the word that was written, after each prompt.
        found = collapse(scores(table[:, words].T, own), Key.root(6).child(number))
        inside += found.interval[0] <= truth <= found.interval[1]
        errors.append(found.information - truth)
    assert 0.9 <= inside / 200 <= 0.99
    assert abs(np.mean(errors)) < 3 * np.std(errors) / math.sqrt(200)


def test_longer_chains_alone_change_nothing():
    table = channel(6, 0.5)
    short = collapse(scores(table, range(6)), KEY)
    # Filler that costs 3 nats after every prompt.
    longer = collapse(scores(table - 3.0, range(6), lengths=[40] * 6), KEY)
    for name in ("information", "retrieval", "spread"):
        assert getattr(longer, name) == pytest.approx(getattr(short, name))
    assert longer.interval == pytest.approx(short.interval)
    assert longer.entropy == pytest.approx(short.entropy + 3)


def test_no_overflow_and_refusals():
    deep = collapse(scores([[-5000.0, -6000.0], [-9000.0, -8000.0]], [0, 1]), KEY)
    assert deep.information == pytest.approx(math.log(2))
    with pytest.raises(ValueError, match="needed are one and two"):
        collapse(scores([[0.0]], [0]), KEY)


def words(prompt, text):
    """One policy: the chain repeats the prompt's letter with probability .97, else any other of 26."""
    return sum(math.log(0.97 if character == prompt[0] else 0.03 / 25) for character in text)


def test_the_probe_is_asked_for_every_pair_once_and_only_for_the_reasoning():
    class Led:
        answer_lead = "#"

    groups = [group(letter, [f"{letter}{letter};#1", f"{letter};#2"]) for letter in "abc"]
    subject = ScriptedSubject(groups, words, task=Led())
    found = cross_scores(groups, subject, KEY)
    assert found.table.shape == (6, 3)
    assert len(subject.asked) == 18
    assert {text for _, text in subject.asked} == {"aa;", "a;", "bb;", "b;", "cc;", "c;"}
    assert {context for context, _ in subject.asked} == {"a", "b", "c"}
    assert found.lengths.tolist() == [3, 2] * 3
    assert found.table[0] == pytest.approx([words(prompt, "aa;") for prompt in "abc"], rel=1e-6)
    assert collapse(found, KEY).share > 0.9
    assert planned_cost(groups) == {"scored_tokens": 3 * (5 * 3 + 4 * 3), "sampled_tokens": 0}


def test_think_spans_are_the_reasoning_and_what_the_policy_did_not_write_is_left_out():
    think = Span(start=1, end=4, kind=SpanKind.THINK, policy_version=0)
    mask = [True, True, False, True, True]
    groups = []
    for letter in "ab":
        made = group(letter, ["x"])
        rollout = written(letter, f"<{letter}{letter}{letter}>", prompt=letter, spans=(think,), mask=mask)
        groups.append(type(made)(problem=made.problem, rollouts=(rollout,), verdicts=made.verdicts))
    subject = ScriptedSubject(groups, words)
    found = cross_scores(groups, subject, KEY)
    assert ("a<", "aaa") in subject.asked
    assert found.lengths.tolist() == [2, 2]
    assert found.table[0, 0] == pytest.approx(2 * math.log(0.97), rel=1e-6)


def test_at_most_64_pairs_over_as_many_problems_as_can_be():
    groups = [group(chr(200 + number), ["abc"] * 4) for number in range(40)]
    subject = ScriptedSubject(groups, words)
    found = cross_scores(groups, subject, KEY)
    assert found.table.shape == (64, 40)
    assert np.bincount(found.problems.astype(int)).min() == 1
    assert cross_scores(groups[:1], subject, KEY) is None


def test_equal_prompts_are_one_column():
    groups = [group("a", ["aa", "aa"]), group("b", ["bb"]), group("a", ["aa"])]
    assert cross_scores(groups, ScriptedSubject(groups, words), KEY).table.shape == (4, 2)


@pytest.mark.parametrize(
    ("keep", "severity"), [(1.0, Severity.INFO), (0.45, Severity.WARNING), (0.0, Severity.CRITICAL)]
)
def test_grades(keep, severity):
    table = channel(16, keep)
    draw = np.exp(table)
    rng = KEY.generator()
    own = np.repeat(np.arange(16), 20)
    chosen = [rng.choice(16, p=draw[prompt] / draw[prompt].sum()) for prompt in own]
    first, beside = findings(collapse(scores(table[:, chosen].T, own), KEY), ["r"])
    assert first.severity is severity
    assert first.interval[0] <= first.value <= first.interval[1]
    assert beside.threshold == 1 / 16
    assert first.evidence == (() if severity is Severity.INFO else ("r",))


def test_the_audit_says_nothing_without_rollouts():
    records = records_of([])
    assert template_collapse(records) == []
    assert template_collapse(records, ScriptedSubject([], words)) == []
    groups = [group(letter, [letter * 3]) for letter in "abcd"]
    told = template_collapse(records, ScriptedSubject(groups, words))
    assert [finding.severity for finding in told] == [Severity.INFO] * 2
    assert "log 4" in told[0].claim
    assert codes("a").tolist() == [97]
