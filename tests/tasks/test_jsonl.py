"""Questions from a file: every mistake of a file by its place, verdicts of each kind, the split, the corpus."""

import importlib.util
import itertools
import json
import runpy
from pathlib import Path

import pytest

from forkpoint.errors import TaskError, VerifierError
from forkpoint.records import Outcome, Rollout, StopReason, frozen_array
from forkpoint.seeds import Key
from forkpoint.tasks.jsonl import Settings, build, guess_kind
from forkpoint.tasks.protocol import Finite, Task, split_problems
from forkpoint.verifiers import mathematics

DATA = Path(__file__).resolve().parents[2] / "recipes" / "data"
needs_math = pytest.mark.skipif(
    importlib.util.find_spec("math_verify") is None, reason="the extra `math` is not installed"
)


def line(**table):
    return json.dumps({"question": "What?", "answer": "1"} | table)


def lines(count=40, **table):
    return [line(question=f"What is {n} + 1?", answer=str(n + 1), **table) for n in range(count)]


@pytest.fixture
def made(tmp_path):
    """Builds the task of a file with these lines."""

    def make(*content, more=True, **settings):
        path = tmp_path / "questions.jsonl"
        extra = lines() if more else []
        path.write_bytes(b"\n".join(text if isinstance(text, bytes) else text.encode() for text in [*content, *extra]))
        return build(Settings(path=str(path), **settings))

    return make


def rollout(text):
    empty = frozen_array([], "int32")
    return Rollout(
        id="r", group_id="g", stage="s", update=0, index=0, problem_key="k", prompt_tokens=empty, tokens=empty,
        behavior_logprobs=frozen_array([], "float32"), loss_mask=frozen_array([], "bool"), temperature=1.0, text=text,
        stop_reason=StopReason.EOS, seed="0",
    )  # fmt: skip


def outcome_of(task, text, question="What?"):
    problem = next(problem for problem in task.problems() if problem.prompt.startswith(question))
    return task.verify(problem, rollout(text)).outcome


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([""], r"holds no question"),
        (["", "  "], r"holds no question"),
        ([line(), '{"question": "a"'], r"questions\.jsonl:2: not JSON at column 17"),
        (["[1]"], r"questions\.jsonl:1: a line must be an object, not list"),
        (["[" * 100_000], r"questions\.jsonl:1: .*nested too deeply"),
        (['{"answer": "1"}'], r"questions\.jsonl:1: question is missing"),
        (["", '{"question": "a"}'], r"questions\.jsonl:2: answer is missing"),
        ([line(answer=" ")], r"questions\.jsonl:1: answer is empty"),
        ([line(question="")], r"questions\.jsonl:1: question is empty"),
        ([line(answer=None)], r"questions\.jsonl:1: answer must be a text, not NoneType"),
        ([line(answer=True)], r"answer must be a text, not bool"),
        (['{"question": "a", "answer": NaN}'], r"answer must be a text, not float"),
        ([line(answer="\ud800")], r"answer holds half a character"),
        ([line(anwser="1")], r"questions\.jsonl:1: key = 'anwser' is not known\. Did you mean 'answer'"),
        ([line(kind="nubmer")], r"questions\.jsonl:1: kind = 'nubmer' is not known\. Did you mean 'number'"),
        ([line(kind=7)], r"questions\.jsonl:1: kind = '7' is not known"),
        ([line(answer="six", kind="number")], r"questions\.jsonl:1: the answer 'six' cannot be read as a number"),
        ([line(answer="AB", kind="choice")], r"the answer 'AB' cannot be read as a choice"),
        ([line(answer="(1, x)", kind="tuple")], r"the answer '\(1, x\)' cannot be read as a tuple"),
        (
            [line(solution="So it is 2.")],
            r"questions\.jsonl:1: the solution ends in the answer 'So it is 2\.', not in '1'",
        ),
        ([line(solution="<think>1")], r"the solution ends in no answer"),
        ([line(), line()], r"questions\.jsonl:2: the question stands already in questions\.jsonl:1"),
        ([line(), b'{"question": "\xff"}'], r"questions\.jsonl:2: byte 15 is not UTF-8"),
        ([line(question="x" * 500_000)], r"questions\.jsonl:1: the line is longer than max_characters = 100000"),
        ([line()], r"no (held-out|training) question"),
    ],
)
def test_a_mistake_is_one_line_that_says_where(made, content, message):
    with pytest.raises(TaskError, match=message) as raised:
        made(*content, more=False)
    assert "\n" not in str(raised.value)


