"""What a recipe may say of a review: which rollouts, which edits, how they are verified."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from forkpoint.config.strict import Strict


class ReviewSettings(Strict):
    """Fresh rollouts of a stage's final policy on training problems, reviewed (docs/review.md)."""

    problems: Annotated[int, Field(ge=1, le=65_536)] = 64
    """Training problems whose rollouts are reviewed."""
    group_size: Annotated[int, Field(ge=2, le=4096)] = 8
    """Rollouts of each, at least 2."""
    edit: Literal["fix", "keep", "prune", "summarise", "relabel"] = "fix"
    """`fix`: failures up to their hinge, with a verified step in its place.  `keep`, `prune`, `summarise`: successes
    with their dead ends as they are, cut out, or as one marked step each.  `relabel`: failures at the goal that they
    did reach."""
    sources: tuple[Literal["policy", "sibling", "solver"], ...] = ("policy", "sibling")
    """Who proposes a fix: the policy with knowledge in its prompt, a correct rollout of the same problem, or the
    task's own solver, which a real task does not have.  May be empty beside a chat model."""
    knowledge: Annotated[tuple[Literal["answer", "sibling", "feedback"], ...], Field(min_length=1)] = ("answer",)
    """What the policy is told, each in a prompt of its own: the answer, a correct rollout, what the verifier said."""
    chat: Annotated[str, Field(pattern=r"^(https?://[^#\s]+#\S+)?$")] = ""
    """`URL#MODEL` of an OpenAI-compatible server that proposes as well; its key: FORKPOINT_CHAT_KEY."""
    failures: Annotated[int, Field(ge=1, le=4096)] = 2
    """Failures that are looked into of each problem that was solved at least once."""
    continuations: Annotated[int, Field(ge=4, le=4096)] = 32
    """Most rollouts after the fix, and as many after a step drawn anew, in the test of a fix; 4 to 4096."""
    fresh: Annotated[int, Field(ge=1, le=4096)] = 32
    """Rollouts of each arm behind the reported lift of an accepted fix.  They withdraw one whose interval lies below 0,
    and decide nothing else."""
    budget: Annotated[int, Field(ge=1, le=10_000_000_000)] = 200_000
    """Most tokens of continuations and trials; the gate and the policy's proposals come on top, and are counted."""
    false_discovery: Annotated[float, Field(gt=0, lt=1)] = 0.05
    """Expected share of useless fixes among the accepted ones."""
    min_drop: Annotated[float, Field(gt=0, le=1)] = 0.3
    """Smallest loss of the chance of success that is looked for."""
    prefix: bool = True
    """Imitate the prefix of a fix too; `false`: the fix alone."""
    successes: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of every update's texts that are the review's own correct rollouts, at no cost; 0 to below 1."""

    @model_validator(mode="after")
    def _somebody_proposes(self) -> "ReviewSettings":
        if self.edit != "fix":
            if self.chat or self.knowledge != ("answer",):
                raise ValueError(f"chat and knowledge go with edit = 'fix', not '{self.edit}'")
        elif not self.sources and not self.chat:
            raise ValueError("sources is empty, and no chat model is named: nobody proposes a fix")
        return self


class LessonSettings(Strict):
    """Lessons drawn from a stage's rollouts, audited, and distilled into the weights (docs/review/lessons.md)."""

    texts: tuple[Annotated[str, Field(min_length=1, max_length=2000)], ...] = ()
    """Lessons to try beside those that rollouts speak for."""
    problems: Annotated[int, Field(ge=0, le=65_536)] = 64
    """Training problems whose rollouts lessons are drawn from; 0: only `texts`."""
    group_size: Annotated[int, Field(ge=1, le=4096)] = 4
    """Rollouts of each."""
    audits: Annotated[int, Field(ge=2, le=100)] = 2
    """Times that every lesson is tried, on fresh problems each time; two failures delete it."""
    trials: Annotated[int, Field(ge=1, le=65_536)] = 128
    """Most problems of one audit, five rollouts each."""
    most: Annotated[int, Field(ge=1, le=64)] = 2
    """Most lessons in one prompt."""
    level: Annotated[float, Field(gt=0, lt=1)] = 0.05
    """Chance that an audit passes any useless lesson."""


class Mix(Strict):
    """Texts beside the data of a stage."""

    data: Annotated[str, Field(min_length=1)]
    """A corpus of the task, `file:PATH`, `rollouts:STAGE` or `samples:STAGE`."""
    share: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """Of the texts of every update, above 0 and below 1."""
