"""Edited rollouts: hand-worked texts and masks, what verifies still, and what may not be imitated."""

import numpy as np
import pytest
from review_examples import STAR, Characters, group_of, walk

from forkpoint.errors import ForkpointError
from forkpoint.records import EditKind
from forkpoint.review.edit import edited_tokens, fix_text, stories, story_edits
from forkpoint.review.postmortem import Review, Span, Verification, Waste, make_edit
from forkpoint.tasks.arithmetic import Settings as Sums
from forkpoint.tasks.arithmetic import build as build_sums
from forkpoint.tasks.paths import Settings, build


def review(rollout, *wasted, correct=True):
    spans = tuple(Span(start=start, end=end, why=Waste.DEAD_END) for start, end in wasted)
    return Review(
        rollout_id=rollout.id, correct=correct, cuts=tuple(range(len(rollout.tokens))), values=(), hinge=None,
        first_error=None, wasted=spans,
    )  # fmt: skip


def told(example, probe):
    """The text after the prompt, and that of its imitated tokens."""
    tokens, mask = example.tokens[2:], example.loss_mask[2:]
    assert not example.loss_mask[:2].any()
    return probe.decode(tokens), probe.decode(tokens[mask])


def verified(edit, **changes):
    values = {
        "edit_id": edit.id, "fixed": (7, 8), "resampled": (1, 8), "p_value": 0.01, "leak": None, "accepted": True,
        "reason": "",
    }  # fmt: skip
    return Verification(**{**values, **changes})


@pytest.mark.parametrize(
    ("kind", "text"),
    [(EditKind.KEEP, "dedsfgfsabc"), (EditKind.PRUNE, "abc"), (EditKind.SUMMARISE, "d|f|abc")],
)
def test_a_success_with_two_dead_ends(kind, text):
    probe = Characters()
    rollout = walk("dedsfgfsabc")
    mine = review(rollout, (0, 4), (4, 8))
    ((example, edits),) = stories(group_of(rollout, probe=probe), {rollout.id: mine}, probe, kind)
    assert told(example, probe) == (text, text)
    assert example.provenance == " ".join([f"rollout:{rollout.id}", *(f"edit:{edit.id}" for edit in edits)])
    assert len(edits) == (0 if kind is EditKind.KEEP else 2)


def test_a_story_that_does_not_verify_any_more_is_left_out():
    probe = Characters()
    good, bad = walk("dedsabc"), walk("fgfsabc", index=1)
    reviews = {good.id: review(good, (0, 4)), bad.id: review(bad, (0, 3))}
    made = stories(group_of(good, bad, probe=probe), reviews, probe, EditKind.PRUNE)
    assert [told(example, probe)[0] for example, _ in made] == ["abc"]


def test_failures_and_rollouts_without_a_review_tell_no_story():
    probe = Characters()
    failed, unseen = walk("ded"), walk("abc", index=1)
    group = group_of(failed, unseen, probe=probe)
    assert stories(group, {failed.id: review(failed, correct=False)}, probe, EditKind.KEEP) == []


def test_replies_of_an_environment_are_kept_but_never_imitated():
    probe = Characters()
    rollout = walk("abc", mask=[True, False, True])
    group = group_of(rollout, probe=probe)
    ((example, _),) = stories(group, {rollout.id: review(rollout)}, probe, EditKind.PRUNE)
    assert told(example, probe) == ("abc", "ac")
    assert stories(group, {rollout.id: review(rollout, (0, 1))}, probe, EditKind.PRUNE) == []


@pytest.mark.parametrize(("prefix", "imitated"), [(True, "dsa"), (False, "a")])
def test_a_fix_ends_its_text(prefix, imitated):
    probe = Characters()
    rollout = walk("dsfgf", mask=[True, True, True, True, True])
    edit = make_edit(rollout.id, EditKind.FIX, 2, 4, "a", "solver")
    example = fix_text(rollout, edit, verified(edit), probe, prefix=prefix)
    assert told(example, probe) == ("dsa", imitated)
    assert example.provenance == f"rollout:{rollout.id} edit:{edit.id} verified:7/8"


def test_a_fix_after_a_reply_imitates_no_reply():
    probe = Characters()
    rollout = walk("dsfgf", mask=[True, False, True, True, True])
    edit = make_edit(rollout.id, EditKind.FIX, 2, 4, "ab", "solver")
    assert told(fix_text(rollout, edit, verified(edit), probe, prefix=True), probe) == ("dsab", "dab")


@pytest.mark.parametrize("changes", [{"accepted": False}, {"edit_id": "another"}])
def test_nothing_unverified_is_imitated(changes):
    rollout = walk("dsfgf")
    edit = make_edit(rollout.id, EditKind.FIX, 2, 4, "a", "solver")
    with pytest.raises(ValueError, match="not verified"):
        fix_text(rollout, edit, verified(edit, **changes), Characters(), prefix=True)


@pytest.mark.parametrize("spans", [((0, 4), (3, 5)), ((4, 9),), ((3, 2),)])
def test_spans_that_make_no_sense_are_refused(spans):
    rollout = walk("dedsabc")
    edits = [make_edit(rollout.id, EditKind.PRUNE, start, end, "", "review") for start, end in spans]
    with pytest.raises(ValueError, match="overlaps or leaves"):
        edited_tokens(rollout, edits, Characters())


def test_where_the_new_tokens_begin():
    rollout = walk("dedsabc")
    edits = [
        make_edit(rollout.id, EditKind.PRUNE, 4, 5, "", "r"),
        make_edit(rollout.id, EditKind.PRUNE, 1, 2, "x", "r"),
    ]
    tokens, kept = edited_tokens(rollout, edits, Characters())
    assert Characters().decode(tokens) == "dxdsbc"
    assert kept == 1
    untouched, kept = edited_tokens(rollout, [], Characters())
    assert np.array_equal(untouched, rollout.tokens)
    assert kept == 7


def test_summaries_need_a_task_that_can_mark():
    rollout = walk("dedsabc")
    with pytest.raises(ForkpointError, match=r"^review: summarise needs a task with `dead_end_mark`"):
        story_edits(review(rollout, (0, 4)), STAR, rollout, build_sums(Sums()), EditKind.SUMMARISE)
    with pytest.raises(ForkpointError, match="marks = true"):
        story_edits(review(rollout, (0, 4)), STAR, rollout, build(Settings(branches=3, depth=3)), EditKind.SUMMARISE)