def test_too_many_lines_and_no_file(made, tmp_path):
    with pytest.raises(TaskError, match=r"questions\.jsonl:4: the file has more than max_lines = 3 lines"):
        made(max_lines=3)
    for path in (tmp_path / "absent.jsonl", tmp_path):
        with pytest.raises(TaskError, match="cannot be read: "):
            build(Settings(path=str(path)))


def test_numbers_are_exact_unless_a_tolerance_is_given(made):
    task = made(line(answer=0.5))
    assert outcome_of(task, r"\boxed{\frac{1}{2}}") is Outcome.CORRECT
    assert outcome_of(task, "it is small\n#### .5") is Outcome.CORRECT
    assert outcome_of(task, "0.5000001") is Outcome.WRONG
    assert outcome_of(task, r"\boxed{0.5} no, \boxed{0.6}") is Outcome.WRONG
    assert outcome_of(task, "<think>0.5") is Outcome.UNPARSEABLE
    assert outcome_of(task, "half") is Outcome.UNPARSEABLE
    assert outcome_of(task, "unknown") is Outcome.DECLINED
    assert outcome_of(task, "0.5\nor so") is Outcome.UNPARSEABLE
    assert outcome_of(made(line(answer=0.5), tolerance=0.01), "0.509") is Outcome.CORRECT
    assert outcome_of(made(line(answer="(1, 0.5)"), tolerance=0.01), "(1, 0.509)") is Outcome.CORRECT


def test_choices_tuples_and_texts(made):
    choice = made(line(answer="B"))
    assert [outcome_of(choice, text) for text in ("b", "(B)", "A")] == [Outcome.CORRECT, Outcome.CORRECT, Outcome.WRONG]
    pair = made(line(answer="(1, 2)"))
    assert [outcome_of(pair, text) for text in ("(1,2)", "(2,1)")] == [Outcome.CORRECT, Outcome.WRONG]
    text = made(line(answer="New York"))
    right = ["new  york.", r"\boxed{New York}", "Answer: new york"]
    assert [outcome_of(text, answer) for answer in right] == [Outcome.CORRECT] * 3
    assert [outcome_of(text, answer) for answer in ("York", "new york city", "x" * 10**6)] == [
        Outcome.WRONG, Outcome.WRONG, Outcome.UNPARSEABLE,
    ]  # fmt: skip
    assert outcome_of(text, "I don't know") is Outcome.DECLINED
    assert outcome_of(made(line(answer="unknown")), "Unknown") is Outcome.CORRECT
    assert outcome_of(made(line(answer="7", kind="text")), "7.0") is Outcome.WRONG
    assert outcome_of(made(line(answer="7"), kind="text"), "7.0") is Outcome.WRONG


@needs_math
def test_latex_is_compared_as_mathematics_and_a_hang_is_an_error(made):
    task = made(line(answer=r"2\sqrt{3}"), timeout_seconds=2.0)
    assert outcome_of(task, r"So \boxed{\sqrt{12}}") is Outcome.CORRECT
    assert outcome_of(task, r"\sqrt{13}") is Outcome.WRONG
    assert outcome_of(task, "9^{9^{9^9}}") is Outcome.ERROR
    assert outcome_of(task, r"\sqrt{12}") is Outcome.CORRECT
    with pytest.raises(TaskError, match=r"questions\.jsonl:1: .*cannot be read as a latex"):
        made(line(answer=r"\frac{1"))


