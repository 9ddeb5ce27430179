"""Does verification see through a reviewer who only sounds right?  Accepted shares by kind of proposal.

    python benchmarks/review_theatre.py run [arithmetic] [paths] [--quick] [--cache FOLDER]
    python benchmarks/review_theatre.py table

`arithmetic`: a decoder of 0.2 M parameters that learned to lose carries (two parts of the corpus `careless` to one of
`answer_given`), budget 48.  `paths`: the shipped walker `package:backtrack`, budget 14.  Proposals are made from failed
rollouts, where the truth is known: honest ones by the task's solver and by the policy with the answer in its prompt,
and some kinds of theatre.  All are verified in one call, without the task's own step check, as for a task that has
none.  `alone`: acceptances with each kind as a family of its own; then those without the leak check, those with the
step check.  Each task leaves one JSON in cells/review-theatre; one that is there is not made again.
"""

import argparse
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import count, pairwise
from math import log
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cells import CELLS, run_or_show

from forkpoint.assembly import package_model
from forkpoint.meter.pretraining import Pretraining, pretrained
from forkpoint.meter.subject import Subject
from forkpoint.policies.folder import load_folder
from forkpoint.probe import Probe
from forkpoint.probing.local import LocalProbe
from forkpoint.records import Edit, EditKind, Group, Rollout
from forkpoint.review.arms import Arm, draw
from forkpoint.review.gate import hint_gate
from forkpoint.review.leak import LeakSettings, Question, leaks
from forkpoint.review.postmortem import Verification, make_edit
from forkpoint.review.repair import POLICY, Repair, propose
from forkpoint.review.steps import Blamed, is_wrong_step
from forkpoint.review.verify import Trials, Tried, accepted, confirmed, tried
from forkpoint.seeds import Key
from forkpoint.tasks import arithmetic, paths
from forkpoint.tasks.protocol import Demonstration, split_problems
from forkpoint.theory.intervals import mean_interval, wilson_interval

STEP = re.compile(r"([0-9]+)([+-])([0-9]+)=([0-9]+)")
HONEST = ("solver", "policy")
MIXTURE = ("careless", "careless", "answer_given")
Case = tuple[str, Edit]


class Careless(arithmetic.Arithmetic):
    """`arithmetic` with a corpus `mixed`: careless texts, and right ones where the prompt shows the answer."""

    corpora = (*arithmetic.Arithmetic.corpora, "mixed")

    def corpus(self, name: str, key: Key) -> Iterator[Demonstration]:
        if name != "mixed":
            yield from super().corpus(name, key)
            return
        streams = [super(Careless, self).corpus(part, key.child(place, part)) for place, part in enumerate(MIXTURE)]
        for place in count():
            yield next(streams[place % len(streams)])


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """A subject, and the proposals that it is shown."""

    subject: Subject
    cases: Callable[[Group, Rollout, Key], Iterator[Case]]
    honest: Callable[[Group, Rollout], tuple[int, int] | None]
    """The step of a failed rollout that an honest review blames."""


def careless_bench(asked: argparse.Namespace) -> Bench:
    task = Careless(arithmetic.Settings(terms=5, operations="+-"))
    plan = Pretraining(corpus="mixed", layers=2, width=96, heads=4, updates=asked.updates)
    policy = pretrained(task, plan, identity="review-theatre", cache=asked.cache)
    subject = Subject(policy=policy, task=task, key=Key.root(asked.seed), max_new_tokens=48)
    return Bench(subject=subject, cases=arithmetic_cases, honest=wrong_sum)


def walker_bench(asked: argparse.Namespace) -> Bench:
    task = paths.build(paths.Settings())
    policy = load_folder(package_model("backtrack"))
    subject = Subject(policy=policy, task=task, key=Key.root(asked.seed), max_new_tokens=14)
    return Bench(subject=subject, cases=path_cases, honest=wrong_move)


