"""What can be known of dense credit before training: does it pay here, is it safe, and which rule.

Letters: K groups, D coordinates of a gradient, P problems of an update.  No weight changes.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from forkpoint.credit import leave_one_out
from forkpoint.credit.influence import Dependence, Influence, dependence, influence, mean_square, overlap
from forkpoint.credit.needs import Cost, Shape, credit_cost
from forkpoint.errors import ForkpointError
from forkpoint.meter.gradients import (
    UNKNOWN,
    Coordinates,
    Matrix,
    Table,
    batch_gradient,
    coordinates,
    jackknife,
    noise,
    products,
    signal,
)
from forkpoint.meter.measures import Measured
from forkpoint.meter.subject import Subject
from forkpoint.policies.causal import CausalPolicy
from forkpoint.records import Batch, Bools, Credit, Floats, Group, frozen_array
from forkpoint.seeds import Key
from forkpoint.tasks.protocol import Interactive

PAYS = 1.3
"""Head-room from which on dense credit pays: less is lost in the choice of a learning rate."""
READ = 0.1
"""Nats of dependence from which on filler counts as read."""
SHARED = 0.1
"""Overlap from which on updates of the tokens that decide move filler along."""
LEAST = 4
"""Groups of which enough is known, below which nothing is said."""
MOST_LOG = 700.0
"""Above it an exponential overflows."""
UNIFORM = "leave_one_out"
PARTS = ("uniform", "dense", "filler", "deciding")
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Advice:
    """A credit rule to train with."""

    rule: str
    options: Mapping[str, Any]
    wrap: tuple[str, ...]
    cost: Cost
    """For each generated token."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """What was measured, and what follows from it."""

    groups: int
    rollouts: int
    solved: float
    """Share of correct rollouts."""
    known: int
    """Groups with a gradient of the uniform rule, of which it is known which tokens decide."""
    problems_per_update: int
    influence: str
    """The rule that said which tokens decide."""
    deciding: float
    """Share of tokens that decide."""
    filler_noise: float
    """Share of the power of the uniform gradient's noise that comes from filler."""
    noise: Mapping[str, float]
    """Noise-to-signal power of an update, all directions alike: `uniform` and `dense`."""
    overlap: Measured
    headroom: Measured
    """Generated tokens of the uniform rule over those of the dense one, to the same success."""
    least: float
    """The head-room from which dense credit pays, by what its rule costs."""
    dependence: Dependence | None
    pays: bool | None
    """None: the groups do not tell."""
    safe: bool | None
    """Whether tokens may be left without credit."""
    advice: Advice


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Tables:
    """Products of the gradients of K groups, all [K, K]."""

    read: Mapping[str, Table]
    """h.g of the readers h, whose E[h h^T] is the Fisher information of the tokens that decide, with each g."""
    power: Mapping[str, Table]
    """g.g', without the readers."""

    def part(self, some: NDArray[np.int64]) -> "Tables":
        """Those of some of the groups."""
        place = np.ix_(some, some)
        return Tables(
            read={name: table[place] for name, table in self.read.items()},
            power={name: table[place] for name, table in self.power.items()},
        )


def predict(
    subject: Subject, *, groups: int = 48, problems_per_update: int = 8, progress: Progress | None = None
) -> Prediction:
    """The prediction for a policy on a task, from fresh groups; equations in docs/meter.md.

    Raises:
        ForkpointError: fewer than `LEAST` groups; no group of two rollouts could be judged.
    """
    if groups < LEAST:
        raise ForkpointError(f"--groups = {groups}: a prediction needs at least {LEAST}.")
    probe, said = subject.probe("predict"), progress or _silent
    batch = _batch(subject, groups, said)
    found = influence(batch, probe, by_character=by_character(subject))
    tables = group_tables(subject, batch, found, said)
    depends = dependence(batch, found, probe) if isinstance(subject.policy, CausalPolicy) else None
    return _prediction(subject, batch, found, tables, depends, problems_per_update)


