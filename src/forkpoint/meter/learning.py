"""How fast a policy learns under a credit rule: tokens until most problems are solved, with arms beside it.

A curve is one arm: the policy as it was, a stage of RL with the rule, held-out evaluations as it goes.  It ends when
the target was met twice in a row, when the tokens are spent, or when the policy has collapsed.
"""

import copy
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import numpy as np
from pydantic import ValidationError

from forkpoint.config.critic import CriticSettings
from forkpoint.config.curriculum import Curriculum as CurriculumSettings
from forkpoint.config.divergence import Divergence
from forkpoint.config.recipe import RLStage
from forkpoint.credit import CreditRule
from forkpoint.credit.needs import Prices
from forkpoint.errors import ForkpointError
from forkpoint.losses import reinforce
from forkpoint.meter.subject import Subject
from forkpoint.seeds import Key
from forkpoint.tasks.protocol import split_problems
from forkpoint.training.components import Reference
from forkpoint.training.curriculum import Curriculum
from forkpoint.training.evaluation import EvaluationPlan, evaluate
from forkpoint.training.optimization import Optimization
from forkpoint.training.rl import RLTraining

UNIFORM = "leave_one_out"
COLLAPSED = 0.5
"""Share of the best solve rate so far below which a policy has collapsed, if it stays there for four points."""
LOST = 0.1
"""Of the solve rate, that it must have lost as well: a rate near 0 falls to half by chance."""
Progress = Callable[[str], None]
Watch = Callable[[int, Mapping[str, float]], None]
"""Told the metrics of each update."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """A credit rule with everything that belongs to it."""

    name: str
    rule: CreditRule
    """Without its options."""
    options: Mapping[str, Any] = field(default_factory=dict)
    wrap: tuple[str, ...] = ()
    wrap_options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    learning_rate: float = 1e-3
    critic: CriticSettings | None = None
    """Of the critic that the rule asks; None: it asks for none."""
    curriculum: CurriculumSettings | None = None
    """Which problems are sampled; None: as the task gives them."""
    divergence: Divergence | None = None
    """Of the policy that the curve starts with; None: not charged."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Race:
    """What every arm of a comparison has in common."""

    problems_per_update: int = 8
    group_size: int = 8
    max_tokens: int = 400_000
    """Generated tokens at which an arm is given up, those of its rule included."""
    point_tokens: int = 8_192
    """Rollout tokens between points, rounded up to whole updates."""
    evaluate_within: float = 0.05
    """A point is evaluated once the training rollouts of the last three points come this near to the target."""
    evaluate_every: int = 10
    """Points between evaluations before that."""
    evaluation_problems: int = 512
    target: float = 0.9
    """Solve rate on held-out problems, to be met at two evaluations in a row."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One point of a curve; costs are those of training up to it, evaluations are free."""

    update: int
    solved: float | None
    """Share of held-out problems; None where it was not asked for."""
    generated_tokens: int
    equivalents: float
    """Generated tokens, with scored tokens and verifier calls of the rule at their prices."""
    seconds: float
    """Of training alone."""
    trained_solved: float
    """Share of the training rollouts since the last point that were right: fresh problems, seen once; at the start
    `solved`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """What an arm came to."""

    points: tuple[Point, ...]
    end: str
    """`target`, `budget` or `collapse`."""


def learning_curve(
    subject: Subject, arm: Arm, race: Race, *, seed: int, progress: Progress | None = None, watch: Watch | None = None
) -> Curve:
    """The curve of an arm from the subject's policy on, whose weights it changes.

    `seed` names problems, rollouts and evaluation draws; arms with the same seed see the same problems.

    Raises:
        ForkpointError: settings out of bounds; a rule that this policy or task cannot serve.
    """
    key = Key.root(seed).child("meter", "learning")
    training, probe = _training(subject, arm, race, key)
    plan = evaluation_plan(subject, race, key)
    rollouts = race.problems_per_update * race.group_size
    every = max(1, -(-race.point_tokens // (rollouts * subject.max_new_tokens)))
    start = evaluated_share(subject, plan, 0)
    points = [Point(update=0, solved=start, generated_tokens=0, equivalents=0.0, seconds=0.0, trained_solved=start)]
    while (end := ended(points, race)) is None:
        spent, began, right, update = probe.cost, time.perf_counter(), [], points[-1].update
        for number in range(update + 1, update + every + 1):
            try:
                (step,) = training.unit(number)
            except ValueError as error:
                raise ForkpointError(f"{arm.name}: {error}") from None
            right.append(step.metrics["correct"])
            if watch is not None:
                watch(number, step.metrics)
        seconds = time.perf_counter() - began
        gone = {name: count - spent[name] for name, count in probe.cost.items()}
        if arm.divergence is not None:
            # The start reads every rollout once more.
            gone["scored_tokens"] += gone["sampled_tokens"]
        made = _next(points[-1], gone, every * rollouts, every, seconds)
        made = replace(made, trained_solved=float(np.mean(right)))
        points.append(made)
        near = np.mean([point.trained_solved for point in points[-3:]]) >= race.target - race.evaluate_within
        if near or len(points) % race.evaluate_every == 0:
            made = points[-1] = replace(made, solved=evaluated_share(subject, plan, made.update))
        if progress is not None:
            held = "" if made.solved is None else f", {made.solved:.1%} of held-out problems"
            progress(f"{arm.name}, seed {seed}: {made.generated_tokens:,} tokens, {made.trained_solved:.1%}{held}")
    return Curve(points=tuple(points), end=end)


def _next(last: Point, gone: Mapping[str, int], rollouts: int, updates: int, seconds: float) -> Point:
    """The point after more updates, its solve rates still to come; one verifier call a rollout is everybody's."""
    prices = Prices()
    generated, calls = gone["sampled_tokens"], gone["verifier_calls"] - rollouts
    more = generated + prices.scored * gone["scored_tokens"] + prices.verifier_call * calls
    return Point(
        update=last.update + updates, solved=None, generated_tokens=last.generated_tokens + generated,
        equivalents=last.equivalents + more, seconds=last.seconds + seconds, trained_solved=0.0,
    )  # fmt: skip


