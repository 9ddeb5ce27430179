"""`forkpoint export`: leave with a model or with every rollout that was kept."""

import itertools
import json
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from forkpoint.cli.evaluate import stage_checkpoint
from forkpoint.cli.options import Json
from forkpoint.cli.output import finite, print_json
from forkpoint.errors import ForkpointError, StoreError
from forkpoint.files import fsync_path, publish_folder, storage_errors, temporary_beside, temporary_folder_beside
from forkpoint.store import RunReader, write_manifest

if TYPE_CHECKING:
    from forkpoint.records import Problem, Reward, Rollout

TRAINER_FILES = frozenset({"trainer.safetensors", "state.json", "manifest.json"})
"""What a checkpoint holds beside a plain model; the copy gets a manifest of its own."""
COLUMNS = (
    "id", "stage", "purpose", "update", "group_id", "index", "task", "problem_key", "difficulty", "prompt", "reference",
    "text", "prompt_tokens", "tokens", "logprobs", "loss_mask", "advantages", "credit_rule", "reward", "outcome",
    "correct", "score", "answer", "reason", "temperature", "stop_reason",
)  # fmt: skip
"""Of an exported rollout."""
CHUNK = 1000
"""Rows of a Parquet file written at once."""


def export(
    run: Path,
    /,
    *,
    to: Literal["hf", "jsonl", "parquet"],
    stage: str | None = None,
    out: Path | None = None,
    json_: Json = False,
) -> int:
    """Write a stage's model as a plain Hugging Face folder, or the rollouts as JSON lines or Parquet.

    Parameters
    ----------
    run
        A run folder.
    to
        `hf`: the model of the last checkpoint; `jsonl`, `parquet`: one row for each rollout that was kept.
    stage
        Which stage; needed for `hf`, all of them for rollouts.
    out
        Where to write; without it a name made of the run's and the stage's, here.
    json_
        Print the result as JSON.
    """
    with RunReader(run) as reader:
        names = [record.name for record in reader.stages()]
        label = reader.name
        if stage is not None:
            reader.stage(stage)
            label = f"{label}-{stage}"
        elif to == "hf":
            raise ForkpointError(f"--stage is missing: whose model? {run} has {', '.join(names)}.")
        target = out or Path(label if to == "hf" else f"{label}.{to}")
        if target.exists():
            raise StoreError(f"{target} exists already: name another with --out.")
        if not target.absolute().parent.is_dir():
            raise StoreError(f"the folder {target.parent} does not exist.")
        told: dict[str, Any] = {"run": str(run), "stage": stage, "to": to, "out": str(target)}
        if to == "hf":
            told["checkpoint"] = str(_copy_model(run, stage or "", target))
        else:
            rows = _rows(reader, [stage] if stage else names)
            told["rollouts"] = _write_lines(rows, target) if to == "jsonl" else _write_parquet(rows, target)
    if json_:
        print_json(told)
    else:
        what = told["checkpoint"] if to == "hf" else f"{told['rollouts']} rollouts"
        print(f"{what} -> {target}")
    return 0


def _copy_model(run: Path, stage: str, target: Path) -> Path:
    """The checkpoint whose model now lies at `target`, which appears whole or not at all."""
    checkpoint = stage_checkpoint(run, stage)
    with storage_errors(target), temporary_folder_beside(target) as folder:
        for path in sorted(checkpoint.iterdir()):
            if path.name not in TRAINER_FILES:
                shutil.copyfile(path, folder / path.name)
        write_manifest(folder)
        publish_folder(folder, target)
    return checkpoint


def _rows(reader: RunReader, stages: Iterable[str]) -> Iterator[dict[str, Any]]:
    """Every kept rollout with what was said of it, stage by stage, training before evaluations."""
    for stage in stages:
        for purpose in ("train", *reader.evaluation_names(stage)):
            for group in reader.groups(stage, None, purpose):
                rewards = group.rewards or (None,) * len(group.rollouts)
                for rollout, reward in zip(group.rollouts, rewards, strict=True):
                    yield _row(reader, group.problem, rollout, reward) | {"purpose": purpose}


