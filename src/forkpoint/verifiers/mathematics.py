r"""Equality of mathematical answers: exactly where our own scorer can read them, else by math-verify in a worker.

What our own reader takes: numbers as in `verifiers.exact`, also boxed, with thin spaces, and with a percent sign
(`50\%` is 1/2, not 50); pairs and longer tuples of numbers between brackets; ratios and times such as `2:5`, compared
as they are written; words in `\text{...}`.  math-verify would read some of these as something else.
Everything else goes to math-verify (the extra `math`), whose own timeouts are off: the worker is killed instead.
Decimals there count as equal when they agree to `FLOAT_DIGITS` places, so a rounded root is not the root.
"""

import importlib.util
import re
from fractions import Fraction

from forkpoint.errors import VerifierError
from forkpoint.records import Outcome, Verdict
from forkpoint.verifiers.exact import MAX_SHOWN, bare, is_declined, parse_number, parse_tuple
from forkpoint.verifiers.worker import Worker

MAX_LENGTH = 1000
"""Characters of an answer that is still read."""
FLOAT_DIGITS = 12
TIMEOUT_SECONDS = 1.5
"""Of one comparison; an honest one takes a few milliseconds."""

_SPACING = re.compile(r"\\[!,;: ]|\\(?:left|right|displaystyle)(?![A-Za-z])|\$|~")
_GROUPED = re.compile(r"(?<=[0-9])\{,\}(?=[0-9]{3})")
_FRACTION = re.compile(r"\\[dt]frac")
_BOX = re.compile(r"\\boxed\s*\{(.*)\}", re.DOTALL)
_RATIO = re.compile(r"[0-9]\s*:\s*[0-9]")
_WORDS = re.compile(r"\\(?:text|textbf|textit|mathrm|mathbf)\s*\{([^{}]*)\}")
_COMMAND = re.compile(r"\\[A-Za-z]+")
_BRACKETS = ("()", "[]", "[)", "(]")


def require_math() -> None:
    """Nothing; raises VerifierError where the extra `math` is not installed."""
    if importlib.util.find_spec("math_verify") is None:
        raise VerifierError("LaTeX answers need the extra `math`: pip install 'forkpoint[math]'.")


def normal_form(text: str) -> str:
    r"""The text without its box, dollar signs, spacing commands, `\left` and `\right`; one kind of fraction.

    >>> normal_form(r" $\boxed{\left( 1, \dfrac{1}{2} \right)}$. "), normal_form(r"12{,}000\,")
    ('( 1, \\frac{1}{2} )', '12,000')
    """
    text = _SPACING.sub("", text).strip().removesuffix(".").rstrip()
    if box := _BOX.fullmatch(text):
        text = box[1].strip()
    text = _GROUPED.sub(",", _FRACTION.sub(r"\\frac", text))
    return bare(text)


def _number(text: str) -> Fraction | None:
    percent = text.endswith("%")
    value = parse_number(text[:-1].removesuffix("\\") if percent else text)
    return value / 100 if percent and value is not None else value


def _enclosure(text: str) -> str:
    """What encloses a list: `{}` for a set, the brackets of a tuple or an interval, else nothing."""
    if text.startswith(r"\{") and text.endswith(r"\}"):
        return "{}"
    ends = text[:1] + text[-1:]
    return ends if ends in _BRACKETS and "," in text else ""


def _letters(text: str) -> set[str]:
    return {character for character in _COMMAND.sub(" ", _WORDS.sub(" ", text)) if character.isalpha()}


def exact_equal(answer: str, reference: str) -> bool | None:
    r"""Whether two answers are equal, where that can be told without algebra; None: ask math-verify.

    >>> exact_equal(r"\frac{2}{4}", "0.5"), exact_equal("50\\%", "50"), exact_equal("(1,2)", r"\{1,2\}")
    (True, False, False)
    >>> exact_equal("1+x", "x+1") is None, exact_equal("A", "a"), exact_equal(r"\text{Even}", "even")
    (True, False, True)
    """
    left, right = normal_form(answer), normal_form(reference)
    if left == right:
        return True
    numbers = _number(left), _number(right)
    if None not in numbers:
        return numbers[0] == numbers[1]
    enclosures = {_enclosure(left), _enclosure(right)}
    if "{}" in enclosures and enclosures & set(_BRACKETS):
        return False
    tuples = parse_tuple(left), parse_tuple(right)
    if "" not in enclosures and None not in tuples:
        return tuples[0] == tuples[1]
    if _RATIO.search(left) or _RATIO.search(right):
        return "".join(left.split()) == "".join(right.split())
    if _WORDS.fullmatch(left) or _WORDS.fullmatch(right):
        words = [" ".join(_WORDS.sub(r"\1", text).casefold().split()) for text in (left, right)]
        return words[0] == words[1]
    letters = _letters(left), _letters(right)
    if letters[0] != letters[1] and {x.casefold() for x in letters[0]} == {x.casefold() for x in letters[1]}:
        return False  # math-verify folds case: `A` would be `a`
    return None


