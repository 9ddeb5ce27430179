from dataclasses import replace

import numpy as np
import pytest
from store_examples import LONE, frozen, new_run, problem, record, rollout

from forkpoint.errors import StoreError
from forkpoint.files import connect_database
from forkpoint.records import EditKind, Group, Lesson, Outcome, TextExample, Verdict
from forkpoint.review.postmortem import Claim, Estimate, Review, Span, Verification, Waste, make_edit
from forkpoint.store import RunReader, RunWriter, StoredEdit, StoredLesson, StoredPool

VERDICT = Verdict(outcome=Outcome.WRONG, correct=False)

CLAIM = Claim(start=2, end=3, change=-0.5, interval=(-0.7, -0.25), p_value=0.001)


def review(rollout_id, **changes):
    values = {
        "rollout_id": rollout_id, "correct": False, "cuts": (0, 2, 3),
        "values": (Estimate(cut=0, successes=5, trials=8), Estimate(cut=3, successes=0, trials=8)),
        "hinge": CLAIM, "first_error": None, "wasted": (Span(start=1, end=2, why=Waste.DEAD_END),),
        "cost": {"sampled_tokens": 12.0, "verifier_calls": 16.0},
    }  # fmt: skip
    return Review(**{**values, **changes})


def verification(edit_id, **changes):
    values = {
        "edit_id": edit_id, "fixed": (7, 8), "resampled": (2, 8), "p_value": 0.02, "leak": -0.5, "accepted": True,
        "reason": "", "lift": 0.5, "interval": (0.25, 0.7), "cost": {"sampled_tokens": 64.0},
    }  # fmt: skip
    return Verification(**{**values, **changes})


@pytest.fixture
def run(tmp_path):
    with new_run(tmp_path / "run") as writer:
        writer.begin_stage("rl", kind="rl")
        record(writer, 1)
    return tmp_path / "run"


def test_a_review_comes_back_as_it_was(run):
    mine = review(rollout().id)
    edit = make_edit(rollout().id, EditKind.FIX, 2, 3, f"7{LONE};", "policy")
    with RunWriter.open(run) as writer, RunReader(run) as reader:
        writer.record_reviews([mine], [edit])
        assert reader.reviews() == [mine]
        assert reader.edits() == [StoredEdit(edit=edit)]
        assert not reader.edits()[0].accepted


def test_a_second_review_replaces_the_first_and_keeps_the_verification(run):
    edit = make_edit(rollout().id, EditKind.FIX, 2, 3, "7;", "policy")
    other = make_edit(rollout().id, EditKind.FIX, 2, 3, "8;", "policy")
    with RunWriter.open(run) as writer, RunReader(run) as reader:
        writer.record_reviews([review(rollout().id)], [edit])
        writer.record_verifications([verification(edit.id)])
        writer.record_reviews([review(rollout().id, hinge=None)], [edit, other])
        assert reader.reviews() == [review(rollout().id, hinge=None)]
        assert reader.edits() == [StoredEdit(edit=edit, verification=verification(edit.id)), StoredEdit(edit=other)]


def test_a_person_has_the_last_word(run):
    edit = make_edit(rollout().id, EditKind.FIX, 2, 3, "7;", "policy")
    with RunWriter.open(run) as writer, RunReader(run) as reader:
        writer.record_reviews([review(rollout().id)], [edit])
        writer.record_verifications([verification(edit.id)])
        assert reader.edits()[0].accepted
        writer.decide(edit.id, "rejected")
        assert not reader.edits()[0].accepted
        writer.decide(edit.id, None)
        assert reader.edits()[0].accepted
        with pytest.raises(StoreError, match=r"^the run has no edit 'ff'$"):
            writer.decide("ff", "accepted")


def test_reviews_go_with_their_rollouts(run):
    edit = make_edit(rollout().id, EditKind.FIX, 2, 3, "7;", "policy")
    with RunWriter.open(run) as writer, RunReader(run) as reader:
        writer.record_reviews([review(rollout().id)], [edit])
        writer.rewind("rl", 0)
        assert reader.reviews() == []
        assert reader.edits() == []


def test_lessons_come_back_and_are_replaced(run):
    lesson = Lesson(id="l1", task="arithmetic", text=f"carry{LONE}", about="+", origin=(rollout().id,), helpful=1)
    first = StoredLesson(lesson=lesson)
    second = StoredLesson(lesson=lesson, audits=({"lift": 0.25, "against": "none"},), deleted=True)
    with RunWriter.open(run) as writer, RunReader(run) as reader:
        writer.record_lessons([first])
        assert reader.lessons() == [first]
        writer.record_lessons([second])
        assert reader.lessons() == [second]


def test_a_run_of_an_older_version_has_no_reviews(run):
    connection = connect_database(run / "run.db")
    for table in ("reviews", "edits", "lessons", "pool_texts", "pools"):
        connection.execute(f"DROP TABLE {table}")
    connection.execute("DELETE FROM migrations WHERE number >= 2")
    connection.close()
    with RunReader(run) as reader:
        assert (reader.reviews(), reader.edits(), reader.lessons()) == ([], [], [])
        assert reader.pool("base") is None
    with RunWriter.open(run) as writer:
        writer.record_reviews([review(rollout().id)])


def text(provenance, *tokens):
    mask = [place > 1 for place in range(len(tokens))]
    return TextExample(tokens=frozen(tokens, np.int32), loss_mask=frozen(mask, np.bool_), provenance=provenance)


def told(pool):
    return [
        [(each.tokens.tolist(), each.loss_mask.tolist(), each.provenance) for each in part]
        for part in (pool.examples, pool.beside)
    ]


def test_a_pool_comes_back_in_its_order_and_is_replaced(run):
    first = StoredPool(identity="x", tokens=12, lessons=("a", "b"), examples=(text(LONE, 5, 6, 7), text("b", 1, 2)))
    second = StoredPool(identity="y", tokens=3, examples=(text("z", 9),), beside=(text("y", 8, 7, 6), text("x", 1)))
    with RunWriter.open(run) as writer, RunReader(run) as reader:
        assert reader.pool("rl") is None
        for pool in (first, second):
            writer.record_pool("rl", pool)
            found = reader.pool("rl")
            assert told(found) == told(pool)
            assert (found.identity, found.tokens, found.lessons) == (pool.identity, pool.tokens, pool.lessons)
        assert reader.pool("other") is None


@pytest.mark.parametrize("whole", [True, False])
def test_a_stage_that_begins_again_keeps_a_whole_review_alone(run, whole):
    begun = [replace(rollout(update=0, purpose="review", index=place), id=f"begun{place}") for place in range(2)]
    with RunWriter.open(run) as writer, RunReader(run) as reader:
        group = Group(problem=problem(), rollouts=tuple(begun), verdicts=(VERDICT, VERDICT))
        writer.record_rollouts([group], stage="rl", update=0, purpose="review")
        writer.record_reviews([review("begun0")])
        if whole:
            writer.record_pool("rl", StoredPool(identity="x", tokens=1, examples=()))
        writer.rewind("rl", -1)
        kept = [each.id for each in reader.rollouts("rl", None, None)]
        assert kept == (["begun0", "begun1"] if whole else [])
        assert ("begun0" in [each.rollout_id for each in reader.reviews()]) == whole
