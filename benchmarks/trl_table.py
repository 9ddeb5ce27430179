"""TRL's completion table against our store: the same rollouts, audited from both.

    python benchmarks/trl_table.py [--updates 4] [--reuse 2] [--out FILE.json]   # the environment of vs_trl.py

`GRPOTrainer` trains the shipped walker for a few updates with `log_completions` and writes its Parquet tables.  Its
reward function hands every rollout to our verifier, and what it saw goes into a run folder of ours as well.  Then
`forkpoint audit` reads both.  Printed: each finding with its value and severity on both sides, and what differs.
`--reuse N` takes N updates from every generation batch, which TRL then writes N times.
"""

import argparse
import json
import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import trl_learning
import vs_trl

from forkpoint.assembly.tables import build_task, package_model
from forkpoint.audits.part import STATUS
from forkpoint.audits.table import run_audits
from forkpoint.integrations.rollouts import foreign_records
from forkpoint.meter.subject import Subject
from forkpoint.policies.folder import load_folder
from forkpoint.probe import Probe, ScoreRequest
from forkpoint.records import Finding, Group, Problem, Records, Reward, UpdateRecord
from forkpoint.seeds import Key, content_hash
from forkpoint.store import RunWriter
from forkpoint.store.columns import stage_records
from forkpoint.tasks.protocol import split_problems

Said: TypeAlias = tuple[str, float, tuple[float, float] | None]
"""Severity, value, interval."""
STAGE = "trl"
TASK = {"name": "paths", "branches": 3, "depth": 3}
LOAD = vs_trl.Load(problems=16, group_size=8, budget=28, warm_up=0)
RATE = 6e-4
VERDICTS = ("same", "DIFFERS", "ours only", "table only")


