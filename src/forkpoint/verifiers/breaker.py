"""The circuit breaker: a run stops when its verifier fails too often, since what is left would be a biased sample."""

from collections import Counter
from collections.abc import Iterable

from forkpoint.errors import VerifierError
from forkpoint.records import Outcome, Verdict

MINIMUM = 8
"""Verdicts below which a share says nothing, unless none of them can be used."""
SHOWN_REASONS = 2
MAX_SHOWN = 120
"""Characters of a reason in the message."""


def check_share(verdicts: Iterable[Verdict], *, limit: float, minimum: int = MINIMUM) -> None:
    """Nothing where at most a share `limit` of the verdicts is ERROR or ABSTAINED.

    Of fewer than `minimum` verdicts one must be usable, and no more is asked of them.

    The verdicts are those of one update, or of as many as the caller wants to judge together.  `limit` lies in [0, 1];
    1 never stops.  Raises VerifierError with the counts, the share, the limit and the most frequent reasons, and
    ValueError for a limit outside [0, 1].

    >>> lost = Verdict(outcome=Outcome.ERROR, correct=None, reason="no answer within 5 s")
    >>> right = Verdict(outcome=Outcome.CORRECT, correct=True)
    >>> check_share([lost, lost, right], limit=0.2, minimum=4)
    >>> check_share([lost] * 4, limit=0.2, minimum=4)
    Traceback (most recent call last):
    ...
    forkpoint.errors.VerifierError: The verifier could not judge 4 of 4 rollouts (100 %: 4 error, 0 abstained); \
max_unusable = 0.2 allows 20 %. Most frequent: 'no answer within 5 s' (4 times).
    """
    if not 0 <= limit <= 1:
        raise ValueError(f"limit = {limit} must lie in [0, 1]")
    seen = list(verdicts)
    lost = [verdict for verdict in seen if not verdict.usable]
    few = len(seen) < minimum and len(lost) < len(seen)
    if few or len(lost) <= limit * len(seen) + 1e-9:
        return
    outcomes = Counter(verdict.outcome for verdict in lost)
    counts = f"{outcomes[Outcome.ERROR]} error, {outcomes[Outcome.ABSTAINED]} abstained"
    raise VerifierError(
        f"The verifier could not judge {len(lost)} of {len(seen)} rollouts ({100 * len(lost) / len(seen):.3g} %: "
        f"{counts}); max_unusable = {limit:g} allows {100 * limit:.3g} %. Most frequent: {_reasons(lost)}."
    )


def _reasons(lost: Iterable[Verdict]) -> str:
    found = Counter(" ".join(verdict.reason.split())[:MAX_SHOWN] or "no reason given" for verdict in lost)
    return ", ".join(f"'{reason}' ({times} times)" for reason, times in found.most_common(SHOWN_REASONS))
