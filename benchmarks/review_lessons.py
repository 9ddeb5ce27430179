"""Do audits keep true lessons and drop the others, and does a distilled lesson stay when its prompt is gone?

    python benchmarks/review_lessons.py run [--budget MINUTES] [--quick]
    python benchmarks/review_lessons.py table

Each trial draws a world for the task `dialect`, plants a true, an irrelevant and a false lesson, and audits them on
held-out problems until they are deleted or had their audits.  Then it distils the true lesson, and beside it the
controls: the policy's own samples, its own correct samples, and samples under the shuffled lesson; rollouts, updates
and batches are equal.  The pretrained decoder is one for all trials (kept in --cache); worlds, problems and samples are
each trial's own.  Finished trials leave one JSON each in cells/review-lessons/ and are skipped; the table is made from
them alone.
"""

import argparse
import json
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import stats

from forkpoint.config.recipe import TextStage
from forkpoint.files import make_folder, write_text_atomic
from forkpoint.meter.pretraining import Pretraining, pretrained
from forkpoint.policies.causal import CausalPolicy
from forkpoint.probing.local import LocalProbe
from forkpoint.records import Lesson, Problem, TextExample
from forkpoint.review.lesson_audits import audit_lessons, reading_gate, shuffled, update
from forkpoint.review.lessons import (
    TellingPlan,
    TrialPlan,
    distilled_examples,
    make_lesson,
    propose_lessons,
    retrieve,
    sample_told,
    tell,
)
from forkpoint.sampling.engine import LocalSampler
from forkpoint.seeds import Key
from forkpoint.tasks.dialect import OPERATIONS, SIGNS, Dialect, Settings, lesson_text
from forkpoint.tasks.protocol import split_problems
from forkpoint.training.imitation import TextTraining, pool_draw
from forkpoint.training.optimization import Optimization
from forkpoint.training.rollouts import SamplePlan, judged_groups
from forkpoint.verifiers.guard import guarded

CELLS = Path(__file__).parent / "cells" / "review-lessons"
KINDS = ("true", "irrelevant", "false")
ARMS = ("lesson", "own", "own_correct", "shuffled")


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """How much each trial spends."""

    trials: int = 10
    pretraining: int = 1000
    audits: int = 3
    """Audits of a lesson, unless it is deleted before."""
    audit_problems: int = 128
    samples: int = 256
    """Rollouts that each arm distils from."""
    updates: int = 30
    evaluation: int = 256


QUICK = Scale(trials=1, pretraining=3, audits=2, audit_problems=8, samples=16, updates=2, evaluation=16)


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """A world with the policy that was pretrained on others."""

    task: Dialect
    key: Key
    scale: Scale
    cache: Path

    def policy(self) -> CausalPolicy:
        """Fresh from pretraining."""
        plan = Pretraining(corpus="mixed", updates=self.scale.pretraining, batch_size=64, learning_rate=3e-3)
        steady = self.task.settings.model_copy(update={"world": "+-*"})
        return pretrained(Dialect(steady), plan, identity=f"{steady!r}", cache=self.cache)

    def probe(self, policy: CausalPolicy) -> LocalProbe:
        return LocalProbe(policy, LocalSampler(policy, slots=64), guarded(self.task.verify))

    def plan(self, *parts: str | int) -> TrialPlan:
        return TrialPlan(
            key=self.key.child(*parts), stage="lessons", max_new_tokens=12, problems=self.scale.audit_problems
        )

    def problems(self, name: str, count: int, *, evaluation: bool, about: Lesson) -> list[Problem]:
        """Problems of one split that a lesson would be retrieved for."""
        drawn = split_problems(self.task, self.key.child("problems", name), 3 * count, evaluation=evaluation)
        return [one for one in drawn if retrieve([about], one, task=self.task.name, most=1)][:count]


def planted(task: Dialect, key: Key) -> dict[str, Lesson]:
    """One lesson of each kind; the false one is about the same sign as the true one."""
    sign = SIGNS[int(key.child("sign").generator().integers(len(task.world)))]
    idle = OPERATIONS[int(key.child("idle").generator().integers(len(OPERATIONS)))]
    right = lesson_text(sign, task.world[sign])
    wrong = task.changed_lessons(right)[int(key.child("false").generator().integers(len(OPERATIONS) - 1))]
    return {
        "true": make_lesson(task.name, right, sign),
        # `$` is in no problem of a world of three signs; about nothing, so it is retrieved everywhere.
        "irrelevant": make_lesson(task.name, lesson_text(SIGNS[-1], idle)),
        "false": make_lesson(task.name, wrong, sign),
    }


