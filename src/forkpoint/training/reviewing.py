"""The texts that a review makes of a policy's rollouts: edited successes, verified fixes, failures at another goal."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from forkpoint.config.review import ReviewSettings
from forkpoint.errors import RecipeError
from forkpoint.policies.texts import Texts
from forkpoint.probe import Probe, Relabelable
from forkpoint.records import Edit, EditKind, Group, TextExample
from forkpoint.review.chat import chat_models
from forkpoint.review.conduct import Conduct, failures, held, looks, verified
from forkpoint.review.edit import fix_text, stories
from forkpoint.review.hinge_search import Localisation
from forkpoint.review.postmortem import Review, Verification
from forkpoint.review.repair import Dropped, dropped_lines
from forkpoint.review.verify import Trials
from forkpoint.review.waste import wasted_spans
from forkpoint.tasks.protocol import Demonstration, Task, split_problems
from forkpoint.training.imitation import demonstration_example, rollout_example
from forkpoint.training.rollouts import SamplePlan, judged_groups


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Reviewed:
    """The rollouts, what a review found, and the texts to imitate."""

    groups: tuple[Group, ...]
    examples: tuple[TextExample, ...]
    reviews: tuple[Review, ...] = ()
    edits: tuple[Edit, ...] = ()
    verifications: tuple[Verification, ...] = ()
    successes: tuple[TextExample, ...] = ()
    """The correct rollouts as they are, where the settings ask for them."""
    tokens: int
    """Sampled, the rollouts' own included."""
    dropped: tuple[Dropped, ...] = ()
    """Texts that are no proposals."""
    gate: str = ""
    """What the hint gate said; empty where it was not asked."""

    @property
    def line(self) -> str:
        """What happened, in one line."""
        rollouts = sum(len(group.rollouts) for group in self.groups)
        right = sum(verdict.correct is True for group in self.groups for verdict in group.verdicts)
        accepted = sum(each.accepted for each in self.verifications)
        hinges = sum(review.hinge is not None for review in self.reviews)
        tried = self.verifications or self.dropped or hinges
        fixes = f", {hinges} hinges, {accepted} of {len(self.edits)} fixes accepted" if tried else ""
        line = f"{rollouts} rollouts ({right} correct){fixes}, {len(self.examples)} texts, {self.tokens} tokens sampled"
        return "; ".join([line, *([self.gate] if self.gate else []), *dropped_lines(self.dropped)])


def reviewed(
    probe: Probe, task: Task, texts: Texts, settings: ReviewSettings, plan: SamplePlan
) -> Reviewed:  # fmt: skip
    """Fresh rollouts on training problems and what their review makes of them.

    A pure function of weights and key, unless a chat model proposes.

    Raises:
        RecipeError: the task cannot be edited in this way.
        ForkpointError: the address of the chat model is none.
    """
    drawn = split_problems(task, plan.key.child("problems"), settings.problems, evaluation=False)
    groups = judged_groups(probe, task, texts, drawn, replace(plan, group_size=settings.group_size))
    found = EDITORS[settings.edit](groups, probe, texts, settings, plan)
    right = [
        rollout_example(rollout)
        for group in groups
        for rollout, verdict in zip(group.rollouts, group.verdicts, strict=True)
        if verdict.correct and settings.successes
    ]
    return replace(found, successes=tuple(right), tokens=probe.cost["sampled_tokens"])


def _told(groups: Sequence[Group], probe: Probe, texts: Texts, settings: ReviewSettings, plan: SamplePlan) -> Reviewed:
    """Successes with their dead ends kept, cut out or marked."""
    del texts, plan
    kind = EditKind(settings.edit)
    reviews: list[Review] = []
    edits: list[Edit] = []
    examples = []
    for group in groups:
        mine = {
            rollout.id: success_review(group, place, probe)
            for place, (rollout, verdict) in enumerate(zip(group.rollouts, group.verdicts, strict=True))
            if verdict.correct
        }
        for example, made in stories(group, mine, probe, kind):
            examples.append(example)
            edits += made
        reviews += mine.values()
    return Reviewed(
        groups=tuple(groups), examples=tuple(examples), reviews=tuple(reviews), edits=tuple(edits), tokens=0
    )


def success_review(group: Group, place: int, probe: Probe) -> Review:
    """The review of a success that looks for what was wasted, and samples nothing."""
    rollout = group.rollouts[place]
    return Review(
        rollout_id=rollout.id, correct=True, cuts=(0,), values=(), hinge=None, first_error=None,
        wasted=wasted_spans(group.problem, rollout, probe.task),
    )  # fmt: skip


def _relabelled(
    groups: Sequence[Group], probe: Probe, texts: Texts, settings: ReviewSettings, plan: SamplePlan
) -> Reviewed:
    """Failures as successes at the goal that they did reach (hindsight relabelling, arXiv 1707.01495)."""
    del settings, plan
    task = probe.task
    if not isinstance(task, Relabelable):
        raise RecipeError("review.edit = 'relabel' needs a task with `reached`, such as paths.")
    examples = []
    for group in groups:
        for rollout, verdict in zip(group.rollouts, group.verdicts, strict=True):
            found = task.reached(group.problem, rollout.text) if verdict.correct is False else None
            if found is not None:
                problem, text = found
                told = Demonstration(
                    prompt=problem.prompt, text=text, ends=False, provenance=f"relabelled:{rollout.id}:{problem.key}"
                )
                examples.append(demonstration_example(texts, told))
    return Reviewed(groups=tuple(groups), examples=tuple(examples), tokens=0)


def _fixed(groups: Sequence[Group], probe: Probe, texts: Texts, settings: ReviewSettings, plan: SamplePlan) -> Reviewed:
    """Failures up to their hinge with a verified step in its place."""
    del texts
    limit, key = plan.max_new_tokens, plan.key.child("review")
    conduct = Conduct(
        max_new_tokens=limit, sources=settings.sources, knowledge=settings.knowledge, temperature=plan.temperature,
        localisation=Localisation(min_drop=settings.min_drop, budget=settings.budget // 2),
    )  # fmt: skip
    chosen = failures(groups, settings.failures)
    ask = chat_models(settings.chat, where="review.chat")
    proposed = held(groups, probe, conduct=conduct, key=key, only=frozenset(chosen), ask=ask)
    trials = Trials(
        max_new_tokens=limit, looks=looks(settings.continuations), level=settings.false_discovery, fresh=settings.fresh,
        budget=settings.budget - settings.budget // 2,
    )  # fmt: skip
    found = verified(proposed.edits, groups, probe, trials=trials, key=key)
    rollouts = {rollout.id: rollout for group in groups for rollout in group.rollouts}
    examples = [
        fix_text(rollouts[edit.rollout_id], edit, each, probe, prefix=settings.prefix)
        for edit, each in zip(proposed.edits, found, strict=True)
        if each.accepted
    ]
    return Reviewed(
        groups=tuple(groups), examples=tuple(examples), reviews=proposed.reviews, edits=proposed.edits,
        verifications=tuple(found), dropped=proposed.dropped, tokens=0,
        gate="" if proposed.gate is None else proposed.gate.line,
    )  # fmt: skip


Editor = Callable[[Sequence[Group], Probe, Texts, ReviewSettings, SamplePlan], Reviewed]
EDITORS: dict[str, Editor] = {
    "fix": _fixed,
    "keep": _told,
    "prune": _told,
    "summarise": _told,
    "relabel": _relabelled,
}
