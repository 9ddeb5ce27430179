r"""Exact comparison of short answers: integers, fractions, decimals, tuples, choice letters.

What is read as a number (ASCII only, at most `MAX_LENGTH` characters, exponents of at most `MAX_EXPONENT`):
`12`, `-12`, `+12`, `1,234,567`, `0.5`, `.5`, `5.`, `1.2e-3`, `3/4`, `\frac{3}{4}` (also `\dfrac`, `\tfrac`, and
with the sign above the line), each also between dollar signs, in `\text{}` or `**bold**`, or with a full stop behind
it.  The typographic minus U+2212 is read as `-`.
Commas are thousands separators only in groups of three: `1,23` is no number.  Between brackets a comma always
separates: `(1,234)` is a pair.  Refused: digits of other scripts, `nan`, `inf`, `1/0`, underscores.
"""

import math
import re
from collections.abc import Sequence
from fractions import Fraction
from typing import Literal, TypeAlias

from forkpoint.errors import TaskError
from forkpoint.records import Outcome, Verdict

Kind: TypeAlias = Literal["number", "tuple", "choice"]
"""What an answer is read as."""
MAX_LENGTH = 120
"""Characters of one number."""
MAX_EXPONENT = 60
MAX_ITEMS = 16
"""Items of one tuple."""
MAX_SHOWN = 200
"""Characters of an answer that a verdict keeps."""
DECLINED_FORMS = ("i don't know", "i do not know", "unknown")
CHOICES = "ABCDEFGHIJ"
MINUS = "\u2212"
"""The minus sign of typography, which models write too; a dash is none."""

_WHOLE = r"(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)"
_DECIMAL = re.compile(rf"([+-]?(?:{_WHOLE}(?:\.[0-9]*)?|\.[0-9]+))(?:[eE]([+-]?[0-9]{{1,6}}))?")
_RATIO = re.compile(rf"([+-]?)(?:({_WHOLE}) ?/ ?({_WHOLE})|\\[dt]?frac\{{([+-]?)({_WHOLE})\}}\{{({_WHOLE})\}})")
_WRAPPED = re.compile(r"\*\*([^*]{1,200})\*\*|\\(?:text|textbf|mathrm|mathbf)\{([^{}]{1,200})\}")
_CHOICE = re.compile(r"\(?([A-Za-z])[).:]?")
_BRACKETS = ("()", "[]", "[)", "(]")


def bare(text: str) -> str:
    """The text without spaces around it, one pair of dollar signs, and a full stop.

    >>> bare(" $7$. "), bare("7"), bare("$")
    ('7', '7', '$')
    """
    text = text.strip().removesuffix(".").rstrip()
    if len(text) > 2 and text[0] == text[-1] == "$":
        text = text[1:-1].strip()
    return text


def _plain(text: str) -> str:
    r"""The bare text out of bold and `\text`, its minus signs written `-`."""
    text = bare(text)
    if found := _WRAPPED.fullmatch(text):
        text = bare(found[1] or found[2])
    return text.replace(MINUS, "-")


def _decimal(mantissa: str, exponent: int) -> Fraction:
    return Fraction(mantissa.replace(",", "")) * Fraction(10) ** exponent


def parse_number(text: str) -> Fraction | None:
    """The exact value of a number; None for what the module's page does not list.

    Length and exponent are checked before anything is computed.

    >>> parse_number("1,234.50"), parse_number("-3/4"), parse_number("1e1000000000"), parse_number("1,23")
    (Fraction(2469, 2), Fraction(-3, 4), None, None)
    """
    if len(text) > MAX_LENGTH:
        return None
    text = _plain(text)
    if match := _DECIMAL.fullmatch(text):
        exponent = int(match[2] or 0)
        return _decimal(match[1], exponent) if abs(exponent) <= MAX_EXPONENT else None
    if match := _RATIO.fullmatch(text):
        above = int((match[2] or match[5]).replace(",", ""))
        below = int((match[3] or match[6]).replace(",", ""))
        sign = -1 if (match[1] == "-") != (match[4] == "-") else 1
        return Fraction(sign * above, below) if below else None
    return None


def parse_tuple(text: str) -> tuple[str, tuple[Fraction, ...]] | None:
    """The brackets and the exact items of a tuple; without brackets it counts as round; None if it is none.

    >>> parse_tuple("(1, 1/2]"), parse_tuple("1,234"), parse_tuple("(1, x)")
    (('(]', (Fraction(1, 1), Fraction(1, 2))), ('()', (Fraction(1, 1), Fraction(234, 1))), None)
    """
    if len(text) > MAX_LENGTH * MAX_ITEMS:
        return None
    text = _plain(text)
    brackets = text[:1] + text[-1:]
    if brackets in _BRACKETS:
        text = text[1:-1]
    else:
        brackets = "()"
    values = [parse_number(item) for item in text.split(",", MAX_ITEMS)]
    items = tuple(value for value in values if value is not None)
    return (brackets, items) if len(items) == len(values) <= MAX_ITEMS else None