def ended(points: Sequence[Point], race: Race) -> str | None:
    """Why a curve is over, or None."""
    if len(points) > 1 and _met(points[-2], points[-1], race.target):
        return "target"
    # The start is evaluated on held-out problems, which a curriculum's mix need not resemble.
    shares = [point.trained_solved for point in points[1:]]
    if len(shares) > 4 and max(shares[-4:]) < min(COLLAPSED * max(shares), max(shares) - LOST):
        return "collapse"
    return "budget" if points[-1].generated_tokens >= race.max_tokens else None


def _met(first: Point, second: Point, target: float) -> bool:
    return all(point.solved is not None and point.solved >= target for point in (first, second))


def to_target(curve: Curve, target: float, cost: str = "generated_tokens") -> float | None:
    """The cost at the first of two evaluations in a row that meet the target; None where none did."""
    for first, second in pairwise(curve.points):
        if _met(first, second, target):
            return float(getattr(first, cost))
    return None


def headroom(uniform: float, rule: float, oracle: float) -> float | None:
    """The share of the head-room that a rule captured, log(uniform / rule) / log(uniform / oracle), from costs.

    None where the oracle is not cheaper than the uniform arm: then there is none to capture.

    >>> headroom(800.0, 400.0, 200.0), headroom(100.0, 90.0, 110.0)
    (0.5, None)
    """
    room = np.log(uniform / oracle)
    return float(np.log(uniform / rule) / room) if room > 0 else None


def _training(subject: Subject, arm: Arm, race: Race, key: Key) -> tuple[RLTraining, Any]:
    critic = None if arm.critic is None else replace(subject, values=arm.critic).fresh_critic()
    probe = subject.probe(f"learning-{arm.name}", critic)
    try:
        stage = RLStage.model_validate(
            {
                "name": "learning", "kind": "rl", "updates": 1_000_000, "learning_rate": arm.learning_rate,
                "warmup": 0, "schedule": "constant", "problems_per_update": race.problems_per_update,
                "group_size": race.group_size, "max_new_tokens": subject.max_new_tokens,
                "temperature": subject.temperature, "aggregation": "constant",
                "critic": arm.critic, "curriculum": arm.curriculum, "divergence": arm.divergence,
                "credit": {"options": dict(arm.options), "wrap": arm.wrap, "wrap_options": dict(arm.wrap_options)},
            }
        )  # fmt: skip
    except ValidationError as error:
        raise ForkpointError(f"{arm.name}: {error.errors()[0]['msg']}.") from None
    key = key.child("stage")
    curriculum = None if arm.curriculum is None else Curriculum(arm.curriculum, subject.task, key.child("curriculum"))
    training = RLTraining(
        stage=stage, task=subject.task, policy=subject.policy, probe=probe,
        optimization=Optimization(subject.policy.model, stage), weights_changed=_nobody, key=key,
        credit_rule=arm.rule, policy_loss=reinforce, critic=critic, curriculum=curriculum,
        reference=_reference(subject, arm.divergence),
    )  # fmt: skip
    return training, probe


def _reference(subject: Subject, charge: Divergence | None) -> Reference | None:
    """The policy as it is now, to stay near."""
    if charge is None:
        return None
    return Reference(policy=copy.deepcopy(subject.policy), kind=charge.kind, where=charge.where)


def _nobody(version: int) -> None:
    """The samplers of a subject read the policy's own weights."""
    del version


def evaluation_plan(subject: Subject, race: Race, key: Key) -> EvaluationPlan:
    """The held-out problems of a comparison; `key` names its seed."""
    problems = split_problems(subject.task, key.child("evaluation problems"), race.evaluation_problems, evaluation=True)
    return EvaluationPlan(
        task=subject.task, problems=tuple(problems), key=key.child("evaluation"), samples=1,
        temperature=subject.temperature, max_new_tokens=subject.max_new_tokens,
    )  # fmt: skip


def evaluated_share(subject: Subject, plan: EvaluationPlan, update: int) -> float:
    """The share of the plan's problems that the subject's policy solves now, by one draw each."""
    found = evaluate(
        subject.probe("evaluation"), subject.policy.texts, plan, stage="learning", update=update, name="evaluate"
    )[1]
    return found.get("evaluation_correct", 0.0)
