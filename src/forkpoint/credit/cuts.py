"""Where a rollout is cut into segments, without looking into its future.

A cut before token t is causal when whether it is there depends on the tokens before t alone.  Then the value at the
cut is a fair forecast of the reward, and differences of values add no bias.  The probability of token t itself is not
in its past: a token that was unlikely makes a cut *after* it.  Cuts chosen on the finished rollout, such as evenly
spaced over its length or at its n unlikeliest tokens, are not causal, and none are offered.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from forkpoint.errors import RecipeError, unknown_name
from forkpoint.probe import Stepped
from forkpoint.records import Problem, Rollout

KINDS = ("every", "steps", "unlikely")
FORMS = "every:N, steps, steps:N, unlikely:P, unlikely:P:N"


@dataclass(frozen=True, slots=True, kw_only=True)
class CutRule:
    """How rollouts are cut, as `read_cuts` reads it."""

    kind: str
    """`every`, `steps` or `unlikely`."""
    stride: int = 1
    """Trained tokens between cuts for `every`; else every how many-th place is cut."""
    below: float = 0.9
    """A token less probable than this when it was sampled is unlikely."""


def read_cuts(text: str) -> CutRule:
    """The rule that a recipe's text means.

    - `every:N`: after every N trained tokens
    - `steps` or `steps:N`: where the task says that a step begins, or at every N-th of those places
    - `unlikely:P` or `unlikely:P:N`: after each token, or each N-th one, that had a probability below P when it was
      sampled (arXiv 2505.23564 cuts so, with P = 0.9)

    Raises:
        RecipeError: another text; N below 1; P outside (0, 1].

    >>> read_cuts("unlikely:0.9:5")
    CutRule(kind='unlikely', stride=5, below=0.9)
    """
    kind, *numbers = text.split(":")
    if kind not in KINDS:
        raise RecipeError(unknown_name("credit.options.cuts", text, [form.strip() for form in FORMS.split(",")]))
    if kind == "unlikely" and numbers:
        share, *numbers = numbers
    else:
        share = "0.9"
    least = 1 if kind == "every" else 0
    sound = least <= len(numbers) <= 1 and all(re.fullmatch(r"[1-9][0-9]{0,8}", number) for number in numbers)
    if not (sound and re.fullmatch(r"0?\.[0-9]{1,9}|1(\.0)?", share) and float(share) > 0):
        raise RecipeError(f"credit.options.cuts = '{text}' must be one of {FORMS}, N at least 1, P in (0, 1].")
    return CutRule(kind=kind, stride=int(numbers[0]) if numbers else 1, below=float(share))


def causal_cuts(problem: Problem, rollout: Rollout, task: object, *, rule: CutRule, max_cuts: int) -> tuple[int, ...]:
    """The positions where segments begin, ascending, the first 0 and at most `max_cuts` more.

    A cut that would fall on a token that is not trained, such as an environment's, moves to the next trained one.
    A cut at the end is none: there the reward is known.  The first `max_cuts` are kept, for which ones come later
    is not known at a cut.

    Raises:
        RecipeError: `steps` for a task without `cut_points`; `max_cuts` below 0.
    """
    if max_cuts < 0:
        raise RecipeError(f"credit.options.max_cuts = {max_cuts} must be at least 0.")
    trained = np.flatnonzero(rollout.loss_mask)
    if not len(trained):
        return (0,)
    moved = np.searchsorted(trained, np.asarray(_places(problem, rollout, task, rule), np.int64))
    cuts = np.unique(trained[moved[moved < len(trained)]])
    return (0, *cuts[cuts > trained[0]][:max_cuts].tolist())


def _places(problem: Problem, rollout: Rollout, task: object, rule: CutRule) -> Sequence[int]:
    """Where to cut, first position and untrained ones perhaps included."""
    trained = np.flatnonzero(rollout.loss_mask)
    if rule.kind == "every":
        places: Sequence[int] = trained[rule.stride :: rule.stride].tolist()
        return places
    if rule.kind == "steps":
        if not isinstance(task, Stepped):
            raise RecipeError("credit.options.cuts = 'steps' needs a task with `cut_points`; else write every:N.")
        return list(task.cut_points(problem, rollout))[rule.stride :: rule.stride]
    unlikely = trained[np.exp(rollout.behavior_logprobs[trained].astype(np.float64)) < rule.below]
    return (unlikely[rule.stride - 1 :: rule.stride] + 1).tolist()
