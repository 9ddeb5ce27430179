"""Where the answer comes from: curves by hand, and models that are known to guess, to reason, or to be lucky."""

import math
from dataclasses import replace
from itertools import permutations

import numpy as np
import pytest
from subject_example import Asked, ScriptedSubject, group, written

from forkpoint.audits.early_answers import Curve, broken, chains, curves_of, cut_places, given_curves
from forkpoint.audits.premature_confidence import (
    PREMATURE,
    area,
    is_premature,
    largest_fall,
    lucky,
    planned_cost,
    premature_confidence,
    spearman,
)
from forkpoint.audits.rows import records_of
from forkpoint.records import Severity, Span, SpanKind
from forkpoint.seeds import Key
from forkpoint.tasks.arithmetic import Arithmetic

KEY, RECORDS = Key.root(1), records_of([])


def curve(values):
    values = np.array(values, dtype=np.float64)
    return Curve(shares=np.linspace(0, 1, len(values)), given=values, right=None)


def test_rank_correlations_by_hand():
    assert spearman(np.arange(11) / 10) == 1
    assert spearman(np.arange(11)[::-1] / 10) == -1
    # Ten ties and one that is higher: the correlation of a step, 5.5 sqrt(10) / 11 / sqrt(10).
    assert spearman(np.array([0.0] * 10 + [1.0])) == pytest.approx(0.5)
    # Ranks 1.5, 1.5, 3.5, 3.5 against 1 to 4: 2 / sqrt(5 * 4).
    assert spearman(np.array([0.2, 0.2, 0.9, 0.9])) == pytest.approx(4 / math.sqrt(20))
    assert spearman(np.array([0.1, 0.9, 0.1])) == 0


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.9] * 11, 1.0),
        ([0.88, 0.9, 0.91, 0.89, 0.92, 0.93], 1.0),
        (np.arange(11) / 10, 0.0),
        ([0.0] * 10 + [1.0], 0.0),
        ([1.0, 0.8, 0.5, 0.2], 1.0),
    ],
)
def test_flat_and_falling_confidence_is_premature(values, expected):
    assert is_premature(curve(values)) == expected


def test_mere_noise_is_sick():
    """Six orders of three confidences, three of them rise (correlations 1, 0.5, 0.5), so half are premature."""
    shares = [is_premature(curve(np.array(order))) for order in permutations([0.1, 0.2, 0.3])]
    assert np.mean(shares) == 0.5
    assert PREMATURE.grade(0.5) is Severity.CRITICAL
    assert PREMATURE.grade(0.3) is Severity.WARNING
    assert PREMATURE.grade(0.2) is Severity.INFO


def test_too_few_cuts_and_no_answer_are_not_classified():
    assert math.isnan(is_premature(curve([0.1, 0.9])))
    assert math.isnan(is_premature(Curve(shares=np.arange(3) / 2, given=None, right=None)))


def test_area_and_falls_by_hand():
    assert area(np.array([0.0, 1.0]), np.array([1.0, 1.0])) == 1
    assert area(np.array([0.0, 0.25, 1.0]), np.array([0.0, 0.4, 0.8])) == pytest.approx(0.05 + 0.45)
    assert largest_fall(np.array([0.5, 0.2, 0.9, 0.85])) == pytest.approx(0.3)
    assert largest_fall(np.array([0.1, 0.2])) == 0


def test_eleven_cuts_from_the_first_to_the_last():
    assert cut_places(0, 100, range(100)) == [0, 10, 20, 30, 40, 50, 60, 70, 80, 90, 100]
    assert cut_places(2, 5, []) == [2, 3, 4, 5]
    assert cut_places(0, 10, [0, 4, 6]) == [0, 4, 6, 10]


def groups_of(count=12, *, correct=True):
    """Chains of three steps about letters; the answer of problem k is k."""
    made = []
    for k in range(count):
        letter = chr(97 + k)
        made.append(group(f"{letter}?", [f"{letter}1;{letter}2;{letter}3;#{k}\n"], answer=str(k), correct=[correct]))
    return made


def reasoner(context, text):
    """Sure of the answer that the steps after the prompt are about, in as far as there are three of them."""
    chain = context.partition("?")[2]
    known = chain.count(";") / 3
    right = text == f"{ord(chain[0]) - 97}\n" if ";" in chain else False
    return math.log(0.05 + 0.9 * known * right)


def guesser(context, text):
    """Sure of the answer that goes with the prompt, whatever the steps are."""
    return math.log(0.95 if text == f"{ord(context[0]) - 97}\n" else 0.001)


def test_the_questions_are_asked_behind_the_mark_once_each():
    groups = groups_of(2)
    subject = ScriptedSubject(groups, reasoner, task=Asked())
    found = chains(groups, subject, KEY)
    assert [chain.cuts for chain in found] == [(0, 3, 6, 9)] * 2
    assert [bytes(chain.answer.astype(np.uint8)) for chain in found] == [b"0\n", b"1\n"]
    curves = curves_of(found, subject)
    assert ("a?a1;#", "0\n") in subject.asked
    # The given answer is asked first and the right one is the same, but each call asks for itself.
    assert len(subject.asked) == 2 * 4 * 2
    assert curves[0].given == pytest.approx([0.05, 0.35, 0.65, 0.95], rel=1e-5)
    assert curves[0].right == pytest.approx(curves[0].given)
    assert curves[0].shares == pytest.approx([0, 1 / 3, 2 / 3, 1])
    assert broken(found, subject) == pytest.approx([0.05, 0.05], rel=1e-5)
    assert ("a?b1;b2;b3;#", "0\n") in subject.asked


