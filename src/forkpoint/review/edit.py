"""Rollouts edited by their reviews, as texts to imitate.

Four ways: `keep` (all of it), `prune` (wasted spans cut out), `summarise` (each of them becomes one marked step), `fix`
(the prefix and a verified step, nothing after it).  A text that goes on to the end must verify again; a fix must have
been accepted by a re-rollout.  What comes out is imitated only: the type says so.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from forkpoint.errors import ForkpointError
from forkpoint.probe import Markable, Probe
from forkpoint.records import Edit, EditKind, Group, Ints, Problem, Rollout, StopReason, TextExample, frozen_array
from forkpoint.review.postmortem import Review, Span, Verification, make_edit

REVIEW = "review"
"""The source of an edit in which nothing is new."""


def story_edits(review: Review, problem: Problem, rollout: Rollout, task: object, kind: EditKind) -> list[Edit]:
    """What `kind` does to the wasted spans of a success: one edit for each, none for `keep`.

    Raises:
        ForkpointError: `summarise` for a task without `dead_end_mark`.
    """
    if kind is EditKind.KEEP:
        return []
    marked = kind is EditKind.SUMMARISE
    if marked and not isinstance(task, Markable):
        raise ForkpointError("review: summarise needs a task with `dead_end_mark`; keep, prune and fix need none.")
    edits = []
    for span in review.wasted:
        text = task.dead_end_mark(problem, *_cut_text(rollout, span)) if marked and isinstance(task, Markable) else ""
        edits.append(make_edit(rollout.id, kind, span.start, span.end, text, REVIEW))
    return edits


def _cut_text(rollout: Rollout, span: Span) -> tuple[str, str]:
    """The text before a span, and that of the span; only where tokens are characters."""
    return rollout.text[: span.start], rollout.text[span.start : span.end]


def edited_tokens(rollout: Rollout, edits: Sequence[Edit], probe: Probe) -> tuple[Ints, int]:
    """The tokens after the prompt with every edit made, and how many of them come before the first edit.

    After a fix nothing follows.  Edits of one rollout must not overlap.

    Raises:
        ValueError: spans that overlap or leave the rollout.
    """
    pieces, done = [], 0
    first = len(rollout.tokens)
    for edit in sorted(edits, key=lambda each: each.start):
        if not done <= edit.start <= edit.end <= len(rollout.tokens):
            raise ValueError(f"edit {edit.id} of tokens {edit.start} to {edit.end} overlaps or leaves its rollout")
        pieces += [rollout.tokens[done : edit.start], probe.encode(edit.text)]
        done = edit.end
        first = min(first, edit.start)
        if edit.kind is EditKind.FIX:
            return frozen_array(np.concatenate(pieces), np.int32), first
    return frozen_array(np.concatenate([*pieces, rollout.tokens[done:]]), np.int32), first


def stories(
    group: Group, reviews: Mapping[str, Review], probe: Probe, kind: EditKind
) -> list[tuple[TextExample, tuple[Edit, ...]]]:
    """The successes of a group, edited; those that do not verify any more are left out.

    `summarise` and `prune` change rollouts of single-character tokens alone where a mark is to be written; a rollout
    with an environment's replies in it is kept as it is, or left out where it would change.
    """
    found: list[tuple[Rollout, Ints, int, tuple[Edit, ...]]] = []
    for rollout, verdict in zip(group.rollouts, group.verdicts, strict=True):
        review = reviews.get(rollout.id)
        if review is None or not verdict.correct:
            continue
        edits = tuple(story_edits(review, group.problem, rollout, probe.task, kind))
        if edits and not rollout.loss_mask.all():
            continue
        found.append((rollout, *edited_tokens(rollout, edits, probe), edits))
    verdicts = probe.verify(group.problem, [_retold(rollout, tokens, probe) for rollout, tokens, _, _ in found])
    return [
        (text_of(rollout, tokens, _provenance(rollout, edits, None), kept=kept), edits)
        for (rollout, tokens, kept, edits), verdict in zip(found, verdicts, strict=True)
        if verdict.correct
    ]


def _retold(rollout: Rollout, tokens: Ints, probe: Probe) -> Rollout:
    """What the verifier reads of an edited rollout."""
    count = len(tokens)
    return Rollout(
        id=f"{rollout.id}~edited", group_id=rollout.group_id, stage=rollout.stage, update=rollout.update,
        index=rollout.index, problem_key=rollout.problem_key, prompt_tokens=rollout.prompt_tokens, tokens=tokens,
        behavior_logprobs=frozen_array(np.zeros(count), np.float32), loss_mask=frozen_array(np.zeros(count), np.bool_),
        temperature=rollout.temperature, text=probe.decode(tokens), stop_reason=StopReason.STOP, seed=rollout.seed,
    )  # fmt: skip


def fix_text(rollout: Rollout, edit: Edit, verification: Verification, probe: Probe, *, prefix: bool) -> TextExample:
    """The prefix and an accepted fix; with `prefix` both are imitated, without it the fix alone.

    Raises:
        ValueError: the verification is of another edit, or did not accept it.
    """
    if verification.edit_id != edit.id or not verification.accepted:
        raise ValueError(f"edit {edit.id} is not verified, so it cannot be imitated")
    tokens, kept = edited_tokens(rollout, [edit], probe)
    return text_of(rollout, tokens, _provenance(rollout, (edit,), verification), kept=kept, since=0 if prefix else kept)


def text_of(rollout: Rollout, tokens: Ints, provenance: str, *, kept: int, since: int = 0) -> TextExample:
    """The rollout's prompt and the tokens after it, imitated from `since` on.

    The first `kept` tokens are the rollout's own: of these the environment's replies are not imitated.
    """
    mask = np.ones(len(rollout.prompt_tokens) + len(tokens), np.bool_)
    mask[: len(rollout.prompt_tokens) + since] = False
    mask[len(rollout.prompt_tokens) :][:kept] &= rollout.loss_mask[:kept]
    return TextExample(
        tokens=frozen_array(np.concatenate([rollout.prompt_tokens, tokens]), np.int32),
        loss_mask=frozen_array(mask, np.bool_),
        provenance=provenance,
    )


def _provenance(rollout: Rollout, edits: Sequence[Edit], verification: Verification | None) -> str:
    made = "".join(f" edit:{edit.id}" for edit in edits)
    seen = "" if verification is None else f" verified:{'/'.join(str(n) for n in verification.fixed)}"
    return f"rollout:{rollout.id}{made}{seen}"
