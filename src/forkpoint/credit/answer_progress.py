"""Credit for progress toward the known answer: how much a step raised the chance of answering right at once.

Letters: S steps of a rollout.  P_k is the probability that the policy writes the right answer when it is asked for at
cut k; it is scored, not sampled.
"""

from collections.abc import Sequence
from itertools import repeat

import numpy as np
from numpy.typing import NDArray

from forkpoint.credit.group import leave_one_out
from forkpoint.credit.transcripts import Cut, batch_cuts, spread_over_steps
from forkpoint.probe import Answerable, Probe, ScoreRequest
from forkpoint.records import Batch, Credit, Ints, Problem, Rollout, frozen_array

Array = NDArray[np.float64]


def progress(probabilities: Array) -> Array:
    """The progress of each step, shape [S], from P at each step's beginning, shape [S].

    progress_k = P_{k+1} - P_k, and 0 for the last step, in which the answer itself is written

    A sum of differences: P at the last cut minus P at the first, in [-1, 1] however many steps there are.

    >>> progress(np.array([0.25, 0.75, 0.5])).tolist()
    [0.5, -0.25, 0.0]
    """
    return np.append(np.diff(probabilities), 0.0)


def answer_probabilities(batch: Batch, probe: Probe, cuts: Sequence[Sequence[Cut]]) -> list[Array]:
    """P(the right answer at once | the tokens before the cut), for each cut of each rollout of `batch.rollouts`.

    What is scored is the task's `early_answer`; a text that begins with the task's `answer_lead` is given that lead,
    so that asking costs no probability.  0 where the task has no right answer after a transcript.
    Equal questions are asked once.

    Raises:
        ValueError: a task without `early_answer`.
    """
    task = probe.task
    if not isinstance(task, Answerable):
        raise ValueError("answer_progress: the task has no early_answer.")
    lead = str(getattr(task, "answer_lead", ""))
    problems = [problem for group in batch.groups for problem in repeat(group.problem, len(group.rollouts))]
    asked: dict[tuple[bytes, bytes], ScoreRequest] = {}
    places: list[list[tuple[tuple[bytes, bytes], int] | None]] = []
    for problem, rollout, mine in zip(problems, batch.rollouts, cuts, strict=True):
        row: list[tuple[tuple[bytes, bytes], int] | None] = []
        for cut in mine:
            request, skipped = _question(task, problem, rollout, cut, probe, lead)
            name = (request.prompt_tokens.tobytes(), request.tokens.tobytes())
            if len(request.tokens) > skipped:
                asked.setdefault(name, request)
            row.append((name, skipped) if len(request.tokens) > skipped else None)
        places.append(row)
    scores = dict(zip(asked, probe.score(list(asked.values())), strict=True))
    return [
        np.array([0.0 if item is None else np.exp(scores[item[0]][item[1] :].sum(dtype=np.float64)) for item in row])
        for row in places
    ]


def _question(
    task: Answerable, problem: Problem, rollout: Rollout, cut: Cut, probe: Probe, lead: str
) -> tuple[ScoreRequest, int]:
    """What to score at a cut, and how many of its first tokens are given."""
    text = task.early_answer(problem, cut.transcript)
    skipped = len(probe.encode(lead)) if lead and text.startswith(lead) else 0
    context: Ints = np.concatenate([rollout.prompt_tokens, rollout.tokens[: cut.position]])
    request = ScoreRequest(prompt_tokens=context, tokens=probe.encode(text), temperature=rollout.temperature)
    return request, skipped


def answer_progress(batch: Batch, probe: Probe, *, weight: float = 1.0, outcome: bool = True) -> list[Credit]:
    """The credit of each rollout of `batch.rollouts`: its leave-one-out advantage plus the progress of each step.

    A_t = A_i + weight (P_{k+1} - P_k) for the tokens t of step k    (the turn reward of IGPO, arXiv 2510.14967)

    P, not log P, so that the sum over steps is bounded; it telescopes, so more steps cannot farm it.  The last step
    has no progress of its own: its answer is judged by the outcome.  With `outcome` false only the progress is left.
    `details` holds the cuts and P at each (`values`), and their mean rise as `progress`.

    Raises:
        ValueError: a task without `early_answer` or `cut_points`; a weight that is negative; as `leave_one_out`.
    """
    if weight < 0:
        raise ValueError(f"answer_progress: weight = {weight} must be at least 0.")
    base = leave_one_out(batch, probe)
    cuts = batch_cuts(batch, probe)
    made = []
    for rollout, credit, mine, values in zip(
        batch.rollouts, base, cuts, answer_probabilities(batch, probe, cuts), strict=True
    ):
        added = spread_over_steps(weight * progress(values), mine, len(rollout.tokens))
        total = np.where(rollout.loss_mask, added + (credit.advantages if outcome else 0.0), 0.0)
        found = Credit(
            advantages=frozen_array(total, np.float32),
            rule="answer_progress",
            baseline=credit.baseline,
            details={
                "cuts": [cut.position for cut in mine],
                "values": values.tolist(),
                "progress": float(values[-1] - values[0]),
            },
        )
        made.append(found)
    return made
