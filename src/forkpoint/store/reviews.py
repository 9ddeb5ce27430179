"""Reviews, edits and lessons to rows and back; documents are JSON."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeAlias

from forkpoint.records import Edit, EditKind, Lesson
from forkpoint.review.postmortem import Claim, Estimate, Review, Span, Verification, Waste
from forkpoint.store.encoding import Row, decode_json, decode_text, encode_json, encode_text

Decision: TypeAlias = Literal["accepted", "rejected"]


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredEdit:
    """An edit with what became of it."""

    edit: Edit
    verification: Verification | None = None
    """None: not verified yet."""
    decision: Decision | None = None
    """Of a person; None: none."""

    @property
    def accepted(self) -> bool:
        """Whether it may be trained on: a person's word counts above the verification's."""
        if self.decision is not None:
            return self.decision == "accepted"
        return self.verification is not None and self.verification.accepted


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredLesson:
    """A lesson with its audits."""

    lesson: Lesson
    audits: Sequence[Mapping[str, Any]] = ()
    """What each audit found, the oldest first."""
    deleted: bool = False


def review_row(review: Review) -> dict[str, Any]:
    """The row of a review."""
    return {"rollout_id": review.rollout_id, "document": encode_json(asdict(review))}


def review_from(row: Row) -> Review:
    """The review of a row."""
    found = decode_json(row["document"])
    return Review(
        rollout_id=found["rollout_id"],
        correct=found["correct"],
        cuts=tuple(found["cuts"]),
        values=tuple(Estimate(**each) for each in found["values"]),
        hinge=_claim(found["hinge"]),
        first_error=_claim(found["first_error"]),
        wasted=tuple(Span(start=each["start"], end=each["end"], why=Waste(each["why"])) for each in found["wasted"]),
        cost=found["cost"],
    )


def _claim(found: Mapping[str, Any] | None) -> Claim | None:
    return None if found is None else Claim(**{**found, "interval": tuple(found["interval"])})


def edit_row(edit: Edit, position: int) -> dict[str, Any]:
    """The row of a new edit."""
    return {
        "id": edit.id, "position": position, "rollout_id": edit.rollout_id, "kind": str(edit.kind),
        "first": edit.start, "last": edit.end, "text": encode_text(edit.text), "source": encode_text(edit.source),
    }  # fmt: skip


def edit_from(row: Row) -> StoredEdit:
    """The edit of a row."""
    edit = Edit(
        id=row["id"], rollout_id=row["rollout_id"], kind=EditKind(row["kind"]), start=row["first"], end=row["last"],
        text=decode_text(row["text"]), source=decode_text(row["source"]),
    )  # fmt: skip
    verification = None if row["verification"] is None else _verification(decode_json(row["verification"]))
    return StoredEdit(edit=edit, verification=verification, decision=row["decision"])


def _verification(found: Mapping[str, Any]) -> Verification:
    pairs = {name: tuple(found[name]) for name in ("fixed", "resampled")}
    interval = None if found["interval"] is None else tuple(found["interval"])
    return Verification(**{**found, **pairs, "interval": interval})


def lesson_row(stored: StoredLesson) -> dict[str, Any]:
    """The row of a lesson."""
    lesson = stored.lesson
    return {
        "id": lesson.id, "task": lesson.task, "text": encode_text(lesson.text), "about": encode_text(lesson.about),
        "origin": encode_json(lesson.origin), "helpful": lesson.helpful, "harmful": lesson.harmful,
        "audits": encode_json(stored.audits), "deleted": int(stored.deleted),
    }  # fmt: skip


def lesson_from(row: Row) -> StoredLesson:
    """The lesson of a row."""
    lesson = Lesson(
        id=row["id"], task=row["task"], text=decode_text(row["text"]), about=decode_text(row["about"]),
        origin=tuple(decode_json(row["origin"])), helpful=row["helpful"], harmful=row["harmful"],
    )  # fmt: skip
    return StoredLesson(lesson=lesson, audits=tuple(decode_json(row["audits"])), deleted=bool(row["deleted"]))
