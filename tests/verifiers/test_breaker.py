"""The circuit breaker: when it opens, when it does not, and what it says."""

import pytest

from forkpoint.errors import VerifierError
from forkpoint.records import Outcome, Verdict
from forkpoint.verifiers.breaker import check_share

RIGHT = Verdict(outcome=Outcome.CORRECT, correct=True)
WRONG = Verdict(outcome=Outcome.WRONG, correct=False)
OTHERS = [Verdict(outcome=o, correct=False) for o in (Outcome.DECLINED, Outcome.UNPARSEABLE, Outcome.TRUNCATED)]


def lost(count, reason="no answer within 5 s", outcome=Outcome.ERROR):
    return [Verdict(outcome=outcome, correct=None, reason=reason)] * count


def test_the_limit_itself_is_allowed_and_one_more_is_not():
    check_share(lost(20) + [RIGHT] * 80, limit=0.2)
    with pytest.raises(VerifierError):
        check_share(lost(21) + [RIGHT] * 79, limit=0.2)


def test_abstained_counts_as_error_does_and_nothing_else_counts():
    check_share([*OTHERS, WRONG] * 25, limit=0.0)
    with pytest.raises(VerifierError, match="0 error, 1 abstained"):
        check_share([*[WRONG] * 99, *lost(1, outcome=Outcome.ABSTAINED)], limit=0.0)


def test_few_verdicts_say_nothing():
    check_share([*lost(6), RIGHT], limit=0.2)
    check_share([], limit=0.0, minimum=0)
    with pytest.raises(VerifierError):
        check_share([*lost(7), RIGHT], limit=0.2)
    with pytest.raises(VerifierError):
        check_share(lost(1), limit=0.2)
    with pytest.raises(VerifierError):
        check_share(iter(lost(2)), limit=0.5, minimum=2)
    check_share(lost(1000), limit=1.0)


def test_the_message_counts_and_gives_the_two_most_frequent_reasons():
    verdicts = [
        *lost(30, "timeout:\nno answer"), *lost(12, "crash", Outcome.ABSTAINED), *lost(3, "rare"), *lost(3, ""),
        *[WRONG] * 80,
    ]  # fmt: skip
    with pytest.raises(VerifierError) as raised:
        check_share(verdicts, limit=0.25)
    assert str(raised.value) == (
        "The verifier could not judge 48 of 128 rollouts (37.5 %: 36 error, 12 abstained); max_unusable = 0.25 "
        "allows 25 %. Most frequent: 'timeout: no answer' (30 times), 'crash' (12 times)."
    )


@pytest.mark.parametrize("limit", [-0.1, 1.1, float("nan")])
def test_a_limit_is_a_share(limit):
    with pytest.raises(ValueError, match="must lie in"):
        check_share([], limit=limit)
