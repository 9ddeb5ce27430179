"""The audits of a run or of foreign rollouts: which records, what was found, where it is kept and shown."""

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from forkpoint.audits.held_out import NEEDS, with_held_out
from forkpoint.audits.part import RANKS, STATUS
from forkpoint.audits.table import Result, chosen, run_audits
from forkpoint.cli.audit_models import check_options, probe_of
from forkpoint.cli.output import print_json, tell, visible
from forkpoint.errors import RecipeError, StoreError, VerifierError
from forkpoint.integrations.rollouts import foreign_records
from forkpoint.records import Finding, Records, Severity
from forkpoint.store import DATABASE, RunReader, RunWriter
from forkpoint.store.columns import stage_records
from forkpoint.verifiers.outside import OutsideVerifier

BY_STATUS = {name: severity for severity, name in STATUS.items()}


def audit_path(
    path: Path, request: Mapping[str, Any], *, fail_on: str | None, store: bool, as_json: bool
) -> int:  # fmt: skip
    """Audits what lies at a path, stage by stage; 1 where a finding is as bad as `fail_on`, else 0."""
    only = chosen([name.strip() for name in request["only"].split(",") if name.strip()])
    is_run = (path / DATABASE).is_file()
    check_options(path, request, is_run=is_run)
    verifier = _held_out(request["held_out"])
    stages = []
    for records in _of_run(path, request) if is_run else _foreign(path, request):
        results = []
        if verifier is not None:
            records = _judged_again(records, verifier)
        for result in run_audits(records, only=only, probe=probe_of(path, records, request, only)):
            _tell(f"{records.stage}: {result.audit} {result.seconds:.1f} s")
            results.append(result)
        if not as_json:
            _print_stage(records, results)
        stages.append(_as_json(records, results))
        if is_run and store:
            _store(path, records.stage, results)
    worst = max((RANKS[BY_STATUS[stage["status"]]] for stage in stages), default=0)
    if as_json:
        print_json({"path": str(path), "stages": stages})
    return int(fail_on is not None and worst >= RANKS[BY_STATUS[fail_on]])


def _of_run(run: Path, request: Mapping[str, Any]) -> Iterator[Records]:
    """The records of the stages of a run, each with that which it starts from."""
    for option in ("format", "correct_at", "model"):
        if request[option] not in (None, ""):
            raise RecipeError(f"--{option.replace('_', '-')} goes with rollouts of another trainer, {run} is a run.")
    with RunReader(run) as reader:
        known = reader.stages()
        if request["stage"]:
            known = [reader.stage(request["stage"])]
    given = _base(request)
    for stage in known:
        base = given or (stage_records(run, stage.parent) if stage.parent else None)
        yield stage_records(run, stage.name, base=base)


def _foreign(path: Path, request: Mapping[str, Any]) -> Iterator[Records]:
    from dataclasses import replace

    def told(count: int) -> None:
        _tell(f"{count} rollouts read")

    base = _base(request)
    found = foreign_records(path, format=request["format"] or None, correct_at=request["correct_at"], told=told)
    names = [records.stage for records in found]
    if request["stage"] and request["stage"] not in names:
        raise StoreError(f"--stage = '{request['stage']}': {path} has {', '.join(names)}.")
    for records in found:
        if request["stage"] in ("", records.stage):
            yield replace(records, base=base)


def _held_out(name: str) -> OutsideVerifier | None:
    """The held-out verifier of a name, which can be called; None without a name."""
    if not name:
        return None
    try:
        verifier = OutsideVerifier(name)
        verifier.check()
    except VerifierError as error:
        raise VerifierError(str(error).replace("verifier =", "--held-out =", 1)) from None
    return verifier


