r"""Mathematical answers: verdicts written by hand, known mis-readings of math-verify, and hostile answers."""

import importlib.util
import re
import time

import pytest

from forkpoint.errors import VerifierError
from forkpoint.records import Outcome
from forkpoint.verifiers import mathematics
from forkpoint.verifiers.mathematics import MathScorer, exact_equal, require_math

C, W, U, E = Outcome.CORRECT, Outcome.WRONG, Outcome.UNPARSEABLE, Outcome.ERROR

# Answer, reference, verdict.  These need no math-verify.
EXACT = [
    ("7", "7", C),
    (r"\boxed{7}", "7", C),
    ("7.", "7", C),
    (r"$\frac{2}{4}$", "0.5", C),
    (r"\dfrac{-1}{2}", r"\frac{-1}{2}", C),
    (r"-\tfrac{1}{2}", "-0.5", C),
    (r"12{,}000", "12000", C),
    (r"1\,000", "1000", C),
    ("1e3", "1000", C),
    ("0.1234567", "0.1234568", W),
    (r"50\%", "0.5", C),
    ("50%", r"50\%", C),
    (r"50\%", "50", W),
    ("50", r"50\%", W),
    ("(1,2)", "(1, 2)", C),
    ("(2,1)", "(1,2)", W),
    ("(1,2)", "[1,2]", W),
    ("(1,2)", r"\{1,2\}", W),
    (r"\{1,\sqrt{2}\}", r"[1,\sqrt{2}]", W),
    (r"\left(1,\frac{1}{2}\right)", "(1,0.5)", C),
    ("12:30", "12:30", C),
    ("2 : 5", "2:5", C),
    (r"\frac{2}{5}", "12:30", W),
    ("A", "a", W),
    ("x^2+A", "x^2+a", W),
    (r"\text{even}", "Even", C),
    ("odd", r"\text{even}", W),
    ("I don't know", r"\sqrt{2}", Outcome.DECLINED),
    (None, r"\sqrt{2}", U),
    ("1" * 2000, r"\sqrt{2}", U),
]
ALGEBRA = [
    (r"\frac{2}{\sqrt{2}}", r"\sqrt{2}", C),
    (r"\sqrt{12}", r"2\sqrt{3}", C),
    (r"3\sqrt{2}", r"2\sqrt{3}", W),
    (r"\sqrt2", r"\sqrt{2}", C),
    ("1.41421356", r"\sqrt{2}", W),
    ("1.5707963", r"\frac{\pi}{2}", W),
    (r"\pi/2", r"\frac{\pi}{2}", C),
    (r"\frac12", "0.5", C),
    ("0.333333333", r"\frac13", W),
    ("1+x", "x+1", C),
    ("2x+3", "3x+2", W),
    ("x^2-1", "(x-1)(x+1)", C),
    ("x^2+1", "(x-1)(x+1)", W),
    ("x^{10}", "x^10", C),
    ("x^{10}", "x^{1}0", W),
    ("yx", "xy", C),
    (r"\frac{1}{1+x}", r"\frac{1}{x+1}", C),
    ("3", "x=3", C),
    ("x=3", "x=3", C),
    ("4", "x=3", W),
    (r"\sqrt{4}", "2", C),
    (r"\sqrt[3]{8}", "2", C),
    (r"\log_2 8", "3", C),
    (r"\binom{5}{2}", "10", C),
    ("5!", "120", C),
    ("2^{10}", "1024", C),
    (r"2\cdot 3^2", "18", C),
    (r"\sin^2 x+\cos^2 x", "1", C),
    (r"\{2,1\}", r"\{1,2\}", C),
    (r"\{1,3\}", r"\{1,2\}", W),
    (r"\{1,2,3\}", r"\{1,2\}", W),
    (r"(\sqrt{2},1)", r"(1,\sqrt{2})", W),
    (r"[1,\infty)", r"[1,\infty)", C),
    (r"(1,\infty)", r"[1,\infty)", W),
    (r"[3,4)\cup(-1,2]", r"(-1,2]\cup[3,4)", C),
    ("x<3", "x<3", C),
    ("3>x", "x<3", C),
    ("x>3", "x<3", W),
    (r"\infty", r"-\infty", W),
    (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix}1\\2\end{pmatrix}", C),
    (r"\begin{pmatrix}2\\1\end{pmatrix}", r"\begin{pmatrix}1\\2\end{pmatrix}", W),
    (r"\frac{1", r"\sqrt{2}", U),
    (r"\frac{}{}", r"\sqrt{2}", U),
]
HANGS = ["9^{9^{9^9}}", "((100!)!)!", "(x+y+z+1)^{400}"]
NOT_MATHEMATICS = ["", " ", "$", "\\", "{", "}" * 300, "(" * 60, "\x00", "\ud800", "\u202e2", "nan", r"\frac{1}{0}"]