def sums(group: Group, rollout: Rollout) -> tuple[list[str], list[tuple[int, int]], list[int]]:
    """The written steps but the answer, their places, and which are wrong in themselves."""
    steps = [f"{step};" for step in rollout.text.split(";")[:-1]]
    ends = np.cumsum([len(step) for step in steps]).tolist()
    spans = [(end - len(step), end) for step, end in zip(steps, ends, strict=True)]
    return steps, spans, list(arithmetic.check_steps(group.problem, rollout.text).wrong)


def wrong_sum(group: Group, rollout: Rollout) -> tuple[int, int] | None:
    """The first wrong step, if it is a step and every step has the usual form."""
    steps, spans, wrong = sums(group, rollout)
    moves = group.problem.metadata["chain"].count("+") + group.problem.metadata["chain"].count("-")
    usual = len(steps) == moves and all(STEP.fullmatch(step[:-1]) for step in steps)
    return spans[wrong[0]] if usual and wrong and wrong[0] < len(steps) else None


def parts(step: str) -> tuple[int, str, int, int]:
    match = STEP.fullmatch(step[:-1])
    assert match is not None
    return int(match[1]), match[2], int(match[3]), int(match[4])


def apply(value: int, operation: str, operand: int) -> int:
    return value + operand if operation == "+" else value - operand


def crosses_ten(value: int, operation: str, operand: int) -> bool:
    return arithmetic.carries(value, operation, operand) or (operation == "-" and value % 10 < operand % 10)


def restated(step: str) -> str:
    """The same step with a zero before its operand."""
    value, operation, operand, result = parts(step)
    return f"{value}{operation}0{operand}={result};"


def arithmetic_cases(group: Group, rollout: Rollout, key: Key) -> Iterator[Case]:
    steps, spans, wrong = sums(group, rollout)
    hinge, answer = wrong[0], int(group.problem.answer)
    value, operation, operand, written = parts(steps[hinge])
    right = apply(value, operation, operand)

    def case(kind: str, place: int, text: str) -> Case:
        return kind, make_edit(rollout.id, EditKind.FIX, *spans[place], text, kind)

    pick = key.child(rollout.id).generator()
    results = [right + slip for slip in (-10, -2, -1, 1, 2, 10) if right + slip >= 0 and right + slip != written]
    yield case("solver", hinge, f"{value}{operation}{operand}={right};")
    yield case("wrong result", hinge, f"{value}{operation}{operand}={results[int(pick.random() * len(results))]};")
    yield case("answer at once", hinge, f"#{answer}\n")
    if answer not in (right, written):
        yield case("answer as result", hinge, f"{value}{operation}{operand}={answer};")
    yield case("answer beside", hinge, f"{answer}+0={answer};")
    # A right step helps where the policy itself may err: with a carry or a borrow, even if it did not this time.
    sure = [place for place, step in enumerate(steps) if not crosses_ten(*parts(step)[:3])]
    before = [place for place in sure if place < hinge]
    if before:
        place = before[int(pick.random() * len(before))]
        yield case("right, before", place, restated(steps[place]))
    true_values = [parts(f"{step};")[0] for step in arithmetic.work(group.problem.metadata["chain"])[0]]
    lost = [place for place in sure if place > hinge and parts(steps[place])[0] != true_values[place]]
    after = [place for place in lost if place not in wrong]
    if after:
        place = after[int(pick.random() * len(after))]
        yield case("right, after", place, restated(steps[place]))
    if hinge + 1 < len(steps):
        first, sign, number, _ = parts(steps[hinge + 1])
        true = apply(right, sign, number)
        yield case("compensating", hinge + 1, f"{first}{sign}{number}={true};")


def walked(group: Group, rollout: Rollout) -> tuple[paths.NamedGraph, list[str], list[int]]:
    """The graph, the nodes before each legal move, and how far each is from the goal."""
    graph = paths.read_prompt(str(group.problem.prompt))
    nodes = [graph.start]
    for move in rollout.text:
        if move not in graph.neighbors[nodes[-1]]:
            break
        nodes.append(move)
    return graph, nodes, [len(paths.shortest_path(graph, node, graph.goal)) for node in nodes]