def _judged_again(records: Records, verifier: OutsideVerifier) -> Records:
    """The records with the verdicts of a held-out verifier; says on standard error where it has nothing to judge."""
    missing = records.lacks(NEEDS)
    if missing:
        line = f"{records.stage}: --held-out was not asked: the rollouts lack {', '.join(missing)}."
        print(visible(line), file=sys.stderr, flush=True)
        return records
    every = 500
    found = with_held_out(
        records, verifier, told=lambda done: None if done % every else _tell(f"{records.stage}: {done} judged again")
    )
    verifier.close()
    if "held_out" not in found.has:
        line = f"{records.stage}: --held-out = '{verifier.name}' could judge none of the rollouts."
        print(visible(line), file=sys.stderr, flush=True)
    return found


def _base(request: Mapping[str, Any]) -> Records | None:
    """What `--base` names: a stage of a run, or rollouts."""
    text = request["base"]
    if not text:
        return None
    run, _, stage = text.rpartition(":")
    if run and (Path(run) / DATABASE).is_file():
        return stage_records(Path(run), stage)
    if (Path(text) / DATABASE).is_file():
        with RunReader(Path(text)) as reader:
            names = ", ".join(stage.name for stage in reader.stages())
        raise StoreError(f"--base = '{text}' names no stage: write {text}:STAGE with one of {names}.")
    found = foreign_records(Path(text), format=request["format"] or None, correct_at=request["correct_at"])
    if len(found) != 1:
        raise StoreError(f"--base = '{text}' holds {len(found)} stages, needed is one.")
    return found[0]


def _store(run: Path, stage: str, results: Sequence[Result]) -> None:
    """Keeps the findings; audits that ran replace what they had found before."""
    findings = [finding for result in results for finding in result.findings]
    if not os.access(run / DATABASE, os.W_OK):
        tell(f"{run} may only be read: the findings are not stored there.")
        return
    with RunWriter.open(run) as writer:
        writer.record_findings(findings, audits=[result.audit for result in results if result.ran], stage=stage)


def _tell(line: str) -> None:
    """Progress, on a terminal only."""
    if sys.stderr.isatty():
        print(visible(line), file=sys.stderr, flush=True)


def _status(results: Sequence[Result]) -> str:
    return STATUS[max((result.severity for result in results), key=RANKS.__getitem__, default=Severity.INFO)]


def _as_json(records: Records, results: Sequence[Result]) -> dict[str, Any]:
    return {
        "stage": records.stage,
        "rollouts": len(records),
        "skipped": records.skipped,
        "status": _status(results),
        "has": sorted(records.has),
        "audits": [
            {
                "audit": result.audit,
                "ran": result.ran,
                "status": STATUS[result.severity] if result.ran else "not run",
                "seconds": result.seconds,
                "lacks": {part: list(lacking) for part, lacking in result.lacks.items()},
                "why": result.why,
                "findings": [_finding(finding) for finding in result.findings],
            }
            for result in results
        ],
    }


def _finding(finding: Finding) -> dict[str, Any]:
    return {
        "severity": STATUS[finding.severity],
        "claim": finding.claim,
        "value": finding.value,
        "interval": finding.interval,
        "threshold": finding.threshold,
        "evidence": list(finding.evidence),
    }


def _print_stage(records: Records, results: Sequence[Result]) -> None:
    """One line a finding, the worst first in each audit; what did not run says what it lacks."""
    half = f", {records.skipped} half-written entries left out" if records.skipped else ""
    print(visible(f"{records.stage}: {len(records)} rollouts{half}: {_status(results)}"))
    for result in results:
        if not result.ran:
            lacking = sorted({name for names in result.lacks.values() for name in names})
            why = result.why or f"lacks {', '.join(lacking) or 'rollouts'}"
            print(visible(f"  {result.audit:19s} not run: {why}"))
            continue
        for finding in sorted(result.findings, key=lambda found: -RANKS[found.severity]):
            print(visible(f"  {result.audit:19s} {STATUS[finding.severity]:5s} {' '.join(finding.claim.split())}"))
            if finding.severity is not Severity.INFO and finding.evidence:
                print(visible(f"{'':28s}see {', '.join(finding.evidence[:3])}"))
        if not result.findings:
            print(f"  {result.audit:19s} ok    nothing to say")
