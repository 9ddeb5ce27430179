"""Texts that might take the place of a blamed step: from the policy, a sibling, the task's solver, a chat model.

They are proposals: nobody believes them before `verify` has drawn rollouts from them.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from forkpoint.errors import ForkpointError
from forkpoint.probe import Privileged, Probe, SampleRequest, Solver, Stateful, Stepped, fits
from forkpoint.records import Edit, EditKind, Group, Ints, Problem, Rollout, StopReason
from forkpoint.review.postmortem import make_edit
from forkpoint.review.steps import Blamed, first_step, fixed_prefix, step_end, stops_of
from forkpoint.seeds import Key

POLICY, SIBLING, SOLVER = "policy", "sibling", "solver"
KNOWLEDGE = ("answer", "sibling", "feedback")
"""What the policy may be told: the answer, the text of a correct rollout of the group, what the verifier said."""
Proposer: TypeAlias = Callable[[Problem, str, str], str]
"""A step in words, from the problem, the text before the blamed step, and what is known of the failure."""
SHOWN = 200
"""Characters of a dropped text that are kept."""


class ProposalError(ForkpointError):
    """A proposer has nothing to propose: it timed out, was refused, or answered nonsense."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Repair:
    """How fixes are proposed."""

    max_new_tokens: int
    """Budget of a rollout after the prompt, as the rollouts had it."""
    sources: tuple[str, ...] = (POLICY, SIBLING, SOLVER)
    """Of `policy`, `sibling`, `solver`.  A shut hint gate takes `policy` out."""
    draws: int = 4
    """Steps that the policy draws with knowledge in its prompt, for each blamed step and each kind of knowledge."""
    knowledge: tuple[str, ...] = ("answer",)
    """Of `KNOWLEDGE`, each in a prompt of its own."""
    max_step_tokens: int = 64
    """Longest step that the policy may draw; at most twice the blamed one and 8 tokens more."""
    max_characters: int = 2000
    """Longest text of a chat model."""
    patience: int = 3
    """Failures in a row after which a chat model is not asked again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Dropped:
    """A text that is no proposal."""

    source: str
    text: str
    """Its first characters."""
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Proposals:
    """What was proposed for one blamed step."""

    edits: tuple[Edit, ...]
    """Of kind `fix`, all different; of equal texts the first source in the order policy, sibling, solver, chat."""
    dropped: tuple[Dropped, ...]
    sampled_tokens: int
    """What the policy's own steps cost."""


def dropped_lines(dropped: Sequence[Dropped]) -> list[str]:
    """How many texts of each source were no proposals, and the commonest reason.

    >>> dropped_lines([Dropped(source="chat", text="", reason=reason) for reason in ("a", "b", "b")])
    ['chat: 3 texts dropped, such as: b']
    """
    reasons: dict[str, Counter[str]] = {}
    for each in dropped:
        reasons.setdefault(each.source, Counter())[each.reason] += 1
    return [
        f"{source}: {found.total()} texts dropped, such as: {found.most_common(1)[0][0]}"
        for source, found in reasons.items()
    ]


_Offer: TypeAlias = tuple[str, str, str]
"""Source, text, and why it is none; empty for a text."""


def propose(
    steps: Sequence[Blamed], probe: Probe, *, settings: Repair, key: Key, ask: Mapping[str, Proposer] | None = None
) -> list[Proposals]:
    """The proposals for each blamed step; the policy draws all of its steps in one call.

    A text is dropped, with the reason, where the policy cannot read it or it can be no step there (`fixed_prefix`).
    `ask`: chat models under their names, which become the sources.
    """
    offers: list[list[_Offer]] = [[] for _ in steps]
    costs = [0] * len(steps)
    if POLICY in settings.sources:
        _from_policy(steps, probe, settings, key, offers, costs)
    for place, step in enumerate(steps):
        if SIBLING in settings.sources:
            offers[place] += [(SIBLING, text, "") for text in sibling_steps(step, probe)]
        if SOLVER in settings.sources and isinstance(probe.task, Solver):
            text = probe.task.right_step(step.problem, _before(step, probe))
            offers[place].append((SOLVER, text, "" if text else "the task knows no right step from here"))
    for name, proposer in (ask or {}).items():
        _from_chat(name, proposer, steps, probe, settings, offers)
    return [
        _settled(step, offered, probe, settings, cost) for step, offered, cost in zip(steps, offers, costs, strict=True)
    ]


