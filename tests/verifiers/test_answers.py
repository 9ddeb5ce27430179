import time

import pytest

from forkpoint.verifiers.answers import BOX_WINDOW, after_marker, after_thinking, final_answer, last_box


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain", "plain"),
        ("<think>a</think>b", "b"),
        ("a</think>b", "b"),
        ("<think>a</think>b<think>c</think>d", "d"),
        ("<think>a", None),
        ("<think>a</think>b<think>c", None),
        ("</think>", ""),
        ("<think><think>a</think>b", "b"),
    ],
)
def test_the_answer_follows_the_last_closing_think_tag(text, expected):
    assert after_thinking(text) == expected


def test_a_think_that_the_prompt_opened_must_be_closed():
    assert after_thinking("5", opened=True) is None
    assert after_thinking("so</think>5", opened=True) == "5"
    assert final_answer(r"\boxed{5}", opened=True) is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (r"\boxed{1}", "1"),
        (r"\boxed {1}", "1"),
        (r"\boxed{1} \boxed{2}", "2"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{1+\boxed{3}}", "3"),
        (r"{ \boxed{4}", "4"),
        (r"} \boxed{4}", "4"),
        (r"\boxed{\{1\}}", r"\{1\}"),
        (r"\boxed{\}}", r"\}"),
        (r"\boxed{}", ""),
        (r"\boxed{1} \boxed{2", "1"),
        (r"\boxed{1", None),
        (r"\boxed 1", None),
        ("none", None),
    ],
)
def test_the_last_complete_box(text, expected):
    assert last_box(text) == expected


def test_a_box_before_the_window_is_not_seen():
    assert last_box(r"\boxed{1}" + "x" * BOX_WINDOW) is None


def test_markers():
    assert after_marker("answer: 4\nANSWER: 5\nbecause", ("####", "answer:")) == "5"
    assert after_marker("#### 4 answer: 5 #### 6", ("####", "answer:")) == "6"
    assert after_marker("answer:\n\n 7\nrest", ("answer:",)) == "7"
    assert after_marker("4", ("answer:",)) is None
    assert after_marker("4", ()) is None


def test_a_box_wins_over_a_marker_and_a_marker_over_the_text():
    assert final_answer(r"\boxed{1} #### 2") == "1"
    assert final_answer("0 #### 2", whole=True) == "2"
    assert final_answer(" 3 ", whole=True) == "3"
    assert final_answer(" 3 ") is None


def test_nothing_behind_a_marker_or_in_a_box_is_no_answer():
    assert final_answer("3 ####", whole=True) is None
    assert final_answer(r"3 \boxed{ }", whole=True) is None
    assert final_answer("", whole=True) is None
    assert final_answer("3</think>", whole=True) is None


def test_an_answer_inside_the_think_does_not_count():
    assert final_answer(r"<think>\boxed{5} #### 5</think>") is None
    assert final_answer(r"<think>\boxed{5}", whole=True) is None


@pytest.mark.parametrize("unit", [r"\boxed{", "{", "}", "\\", r"\boxed ", "<think>", "answer:", "#", "\n"])
def test_long_texts_take_linear_time(unit):
    started = time.perf_counter()
    final_answer(unit * (1_000_000 // len(unit)), whole=True)
    assert time.perf_counter() - started < 5