def audited(subject: Subject, lessons: dict[str, Lesson], probe: LocalProbe) -> dict[str, Any]:
    """What became of each lesson: audits survived, passed and failed, whether it was deleted."""
    scale, task = subject.scale, subject.task
    problems = split_problems(task, subject.key.child("held-out"), 3 * scale.audit_problems, evaluation=True)
    lives = dict(lessons)
    fates: dict[str, dict[str, Any]] = {kind: {"audits": [], "deleted_after": None} for kind in lessons}
    before = dict(probe.cost)
    for number in range(1, scale.audits + 1):
        left = [kind for kind in lives if fates[kind]["deleted_after"] is None]
        found = audit_lessons(
            [lives[kind] for kind in left], problems, probe, subject.task, subject.plan("audit", number)
        )
        for kind, audit in zip(left, found, strict=True):
            lives[kind], deleted = update(lives[kind], audit)
            fates[kind]["deleted_after"] = number if deleted else None
            fates[kind]["audits"].append(
                {
                    "passed": audit.passed, "faithful": audit.faithful, "p_value": audit.p_value,
                    "reason": audit.reason, "shares": {arm: list(pair) for arm, pair in audit.shares.items()},
                }
            )  # fmt: skip
    cost = {name: probe.cost[name] - before[name] for name in ("sampled_tokens", "verifier_calls")}
    return {"fates": fates, "cost": cost}


def proposals(subject: Subject, policy: CausalPolicy, probe: LocalProbe) -> dict[str, int]:
    """Whether the three best supported proposals from the policy's own rollouts are the world's meanings."""
    problems = split_problems(subject.task, subject.key.child("rollouts"), subject.scale.samples // 4, evaluation=False)
    plan = SamplePlan(
        key=subject.key.child("propose"), stage="lessons", update=0, group_size=4, max_new_tokens=12, temperature=1.0
    )
    groups = judged_groups(probe, subject.task, policy.texts, problems, plan)
    found = propose_lessons(groups, subject.task, name=subject.task.name).candidates
    right = {lesson_text(sign, meaning) for sign, meaning in subject.task.world.items()}
    return {"proposed": len(found), "right_of_first_three": sum(one.lesson.text in right for one in found[:3])}


def success(subject: Subject, probe: LocalProbe, asked: list[TellingPlan], name: str) -> list[int]:
    keys = [subject.key.child("evaluation", name, place) for place in range(len(asked))]
    found = sample_told(asked, keys, probe, subject.task, subject.plan())
    return [sum(verdict.correct is True for _, verdict in found), len(found)]


def train(subject: Subject, student: CausalPolicy, examples: list[TextExample], arm: str) -> None:
    """Some updates of imitation."""
    stage = TextStage(
        name=arm, kind="pretrain", data="plain", updates=subject.scale.updates, batch_size=32, learning_rate=1e-3,
        warmup=5, schedule="linear",
    )  # fmt: skip
    draw = pool_draw(examples, subject.key.child("batches"), count=stage.batch_size)
    loop = TextTraining(stage=stage, policy=student, optimization=Optimization(student.model, stage), draw=draw)
    for update_number in range(1, stage.updates + 1):
        loop.unit(update_number)


def distilled(subject: Subject, lesson: Lesson) -> dict[str, Any]:
    """Success on held-out problems of the lesson, before and after each arm, with the lesson and without."""
    scale = subject.scale
    held_out = subject.problems("test", scale.evaluation, evaluation=True, about=lesson)
    bare = [TellingPlan(problem=one, text="") for one in held_out]
    told = tell([lesson], held_out, subject.task, most=1)
    base = subject.policy()
    probe = subject.probe(base)
    found: dict[str, Any] = {
        "before": success(subject, probe, bare, "before"),
        "told": success(subject, probe, told, "told"),
    }
    training = subject.problems("train", scale.samples, evaluation=False, about=lesson)
    for arm in ARMS:
        plans = [
            TellingPlan(problem=one, text={"lesson": lesson.text}.get(arm, "")) if arm != "shuffled" else
            TellingPlan(problem=one, text=shuffled(lesson.text, subject.key.child("order", place)))
            for place, one in enumerate(training)
        ]  # fmt: skip
        examples = distilled_examples(
            [replace(plan, lesson_ids=(lesson.id,)) for plan in plans], probe, subject.task, subject.plan(arm),
            correct_only=arm == "own_correct",
        )  # fmt: skip
        student = subject.policy()
        if examples:
            train(subject, student, examples, arm)
        found[arm] = {"examples": len(examples), "after": success(subject, subject.probe(student), bare, "after")}
    return found


def trial(number: int, scale: Scale, cache: Path) -> dict[str, Any]:
    """Everything of one world."""
    began = time.process_time()
    key = Key.root(number).child("review-lessons")
    meanings = "".join(OPERATIONS[i] for i in key.child("world").generator().integers(len(OPERATIONS), size=3))
    subject = Subject(task=Dialect(Settings(world=meanings)), key=key, scale=scale, cache=cache)
    policy = subject.policy()
    probe = subject.probe(policy)
    lessons = planted(subject.task, key)
    held_out = split_problems(subject.task, key.child("gate"), scale.audit_problems, evaluation=True)
    gate = reading_gate(held_out, probe, subject.task, subject.plan("gate"))
    return {
        "trial": number, "world": meanings, "lessons": {kind: one.text for kind, one in lessons.items()},
        "gate": {"open": gate.open, "told": gate.told, "untold": gate.untold, "p_value": gate.p_value},
        "proposals": proposals(subject, policy, probe),
        **audited(subject, lessons, probe),
        "distillation": distilled(subject, lessons["true"]),
        "cpu_seconds": round(time.process_time() - began, 1),
    }  # fmt: skip


def mean_interval(values: list[float]) -> str:
    """The mean over trials with its 95 % Student interval."""
    mean = float(np.mean(values))
    if len(values) < 2:
        return f"{mean:+.3f}"
    half = float(stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values)))
    return f"{mean:+.3f} ({mean - half:+.3f} to {mean + half:+.3f})"


