"""What a text looks like, without knowing its task: words, loops, repetition, scripts, options."""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import pairwise

from forkpoint.records import Message

MAX_CHARACTERS = 40_000
"""Of a text that are looked at, from its end."""
MAX_PERIOD = 64
"""Longest unit of a loop, in words."""
TURNS = 4
"""A unit repeated so often in a row at the end of a text is a loop."""
REFUSALS = (
    "i can't", "i cannot", "i can not", "i'm not able", "i am not able", "i don't know", "i do not know",
    "i'm unable", "i am unable", "i won't", "i will not", "i must decline", "as an ai",
)  # fmt: skip
_WORD = re.compile(r"\w+|[^\w\s]")
_OPTION = re.compile(r"^[ \t]{0,8}\(?([A-Z]|\d{1,2})[).:][ \t]{1,4}(\S.{0,400})$", re.MULTILINE)
_CHOICE = re.compile(r"\(?\b([A-Z]|\d{1,2})\b\)?[.):]?\s*\Z")


def words(text: str) -> list[str]:
    """The words and marks of a text, lower case; single characters where it has no words apart from one another.

    >>> words("Go on, go"), words("awdq")
    (['go', 'on', ',', 'go'], ['a', 'w', 'd', 'q'])
    """
    found = _WORD.findall(text[-MAX_CHARACTERS:].lower())
    return found if len(found) > 1 else list(text[-MAX_CHARACTERS:])


def ends_in_loop(units: Sequence[object]) -> int:
    """The period of the loop in which a text ends; 0 where it ends in none.

    A loop is a unit of up to 64 words that stands there at least 4 times in a row, and at least 12 words in all.

    >>> ends_in_loop(list("xyababababababab")), ends_in_loop(list("abcabd"))
    (2, 0)
    """
    size = len(units)
    for period in range(1, min(MAX_PERIOD, size // TURNS) + 1):
        need = max(TURNS * period, 12) - period
        if size < need + period or units[-1] != units[-1 - period]:
            continue
        if all(units[size - 1 - i] == units[size - 1 - i - period] for i in range(need)):
            return period
    return 0


def repetition(units: Sequence[str], size: int = 4) -> float:
    """The share of a text's n-grams that stood there before; nan below 3 `size` words.

    >>> repetition(list("abcdabcdabcd"))
    0.5555555555555556
    """
    grams = list(ngrams(units, size))
    return 1 - len(set(grams)) / len(grams) if len(units) >= 3 * size else float("nan")


def ngrams(units: Sequence[str], size: int) -> Iterator[tuple[str, ...]]:
    """The runs of `size` words, in order."""
    return zip(*(units[shift:] for shift in range(size)), strict=False)


def repeated_lines(text: str) -> float:
    r"""The share of lines that repeat the line before; nan below 4 lines.

    >>> repeated_lines("go north\ngo north\nlook\nlook")
    0.6666666666666666
    """
    lines = [line.strip() for line in text[-MAX_CHARACTERS:].split("\n") if line.strip()]
    if len(lines) < 4:
        return float("nan")
    return sum(one == two for one, two in pairwise(lines)) / (len(lines) - 1)


def script(text: str) -> str:
    """The script of most letters of a text, such as LATIN; empty where it has none.

    >>> script("2 + 2 is four"), script("123")
    ('LATIN', '')
    """
    letters = [letter for letter in text[-2000:] if letter.isalpha()][:400]
    counted = Counter(unicodedata.name(letter, "?").split()[0] for letter in letters)
    return counted.most_common(1)[0][0] if counted else ""


def strangers(text: str, main: str) -> float:
    """The share of the letters of a text that are not of a script; nan where it has no letters.

    >>> round(strangers("ab \u4e2d c", "LATIN"), 2)
    0.25
    """
    letters = [letter for letter in text[-MAX_CHARACTERS:] if letter.isalpha()]
    if not letters:
        return float("nan")
    return sum(unicodedata.name(letter, "?").split()[0] != main for letter in letters) / len(letters)


def spoken(prompt: str | Sequence[Message]) -> str:
    """A prompt as one text; of messages the contents, one under the other."""
    return prompt if isinstance(prompt, str) else "\n".join(message.get("content", "") for message in prompt)


def normal(text: str) -> str:
    """The text without case, space and punctuation: solutions that differ in no more are one.

    >>> normal("  X = 4. ") == normal("x=4")
    True
    """
    return "".join(letter for letter in text.casefold() if letter.isalnum() or letter in "+-*/=<>^%")


def refuses(text: str) -> bool:
    """Whether a text says that it will not or cannot answer, in English."""
    lowered = text[-2000:].lower().replace("\u2019", "'")
    return any(phrase in lowered for phrase in REFUSALS)


def options(prompt: str) -> dict[str, str]:
    r"""The options of a multiple-choice question by their letters or numbers; empty where it is none.

    >>> options("Which? \nA) iron\nB) gold")
    {'A': 'iron', 'B': 'gold'}
    """
    found = {name: text.strip() for name, text in _OPTION.findall(prompt[-MAX_CHARACTERS:])}
    names = list(found)
    wanted = [chr(65 + i) for i in range(len(names))], [str(1 + i) for i in range(len(names))]
    return found if len(found) >= 2 and names in wanted else {}


def choice(answer: str, known: dict[str, str]) -> str | None:
    """Which option an answer names, by letter or by text; None where none.

    >>> choice("B", {"A": "iron", "B": "gold"}), choice("Iron", {"A": "iron", "B": "gold"})
    ('B', 'A')
    """
    match = _CHOICE.search(answer.strip().upper())
    if match and match[1] in known:
        return match[1]
    plain = normal(answer)
    return next((name for name, text in known.items() if normal(text) == plain), None)
