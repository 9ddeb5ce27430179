"""Recipe to objects."""

from forkpoint.assembly.build import Assembly, build_policy, evaluation_budget, run_identity
from forkpoint.assembly.tables import (
    CREDIT_RULES,
    LOSSES,
    TASKS,
    build_task,
    check_options,
    model_folder,
    package_model,
    resolve,
)

__all__ = [
    "CREDIT_RULES",
    "LOSSES",
    "TASKS",
    "Assembly",
    "build_policy",
    "build_task",
    "check_options",
    "evaluation_budget",
    "model_folder",
    "package_model",
    "resolve",
    "run_identity",
]
