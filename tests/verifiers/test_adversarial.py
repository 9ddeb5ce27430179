"""The corpus `adversarial.toml`: hand-written outcomes, no crash, no answer over two seconds, rates of misses."""

import importlib.util
import json
import re
import sys
import time
import tomllib
from collections import Counter
from pathlib import Path

import pytest

from forkpoint.records import Outcome, Problem
from forkpoint.tasks.arithmetic import Arithmetic
from forkpoint.tasks.countdown import Countdown
from forkpoint.tasks.jsonl import Settings, build
from forkpoint.tasks.keychain import KeyChain
from forkpoint.tasks.paths import Paths
from forkpoint.tasks.paths import Settings as PathSettings
from forkpoint.verifiers.guard import guarded
from forkpoint.verifiers.mathematics import MathScorer
from forkpoint.verifiers.outside import written_rollout

GROUPS = tomllib.loads((Path(__file__).parent / "adversarial.toml").read_text(encoding="utf-8"))["group"]
CASES = [(group["verifier"], group["reference"], *case) for group in GROUPS for case in group["cases"]]
VERIFIERS = list(dict.fromkeys(group["verifier"] for group in GROUPS))
QUESTION_KINDS = {"number": "number", "tuple": "tuple", "choice": "choice", "mathematics": "latex"}
MISSES = ("false negative", "false positive")
SECONDS = 2.0
FALSE_NEGATIVES, FALSE_POSITIVES = 0.25, 0.02
"""Largest share of the right and of the wrong answers of a verifier that may be missed."""

_PIECE = re.compile(r"<<(.+?)\*([0-9]+)>>|<<surrogate>>")


def written(text):
    """The text with its repeated pieces written out."""
    return _PIECE.sub(lambda found: found[1] * int(found[2]) if found[1] else "\ud800", text)


def expression_problem(reference):
    numbers, _, target = reference.partition("=")
    metadata = {"numbers": [int(number) for number in numbers.split(",")], "target": int(target)}
    return Problem(task="countdown", key="1", prompt=f"{reference}\n", answer="", metadata=metadata)


def arithmetic_problem(chain):
    return Problem(task="arithmetic", key="1", prompt=f"{chain}=?\n", answer="9", metadata={"chain": chain})


def path_problem(prompt):
    return Problem(task="paths", key="1", prompt=prompt, answer="bd", metadata={"branches": [["b", "d"], ["c", "e"]]})


def keychain_problem(row):
    positions = [place for place, entry in enumerate(row) if entry != "."]
    answer = "".join(row[place] for place in positions)
    metadata = {"positions": positions, "budget": len(row), "lookups": ""}
    return Problem(task="keychain", key="1", prompt=">", answer=answer, metadata=metadata)


MADE = {
    "expression": (Countdown(), expression_problem),
    "arithmetic": (Arithmetic(), arithmetic_problem),
    "paths": (Paths(PathSettings()), path_problem),
    "keychain": (KeyChain(), keychain_problem),
}


def questions(folder):
    """A task `jsonl` with a question for each reference, and more so that both splits have some."""
    lines = [
        {"question": f"{kind}: {reference}", "answer": reference, "kind": QUESTION_KINDS[kind]}
        for kind, reference in dict.fromkeys(case[:2] for case in CASES)
        if kind in QUESTION_KINDS and (kind != "mathematics" or importlib.util.find_spec("math_verify"))
    ]
    lines += [{"question": f"more {index}", "answer": str(index)} for index in range(40)]
    path = folder / "questions.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    return build(Settings(path=str(path)))


@pytest.fixture(scope="module")
def judged(tmp_path_factory):
    """For each verifier: its cases, each with the verdict and the seconds that it took."""
    asked = questions(tmp_path_factory.mktemp("corpus"))
    problems = {problem.prompt: problem for problem in asked.problems()}
    known = {}

    def judge(verifier):
        if verifier == "mathematics" and importlib.util.find_spec("math_verify") is None:
            pytest.skip("the extra `math` is not installed")
        if verifier not in known:
            known[verifier] = [
                (case, *timed(verifier, *case[1:3], asked, problems)) for case in CASES if case[0] == verifier
            ]
        return known[verifier]

    yield judge
    asked.close()


def timed(verifier, reference, text, asked, problems):
    if verifier in QUESTION_KINDS:
        task, problem = asked, problems[f"{verifier}: {reference}"]
        if verifier == "mathematics":
            asked._scorer.start()  # a killed child is replaced before the clock starts
    else:
        task, make = MADE[verifier]
        problem = make(reference)
    rollout = written_rollout(problem, written(text))
    began = time.perf_counter()
    verdict = guarded(task.verify)(problem, rollout)
    return verdict, time.perf_counter() - began


def agrees(expected, outcome):
    return outcome is not Outcome.CORRECT if expected == "not" else outcome == expected


def test_the_corpus_is_large_and_says_what_it_means():
    counts = Counter(case[0] for case in CASES)
    assert len(CASES) >= 300
    assert min(counts.values()) >= 20
    assert len({case[:3] for case in CASES}) == len(CASES)
    for case in CASES:
        assert case[3] in {"not", *Outcome}, case
        assert case[4], case
        assert len(case) == 5 or case[5] in MISSES, case


@pytest.mark.parametrize("verifier", VERIFIERS)
def test_every_outcome_is_the_one_written_by_hand(judged, verifier):
    surprises = []
    for case, verdict, _ in judged(verifier):
        text, expected, miss = case[2], case[3], case[5] if len(case) > 5 else ""
        right = verdict.outcome is Outcome.CORRECT
        if miss:  # a known one must still be one, or its mark goes
            met = right is (miss == "false positive") and not agrees(expected, verdict.outcome)
        else:
            met = agrees(expected, verdict.outcome)
        if not met:
            surprises.append((text[:60], expected, miss, verdict.outcome.value, verdict.reason))
    assert surprises == []


@pytest.mark.parametrize("verifier", VERIFIERS)
def test_no_answer_takes_two_seconds_and_none_crashes_the_verifier(judged, verifier):
    for case, verdict, seconds in judged(verifier):
        assert seconds < SECONDS, (case[2][:60], seconds)
        assert verdict.usable or verdict.reason.startswith("math-verify: "), verdict.reason
        assert (verdict.correct is None) is (not verdict.usable)


@pytest.mark.parametrize("verifier", VERIFIERS)
def test_the_rates_of_misses_are_printed_and_bounded(judged, verifier):
    results = judged(verifier)
    right = [verdict for case, verdict, _ in results if case[3] == "correct"]
    wrong = [verdict for case, verdict, _ in results if case[3] != "correct"]
    refused = sum(verdict.outcome is not Outcome.CORRECT for verdict in right)
    accepted = sum(verdict.outcome is Outcome.CORRECT for verdict in wrong)
    slowest = max(seconds for *_, seconds in results)
    sys.stdout.write(
        f"{verifier}: false negatives {refused}/{len(right)} ({refused / len(right):.1%}), "
        f"false positives {accepted}/{len(wrong)} ({accepted / len(wrong):.1%}), slowest {slowest:.2f} s\n"
    )
    assert refused <= FALSE_NEGATIVES * len(right)
    assert accepted <= FALSE_POSITIVES * len(wrong)


def test_a_worker_that_was_killed_is_started_before_the_next_answer():
    if importlib.util.find_spec("math_verify") is None:
        pytest.skip("the extra `math` is not installed")
    scorer = MathScorer()
    scorer.start()
    first = scorer._worker.pid
    scorer.start()
    assert scorer._worker.pid == first
    scorer.close()
    assert scorer._worker.pid is None
