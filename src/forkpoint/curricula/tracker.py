"""Pass rates with their uncertainty: counts of correct rollouts in, a Beta posterior out.

A bucket is whatever shares a pass rate: one problem, one difficulty, one value of a problem's metadata.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

PRIOR = (1.0, 1.0)
"""Beta(1, 1): every pass rate is as likely as any other before the first rollout."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tally:
    """Judged rollouts of one bucket, older ones discounted."""

    correct: float = 0.0
    judged: float = 0.0
    update: int = 0
    """When the counts were last brought up to date."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Posterior:
    """Beta(alpha, beta): what is known of a pass rate p."""

    alpha: float
    beta: float

    @property
    def mean(self) -> float:
        """E[p] = alpha / (alpha + beta).

        >>> Posterior(alpha=3, beta=1).mean
        0.75
        """
        return self.alpha / (self.alpha + self.beta)

    @property
    def expected_variance(self) -> float:
        """E[p (1 - p)] = alpha beta / ((alpha + beta) (alpha + beta + 1)): how much an outcome is expected to vary.

        The squared length of the policy gradient of a problem is at most proportional to p (1 - p) (arXiv 2504.03380).

        >>> Posterior(alpha=1, beta=1).expected_variance
        0.16666666666666666
        """
        total = self.alpha + self.beta
        return self.alpha * self.beta / (total * (total + 1))


def discounted(tally: Tally, *, update: int, half_life: float) -> Tally:
    """The tally at a later update: counts halve every `half_life` updates, since the policy that made them has changed.

    `half_life` 0 never forgets.  Raises ValueError for an update before the tally's.
    """
    if update < tally.update:
        raise ValueError(f"update = {update} lies before {tally.update}, when the tally was taken")
    share = 0.5 ** ((update - tally.update) / half_life) if half_life else 1.0
    return Tally(correct=tally.correct * share, judged=tally.judged * share, update=update)


def posterior(tally: Tally | None, *, update: int, half_life: float = 0.0) -> Posterior:
    """Beta(1 + correct, 1 + wrong) of a tally as it counts at `update`; the prior where there is none.

    >>> posterior(Tally(correct=2, judged=8), update=0)
    Posterior(alpha=3.0, beta=7.0)
    """
    if tally is None:
        return Posterior(alpha=PRIOR[0], beta=PRIOR[1])
    now = discounted(tally, update=update, half_life=half_life)
    return Posterior(alpha=PRIOR[0] + now.correct, beta=PRIOR[1] + now.judged - now.correct)


def tallied(
    tallies: Mapping[str, Tally], seen: Iterable[tuple[str, int, int]], *, update: int, half_life: float = 0.0
) -> dict[str, Tally]:
    """The tallies with what was seen at `update` added: (bucket, correct, judged) each.

    Raises ValueError for counts that cannot be.
    """
    found = dict(tallies)
    for bucket, correct, judged in seen:
        if not 0 <= correct <= judged:
            raise ValueError(f"{correct} of {judged} rollouts of '{bucket}' cannot be correct")
        if not judged:
            continue
        before = discounted(found.get(bucket, Tally(update=update)), update=update, half_life=half_life)
        found[bucket] = Tally(correct=before.correct + correct, judged=before.judged + judged, update=update)
    return found