def _settled(step: Blamed, offers: Sequence[_Offer], probe: Probe, settings: Repair, cost: int) -> Proposals:
    edits: dict[str, Edit] = {}
    dropped = []
    for source, text, reason in offers:
        made = reason or fixed_prefix(step, text, probe, max_new_tokens=settings.max_new_tokens)
        if not isinstance(made, str) and text in edits:
            made = f"it is what {edits[text].source} proposed"
        if isinstance(made, str):
            dropped.append(Dropped(source=source, text=text[:SHOWN], reason=made))
        else:
            edits[text] = make_edit(step.rollout.id, EditKind.FIX, step.start, step.end, text, source)
    return Proposals(edits=tuple(edits.values()), dropped=tuple(dropped), sampled_tokens=cost)


def _before(step: Blamed, probe: Probe) -> str:
    return probe.decode(step.rollout.tokens[: step.start])


def _correct(group: Group) -> Iterator[Rollout]:
    return (rollout for rollout, verdict in zip(group.rollouts, group.verdicts, strict=True) if verdict.correct)


def _from_policy(
    steps: Sequence[Blamed], probe: Probe, settings: Repair, key: Key, offers: list[list[_Offer]], costs: list[int]
) -> None:
    """Some steps from the policy with each kind of knowledge in its prompt."""
    requests: list[SampleRequest] = []
    places: list[int] = []
    for place, step in enumerate(steps):
        for kind in settings.knowledge:
            try:
                told = _told(step, probe, kind)
            except ForkpointError as error:
                offers[place].append((POLICY, "", f"it cannot be told the {kind}: {error}"))
                continue
            if told is None:
                offers[place].append((POLICY, "", f"there is no {kind} to tell it, or no way"))
                continue
            if not fits(probe, len(told), step.end):
                offers[place].append((POLICY, "", f"its prompt with the {kind} leaves no room in the model's context"))
                continue
            made = _step_requests(step, probe, settings, key.child("repair", kind), told)
            requests += made
            places += [place] * len(made)
    for place, rollout in zip(places, probe.sample(requests) if requests else [], strict=True):
        step = steps[place]
        costs[place] += len(rollout.tokens) - step.start
        end = step_end(probe.task, step.problem, rollout, step.start, width=step.end - step.start)
        cut_short = end == len(rollout.tokens) and rollout.stop_reason is StopReason.LENGTH
        reason = "it did not end its step" if cut_short and isinstance(probe.task, Stepped) else ""
        offers[place].append((POLICY, probe.decode(rollout.tokens[step.start : end]), reason))


def shows_any_text(task: object, problem: Problem) -> bool:
    """Whether the task's prompts can hold knowledge in plain words, such as what a verifier says."""
    if not isinstance(task, Privileged):
        return False
    try:
        task.privileged_prompt(problem, "This answer is wrong.")
    except ForkpointError:
        return False
    return True


def _told(step: Blamed, probe: Probe, kind: str) -> Ints | None:
    """The prompt with knowledge in it; None where there is no such knowledge.

    Raises:
        ForkpointError: the task or the policy cannot read it.
    """
    if kind not in KNOWLEDGE:
        raise ValueError(f"review: knowledge = '{kind}' must be one of {', '.join(KNOWLEDGE)}.")
    if kind == "answer":
        known = step.problem.answer
    elif kind == "feedback":
        known = step.reason
    else:
        known = next((each.text for each in _correct(step.group)), "")
    if not known or not isinstance(probe.task, Privileged):
        return None
    return probe.encode_prompt(probe.task.privileged_prompt(step.problem, known))


