"""Texts that mean harm, against every scorer that reads a model's text: no exception, no time, no free success."""

import time

import numpy as np
import pytest

from forkpoint.records import Outcome, Rollout, StopReason
from forkpoint.seeds import Key
from forkpoint.tasks.arithmetic import Arithmetic
from forkpoint.tasks.countdown import Countdown
from forkpoint.tasks.dialect import Dialect, Settings
from forkpoint.tasks.keychain import KeyChain
from forkpoint.verifiers.answers import final_answer
from forkpoint.verifiers.exact import exact_verdict

TASKS = [Arithmetic(), Countdown(), KeyChain(), Dialect(Settings(world="+++", modulus=10))]
PIECES = {
    "empty": "",
    "space": " \t\n\u2028\u00a0",
    "nul": "\x00",
    "lone surrogates": "\ud800\udfff" * 20,
    "right to left": "\u202e5\u202c",
    "a megabyte of digits": "9" * 1_000_000,
    "5000 parentheses": "(" * 5000 + "1" + ")" * 5000,
    "huge exponent": "1e1000000000",
    "exponent": "1e999",
    "nan": "nan",
    "inf": "-inf",
    "arabic digits": "\u0665",
    "full width digits": "\uff11\uff12",
    "superscript": "5\u00b2",
    "nested boxes": r"\boxed{" * 3000 + "0" + "}" * 3000,
    "open boxes": r"\boxed{" * 100_000,
    "braces": "{" * 300_000,
    "closing think": "</think>" * 50_000,
    "opening think": "</think><think>" * 30_000,
    "code": "__import__('os').system('true')",
    "format": "{0.__class__}%s%n",
    "marks": "#" * 100_000,
    "steps": "1+1=2;" * 150_000,
    "equals": "=" * 100_000,
    "division by zero": "1/0",
    "two numbers": "1 or 2 or 3",
    "all numbers": " ".join(map(str, range(-200, 1000))),
    "newlines": "\n" * 500_000,
}


def rollout(text):
    count = min(len(text), 100)
    return Rollout(
        id="r", group_id="g", stage="s", update=0, index=0, problem_key="p", prompt_tokens=np.zeros(1, np.int32),
        tokens=np.zeros(count, np.int32), behavior_logprobs=np.zeros(count, np.float32),
        loss_mask=np.ones(count, np.bool_), temperature=1.0, text=text, stop_reason=StopReason.STOP, seed="0",
    )  # fmt: skip


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
@pytest.mark.parametrize("name", PIECES)
def test_tasks_survive_hostile_texts(task, name):
    problem = task.problem(Key.root(3))
    for text in (PIECES[name], f"#{PIECES[name]}\n", rf"\boxed{{{PIECES[name]}}}", f"<think>{PIECES[name]}"):
        started = time.perf_counter()
        verdict = task.verify(problem, rollout(text))
        task.cut_points(problem, rollout(text))
        assert time.perf_counter() - started < 2
        assert verdict.correct is False
        assert verdict.outcome in (Outcome.WRONG, Outcome.UNPARSEABLE, Outcome.DECLINED)
        assert len(verdict.answer or "") <= 200


@pytest.mark.parametrize("name", PIECES)
@pytest.mark.parametrize(("reference", "kind"), [("77", "number"), ("(1, 7)", "tuple"), ("J", "choice")])
def test_the_exact_scorer_survives_hostile_texts(name, reference, kind):
    started = time.perf_counter()
    for answer in (PIECES[name], final_answer(PIECES[name], whole=True)):
        assert exact_verdict(answer, reference, kind=kind).correct is False
    assert time.perf_counter() - started < 2


@pytest.mark.parametrize("task", TASKS[:2], ids=lambda task: task.name)
def test_think_tags_cannot_smuggle_an_answer(task):
    problem = task.problem(Key.root(4))
    right, wrong = task.solve(problem), task.wrong_answers(problem)[4]
    assert task.verify(problem, rollout(f"<think>{wrong}</think>{right}")).correct is True
    assert task.verify(problem, rollout(f"<think>{right}</think>{wrong}")).correct is False
    assert task.verify(problem, rollout(f"{right}</think>")).correct is False
    assert task.verify(problem, rollout(f"</think>{right}<think>")).correct is False
