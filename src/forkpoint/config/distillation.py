"""What a recipe may say of self-distillation: the policy, told more, teaches itself (docs/credit/privileged.md)."""

from typing import Annotated, Literal

from pydantic import Field

from forkpoint.config.strict import Strict


class Distillation(Strict):
    """A term of the loss that pulls each token of the policy's own rollouts to a teacher: the policy, told more."""

    coefficient: Annotated[float, Field(gt=0)] = 1.0
    """Weight of the term, above 0."""
    knowledge: Literal["answer", "solution", "sibling", "feedback", "lessons", "wrong_answer"] = "answer"
    """What the teacher's prompt holds, as in the credit rule `privileged`; `lessons` are those of the stage that
    `lessons` names; `wrong_answer` is the control."""
    direction: Literal["reverse", "forward", "jsd"] = "reverse"
    """`reverse`: KL(student, teacher); `forward`: KL(teacher, student); `jsd`: the mean of both to their middle."""
    top_k: Annotated[int, Field(ge=1, le=1024)] | None = None
    """Tokens that the teacher names, 1 to 1024; the others share a bucket.  Without it all of at most 256, else 100."""
    where: Literal["all", "failed"] = "all"
    """Which rollouts have a teacher; `failed`: those that are not correct."""
    alone: bool = False
    """Whether the policy gradient is left out; the credit is then recorded and not used."""
