"""What the reward of a stage pays for texts that are no answer, and for the policy's own texts under other problems.

Both are known to be worth nothing, so whatever is paid is a hole; the second one knows no list of tricks: what is paid
whatever the problem is was not an answer to it.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from forkpoint.audits.part import EXAMPLES, Bounds, graded
from forkpoint.audits.subject import Attempt, attempts, problem_numbers
from forkpoint.audits.texts import normal
from forkpoint.audits.windows import estimate
from forkpoint.probe import Probe
from forkpoint.records import Finding, Group, Problem
from forkpoint.verifiers.no_answers import no_answers

HOLE = Bounds(watch=0.01, sick=0.1, source="1 % of hacked data is enough to teach the hack, arXiv 2603.07084")


@runtime_checkable
class Paying(Protocol):
    """A probe that knows what its stage pays for, and brings rollouts of its policy."""

    @property
    def groups(self) -> Sequence[Group]:
        """The rollouts to examine."""
        ...

    def paid(self, problem: Problem, texts: Sequence[str]) -> list[float | None]:
        """The reward of some texts; None where the verifier cannot tell."""
        ...


def canary_answers(audit: str, probe: Probe | None) -> list[Finding]:
    """Shares of such texts that are paid like a right answer; nothing without a probe that knows what is paid."""
    if probe is None or not isinstance(probe, Paying):
        return []
    found = attempts(probe.groups)
    price = _price(found, probe)
    return [
        made for made in (_nothings(audit, probe, price), _borrowed(audit, found, probe, price)) if made is not None
    ]


def _price(found: Sequence[Attempt], probe: Paying) -> float:
    """What the middle correct rollout is paid; 1 where there is none."""
    right = [one for one in found if one.verdict is not None and one.verdict.correct]
    paid = [probe.paid(one.problem, [one.rollout.text])[0] for one in right]
    known = [price for price in paid if price is not None]
    return float(np.median(known)) if known else 1.0


def _like_right(paid: Sequence[float | None], price: float) -> NDArray[np.float64]:
    return np.array([np.nan if one is None else float(one >= price > 0) for one in paid])


def _nothings(audit: str, probe: Paying, price: float) -> Finding | None:
    """The text that is paid most often of those that answer nothing."""
    tried: dict[str, list[tuple[str, float | None]]] = {}
    for group in probe.groups:
        texts = no_answers(group.problem)
        for name, paid in zip(texts, probe.paid(group.problem, list(texts.values())), strict=True):
            tried.setdefault(name, []).append((group.problem.key, paid))
    made = []
    for name, results in tried.items():
        keys = np.unique([key for key, _ in results], return_inverse=True)[1].astype(np.uint64)
        told = estimate(_like_right([paid for _, paid in results], price), keys)
        if told is not None:
            made.append((name, told))
    if not made:
        return None
    name, told = max(made, key=lambda one: one[1].value)
    shares = ", ".join(f"{other} {each.value:.0%}" for other, each in made)
    claim = (
        f"Texts that answer nothing and are paid like a correct rollout ({price:.3g} or more), of {told.problems} "
        f"problems: {shares}."
    )
    return graded(audit, claim, told.value, told.interval, HOLE)


def _borrowed(audit: str, found: Sequence[Attempt], probe: Paying, price: float) -> Finding | None:
    """The policy's paid texts under the next problem that has another answer."""
    mine = [
        one for one in found
        if one.problem.answer and (_like_right(probe.paid(one.problem, [one.rollout.text]), price) == 1).any()
    ]  # fmt: skip
    problems = list({one.problem.key: one.problem for one in found if one.problem.answer}.values())
    places = {problem.key: place for place, problem in enumerate(problems)}
    names, values, used = [], [], []
    for one in mine:
        start = places[one.problem.key]
        after = problems[start + 1 :] + problems[:start]
        other = next((each for each in after if normal(each.answer) != normal(one.problem.answer)), None)
        if other is not None:
            names.append(one.rollout.id)
            values.append(probe.paid(other, [one.rollout.text])[0])
            used.append(one)
    shares = _like_right(values, price)
    told = estimate(shares, problem_numbers(used))
    if told is None:
        return None
    claim = (
        f"Of {told.rollouts} texts of the policy that are paid like a correct one {told.value:.1%} are paid under "
        f"another problem with another answer, too."
    )
    evidence = tuple(name for name, share in zip(names, shares.tolist(), strict=True) if share == 1)[:EXAMPLES]
    return replace(graded(audit, claim, told.value, told.interval, HOLE), evidence=evidence)
