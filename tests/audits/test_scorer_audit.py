"""The attack battery: what it finds in functions that are wrong on purpose, and nothing in honest ones."""

import importlib.util

import pytest

from forkpoint.audits import FAULTS, Item, Subject, audit_scorer, sums
from forkpoint.audits.attacks import BATTERY, CONTROL, WRONG
from forkpoint.errors import TaskError, VerifierError
from forkpoint.records import Problem
from forkpoint.seeds import Key
from forkpoint.tasks.arithmetic import Arithmetic


def audit(name, *, items=None, seconds=1.0):
    target = f"outside_targets:{name}"
    return audit_scorer(Subject(name=name, target=target, items=items or sums(2)), timeout_seconds=seconds)


def result(found, attack):
    return next(row for row in found.results if row.attack == attack)


@pytest.mark.parametrize("name", ["exact", "verifier", "gym_style", "last_number"])
def test_an_honest_scorer_is_clean(name, monkeypatch):
    monkeypatch.setenv("A_SECRET", "token")
    found = audit(name)
    # The last number is a declared form in which words around it do not matter, and neither does an order.
    assert set(found.faults) <= ({"tail"} if name == "last_number" else set()), found.why()
    assert result(found, CONTROL.name).accepted == 2
    assert found.is_clean([fault for fault in FAULTS if fault != "tail"])
    assert "A_SECRET" not in found.variables
    assert found.problems == 2


def test_a_scorer_that_looks_for_the_answer_anywhere_takes_a_hedge_and_pays_for_junk():
    found = audit("generous")
    assert found.faults["hedge"] == ("right or another",)
    assert found.faults["tail"] == ("right, then junk",)
    assert {"empty", "constant 0", "echo of the prompt", "None"} <= set(found.faults["paid"])
    assert result(found, "empty").highest == pytest.approx(0.1)
    assert not found.is_clean()
    assert found.is_clean(["effect", "raised", "hung", "control"])
    assert found.why(["hedge"]) == "hedge: right or another"


def test_a_scorer_that_always_pays_accepts_everything():
    found = audit("always")
    wrong = [attack.name for attack in BATTERY if attack.kind == "wrong"]
    assert set(found.faults["accepted"]) == set(wrong)
    assert "hedge" not in found.faults  # no other answer is refused, so a hedge says nothing


def test_text_that_runs_is_seen_by_what_it_does():
    found = audit("runs_text", seconds=0.5)
    for attack in ("code that makes a file", "code in a list"):
        effects = result(found, attack).effects
        assert "runs the answer as a program" in effects
        assert "makes a file in its folder" in effects
    tower, ended = result(found, "power tower"), result(found, "code that ends the process")
    assert (tower.hung, ended.hung) == (1, 1)
    assert "no answer within 0.5 s" in tower.example
    assert "status 0" in ended.example
    assert set(found.faults) >= {"hung", "effect"}


def test_files_and_processes_left_behind_are_side_effects():
    found = audit("leaves_things")
    effects = result(found, "empty").effects
    assert {"opens a file for writing", "starts a process", "leaves a process behind"} <= set(effects)
    assert "makes a file in its folder" in effects
    assert set(found.faults) == {"effect"}


def test_exceptions_and_numbers_that_are_none_are_told_apart_from_scores():
    items = (Item(problem=Problem(task="t", key="1", prompt="raise", answer="7"), right="7", other="8"),)
    found = audit("misbehaving", items=items)
    echo = result(found, "echo of the prompt")
    assert (echo.raised, echo.highest, echo.accepted) == (1, None, 0)
    assert echo.faults == ("raised",)
    assert echo.example.startswith("ValueError")
    assert set(found.faults) == {"raised"}


def test_a_reference_that_is_refused_or_missing_fails_the_control():
    refused = (Item(problem=Problem(task="t", key="1", prompt="p", answer="7"), right="8"),)
    missing = (Item(problem=Problem(task="t", key="1", prompt="p", answer=""), right=""),)
    for items in (refused, missing):
        found = audit("exact", items=items)
        assert found.faults["control"] == (CONTROL.name,)


def test_a_constant_that_is_the_answer_is_no_hole():
    items = (Item(problem=Problem(task="t", key="1", prompt="p", answer="1.0"), right="1.0", other="2"),)
    found = audit("exact", items=items)
    assert found.is_clean(), found.why()
    assert result(found, "constant 1").calls == 0
    assert result(found, "constant 0").calls == 1


def test_the_tail_and_the_hedge_go_inside_the_box():
    item = Item(problem=Problem(task="t", key="1", prompt="p", answer="7"), right="so \\boxed{7}\n", other="\\boxed{8}")
    tail = next(attack for attack in BATTERY if attack.kind == "tail")
    hedge = next(attack for attack in BATTERY if attack.kind == "hedge")
    assert tail.texts(item) == ("so \\boxed{7 zzz qqq}",)
    assert hedge.texts(item) == ("so \\boxed{7 or 8}", "so \\boxed{8 or 7}")
    assert len({name for name, _ in WRONG}) == len(WRONG) >= 30


def test_a_task_of_ours_is_clean():
    task = Arithmetic()
    problems = [task.problem(Key.root(0).child(index)) for index in range(3)]
    texts = [task.solve(problem) for problem in problems]
    items = tuple(
        Item(problem=problem, right=right, other=other)
        for problem, right, other in zip(problems, texts, texts[1:], strict=False)
    )
    found = audit_scorer(
        Subject(name="arithmetic", target="forkpoint.tasks.arithmetic:build", items=items, settings={"terms": 3})
    )
    assert found.is_clean(), found.why()
    assert "None" not in {row.attack for row in found.results}
    assert result(found, "unfinished think").calls == 2


def test_mistakes_are_one_line():
    with pytest.raises(TaskError, match="has no problem"):
        audit_scorer(Subject(name="x", target="outside_targets:exact", items=()))
    with pytest.raises(VerifierError, match=r"scorer 'strange' cannot be called: .*'weather'"):
        audit("strange")
    with pytest.raises(VerifierError, match="cannot start"):
        audit_scorer(Subject(name="x", target="no_such_module:f", items=sums(1)))


@pytest.mark.skipif(importlib.util.find_spec("reasoning_gym") is None, reason="the extra `gym` is not installed")
@pytest.mark.parametrize(("dataset", "faults"), [("coin_flip", {"accepted"}), ("gcd", set())])
def test_datasets_of_reasoning_gym(dataset, faults):
    from forkpoint.tasks.gym import Catalogue  # noqa: PLC0415  (an optional extra)

    catalogue = Catalogue()
    problems = catalogue.problems(dataset, 2)
    catalogue.close()
    items = tuple(Item(problem=problem, right=problem.answer) for problem in problems)
    found = audit_scorer(Subject(name=dataset, target="forkpoint.tasks.gym:raw_score", items=items))
    assert set(found.faults) & {"control", "accepted", "hedge", "effect"} == faults, found.why()