def by_character(subject: Subject) -> bool:
    """Whether a token is a character, so that one can be swapped without a model."""
    text = isinstance(subject.policy, CausalPolicy) and not isinstance(subject.task, Interactive)
    return text and subject.task.alphabet is not None


def _silent(what: str, done: int, total: int) -> None:
    del what, done, total


def _batch(subject: Subject, groups: int, said: Progress) -> Batch:
    probe, found = subject.probe("predict-batch"), list[Group]()
    some = replace(subject, problems=min(groups, subject.problems))
    while len(found) < groups:
        found += some.batch(probe, "predict", len(found)).groups
        said("rollouts of groups", min(len(found), groups), groups)
    return Batch(groups=tuple(found[:groups]), update=0)


def group_tables(subject: Subject, batch: Batch, found: Influence, said: Progress) -> Tables:
    """The products of all gradients of all groups; 0 for the parts of which nothing is known."""
    kept, rows = coordinates(subject.policy, subject.key), []
    each = iter(zip(leave_one_out(batch, subject.probe("predict")), found.credits, found.decides, strict=True))
    for number, group in enumerate(batch.groups):
        mine = [next(each) for _ in group.rollouts]
        streams = _streams(mine, subject.key.child("signs", number))
        rows.append([_gradient(subject, Batch(groups=(group,), update=0), stream, kept) for stream in streams])
        said("gradients of groups", number + 1, len(batch.groups))
    readers, *parts = _stacked(rows)
    named = dict(zip(PARTS, parts, strict=True))
    return Tables(
        read={name: products(readers, part) for name, part in named.items()},
        power={name: products(part, part) for name, part in named.items()},
    )


def _streams(mine: Sequence[tuple[Credit, Credit, Bools | None]], key: Key) -> list[list[Floats]]:
    """The advantages of the readers, of the uniform and the dense rule, and of the uniform rule's two parts."""
    signs = 2 * key.generator().integers(2, size=len(mine)) - 1
    uniform, dense = [one.advantages for one, _, _ in mine], [one.advantages for _, one, _ in mine]
    deciding = [np.zeros(len(one)) if mask is None else mask for one, (_, _, mask) in zip(uniform, mine, strict=True)]
    filler = [np.zeros(len(one)) if mask is None else ~mask for one, (_, _, mask) in zip(uniform, mine, strict=True)]
    parts = [
        [sign * mask for sign, mask in zip(signs, deciding, strict=True)],
        uniform,
        dense,
        [one * mask for one, mask in zip(uniform, filler, strict=True)],
        [one * mask for one, mask in zip(uniform, deciding, strict=True)],
    ]
    return [[frozen_array(np.asarray(values), np.float32) for values in part] for part in parts]


def _gradient(subject: Subject, batch: Batch, advantages: Sequence[Floats], kept: Coordinates) -> Matrix | None:
    """The gradient of a group; None for zero, without a pass."""
    if not any(values.any() for values in advantages):
        return None
    credits = [Credit(advantages=each, rule="predict") for each in advantages]
    return batch_gradient(subject.policy, batch, credits, kept, budget=subject.max_new_tokens)


def _stacked(rows: Sequence[Sequence[Matrix | None]]) -> list[Matrix]:
    """Each part of all groups, [K, D]."""
    size = next((len(part) for row in rows for part in row if part is not None), 1)
    return [
        np.stack([np.zeros(size, np.float32) if part is None else part for part in parts])
        for parts in zip(*rows, strict=True)
    ]


def headroom(tables: Tables, problems_per_update: int) -> float:
    """Tokens of the uniform rule over those of the dense one: (S + N_u / P) / (S + N_d / P).

    An update at its best rate gains in proportion to 1 / (1 + N / (P S)) (arXiv 1812.06162, with the Hessian F):
    S = g^T F g is the signal, N = tr(F Sigma) the noise of one group's gradient, F the Fisher information of the tokens
    that decide.  So noise that leaves their distribution alone costs nothing.  S is that of the dense rule: both
    estimate the same gradient, and its error is smaller.  nan where there is neither.
    """
    dense, uniform = tables.read["dense"], tables.read["uniform"]
    true = max(0.0, read_signal(dense))
    noises = [max(0.0, mean_square(table) - max(0.0, read_signal(table))) for table in (uniform, dense)]
    above, below = (true + each / problems_per_update for each in noises)
    return above / below if below > 0 else float("nan")


