"""The two commands of `review` that ask models: what they ask, what they say while they do, what they store."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from forkpoint.assembly.reviewer import REVIEW, Reviewer, stage_reviewer
from forkpoint.cli.output import print_json, tell
from forkpoint.errors import RecipeError, unknown_name
from forkpoint.records import Edit, EditKind, Group
from forkpoint.review.chat import chat_models
from forkpoint.review.conduct import GATE_PROBLEMS, Conduct, failures, held, looks, verified
from forkpoint.review.gate import HintGate, hint_gate
from forkpoint.review.hinge_search import Localisation
from forkpoint.review.postmortem import Verification
from forkpoint.review.repair import KNOWLEDGE, POLICY, SIBLING, SOLVER, Dropped, Proposer, dropped_lines, shows_any_text
from forkpoint.review.verify import SHORT, Trials
from forkpoint.store import RunReader, RunWriter

TOGETHER = 2
"""Groups reviewed between two writes to the store."""
TESTED_TOGETHER = 16
"""Proposals among which false discoveries are counted; one write to the store."""
DRAWN = 16
"""Problems of one draw of fresh rollouts."""
GROUP = 8
"""Rollouts of each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What `review propose` was asked for."""

    stage: str
    rollouts: int
    fresh: bool
    successes: bool
    sources: str
    knowledge: str
    chat: str
    budget: int
    min_drop: float


@dataclass(frozen=True, slots=True, kw_only=True)
class _Call:
    """What stays the same while a call reviews one portion after the other."""

    reviewer: Reviewer
    conduct: Conduct
    gate: HintGate | None
    ask: Mapping[str, Proposer]
    budget: int


@dataclass(slots=True)
class _Done:
    """What a call has come to."""

    rollouts: int = 0
    hinges: int = 0
    proposals: int = 0
    tokens: int = 0
    over: bool = False
    """Whether the budget is spent."""
    dropped: list[Dropped] = field(default_factory=list)


def propose_run(run: Path, asked: Asked, *, as_json: bool) -> int:
    """Reviews rollouts, some groups at a time, and stores what was found."""
    sources = () if asked.successes else _names("--sources", asked.sources, (POLICY, SIBLING, SOLVER))
    ask = {} if asked.successes else chat_models(asked.chat, where="--chat")
    reviewer = stage_reviewer(run, asked.stage or usual_stage(run))
    knowledge = _knowledge(asked.knowledge, reviewer, told=POLICY in sources)
    with RunReader(run) as reader:
        known = {review.rollout_id for review in reader.reviews()}
    tell(f"{reviewer.stage}: weights of update {reviewer.update}; at most {asked.budget} tokens of continuations")
    gate = _gate(reviewer) if POLICY in sources else None
    if not asked.successes and not ask and set(sources) <= ({POLICY} if gate is not None and not gate.open else set()):
        raise RecipeError("nobody is left to propose a fix: name other --sources (sibling, solver) or a --chat model.")
    conduct = Conduct(
        max_new_tokens=reviewer.max_new_tokens, temperature=reviewer.temperature, sources=sources,
        knowledge=knowledge, localisation=Localisation(min_drop=asked.min_drop),
    )  # fmt: skip
    call, done = _Call(reviewer=reviewer, conduct=conduct, gate=gate, ask=ask, budget=asked.budget), _Done()
    try:
        with RunWriter.open(run) as writer:
            for groups, chosen in _portions(reviewer, asked, known, writer):
                _review(call, writer, groups, chosen, done)
                if done.over:
                    break
    except KeyboardInterrupt:
        tell(f"stopped; {done.rollouts} rollouts are reviewed and kept, the same command goes on")
        raise
    for line in dropped_lines(done.dropped):
        tell(line)
    summary = {"stage": reviewer.stage, "reviewed": done.rollouts, "hinges": done.hinges, "proposals": done.proposals}
    if as_json:
        print_json({**summary, "tokens": done.tokens, "gate": None if gate is None else gate.line})
    elif not done.rollouts:
        print("the budget was too small" if done.over else _nothing(run, reviewer.stage, asked))
    else:
        fixes = "" if asked.successes else f", {done.proposals} fixes proposed"
        print(f"{done.rollouts} rollouts reviewed, {done.hinges} hinges found{fixes}")
        if done.proposals:
            print(f"next: forkpoint review verify {run}")
    return 0


def _nothing(run: Path, stage: str, asked: Asked) -> str:
    """Why there is nothing to review among the rollouts that a stage kept, or among fresh ones."""
    if asked.fresh:
        wanted = "was right" if asked.successes else "failed on a problem that another one solved"
        return f"nothing to review: of the fresh rollouts none that is not reviewed yet {wanted}"
    with RunReader(run) as reader:
        kept = [rollout.id for rollout in reader.rollouts(stage)]
        verdicts = (reader.verdict(name) for name in kept)
        judged = any(verdict is not None and verdict.correct is not None for verdict in verdicts)
    if kept and not judged:
        why = f"nothing could be reviewed: none of the {len(kept)} rollouts that '{stage}' kept has a verdict"
    else:
        why = "nothing was left to review"
    return f"{why}; --fresh draws new rollouts"


def _review(call: _Call, writer: RunWriter, groups: Sequence[Group], chosen: Sequence[str], done: _Done) -> None:
    """Reviews one portion, stores it, and counts it."""
    reviewer = call.reviewer
    left = replace(call.conduct.localisation, budget=call.budget - done.tokens)
    found = held(
        groups, reviewer.probe, only=frozenset(chosen), key=reviewer.key, gate=call.gate, ask=call.ask,
        conduct=replace(call.conduct, localisation=left),
    )  # fmt: skip
    done.tokens += int(sum(review.cost["sampled_tokens"] for review in found.reviews))
    # What the budget cut short without a result stays to be reviewed.
    done.over = call.budget - done.tokens < reviewer.max_new_tokens
    reviews = [review for review in found.reviews if review.hinge is not None or not done.over]
    writer.record_reviews(reviews, found.edits)
    done.rollouts += len(reviews)
    done.hinges += sum(review.hinge is not None for review in found.reviews)
    done.proposals += len(found.edits)
    done.dropped += found.dropped
    for drop in found.dropped:
        if drop.source in call.ask:
            tell(f"{drop.source}: dropped, {drop.reason}")
    tell(f"{done.rollouts} rollouts, {done.hinges} hinges, {done.proposals} proposals, {done.tokens} tokens")
    if done.over:
        tell("the budget is spent")


def _portions(
    reviewer: Reviewer, asked: Asked, known: set[str], writer: RunWriter
) -> Iterator[tuple[list[Group], list[str]]]:
    """Whole groups with the rollouts of them that are to be reviewed now."""
    left = asked.rollouts
    waiting: list[tuple[Group, list[str]]] = []
    for group in _candidates(reviewer, asked, writer):
        chosen = [name for name in _worth(group, successes=asked.successes) if name not in known][:left]
        if chosen:
            waiting.append((group, chosen))
            left -= len(chosen)
        if waiting and (len(waiting) == TOGETHER or not left):
            yield [each for each, _ in waiting], [name for _, names in waiting for name in names]
            waiting = []
        if not left:
            return
    if waiting:
        yield [each for each, _ in waiting], [name for _, names in waiting for name in names]


def _candidates(reviewer: Reviewer, asked: Asked, writer: RunWriter) -> Iterator[Group]:
    """Stored groups, then fresh ones where they were asked for or where the stage kept none."""
    found = 0
    for group in reviewer.stored(fresh=asked.fresh):
        found += 1
        yield group
    if not asked.fresh and found:
        return
    # Problems without a success or a failure give nothing to review, so more are drawn than can be used.
    for number in range(1, 1 + max(1, asked.rollouts)):
        with RunReader(reviewer.run) as reader:
            seen = {group.problem.key for group in reader.groups(reviewer.stage, reviewer.update, REVIEW)}
        drawn = [group for group in reviewer.draw(DRAWN, GROUP, number=number) if group.problem.key not in seen]
        if drawn:
            writer.record_rollouts(drawn, stage=reviewer.stage, update=reviewer.update, purpose=REVIEW)
            yield from drawn


def _worth(group: Group, *, successes: bool) -> list[str]:
    if successes:
        return [r.id for r, verdict in zip(group.rollouts, group.verdicts, strict=True) if verdict.correct]
    return failures([group], len(group.rollouts))


def _gate(reviewer: Reviewer) -> HintGate:
    """Asked once a call; says on standard error what it found."""
    from forkpoint.tasks.protocol import split_problems

    problems = split_problems(reviewer.task, reviewer.key.child("gate"), GATE_PROBLEMS, evaluation=False)
    found = hint_gate(
        problems, reviewer.probe, key=reviewer.key, max_new_tokens=reviewer.max_new_tokens,
        temperature=reviewer.temperature,
    )  # fmt: skip
    tell(found.line)
    return found


def verify_run(run: Path, *, continuations: int, level: float, budget: int, as_json: bool) -> int:
    """Tries every proposal that waits, stage by stage, and stores what came of it."""
    with RunReader(run) as reader:
        # What stages cut or mark is judged by the verifier, whole story by whole story.
        fixes = [stored for stored in reader.edits() if stored.edit.kind is EditKind.FIX]
        waiting = [stored.edit for stored in fixes if stored.verification is None]
        by_stage: dict[str, list[Edit]] = {}
        for edit in waiting:
            by_stage.setdefault(reader.rollout(edit.rollout_id).stage, []).append(edit)
    if waiting:
        tell(f"{len(waiting)} proposals wait; at most {budget} tokens")
    told: list[Verification] = []
    try:
        with RunWriter.open(run) as writer:
            for found in _verified(run, by_stage, continuations, level, budget):
                # What the budget cut short still waits.
                decided = [each for each in found if not each.reason.startswith(SHORT)]
                writer.record_verifications(decided)
                told += decided
                tell(f"{len(told)} of {len(waiting)}: {sum(each.accepted for each in told)} accepted")
    except KeyboardInterrupt:
        tell(f"stopped; {len(told)} fixes are decided and kept, the same command goes on")
        raise
    accepted, left = sum(each.accepted for each in told), len(waiting) - len(told)
    spent = int(sum(each.cost["sampled_tokens"] for each in told))
    if as_json:
        print_json({"tried": len(told), "accepted": accepted, "tokens": spent, "waiting": left})
    elif not waiting:
        print(f"nothing waits to be tried: forkpoint review propose {run}")
    else:
        rest = f"; the budget left {left} untried" if left else ""
        print(f"{accepted} of {len(told)} fixes accepted{rest}: forkpoint review list {run}, forkpoint report {run}")
    return 0


def _verified(
    run: Path, by_stage: Mapping[str, Sequence[Edit]], continuations: int, level: float, budget: int
) -> Iterator[list[Verification]]:
    """The verifications of some proposals at a time, until the budget is spent."""
    spent = 0
    for stage, edits in by_stage.items():
        reviewer = stage_reviewer(run, stage)
        for start in range(0, len(edits), TESTED_TOGETHER):
            part = edits[start : start + TESTED_TOGETHER]
            trials = Trials(
                max_new_tokens=reviewer.max_new_tokens, looks=looks(continuations), level=level, fresh=continuations,
                budget=budget - spent,
            )  # fmt: skip
            found = verified(part, _homes(run, part), reviewer.probe, trials=trials, key=reviewer.key, best=False)
            spent += int(sum(each.cost["sampled_tokens"] for each in found))
            yield found
            if any(each.reason.startswith(SHORT) for each in found):
                return


def _homes(run: Path, edits: Sequence[Edit]) -> list[Group]:
    """The groups of the rollouts that edits are of."""
    with RunReader(run) as reader:
        groups = [reader.group_of(name) for name in dict.fromkeys(edit.rollout_id for edit in edits)]
    return list({group.rollouts[0].id: group for group in groups}.values())


def usual_stage(run: Path) -> str:
    """The last RL stage with updates, else the last stage.

    Raises:
        RecipeError: the run has no stage.
    """
    with RunReader(run) as reader:
        stages = [stage for stage in reader.stages() if stage.updates_done]
    if not stages:
        raise RecipeError(f"{run} has no stage that has made an update.")
    of_rl = [stage.name for stage in stages if stage.kind == "rl"]
    return of_rl[-1] if of_rl else stages[-1].name


def _knowledge(text: str, reviewer: Reviewer, *, told: bool) -> tuple[str, ...]:
    """What the policy is told; raises RecipeError for nothing, and for what the task's prompts cannot hold."""
    names = _names("--knowledge", text, KNOWLEDGE)
    if not names:
        raise RecipeError(f"--knowledge is empty: name some of {', '.join(KNOWLEDGE)}.")
    if told and "feedback" in names and not shows_any_text(reviewer.task, reviewer.some_problem()):
        raise RecipeError(
            f"--knowledge feedback needs prompts that can hold any text; those of {reviewer.task.name} cannot."
        )
    return names


def _names(option: str, text: str, known: Sequence[str]) -> tuple[str, ...]:
    """The names of a list with commas between."""
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    for name in names:
        if name not in known:
            raise RecipeError(unknown_name(option, name, known))
    return names
