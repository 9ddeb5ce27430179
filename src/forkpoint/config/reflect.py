"""What a recipe may say of reflections: a hint after a failed attempt, and a retry with it (docs/review/reflect.md)."""

from typing import Annotated

from pydantic import Field

from forkpoint.config.strict import Strict


class Reflect(Strict):
    """Failed attempts of an RL stage are reflected on and tried again; a reflection earns what its retry earns."""

    failures: Annotated[int, Field(ge=1, le=4096)] = 1
    """Failed attempts of each problem that are reflected on, the first of its group; at least 1."""
    reflections: Annotated[int, Field(ge=2, le=4096)] = 4
    """Reflections on one attempt, each with one retry; at least 2: their credit compares them with each other."""
    max_new_tokens: Annotated[int, Field(ge=1, le=1_000_000)] = 32
    """Budget of a reflection in tokens; a retry has the stage's."""
    attempts: bool = True
    """Whether the attempts are learned from too, as without reflections; `false`: the reflections alone."""