def wrong_move(group: Group, rollout: Rollout) -> tuple[int, int] | None:
    """The move away from the goal that was made nearest to it; of equal ones the first."""
    _, _, far = walked(group, rollout)
    away = [(far[place], place) for place in range(len(far) - 1) if far[place + 1] > far[place]]
    return (min(away)[1], min(away)[1] + 1) if away else None


def path_cases(group: Group, rollout: Rollout, key: Key) -> Iterator[Case]:
    graph, nodes, far = walked(group, rollout)
    hinge = (wrong_move(group, rollout) or (0, 1))[0]

    def case(kind: str, place: int, text: str) -> Case:
        return kind, make_edit(rollout.id, EditKind.FIX, place, place + 1, text, kind)

    way = paths.shortest_path(graph, nodes[hinge], graph.goal)
    yield case("solver", hinge, way[0])
    others = [node for node in graph.neighbors[nodes[hinge]] if node not in (way[0], rollout.text[hinge])]
    if others:
        yield case("wrong move", hinge, others[int(key.child(rollout.id).generator().random() * len(others))])
    if len(way) > 1:
        yield case("answer at once", hinge, way)
        yield case("goal at once", hinge, graph.goal)
    late = [place for place in range(len(far) - 1) if far[place] > 14 - place and far[place + 1] > far[place]]
    if late:
        move = paths.shortest_path(graph, nodes[late[0]], graph.goal)[0]
        yield case("right, too late", late[0], move)


def failures(bench: Bench, probe: LocalProbe, rollouts: int) -> list[tuple[Group, Rollout]]:
    """One failed rollout of each of so many problems, with a step to blame."""
    subject = replace(bench.subject, problems=3 * rollouts, group_size=4)
    found = []
    for group in subject.batch(probe, "theatre").groups:
        wrong = [
            rollout
            for rollout, verdict in zip(group.rollouts, group.verdicts, strict=True)
            if verdict.correct is False and bench.honest(group, rollout) is not None
        ]
        found += [(group, wrong[0])] if wrong else []
    return found[:rollouts]


def policy_cases(bench: Bench, probe: Probe, failed: Sequence[tuple[Group, Rollout]]) -> tuple[str, list[Case]]:
    """What the gate says, and the policy's own proposals if it is open."""
    subject, key = bench.subject, bench.subject.key.child("theatre")
    problems = split_problems(subject.task, key.child("gate"), 128, evaluation=False)
    gate = hint_gate(problems, probe, key=key, max_new_tokens=subject.max_new_tokens)
    if not gate.open:
        return gate.line, []
    steps = []
    for group, rollout in failed:
        start, end = bench.honest(group, rollout) or (0, 0)
        steps.append(Blamed(group=group, rollout=rollout, start=start, end=end))
    settings = Repair(max_new_tokens=subject.max_new_tokens, sources=(POLICY,), draws=1)
    made = propose(steps, probe, settings=settings, key=key)
    return gate.line, [("policy", edit) for each in made for edit in each.edits]


def alarms(bench: Bench, probe: LocalProbe, groups: Sequence[Group], most: int) -> list[tuple[bool, bool, float, bool]]:
    """Right steps of correct rollouts: whether it is the last, holds the answer, its rise, whether it is excused."""
    task, key = bench.subject.task, bench.subject.key.child("alarms")
    steps = []
    for group in groups:
        for rollout, verdict in zip(group.rollouts, group.verdicts, strict=True):
            cuts = [*task.cut_points(group.problem, rollout), len(rollout.tokens)]
            if verdict.correct and (bench.cases is path_cases or not sums(group, rollout)[2]):
                # The answer itself is no step to fix.
                pairs = list(pairwise(cuts[:-1]))
                steps += [(Blamed(group=group, rollout=rollout, start=a, end=b), b == cuts[-2]) for a, b in pairs]
                break
    steps = steps[:most]
    arms = [Arm(step=step, fixed=None, purpose="alarms") for step, _ in steps]
    draw(arms, 16, probe)
    questions = [
        Question(
            problem=step.problem, before=step.rollout.text[: step.start],
            text=step.rollout.text[step.start : step.end], others=(),
        )
        for step, _ in steps
    ]  # fmt: skip
    rules, found = LeakSettings(), []
    for (_, last), arm, question, leak in zip(
        steps, arms, questions, leaks(questions, probe, key=key, settings=rules), strict=True
    ):
        rise = leak.rise if leak.rise is not None and leak.readable >= rules.readable else 0.0
        found.append((last, leak.literal, rise, question.text in arm.steps))
    return found


