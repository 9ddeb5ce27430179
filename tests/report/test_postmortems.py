"""Postmortems on the page: what is marked, which are shown, and that no text of a model is markup."""

import numpy as np
import pytest

from forkpoint.records import EditKind, Group, Outcome, Problem, Rollout, StopReason, Verdict
from forkpoint.report import render_report
from forkpoint.report.postmortems import MAX_POSTMORTEMS, MAX_TOKENS, postmortems
from forkpoint.review.postmortem import Claim, Estimate, Review, Span, Verification, Waste, make_edit
from forkpoint.store import RunReader, RunWriter

TEXTS = {ord(letter): letter for letter in "abcdefg\n<>"}
PROBLEM = Problem(task="paths", key="a1", prompt="sa ab<b>", answer="ab")


def rollout(text, index):
    count = len(text)
    return Rollout(
        id=f"r{index}", group_id="g", stage="rl", update=0, index=index, problem_key="a1",
        prompt_tokens=np.array([1], np.int32), tokens=np.array([ord(each) for each in text], np.int32),
        behavior_logprobs=np.zeros(count, np.float32), loss_mask=np.ones(count, np.bool_), temperature=1.0, text=text,
        stop_reason=StopReason.EOS, seed="0",
    )  # fmt: skip


def review(index, **changes):
    claim = Claim(start=2, end=3, change=-0.75, interval=(-0.9, -0.5), p_value=0.001)
    values = {
        "rollout_id": f"r{index}", "correct": False, "cuts": (0, 2, 3), "hinge": claim, "first_error": claim,
        "values": (Estimate(cut=0, successes=6, trials=8), Estimate(cut=3, successes=0, trials=8)),
        "wasted": (Span(start=0, end=2, why=Waste.DEAD_END),), "cost": {"sampled_tokens": 12.0},
    }  # fmt: skip
    return Review(**{**values, **changes})


def stored(folder, reviews, edits=(), verifications=(), text="abcd", count=2):
    rollouts = tuple(rollout(text, index) for index in range(count))
    verdicts = tuple(Verdict(outcome=Outcome.WRONG, correct=False) for _ in rollouts)
    with RunWriter.create(folder, name="demo", identity={}) as writer:
        writer.begin_stage("rl", kind="rl")
        group = Group(problem=PROBLEM, rollouts=rollouts, verdicts=verdicts)
        writer.record_rollouts([group], stage="rl", update=0, purpose="review")
        writer.record_reviews(reviews, edits)
        writer.record_verifications(verifications)
    return RunReader(folder)


def fix(text, index=0, start=2):
    return make_edit(f"r{index}", EditKind.FIX, start, 3, text, "policy")


def accepted(edit, **changes):
    values = {
        "edit_id": edit.id, "fixed": (7, 8), "resampled": (1, 8), "p_value": 0.004, "leak": -0.1, "accepted": True,
        "reason": "", "lift": 0.5, "interval": (0.25, 0.7),
    }  # fmt: skip
    return Verification(**{**values, **changes})


def test_hinge_waste_and_the_rest_are_told_apart(tmp_path):
    with stored(tmp_path / "run", [review(0)]) as reader:
        ((view,), count) = postmortems(reader, TEXTS)
    assert count == 1
    assert [(piece.text, piece.shade) for piece in view.pieces] == [("ab", "wasted"), ("c", "hinge"), ("d", "")]
    assert view.claims[0].startswith("Hinge: “c” changes the share of correct outcomes by \N{MINUS SIGN}0.75 (")
    assert view.claims[1:] == ("2 of 4 tokens came to nothing.",)
    assert view.cost == "12 tokens sampled to find it"


def test_the_curve_ends_at_the_verdict_and_has_the_hinge(tmp_path):
    with stored(tmp_path / "run", [review(0)]) as reader:
        chart = str(postmortems(reader, TEXTS)[0][0].chart)
    assert 'class="hinge"' in chart
    assert "hinge: tokens 2 to 2" in chart
    for told in ("value, token 0: 0.75 [0.409, 0.929]", "value, token 3: 0 [0, 0.324]", "value, token 4: 0 [0, 0]"):
        assert told in chart


def test_an_unsupported_review_says_so(tmp_path):
    with stored(tmp_path / "run", [review(0, hinge=None, first_error=None, wasted=())]) as reader:
        view = postmortems(reader, TEXTS)[0][0]
    assert view.claims == ("No step changes the chance of success significantly: unsupported.",)
    assert [piece.text for piece in view.pieces] == ["abcd"]
    assert "hinge" not in str(view.chart)


