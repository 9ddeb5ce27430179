"""Each audit that reads records alone: healthy records are not called sick, sick ones are, evidence leads there."""

import re
from dataclasses import replace

import numpy as np
import pytest
from audit_examples import drawn, example, spoken

from forkpoint.audits.advantage_collapse import advantage_collapse, groups_of
from forkpoint.audits.exploration import exploration
from forkpoint.audits.length_and_format import length_and_format
from forkpoint.audits.mismatch import mismatch
from forkpoint.audits.reward_hacking import reward_hacking
from forkpoint.audits.rows import Row, records_of
from forkpoint.audits.sabotage import sabotage
from forkpoint.audits.table import run_audits
from forkpoint.records import Contents, Outcome, Severity, StopReason

SICK, WATCH, OK = Severity.CRITICAL, Severity.WARNING, Severity.INFO


def about(findings, words):
    found = [finding for finding in findings if words in finding.claim]
    assert len(found) == 1, [finding.claim for finding in findings]
    return found[0]


def test_a_healthy_stage_has_no_finding_but_ok():
    results = list(run_audits(example()))
    assert [finding.claim for result in results for finding in result.findings if finding.severity is not OK] == []
    not_run = [result.audit for result in results if not result.ran]
    assert not_run == ["transfer", "mismatch", "token_edits", "premature_confidence", "template_collapse"]
    assert sum(len(result.findings) for result in results) >= 15


# --- advantage_collapse


def test_groups_without_variance_by_hand():
    rewards = {"a": (1, 1, 1), "b": (0, 0, 0), "c": (0, 1, 0), "d": (1,)}
    rows = [
        Row(id=f"{name}{place}", problem=name, reward=float(reward), correct=reward == 1, difficulty=0.0)
        for name, values in rewards.items()
        for place, reward in enumerate(values)
    ]
    records = records_of(rows)
    groups = groups_of(records, records.training)
    # A group of one compares with nobody.
    assert (len(groups.constant), int(groups.constant.sum()), int(groups.solved.sum())) == (3, 2, 1)
    finding = about(advantage_collapse(records), "no variance")
    assert finding.value == pytest.approx(2 / 3)
    assert set(finding.evidence) == {"a0", "a1", "a2", "b0", "b1", "b2"}


@pytest.mark.parametrize(("stuck", "severity"), [(0, OK), (34, WATCH), (48, SICK)])
def test_stuck_problems_are_graded(stuck, severity):
    records = example(
        lambda update, problem, _: {"correct": False, "reward": 0.0} if problem < stuck and update > 6 else {},
        problems=48,
    )
    assert about(advantage_collapse(records), "no variance").severity is severity


def test_solved_problems_are_no_sickness():
    records = example(lambda *_: {"correct": True, "reward": 1.0})
    finding = about(advantage_collapse(records), "no variance")
    assert finding.severity is WATCH
    assert "take harder ones" in finding.claim


def test_correct_stands_in_for_a_reward_and_difficulty_is_told_apart():
    records = example(lambda _, problem, __: {"reward": None, "correct": problem % 3 == 0})
    found = advantage_collapse(records)
    assert about(found, "no variance").value == 1.0
    assert "0 to 0: 100%" in about(found, "by difficulty").claim


# --- length_and_format


@pytest.mark.parametrize(("share", "severity"), [(0.0, OK), (0.25, WATCH), (0.9, SICK)])
def test_truncation_is_graded(share, severity):
    def cut(update, problem, place):
        return {"stop": StopReason.LENGTH} if update > 6 and drawn(1, update, problem, place) < share else {}

    finding = about(length_and_format(example(cut)), "cut off")
    assert finding.severity is severity
    assert bool(finding.evidence) == (share > 0)


def test_a_length_that_collapses_is_sick_unless_it_was_earned():
    def shrinks(update, *_):
        return {"length": 400 if update < 7 else 8, "correct": False}

    assert about(length_and_format(example(shrinks)), "mean length").severity is SICK

    def earned(update, *_):
        return {"length": 400 if update < 7 else 8, "correct": update >= 7}

    finding = about(length_and_format(example(earned)), "mean length")
    assert finding.severity is OK
    assert finding.value == pytest.approx(8 / 400)