@dataclass(slots=True, kw_only=True)
class Seen:
    """The groups of each generation batch, by the update that it was made for."""

    groups: dict[int, list[Group]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One finding on both sides; None where a side does not have it."""

    audit: str
    claim: str
    """Ours, or theirs where only they have it."""
    ours: "Said | None"
    theirs: "Said | None"

    @property
    def verdict(self) -> str:
        """Whether both have the same severity, value and interval, or which side alone has it."""
        if self.ours is None or self.theirs is None:
            return "table only" if self.ours is None else "ours only"
        return "same" if self.ours == self.theirs else "DIFFERS"


def make_subject() -> Subject:
    """The shipped walker on its task."""
    policy = load_folder(package_model("backtrack"))
    return Subject(policy=policy, task=build_task(TASK), key=Key.root(0), max_new_tokens=LOAD.budget)


def correct_reward(subject: Subject, by_prompt: Mapping[str, Problem], seen: Seen) -> Callable[..., list[float]]:
    """The task's guarded verdict, 1 or 0, in TRL's terms; keeps what it was asked about as groups of ours."""
    probe = subject.probe("trl")

    def correct(
        prompts: Sequence[str], completion_ids: Sequence[Sequence[int]], trainer_state: Any, **_: object
    ) -> list[float]:
        update = trainer_state.global_step + 1
        made = []
        for start in range(0, len(prompts), LOAD.group_size):
            problem = by_prompt[prompts[start]]
            assert set(prompts[start : start + LOAD.group_size]) == {problem.prompt}
            tokens = completion_ids[start : start + LOAD.group_size]
            made.append(our_group(subject, probe, problem, tokens, place=(update, start)))
        seen.groups[update] = made
        return [reward.total for group in made for reward in group.rewards]

    correct.__name__ = "correct_reward"
    return correct


def our_group(
    subject: Subject, probe: Probe, problem: Problem, completions: Sequence[Sequence[int]], *, place: tuple[int, int]
) -> Group:
    """Completions of one prompt as a group of ours, with the log-probabilities of the policy as it is now."""
    plain = [trl_learning.completed(subject, problem, tokens) for tokens in completions]
    scores = probe.score([ScoreRequest(prompt_tokens=each.prompt_tokens, tokens=each.tokens) for each in plain])
    update, start = place
    rollouts = tuple(
        replace(
            rollout, id=content_hash("trl", update, start, index), group_id=content_hash("trl", update, start),
            stage=STAGE, update=update, index=index, behavior_logprobs=logprobs,
        )
        for index, (rollout, logprobs) in enumerate(zip(plain, scores, strict=True))
    )  # fmt: skip
    verdicts = tuple(probe.verify(problem, rollouts))
    return Group(
        problem=problem, rollouts=rollouts, verdicts=verdicts,
        rewards=tuple(Reward(total=float(verdict.correct is True)) for verdict in verdicts),
    )  # fmt: skip


def train(folder: Path, *, updates: int, reuse: int) -> dict[int, list[Group]]:
    """Trains with TRL, which writes its tables under `folder/completions`; what its reward function saw."""
    from datasets import Dataset  # noqa: PLC0415  (the comparison alone needs TRL)
    from transformers import PrinterCallback  # noqa: PLC0415
    from trl import GRPOConfig, GRPOTrainer  # noqa: PLC0415

    subject, seen = make_subject(), Seen()
    batches = -(-updates // reuse)
    problems = split_problems(subject.task, Key.root(0).child("table"), batches * LOAD.problems, evaluation=False)
    by_prompt = {str(problem.prompt): problem for problem in problems}
    policy = trl_learning._policy(subject)
    length = trl_learning.prompt_length(policy, list(by_prompt))
    if not policy.sees_outputs:
        trl_learning.hide_outputs(policy, length)
    job = vs_trl.Job(side="trl", load=LOAD, threads=1)
    settings = trl_learning.trl_settings(job, str(folder), updates, RATE) | {
        "log_completions": True, "num_completions_to_print": 0, "logging_strategy": "steps", "logging_steps": 1,
        "per_device_train_batch_size": LOAD.rollouts // reuse, "steps_per_generation": reuse,
    }  # fmt: skip
    trainer = GRPOTrainer(
        model=policy.model, reward_funcs=correct_reward(subject, by_prompt, seen), args=GRPOConfig(**settings),
        processing_class=policy.texts.tokenizer,
        train_dataset=Dataset.from_dict({"prompt": [str(problem.prompt) for problem in problems]}),
        rollout_func=trl_learning.stopping_rollouts(subject, by_prompt),
    )  # fmt: skip
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return seen.groups


def store(folder: Path, batches: Mapping[int, Sequence[Group]]) -> Path:
    """A run folder of ours with these rollouts."""
    with RunWriter.create(folder, name="table", identity={}) as writer:
        writer.begin_stage(STAGE, kind="rl", updates_total=max(batches))
        for update, groups in sorted(batches.items()):
            tokens = sum(len(rollout.tokens) for group in groups for rollout in group.rollouts)
            writer.record(UpdateRecord(stage=STAGE, update=update, metrics={}, seconds=0.0, tokens=tokens), groups)
    return folder


def audited(records: Records) -> tuple[dict[str, list[Finding]], dict[str, list[str]]]:
    """The findings of each audit, and the parts that lack something."""
    results = list(run_audits(records))
    lacking = {
        result.audit: [f"{part}: {', '.join(names)}" for part, names in result.lacks.items()] for result in results
    }
    return {result.audit: list(result.findings) for result in results if result.ran}, lacking


def compared(ours: Mapping[str, Sequence[Finding]], theirs: Mapping[str, Sequence[Finding]]) -> list[Row]:
    """The findings of both sides beside each other, those with the same words as one."""
    rows = []
    for audit in dict.fromkeys([*ours, *theirs]):
        left, right = list(ours.get(audit, ())), list(theirs.get(audit, ()))
        for finding in left:
            twin = next((other for other in right if _words(other) == _words(finding)), None)
            if twin is not None:
                right.remove(twin)
            rows.append(_row(audit, finding, twin))
        rows += [_row(audit, None, other) for other in right]
    return rows


def _words(finding: Finding) -> str:
    """A claim without numbers and units."""
    told = finding.claim.replace("characters", "tokens")
    return "".join(letter for letter in told if not (letter.isdigit() or letter in ".,%+-e"))


def _row(audit: str, ours: Finding | None, theirs: Finding | None) -> Row:
    one, two = (None if each is None else (STATUS[each.severity], each.value, each.interval) for each in (ours, theirs))
    told = ours or theirs
    assert told is not None
    return Row(audit=audit, claim=told.claim, ours=one, theirs=two)


def rollouts_agree(table: Records, run: Records) -> dict[str, bool]:
    """Whether the table has the rollouts of our store in their order, field by field."""
    texts = [[said.text for said in each.contents(np.arange(len(each)))] for each in (table, run)]
    prompts = [[said.prompt for said in each.contents(np.arange(len(each)))] for each in (table, run)]
    return {
        "count": len(table) == len(run),
        **{
            name: len(table) == len(run) and bool((getattr(table, name) == getattr(run, name)).all())
            for name in ("update", "correct", "reward", "length")
        },
        "prompt": prompts[0] == prompts[1],
        "text": texts[0] == texts[1],
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--updates", type=int, default=4)
    parser.add_argument("--reuse", type=int, default=1)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--folder", type=Path, help="keep both sides here")
    arguments = parser.parse_args()
    os.environ.update(trl_learning.QUIET)
    warnings.simplefilter("ignore", FutureWarning)
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        batches = train(folder / "trl", updates=arguments.updates, reuse=arguments.reuse)
        run = stage_records(store(folder / "ours", batches), STAGE)
        (table,) = foreign_records(folder / "trl" / "completions")
        agree = rollouts_agree(table, run)
        (ours, here), (theirs, there) = audited(run), audited(table)
        rows = compared(ours, theirs)
    print(f"rollouts: {len(run)} in our store, {len(table)} in TRL's tables; the same: {agree}")
    for row in rows:
        status, value, _ = row.ours or row.theirs or ("", 0.0, None)
        print(f"{row.verdict:11s}{row.audit:20s} {status:6s} {value:10.4g}  {row.claim[:90]}")
    for name in here:
        if here[name] != there[name]:
            print(f"lacks      {name:20s} ours {here[name] or '-'}  table {there[name] or '-'}")
    counted = {verdict: sum(row.verdict == verdict for row in rows) for verdict in VERDICTS}
    print(counted)
    if arguments.out:
        document = {
            "agree": agree,
            "rows": [asdict(row) | {"verdict": row.verdict} for row in rows],
            "lacks": [here, there],
        }
        arguments.out.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    return int(not all(agree.values()) or counted["DIFFERS"] > 0)


if __name__ == "__main__":
    sys.exit(main())
