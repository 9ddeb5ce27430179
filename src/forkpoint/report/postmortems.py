"""Postmortems as a person would read them: the rollout, its value curve and hinge, what was wasted, what was mended."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from forkpoint.records import Edit, EditKind, Rollout
from forkpoint.report.charts import value_chart
from forkpoint.report.curves import Line
from forkpoint.report.rollouts import MAX_PROMPT, MAX_TOKENS
from forkpoint.report.text import prompt_text, shorten, split_evenly, visible
from forkpoint.review.postmortem import Claim, Review, Span
from forkpoint.store import RunReader, StoredEdit
from forkpoint.theory.intervals import wilson_interval

MAX_POSTMORTEMS = 12
"""Postmortems shown of a run: those with verified fixes first, then those with a hinge."""
MAX_FIXES = 4
"""Proposals shown of one postmortem, the accepted ones first."""
WASTED, HINGE = "wasted", "hinge"
"""Classes of the style sheet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """A stretch of a rollout."""

    text: str
    shade: str
    """`hinge`, `wasted`, `new`, or empty."""
    title: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FixView:
    """A proposal beside the step that it would replace."""

    original: str
    text: str
    source: str
    state: str
    """accepted, rejected, not verified."""
    told: str
    """What the re-rollouts said, in words."""
    story: tuple[Piece, ...]
    """The edited text."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PostmortemView:
    """One reviewed rollout as the page shows it."""

    anchor: str
    id: str
    stage: str
    correct: bool
    prompt: str
    answer: str
    pieces: tuple[Piece, ...]
    hidden: int
    claims: tuple[str, ...]
    chart: Markup | None
    """None where no value was looked at."""
    story: tuple[Piece, ...]
    """Of a success what its edit leaves of it, or would leave; empty where nothing came to nothing."""
    retold: str
    """How the story came to be."""
    story_hidden: int
    """Tokens of the rollout that the story leaves out at its end."""
    fixes: tuple[FixView, ...]
    more: int
    """Proposals that are not shown."""
    cost: str


def postmortems(reader: RunReader, texts: Mapping[int, str], prefix: str = "") -> tuple[list[PostmortemView], int]:
    """The postmortems that are shown, and how many there are."""
    reviews = reader.reviews()
    edits: dict[str, list[StoredEdit]] = {}
    for stored in reader.edits():
        edits.setdefault(stored.edit.rollout_id, []).append(stored)
    order = sorted(reviews, key=lambda review: _rank(review, edits.get(review.rollout_id, [])))
    views = [
        _view(reader, review, edits.get(review.rollout_id, []), texts, f"{prefix}postmortem-{place}")
        for place, review in enumerate(order[:MAX_POSTMORTEMS])
    ]
    return views, len(reviews)


def _rank(review: Review, edits: Sequence[StoredEdit]) -> tuple[bool, bool, bool, str]:
    return (
        not any(stored.accepted for stored in edits), review.hinge is None, not review.wasted, review.rollout_id,
    )  # fmt: skip


def _view(
    reader: RunReader, review: Review, edits: Sequence[StoredEdit], texts: Mapping[int, str], anchor: str
) -> PostmortemView:
    rollout = reader.rollout(review.rollout_id)
    problem = reader.problem(rollout.problem_key)
    words = token_words(rollout, texts)
    fixes = sorted((e for e in edits if e.edit.kind is EditKind.FIX), key=lambda e: (not e.accepted, e.edit.start))
    told = [_claim_text(review.hinge, "hinge", words)] if review.hinge else []
    if review.first_error is not None and review.first_error != review.hinge:
        told.append(_claim_text(review.first_error, "first error", words))
    if review.hinge is None and review.values:
        told.append("No step changes the chance of success significantly: unsupported.")
    if review.wasted:
        lost = sum(span.end - span.start for span in review.wasted)
        told.append(f"{lost} of {len(rollout.tokens)} tokens came to nothing.")
    story, retold = _story(words, review, [stored.edit for stored in edits])
    return PostmortemView(
        anchor=anchor,
        id=visible(rollout.id),
        stage=rollout.stage,
        correct=review.correct,
        prompt=shorten(visible(prompt_text(problem.prompt)), MAX_PROMPT),
        answer=shorten(visible(problem.answer), MAX_PROMPT),
        pieces=tuple(_pieces(words, review)),
        hidden=max(0, len(words) - MAX_TOKENS),
        claims=tuple(told),
        chart=_chart(review, len(rollout.tokens)),
        story=story,
        retold=retold,
        story_hidden=max(0, len(words) - MAX_TOKENS) if story else 0,
        fixes=tuple(_fix(stored, words) for stored in fixes[:MAX_FIXES]),
        more=max(0, len(fixes) - MAX_FIXES),
        cost=f"{int(review.cost.get('sampled_tokens', 0))} tokens sampled to find it",
    )


def token_words(rollout: Rollout, texts: Mapping[int, str]) -> list[str]:
    """The text of each token; where the tokenizer lacks one, the rollout's text split evenly over all of them."""
    ids = [int(token) for token in rollout.tokens]
    return [texts[each] for each in ids] if all(each in texts for each in ids) else split_evenly(rollout.text, len(ids))