def _step_requests(step: Blamed, probe: Probe, settings: Repair, key: Key, told: Ints) -> list[SampleRequest]:
    rollout = step.rollout
    limit = min(settings.max_step_tokens, 2 * (step.end - step.start) + 8)
    budget = min(step.start + limit, settings.max_new_tokens)
    if budget <= step.start:
        return []
    return [
        SampleRequest(
            key=key.child(rollout.id, step.start, index), problem=step.problem, prompt_tokens=told,
            group_id=rollout.group_id, stage=rollout.stage, update=rollout.update, index=index,
            max_new_tokens=budget, temperature=rollout.temperature, stop=stops_of(probe.task, step.problem),
            parent=rollout, prefix_length=step.start,
        )
        for index in range(settings.draws)
    ]  # fmt: skip


def sibling_steps(step: Blamed, probe: Probe) -> list[str]:
    """The next steps of the group's other, correct rollouts that pass through the state before the blamed step.

    The same state where the task has states; else, and there too, the same tokens before it.
    """
    task, problem, mine = probe.task, step.problem, step.rollout
    before = _before(step, probe)
    state = task.state(problem, before) if isinstance(task, Stateful) else None
    found = []
    for other in _correct(step.group):
        if other is mine:
            continue
        for start in _starts(task, problem, other, step.start):
            same = other.tokens[:start].tobytes() == mine.tokens[: step.start].tobytes()
            if not same and isinstance(task, Stateful):
                same = task.state(problem, probe.decode(other.tokens[:start])) == state
            if same and start < len(other.tokens):
                found.append(first_step(probe, problem, other, start, width=step.end - step.start))
    return found


def _starts(task: object, problem: Problem, rollout: Rollout, start: int) -> Sequence[int]:
    return task.cut_points(problem, rollout) if isinstance(task, Stepped) else [start]


def _from_chat(
    name: str, proposer: Proposer, steps: Sequence[Blamed], probe: Probe, settings: Repair,
    offers: list[list[_Offer]],
) -> None:  # fmt: skip
    """One step each from a chat model, which is left alone after `patience` failures in a row."""
    failures = 0
    for place, step in enumerate(steps):
        if failures >= settings.patience:
            offers[place].append((name, "", f"it was not asked: it failed {failures} times in a row"))
            continue
        try:
            reply = proposer(step.problem, _before(step, probe), _feedback(step, probe))
        except (ProposalError, OSError, ValueError, LookupError, TypeError, RuntimeError) as error:
            failures += 1
            offers[place].append((name, "", " ".join(str(error).split())[:SHOWN] or type(error).__name__))
            continue
        failures = 0
        offers[place].append(_reply_offer(name, reply, step, probe, settings))


def _reply_offer(name: str, reply: object, step: Blamed, probe: Probe, settings: Repair) -> _Offer:
    """A reply as a step; it takes over the blamed step's outer white space."""
    if not isinstance(reply, str):
        return name, "", f"it answered with a {type(reply).__name__}"
    if len(reply) > settings.max_characters:
        return name, reply[:SHOWN], f"it answered with more than {settings.max_characters} characters"
    old = _blamed_text(step, probe)
    lead, tail = old[: len(old) - len(old.lstrip())], old[len(old.rstrip()) :]
    text = reply.strip()
    return name, f"{lead}{text}{tail}" if text else "", "" if text else "it is empty"


def _blamed_text(step: Blamed, probe: Probe) -> str:
    return probe.decode(step.rollout.tokens[step.start : step.end])


def _feedback(step: Blamed, probe: Probe) -> str:
    return f"The step was {_blamed_text(step, probe)!r}. {step.feedback}".strip()