def print_table(found: list[dict[str, Any]]) -> None:
    """Markdown: what became of the planted lessons, then what distillation kept."""
    print(f"{len(found)} trials; the gate was open in {sum(one['gate']['open'] for one in found)}\n")
    print("| lesson | alive after its audits | audits passed | audits until deleted, each trial |\n|---|---|---|---|")
    for kind in KINDS:
        fates = [one["fates"][kind] for one in found]
        audits = [audit for fate in fates for audit in fate["audits"]]
        ends = " ".join("-" if fate["deleted_after"] is None else str(fate["deleted_after"]) for fate in fates)
        alive = sum(fate["deleted_after"] is None for fate in fates)
        print(f"| {kind} | {alive} of {len(fates)} | {sum(a['passed'] for a in audits)} of {len(audits)} | {ends} |")
    alone = sum(
        one["fates"]["true"]["deleted_after"] is None
        and all(one["fates"][kind]["deleted_after"] is not None for kind in KINDS[1:])
        for one in found
    )
    print(f"\nonly the true one lives: {alone} of {len(found)} trials")
    first = sum(one["proposals"]["right_of_first_three"] for one in found)
    print(f"of the three best proposals from unprompted rollouts: {first} of {3 * len(found)} are right\n")
    share = [{name: ratio(one["distillation"][name]) for name in ("before", "told")} for one in found]
    print("| solved without the lesson in the prompt | mean over trials | minus before (95 %) |\n|---|---|---|")
    for name in ("before", "told"):
        values = [each[name] for each in share]
        less = mean_interval([each[name] - each["before"] for each in share]) if name == "told" else ""
        print(f"| {'lesson in the prompt' if name == 'told' else name} | {np.mean(values):.3f} | {less} |")
    for arm in ARMS:
        after = [ratio(one["distillation"][arm]["after"]) for one in found]
        change = [value - each["before"] for value, each in zip(after, share, strict=True)]
        print(f"| after distilling {arm} | {np.mean(after):.3f} | {mean_interval(change)} |")
    after = {arm: [ratio(one["distillation"][arm]["after"]) for one in found] for arm in ARMS}
    for arm in ARMS[1:]:
        less = mean_interval([one - other for one, other in zip(after["lesson"], after[arm], strict=True)])
        print(f"| the lesson's less {arm}'s | | {less} |")
    print(f"\n{sum(one['cpu_seconds'] for one in found) / 3600:.2f} core-hours, without pretraining")


def ratio(pair: list[int]) -> float:
    return pair[0] / max(1, pair[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["run", "table"])
    parser.add_argument("--quick", action="store_true", help="one trial of seconds; stores nothing")
    parser.add_argument("--budget", type=float, default=60.0, help="minutes after which no trial begins")
    parser.add_argument("--cache", type=Path, default=Path("runs/review-lessons"), help="where the decoder is kept")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.quick:
        print_table([trial(0, QUICK, options.cache)])
        return
    began, scale = time.monotonic(), Scale()
    if options.what == "run":
        make_folder(CELLS)
        for number in range(scale.trials):
            place = CELLS / f"trial-{number}.json"
            if not place.exists() and time.monotonic() - began < 60 * options.budget:
                write_text_atomic(place, json.dumps(trial(number, scale, options.cache), indent=1) + "\n")
                print(f"{place.name}: done", flush=True)
    print_table([json.loads(place.read_text(encoding="utf-8")) for place in sorted(CELLS.glob("trial-*.json"))])


if __name__ == "__main__":
    main()
