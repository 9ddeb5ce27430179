"""Spans of a rollout that came to nothing, as far as a task with states can tell; nothing is sampled."""

from collections.abc import Sequence
from itertools import groupby, pairwise

from forkpoint.probe import Stateful, Stepped
from forkpoint.records import Problem, Rollout
from forkpoint.review.postmortem import Span, Waste


def wasted_spans(
    problem: Problem, rollout: Rollout, task: object, texts: Sequence[str] | None = None
) -> tuple[Span, ...]:
    """The wasted spans of a rollout, ascending, apart from each other.

    DEAD_END: a loop, from where the rollout stood to where it stood there again, as erasing loops in the order of
    their closing finds them (Lawler 1980); what is left visits no state twice.  RESTART: a loop from the first state
    that comes back to it from another state than the one that it went to, so not as it went.  NO_CHANGE: steps in a row
    after each of which the state is what it was before.  Empty for a task without `state` and `cut_points`.

    `texts`: the text before each step and after the last one, for a rollout whose tokens are not single characters;
    without it such a rollout has no spans.  Equal states have equal futures, so the rest is as right without them.
    """
    if not isinstance(task, Stateful) or not isinstance(task, Stepped):
        return ()
    cuts = [*task.cut_points(problem, rollout), len(rollout.tokens)]
    if texts is None:
        if len(rollout.tokens) != len(rollout.text):
            return ()
        texts = [rollout.text[:cut] for cut in cuts]
    if len(texts) != len(cuts):
        raise ValueError(f"wasted_spans: {len(texts)} texts for {len(cuts)} cuts of rollout {rollout.id}.")
    states = [task.state(problem, text) for text in texts]
    return tuple(
        Span(start=cuts[before], end=cuts[after], why=_why(states[before : after + 1], first=states[0]))
        for before, after in loops(states)
    )


def kept_places(states: Sequence[str]) -> list[int]:
    """The places among the states of a walk that are left when loops are erased in the order of their closing.

    A state that comes back takes the walk back to its first place that is still there, and stands for it.

    >>> kept_places(["s", "d", "s", "a", "b"]), kept_places(["s", "a", "b", "a", "s", "c"])
    ([2, 3, 4], [4, 5])
    """
    kept: list[int] = []
    place_of: dict[str, int] = {}
    for place, state in enumerate(states):
        if state in place_of:
            for gone in kept[place_of[state] :]:
                del place_of[states[gone]]
            del kept[len(place_of) :]
        place_of[state] = len(kept)
        kept.append(place)
    return kept


def loops(states: Sequence[str]) -> list[tuple[int, int]]:
    """The places of a walk between which nothing is kept: one state comes back, and stands for the loop.

    >>> loops(["s", "d", "s", "a", "b"]), loops(["s", "a", "b", "a", "c", "c"])
    ([(0, 2)], [(1, 3), (4, 5)])
    """
    found = []
    before = 0
    for place in kept_places(states):
        if place > before:
            found.append((before, place))
        before = place + 1
    return found


def _why(states: Sequence[str], first: str) -> Waste:
    """Why the states of a loop came to nothing; `first` is where the walk began.

    >>> [_why(loop, "s").value for loop in ("ss", "sas", "sabas", "sasbs", "sabs", "sasabs", "xabx")]
    ['no_change', 'dead_end', 'dead_end', 'dead_end', 'restart', 'restart', 'dead_end']
    """
    if all(one == other for one, other in pairwise(states)):
        return Waste.NO_CHANGE
    away = [list(outside) for at_first, outside in groupby(states, lambda state: state == first) if not at_first]
    return Waste.RESTART if any(each[0] != each[-1] for each in away) else Waste.DEAD_END
