"""Positive numbers by their logarithm: sums, products and quotients that never overflow.

The recurrences of the theory add, multiply and divide only, so one code serves floats, fractions and these.
"""

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import TypeVar


@dataclass(frozen=True, slots=True)
class LogNumber:
    """A number x >= 0 held as ln x (nats); zero is held as minus infinity.

    >>> big = LogNumber.of(10) * LogNumber.of(10)
    >>> round((big + big / big).log, 6) == round(math.log(101), 6)
    True
    """

    log: float

    @staticmethod
    def of(value: float) -> "LogNumber":
        """The number `value`, which must not be negative."""
        return LogNumber(math.log(value) if value else -math.inf)

    def __add__(self, other: "LogNumber") -> "LogNumber":
        high, low = (self.log, other.log) if self.log > other.log else (other.log, self.log)
        return LogNumber(high + math.log1p(math.exp(low - high))) if low > -math.inf else LogNumber(high)

    def __mul__(self, other: "LogNumber") -> "LogNumber":
        return LogNumber(self.log + other.log)

    def __truediv__(self, other: "LogNumber") -> "LogNumber":
        if other.log == -math.inf:
            raise ZeroDivisionError("division of a LogNumber by zero")
        return LogNumber(self.log - other.log)


N = TypeVar("N", float, Fraction, LogNumber)
"""The number types that the recurrences run on."""
