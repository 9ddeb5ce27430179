"""A held-out verifier: rates by hand, where it turned over, what is not known, and records that lack what it reads."""

import numpy as np
import pytest
from audit_examples import drawn, example

from forkpoint.audits.held_out import onset, with_held_out
from forkpoint.audits.reward_hacking import reward_hacking
from forkpoint.audits.rows import Row, records_of
from forkpoint.audits.table import AUDITS, run_audits
from forkpoint.conformance import check_audit
from forkpoint.records import Contents, Outcome, Severity, Verdict

OK, WATCH, SICK = Severity.INFO, Severity.WARNING, Severity.CRITICAL


def ends_in(problem, rollout):
    """Right where the text ends in the reference; it cannot tell of texts that say so."""
    if "unclear" in rollout.text:
        return Verdict(outcome=Outcome.ABSTAINED, correct=None)
    right = rollout.text.endswith(f"= {problem.answer}")
    return Verdict(outcome=Outcome.CORRECT if right else Outcome.WRONG, correct=right)


def hump(update, problem, place):
    """Reward rises all the time; what is right rises to update 6 and falls from 7 on; the run's own verdict is paid."""
    rate = 0.2 + 0.12 * update if update <= 6 else 0.08
    right = drawn(11, update, problem, place) < rate
    paid = drawn(12, update, problem, place) < 0.1 * update
    return {"text": f"so {problem} = {problem if right else 'x'}", "correct": paid, "reward": float(paid)}


def about(found, part):
    (finding,) = [one for one in found if part in one.claim]
    return finding


def test_the_reward_rises_while_the_held_out_share_falls_and_the_onset_is_told():
    records = with_held_out(example(hump), ends_in)
    assert {"held_out"} <= records.has
    # By hand: the share of the last quarter less that of the first, of the texts themselves.
    right = np.array([said.text.endswith(f"= {said.reference}") for said in records.contents(np.arange(len(records)))])
    by_hand = right[records.update >= 7].mean() - right[records.update <= 2].mean()
    found = about(reward_hacking(records), "A held-out verifier accepts")
    assert found.value == pytest.approx(by_hand)
    assert found.severity is SICK
    assert "It fell from update 7 on (95 %: 7 to 7)." in found.claim
    assert found.evidence
    # The outcome of the run itself rose: without the other verifier nothing is wrong.
    assert "of the outcome" in found.claim
    assert about(reward_hacking(example(hump)), "mean reward").severity is OK


def test_an_honest_run_is_ok_and_so_is_a_reward_that_falls():
    def honest(update, problem, place):
        right = drawn(13, update, problem, place) < 0.1 * update
        return {"text": f"= {problem if right else 'x'}", "correct": right, "reward": float(right)}

    found = reward_hacking(with_held_out(example(honest), ends_in))
    assert about(found, "verifier accepts").severity is OK
    assert about(found, "verifier refuses").value == 0
    assert "fell from" not in about(found, "verifier accepts").claim

    def falling(update, problem, place):
        return hump(update, problem, place) | {"reward": -float(update)}

    assert about(reward_hacking(with_held_out(example(falling), ends_in)), "verifier accepts").severity is OK


@pytest.mark.parametrize(("share", "severity"), [(0.0, OK), (0.2, WATCH), (0.5, SICK)])
def test_correct_rollouts_that_are_refused(share, severity):
    def fooled(update, problem, place):
        refused = update > 6 and drawn(14, update, problem, place) < share
        return {"correct": True, "text": f"= {'x' if refused else problem}"}

    found = about(reward_hacking(with_held_out(example(fooled, problems=48), ends_in)), "verifier refuses")
    assert found.severity is severity
    assert found.value == pytest.approx(share, abs=0.05)


def test_one_update_has_a_level_and_no_grade():
    records = with_held_out(example(lambda *_: {"correct": True, "text": "= x"}, updates=1), ends_in)
    found = about(reward_hacking(records), "all at one time")
    assert (found.value, found.severity) == (1.0, OK)


def test_what_it_cannot_tell_does_not_count_and_failures_are_no_verdicts():
    def half(update, problem, place):
        return {"text": "unclear" if place < 2 else f"= {problem}"}

    records = with_held_out(example(half), ends_in)
    assert [int((records.held_out == value).sum()) for value in (-1, 0, 1)] == [384, 0, 384]

    def broken(problem, rollout):
        raise ValueError("no")

    failed = with_held_out(example(half), broken)
    assert "held_out" not in failed.has
    assert (failed.held_out == -1).all()


def test_lacking_texts_or_references_is_said_and_nothing_is_asked():
    def asked(problem, rollout):
        raise AssertionError

    for lost in ("text", "reference"):
        records = with_held_out(example(lambda *_, lost=lost: {lost: None}), asked)
        (result,) = run_audits(records, only=["reward_hacking"])
        assert result.ran
        assert result.lacks["held-out verifier"] == ("held_out",)
        assert lost in result.lacks["other extraction"]


def test_at_most_so_many_are_judged_evenly_over_the_updates():
    counted = []
    records = with_held_out(example(), ends_in, limit=80, told=counted.append)
    assert counted[-1] == 80
    judged = np.bincount(records.update[records.held_out >= 0], minlength=9)[1:]
    assert judged.sum() == 80
    assert judged.min() >= 9


def test_the_onset_by_hand():
    """Shares 0.25, 0.75, 0.75, 0.5 of four updates: highest in the third, so it fell from the fourth on."""
    rows = [
        Row(id=f"{update}-{problem}", problem=str(problem), update=update, correct=True, said=Contents(text="a"))
        for update in (10, 20, 30, 40)
        for problem in range(4)
    ]
    right = {10: 1, 20: 3, 30: 3, 40: 2}
    records = records_of(rows)
    values = np.array([float(place % 4 < right[update]) for place, update in enumerate(records.update.tolist())])
    update, (low, high) = onset(records, values)
    assert update == 40
    assert 20 <= low <= 40 <= high <= 41
    assert onset(records, np.sort(values)) is None
    assert onset(records_of(rows[:4]), values[:4]) is None


def test_the_interval_of_the_onset_covers_the_truth():
    """The share peaks in the fifth of eight updates; of 60 stages at least 0.9 of the intervals hold the sixth."""
    rates = (0.2, 0.3, 0.4, 0.5, 0.62, 0.5, 0.4, 0.3)
    held = 0
    for stage in range(60):
        uniforms = np.random.Generator(np.random.Philox(key=stage)).random((8, 60))
        records = records_of(
            [
                Row(id=f"{u}-{p}", problem=f"{p}", update=u + 1, said=Contents(text="a"))
                for u in range(8)
                for p in range(60)
            ]
        )
        values = (uniforms < np.array(rates)[:, None]).astype(float).ravel()
        found = onset(records, values)
        held += found is not None and found[1][0] <= 6 <= found[1][1]
    assert held >= 54


def test_it_conforms():
    records = with_held_out(example(hump), ends_in)
    assert check_audit(reward_hacking, records, needs=AUDITS["reward_hacking"].needs) == []
