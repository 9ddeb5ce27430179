import pytest
from store_examples import LONE, new_run, record, rollout

from forkpoint.errors import StoreError
from forkpoint.files import connect_database
from forkpoint.records import EditKind, Lesson
from forkpoint.review.postmortem import Claim, Estimate, Review, Span, Verification, Waste, make_edit
from forkpoint.store import RunReader, RunWriter, StoredEdit, StoredLesson

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
    for table in ("reviews", "edits", "lessons"):
        connection.execute(f"DROP TABLE {table}")
    connection.execute("DELETE FROM migrations WHERE number = 2")
    connection.close()
    with RunReader(run) as reader:
        assert (reader.reviews(), reader.edits(), reader.lessons()) == ([], [], [])
    with RunWriter.open(run) as writer:
        writer.record_reviews([review(rollout().id)])
