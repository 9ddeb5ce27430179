"""The credit that only the author of a task could give: an arm of comparisons, never a rule to train with.

Letters: C keys of a problem, T tokens of a rollout.
"""

import numpy as np
from numpy.typing import NDArray

from forkpoint.probe import Probe, ScoreRequest
from forkpoint.records import Batch, Credit, Ints, Problem, Rollout, frozen_array
from forkpoint.tasks.keychain import budget, exact_advantages, exact_success_probability, key_positions

RULE = "oracle"


def oracle(batch: Batch, probe: Probe) -> list[Credit]:
    """The advantage of each key of each rollout of `batch.rollouts`, and 0 on filler; the task must be `keychain`.

    One scoring pass of the rollout with every key set right gives the chance p_c of each key, and the closed form of
    `tasks.keychain.exact_advantages` does the rest.  That is the true advantage where tokens depend on the prompt
    alone.  In an autoregressive policy it is not: filler changes later chances, and gets nothing here.
    An early end loses what was still to be had.

    Raises:
        TaskError: a problem of another task.
    """
    pairs = [(group.problem, rollout) for group in batch.groups for rollout in group.rollouts]
    requests = [
        ScoreRequest(
            prompt_tokens=rollout.prompt_tokens,
            tokens=_righted(problem, rollout, probe),
            temperature=rollout.temperature,
        )
        for problem, rollout in pairs
    ]
    made = []
    for (problem, rollout), scores in zip(pairs, probe.score(requests), strict=True):
        chances = np.exp(scores[key_positions(problem)].astype(np.float64)).clip(0.0, 1.0)
        found = _advantages(problem, rollout, chances.tolist())
        cost = {"scored_tokens": float(len(scores))}
        made.append(Credit(advantages=frozen_array(found, np.float32), rule=RULE, cost=cost))
    return made


def _advantages(problem: Problem, rollout: Rollout, chances: list[float]) -> NDArray[np.float64]:
    written = min(len(rollout.text), len(rollout.tokens))
    text = rollout.text[:written].ljust(budget(problem))
    found = exact_advantages(problem, text, chances)[: len(rollout.tokens)]
    if written < len(rollout.tokens):
        found[written:] = 0.0
        found[written] = -(exact_success_probability(chances) + found[:written].sum())
    return found


def _righted(problem: Problem, rollout: Rollout, probe: Probe) -> Ints:
    """As many tokens as the budget: the rollout's characters, the right entry on every key."""
    written = min(len(rollout.text), len(rollout.tokens))
    tokens = np.full(budget(problem), probe.encode(problem.answer)[0])
    tokens[:written] = rollout.tokens[:written]
    tokens[key_positions(problem)] = probe.encode(problem.answer)
    return frozen_array(tokens, np.int32)