needs_math = pytest.mark.skipif(
    importlib.util.find_spec("math_verify") is None, reason="the extra `math` is not installed"
)


@pytest.fixture(scope="module")
def scorer():
    made = MathScorer(timeout_seconds=30.0)
    yield made
    made.close()


@pytest.mark.parametrize(("answer", "reference", "outcome"), EXACT)
def test_what_needs_no_algebra(answer, reference, outcome, monkeypatch):
    monkeypatch.setattr(mathematics.Worker, "call", None)
    verdict = MathScorer().verdict(answer, reference)
    assert verdict.outcome is outcome
    assert verdict.correct is (outcome is C)


@needs_math
@pytest.mark.parametrize(("answer", "reference", "outcome"), ALGEBRA)
def test_algebra(scorer, answer, reference, outcome):
    verdict = scorer.verdict(answer, reference)
    assert verdict.outcome is outcome, verdict.reason
    assert verdict.correct is (outcome is C)
    assert verdict.answer == answer


@needs_math
@pytest.mark.parametrize("reference", sorted({reference for _, reference, _ in EXACT + ALGEBRA}))
def test_a_reference_is_right_and_its_negation_is_not(scorer, reference):
    assert scorer.verdict(reference, reference).correct
    assert scorer.verdict(rf"\boxed{{{reference}}}", reference).correct
    if re.fullmatch(r"[0-9.]+|\\sqrt\{2\}|2\\sqrt\{3\}", reference):
        assert scorer.verdict(f"-{reference}", reference).outcome is W


@needs_math
def test_hostile_answers_are_errors_or_wrong_within_the_deadline_and_the_next_answer_is_judged():
    made = MathScorer(timeout_seconds=0.6, memory_bytes=1 << 30)
    made.verdict(r"\sqrt{8}", r"2\sqrt{2}")
    for hostile in HANGS:
        began = time.monotonic()
        verdict = made.verdict(hostile, r"\sqrt{2}")
        assert time.monotonic() - began < 3.0
        assert verdict.outcome in (E, W)
        assert verdict.correct is not True
        assert verdict.usable or verdict.reason.startswith("math-verify: ")
    assert made.verdict("9^{9^{9^9}}", "x+1").outcome is E
    made.close()


@needs_math
@pytest.mark.parametrize("text", NOT_MATHEMATICS)
def test_what_is_no_mathematics_is_never_right(scorer, text):
    verdict = scorer.verdict(text, r"\sqrt{2}")
    assert verdict.correct is not True


@needs_math
def test_which_references_can_be_read(scorer):
    assert scorer.can_read(r"\frac{1}{2}")
    assert scorer.can_read(r"\sqrt{2}")
    assert not scorer.can_read(r"\frac{1")
    assert not scorer.can_read("x" * 2000)


@needs_math
def test_a_reference_that_cannot_be_read_is_an_error_not_a_wrong_answer(scorer):
    assert scorer.verdict("x+1", r"\frac{1").outcome is E


def test_a_missing_extra_is_one_line(monkeypatch):
    monkeypatch.setattr(mathematics.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(VerifierError, match=r"pip install 'forkpoint\[math\]'"):
        require_math()
    with pytest.raises(VerifierError, match="extra `math`"):
        MathScorer().can_read(r"\sqrt{2}")
    assert MathScorer().can_read("0.5")


def test_exact_equality_is_symmetric():
    for answer, reference, _ in EXACT + ALGEBRA:
        if answer is not None:
            assert exact_equal(answer, reference) == exact_equal(reference, answer)
