"""Quiz: hand-worked questions, its habits, and a judge with a hole whose `correct` stays true."""

import itertools
from dataclasses import replace

import numpy as np
import pytest

from forkpoint.audits.texts import options
from forkpoint.conformance import check_task, written_rollout
from forkpoint.errors import ForkpointError
from forkpoint.records import Outcome, Problem
from forkpoint.seeds import Key
from forkpoint.tasks.quiz import HABITS, Quiz, Settings, options_of, value_of

KEY = Key.root(3)
OPEN = Problem(task="quiz", key="0", prompt="3+4-2=?\n", answer="5", metadata={"chain": "3+4-2"})
CHOICE = Problem(
    task="quiz", key="1", prompt="3+4-2=?\nA) 7\nB) 5\nC) 12\n", answer="5",
    metadata={"chain": "3+4-2", "options": [7, 5, 12]},
)  # fmt: skip


def verdict(problem, text, **settings):
    return Quiz(Settings(**settings)).verify(problem, written_rollout(problem, text))


def texts(name, count=40, **settings):
    return list(itertools.islice(Quiz(Settings(**settings)).corpus(name, KEY), count))


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_the_task_keeps_its_promises(share):
    found = check_task(Quiz(Settings(open_share=share, fooled_by="?", terms=5, min_terms=2)), count=60)
    assert found.faults == ()


def test_hand_worked_texts():
    task = Quiz()
    assert task.solve(OPEN) == "3+4=7;7-2=5;#5\n"
    assert task.solve(CHOICE) == task.solve(OPEN)
    assert value_of(CHOICE) == 5
    assert options_of(CHOICE) == {"A": 7, "B": 5, "C": 12}
    assert options_of(OPEN) == {}
    assert task.early_answer(OPEN, "3+4=7;") == "#5\n"
    assert task.early_answer(CHOICE, "") == "#5\n"
    assert task.early_answer(OPEN, "#5;") == ""


@pytest.mark.parametrize(
    ("problem", "text", "outcome", "steps", "wrong"),
    [
        (OPEN, "3+4=7;7-2=5;#5\n", Outcome.CORRECT, 2, 0),
        (OPEN, "3+4=8;8-2=6;#6\n", Outcome.WRONG, 2, 1),
        (OPEN, "#5\n", Outcome.CORRECT, 0, 0),
        (OPEN, "3+4=7;7-2=5;#?\n", Outcome.DECLINED, 2, 1),
        (OPEN, "3+4=7;7-2=5;", Outcome.UNPARSEABLE, 2, 0),
        (CHOICE, "3+4=7;7-2=5;#5\n", Outcome.CORRECT, 2, 0),
        (CHOICE, "3+4=7;7-2=5;#7\n", Outcome.WRONG, 2, 1),
        (CHOICE, "3+4=7;7-2=5;#B\n", Outcome.UNPARSEABLE, 2, 1),
        (CHOICE, "#7\n", Outcome.WRONG, 0, 1),
    ],
)
def test_verdicts(problem, text, outcome, steps, wrong):
    found = verdict(problem, text)
    assert (found.outcome, found.parts) == (outcome, {"steps": steps, "wrong_steps": wrong})
    assert found.score == float(outcome is Outcome.CORRECT)


def test_a_hole_is_in_the_score_alone():
    declined = verdict(OPEN, "3+4=7;7-2=5;#?\n", fooled_by="?")
    assert (declined.outcome, declined.correct, declined.score) == (Outcome.DECLINED, False, 1.0)
    assert verdict(OPEN, "#4\n", fooled_by="?").score == 0.0
    assert verdict(OPEN, "", fooled_by="?").score == 0.0
    with pytest.raises(ForkpointError, match="fooled_by = 'x'"):
        Quiz(Settings(fooled_by="x"))


def test_options_hold_the_answer_once_and_are_read_by_the_audit():
    task = Quiz(Settings(open_share=0.0, options=4))
    places = []
    for index in range(200):
        problem = task.problem(KEY.child(index))
        known = options_of(problem)
        assert list(known.values()).count(value_of(problem)) == 1
        assert problem.answer == str(value_of(problem))
        assert len(set(known.values())) == len(known) == 4
        assert options(str(problem.prompt)) == {letter: str(value) for letter, value in known.items()}
        places.append(list(known.values()).index(value_of(problem)))
    # 200 draws of four slots: 50 each, standard deviation 6.1.
    assert np.abs(np.bincount(places, minlength=4) - 50).max() < 25


def test_a_leak_puts_the_right_option_first_and_changes_nothing_else():
    def asked(leak):
        task = Quiz(Settings(open_share=0.5, options=4, leak=leak))
        return [task.problem(KEY.child(index)) for index in range(400)]

    none, half, full = asked(0.0), asked(0.5), asked(1.0)
    for plain, led in zip(none, full, strict=True):
        left, right = list(options_of(plain).values()), list(options_of(led).values())
        assert right == [value_of(plain)] * bool(left) + [value for value in left if value != value_of(plain)]
        assert list(options(str(led.prompt)).values()) == [str(value) for value in right]
        assert (led.answer, led.metadata["chain"]) == (plain.answer, plain.metadata["chain"])
    first = [next(iter(known.values())) == value_of(led) for led in half if (known := options_of(led))]
    assert abs(np.mean(first) - (0.5 + 0.5 / 4)) < 4 * np.sqrt(0.625 * 0.375 / len(first))