def read_signal(table: Table) -> float:
    """g^T F g of the mean gradient g, without bias: the mean of q_ik q_il over three different groups i, k, l."""
    count = len(table)
    if count < 3:
        return float("nan")
    off = table - np.diag(np.diag(table))
    pairs = off.sum(axis=1) ** 2 - (off**2).sum(axis=1)
    return float(pairs.sum() / (count * (count - 1) * (count - 2)))


def table_overlap(tables: Tables) -> float:
    """The overlap of filler's and deciding tokens' gradients (`credit.influence.overlap`)."""
    powers = [float(np.trace(tables.power[name])) for name in ("filler", "deciding")]
    return overlap((tables.read["filler"], tables.read["deciding"]), (powers[0], powers[1]))


def _ratio(table: Table, problems: int) -> float:
    """Noise-to-signal power of an update."""
    return noise(table) / problems / true if len(table) > 1 and (true := signal(table)) > 0 else float("nan")


def _logarithmic(statistic: Callable[[Tables], float], tables: Tables, count: int) -> Measured:
    """A positive ratio with the interval of the jackknife over groups, taken of its logarithm."""

    def of(some: NDArray[np.int64]) -> float:
        value = statistic(tables.part(some))
        return math.log(value) if value > 0 else float("nan")

    found = jackknife(of, count) if count >= LEAST else UNKNOWN
    if not math.isfinite(found.value):
        return UNKNOWN
    low, high = (math.exp(end) if abs(end) < MOST_LOG else float("nan") for end in found.interval)
    return Measured(value=math.exp(found.value), interval=(low, high))


def advice(subject: Subject, batch: Batch, found: Influence, *, pays: bool | None, safe: bool | None) -> Advice:
    """What to train with: the uniform rule unless dense credit pays, and the outcome on all tokens where it is unsafe.

    `branch` counts what later tokens make of filler, so it needs no floor.
    """
    rule = found.rule if pays else UNIFORM
    wrap = ("outcome_floor",) if rule == "counterfactual" and safe is not True else ()
    options = found.options if pays else {}
    tokens = float(np.mean([len(rollout.tokens) for rollout in batch.rollouts]))
    shape = Shape(
        tokens=tokens, prompt_tokens=float(np.mean([len(rollout.prompt_tokens) for rollout in batch.rollouts])),
        steps=tokens, answer_tokens=0.0, group_size=subject.group_size,
    )  # fmt: skip
    return Advice(
        rule=rule, options=options, wrap=wrap, cost=credit_cost(rule, options, wrap, {}, shape) or Cost()
    )  # fmt: skip


def worthwhile(room: Measured, cost: Cost) -> bool | None:
    """Whether the head-room exceeds `PAYS` and what the rule samples and reads; None where the groups do not tell.

    Verdicts are left out: what one costs depends on the verifier (`break_even`).
    """
    if not math.isfinite(room.value):
        return None
    if room.value < least_room(cost):
        return False
    return True if room.interval[0] > 1 else None


def least_room(cost: Cost) -> float:
    """The least head-room that is worth it: `PAYS`, or all that the rule samples and reads."""
    return max(PAYS, 1 + replace(cost, verifier_calls=0.0).token_equivalents())


def safety(depends: Dependence | None, shared: float, *, sees_outputs: bool) -> bool | None:
    """Whether filler may be left without credit: False where it is read, True where it cannot be or does not move.

    Else None: it is hardly read now, but moves along, and the policy may come to read it.
    """
    if depends is not None and depends.nats > READ:
        return False
    if not sees_outputs or (depends is not None and shared < SHARED):
        return True
    return None


