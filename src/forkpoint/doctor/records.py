"""Checks of groups, masks and tokens: what the records alone can tell."""

import itertools
from collections import Counter
from collections.abc import Iterator

import numpy as np

from forkpoint.doctor.check import Check
from forkpoint.doctor.subject import Judged, Subject
from forkpoint.errors import ModelError
from forkpoint.records import Bools, Group, Rollout, Severity, SpanKind


def groups_complete(subject: Subject) -> Check:
    """Every group has all its rollouts, in index order."""
    wrong, counted = 0, 0
    for judged in subject.judged:
        for group in judged.groups:
            counted += 1
            indices = [rollout.index for rollout in group.rollouts]
            ordered = all(before < after for before, after in itertools.pairwise(indices))
            short = judged.group_size is not None and len(group.rollouts) != judged.group_size
            whole = len(group.verdicts) == len(group.rollouts)
            wrong += short or not ordered or not whole
    return Check(
        name="groups complete",
        did=f"counted the rollouts of {counted} groups: {wrong} lack some or hold them out of order",
        value=wrong,
        bound=0,
        ok=wrong == 0,
        remedy="The sampler must answer every request once, and groups must stay whole until credit is taken.",
    )


def groups_unmixed(subject: Subject) -> Check:
    """Every rollout of a group answers the group's problem."""
    strangers = sum(_strangers(group) for group in _groups(subject))
    return Check(
        name="groups unmixed",
        did=f"compared problem, prompt and group of {_count(subject)} rollouts: {strangers} are of another group",
        value=strangers,
        bound=0,
        ok=strangers == 0,
        remedy="Rollouts come back in any order: sort them by the id of their request before grouping.",
    )


def _strangers(group: Group) -> int:
    if not group.rollouts:
        return 0
    name = Counter(rollout.group_id for rollout in group.rollouts).most_common(1)[0][0]
    prompt = Counter(rollout.prompt_tokens.tobytes() for rollout in group.rollouts).most_common(1)[0][0]
    return sum(
        rollout.problem_key != group.problem.key
        or rollout.group_id != name
        or rollout.prompt_tokens.tobytes() != prompt
        for rollout in group.rollouts
    )


def no_duplicates(subject: Subject) -> Check:
    """No rollout stands in a batch twice, and no two share their random numbers."""
    repeated = 0
    for judged in subject.judged:
        rollouts = _rollouts(judged)
        distinct = min(len({rollout.id for rollout in rollouts}), len({rollout.seed for rollout in rollouts}))
        repeated += len(rollouts) - distinct
    return Check(
        name="no duplicates",
        did=f"counted ids and seeds of {_count(subject)} rollouts: {repeated} are repeated",
        value=repeated,
        bound=0,
        ok=repeated == 0,
        remedy="Give every request a key of its own; a copy makes its group's baseline wrong.",
    )


def masks_cover(subject: Subject) -> Check:
    """The loss mask is True on just the tokens that the policy wrote, in the records and in what the trainer gets."""
    rollouts = [rollout for judged in subject.judged for rollout in _rollouts(judged)]
    wrong = sum(
        len(rollout.loss_mask) != len(rollout.tokens) or bool((rollout.loss_mask != policy_tokens(rollout)).any())
        for rollout in rollouts
    )
    rows = _rows_wrong(subject)
    return Check(
        name="masks",
        did=f"compared the masks of {len(rollouts)} rollouts with who wrote each token, and of {len(subject.rows)} "
        f"rows with the texts: {wrong} and {rows} differ",
        value=wrong + rows,
        bound=0,
        ok=wrong + rows == 0,
        remedy="Train on the policy's tokens alone: no prompt, no observation, no padding; look for a shift by one.",
    )


def policy_tokens(rollout: Rollout) -> Bools:
    """Which tokens the spans say that the policy wrote; all after the prefix where there are no spans."""
    written = np.arange(len(rollout.tokens)) >= rollout.prefix_length
    for span in rollout.spans:
        if span.kind is SpanKind.OBSERVATION:
            written[span.start : span.end] = False
    return written


