"""Every fault is found by the check that must name it, and a healthy loop raises no alarm."""

import sys
from dataclasses import replace

import pytest
from doctor_examples import healthy_loop, subject_of
from doctor_faults import FAULTS, slow

from forkpoint.doctor import FULL, examine, verdicts
from forkpoint.doctor.agreement import sampler_distribution

ALONE = {"stale_after_step", "frozen_optimizer"}
"""Faults that only a real step can show."""


def outcome(fault):
    """The name and status of every check that is not ok under a fault."""
    found = fault(healthy_loop())
    checks = found if isinstance(found, list) else examine(found, alone=fault.__name__ in ALONE)
    return {check.name: check for check in checks if not check.ok}


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_a_fault_is_named(fault, monkeypatch):
    if fault is slow:
        monkeypatch.setattr(verdicts, "SLOW_SECONDS", 0.02)
    wanted, status = FAULTS[fault]
    found = outcome(fault)
    others = ", ".join(name for name in found if name != wanted) or "nothing else"
    # The table fault x found: pytest -s.
    sys.stdout.write(f"\n{fault.__name__:28} {status:6} {wanted:28} also: {others}")
    assert wanted in found
    check = found[wanted]
    assert check.status == status
    assert check.did
    assert check.remedy


def test_a_healthy_loop_raises_no_alarm():
    checks = examine(subject_of(healthy_loop()), alone=True)
    assert [check for check in checks if not check.ok] == []
    assert len(checks) >= 28
    assert len({check.name for check in checks}) == len(checks)


def test_many_honest_draws_are_spread_as_they_should_be():
    loop = healthy_loop("stage.rl.problems_per_update=8", "stage.rl.group_size=8")
    check = sampler_distribution(subject_of(loop, replace(FULL, problems=8, group_size=8)))
    assert check.ok
    assert check.value > 1e-3


def test_the_draws_are_under_a_key_of_their_own():
    loop = healthy_loop()
    group = subject_of(loop).judged[0].groups[0]
    path = loop.key.child("doctor", 0, "rollouts", 0, 0, group.problem.key)
    assert group.rollouts[0].group_id == path.hex
    assert subject_of(replace(loop, done=1)).judged[0].groups[0].rollouts[0].group_id != path.hex


def test_there_are_faults_enough():
    assert len(FAULTS) >= 16
    assert len({name for name, _ in FAULTS.values()}) >= 16
