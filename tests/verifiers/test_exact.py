from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forkpoint.errors import TaskError
from forkpoint.records import Outcome
from forkpoint.verifiers.exact import (
    MAX_SHOWN,
    choices_equal,
    exact_verdict,
    is_declined,
    numbers_equal,
    parse_choice,
    parse_number,
    parse_tuple,
    tuples_equal,
)

WHOLE = st.integers(-(10**30), 10**30)
RATIOS = st.fractions(max_denominator=10**9, min_value=-(10**12), max_value=10**12)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("12", Fraction(12)),
        ("-12", Fraction(-12)),
        ("+12", Fraction(12)),
        ("007", Fraction(7)),
        ("1,234,567", Fraction(1234567)),
        ("12,345.5", Fraction(24691, 2)),
        ("0.1", Fraction(1, 10)),
        (".5", Fraction(1, 2)),
        ("-.5", Fraction(-1, 2)),
        ("5.", Fraction(5)),
        ("1.2e-3", Fraction(12, 10000)),
        ("2E3", Fraction(2000)),
        ("1e60", Fraction(10) ** 60),
        ("3/4", Fraction(3, 4)),
        ("-3 / 4", Fraction(-3, 4)),
        (r"\frac{3}{4}", Fraction(3, 4)),
        (r"-\dfrac{6}{8}", Fraction(-3, 4)),
        ("$7$", Fraction(7)),
        (" $7$. ", Fraction(7)),
        ("0/5", Fraction(0)),
    ],
)
def test_what_is_a_number(text, value):
    assert parse_number(text) == value


@pytest.mark.parametrize(
    "text",
    [
        *("", " ", ".", "-", "+", "e5", "1e", "1e61", "1e-61", "1e999", "1e1000000000", "9" * 121, "9" * 10**6),
        *("nan", "inf", "-inf", "Infinity", "NaN", "1_000", "1,23", "1,2345", ",123", "12,34,567", "1,000,", "1 000"),
        *("1/0", "1/-2", "1/2/3", "1.5/2", r"\frac{1}{0}", r"\frac{1}", "--1", "+-1", "0x10", "1+1", "5%", "six"),
        *("\u0663", "\uff15", "\u00b2", "\u2167", "\u20135", "5\u06f5", "5\x00", "5\ud800", "5 6", "5\n6"),
    ],
)
def test_what_is_no_number(text):
    assert parse_number(text) is None


@given(WHOLE)
def test_whole_numbers_round_trip(n):
    assert parse_number(str(n)) == parse_number(f"{n:,}") == parse_number(f"{n}.000") == parse_number(f"{n}/1") == n


@given(RATIOS, RATIOS)
def test_fractions_compare_exactly(a, b):
    assert numbers_equal(f"{a.numerator}/{a.denominator}", f"{b.numerator}/{b.denominator}") is (a == b)


@given(st.integers(-(10**12), 10**12), st.integers(0, 12), st.integers(1, 50))
def test_decimals_equal_their_fraction_and_nothing_near(mantissa, places, zeros):
    text = f"{mantissa}e-{places}"
    reference = f"{mantissa}/{10**places}"
    assert numbers_equal(text, reference) is True
    assert numbers_equal(f"{mantissa * 10**zeros + 1}e-{places + zeros}", reference) in (False, None)


@given(RATIOS, RATIOS, st.fractions(0, 100))
def test_a_tolerance_is_absolute_and_includes_its_edge(a, b, tolerance):
    texts = [f"{x.numerator}/{x.denominator}" for x in (a, b)]
    assert numbers_equal(*texts, tolerance=tolerance) is (abs(a - b) <= tolerance)
    assert numbers_equal(*texts, tolerance=abs(a - b)) is True


@given(st.text(max_size=40))
def test_any_text_gets_a_verdict(text):
    assert exact_verdict(text, "5").outcome in set(Outcome)
    tuples_equal(text, "(1, 2)")
    choices_equal(text, "A")


@pytest.mark.parametrize("tolerance", [float("nan"), float("inf"), -1.0])
def test_a_tolerance_must_be_finite_and_not_negative(tolerance):
    with pytest.raises(TaskError, match="tolerance"):
        numbers_equal("1", "1", tolerance=tolerance)


def test_floats_are_not_used():
    assert numbers_equal("0.3", "3/10") is True
    assert numbers_equal("0.30000000000000004", "0.3") is False
    assert numbers_equal("100000000000000000001", "100000000000000000000") is False


def test_tuples():
    assert parse_tuple("(1,234)") == ("()", (Fraction(1), Fraction(234)))
    assert tuples_equal("( 0.5 , 2 )", "(1/2, 2)") is True
    assert tuples_equal("1/2, 2", "(1/2, 2)") is True
    assert tuples_equal("(2, 1/2)", "(1/2, 2)") is False
    assert tuples_equal("(1/2, 2, 0)", "(1/2, 2)") is False
    assert tuples_equal("[0, 1)", "[0, 1]") is False
    assert tuples_equal("(1, 2.1)", "(1, 2)", tolerance=0.25) is True
    assert tuples_equal("(1, 2.5)", "(1, 2)", tolerance=0.25) is False


@pytest.mark.parametrize("text", ["", "()", "(1,)", "(1, x)", "(1, (2, 3))", "1,2,3" * 1000, ",".join("1" * 17), "{1}"])
def test_what_is_no_tuple(text):
    assert parse_tuple(text) is None


def test_choices():
    for text in ("B", "b", "(B)", "B.", "(b).", "$B$", "B)", "B:"):
        assert parse_choice(text) == "B", text
    for text in ("", "AB", "A or B", "K", "1", "\u0410", "B" * 1000, "The answer is B"):
        assert parse_choice(text) is None, text
    assert choices_equal("C", "D") is False
    assert parse_choice("C", choices="AB") is None


def test_declined():
    assert is_declined("I  don't KNOW.")
    assert not is_declined("I don't know, 5")
    assert not is_declined("unknown" * 1000)
    assert exact_verdict("unknown", "5").outcome is Outcome.DECLINED
    assert exact_verdict("?", "5", declined=("?",)).outcome is Outcome.DECLINED


def test_verdicts_are_typed():
    for answer, outcome in [("5.0", Outcome.CORRECT), ("6", Outcome.WRONG), ("x", Outcome.UNPARSEABLE)]:
        verdict = exact_verdict(answer, "5")
        assert (verdict.outcome, verdict.correct, verdict.answer) == (outcome, outcome is Outcome.CORRECT, answer)
    assert exact_verdict(None, "5").outcome is Outcome.UNPARSEABLE
    assert exact_verdict("(1, 2)", "(1,2)", kind="tuple").correct is True
    assert exact_verdict("a", "A", kind="choice").correct is True
    assert exact_verdict("5.05", "5", tolerance=0.1).correct is True
    assert len(exact_verdict("9" * 10**6, "5").answer or "") == MAX_SHOWN


@pytest.mark.parametrize(("reference", "kind"), [("x", "number"), ("(1, x)", "tuple"), ("9", "choice")])
def test_a_reference_that_cannot_be_read_is_the_users_mistake(reference, kind):
    with pytest.raises(TaskError, match="reference"):
        exact_verdict("1", reference, kind=kind)