def parse_choice(text: str, *, choices: str = CHOICES) -> str | None:
    """The upper-case letter of a choice such as `B`, `b`, `(B)`, `B.`; None if it is not one of `choices`.

    >>> parse_choice("(b)"), parse_choice("Z"), parse_choice("A or B")
    ('B', None, None)
    """
    match = _CHOICE.fullmatch(_plain(text)) if len(text) <= MAX_LENGTH else None
    letter = match[1].upper() if match else ""
    return letter if letter and letter in choices else None


def _close(left: Fraction, right: Fraction, tolerance: float | Fraction | None) -> bool:
    return left == right if tolerance is None else abs(left - right) <= Fraction(tolerance)


def _checked(tolerance: float | Fraction | None) -> None:
    if tolerance is not None and not (math.isfinite(tolerance) and tolerance >= 0):
        raise TaskError(f"tolerance = {tolerance} must be a finite number that is not negative.")


def _unreadable(reference: str, kind: str) -> TaskError:
    return TaskError(f"The reference answer {reference[:60]!r} cannot be read as a {kind}.")


def numbers_equal(answer: str, reference: str, *, tolerance: float | Fraction | None = None) -> bool | None:
    """Whether two numbers are equal, exactly or within the absolute `tolerance`; None: the answer is no number.

    Raises `TaskError` where the reference is no number or the tolerance is not finite or negative.

    >>> numbers_equal("0.50", "1/2"), numbers_equal("3.14", "3.1416", tolerance=0.01), numbers_equal("six", "6")
    (True, True, None)
    """
    _checked(tolerance)
    right = parse_number(reference)
    if right is None:
        raise _unreadable(reference, "number")
    left = parse_number(answer)
    return None if left is None else _close(left, right, tolerance)


def tuples_equal(answer: str, reference: str, *, tolerance: float | Fraction | None = None) -> bool | None:
    """Whether two tuples have the same brackets and equal items in the same order; None: the answer is no tuple.

    Raises `TaskError` where the reference is no tuple or the tolerance is not finite or negative.
    """
    _checked(tolerance)
    right = parse_tuple(reference)
    if right is None:
        raise _unreadable(reference, "tuple")
    left = parse_tuple(answer)
    if left is None:
        return None
    same_shape = left[0] == right[0] and len(left[1]) == len(right[1])
    return same_shape and all(_close(a, b, tolerance) for a, b in zip(left[1], right[1], strict=True))


def choices_equal(answer: str, reference: str, *, choices: str = CHOICES) -> bool | None:
    """Whether two choice letters are the same; None: the answer is no letter of `choices`.

    Raises `TaskError` where the reference is none.
    """
    right = parse_choice(reference, choices=choices)
    if right is None:
        raise _unreadable(reference, "choice")
    left = parse_choice(answer, choices=choices)
    return None if left is None else left == right


def is_declined(answer: str, forms: Sequence[str] = DECLINED_FORMS) -> bool:
    """Whether the answer is one of the declared forms of not knowing; case and a full stop do not matter.

    >>> is_declined("I don\u2019t know."), is_declined("I know")
    (True, False)
    """
    if len(answer) > MAX_LENGTH:
        return False
    return " ".join(bare(answer).replace("\u2019", "'").casefold().split()) in forms


def exact_verdict(
    answer: str | None,
    reference: str,
    *,
    kind: Kind = "number",
    tolerance: float | Fraction | None = None,
    declined: Sequence[str] = DECLINED_FORMS,
) -> Verdict:
    """The verdict on an extracted answer: CORRECT, WRONG, DECLINED, or UNPARSEABLE (also for None).

    Raises `TaskError` where the reference cannot be read as `kind`.

    >>> exact_verdict("0.5", "1/2").outcome.value, exact_verdict("nan", "1/2").outcome.value
    ('correct', 'unparseable')
    """
    if answer is None:
        return Verdict(outcome=Outcome.UNPARSEABLE, correct=False, reason="no answer was found")
    shown = answer[:MAX_SHOWN]
    if is_declined(answer, declined):
        return Verdict(outcome=Outcome.DECLINED, correct=False, answer=shown)
    if kind == "choice":
        equal = choices_equal(answer, reference)
    elif kind == "tuple":
        equal = tuples_equal(answer, reference, tolerance=tolerance)
    else:
        equal = numbers_equal(answer, reference, tolerance=tolerance)
    if equal is None:
        reason = f"the answer cannot be read as a {kind}"
        return Verdict(outcome=Outcome.UNPARSEABLE, correct=False, answer=shown, reason=reason)
    return Verdict(outcome=Outcome.CORRECT if equal else Outcome.WRONG, correct=equal, answer=shown)