def _rows_wrong(subject: Subject) -> int:
    """Rows whose trained tokens are not those of their rollout or of their text."""
    if subject.judged:
        rollouts = subject.judged[0].batch.rollouts
        pairs = zip(subject.rows, rollouts, strict=False)
        return sum(
            row.loss_mask.tobytes() != rollout.loss_mask.tobytes()
            or bool((row.policy_weights != 0)[~rollout.loss_mask].any())
            for row, rollout in pairs
        )
    texts = subject.loop.policy.texts
    wrong = 0
    for place, (example, row) in enumerate(zip(subject.texts, subject.rows, strict=True)):
        whole = np.concatenate([row.prompt, row.tokens])
        mask = np.concatenate([np.zeros(len(row.prompt), np.bool_), row.loss_mask])
        wrong += whole.tobytes() != example.tokens.tobytes() or bool(mask[0]) or bool((mask & ~example.loss_mask).any())
        if place < len(subject.expected_texts):
            trained, told = whole[mask], texts.encode(subject.expected_texts[place])
            # The end of sequence may follow.
            wrong += trained[: len(told)].tobytes() != told.tobytes() or len(trained) - len(told) > 1
    return wrong


def sampled_ids(subject: Subject) -> Check:
    """The trainer gets the sampled token ids and prompts themselves, never a text encoded again."""
    rollouts = subject.judged[0].batch.rollouts
    other = sum(
        row.tokens.tobytes() != rollout.tokens.tobytes() or row.prompt.tobytes() != rollout.prompt_tokens.tobytes()
        for row, rollout in zip(subject.rows, rollouts, strict=False)
    )
    other += max(0, len(rollouts) - len(subject.rows))
    return Check(
        name="sampled ids",
        did=f"compared the ids of {len(rollouts)} rollouts with what the trainer gets: {other} differ",
        value=other,
        bound=0,
        ok=other == 0,
        remedy="Hand the sampled ids on; a text that is encoded again may have other tokens of other probability.",
    )


def round_trip(subject: Subject) -> Check:
    """How many rollouts keep their ids through text and back; only reported."""
    texts = subject.loop.policy.texts
    rollouts = _rollouts(subject.judged[0])
    kept = 0
    for rollout in rollouts:
        try:
            again = texts.encode(texts.decode(rollout.tokens))
        except ModelError:  # a control token inside the text, which no text can say
            continue
        kept += rollout.tokens[: len(again)].tobytes() == again.tobytes() and len(rollout.tokens) - len(again) <= 1
    share = kept / max(1, len(rollouts))
    return Check(
        name="round trip",
        did=f"decoded and encoded {len(rollouts)} rollouts: this share kept its ids",
        value=share,
        bound=None,
        ok=True,
        remedy="Nothing to do: the trainer uses the sampled ids.",
    )


def logprobs_recorded(subject: Subject) -> Check:
    """Sampled tokens have a finite log-probability of at most 0, all others exactly 0, at the stage's temperature."""
    wrong = 0
    stage_temperature = subject.objective.temperature
    for judged in subject.judged:
        for rollout in _rollouts(judged):
            logs, mask = rollout.behavior_logprobs, rollout.loss_mask
            fits = len(logs) == len(mask) == len(rollout.tokens)
            sound = fits and bool(np.isfinite(logs).all() and (logs <= 1e-6).all() and (logs[~mask] == 0).all())
            wrong += not (sound and rollout.temperature == stage_temperature)
    return Check(
        name="log-probs recorded",
        did=f"looked at the recorded log-probabilities and temperatures of {_count(subject)} rollouts: "
        f"{wrong} are unsound",
        value=wrong,
        bound=0,
        ok=wrong == 0,
        remedy="The sampler must record nats of the distribution that it drew from, at the stage's temperature.",
    )


def parse_failures(subject: Subject) -> Check:
    """The share of rollouts in which no answer was found."""
    outcomes = [str(verdict.outcome) for group in _groups(subject) for verdict in group.verdicts]
    share = outcomes.count("unparseable") / max(1, len(outcomes))
    return Check(
        name="parse failures",
        did=f"read {len(outcomes)} verdicts: this share of rollouts has no answer in the declared form"
        + (" (too few to judge by)" if len(outcomes) < 16 else ""),
        value=share,
        bound=0.95,
        ok=share <= 0.95 or len(outcomes) < 16,
        remedy="Teach the form first (imitation), or say it in the prompt: nothing can be rewarded.",
        severity=Severity.WARNING,
    )


def _groups(subject: Subject) -> Iterator[Group]:
    for judged in subject.judged:
        yield from judged.groups


def _rollouts(judged: Judged) -> list[Rollout]:
    return [rollout for group in judged.groups for rollout in group.rollouts]


def _count(subject: Subject) -> int:
    return sum(len(group.rollouts) for group in _groups(subject))
