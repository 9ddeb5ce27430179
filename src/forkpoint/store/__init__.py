"""The run folder: a database of what happened, and checkpoints that resume it exactly."""

from forkpoint.store.checkpoints import (
    checkpoint_path,
    checkpoint_update,
    clean_checkpoints,
    latest_checkpoint,
    list_checkpoints,
    load_manifest,
    load_state,
    prune_checkpoints,
    save_checkpoint,
    stage_folder,
    verify_checkpoint,
    write_manifest,
)
from forkpoint.store.pools import StoredPool
from forkpoint.store.reader import RunReader, find_runs, identity_changes
from forkpoint.store.reviews import Decision, StoredEdit, StoredLesson
from forkpoint.store.rows import (
    Evaluation,
    EvaluationArrays,
    EvaluationResult,
    Event,
    StageRecord,
    StageStatus,
    evaluation_results,
)
from forkpoint.store.writer import DATABASE, RunWriter

__all__ = [
    "DATABASE",
    "Decision",
    "Evaluation",
    "EvaluationArrays",
    "EvaluationResult",
    "Event",
    "RunReader",
    "RunWriter",
    "StageRecord",
    "StageStatus",
    "StoredEdit",
    "StoredLesson",
    "StoredPool",
    "checkpoint_path",
    "checkpoint_update",
    "clean_checkpoints",
    "evaluation_results",
    "find_runs",
    "identity_changes",
    "latest_checkpoint",
    "list_checkpoints",
    "load_manifest",
    "load_state",
    "prune_checkpoints",
    "save_checkpoint",
    "stage_folder",
    "verify_checkpoint",
    "write_manifest",
]
