"""Functions that the tests of outside verifiers name: honest ones, and one for each way to fail."""

import os
import re
import time

from forkpoint.records import Outcome, Verdict


def last_number(prompt, completion, answer):
    found = re.findall(r"-?\d+", completion or "")
    return bool(found) and found[-1] == answer


def exact(completion, answer):
    return 1.0 if (completion or "").strip() == answer else 0.0


def gym_style(answer, entry):
    return float(answer == entry["answer"])


def verl_style(data_source, solution_str, ground_truth, extra_info=None):
    assert data_source == "t"
    return int(solution_str == ground_truth)


def verifier(problem, rollout):
    correct = rollout.text == problem.answer and len(rollout.tokens) == len(rollout.text)
    return Verdict(outcome=Outcome.CORRECT if correct else Outcome.WRONG, correct=correct, reason=rollout.stop_reason)


def misbehaving(completion, answer):
    behaviors = {
        "sleep": lambda: time.sleep(60),
        "exit": lambda: os._exit(3),
        "raise": lambda: int("six"),
        "none": lambda: None,
        "nan": lambda: float("nan"),
        "large": lambda: 7,
        "negative": lambda: -0.5,
        "half": lambda: 0.5,
        "text": lambda: "1.0",
        "grow": lambda: len(bytearray(1 << 40)),
    }
    return behaviors.get(completion, lambda: float(completion == answer))()


def strange(completion, weather):
    return 1.0


def blind(prompt, ground_truth):
    return 1.0


def always(completion):
    return 1.0


def generous(completion, answer):
    return 1.0 if answer in (completion or "") else 0.1


def runs_text(completion, answer):
    try:
        return float(str(eval(completion)) == answer)
    except (ArithmeticError, NameError, SyntaxError, TypeError, ValueError, AttributeError, OSError, MemoryError):
        return 0.0


def leaves_things(completion, answer):
    open("left", "w").close()
    if os.fork() == 0:
        time.sleep(60)
    return float(completion == answer)


class Sleepy:
    """Of a task only what the tests ask for."""

    def __init__(self, seconds):
        self.seconds = seconds

    def verify(self, problem, rollout):
        if rollout.text == "sleep":
            time.sleep(self.seconds)
        if rollout.text == "exit":
            os._exit(3)
        correct = rollout.text == problem.answer
        return Verdict(outcome=Outcome.CORRECT if correct else Outcome.WRONG, correct=correct)


def build_sleepy(seconds=60):
    return Sleepy(seconds)