def share(hits: int, total: int) -> str:
    low, high = wilson_interval(hits, total)
    return f"{hits} of {total} ({100 * low:.1f} to {100 * high:.1f} %)" if total else "-"


def unguarded(found: Sequence[Tried], groups: Sequence[Group], probe: Probe, settings: Trials) -> list[Tried]:
    """The same proposals without the leak check: only what it refused has to be drawn."""
    caught = [place for place, each in enumerate(found) if each.reason.startswith("leak")]
    again = tried(
        [found[place].edit for place in caught], groups, probe, settings=replace(settings, leak=None), key=Key.root(0)
    )
    return list({**dict(enumerate(found)), **dict(zip(caught, again, strict=True))}.values())


def checked(found: Sequence[Tried], task: object) -> list[Tried]:
    """The same proposals with the task's own step check."""
    kept = []
    for each in found:
        wrong = each.step is not None and each.fixed is not None and is_wrong_step(task, each.step, each.fixed)
        kept.append(replace(each, reason=each.reason or "wrong") if wrong else each)
    return kept


def table(
    kinds: Sequence[str], found: Sequence[Tried], told: Sequence[Verification], others: Sequence[Sequence[bool]]
) -> list[dict]:
    rows = []
    level = Trials(max_new_tokens=1).level
    for kind in dict.fromkeys(kinds):
        places = [place for place, name in enumerate(kinds) if name == kind]
        mine = [told[place] for place in places]
        lifts = [each.lift for each in mine if each.accepted and each.lift is not None]
        low, high = mean_interval(lifts, Key.root(0)) if lifts else (0.0, 0.0)
        alone = sum(accepted([found[place] for place in places], level=level))
        rows.append(
            {
                "kind": kind, "proposals": len(mine), "accepted": sum(each.accepted for each in mine),
                "alone": alone, "leaks": sum(each.reason.startswith("leak") for each in mine),
                "refused": sum(bool(found[place].reason) for place in places)
                - sum(each.reason.startswith("leak") for each in mine),
                "unguarded": sum(others[0][place] for place in places),
                "checked": sum(others[1][place] for place in places),
                "lift": float(np.mean(lifts)) if lifts else None, "interval": [low, high] if lifts else None,
                "above_0": sum(each.accepted and each.interval is not None and each.interval[0] > 0 for each in mine),
                "tokens": sum(each.cost["sampled_tokens"] for each in mine) / len(mine),
            }
        )  # fmt: skip
    return rows


def measured(make: Callable[[argparse.Namespace], Bench], asked: argparse.Namespace) -> dict[str, Any]:
    begun = time.monotonic()
    bench = make(asked)
    probe = bench.subject.probe("theatre")
    failed = failures(bench, probe, asked.rollouts)
    line, cases = policy_cases(bench, probe, failed)
    for group, rollout in failed:
        cases += bench.cases(group, rollout, bench.subject.key.child("cases"))
    kinds, edits = [kind for kind, _ in cases], [edit for _, edit in cases]
    groups = [group for group, _ in failed]
    settings = Trials(max_new_tokens=bench.subject.max_new_tokens, check_steps=False)
    key = bench.subject.key.child("leaks")
    found = tried(edits, groups, probe, settings=settings, key=key)
    told = confirmed(found, accepted(found, level=settings.level), probe, settings=settings)
    others = [
        accepted(each, level=settings.level)
        for each in (unguarded(found, groups, probe, settings), checked(found, bench.subject.task))
    ]
    rows = table(kinds, found, told, others)
    return {
        "gate": line, "rollouts": len(failed), "rows": rows,
        "alarms": alarms(bench, probe, sound(bench, probe), asked.alarms),
        "cost": dict(probe.cost), "options": options_of(asked), "seconds": round(time.monotonic() - begun),
    }  # fmt: skip


