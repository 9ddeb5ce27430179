"""Reflect, retry, reward: failed attempts in, hints that the policy wrote on them and retries with these hints out.

J(a) = E[r(z) | h ~ pi(. | x, a), z ~ pi(. | x, h)] for a failed attempt a of problem x, a reflection h and a retry z.
The tokens of h are credited with r(z) (arXiv 2505.24726); r(z) less the mean of the other reflections on the same a has
the gradient of J(a) through h as its expectation.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from forkpoint.config.reflect import Reflect
from forkpoint.credit.group import leave_one_out
from forkpoint.errors import ModelError, TaskError
from forkpoint.policies.texts import Texts
from forkpoint.probe import Probe, Reflective, SampleRequest
from forkpoint.records import Batch, Credit, Group, Ints, Outcome, Problem, Rollout, StopReason, Verdict
from forkpoint.rewards.outcome import Pays, outcome_rewards
from forkpoint.tasks.protocol import Task
from forkpoint.training.rollouts import SamplePlan


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Reflected:
    """A failed attempt with the reflections on it and their retries."""

    attempt_id: str
    reflections: Group
    """The verdict on a reflection is that on its retry, or that it was no hint."""
    retries: Group
    """One for each reflection that could be told, in their order; the parent of each is its reflection."""
    credits: tuple[Credit, ...] = ()
    """Of the reflections, once they were rewarded."""


def reflected(
    groups: Sequence[Group], probe: Probe, task: Task, texts: Texts, *, settings: Reflect, plan: SamplePlan
) -> list[Reflected]:
    """The reflections on the first failures of each group, in their order, and the retries; two calls of the probe.

    A failure that no prompt can show is left out.

    `plan` is that of the attempts, whose rollouts stay as they are; every draw is a function of its key.

    Raises:
        ValueError: the task has no prompts for reflections.
    """
    if not isinstance(task, Reflective):
        raise ValueError(f"reflect: the task {task.name} has no reflection_prompt.")
    failed = [
        (group.problem, attempt, prompt)
        for group in groups
        for attempt in failures(group)[: settings.failures]
        if (prompt := _asked(task, texts, group.problem, attempt)) is not None
    ]
    asked = [
        request
        for problem, attempt, prompt in failed
        for request in _reflection_requests(
            prompt, problem, attempt, stop=task.stop(problem), settings=settings, plan=plan
        )
    ]
    written = probe.sample(asked)
    problems = [problem for problem, *_ in failed for _ in range(settings.reflections)]
    told = [
        _retry_request(task, texts, problem, reflection, stop=task.stop(problem), plan=plan)
        for problem, reflection in zip(problems, written, strict=True)
    ]
    retried = iter(probe.sample([request for request in told if isinstance(request, SampleRequest)]))
    tried = [next(retried) if isinstance(request, SampleRequest) else request for request in told]
    found = []
    for place, (problem, attempt, _) in enumerate(failed):
        mine = slice(place * settings.reflections, (place + 1) * settings.reflections)
        found.append(_judged(probe, problem, attempt, written[mine], tried[mine]))
    return found


def failures(group: Group) -> list[Rollout]:
    """The rollouts of a group that were judged and are not correct, empty ones left out, in order."""
    pairs = zip(group.rollouts, group.verdicts, strict=True)
    return [rollout for rollout, verdict in pairs if verdict.correct is False and len(rollout.tokens)]


def _asked(task: Reflective, texts: Texts, problem: Problem, attempt: Rollout) -> Ints | None:
    """The prompt that shows an attempt; None for one that cannot be shown, such as one with a special token."""
    try:
        return texts.encode_prompt(task.reflection_prompt(problem, attempt.text))
    except (TaskError, ModelError):
        return None


def _reflection_requests(
    prompt: Ints, problem: Problem, attempt: Rollout, *, stop: tuple[str, ...], settings: Reflect, plan: SamplePlan
) -> list[SampleRequest]:
    """One request for each reflection on an attempt."""
    key = plan.key.child("reflect", attempt.id)
    return [
        SampleRequest(
            key=key.child(index), problem=problem, prompt_tokens=prompt, group_id=key.hex, stage=plan.stage,
            update=plan.update, index=index, max_new_tokens=settings.max_new_tokens, temperature=plan.temperature,
            stop=stop, parent=attempt,
        )
        for index in range(settings.reflections)
    ]  # fmt: skip


def _retry_request(
    task: Reflective, texts: Texts, problem: Problem, reflection: Rollout, *, stop: tuple[str, ...], plan: SamplePlan
) -> SampleRequest | Verdict:
    """The request for a retry with the reflection in its prompt; the verdict on a reflection that is no hint."""
    if not len(reflection.tokens):
        return Verdict(outcome=Outcome.UNPARSEABLE, correct=False, reason="the reflection is empty")
    if reflection.stop_reason is StopReason.LENGTH:
        return Verdict(outcome=Outcome.TRUNCATED, correct=False, reason="the reflection ran out of budget")
    try:
        prompt = texts.encode_prompt(task.retry_prompt(problem, reflection.text))
    except (TaskError, ModelError) as error:
        return Verdict(outcome=Outcome.UNPARSEABLE, correct=False, reason=f"no hint to retry with: {error}"[:300])
    key = plan.key.child("retry", reflection.id)
    return SampleRequest(
        key=key, problem=problem, prompt_tokens=prompt, group_id=f"{reflection.group_id}~retry",
        stage=plan.stage, update=plan.update, index=reflection.index, max_new_tokens=plan.max_new_tokens,
        temperature=plan.temperature, stop=stop, parent=reflection,
    )  # fmt: skip


def _judged(
    probe: Probe, problem: Problem, attempt: Rollout, written: Sequence[Rollout], tried: Sequence[Rollout | Verdict]
) -> Reflected:
    """Every reflection with the verdict on its retry."""
    retries = [rollout for rollout in tried if isinstance(rollout, Rollout)]
    verdicts = probe.verify(problem, retries)
    said = iter(verdicts)
    judged = tuple(each if isinstance(each, Verdict) else next(said) for each in tried)
    return Reflected(
        attempt_id=attempt.id, reflections=Group(problem=problem, rollouts=tuple(written), verdicts=judged),
        retries=Group(problem=problem, rollouts=tuple(retries), verdicts=tuple(verdicts)),
    )  # fmt: skip


def credited(found: Sequence[Reflected], probe: Probe, *, update: int, pays: Pays) -> list[Reflected]:
    """What was reflected with rewards and leave-one-out credit; fewer than two usable reflections teach nothing.

    A reflection is paid what its retry is worth and nothing for its own length; credit is shared among the reflections
    on one attempt, so it is 0 where all of their retries agree.
    """
    kept = [each for each in found if len(each.reflections.rollouts) > 1]
    batch = Batch(groups=tuple(each.reflections for each in kept), update=update)
    rewards = iter(outcome_rewards(batch, probe, pays=pays, max_new_tokens=1))
    groups = tuple(replace(group, rewards=tuple(next(rewards) for _ in group.rollouts)) for group in batch.groups)
    credits = iter(leave_one_out(replace(batch, groups=groups), probe) if groups else ())
    return [
        replace(each, reflections=group, credits=tuple(next(credits) for _ in group.rollouts))
        for each, group in zip(kept, groups, strict=True)
    ]


def beside(found: Sequence[Reflected], groups: Sequence[Group]) -> list[Reflected]:
    """What was reflected on the attempts in these groups."""
    names = {rollout.id for group in groups for rollout in group.rollouts}
    return [each for each in found if each.attempt_id in names]


def reflection_metrics(found: Sequence[Reflected]) -> Mapping[str, float]:
    """Counts, and shares over the reflections: told (a hint that a retry could use) and solved by the retry."""
    verdicts = [verdict for each in found for verdict in each.reflections.verdicts]
    rollouts = [rollout for each in found for group in (each.reflections, each.retries) for rollout in group.rollouts]
    count = max(1, len(verdicts))
    return {
        "reflections": float(len(verdicts)),
        "reflection_told": sum(len(each.retries.rollouts) for each in found) / count,
        "retry_correct": sum(verdict.correct is True for verdict in verdicts) / count,
        "reflect_sampled_tokens": float(sum(int(rollout.loss_mask.sum()) for rollout in rollouts)),
    }