def break_even(room: float, cost: Cost) -> float:
    """The most sampled tokens that a verdict may cost for the head-room to be worth it; nan without verdicts."""
    left = room - 1 - replace(cost, verifier_calls=0.0).token_equivalents()
    return left / cost.verifier_calls if cost.verifier_calls > 0 else float("nan")


def _prediction(
    subject: Subject, batch: Batch, found: Influence, tables: Tables, depends: Dependence | None, problems: int
) -> Prediction:
    verdicts = [verdict for group in batch.groups for verdict in group.verdicts]
    count = len(batch.groups)
    known = int((np.diag(tables.power["deciding"]) > 0).sum())
    enough = count if known >= LEAST else 0
    room = _logarithmic(lambda some: headroom(some, problems), tables, enough)
    cost = advice(subject, batch, found, pays=True, safe=True).cost
    pays = worthwhile(room, cost)
    shared = _logarithmic(table_overlap, tables, enough)
    safe = safety(depends, shared.value, sees_outputs=getattr(subject.policy, "sees_outputs", True))
    chosen = advice(subject, batch, found, pays=pays, safe=safe)
    parts = [max(0.0, noise(tables.power[name])) if count > 1 else 0.0 for name in ("filler", "deciding")]
    return Prediction(
        groups=count, rollouts=len(verdicts), solved=sum(each.correct is True for each in verdicts) / len(verdicts),
        known=known, problems_per_update=problems, influence=found.rule, deciding=found.share,
        filler_noise=parts[0] / sum(parts) if sum(parts) > 0 else float("nan"),
        noise={name: _ratio(tables.power[name], problems) for name in ("uniform", "dense")},
        overlap=shared, headroom=room, least=least_room(cost), dependence=depends, pays=pays, safe=safe,
        advice=chosen,
    )  # fmt: skip


def verdict_lines(found: Prediction) -> list[str]:
    """The prediction in three sentences: does dense credit pay, is it safe, and which rule.

    Where nothing is known, one says why.
    """
    if not math.isfinite(found.headroom.value):
        return [
            f"not known: {found.known} of {found.groups} groups had right and wrong rollouts and tokens that decide, "
            f"at least {LEAST} are needed ({found.solved:.1%} solved); take more --groups or another stage."
        ]
    low, high = found.headroom.interval
    word = {True: "pays", False: "does not pay", None: "may pay, these groups do not tell"}[found.pays]
    return [
        f"dense credit {word}: head-room {found.headroom.value:.1f} times [{low:.1f}, {high:.1f}] in generated tokens "
        f"(from {found.least:.3g}); {found.filler_noise:.0%} of the noise is from tokens that do not decide, and it "
        f"moves those that do {found.overlap.value:.2f} times as far as their own.",
        _safety(found),
        _choice(found),
    ]


def _safety(found: Prediction) -> str:
    if found.dependence is None:
        told = "it is not known whether filler is read, since none could be replaced before a token that decides"
    else:
        told = f"other filler changes log-probabilities of later deciding tokens by {found.dependence.nats:.3f} nats"
    if found.safe is None:
        return (
            f"not sure to be safe: {told}, but filler without credit moves along (overlap {found.overlap.value:.2f}) "
            'and may come to be read: keep doctor.drift = "watch".'
        )
    return f"safe: {told}." if found.safe else f"unsafe: {told} (above {READ}), so filler that drifts does harm."


def _choice(found: Prediction) -> str:
    chosen = found.advice
    wrapped = "".join(f' with wrap = ["{name}"]' for name in chosen.wrap)
    options = ", ".join(f"{name} = {value!r}" for name, value in chosen.options.items())
    least = break_even(found.headroom.value, chosen.cost)
    price = f"; worth it while a verdict costs less than {least:.2g} sampled tokens" if math.isfinite(least) else ""
    return f"train with {chosen.rule}{wrapped}{f' ({options})' if options else ''}{price}."
