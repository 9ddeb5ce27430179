from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forkpoint.verifiers.expression import MAX_DEPTH, evaluate

# A tree is a number or (operation, left, right); its text has only the parentheses that precedence asks for.
TREES = st.recursive(st.integers(0, 20), lambda t: st.tuples(st.sampled_from("+-*/"), t, t), max_leaves=12)
RANK = {"+": 1, "-": 1, "*": 2, "/": 2}


def value_of(tree):
    if isinstance(tree, int):
        return Fraction(tree)
    operation, a, b = tree[0], value_of(tree[1]), value_of(tree[2])
    if a is None or b is None or (operation == "/" and b == 0):
        return None
    return {"+": a + b, "-": a - b, "*": a * b}.get(operation) if operation != "/" else a / b


def text_of(tree, above=0, right=False):
    if isinstance(tree, int):
        return str(tree)
    rank = RANK[tree[0]]
    text = f"{text_of(tree[1], rank)} {tree[0]}{text_of(tree[2], rank, right=True)}"
    return f"({text})" if rank < above or (right and rank == above) else text


def leaves_of(tree):
    return [tree] if isinstance(tree, int) else leaves_of(tree[1]) + leaves_of(tree[2])


@given(TREES)
def test_precedence_and_left_association_agree_with_the_tree(tree):
    found = evaluate(text_of(tree))
    assert found.value == value_of(tree)
    if found.value is not None:
        assert list(found.numbers) == leaves_of(tree)
    else:
        assert found.reason == "division by zero"


@pytest.mark.parametrize(
    ("text", "value"),
    [("7-2-1", 4), ("8/2/2", 2), ("2+3*4", 14), ("(2+3)*4", 20), ("1/3", Fraction(1, 3)), ("((7))", 7)],
)
def test_hand_worked(text, value):
    assert evaluate(text).value == value


@pytest.mark.parametrize(
    "text",
    [
        *("", " ", "()", "(", ")", "1+", "+1", "-1", "1+-1", "1 2", "1(2)", "(1)(2)", "(1)2", "1++1", "(1+2", "1+2)"),
        *("1/0", "1/(2-2)", "0/0", "2**3", "2//3", "1.5", "1e3", "0x1", "1_0", "x", "__import__('os')", "1;2", "1,2"),
        *("\u0661+1", "1\x00", "1\ud800", "1\n+1", "\u00b2", "1234567", "1" * 256, "(" * 5000, "9" * 10**6),
        *("1+" * 500_000, "(" * 33 + "1" + ")" * 33),
    ],
)
def test_no_value_and_a_reason(text):
    found = evaluate(text)
    assert found.value is None
    assert found.reason
    assert found.numbers == ()


def test_bounds_are_exact():
    assert evaluate("(" * MAX_DEPTH + "1" + ")" * MAX_DEPTH).value == 1
    assert evaluate("999999").value == 999999
    assert evaluate("1" + "+1" * 127 + " ").value == 128
    assert evaluate("1" + "+1" * 128).value is None
    assert evaluate("12", max_digits=1).value is None
    assert evaluate("(1)", max_depth=0).value is None
    assert evaluate("*".join(["999999"] * 36)).value == Fraction(999999**36)


@given(st.text(alphabet="0123456789+-*/() x", max_size=30))
def test_never_raises(text):
    evaluate(text)