def _row(reader: RunReader, problem: "Problem", rollout: "Rollout", reward: "Reward | None") -> dict[str, Any]:
    verdict, credit = reader.verdict(rollout.id), reader.credit(rollout.id)
    prompt = problem.prompt if isinstance(problem.prompt, str) else json.dumps(list(map(dict, problem.prompt)))
    return {
        "id": rollout.id,
        "stage": rollout.stage,
        "update": rollout.update,
        "group_id": rollout.group_id,
        "index": rollout.index,
        "task": problem.task,
        "problem_key": problem.key,
        "difficulty": problem.difficulty,
        "prompt": _text(prompt),
        "reference": _text(problem.answer),
        "text": _text(rollout.text),
        "prompt_tokens": rollout.prompt_tokens.tolist(),
        "tokens": rollout.tokens.tolist(),
        "logprobs": rollout.behavior_logprobs.tolist(),
        "loss_mask": rollout.loss_mask.tolist(),
        "advantages": credit.advantages.tolist() if credit else None,
        "credit_rule": credit.rule if credit else None,
        "reward": reward.total if reward else None,
        "outcome": str(verdict.outcome) if verdict else None,
        "correct": verdict.correct if verdict else None,
        "score": verdict.score if verdict else None,
        "answer": _text(verdict.answer) if verdict and verdict.answer is not None else None,
        "reason": _text(verdict.reason) if verdict else None,
        "temperature": rollout.temperature,
        "stop_reason": str(rollout.stop_reason),
    }


def _text(text: str) -> str:
    """The text with lone surrogates, which no file format takes, as escapes."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _write_lines(rows: Iterable[dict[str, Any]], target: Path) -> int:
    count = 0
    temporary = temporary_beside(target)
    with storage_errors(target):
        try:
            with temporary.open("x", encoding="utf-8") as file:
                for row in rows:
                    file.write(json.dumps(finite(row), ensure_ascii=False) + "\n")
                    count += 1
            _publish(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)
    return count


def _write_parquet(rows: Iterable[dict[str, Any]], target: Path) -> int:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise ForkpointError("--to parquet needs the extra `arrow`: pip install 'forkpoint[arrow]'.") from None
    schema = _schema(pyarrow)
    count = 0
    temporary = temporary_beside(target)
    source = iter(rows)
    with storage_errors(target):
        try:
            with parquet.ParquetWriter(temporary, schema) as writer:
                while chunk := list(itertools.islice(source, CHUNK)):
                    writer.write_table(pyarrow.Table.from_pylist(chunk, schema=schema))
                    count += len(chunk)
            _publish(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)
    return count


def _schema(pyarrow: Any) -> Any:  # noqa: ANN401
    """The columns of `_row`: texts, but for those named here."""
    kinds = {
        "update": pyarrow.int64(),
        "index": pyarrow.int64(),
        "prompt_tokens": pyarrow.list_(pyarrow.int32()),
        "tokens": pyarrow.list_(pyarrow.int32()),
        "logprobs": pyarrow.list_(pyarrow.float32()),
        "loss_mask": pyarrow.list_(pyarrow.bool_()),
        "advantages": pyarrow.list_(pyarrow.float32()),
        "difficulty": pyarrow.float64(),
        "reward": pyarrow.float64(),
        "correct": pyarrow.bool_(),
        "score": pyarrow.float64(),
        "temperature": pyarrow.float64(),
    }
    return pyarrow.schema([(name, kinds.get(name, pyarrow.string())) for name in COLUMNS])


def _publish(temporary: Path, target: Path) -> None:
    """Gives a finished file its name, unless another took it meanwhile."""
    fsync_path(temporary)
    target.hardlink_to(temporary)
    fsync_path(target.absolute().parent)
