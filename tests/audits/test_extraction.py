"""Other extractions of the answer: shares that flip by hand, instruments that do not apply, and success that turns."""

import pytest
from audit_examples import drawn, example

from forkpoint.audits.extraction import INSTRUMENTS, last_number, same_answer
from forkpoint.audits.reward_hacking import reward_hacking
from forkpoint.records import Severity
from forkpoint.verifiers.answers import first_box, last_box

OK, WATCH, SICK = Severity.INFO, Severity.WARNING, Severity.CRITICAL


def about(found, part):
    (finding,) = [one for one in found if part in one.claim]
    return finding


@pytest.mark.parametrize(
    ("text", "first", "last", "marked", "number"),
    [
        (r"\boxed{1} then \boxed{2}", "1", "2", None, "2"),
        (r"\boxed{1} #### 3 in 4 steps", "1", "1", "3 in 4 steps", "4"),
        ("Answer: 1,250.", None, None, "1,250.", "1,250"),
        (r"\boxed{\frac{1}{2}} or \boxed{", r"\frac{1}{2}", r"\frac{1}{2}", None, "2"),
        ("x2 and 3.5e", None, None, None, "3.5"),
        ("", None, None, None, None),
    ],
)  # fmt: skip
def test_instruments_by_hand(text, first, last, marked, number):
    assert (first_box(text), last_box(text)) == (first, last)
    assert INSTRUMENTS["declared form"](text) == marked
    assert last_number(text) == number


def test_equal_answers():
    assert same_answer("1/2", r"\boxed{0.5}")
    assert not same_answer("12", "B")
    assert same_answer("The Cat", "the cat!")


def boxes(share):
    """The last box is what the run judged; the first one differs in some of the texts of the last quarter."""

    def made(update, problem, place):
        right = drawn(21, update, problem, place) < 0.5
        said = problem if right else "x"
        flips = update > 6 and drawn(22, update, problem, place) < share
        first = ("x" if right else problem) if flips else said
        return {
            "text": rf"\boxed{{{first}}} no, \boxed{{{said}}}", "correct": right, "answer": str(said),
            "reference": str(problem),
        }  # fmt: skip

    return made


@pytest.mark.parametrize(("share", "severity"), [(0.0, OK), (0.03, OK), (0.2, WATCH)])
def test_the_share_that_flips(share, severity):
    records = example(boxes(share), problems=48)
    found = about(reward_hacking(records), "verdicts flip")
    late = [row for row in range(len(records)) if records.update[row] > 6]
    by_hand = sum(drawn(22, *map(int, records.ids[row].decode().split("-"))) < share for row in late) / len(late)
    assert found.value == pytest.approx(by_hand)
    assert found.severity is severity
    assert "(worst of 3), not the run's own extraction" in found.claim
    assert ("is the first box" in found.claim) == (share > 0)


def test_success_by_one_instrument_is_failure_by_the_other():
    """Later texts give their answer first and then go on to another: the last box falls, the first one rises."""

    def made(update, problem, place):
        draw = drawn(23, update, problem, place)
        first = problem if draw < 0.1 * update else "x"
        last = problem if draw < 0.9 - 0.1 * update else "x"
        right = last == problem
        return {
            "text": rf"\boxed{{{first}}}, or rather \boxed{{{last}}}", "correct": right, "answer": str(last),
            "reference": str(problem),
        }  # fmt: skip

    found = about(reward_hacking(example(made, problems=48)), "verdicts flip")
    assert found.severity is SICK
    assert "success by one instrument is failure by the other" in found.claim
    assert found.evidence


def test_where_no_instrument_stands_for_the_verifier_nothing_is_graded():
    """Any of many right answers counts: the reference says little."""
    records = example(lambda *_: {"text": r"\boxed{left}", "correct": True, "answer": "left"})
    found = about(reward_hacking(records), "No extraction")
    assert (found.value, found.severity) == (0.0, OK)


def test_where_only_one_instrument_finds_an_answer_there_is_no_other():
    def made(update, problem, place):
        right = place < 2
        return {
            "text": rf"it is \boxed{{{'ab'[right]}}}", "correct": right, "answer": "ab"[right], "reference": "b",
            "prompt": f"{problem}",
        }  # fmt: skip

    found = about(reward_hacking(example(made)), "verdicts")
    assert found.severity is OK
    assert "0.0% of the verdicts flip" in found.claim  # both boxes are the same box
    records = example(lambda *_: {"text": "#### b", "correct": True, "answer": None, "reference": "b"})
    assert "no other instrument" in about(reward_hacking(records), "instrument").claim


def test_texts_without_what_the_verifier_took_are_judged_by_what_agrees_best():
    def made(update, problem, place):
        return boxes(0.3)(update, problem, place) | {"answer": None}

    found = about(reward_hacking(example(made, problems=48)), "verdicts flip")
    assert found.severity is WATCH
    assert found.claim.split("not ")[1].startswith("last box")


def test_an_unfinished_think_has_no_answer_under_any_instrument():
    def made(update, problem, place):
        done = place < 3
        text = f"<think>{problem}{'</think>' if done else ''} #### {problem}"
        return {"text": text, "correct": done, "answer": str(problem) if done else None, "reference": str(problem)}

    assert about(reward_hacking(example(made)), "verdicts flip").value == 0
