"""A bounded parser of sums, differences, products and quotients of whole numbers, exact and without `eval`.

Grammar: `sum = product (("+" | "-") product)*`, `product = atom (("*" | "/") atom)*`, `atom = digits | "(" sum ")"`.
There are no signs in front of a number, so every literal is one of the numbers that were given.
"""

import re
from dataclasses import dataclass
from fractions import Fraction

MAX_LENGTH = 256
MAX_DEPTH = 32
MAX_DIGITS = 6

_TOKENS = re.compile(r"[0-9]+|[-+*/()]")
_SPACES = re.compile(r"[ \t]+")
_ALLOWED = re.compile(r"[-+*/()0-9 \t]*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Expression:
    """What an expression is worth and which numbers it uses."""

    value: Fraction | None
    """None: it could not be read, or it divides by zero."""
    numbers: tuple[int, ...] = ()
    """Every literal, in order, as often as it is written."""
    reason: str = ""
    """Why there is no value."""


class _Unreadable(Exception):
    """Ends the parse of a text that is no expression; never leaves this module."""


class _Parser:
    def __init__(self, tokens: list[str], max_digits: int) -> None:
        self.tokens = tokens
        self.max_digits = max_digits
        self.position = 0
        self.numbers: list[int] = []

    def peek(self) -> str:
        return self.tokens[self.position] if self.position < len(self.tokens) else ""

    def take(self) -> str:
        token = self.peek()
        self.position += 1
        return token

    def sum(self, depth: int) -> Fraction:
        value = self.product(depth)
        while self.peek() in ("+", "-"):
            sign = 1 if self.take() == "+" else -1
            value += sign * self.product(depth)
        return value

    def product(self, depth: int) -> Fraction:
        value = self.atom(depth)
        while self.peek() in ("*", "/"):
            multiplies = self.take() == "*"
            factor = self.atom(depth)
            if not multiplies and factor == 0:
                raise _Unreadable("division by zero")
            value = value * factor if multiplies else value / factor
        return value

    def atom(self, depth: int) -> Fraction:
        token = self.take()
        if token == "(":
            if depth == 0:
                raise _Unreadable("nested too deep")
            value = self.sum(depth - 1)
            if self.take() != ")":
                raise _Unreadable("a parenthesis is not closed")
            return value
        if not token.isdigit():
            raise _Unreadable("a number is missing")
        if len(token) > self.max_digits:
            raise _Unreadable("a number is too long")
        self.numbers.append(int(token))
        return Fraction(self.numbers[-1])


def evaluate(
    text: str, *, max_length: int = MAX_LENGTH, max_depth: int = MAX_DEPTH, max_digits: int = MAX_DIGITS
) -> Expression:
    """The exact value of an expression and the numbers in it; `value` is None, with a reason, where there is none.

    `max_length` in characters, `max_depth` in nested parentheses, `max_digits` of one number: checked first, so a
    hostile text costs nothing.  Never raises.

    >>> evaluate("(1 + 2) * 3/2"), evaluate("1/(2-2)").reason
    (Expression(value=Fraction(9, 2), numbers=(1, 2, 3, 2), reason=''), 'division by zero')
    """
    if len(text) > max_length:
        return Expression(value=None, reason=f"longer than {max_length} characters")
    if not _ALLOWED.fullmatch(text):
        return Expression(value=None, reason="a character that is not allowed")
    if re.search(r"[0-9][ \t]+[0-9]", text):
        return Expression(value=None, reason="two numbers without an operation")
    parser = _Parser(_TOKENS.findall(_SPACES.sub("", text)), max_digits)
    try:
        value = parser.sum(max_depth)
        if parser.peek():
            raise _Unreadable("something follows the expression")
    except _Unreadable as problem:
        return Expression(value=None, reason=str(problem))
    return Expression(value=value, numbers=tuple(parser.numbers))