def _joined(words: Iterable[str]) -> str:
    return visible("".join(words)).replace("\n", "↵\n")


def _claim_text(claim: Claim, name: str, words: Sequence[str]) -> str:
    step = visible("".join(words[claim.start : claim.end])).strip() or "the end"
    change, low, high = (signed(number) for number in (claim.change, *claim.interval))
    return (
        f"{name.capitalize()}: “{shorten(step, 60)}” changes the share of correct outcomes by {change} "
        f"({low} to {high}, p = {claim.p_value:.2g})."
    )


def signed(number: float) -> str:
    """A difference with its sign.

    >>> signed(0.25), signed(-0.5) == "\N{MINUS SIGN}0.50"
    ('+0.25', True)
    """
    return f"{number:+.2f}".replace("-", "\N{MINUS SIGN}")


def _pieces(words: Sequence[str], review: Review) -> list[Piece]:
    """The rollout in stretches: the hinge, what was wasted, and the rest."""
    shades = ["" for _ in words[:MAX_TOKENS]]
    titles = list(shades)
    for span in review.wasted:
        _mark(shades, titles, span, WASTED, f"came to nothing: {span.why.replace('_', ' ')}")
    if review.hinge is not None:
        claim = review.hinge
        _mark(shades, titles, claim, HINGE, f"hinge: {signed(claim.change)}")
    pieces: list[Piece] = []
    start = 0
    for place in range(1, len(shades) + 1):
        if place == len(shades) or (shades[place], titles[place]) != (shades[start], titles[start]):
            pieces.append(Piece(text=_joined(words[start:place]), shade=shades[start], title=titles[start]))
            start = place
    return pieces


def _story(words: Sequence[str], review: Review, edits: Sequence[Edit]) -> tuple[tuple[Piece, ...], str]:
    """A success without what came to nothing, as a stage's edits told it, and how it came to be."""
    if not review.correct or not review.wasted:
        return (), ""
    told = [edit for edit in edits if edit.kind in (EditKind.PRUNE, EditKind.SUMMARISE)]
    retold = f"edited story, {told[0].kind.value}" if told else "without what came to nothing; not verified"
    changes = {(edit.start, edit.end): edit.text for edit in told if edit.kind is told[0].kind}
    pieces, done = [], 0
    for (start, end), text in sorted((changes or {(span.start, span.end): "" for span in review.wasted}).items()):
        if start >= MAX_TOKENS:
            break
        pieces.append(Piece(text=_joined(words[done:start]), shade="", title="as it was"))
        pieces.append(
            Piece(text=shorten(_joined([text]), 400), shade="new", title=f"stands for tokens {start} to {end - 1}")
        )
        done = end
    pieces.append(Piece(text=_joined(words[done:MAX_TOKENS]), shade="", title="as it was"))
    return tuple(piece for piece in pieces if piece.text), retold


def _mark(shades: list[str], titles: list[str], span: Span | Claim, shade: str, title: str) -> None:
    for place in range(span.start, min(span.end, len(shades))):
        shades[place], titles[place] = shade, title


def _chart(review: Review, length: int) -> Markup | None:
    """The values that were looked at, and the verdict at the end."""
    if not review.values:
        return None
    known = [value for value in review.values if value.trials and value.cut < length]
    end = float(review.correct)
    line = Line(
        stage="value", slot=3, axis="token",
        updates=(*(float(value.cut) for value in known), float(length)),
        values=(*(value.value for value in known), end),
        intervals=(*(wilson_interval(value.successes, value.trials) for value in known), (end, end)),
    )  # fmt: skip
    hinge = None if review.hinge is None else (review.hinge.start, review.hinge.end)
    return value_chart(line, length=length, hinge=hinge)


def _fix(stored: StoredEdit, words: Sequence[str]) -> FixView:
    edit, found = stored.edit, stored.verification
    state = "not verified" if found is None else "accepted" if stored.accepted else "rejected"
    if stored.decision is not None:
        state += " by hand"
    story = [
        Piece(text=_joined(words[max(0, edit.start - MAX_TOKENS) : edit.start]), shade="", title="as it was"),
        Piece(text=_joined([edit.text]), shade="new", title=f"the fix, by {visible(edit.source)}"),
    ]
    return FixView(
        original=shorten(_joined(words[edit.start : edit.end]), 400), text=shorten(_joined([edit.text]), 400),
        source=visible(edit.source), state=state, told=_numbers(stored), story=tuple(story),
    )  # fmt: skip


def _numbers(stored: StoredEdit) -> str:
    """What the re-rollouts said of a fix."""
    found = stored.verification
    if found is None:
        return "no re-rollout has tried it yet"
    told = (
        f"{found.fixed[0]} of {found.fixed[1]} right after the fix, {found.resampled[0]} of {found.resampled[1]} after "
        f"a step drawn anew (p = {found.p_value:.2g})"
    )
    if found.lift is not None and found.interval is not None:
        lift, low, high = (signed(number) for number in (found.lift, *found.interval))
        told += f"; on fresh rollouts {lift} ({low} to {high})"
    return visible(f"{told}; {found.reason}" if found.reason else told)