def test_unfinished_thinking_language_and_repetition():
    def bad(update, problem, place):
        text = spoken(update, problem, place)
        return {} if update < 7 else {"text": f"<think>{'там ' * 30}{text[:10]}"}

    found = length_and_format(example(bad))
    assert about(found, "never close").severity is SICK
    assert about(found, "another script than latin").severity is SICK
    assert about(found, "4-grams").severity is SICK


def test_wrong_over_right_length_by_hand():
    rows = [Row(id=str(i), problem=str(i), correct=i < 2, length=10 if i < 2 else 40) for i in range(4)]
    assert about(length_and_format(records_of(rows)), "times as long").value == 4.0


def test_answers_that_cannot_be_read():
    found = length_and_format(example(lambda update, *_: {"outcome": Outcome.UNPARSEABLE} if update > 6 else {}))
    assert about(found, "declared form").severity is SICK


# --- mismatch


def with_logprobs(gap):
    tokens = np.zeros(4, dtype=np.int32)
    old = np.full(4, -1.0, dtype=np.float32)
    new = (old + np.array(gap)).astype(np.float32)
    mask = np.array([True, True, True, False])
    said = Contents(tokens=tokens, behavior_logprobs=old, trainer_logprobs=new, loss_mask=mask)
    return records_of([Row(id=str(i), problem=str(i), length=4, said=said) for i in range(8)])


def test_mismatch_by_hand_and_the_mask_counts():
    half = float(np.log(0.5))
    found = mismatch(with_logprobs([0.0, 0.0, half, 50.0]))
    # k3 = (0 + 0 + (0.5 - 1 + log 2)) / 3; ess = 2.5^2 / (3 * 2.25).
    assert about(found, "k3").value == pytest.approx((0.5 - 1 - half) / 3, rel=1e-5)
    assert about(found, "effective sample size").value == pytest.approx(1 - 2.5**2 / (3 * 2.25), rel=1e-5)
    assert about(found, "largest").value == pytest.approx(-half, rel=1e-5)
    assert about(found, "k3").severity is SICK


def test_agreement_is_no_mismatch():
    assert {finding.severity for finding in mismatch(with_logprobs([1e-6, 0.0, -1e-6, 0.0]))} == {OK}


def test_mismatch_from_metrics_and_infinity_is_sick():
    updates = np.arange(8, dtype=np.int32)
    rows = [Row(id="a", problem="a")]
    calm = records_of(rows, metrics={"kl_to_behavior": (updates, np.full(8, 1e-7))})
    assert mismatch(calm)[0].severity is OK
    for value in (0.02, np.inf, np.nan):
        wild = records_of(rows, metrics={"kl_to_behavior": (updates, np.full(8, value))})
        assert mismatch(wild)[0].severity is SICK
        assert np.isfinite(mismatch(wild)[0].value)


