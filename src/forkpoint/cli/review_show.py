"""The commands of `review` that read and decide: lists, one postmortem, a person's word, an export."""

import itertools
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from forkpoint.cli.output import print_json, print_table, visible
from forkpoint.errors import RecipeError
from forkpoint.files import write_text_atomic
from forkpoint.records import EditKind, Rollout
from forkpoint.report.postmortems import signed, token_words
from forkpoint.report.text import prompt_text, token_texts, tokenizers
from forkpoint.review.postmortem import Claim, Review, Verification
from forkpoint.store import Decision, RunReader, RunWriter, StoredEdit

SHORT = 8
"""Characters of an id in tables: enough to name it."""
WIDTH = 40
"""Characters of a text in tables."""


def state(stored: StoredEdit) -> str:
    """What became of an edit, in a word or two."""
    if stored.decision is not None:
        return f"{stored.decision} by hand"
    if stored.verification is None:
        return "waits" if stored.edit.kind is EditKind.FIX else "in a story"
    return "accepted" if stored.accepted else "rejected"


def list_edits(run: Path, *, accepted: bool, as_json: bool) -> int:
    """Prints the fixes of the run, or the accepted ones; as JSON every edit."""
    with RunReader(run) as reader:
        reviews, edits = reader.reviews(), reader.edits()
    shown = [stored for stored in edits if stored.accepted or not accepted]
    others = sum(stored.edit.kind is not EditKind.FIX for stored in edits)
    if as_json:
        print_json({"reviews": [asdict(review) for review in reviews], "edits": [_edit_json(each) for each in shown]})
        return 0
    hinges = sum(review.hinge is not None for review in reviews)
    fixes = [stored for stored in shown if stored.edit.kind is EditKind.FIX]
    title = f"{len(reviews)} rollouts reviewed, {hinges} with a hinge; {len(fixes)} of {len(edits) - others} fixes"
    title += f"; {others} spans that stages cut or marked are not listed" if others else ""
    print_table(["edit", "rollout", "by", "state", "after the fix", "resampled", "lift", "about"],
                [_row(stored) for stored in fixes], title=title)  # fmt: skip
    return 0


def _row(stored: StoredEdit) -> list[str]:
    edit, found = stored.edit, stored.verification
    counts = ["", "", ""]
    if found is not None:
        lift = "" if found.lift is None else signed(found.lift)
        counts = [f"{found.fixed[0]}/{found.fixed[1]}", f"{found.resampled[0]}/{found.resampled[1]}", lift]
    about = repr(edit.text) if len(edit.text) <= WIDTH else repr(edit.text[:WIDTH]) + "…"
    if found is not None and found.reason:
        about += f"; {found.reason}"
    return [edit.id[:SHORT], edit.rollout_id[:SHORT], edit.source, state(stored), *counts, about]


def _edit_json(stored: StoredEdit) -> dict[str, Any]:
    return {
        **asdict(stored.edit), "state": state(stored), "accepted": stored.accepted,
        "verification": None if stored.verification is None else asdict(stored.verification),
    }  # fmt: skip


def show_review(run: Path, name: str, *, as_json: bool) -> int:
    """Prints the postmortem that an id names, an edit's or a rollout's."""
    with RunReader(run) as reader:
        reviews, edits = {review.rollout_id: review for review in reader.reviews()}, reader.edits()
        ids = {stored.edit.id: stored.edit.rollout_id for stored in edits} | {key: key for key in reviews}
        review = reviews.get(ids[_named(name, list(ids))])
        if review is None:
            raise RecipeError(f"'{name}' is of a rollout without a review.")
        rollout = reader.rollout(review.rollout_id)
        problem, verdict = reader.problem(rollout.problem_key), reader.verdict(rollout.id)
    mine = [stored for stored in edits if stored.edit.rollout_id == rollout.id]
    if as_json:
        print_json({"review": asdict(review), "text": rollout.text, "edits": [_edit_json(stored) for stored in mine]})
        return 0
    words = token_words(rollout, token_texts(run))
    print(f"rollout {rollout.id}, {rollout.stage}, {'success' if review.correct else 'failure'}")
    print(visible(f"prompt: {prompt_text(problem.prompt).strip()}"))
    if verdict is not None and verdict.reason:
        print(visible(f"verdict: {verdict.reason}"))
    _print_steps(review, rollout, words)
    for stored in mine:
        edit = stored.edit
        print(visible(f"\nedit {edit.id[:SHORT]} by {edit.source}: {state(stored)}"))
        print(visible(f"  was {''.join(words[edit.start : edit.end])!r}"))
        print(visible(f"  fix {edit.text!r}"))
        if stored.verification is not None:
            print(f"  {_told(stored.verification)}")
    return 0