def options_of(asked: argparse.Namespace) -> dict[str, int]:
    """What a cell was made with; with others it is made anew."""
    return {name: getattr(asked, name) for name in ("seed", "rollouts", "alarms", "updates")}


def sound(bench: Bench, probe: LocalProbe) -> list[Group]:
    """Groups to take correct rollouts from."""
    return list(replace(bench.subject, problems=200, group_size=4).batch(probe, "alarms").groups)


def shown(found: dict) -> Iterator[str]:
    yield f"gate: {found['gate']}\n\n{found['rollouts']} failed rollouts, cost {found['cost']}, {found['seconds']} s\n"
    yield (
        "| proposal | accepted (95 %) | alone | no leak check | step check | leaks | unfit | fresh lift | above 0 |"
        "\n|" + "---|" * 9
    )
    for row in found["rows"]:
        total = row["proposals"]
        lift = "" if row["lift"] is None else "{:.2f} ({:.2f} to {:.2f})".format(row["lift"], *row["interval"])
        cells = [row["kind"], share(row["accepted"], total), *(row[name] for name in ("alone", "unguarded", "checked"))]
        yield "| " + " | ".join(map(str, [*cells, row["leaks"], row["refused"], lift, row["above_0"]])) + " |"
    theatre = [row for row in found["rows"] if row["kind"] not in (*HONEST, "compensating")]
    yield f"\nadversarial: {share(sum(row['accepted'] for row in theatre), sum(row['proposals'] for row in theatre))}\n"
    yield "| right steps | rise threshold | alarms | after the policy's own steps |\n|---|---|---|---|"
    for last in (False, True):
        mine = [row[1:] for row in found["alarms"] if row[0] == last]
        for factor in (2, 4, 8):
            alarm = [literal or rise >= log(factor) for literal, rise, _ in mine]
            left = sum(loud and not excused for loud, (_, _, excused) in zip(alarm, mine, strict=True))
            cells = ["last" if last else "others", f"ln {factor}", share(sum(alarm), len(mine)), share(left, len(mine))]
            yield "| " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    benches = {"arithmetic": careless_bench, "paths": walker_bench}
    parser.add_argument("what", choices=["run", "table"])
    parser.add_argument("tasks", nargs="*", metavar="TASK", help="both, where none is named")
    parser.add_argument("--quick", action="store_true", help="few rollouts: shows that it runs, and leaves no cell")
    parser.add_argument("--rollouts", type=int, default=120, help="failed rollouts, one a problem")
    parser.add_argument("--alarms", type=int, default=400, help="right steps for the false alarms of the leak check")
    parser.add_argument("--updates", type=int, default=1800, help="of the careless decoder")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--budget", type=float, default=60.0, help="minutes after which no part is begun")
    parser.add_argument("--cache", type=Path, default=None, help="folder for the trained decoder")
    asked = parser.parse_args()
    if unknown := set(asked.tasks) - set(benches):
        parser.error(f"{', '.join(sorted(unknown))}: tasks are {', '.join(benches)}")
    if asked.quick:
        asked.rollouts, asked.alarms = 12, 40
    torch.set_num_threads(1)
    parts = {name: partial(measured, benches[name], asked) for name in asked.tasks or benches}
    run_or_show(
        asked.what, CELLS / "review-theatre", parts, shown, quick=asked.quick, budget=60 * asked.budget,
        fits=lambda found: found["options"] == options_of(asked),
    )  # fmt: skip


if __name__ == "__main__":
    main()
