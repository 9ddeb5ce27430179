"""A model folder of another trainer, beside the rollouts that it wrote, for the audits that ask models.

Nothing is sampled and nothing is judged: the rollouts are read again, under the model and under its base.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from forkpoint.audits.windows import latest, sample
from forkpoint.errors import ForkpointError, ModelError
from forkpoint.policies.causal import CausalPolicy
from forkpoint.policies.folder import load_folder
from forkpoint.policies.texts import Texts
from forkpoint.probe import SampleRequest
from forkpoint.probing.comparing import ComparedProbe
from forkpoint.probing.local import LocalProbe
from forkpoint.records import (
    OUTCOMES,
    STOPS,
    Contents,
    Group,
    Ints,
    Outcome,
    Problem,
    Records,
    Rollout,
    StopReason,
    Verdict,
    frozen_array,
)
from forkpoint.seeds import Key, content_hash

MOST = 512
"""Rollouts of the end of a stage that are read again, evenly spaced."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ForeignTask:
    """What the rollouts tell of their task: what an answer begins with, and the reference answers."""

    answer_lead: str = ""

    def early_answer(self, problem: Problem, transcript: str) -> str:
        """The lead and the reference answer; empty without one of them, or where the lead is there already."""
        known = self.answer_lead and problem.answer and self.answer_lead not in transcript
        return f"{self.answer_lead}{problem.answer}" if known else ""


class ForeignProbe(ComparedProbe):
    """Scores under a model of another trainer; refuses what needs its task."""

    def __init__(
        self, policy: CausalPolicy, task: ForeignTask, groups: Sequence[Group], base: LocalProbe | None
    ) -> None:
        super().__init__(policy, NoSampler(), _no_verdict, groups=groups, base=base, key=Key.root(0).child("audit"))
        self._task = task

    @property
    def task(self) -> object:
        """What is known of the task."""
        return self._task


class NoSampler:
    """Refuses to draw: budgets and stop strings of another trainer are not known."""

    def stream(self, requests: Iterable[SampleRequest]) -> Iterator[Rollout]:
        """Raises ForkpointError."""
        del requests
        raise ForkpointError("rollouts of another trainer can be read again, not drawn.")

    def update_weights(self, version: int) -> None:
        """Nothing."""


def _no_verdict(problem: Problem, rollout: Rollout) -> Verdict:
    del problem, rollout
    raise ForkpointError("rollouts of another trainer have no verifier.")


def model_probe(
    records: Records, model: Path, *, base: Path | None = None, answer_lead: str = "", dtype: str = "float32"
) -> tuple[ForeignProbe, int]:
    """The probe of a model folder with rollouts of the end of a stage, and how many of these it cannot read.

    Left out are empty ones, those beyond the context, and those with characters that the model does not have.

    Raises:
        ForkpointError: a folder holds no model, the rollouts have no prompts and texts, or none of them can be read.
    """
    if records.lacks(("prompt", "text")):
        raise ForkpointError(f"--model: the rollouts lack {' and '.join(records.lacks(('prompt', 'text')))}.")
    policy = load_folder(model, dtype=dtype)
    before = None if base is None else load_folder(base, dtype=dtype)
    context = min(one.context_length for one in (policy, before) if one is not None)
    rows = sample(records, latest(records), MOST)
    fitting, why = [], "they are empty"
    for row, said in zip(rows.tolist(), records.contents(rows), strict=True):
        if not said.prompt or not said.text:
            continue
        try:
            one = _rollout(records, row, said, policy.texts)
        except ModelError as error:
            why = str(error).rstrip(".")
            continue
        size = len(one[1].prompt_tokens) + len(one[1].tokens)
        if size <= context:
            fitting.append(one)
        else:
            why = f"one of them has {size} tokens, the model's context {context}"
    if not fitting:
        raise ForkpointError(f"--model: the model can read none of the {len(rows)} rollouts: {why}.")
    task = ForeignTask(answer_lead=answer_lead)
    other = None if before is None else ForeignProbe(before, task, (), None)
    return ForeignProbe(policy, task, _groups(fitting), other), len(rows) - len(fitting)


def _rollout(records: Records, row: int, said: Contents, texts: Texts) -> tuple[Problem, Rollout, Verdict]:
    """One rollout as ours are; its own tokens where they are those of this tokenizer."""
    prompt, text = said.prompt or "", said.text or ""
    tokens = _tokens(said, text, texts)
    kept = tokens is said.tokens
    problem = Problem(
        task="foreign", key=content_hash("foreign", int(records.problem[row])), prompt=prompt,
        answer=said.reference or "",
    )  # fmt: skip
    stop = STOPS[int(records.stop[row])] if records.stop[row] >= 0 else StopReason.STOP
    count = len(tokens)
    masked = kept and said.loss_mask is not None
    rollout = Rollout(
        id=records.ids[row].decode("utf-8", "replace"), group_id=str(int(records.group[row])), stage=records.stage,
        update=int(records.update[row]), index=0, problem_key=problem.key,
        prompt_tokens=texts.encode_prompt(prompt), tokens=tokens,
        behavior_logprobs=frozen_array(np.zeros(count), np.float32),
        loss_mask=frozen_array(said.loss_mask if masked else np.ones(count), np.bool_),
        temperature=1.0, text=text, stop_reason=StopReason(stop), seed="",
    )  # fmt: skip
    correct = None if records.correct[row] < 0 else bool(records.correct[row])
    told = OUTCOMES[int(records.outcome[row])] if records.outcome[row] >= 0 else None
    outcome = told or {None: Outcome.ABSTAINED, True: Outcome.CORRECT, False: Outcome.WRONG}[correct]
    return problem, rollout, Verdict(outcome=outcome, correct=correct, answer=said.answer)


def _tokens(said: Contents, text: str, texts: Texts) -> Ints:
    known = said.tokens
    size = 0 if known is None or not len(known) else int(known.max()) + 1
    if known is not None and 0 < size <= len(texts.tokenizer) and int(known.min()) >= 0 and texts.decode(known) == text:
        return known
    return texts.encode(text)


def _groups(made: Sequence[tuple[Problem, Rollout, Verdict]]) -> list[Group]:
    """The rollouts of each problem together, numbered."""
    found: dict[str, list[tuple[Problem, Rollout, Verdict]]] = {}
    for one in made:
        found.setdefault(one[0].key, []).append(one)
    return [
        Group(
            problem=mine[0][0],
            rollouts=tuple(replace(rollout, index=place) for place, (_, rollout, _) in enumerate(mine)),
            verdicts=tuple(verdict for _, _, verdict in mine),
        )
        for mine in found.values()
    ]
