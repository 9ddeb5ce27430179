"""Groups of judged rollouts: problems in, what was sampled and what the verifier said of it out."""

from collections.abc import Sequence
from dataclasses import dataclass

from forkpoint.policies.texts import Texts
from forkpoint.probe import Probe, SampleRequest
from forkpoint.records import Group, Problem
from forkpoint.seeds import Key
from forkpoint.tasks.protocol import Task


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplePlan:
    """How to draw the rollouts of some problems."""

    key: Key
    """Names the run, the stage and the purpose."""
    stage: str
    update: int
    group_size: int
    max_new_tokens: int
    temperature: float


def judged_groups(probe: Probe, task: Task, texts: Texts, problems: Sequence[Problem], plan: SamplePlan) -> list[Group]:
    """The sampled and verified groups, in the order of the problems; asks the probe once for all rollouts."""
    requests = sample_requests(task, texts, problems, plan)
    rollouts = probe.sample(requests)
    groups = []
    for place, problem in enumerate(problems):
        members = tuple(rollouts[place * plan.group_size : (place + 1) * plan.group_size])
        groups.append(Group(problem=problem, rollouts=members, verdicts=tuple(probe.verify(problem, members))))
    return groups


def sample_requests(task: Task, texts: Texts, problems: Sequence[Problem], plan: SamplePlan) -> list[SampleRequest]:
    """One request for each rollout, group by group."""
    requests = []
    for place, problem in enumerate(problems):
        prompt = texts.encode_prompt(problem.prompt)
        group = plan.key.child(plan.update, place, problem.key)
        for index in range(plan.group_size):
            request = SampleRequest(
                key=group.child(index),
                problem=problem,
                prompt_tokens=prompt,
                group_id=group.hex,
                stage=plan.stage,
                update=plan.update,
                index=index,
                max_new_tokens=plan.max_new_tokens,
                temperature=plan.temperature,
                stop=task.stop(problem),
            )
            requests.append(request)
    return requests
