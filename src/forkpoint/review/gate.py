"""Whether a policy can use a hint at all: without that, what it writes with the answer in its prompt is noise."""

from collections.abc import Sequence
from dataclasses import dataclass

from forkpoint.probe import Privileged, Probe, SampleRequest
from forkpoint.records import Problem, Rollout
from forkpoint.review.contrasts import Counts, sign_greater
from forkpoint.review.steps import stops_of
from forkpoint.seeds import Key


@dataclass(frozen=True, slots=True, kw_only=True)
class HintGate:
    """What came of asking with and without the answer in the prompt."""

    open: bool
    hinted: Counts
    """Successes and trials with the hint."""
    plain: Counts
    """The same problems without."""
    p_value: float
    """Of a hint that helps no more often than it harms; one-sided."""
    line: str
    """In one line."""


def hint_gate(
    problems: Sequence[Problem], probe: Probe, *, key: Key, max_new_tokens: int, temperature: float = 1.0,
    level: float = 0.05,
) -> HintGate:  # fmt: skip
    """The gate: one rollout of each problem with its answer in the prompt and one without, compared problem by problem.

    McNemar's exact test, one-sided: among the problems that just one arm solved, those that the hint solved against a
    fair coin.  A problem without a usable verdict in both arms is left out.
    """
    task = probe.task
    if not isinstance(task, Privileged):
        line = "The task has no privileged_prompt, so there is no hint to give; source `policy` is off."
        return HintGate(open=False, hinted=(0, 0), plain=(0, 0), p_value=1.0, line=line)
    requests = []
    for place, problem in enumerate(problems):
        told = probe.encode_prompt(task.privileged_prompt(problem, problem.answer))
        plain = probe.encode_prompt(problem.prompt)  # type: ignore[arg-type]  # chat messages go through a template
        for arm, prompt in (("hinted", told), ("plain", plain)):
            requests.append(
                SampleRequest(
                    key=key.child("gate", arm, place, problem.key), problem=problem, prompt_tokens=prompt,
                    group_id=key.child("gate", place).hex, stage="review", update=0, index=0,
                    max_new_tokens=max_new_tokens, temperature=temperature, stop=stops_of(task, problem),
                )
            )  # fmt: skip
    drawn = probe.sample(requests) if requests else []
    pairs = [_pair(probe, problem, drawn[2 * place : 2 * place + 2]) for place, problem in enumerate(problems)]
    kept = [pair for pair in pairs if pair is not None]
    hinted, plain_hits = sum(hit for hit, _ in kept), sum(hit for _, hit in kept)
    p_value = sign_greater(sum(a > b for a, b in kept), sum(b > a for a, b in kept))
    found = p_value <= level
    numbers = f"{hinted} of {len(kept)} solved with the answer in the prompt, {plain_hits} without (p = {p_value:.2g})"
    meaning = "the model uses hints." if found else "the model cannot use hints; source `policy` is off."
    return HintGate(
        open=found,
        hinted=(hinted, len(kept)),
        plain=(plain_hits, len(kept)),
        p_value=p_value,
        line=f"{numbers}: {meaning}",
    )


def _pair(probe: Probe, problem: Problem, drawn: Sequence[Rollout]) -> tuple[bool, bool] | None:
    """Whether each of the two was right; None where a verdict is not usable."""
    verdicts = probe.verify(problem, drawn)
    if not all(verdict.usable for verdict in verdicts):
        return None
    return verdicts[0].correct is True, verdicts[1].correct is True
