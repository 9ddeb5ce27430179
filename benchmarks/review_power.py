"""How well reviews find the step that decided a rollout, and at what cost, where the truth is known.

    python benchmarks/review_power.py run [synthetic] [arithmetic] [paths] [--quick] [--cache FOLDER]
    python benchmarks/review_power.py table

`synthetic`: the search on chains of coins with known values, a table of power by drop and budget.
`arithmetic`: a tiny decoder that imitated texts which lose carries.
`paths`: the packaged walker after a while of `recoveries`, with room for one wrong branch but not for two.
Each part leaves one JSON in cells/review-power; one that is there is not made again.
docs/review/localise.md has the numbers.
"""

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cells import CELLS, run_or_show

import forkpoint
from forkpoint.config.recipe import TextStage
from forkpoint.meter.pretraining import Pretraining, pretrained
from forkpoint.meter.subject import Subject
from forkpoint.policies.causal import CausalPolicy
from forkpoint.policies.folder import load_folder
from forkpoint.probe import Continuation, Probe
from forkpoint.records import Group, Rollout, Verdict
from forkpoint.report.statistics import wilson_interval
from forkpoint.review.hinge_search import Localisation, Steps, hinge_search
from forkpoint.review.localise import localise
from forkpoint.review.postmortem import Review
from forkpoint.seeds import Key
from forkpoint.tasks import arithmetic, paths
from forkpoint.training.imitation import TextTraining, corpus_draw
from forkpoint.training.optimization import Optimization

