r"""Where the answer of a rollout lies.

The answer is looked for after the last closing think tag; an unfinished think has none.  There the last complete
`\boxed{...}` wins, else what follows the last marker of the task, else, where the task says so, the whole text.
Everything is linear in the length of the text.
"""

import re
from collections.abc import Iterator, Sequence

THINK_OPEN = "<think>"
THINK_CLOSE = "</think>"
BOX_WINDOW = 50_000
"""Only so many last characters are searched for a box."""

_BRACES = re.compile(r"\\boxed\s{0,8}\{|\\.|[{}]", re.DOTALL)


def after_thinking(text: str, *, opened: bool = False) -> str | None:
    """What follows the last closing think tag; the whole text where there is no tag; None for an unfinished think.

    `opened`: the prompt has already opened the think, so a text without a closing tag is unfinished.

    >>> after_thinking("<think>2+2</think> 4"), after_thinking("4"), after_thinking("</think>4<think>so 5")
    (' 4', '4', None)
    """
    close = text.rfind(THINK_CLOSE)
    if close < 0:
        return None if opened or THINK_OPEN in text else text
    rest = text[close + len(THINK_CLOSE) :]
    return None if THINK_OPEN in rest else rest


def thinking(text: str) -> str:
    """What stands inside think tags, a thought without an end included; empty without one.

    >>> thinking("<think>2+2</think> 4"), thinking("so 4</think> 4"), thinking("4<think>so 5"), thinking("4")
    ('2+2', 'so 4', 'so 5', '')
    """
    close = text.rfind(THINK_CLOSE)
    opened = text.find(THINK_OPEN)
    if close < 0 and opened < 0:
        return ""
    begin = opened + len(THINK_OPEN) if opened >= 0 else 0
    return text[begin : close if close >= begin else len(text)]


def last_box(text: str) -> str | None:
    r"""The content of the complete `\boxed{...}` that starts last; None without one.  Escaped braces do not count.

    >>> last_box(r"\boxed{1} or \boxed{\frac{1}{2}}"), last_box(r"\boxed{1} or \boxed{2")
    ('\\frac{1}{2}', '1')
    """
    window = text[-BOX_WINDOW:]
    best = max(_boxes(window), default=None)
    return None if best is None else window[best[0] : best[1]]


def first_box(text: str) -> str | None:
    r"""The content of the complete `\boxed{...}` that starts first; None without one.

    >>> first_box(r"\boxed{1 or \boxed{2} or \boxed{3}")
    '2'
    """
    window = text[:BOX_WINDOW]
    best = min(_boxes(window), default=None)
    return None if best is None else window[best[0] : best[1]]


def _boxes(text: str) -> Iterator[tuple[int, int]]:
    """Where the contents of complete boxes start and end."""
    opened: list[tuple[int, bool]] = []
    for match in _BRACES.finditer(text):
        token = match.group()
        if token == "}":
            start, is_box = opened.pop() if opened else (0, False)
            if is_box:
                yield start, match.start()
        elif token == "{" or len(token) > 2:
            opened.append((match.end(), token != "{"))


def after_marker(text: str, markers: Sequence[str]) -> str | None:
    """The first line of what follows the last of the markers, stripped; None without one.  Case does not matter.

    >>> after_marker("Answer: 4, no. answer: 5", ("answer:",)), after_marker("x #### 7 ", ("####",))
    ('5', '7')
    """
    if not markers:
        return None
    pattern = re.compile("|".join(re.escape(marker) for marker in markers), re.IGNORECASE)
    end = -1
    for match in pattern.finditer(text):
        end = match.end()
    return None if end < 0 else text[end:].strip().partition("\n")[0].strip()


def final_answer(
    text: str, *, markers: Sequence[str] = ("####", "answer:"), whole: bool = False, opened: bool = False
) -> str | None:
    r"""The answer of a text, stripped; None without one.

    The last box wins over the last marker, and a marker over the whole text, which counts only if `whole`.
    An empty box or an empty marker is no answer.

    >>> final_answer(r"<think>3?</think>#### 4 \boxed{5}"), final_answer("#### 4"), final_answer("4")
    ('5', '4', None)
    """
    rest = after_thinking(text, opened=opened)
    if rest is None:
        return None
    found = last_box(rest)
    if found is None:
        found = after_marker(rest, markers)
    if found is None and whole:
        found = rest
    return (found or "").strip() or None