def test_latex_without_the_extra_is_refused_and_nothing_else_is(made, monkeypatch):
    monkeypatch.setattr(mathematics.importlib.util, "find_spec", lambda name: None)
    assert made(line(answer=r"\frac{1}{2}")).name == "jsonl"
    with pytest.raises(VerifierError, match=r"forkpoint\[math\]"):
        made(line(answer=r"\sqrt{2}"))


def test_a_key_depends_on_the_question_alone_and_the_suffix_is_in_the_prompt(made):
    plain = made(line())
    changed = made(line(answer="2"), suffix="\nBox the answer.")
    assert [problem.key for problem in plain.problems()] == [problem.key for problem in changed.problems()]
    assert changed.problems()[0].prompt == "What?\nBox the answer."
    assert isinstance(plain, Task)
    assert isinstance(plain, Finite)


def test_the_split_is_clean_and_the_corpus_holds_training_questions_only(made):
    task = made(line(solution="One.\n#### 1"))
    held_out = split_problems(task, Key.root(0), 1000, evaluation=True)
    training = split_problems(task, Key.root(0), 400, evaluation=False)
    assert {problem.key for problem in held_out}.isdisjoint(problem.key for problem in training)
    assert len({problem.key for problem in [*held_out, *training]}) == 41
    assert task.problem(Key.root(1)) == task.problem(Key.root(1))
    count = 41 - len(held_out)
    texts = list(itertools.islice(task.corpus("solutions", Key.root(2)), 2 * count))
    prompts = [text.prompt for text in texts]
    assert sorted(prompts[:count]) == sorted(prompts[count:]) == sorted({problem.prompt for problem in training})
    assert prompts[:count] != prompts[count:]
    by_prompt = {problem.prompt: problem for problem in training}
    assert all(task.verify(by_prompt[text.prompt], rollout(text.text)).correct for text in texts)
    with pytest.raises(TaskError, match="Did you mean 'solutions'"):
        task.corpus("solution", Key.root(2))


@needs_math
def test_the_checked_in_questions():
    task = build(Settings(path=str(DATA / "questions.jsonl")))
    assert len(task.problems()) == 200
    assert sum(problem.metadata["kind"] == "latex" for problem in task.problems()) == 60
    assert 10 <= sum(problem.is_evaluation for problem in task.problems()) <= 40
    for problem in task.problems():
        assert task.verify(problem, rollout(task.solve(problem))).outcome is Outcome.CORRECT
        if problem.metadata["kind"] != "latex" or problem.key[0] == "0":
            for wrong in task.wrong_answers(problem):
                assert task.verify(problem, rollout(wrong)).correct is False, (problem.prompt, wrong)


def test_the_checked_in_questions_are_what_the_script_writes(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["make_questions.py", str(tmp_path / "again.jsonl")])
    runpy.run_path(str(DATA / "make_questions.py"), run_name="__main__")
    assert (tmp_path / "again.jsonl").read_bytes() == (DATA / "questions.jsonl").read_bytes()


@pytest.mark.parametrize(
    ("answer", "kind"),
    [("-3", "number"), (r"\frac{1}{2}", "number"), ("[1, 2)", "tuple"), ("1,23", "text"), ("a", "text"), ("Z", "text")],
)
def test_the_kind_of_an_answer(answer, kind):
    assert guess_kind(answer) == kind


def test_what_is_told_stands_after_the_question(made):
    task = made(line(question="2+2?", answer="4"), suffix=" Be brief.")
    problem = next(each for each in task.problems() if each.answer == "4" and each.prompt.startswith("2+2?"))
    assert task.privileged_prompt(problem, " {hint} 4\n") == "2+2? Be brief.\n\nHint: {hint} 4"
    other = made(line(question="2+2?", answer="4"), hint=" ({hint})")
    assert other.privileged_prompt(problem, "no") == "2+2? Be brief. (no)"
    with pytest.raises(ValueError, match="hint"):
        Settings(path="x", hint="none")
