"""A model folder of another trainer, beside the rollouts that it wrote, for the audits that ask models.

Nothing is sampled and nothing is judged: the rollouts are read again, under the model and under its base.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from forkpoint.audits.windows import latest, sample
from forkpoint.errors import ForkpointError, ModelError
from forkpoint.integrations.rollout_fields import RolloutsError
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
    gap: str = ""
    """What stands between the lead and the answer, such as a space."""

    def early_answer(self, problem: Problem, transcript: str) -> str:
        """The lead and the reference answer; empty without one of them, or where the lead is there already."""
        known = self.answer_lead and problem.answer and self.answer_lead not in transcript
        return f"{self.answer_lead}{self.gap}{problem.answer}" if known else ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Folders:
    """What a user says of the models of another trainer."""

    model: Path
    base: Path | None = None
    answer_lead: str = ""
    raw_prompts: bool = False
    """The prompts went through the chat template already."""
    dtype: str = "float32"


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


def model_probe(records: Records, folders: Folders) -> tuple[ForeignProbe, int]:
    """The probe of a model folder with rollouts of the end of a stage, and how many of these it cannot read.

    Left out are empty ones, those beyond the context, those with characters that the model does not have, and those
    with tool rounds, whose texts hold what the model did not write.

    Raises:
        RolloutsError: the rollouts have no prompts and texts, or none of them can be read.
        ForkpointError: a folder holds no model, or the base has another tokenizer.
    """
    policy = load_folder(folders.model, dtype=folders.dtype)
    before = None if folders.base is None else load_folder(folders.base, dtype=folders.dtype)
    if before is not None and before.texts.tokenizer.get_vocab() != policy.texts.tokenizer.get_vocab():
        raise ForkpointError(f"--base-model: {folders.base} and {folders.model} have different tokenizers.")
    if records.lacks(("prompt", "text")):
        raise RolloutsError(f"--model: the rollouts lack {' and '.join(records.lacks(('prompt', 'text')))}.")
    context = min(one.context_length for one in (policy, before) if one is not None)
    rows = sample(records, latest(records), MOST)
    read, why = _read(records, rows, policy.texts, folders, context)
    if not read:
        raise RolloutsError(f"--model: the model can read none of the {len(rows)} rollouts: {why}.")
    gap = _gap([rollout.text for _, rollout, _ in read], folders.answer_lead)
    task = ForeignTask(answer_lead=folders.answer_lead, gap=gap)
    other = None if before is None else ForeignProbe(before, task, (), None)
    return ForeignProbe(policy, task, _groups(read), other), len(rows) - len(read)


Judged: TypeAlias = tuple[Problem, Rollout, Verdict]


def _read(
    records: Records, rows: NDArray[np.int64], texts: Texts, folders: Folders, context: int
) -> tuple[list[Judged], str]:
    """The rollouts of some rows that can be read, and why the last of the others cannot."""
    read: list[Judged] = []
    why = "they are empty"
    for row, said in zip(rows.tolist(), records.contents(rows), strict=True):
        if not said.prompt or not said.text:
            continue
        if records.turns is not None and records.turns[row] > 0:
            why = "their texts hold answers of tools"
            continue
        try:
            prompt = _prompt(said.prompt, texts, raw=folders.raw_prompts)
            one = _rollout(records, row, said, (prompt, _tokens(said, said.text, texts)))
        except ModelError as error:
            why = str(error).rstrip(".")
            continue
        size = len(one[1].prompt_tokens) + len(one[1].tokens)
        if size <= context:
            read.append(one)
        else:
            why = f"one of them has {size} tokens, the model's context {context}"
    return read, why


def _gap(texts: Sequence[str], lead: str) -> str:
    """The spaces that most of the texts have after the last lead."""
    after = [text.rpartition(lead)[2] for text in texts if lead and lead in text]
    gaps = Counter(rest[: len(rest) - len(rest.lstrip(" "))] for rest in after)
    return gaps.most_common(1)[0][0] if gaps else ""


def _prompt(prompt: str, texts: Texts, *, raw: bool) -> Ints:
    """The tokens of a prompt; one that holds special tokens of the tokenizer went through a template already."""
    special = [text for text in texts.tokenizer.all_special_tokens if text and text in prompt]
    # A tokenizer of single characters has no template, and takes what it does not know for padding.
    if not texts.by_character and (raw or (special and getattr(texts.tokenizer, "chat_template", None))):
        return frozen_array(texts.tokenizer.encode(prompt, add_special_tokens=False), np.int32)
    return texts.encode_prompt(prompt)


def _rollout(records: Records, row: int, said: Contents, read: tuple[Ints, Ints]) -> Judged:
    """One rollout as ours are, from the tokens of its prompt and its text."""
    prompt, tokens = read
    kept = tokens is said.tokens
    problem = Problem(
        task="foreign", key=content_hash("foreign", int(records.problem[row])), prompt=said.prompt or "",
        answer=said.reference or "",
    )  # fmt: skip
    stop = STOPS[int(records.stop[row])] if records.stop[row] >= 0 else StopReason.STOP
    count = len(tokens)
    masked = kept and said.loss_mask is not None
    rollout = Rollout(
        id=records.ids[row].decode("utf-8", "replace"), group_id=str(int(records.group[row])), stage=records.stage,
        update=int(records.update[row]), index=0, problem_key=problem.key,
        prompt_tokens=prompt, tokens=tokens,
        behavior_logprobs=frozen_array(np.zeros(count), np.float32),
        loss_mask=frozen_array(said.loss_mask if masked else np.ones(count), np.bool_),
        temperature=1.0, text=said.text or "", stop_reason=StopReason(stop), seed="",
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


def _groups(made: Sequence[Judged]) -> list[Group]:
    """The rollouts of each problem together, numbered."""
    found: dict[str, list[Judged]] = {}
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