def compare(answer: str, reference: str) -> str:
    """`equal`, `different`, `unreadable` or `bad reference`, as math-verify sees it; runs in the worker."""
    from math_verify import LatexExtractionConfig, parse, verify  # noqa: PLC0415  (an optional extra)

    read = [
        parse(f"${text}$", [LatexExtractionConfig()], fallback_mode="no_fallback", parsing_timeout=None)
        for text in (reference, answer)
    ]
    if not read[0]:
        return "bad reference"
    if not read[1]:
        return "unreadable"
    # The order matters: gold first.
    equal = verify(*read, float_rounding=FLOAT_DIGITS, timeout_seconds=None, raise_on_error=True)
    return "equal" if equal else "different"


class MathScorer:
    """Verdicts on mathematical answers; owns a worker, which starts when math-verify is first needed.

    `timeout_seconds` bounds one comparison, `memory_bytes` the address space of the worker.
    """

    def __init__(self, *, timeout_seconds: float = TIMEOUT_SECONDS, memory_bytes: int = 2 << 30) -> None:
        self._worker = Worker(
            f"{__name__}:compare", timeout_seconds=timeout_seconds, memory_bytes=memory_bytes, imports=("math_verify",)
        )

    def start(self) -> None:
        """Starts the worker where it does not live and warms it up, so that no answer waits.  Raises VerifierError."""
        require_math()
        if not self._worker.is_alive:
            self._worker.call("x+1", "1+x")

    def close(self) -> None:
        """Ends the worker."""
        self._worker.close()

    def can_read(self, reference: str) -> bool:
        """Whether math-verify can read a reference answer and finds it equal to itself.  Raises VerifierError."""
        if _number(normal_form(reference)) is not None:
            return True
        require_math()
        text = normal_form(reference)
        return len(text) <= MAX_LENGTH and self._worker.call(text, text).value == "equal"

    def verdict(self, answer: str | None, reference: str) -> Verdict:
        """CORRECT, WRONG, DECLINED or UNPARSEABLE; ERROR where the checker hung, died or raised.

        Raises VerifierError where the worker cannot be started.
        """
        if answer is None:
            return Verdict(outcome=Outcome.UNPARSEABLE, correct=False, reason="no answer was found")
        shown = answer[:MAX_SHOWN]
        if is_declined(answer):
            return Verdict(outcome=Outcome.DECLINED, correct=False, answer=shown)
        if len(answer) > MAX_LENGTH:
            reason = f"the answer is longer than {MAX_LENGTH} characters"
            return Verdict(outcome=Outcome.UNPARSEABLE, correct=False, answer=shown, reason=reason)
        equal = exact_equal(answer, reference)
        if equal is not None:
            return Verdict(outcome=Outcome.CORRECT if equal else Outcome.WRONG, correct=equal, answer=shown)
        return self._algebra(answer, reference, shown)

    def _algebra(self, answer: str, reference: str, shown: str) -> Verdict:
        found = self._worker.call(normal_form(answer), normal_form(reference))
        if found.kind != "ok" or found.value == "bad reference":
            reason = f"math-verify: {found.kind}: {found.reason or found.value}"
            return Verdict(outcome=Outcome.ERROR, correct=None, answer=shown, reason=reason)
        if found.value == "unreadable":
            reason = "the answer cannot be read as mathematics"
            return Verdict(outcome=Outcome.UNPARSEABLE, correct=False, answer=shown, reason=reason)
        equal = found.value == "equal"
        return Verdict(outcome=Outcome.CORRECT if equal else Outcome.WRONG, correct=equal, answer=shown)