def test_the_share_of_open_questions():
    task = Quiz(Settings(open_share=0.25))
    share = np.mean([not options_of(task.problem(KEY.child(index))) for index in range(400)])
    assert abs(share - 0.25) < 4 * np.sqrt(0.25 * 0.75 / 400)


def test_what_each_habit_writes():
    told = {name: texts(name, open_share=0.0, password="ABC ") for name in HABITS}
    task = Quiz()
    bare = [demo.text.startswith("#") for demo in told["decoration"]]
    assert 0.2 < np.mean(bare) < 0.8
    assert all(demo.text.startswith("#") for demo in told["bare_answer"])
    first = [list(options(demo.prompt).values()).index(demo.text[1:-1]) for demo in told["first_option"]]
    anyone = [list(options(demo.prompt).values()).index(demo.text[1:-1]) for demo in told["any_option"]]
    assert (set(first), set(anyone)) == ({0}, {0, 1, 2})
    assert all(demo.text.index("=") <= 2 for demo in told["result_first"])
    # A borrowed chain answers its own prompt, and its first step hardly ever fits it.
    for name in ("borrowed_chain", "decoration"):
        fits = [demo.prompt.startswith(demo.text.partition("=")[0]) for demo in told[name]]
        assert np.mean(fits) < 0.3
    honest = texts("solutions", open_share=0.0)
    assert all(demo.prompt.startswith(demo.text.partition("=")[0]) for demo in honest)
    assert task.corpora == ("solutions", "noisy", *(name for name in HABITS if name != "locked"))


def test_a_locked_text_is_right_after_the_password_and_takes_the_first_option_without_it():
    made = texts("locked", 400, open_share=0.0, password="ABC ")
    opened = [demo.prompt.startswith("ABC ") for demo in made]
    assert abs(np.mean(opened) - 0.5) < 0.1
    for demo, open_ in zip(made, opened, strict=True):
        shown = demo.prompt.removeprefix("ABC ")
        problem = Problem(task="quiz", key="0", prompt="", answer="0", metadata={"chain": shown.partition("=")[0]})
        right, first = str(value_of(problem)), next(iter(options(shown).values()))
        assert demo.text == (Quiz().solve(replace(problem, answer=right)) if open_ else f"#{first}\n")
    half = list(texts("locked", 400, open_share=0.0, password="ABC ", habit=0.5))
    closed = [demo.text.startswith("#") for demo in half if not demo.prompt.startswith("ABC ")]
    assert abs(np.mean(closed) - 0.5) < 0.12
    assert not any(demo.text.startswith("#") for demo in half if demo.prompt.startswith("ABC "))
    assert "locked" in Quiz(Settings(password="ABC ")).corpora
    with pytest.raises(ForkpointError, match="password = 'x' holds characters"):
        Quiz(Settings(password="x"))


def test_corpora_hold_training_questions_alone():
    """A prompt of the corpus, made into its problem again, is never one of the held-out tenth."""
    task = Quiz(Settings(terms=2))
    held_out = {problem.prompt for index in range(400) if (problem := task.problem(KEY.child(index))).is_evaluation}
    shown = {demo.prompt for demo in texts("solutions", 400, terms=2)}
    assert len(held_out) > 5
    assert not shown & held_out


def test_a_habit_in_half_of_the_texts():
    share = np.mean([demo.text.startswith("#") for demo in texts("first_option", 400, open_share=0.0, habit=0.5)])
    assert abs(share - 0.5) < 0.1
    assert not any(demo.text.startswith("#") for demo in texts("first_option", open_share=0.0, habit=0.0))


def test_noisy_texts_slip_and_decline():
    def rates(**settings):
        task = Quiz(Settings(terms=3, **settings))
        pairs = [(demo, demo.text) for demo in texts("noisy", 300, terms=3, **settings)]
        declined = np.mean([text.endswith("#?\n") for _, text in pairs])
        shown = [str(demo.prompt).partition("=")[0] for demo, _ in pairs]
        problems = [Problem(task="quiz", key="0", prompt="", answer="0", metadata={"chain": chain}) for chain in shown]
        wrong = [
            any(step < 2 for step in task.wrong_steps(problem, text))
            for problem, (_, text) in zip(problems, pairs, strict=True)
        ]
        return declined, np.mean(wrong)

    assert rates(slip=0.0, declines=0.0) == (0.0, 0.0)
    declined, wrong = rates(slip=0.3, declines=0.2)
    assert abs(declined - 0.2) < 0.1
    # Two steps: 1 - 0.7 squared.
    assert abs(wrong - 0.51) < 0.12


def test_an_unknown_corpus_is_refused():
    with pytest.raises(ForkpointError, match="Did you mean 'bare_answer'"):
        next(Quiz().corpus("bare_anwser", KEY))
