"""Rollouts that are made up: a stage of a few updates, healthy unless told otherwise.

Their texts are words of this page in any order, such as one may say who adds numbers and looks whether it is right.
"""

from collections.abc import Callable

from forkpoint.audits.rows import Row, records_of
from forkpoint.records import Contents, Outcome, Records, StopReason
from forkpoint.seeds import Key

WORDS = tuple(sorted({word for word in (__doc__ or "").lower().split() if word.isalpha()}))
Change = Callable[[int, int, int], dict[str, object]]
"""Update, problem and place in the group to fields of the row, or of what it said."""


def drawn(*path: int) -> float:
    """A number in [0, 1) that depends on the path alone."""
    return float(Key.root(7).child(*path).uniforms(1)[0])


def spoken(update: int, problem: int, place: int) -> str:
    """A text of twenty words or so that no other rollout has."""
    numbers = Key.root(8).child(update, problem, place).uniforms(20)
    return " ".join(WORDS[int(number * len(WORDS))] for number in numbers)


def example(
    change: Change = lambda *_: {}, *, updates: int = 8, problems: int = 24, group: int = 4, rate: float = 0.3
) -> Records:
    """A stage in which the share of correct rollouts rises from `rate` by a half of it."""
    rows = []
    for update in range(1, updates + 1):
        for problem in range(problems):
            for place in range(group):
                chance = rate * (1 + 0.5 * (update - 1) / max(1, updates - 1))
                correct = drawn(update, problem, place) < chance
                told: dict[str, object] = {
                    "correct": correct, "reward": float(correct),
                    "outcome": Outcome.CORRECT if correct else Outcome.WRONG,
                    "stop": StopReason.EOS, "length": 20, "difficulty": float(problem % 3), "update": update,
                    "text": f"{spoken(update, problem, place)} #### {problem + (0 if correct else 1 + place)}",
                    "reference": str(problem), "prompt": f"problem {problem}",
                    "answer": str(problem) if correct else str(problem + 1 + place),
                }  # fmt: skip
                told.update(change(update, problem, place))
                said = {name: told.pop(name) for name in list(told) if name in Contents.__slots__}
                rows.append(
                    Row(id=f"{update}-{problem}-{place}", problem=str(problem), said=Contents(**said), **told)  # type: ignore[arg-type]
                )
    return records_of(rows)