def test_a_reasoner_is_well_and_a_guesser_is_sick():
    groups = groups_of(40)
    told = premature_confidence(RECORDS, ScriptedSubject(groups, reasoner, task=Asked()))
    assert [finding.severity for finding in told] == [Severity.INFO] * 4
    assert [finding.value for finding in told] == pytest.approx([0, 0.5, 0, 0], rel=1e-5)
    told = premature_confidence(RECORDS, ScriptedSubject(groups, guesser, task=Asked()))
    premature, shortcut, unmoved, luck = told
    assert premature.severity is unmoved.severity is Severity.CRITICAL
    assert (premature.value, unmoved.value, luck.value) == (1, 1, 0)
    assert len(premature.evidence) == 8
    assert shortcut.value == pytest.approx(0.95, rel=1e-5)
    assert shortcut.severity is Severity.INFO


def test_the_area_is_held_against_the_base():
    groups = groups_of()
    base = ScriptedSubject(groups, reasoner, task=Asked())
    told = premature_confidence(RECORDS, ScriptedSubject(groups, guesser, task=Asked(), base=base))
    assert told[1].severity is Severity.CRITICAL
    assert told[1].value == pytest.approx(0.45, rel=1e-5)


def test_where_the_steps_are_the_answer_nothing_is_called_a_shortcut():
    class Moves(Asked):
        answer_lead = ""

    groups = groups_of()
    base = ScriptedSubject(groups, lambda _context, _text: math.log(0.1), task=Moves())
    subject = ScriptedSubject(groups, lambda _context, _text: math.log(0.9), task=Moves(), base=base)
    told = premature_confidence(RECORDS, subject)
    (shortcut,) = (finding for finding in told if "against the base" in finding.claim)
    assert shortcut.value > 0.25
    assert shortcut.severity is Severity.INFO
    assert "the answer itself" in shortcut.claim


def test_a_step_that_lowered_the_chance_makes_a_success_lucky():
    groups = groups_of(4)
    groups[3] = groups_of(4, correct=False)[3]
    slope = {0: 0.6, 1: 0.3, 2: 0.6, 3: 0.9}

    def answer(context, text):
        steps = context.partition("?")[2].count(";")
        falls = context[0] in "ad"
        return math.log(slope[steps] if falls else 0.5 + steps / 10)

    subject = ScriptedSubject(groups, answer, task=Asked())
    found = chains(groups, subject, KEY)
    values, wrong = lucky(found, curves_of(found, subject), subject.task)
    assert values[:3].tolist() == [1, 0, 0]
    assert math.isnan(values[3])
    assert not wrong.any()


def test_the_step_check_of_a_task_finds_wrong_steps_in_right_rollouts():
    # 3+4 is 7 and 7*2 is 14; the second text errs twice and is right in the end.
    groups = [group("3+4*2", ["3+4=7;7*2=14;#14\n", "3+4=8;8*2=14;#14\n"], answer="14")]
    subject = ScriptedSubject(groups, lambda _context, _text: -1.0, task=Arithmetic())
    found = chains(groups, subject, KEY)
    values, wrong = lucky(found, curves_of(found, subject), subject.task)
    assert values.tolist() == [0, 1]
    assert wrong.tolist() == [False, True]
    told = premature_confidence(RECORDS, subject)
    assert told[-1].value == 0.5
    assert told[-1].evidence == ("3+4*2-1",)
    assert "1 by the task's step check" in told[-1].claim


def test_the_chain_of_another_problem_with_the_same_answer_breaks_nothing_and_is_passed_over():
    texts = {"a?": "a1;#7", "b?": "b1;#7", "c?": "c1;#8"}
    groups = [group(prompt, [text, text], answer=text[-1]) for prompt, text in texts.items()]
    subject = ScriptedSubject(groups, lambda _context, _text: -1.0, task=Asked())
    found = chains(groups, subject, KEY)
    subject.asked = []
    assert np.isfinite(broken(found, subject)).all()
    assert {context for context, _ in subject.asked} == {"a?c1;#", "b?c1;#", "c?a1;#"}
    alike = chains(groups[:2], subject, KEY)
    assert np.isnan(broken(alike, subject)).all()


def test_what_closes_the_thinking_is_given_with_what_leads_to_the_answer():
    think = Span(start=1, end=5, kind=SpanKind.THINK, policy_version=0)
    made = group("a?", ["x"])
    rollout = written("r", "<1;2;>so #7", prompt="a?", spans=(think,))
    groups = [replace(made, rollouts=(rollout,))]
    subject = ScriptedSubject(groups, lambda _context, _text: -1.0, task=Asked())
    (chain,) = chains(groups, subject, KEY)
    assert (chain.start, chain.end, chain.cuts) == (1, 5, (1, 3, 5))
    given_curves([chain], subject)
    assert subject.asked == [("a?<>so #", "7"), ("a?<1;>so #", "7"), ("a?<1;2;>so #", "7")]


def test_a_rollout_without_an_answer_is_left_out_and_one_without_a_lead_says_less():
    class Silent:
        answer_lead = ""

    groups = [group("a?", ["a1;a2"], answer="0")]
    assert premature_confidence(RECORDS, ScriptedSubject(groups, guesser, task=Asked())) == []
    assert premature_confidence(RECORDS, ScriptedSubject(groups, guesser, task=Silent())) == []
    assert premature_confidence(RECORDS) == []
    assert planned_cost(groups_of(3)) == {"scored_tokens": 3 * 9 * 11 * 2, "sampled_tokens": 0}