@pytest.mark.parametrize("place", [0, 2, 4, 6])
def test_a_mismatch_counts_in_whatever_quarter_it_was(place):
    """Two of eight updates: the median of one quarter, and 0 everywhere else."""
    values = np.zeros(8)
    values[place : place + 2] = 0.02, 0.04
    records = records_of([Row(id="a", problem="a")], metrics={"kl_to_behavior": (np.arange(8, dtype=np.int32), values)})
    (found,) = mismatch(records)
    assert (found.severity, found.value, found.interval) == (SICK, pytest.approx(0.03), (0.02, 0.04))
    assert ("first", "second", "third", "last")[place // 2] in found.claim
    # One bad update of a quarter of two is half of it, and of a quarter of four no median.
    spike = np.zeros(16)
    spike[place] = 1.0
    calm = records_of([Row(id="a", problem="a")], metrics={"kl_to_behavior": (np.arange(16, dtype=np.int32), spike)})
    assert mismatch(calm)[0].severity is OK


# --- exploration


@pytest.mark.parametrize(("share", "severity"), [(0.0, OK), (0.5, SICK)])
def test_loops_are_graded(share, severity):
    def looping(update, problem, place):
        text = spoken(update, problem, place)
        return {"text": text + " go back" * 8} if update > 6 and drawn(2, update, problem, place) < share else {}

    finding = about(exploration(example(looping)), "four times in a row")
    assert finding.severity is severity


def test_repeated_actions_and_tokens_without_text():
    found = exploration(example(lambda *_: {"text": "look\n" * 9}))
    assert about(found, "repeat the line before").severity is SICK
    tokens = np.array([5, 6] * 20, dtype=np.int32)
    found = exploration(example(lambda *_: {"text": None, "tokens": tokens}))
    assert found[0].value == 1.0


def test_recovery_is_a_ratio_of_dead_ends():
    def walked(update, problem, place):
        left = 3.0 if update < 7 else 0.0
        return {"parts": {"wrong_entered": 3.0 if place else 1.0, "wrong_left": left if place else min(left, 1.0)}}

    found = about(exploration(example(walked)), "dead ends")
    assert (found.value, found.severity) == (0.0, SICK)
    assert "100.0% before" in found.claim
    assert found.evidence


@pytest.mark.parametrize(("seen", "severity"), [(0.75, OK), (0.5, WATCH), (0.25, SICK)])
def test_what_is_seen_without_a_goal_is_compared_with_before(seen, severity):
    """Of two rollouts one has no goal: it saw 0.75 of the places, at the end 0.75, 0.5 or 0.25."""

    def walked(update, problem, place):
        return {"parts": {"coverage": 0.75 if update < 7 else seen} if place % 2 else {"wrong_entered": 0.0}}

    found = about(exploration(example(walked)), "Without a goal")
    assert (found.value, found.severity) == (seen, severity)
    assert "75.0% before" in found.claim
    assert bool(found.evidence) == (seen < 0.5)
    assert not [each for each in exploration(example()) if "Without a goal" in each.claim]


def test_a_fall_that_chance_explains_is_none():
    """Of each update's rollouts six in ten saw all at first, five at last, by chance fewer: a fall, but of coins."""

    def walked(update, problem, place):
        return {"parts": {"coverage": float(drawn(9, update, problem, place) < (0.6 if update < 7 else 0.5))}}

    found = about(exploration(example(walked)), "Without a goal")
    before = float(found.claim.split("%")[1].rsplit(" ", 1)[1]) / 100
    assert before - found.value > 0.1
    assert found.severity is OK


# --- reward_hacking


def test_a_reward_that_rises_while_the_outcome_falls():
    def hacked(update, problem, place):
        correct = drawn(3, update, problem, place) < (0.6 if update < 5 else 0.2)
        return {"correct": correct, "reward": 0.1 * correct + 0.1 * update}

    found = about(reward_hacking(example(hacked)), "mean reward")
    assert found.severity is SICK
    assert found.value < -0.2
    # Both rising is what training is for.
    assert about(reward_hacking(example()), "mean reward").severity is OK


@pytest.mark.parametrize(("share", "severity"), [(0.0, OK), (0.06, WATCH), (0.5, SICK)])
def test_wrong_rollouts_that_are_paid(share, severity):
    def hacked(update, problem, place):
        correct = place == 0
        paid = correct or drawn(4, update, problem, place) < share
        return {"correct": correct, "reward": float(paid)}

    finding = about(reward_hacking(example(hacked)), "yet paid")
    assert finding.severity is severity
    assert bool(finding.evidence) == (share > 0)


def test_a_phrase_that_spreads_with_the_reward_and_without_the_outcome():
    def master_key(update, problem, place):
        late = update > 6
        text = spoken(update, problem, place)
        return {
            "text": f"thought process : {text}" if late else text,
            "correct": place == 0,
            "reward": 0.5 + 0.4 * late,
        }

    found = about(reward_hacking(example(master_key, problems=48)), "The phrase")
    assert found.severity is SICK
    assert "thought process" in found.claim or "process :" in found.claim


def test_correct_rollouts_without_the_answer():
    found = reward_hacking(example(lambda update, *_: {"text": "trust me"} if update > 6 else {}, rate=0.6))
    assert about(found, "does not occur").severity is SICK


# --- sabotage


def questions(pick, right):
    """Multiple choice: what is picked, and whether that is right."""

    def made(update, problem, place):
        sizes = [3 + (problem * 7 + slot * 5) % 11 + slot / 8 for slot in range(4)]
        choices = ["x" * int(size * 8) for size in sizes]
        prompt = "Which?\n" + "\n".join(f"{name}) {text}" for name, text in zip("ABCD", choices, strict=True))
        return {"prompt": prompt, "answer": pick(choices, update, problem, place), "correct": right, "reward": 0.0}

    return made


def test_the_shortest_option_and_one_slot():
    def shortest(choices, *_):
        return "ABCD"[min(range(4), key=lambda slot: len(choices[slot]))]

    found = sabotage(example(questions(shortest, False)))
    assert about(found, "shortest").severity is SICK
    assert "100% of the groups are constant" in about(found, "shortest").claim
    found = sabotage(example(questions(lambda *_: "C", False)))
    assert about(found, "slot C").severity is SICK
    # An able policy may have a favorite.
    assert about(sabotage(example(questions(lambda *_: "C", True))), "slot C").severity is OK


def test_any_wrong_answer_is_no_pattern():
    def random(_, update, problem, place):
        return "ABCD"[int(4 * drawn(5, update, problem, place))]

    assert {finding.severity for finding in sabotage(example(questions(random, False)))} == {OK}


def test_one_answer_for_all_and_refusals():
    same = sabotage(example(lambda *_: {"answer": "42", "correct": False}))
    assert about(same, "answers '42'").severity is SICK
    refused = sabotage(example(lambda *_: {"text": "I can\u2019t help with that.", "correct": False, "answer": None}))
    assert about(refused, "refuses").severity is SICK
    assert sabotage(example(lambda *_: {"answer": "42", "correct": False}, problems=10)) == []


def thought(texts, *, stage="rl", update=0, purpose="train"):
    return [
        Row(id=f"{stage}-{update}-{place}", problem=str(place), stage=stage, update=update, purpose=purpose,
            said=Contents(text=text))
        for place, text in enumerate(texts)
    ]  # fmt: skip


def test_thinking_that_leaves_the_language_of_the_base_is_sick_by_its_letters():
    """Three quarters of the letters of each thought are Cyrillic, while most letters of the texts stay Latin."""
    base = records_of(thought(["<think>abcd</think> so it is"] * 20, stage="base"))
    mixed = ["<think>ab\u0442\u0430\u043c\u0442\u0430\u043c</think> " + "and so the answer is known " * 3] * 20
    records = replace(records_of(thought(mixed)), base=base)
    found = about(length_and_format(records), "Letters of the thinking")
    assert found.value == pytest.approx(6 / 8)
    assert found.severity is SICK
    assert "latin: 0.0%, then 75.0% (base, then rl)" in found.claim
    assert found.evidence
    same = replace(records_of(thought(["<think>abcd</think>"] * 20)), base=base)
    assert about(length_and_format(same), "Letters of the thinking").severity is OK
    # A base that thinks in Cyrillic is the yardstick, not the alphabet.
    other = records_of(thought(["<think>\u0442\u0430\u043c</think>"] * 20, stage="base"))
    same = replace(records_of(thought(["<think>\u0441\u044e\u0434\u0430</think>"] * 20)), base=other)
    assert about(length_and_format(same), "than cyrillic").value == 0
    assert not [one for one in length_and_format(records_of(thought(["no thought"] * 20))) if "thinking" in one.claim]


def test_without_a_base_thinking_is_held_against_its_beginning():
    rows = [
        row
        for update in range(8)
        for row in thought(["<think>ab</think>" if update < 4 else "<think>\u0442\u0430</think>"] * 6, update=update)
    ]
    found = about(length_and_format(records_of(rows)), "Letters of the thinking")
    assert (found.value, found.severity) == (1.0, SICK)
    assert "updates 0 to 1 against 6 to 7" in found.claim


def test_variance_by_difficulty_is_told_for_the_beginning_too():
    """Easy groups vary first and are constant at the end; hard ones the other way round."""

    def rewarded(update, problem, place):
        easy, late = problem % 2 == 0, update > 6
        return {"difficulty": float(not easy), "reward": float(place % 2) if easy != late else 1.0}

    (found,) = [one for one in advantage_collapse(example(rewarded)) if "by difficulty" in one.claim]
    assert "0 to 0: 0%, then 100% of" in found.claim
    assert "1 to 1: 100%, then 0% of" in found.claim


def test_an_outcome_that_falls_under_a_rising_reward_names_its_onset():
    def hacked(update, *_):
        return {"reward": update / 12, "correct": update < 6}

    finding = about(reward_hacking(example(hacked)), "mean reward went")
    assert finding.severity is SICK
    assert re.search(r"It fell from update \d+ on \(95 %: \d+ to \d+\)\.", finding.claim)
    healthy = about(reward_hacking(example(lambda update, *_: {"reward": update / 12})), "mean reward went")
    assert "It fell" not in healthy.claim
