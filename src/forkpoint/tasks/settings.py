"""The base of every task's settings: frozen, no unknown keys, a docstring under each field."""

from pydantic import BaseModel, ConfigDict


class TaskSettings(BaseModel):
    """Settings of a task, as a recipe's `[task]` table gives them."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)
