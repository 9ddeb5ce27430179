"""An expert's solutions as rows of a policy-gradient update; only the loss `mixed_policy` takes them."""

from collections.abc import Sequence

import numpy as np

from forkpoint.batching import Row, expert_row
from forkpoint.credit.experts import expert_advantage
from forkpoint.policies.texts import Texts
from forkpoint.records import ExpertExample, Group, Problem, frozen_array
from forkpoint.tasks.protocol import Task


def expert_example(task: Task, texts: Texts, problem: Problem) -> ExpertExample:
    """The task's own solution of a problem; it ends as a rollout does: by a stop string, else by end-of-sequence."""
    solution = task.solve(problem)
    prompt, text = texts.encode_prompt(problem.prompt), texts.encode(solution)
    if texts.eos_id is not None and not any(solution.endswith(stop) for stop in task.stop(problem)):
        text = np.append(text, np.int32(texts.eos_id))
    mask = np.arange(len(prompt) + len(text)) >= len(prompt)
    return ExpertExample(
        tokens=frozen_array(np.concatenate([prompt, text]), np.int32),
        loss_mask=frozen_array(mask, np.bool_),
        provenance=f"expert:{problem.key}",
    )


def expert_rows(task: Task, texts: Texts, groups: Sequence[Group], experts: int) -> list[Row]:
    """`experts` rows for each group, in its order, with the advantage over the group's rewards."""
    rows = []
    for group in groups:
        rewards = np.array([reward.total for reward in group.rewards], dtype=np.float64)
        row = expert_row(expert_example(task, texts, group.problem), expert_advantage(rewards, experts))
        rows += [row] * experts
    return rows