def _print_steps(review: Review, rollout: Rollout, words: Sequence[str]) -> None:
    """A row for each step: its text, the value before it, and what was found of it."""
    values = {value.cut: value for value in review.values}
    edges = [*review.cuts, len(rollout.tokens)]
    rows = []
    for start, end in itertools.pairwise(edges):
        value = values.get(start)
        found = [_claimed(claim, name) for claim, name in _claims(review).items() if claim.start == start]
        found += [str(span.why).replace("_", " ") for span in review.wasted if span.start <= start < span.end]
        share = "" if value is None else f"{value.value:.2f} ({value.trials})"
        rows.append([str(start), share, repr("".join(words[start:end])), "; ".join(found)])
    rows.append([str(len(rollout.tokens)), "1" if review.correct else "0", "", ""])
    print_table(["token", "value before (n)", "step", "about"], rows)
    if review.hinge is None and review.values:
        print("no step changes the chance of success significantly: unsupported")


def _claims(review: Review) -> dict[Claim, str]:
    """The hinge, and the first error where it is another step."""
    named = ((review.first_error, "first error"), (review.hinge, "hinge"))
    return {claim: name for claim, name in named if claim is not None}


def _claimed(claim: Claim, name: str) -> str:
    change, low, high = (signed(number) for number in (claim.change, *claim.interval))
    return f"{name}: {change} ({low} to {high}, p = {claim.p_value:.2g})"


def _told(found: Verification) -> str:
    told = f"{found.fixed[0]}/{found.fixed[1]} after the fix, {found.resampled[0]}/{found.resampled[1]} resampled"
    if found.lift is not None and found.interval is not None:
        lift, low, high = (signed(number) for number in (found.lift, *found.interval))
        told += f"; fresh {lift} ({low} to {high})"
    return visible(f"{told}; {found.reason}" if found.reason else told)


def _named(name: str, ids: Sequence[str]) -> str:
    """The id that begins with a name.

    Raises:
        RecipeError: none does, or several.
    """
    found = sorted({each for each in ids if each.startswith(name)}) if name else []
    if name in found:
        return name
    if not found:
        raise RecipeError(f"'{name}' names no review or edit of the run; `review list` shows them.")
    if len(found) > 1:
        raise RecipeError(f"'{name}' may be {', '.join(each[:SHORT] for each in found[:5])}: write more of it.")
    return found[0]


def decide(run: Path, name: str, decision: Decision) -> int:
    """Writes a person's word on an edit."""
    with RunReader(run) as reader:
        edit = _named(name, [stored.edit.id for stored in reader.edits()])
    with RunWriter.open(run) as writer:
        writer.decide(edit, decision)
    print(f"edit {edit}: {decision} by hand")
    return 0


def _since(rollout: Rollout, start: int, *, prefix: bool) -> int:
    """Tokens of a rollout that belong to the prompt of an exported fix: all before it, or up to the last reply."""
    replies = np.flatnonzero(~rollout.loss_mask[:start])
    return start if not prefix else int(replies[-1]) + 1 if len(replies) else 0


def _decoder(run: Path) -> Callable[[list[int]], str]:
    """Tokens to text as the policy reads them: joined pieces would break characters of several tokens."""
    from tokenizers import Tokenizer

    found = tokenizers(run)
    if not found:
        raise RecipeError(f"{run} has no checkpoint: without its tokenizer nothing can be exported.")
    tokenizer = Tokenizer.from_file(str(found[0]))
    return lambda tokens: str(tokenizer.decode(tokens, skip_special_tokens=False)) if tokens else ""


def _begins(rollout: Rollout, before: str) -> str:
    """The text of a beginning of a rollout; raises RecipeError where the rollout's own text does not begin so."""
    if not rollout.text.startswith(before):
        raise RecipeError(
            f"rollout {rollout.id}: its text does not begin with what its tokens say: the step begins within a "
            "character, or the tokenizer is another."
        )
    return before


def export_edits(run: Path, out: Path, *, prefix: bool, as_json: bool) -> int:
    """Writes the accepted fixes as JSONL."""
    lines = []
    with RunReader(run) as reader:
        decode = _decoder(run)
        for stored in reader.edits():
            edit = stored.edit
            if not stored.accepted or edit.kind is not EditKind.FIX:
                continue
            rollout = reader.rollout(edit.rollout_id)
            prompt, since = reader.problem(rollout.problem_key).prompt, _since(rollout, edit.start, prefix=prefix)
            if since and not isinstance(prompt, str):
                raise RecipeError(
                    "the prompts of this run are messages, which a part of a rollout cannot be added to: export with "
                    "the prefix, and only rollouts without replies of an environment."
                )
            told, before = (_begins(rollout, decode(rollout.tokens[:end].tolist())) for end in (since, edit.start))
            prompt, before = prompt + told if isinstance(prompt, str) else prompt, before[len(told) :]
            line = {
                "prompt": prompt, "completion": before + edit.text, "ends": False,
                "edit": edit.id, "rollout": edit.rollout_id, "source": edit.source, "state": state(stored),
                "verification": None if stored.verification is None else asdict(stored.verification),
            }  # fmt: skip
            lines.append(json.dumps(line))
    write_text_atomic(out, "".join(f"{line}\n" for line in lines))
    if as_json:
        print_json({"path": str(out), "fixes": len(lines)})
    else:
        print(f"{out}: {len(lines)} accepted fixes")
    return 0