KEY = Key.root(20)
PLAN = Pretraining(corpus="careless", updates=2500, batch_size=32, learning_rate=3e-3, width=64)
UPDATES = 300
"""Of the walker."""
DOWN = Localisation(direction="down")
BUDGETS = (32, 64, 96, 160, 320)
DROPS = (0.2, 0.3, 0.4, 0.6, 0.8)
Share = dict[str, Any]
Sound = Callable[[Group, Rollout, Verdict], bool]
"""Whether a success has no error in it."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Case:
    """A rollout with its review, and the values at its cuts as far as they were looked up."""

    group: Group
    rollout: Rollout
    review: Review
    values: dict[int, tuple[int, int]]
    """Place of a cut: successes and trials."""
    lengths: dict[int, float]
    """Place of a cut: mean tokens of a continuation."""
    free: dict[int, int]
    """Cut: trials of the review that are rollouts of the group, and cost nothing."""

    def change(self, place: int) -> float:
        """Of the value over a step, 0 or 1 at the end."""
        return self.value(place + 1) - self.value(place)

    def value(self, place: int) -> float:
        if place == len(self.review.cuts):
            return float(self.review.correct)
        return self.values[place][0] / self.values[place][1]

    def error(self, place: int) -> float:
        """The standard error of a change, with half a success and a failure added to each cut."""
        shares = [((s + 0.5) / (n + 1), n) for s, n in (self.values.get(at, (0, 0)) for at in (place, place + 1)) if n]
        return float(np.sqrt(sum(share * (1 - share) / n for share, n in shares)))

    def place(self, start: int) -> int:
        return self.review.cuts.index(start)


def continued(case: Case, places: Sequence[int], probe: Probe, count: int) -> Case:
    """The case with the values and lengths of fresh continuations from some of its cuts."""
    requests = [
        Continuation(
            problem=case.group.problem, rollout=case.rollout, prefix_length=case.review.cuts[place], index=index,
            purpose="truth",
        )
        for place in places
        for index in range(count)
    ]  # fmt: skip
    made = probe.branch(requests) if requests else []
    verdicts = probe.verify(case.group.problem, made)
    values, lengths = {}, {}
    for row, place in enumerate(places):
        mine = slice(row * count, (row + 1) * count)
        usable = [verdict.correct is True for verdict in verdicts[mine] if verdict.usable]
        values[place] = (sum(usable), len(usable))
        lengths[place] = float(np.mean([rollout.loss_mask.sum() for rollout in made[mine]]))
    return replace(case, values=values, lengths=lengths)


def judged_cases(
    subject: Subject, wanted: int, *, correct: bool, settings: Localisation, sound: Sound | None = None
) -> list[Case]:
    """Reviewed rollouts of one outcome, two of a group at most; `sound`: those alone that it lets pass."""
    probe, chosen, seen, solved = subject.probe("reviews"), list[tuple[Group, Rollout]](), 0, list[bool]()
    while len(chosen) < wanted:
        for group in subject.batch(subject.probe("batch"), seen).groups:
            solved += [verdict.correct is True for verdict in group.verdicts]
            mine = [
                rollout
                for rollout, verdict in zip(group.rollouts, group.verdicts, strict=True)
                if verdict.correct is correct and (sound is None or sound(group, rollout, verdict))
            ]
            chosen += [(group, rollout) for rollout in mine[:2]]
        seen += 1
    chosen = chosen[:wanted]
    groups = list({id(group): group for group, _ in chosen}.values())
    reviews = localise(
        groups, probe, settings=settings, max_new_tokens=subject.max_new_tokens,
        only={rollout.id for _, rollout in chosen},
    )  # fmt: skip
    found = {review.rollout_id: review for review in reviews}
    spent = probe.cost["sampled_tokens"]
    print(
        f"  {len(chosen)} reviewed, {spent} tokens; {np.mean(solved):.2f} of {len(solved)} rollouts solved", flush=True
    )
    nothing = localise(groups, probe, settings=Localisation(most=0), max_new_tokens=subject.max_new_tokens)
    free = {review.rollout_id: {each.cut: each.trials for each in review.values} for review in nothing}
    return [
        Case(
            group=group, rollout=rollout, review=found[rollout.id], free=free[rollout.id], values={}, lengths={}
        )
        for group, rollout in chosen
    ]  # fmt: skip


def with_values(cases: Sequence[Case], subject: Subject, places: Sequence[Sequence[int]], count: int) -> Iterator[Case]:
    """The cases with the values at some of their cuts."""
    probe = subject.probe("truth")
    for number, (case, mine) in enumerate(zip(cases, places, strict=True)):
        here = [place for place in dict.fromkeys(mine) if place < len(case.review.cuts)]
        if number % 10 == 0:
            print(f"  truth of {number} of {len(cases)}", flush=True)
        yield continued(case, here, probe, count)


def costs(name: str, cases: Sequence[Case]) -> dict[str, Any]:
    """Tokens of the reviews against branching everywhere with as many continuations as the ends of the claims got.

    A continuation is as long as those that the truth was taken from; where there are none, as the rest of the rollout.
    """
    if not cases:
        return {}
    ends = [
        estimate.trials - case.free.get(estimate.cut, 0)
        for case in cases if case.review.hinge is not None
        for estimate in case.review.values if estimate.cut in (case.review.hinge.start, case.review.hinge.end)
    ]  # fmt: skip
    spent = sum(case.review.cost["sampled_tokens"] for case in cases)
    lengths = {
        (case.rollout.id, cut): case.lengths.get(place, len(case.rollout.tokens) - cut)
        for case in cases for place, cut in enumerate(case.review.cuts)
    }  # fmt: skip
    one = sum(lengths.values())
    prefixes = {
        (case.group.problem.key, case.rollout.tokens[:cut].tobytes()): lengths[case.rollout.id, cut]
        for case in cases for cut in case.review.cuts
    }  # fmt: skip
    shared = sum(prefixes.values()) / one
    each = float(np.mean(ends)) if ends else float("nan")
    cuts = np.mean([len(case.review.cuts) for case in cases])
    return {"name": name, "tokens": spent, "ends": each, "one": one, "shared": shared, "rollouts": len(cases),
            "cuts": float(cuts)}  # fmt: skip


def careless(options: argparse.Namespace) -> dict[str, Any]:
    """The planted bug of `arithmetic`."""
    task = arithmetic.build(arithmetic.Settings(terms=8))
    policy = pretrained(task, PLAN, identity=f"{task.name}:{task.settings}", cache=options.cache)
    subject = Subject(policy=policy, task=task, key=KEY.child("arithmetic"), max_new_tokens=96, problems=16)
    failed = judged_cases(subject, options.failures, correct=False, settings=Localisation())
    wrong = [list(task.wrong_steps(case.group.problem, case.rollout.text)) for case in failed]
    kept = [
        (case, steps) for case, steps in zip(failed, wrong, strict=True) if steps and steps[0] < len(case.review.cuts)
    ]
    cases = list(with_values([c for c, _ in kept], subject, [[s[0], s[0] + 1] for _, s in kept], options.continuations))
    first = [steps[0] for _, steps in kept]
    large = [case.change(place) <= -0.3 for case, place in zip(cases, first, strict=True)]
    claims = [None if c.review.first_error is None else c.place(c.review.first_error.start) for c in cases]
    hits = [claim == place for claim, place in zip(claims, first, strict=True)]
    right_steps = [claim in steps for claim, (_, steps) in zip(claims, kept, strict=True) if claim is not None]
    made = [claim is not None for claim in claims]
    shares = [
        share("first wrong step found, drop at least 0.3", [hit for hit, big in zip(hits, large, strict=True) if big]),
        share("first wrong step found, any drop", hits),
        share("claimed step is the first wrong one, drop at least 0.3",
              [hit for hit, big, claim in zip(hits, large, made, strict=True) if big and claim]),
        share("claimed step is the first wrong one, any drop",
              [hit for hit, claim in zip(hits, made, strict=True) if claim]),
        share("claimed step is a wrong one", right_steps),
    ]  # fmt: skip
    price = [
        costs("failures", failed),
        costs("drop at least 0.3", [c for c, big in zip(cases, large, strict=True) if big]),
    ]
    won, more = decisive(subject, options)
    return {"shares": [*shares, won, blamed(subject, options, no_wrong_step)], "costs": [*price, more]}


def no_wrong_step(_group: Group, _rollout: Rollout, verdict: Verdict) -> bool:
    """Whether every step of a success is right in itself."""
    return not verdict.parts.get("wrong_steps", 0)


def straight(group: Group, rollout: Rollout, _verdict: Verdict) -> bool:
    """Whether a walk went to its goal without a detour."""
    graph = paths.read_prompt(str(group.problem.prompt))
    return len(rollout.text) == len(paths.shortest_path(graph, graph.start, graph.goal))


def blamed(subject: Subject, options: argparse.Namespace, sound: Sound) -> Share:
    """The sound rollouts in which a review that looks for errors finds one."""
    cases = judged_cases(subject, options.sound, correct=True, settings=DOWN, sound=sound)
    return share("sound rollouts blamed", [case.review.hinge is not None for case in cases])


def decisive(subject: Subject, options: argparse.Namespace) -> tuple[Share, dict[str, Any]]:
    """Successes: whether the claimed step has the largest rise, or one that is not significantly below it."""
    cases = judged_cases(subject, options.successes, correct=True, settings=Localisation())
    cases = list(with_values(cases, subject, [range(len(c.review.cuts)) for c in cases], options.continuations))
    hits = []
    for case in cases:
        rises = [case.change(place) for place in range(len(case.review.cuts))]
        best = int(np.argmax(rises))
        if rises[best] >= 0.3:
            hits.append(case.review.hinge is not None and near(case, case.place(case.review.hinge.start), best))
    return share("decisive step of successes found, rise at least 0.3", hits), costs("successes", cases)


def near(case: Case, place: int, best: int) -> bool:
    """Whether a step changes the value as much as the best one, within two standard errors of the difference."""
    margin = 2 * float(np.hypot(case.error(place), case.error(best)))
    return abs(abs(case.change(place)) - abs(case.change(best))) <= (0.0 if place == best else margin)


def recovering(task: paths.Paths, cache: Path | None) -> CausalPolicy:
    """The packaged walker after imitating searches that go into dead ends and come back."""
    place = None if cache is None else cache / f"paths-recoveries-{UPDATES}"
    if place is not None and place.is_dir():
        return load_folder(place)
    policy = load_folder(Path(forkpoint.__file__).parent / "models" / "backtrack")
    stage = TextStage(
        name="recoveries", kind="sft", data="recoveries", updates=UPDATES, batch_size=32, learning_rate=1e-3, warmup=20,
        schedule="constant",
    )  # fmt: skip
    draw = corpus_draw(task, policy.texts, stage.data, KEY.child("recoveries"), count=stage.batch_size)
    training = TextTraining(stage=stage, policy=policy, optimization=Optimization(policy.model, stage), draw=draw)
    for update in range(1, UPDATES + 1):
        training.unit(update)
        if update % 50 == 0:
            print(f"  update {update} of {UPDATES}", flush=True)
    if place is not None:
        policy.save(place)
    return policy


def walker(options: argparse.Namespace) -> dict[str, Any]:
    """A walker on `paths`; what is a wrong step, the values say."""
    task = paths.build(paths.Settings(branches=3, depth=3))
    policy = recovering(task, options.cache)
    subject = Subject(policy=policy, task=task, key=KEY.child("paths"), max_new_tokens=9, problems=16)
    failed = judged_cases(subject, options.failures // 2, correct=False, settings=Localisation())
    cuts = [range(len(case.review.cuts)) for case in failed]
    failed = list(with_values(failed, subject, cuts, options.continuations))
    hits, claimed, hinges, steep = [], [], [], []
    for case in failed:
        changes = [case.change(place) for place in range(len(case.review.cuts))]
        drops = [place for place, change in enumerate(changes) if change <= -0.3]
        claim = None if case.review.first_error is None else case.place(case.review.first_error.start)
        if drops:
            steep.append(case)
            hits.append(claim == drops[0])
            hinge = None if case.review.hinge is None else case.place(case.review.hinge.start)
            hinges.append(hinge is not None and near(case, hinge, int(np.argmin(changes))))
        if claim is not None:
            claimed.append(changes[claim] + 2 * case.error(claim) <= 0 and changes[claim] <= -0.15)
    shares = [
        share("first drop of at least 0.3 found", hits),
        share("hinge found, where a drop is at least 0.3", hinges),
        share("claimed step drops by at least 0.15, significantly", claimed),
    ]
    price = [costs("failures", failed), costs("drop at least 0.3", steep)]
    won, more = decisive(subject, options)
    return {"shares": [*shares, won, blamed(subject, options, straight)], "costs": [*price, more]}


def share(name: str, hits: Sequence[bool]) -> Share:
    """How many of how many."""
    return {"name": name, "hits": sum(hits), "of": len(hits)}


def searched(
    values: Sequence[float], draw: np.random.Generator, settings: Localisation, *, correct: bool
) -> int | None:
    """The place of the claim of one search on coins with these values; nothing is known beforehand."""
    steps = Steps(cuts=tuple(range(len(values))), length=len(values), correct=correct, free=((0, 0),) * len(values))
    search, sent = hinge_search(steps, settings), None
    while True:
        try:
            asks = search.send(sent)
        except StopIteration as stop:
            return None if stop.value.hinge is None else int(stop.value.hinge.start)
        sent = [(int(draw.binomial(ask.count, values[ask.place])), ask.count) for ask in asks]


def synthetic(options: argparse.Namespace) -> dict[str, Any]:
    """A failure of 12 steps whose value falls once, to 0.05, at a random step; and sound ones."""
    trials = 40 if options.quick else 200
    table, false, claims = [], 0, 0
    for drop in DROPS:
        row = []
        for budget in BUDGETS:
            draw = KEY.child("synthetic", str(drop), budget).generator()
            hits = 0
            for _ in range(trials):
                place = int(draw.integers(1, 11))
                values = [0.05 + drop] * (place + 1) + [0.05] * (11 - place)
                found = searched(values, draw, Localisation(most=budget), correct=False)
                hits, claims = hits + (found == place), claims + (found is not None)
                # The last step falls from 0.05 to the verdict: no error to find, but a drop.
                false += found is not None and found not in (place, 11)
            row.append(share(f"{drop} {budget}", [True] * hits + [False] * (trials - hits)))
        table.append(row)
    wrong = {"name": "claims of a step without a change", "hits": false, "of": claims}
    draw, sound = KEY.child("sound").generator(), 0
    for number in range(10 * trials):
        level = draw.random()
        values = [level] * 12 if number % 2 else np.sort(draw.random(12)).tolist()
        sound += searched(values, draw, DOWN, correct=True) is not None
    accused = {"name": "sound chains blamed", "hits": sound, "of": 10 * trials}
    return {"table": table, "shares": [wrong, accused], "costs": []}


def shown(found: Mapping[str, Any]) -> Iterator[str]:
    """A part in words and tables."""
    if "table" in found:
        yield "\n| drop | " + " | ".join(f"{budget} continuations" for budget in BUDGETS) + " |"
        yield "|---" * (len(BUDGETS) + 1) + "|"
        for drop, row in zip(DROPS, found["table"], strict=True):
            told = ["{:.2f} ({:.2f} to {:.2f})".format(e["hits"] / e["of"], *bounds(e)) for e in row]
            yield f"| {drop} | " + " | ".join(told) + " |"
    for each in found["shares"]:
        yield "  {}: {} of {} ({:.3f} to {:.3f})".format(each["name"], each["hits"], each["of"], *bounds(each))
    for each in found["costs"]:
        if not each or not each["ends"]:
            continue
        spent, one, ends = each["tokens"], each["one"], each["ends"]
        yield (
            f"  {each['name']}: {spent / each['rollouts']:.0f} tokens a rollout, {ends:.1f} continuations at the ends "
            f"of a claim; {spent / (one * ends):.2f} of branching everywhere with as many, "
            f"{spent / (one * ends * each['shared']):.2f} of the same with equal prefixes drawn once; as many tokens "
            f"as {spent / one:.1f} continuations at each of {each['cuts']:.1f} cuts"
        )


def bounds(share: Mapping[str, Any]) -> tuple[float, float]:
    return wilson_interval(share["hits"], share["of"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = {"synthetic": synthetic, "arithmetic": careless, "paths": walker}
    parser.add_argument("what", choices=["run", "table"])
    parser.add_argument("parts", nargs="*", metavar="PART", help="all, where none is named")
    parser.add_argument("--quick", action="store_true", help="minutes: shows that it runs, and leaves no cell")
    parser.add_argument("--budget", type=float, default=60.0, help="minutes after which no part is begun")
    parser.add_argument("--cache", type=Path, help="where the pretrained decoder is kept")
    options = parser.parse_args()
    if unknown := set(options.parts) - set(parts):
        parser.error(f"{', '.join(sorted(unknown))}: parts are {', '.join(parts)}")
    sizes = (12, 8, 12, 64) if options.quick else (160, 40, 200, 256)
    options.failures, options.successes, options.sound, options.continuations = sizes
    torch.set_num_threads(1)
    asked = {name: partial(parts[name], options) for name in options.parts or parts}
    run_or_show(options.what, CELLS / "review-power", asked, shown, quick=options.quick, budget=60 * options.budget)


if __name__ == "__main__":
    main()
