"""`forkpoint report`: the page of a run, made again from its database."""

from pathlib import Path

from forkpoint.cli.options import Json
from forkpoint.cli.output import print_arms, print_json
from forkpoint.store import RunReader


def report(*runs: Path, json_: Json = False) -> int:
    """Write `report.html` into run folders and print their arms.

    Parameters
    ----------
    runs
        Run folders.
    json_
        Print the numbers as JSON.
    """
    from forkpoint.errors import StoreError
    from forkpoint.report import arms, arms_json, write_report

    if not runs:
        raise StoreError("name at least one run folder: forkpoint report RUN.")
    results = []
    for run in runs:
        with RunReader(run) as reader:
            found = arms(reader)
        path = write_report(run)
        results.append({"run": str(run), "report": str(path), **arms_json(found)})
        if not json_:
            print_arms(found)
            print(f"report: {path}")
    if json_:
        print_json(results[0] if len(results) == 1 else {"runs": results})
    return 0
