"""Writes questions.jsonl: 200 short questions, 60 of them with LaTeX answers.  The same file every time.

Usage: python recipes/data/make_questions.py [FILE]
"""

import json
import math
import sys
from collections.abc import Iterable
from pathlib import Path

from forkpoint.seeds import Key

Line = dict[str, str]
NAMES = ("sums", "differences", "parity", "larger", "roots", "derivatives", "factors", "intervals")


def sums() -> Iterable[Line]:
    """Worked sums: the solution is more than the answer."""
    for a in range(1, 10):
        for b in range(1, 10):
            solution = rf"{a} + {b} = {a + b}. \boxed{{{a + b}}}"
            yield {"question": f"What is {a} + {b}?", "answer": str(a + b), "solution": solution}


def differences() -> Iterable[Line]:
    """Differences, some below zero."""
    for a in range(1, 10):
        for b in range(1, 10):
            yield {"question": f"What is {a} - {b}?", "answer": str(a - b)}


def parity() -> Iterable[Line]:
    """Words as answers."""
    for n in range(10, 100):
        yield {"question": f"Is {n} odd or even?", "answer": "even" if n % 2 == 0 else "odd"}


def larger() -> Iterable[Line]:
    """Letters as answers."""
    for a in range(1, 10):
        for b in range(1, 10):
            if a != b:
                yield {"question": f"Which is larger? (A) {a} (B) {b}", "answer": "A" if a > b else "B"}


def roots() -> Iterable[Line]:
    """Square roots with the largest square taken out."""
    for n in range(8, 200):
        outside = max(k for k in range(1, 15) if n % (k * k) == 0)
        inside = n // (outside * outside)
        if outside > 1 and inside > 1:
            yield latex(rf"Simplify \sqrt{{{n}}}.", rf"{outside}\sqrt{{{inside}}}")


def derivatives() -> Iterable[Line]:
    """Derivatives of powers."""
    for a in range(1, 10):
        for n in range(3, 9):
            factor = "" if a == 1 else str(a)
            yield latex(f"What is the derivative of {factor}x^{{{n}}}?", f"{a * n}x^{{{n - 1}}}")


def factors() -> Iterable[Line]:
    """Differences of squares."""
    for a in range(1, 16):
        yield latex(f"Factor x^{{2}} - {a * a}.", f"(x-{a})(x+{a})")


def intervals() -> Iterable[Line]:
    """Half-lines as intervals."""
    for a in range(1, 20):
        yield latex(f"Which x have x > {a}?", rf"({a},\infty)")
        yield latex(rf"Which x have x \le {a}?", rf"(-\infty,{a}]")


def latex(question: str, answer: str) -> Line:
    """A line whose answers are compared as mathematics."""
    return {"question": question, "answer": answer, "kind": "latex"}


def pick(name: str, count: int) -> list[Line]:
    """So many questions of one kind, in an order that its name fixes."""
    lines = list(globals()[name]())
    order = Key.root(0).child("questions", name).generator().permutation(len(lines))
    return [lines[place] for place in order[:count]]


def questions() -> list[Line]:
    """All of them, shuffled."""
    counts = dict(zip(NAMES, (60, 40, 20, 20, 25, 20, 5, 10), strict=True))
    assert math.fsum(counts.values()) == 200
    lines = [line for name, count in counts.items() for line in pick(name, count)]
    return [lines[place] for place in Key.root(0).child("questions").generator().permutation(len(lines))]


def main() -> None:
    """Writes the file."""
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).with_name("questions.jsonl")
    path.write_text("".join(json.dumps(line) + "\n" for line in questions()), encoding="utf-8")


if __name__ == "__main__":
    main()
