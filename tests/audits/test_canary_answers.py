"""Canary answers: judges with known holes, and a sound one."""

import pytest
from subject_example import ScriptedSubject, group
from test_audit_conformance import HEALTHY

from forkpoint.audits.canary_answers import canary_answers
from forkpoint.audits.reward_hacking import reward_hacking
from forkpoint.conformance import check_audit
from forkpoint.records import Severity


class Paid(ScriptedSubject):
    """Pays what `judge(problem, text)` says."""

    def __init__(self, judge, texts, *, answers=None):
        answers = answers or {letter: str(place) for place, letter in enumerate("abcdefghij")}
        made = [
            group(letter, [text.format(answer) for text in texts], answer=answer, correct=[True] * len(texts))
            for letter, answer in answers.items()
        ]
        super().__init__(made, lambda context, text: 0.0)
        self.judge, self.calls = judge, []

    def paid(self, problem, texts):
        self.calls += [(problem.key, text) for text in texts]
        return [self.judge(problem, text) for text in texts]


def sound(problem, text):
    return float(text.endswith(f"#{problem.answer}"))


def test_a_sound_judge_pays_for_nothing_of_it():
    nothings, borrowed = canary_answers("reward_hacking", Paid(sound, ["x#{}", "y;x#{}"]))
    assert (nothings.severity, nothings.value) == (Severity.INFO, 0.0)
    assert "empty 0%, 42 0%, punctuation 0%, question 0%" in nothings.claim
    assert (borrowed.severity, borrowed.value, borrowed.evidence) == (Severity.INFO, 0.0, ())
    assert "Of 20 texts" in borrowed.claim


def test_a_text_that_is_paid_whatever_is_asked_is_found_without_knowing_it():
    """One of two texts is a trick: half of what is paid."""
    subject = Paid(lambda problem, text: sound(problem, text) or float("trust me" in text), ["x#{}", "trust me"])
    nothings, borrowed = canary_answers("reward_hacking", subject)
    assert nothings.severity is Severity.INFO
    assert (borrowed.severity, borrowed.value) == (Severity.CRITICAL, 0.5)
    assert borrowed.evidence == tuple(f"{letter}-1" for letter in "abcdefgh")


@pytest.mark.parametrize(
    ("hole", "name"),
    [(lambda text: not text, "empty 100%"), (lambda text: text == "42", "42 100%"), (lambda text: ":" in text, "pun")],
)
def test_a_judge_that_pays_for_no_answer_is_sick(hole, name):
    subject = Paid(lambda problem, text: max(sound(problem, text), float(hole(text))), ["x#{}"])
    nothings, borrowed = canary_answers("reward_hacking", subject)
    assert (nothings.severity, nothings.value) == (Severity.CRITICAL, 1.0)
    assert name in nothings.claim
    assert borrowed.severity is Severity.INFO


def test_only_a_price_like_that_of_a_right_answer_counts():
    """A judge that gives 0.3 for trying is generous, not blind; what it cannot tell is left out."""
    subject = Paid(lambda problem, text: None if text == "42" else max(sound(problem, text), 0.3), ["x#{}"])
    nothings, borrowed = canary_answers("reward_hacking", subject)
    assert "like a correct rollout (1 or more)" in nothings.claim
    assert "42" not in nothings.claim.split(":")[1]
    assert (nothings.value, borrowed.value) == (0.0, 0.0)
    # A constant reward of 0 pays nobody.
    (only,) = canary_answers("reward_hacking", Paid(lambda problem, text: 0.0, ["x#{}"]))
    assert only.value == 0.0


def test_texts_go_to_a_problem_with_another_answer():
    subject = Paid(sound, ["x#{}"], answers={"a": "1", "b": " 1", "c": "2"})
    canary_answers("reward_hacking", subject)
    assert [key for key, text in subject.calls if text == "x#2"] == ["c", "c", "a"]
    assert ("c", "x#1") in subject.calls
    assert ("b", "x#1") not in subject.calls
    ring = Paid(sound, ["x#{}"], answers={"a": "1", "b": "2", "c": "3"})
    canary_answers("reward_hacking", ring)
    assert [key for key, text in ring.calls if text == "x#2"] == ["b", "b", "c"]
    same = Paid(sound, ["x#{}"], answers=dict.fromkeys("abc", "1"))
    assert len(canary_answers("reward_hacking", same)) == 1
    unknown = Paid(lambda problem, text: 1.0, ["x"], answers=dict.fromkeys("abc", ""))
    assert len(canary_answers("reward_hacking", unknown)) == 1


def test_the_audit_passes_its_checks():
    subject = Paid(lambda problem, text: 1.0, ["x#{}"])
    found = [
        each for each in reward_hacking(HEALTHY, subject) if "paid" in each.claim and "texts" in each.claim.lower()
    ]
    assert [each.severity for each in found] == [Severity.CRITICAL] * 2
    assert check_audit(reward_hacking, HEALTHY, subject) == []
    plain = ScriptedSubject(subject.groups, lambda context, text: 0.0)
    assert len(reward_hacking(HEALTHY, plain)) == len(reward_hacking(HEALTHY, None))
