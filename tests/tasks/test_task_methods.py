"""What tasks offer to credit rules: states, early answers, prompts with knowledge, checks of steps."""

import itertools

import numpy as np
import pytest

from forkpoint.errors import TaskError
from forkpoint.probe import Answerable, Privileged, Stateful
from forkpoint.records import Problem
from forkpoint.seeds import Key
from forkpoint.tasks import arithmetic, countdown, keychain, lab, paths
from forkpoint.verifiers.outside import written_rollout

TOLD = [keychain.KeyChain(), arithmetic.Arithmetic(), countdown.Countdown()]
STAR = Problem(
    task="paths", key="ab", prompt="ab bc ad de|a>c:", answer="bc", metadata={"branches": [["b", "c"], ["d", "e"]]}
)


def corpus_pairs(task, name, key, count=6):
    """(problem, prompt of the corpus) for the first texts of a corpus, in its own order of problems."""
    texts = itertools.islice(task.corpus(name, key), count)
    problems = (task.problem(key.child("problem", index)) for index in itertools.count())
    return zip((problem for problem in problems if not problem.is_evaluation), texts, strict=False)


@pytest.mark.parametrize("task", TOLD, ids=lambda task: task.name)
def test_a_prompt_with_the_answer_is_the_one_that_pretraining_taught_to_read(task):
    assert isinstance(task, Privileged)
    pairs = list(corpus_pairs(task, "answer_given", Key.root(4)))
    assert len(pairs) == 6
    for problem, text in pairs:
        assert task.privileged_prompt(problem, problem.answer) == text.prompt


@pytest.mark.parametrize("task", TOLD, ids=lambda task: task.name)
def test_a_solution_is_knowledge_too_and_words_are_refused(task):
    problem = task.problem(Key.root(4).child(2))
    told = task.privileged_prompt(problem, task.solve(problem))
    assert set(told) <= set(task.alphabet)
    if task.name == "arithmetic":
        steps = task.solve(problem).partition("#")[0]
        assert told == f"{problem.metadata['chain']}=?|{steps}\n"
    else:
        assert told == task.privileged_prompt(problem, problem.answer)
    for words in ("", "the answer is wrong"):
        with pytest.raises(TaskError):
            task.privileged_prompt(problem, words)


def test_all_steps_shown_are_what_the_corpus_hints_shows():
    task = arithmetic.Arithmetic()
    problem = task.problem(Key.root(1))
    steps = task.solve(problem).count(";")
    assert task.privileged_prompt(problem, task.solve(problem)) == arithmetic.with_hint(
        problem, arithmetic.step_hint(problem, steps)
    )


def test_walks_that_stand_at_one_node_have_one_state():
    task = paths.build(paths.Settings(branches=2, depth=2))
    assert isinstance(task, Stateful)
    states = {walk: task.state(STAR, walk) for walk in ("", "b", "ba", "deda", "dab", "x", "bx", "bca", "bcb")}
    assert states[""] == states["ba"] == states["deda"] == "a"
    assert states["b"] == states["dab"] == "b"
    # A move that is no edge, or one past the goal: nothing can save the walk.
    assert states["x"] == states["bx"] == states["bca"] == states["bcb"] == "lost"


def test_an_early_answer_finishes_any_walk_that_can_be_finished():
    task = paths.build(paths.Settings(branches=3, depth=3))
    problem = task.problem(Key.root(9))
    assert isinstance(task, Answerable)
    graph = paths.read_prompt(str(problem.prompt))
    walk = paths.random_walk(graph, 8, np.random.Generator(np.random.Philox(key=1)))
    for cut in range(len(walk)):
        rest = task.early_answer(problem, walk[:cut])
        assert rest
        assert task.verify(problem, written_rollout(problem, walk[:cut] + rest)).correct
    assert task.early_answer(problem, problem.answer) == ""
    assert task.early_answer(problem, "|") == ""


def test_arithmetic_answers_early_only_before_its_mark():
    task = arithmetic.Arithmetic()
    problem = task.problem(Key.root(3))
    early = task.early_answer(problem, "3+4=7;")
    assert early == f"#{problem.answer}\n"
    assert early.startswith(task.answer_lead)
    assert task.verify(problem, written_rollout(problem, "1+1=3;" + early)).correct
    assert task.early_answer(problem, "3+4=7;#") == ""


def test_arithmetic_states_forget_how_a_result_was_reached():
    task = arithmetic.Arithmetic()
    problem = task.problem(Key.root(3))
    assert task.state(problem, "3+4=7;7*2=14;") == task.state(problem, "3+4=6;6*2=14;") == "2:14:"
    assert task.state(problem, "3+4=7;7*2") == "1:7:7*2"
    assert len({task.state(problem, text) for text in ("", "3+4=7;", "3+4=8;", "3+4=7;7*2=14;")}) == 4


def test_arithmetic_steps_align_with_its_cuts():
    task = arithmetic.Arithmetic()
    problem = Problem(task="arithmetic", key="1", prompt="3+4*2=?\n", answer="14", metadata={"chain": "3+4*2"})
    text = "3+4=7;7*2=15;#14\n"
    cuts = task.cut_points(problem, written_rollout(problem, text))
    # The step 7*2=15 is wrong, and so is an answer that does not repeat it.
    assert list(task.wrong_steps(problem, text)) == [1, 2]
    assert [text[cut:] for cut in cuts][1:] == ["7*2=15;#14\n", "#14\n"]


def test_a_key_chain_is_lost_with_its_first_wrong_key_and_filler_never_matters():
    task = keychain.KeyChain(keychain.Settings(positions=8, keys=2))
    problem = task.problem(Key.root(2))
    first, second = keychain.key_positions(problem)
    right = task.solve(problem)
    wrong = right[:first] + next(e for e in task.entries if e != right[first]) + right[first + 1 :]
    other = "".join("z" if t not in (first, second) else c for t, c in enumerate(right))
    for length in range(8 + 1):
        states = [task.state(problem, text[:length]) for text in (right, wrong, other)]
        assert states[0] == states[2]
        assert (states[0] == states[1]) == (length <= first)
    assert len({task.state(problem, right[:length]) for length in range(9)}) == 9


def test_the_lab_state_is_the_last_edge():
    task = lab.build(lab.Settings())
    problem = task.problem(Key.root(1))
    assert task.state(problem, "") == problem.prompt
    assert task.state(problem, problem.answer) == problem.answer[-1]


def test_a_foreign_answer_is_shown_as_it_is():
    task = keychain.KeyChain()
    problem = task.problem(Key.root(1))
    foreign = "".join(reversed(task.problem(Key.root(2)).answer))
    shown = task.privileged_prompt(problem, foreign)
    assert [shown[place] for place in keychain.key_positions(problem)] == list(foreign)
    assert shown.endswith(str(problem.prompt))