def test_a_fix_stands_beside_the_step_and_its_story_ends_with_it(tmp_path):
    good, bad = fix("ef"), fix("g")
    told = [accepted(good), accepted(bad, accepted=False, reason="leaks the answer", lift=None, interval=None)]
    with stored(tmp_path / "run", [review(0)], [bad, good], told) as reader:
        first, second = postmortems(reader, TEXTS)[0][0].fixes
    assert (first.original, first.text, first.state, first.source) == ("c", "ef", "accepted", "policy")
    assert [(piece.text, piece.shade) for piece in first.story] == [("ab", ""), ("ef", "new")]
    assert first.told == (
        "7 of 8 right after the fix, 1 of 8 after a step drawn anew (p = 0.004); "
        "on fresh rollouts +0.50 (+0.25 to +0.70)"
    )
    assert second.state == "rejected"
    assert second.told.endswith("; leaks the answer")


@pytest.mark.parametrize(
    ("kind", "text", "pieces", "retold"),
    [
        (None, "", [("bc", ""), ("f", "")], "without what came to nothing; not verified"),
        (EditKind.PRUNE, "", [("bc", ""), ("f", "")], "edited story, prune"),
        (EditKind.SUMMARISE, "g<", [("g<", "new"), ("bc", ""), ("g<", "new"), ("f", "")], "edited story, summarise"),
    ],
)
def test_a_success_is_told_without_its_waste(tmp_path, kind, text, pieces, retold):
    spans = (Span(start=0, end=1, why=Waste.RESTART), Span(start=3, end=5, why=Waste.DEAD_END))
    edits = [make_edit("r0", kind, span.start, span.end, text, "review") for span in spans] if kind else []
    success = review(0, correct=True, hinge=None, first_error=None, values=(), wasted=spans)
    with stored(tmp_path / "run", [success, review(1)], edits, text="abcdef") as reader:
        views = {view.id: view for view in postmortems(reader, TEXTS)[0]}
        page = render_report(reader)
    told = views["r0"]
    assert [(piece.text, piece.shade) for piece in told.story] == pieces
    assert told.retold == retold
    assert [(piece.text, piece.title) for piece in told.pieces if piece.shade == "wasted"] == [
        ("a", "came to nothing: restart"), ("de", "came to nothing: dead end"),
    ]  # fmt: skip
    # A failure has no such story: without its dead ends it is still a failure.
    assert views["r1"].story == ()
    assert page.count(retold) == 1
    assert "<g<" not in page


def test_a_long_story_says_how_much_it_leaves_out(tmp_path):
    spans = tuple(Span(start=start, end=start + 1, why=Waste.DEAD_END) for start in (0, MAX_TOKENS + 5))
    edits = [make_edit("r0", EditKind.SUMMARISE, span.start, span.end, "g", "review") for span in spans]
    success = review(0, correct=True, hinge=None, first_error=None, values=(), wasted=spans)
    with stored(tmp_path / "run", [success], edits, text="ab" * MAX_TOKENS) as reader:
        told = postmortems(reader, TEXTS)[0][0]
    assert [(len(piece.text), piece.shade) for piece in told.story] == [(1, "new"), (MAX_TOKENS - 1, "")]
    assert told.story_hidden == MAX_TOKENS


def test_verified_fixes_come_first_and_the_rest_is_counted(tmp_path):
    number = MAX_POSTMORTEMS + 3
    edit = fix("e", index=number - 1)
    reviews = [review(index, hinge=None, first_error=None) for index in range(number - 1)] + [review(number - 1)]
    with stored(tmp_path / "run", reviews, [edit], [accepted(edit)], count=number) as reader:
        views, count = postmortems(reader, TEXTS)
        page = render_report(reader)
    assert (len(views), count) == (MAX_POSTMORTEMS, number)
    assert views[0].id == f"r{number - 1}"
    assert f"{MAX_POSTMORTEMS} of {number} are shown" in page


@pytest.mark.parametrize("text", ["<script>alert(1)</script>", "\u202eabc\ud800", "</pre><b>", "{{ 7919 * 7907 }}"])
def test_texts_of_models_are_only_texts(tmp_path, text):
    edit = make_edit("r0", EditKind.FIX, 2, 3, text, text)
    found = accepted(edit, reason=text, accepted=False)
    with stored(tmp_path / "run", [review(0)], [edit], [found], text="<b>&") as reader:
        page = render_report(reader)
    page.encode("utf-8")
    body = page.split("Postmortems</h2>", 1)[1]
    assert "<script" not in body
    assert "<b>&" not in body
    assert "\u202e" not in body
    assert "62615533" not in body
    if "{{" in text:
        assert text in body
