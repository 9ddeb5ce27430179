"""`forkpoint audit`: of a run or of foreign rollouts; `audit scorer` runs the attack battery on a verifier."""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import App, Parameter
from cyclopts.validators import Number

from forkpoint.cli.options import Flag, Json, Positive, Settings
from forkpoint.cli.output import print_json, print_table
from forkpoint.errors import ForkpointError, RecipeError, unknown_name

app = App(name="audit", help="What rollouts say of the reasoning; attack a scorer before a model does.")

GYM_FAULTS = ("control", "accepted", "hedge", "hung", "effect")
FUNCTION_FAULTS = ("control", "accepted", "hedge", "paid", "raised", "hung", "effect")


@Parameter(name="*")
@dataclass(frozen=True, slots=True, kw_only=True)
class Foreign:
    """What goes with the rollouts of another trainer."""

    format: Annotated[
        str, Parameter(show_default=False, help="plain, trl, verl, prime-rl, inspect; found out without it.")
    ] = ""
    correct_at: Annotated[
        float | None, Parameter(help="If nothing says what is correct: the reward from which on one counts as it.")
    ] = None
    model: Annotated[
        str,
        Parameter(
            show_default=False,
            help="The folder of the model that wrote them, Hugging Face format: token_edits, premature_confidence and "
            "template_collapse ask it. Nothing is drawn.",
        ),
    ] = ""
    base_model: Annotated[
        str, Parameter(show_default=False, help="With --model: the folder of the model that training began with.")
    ] = ""
    answer_lead: Annotated[
        str,
        Parameter(show_default=False, help="With --model: what every answer begins with, such as '####' or 'Answer:'."),
    ] = ""
    raw_prompts: Annotated[
        bool,
        Parameter(negative="", show_default=False, help="With --model: prompts hold the chat template already."),
    ] = False
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16"] | None,
        Parameter(help="With --model: the format of the weights; float32 without it."),
    ] = None


@app.default
def records(
    path: Path,
    /,
    *,
    base: Annotated[str, Parameter(show_default=False)] = "",
    stage: Annotated[str, Parameter(show_default=False)] = "",
    only: Annotated[str, Parameter(show_default=False)] = "",
    fail_on: Literal["watch", "sick"] | None = None,
    foreign: Foreign = Foreign(),
    models: Flag = False,
    elicit: Annotated[tuple[str, ...], Parameter(show_default=False, negative="")] = (),
    held_out: Annotated[str, Parameter(show_default=False)] = "",
    no_store: Flag = False,
    json_: Json = False,
) -> int:
    """What the audits find in the records of a run, or in the rollouts of another trainer.

    The findings of a run are stored in it, so that its report shows them.

    Parameters
    ----------
    path
        A run folder; or a file or folder of rollouts of TRL, verl, prime-rl, inspect-ai, or plain ones.
    base
        What the stages are compared with: RUN:STAGE, or rollouts. Without it the stage that each starts from.
    stage
        Only this stage of the run.
    only
        Audits, with commas between; all without it.
    fail_on
        Exit with 1 if a finding is at least this bad.
    models
        Also load the models of a run and ask them: token_edits, premature_confidence, template_collapse, and parts of
        sabotage and reward_hacking. Draws fresh rollouts on held-out problems; says first what that costs.
    elicit
        With --models: a text before the prompts with which sabotage tries to bring out what is hidden; may be repeated.
    held_out
        package.module:function, a verifier that training did not use: it judges the stored texts again, in a child
        process with a deadline, and reward_hacking holds the reward against it.
    no_store
        Print only.
    json_
        Print as JSON.
    """
    from forkpoint.cli.audit_records import audit_path

    request = {
        "base": base, "stage": stage, "only": only, "models": models, "elicit": elicit, "held_out": held_out,
        **asdict(foreign),
    }  # fmt: skip
    return audit_path(path, request, fail_on=fail_on, store=not no_store, as_json=json_)


@app.command
def scorer(
    name: str,
    /,
    *,
    set_: Settings = (),
    task: Annotated[str, Parameter(show_default=False)] = "",
    problems: Positive = 3,
    seconds: Annotated[float, Parameter(validator=Number(gt=0, lte=60))] = 2.0,
    fail_on: Annotated[str, Parameter(show_default=False)] = "",
    only: Annotated[str, Parameter(show_default=False)] = "",
    json_: Json = False,
) -> int:
    """What a scorer pays for that is no right answer, and what else happens; exits 1 unless it is clean.

    Parameters
    ----------
    name
        A task, gym:DATASET, gym for a table of all datasets, or package.module:function of your own.
    set_
        key=value: a setting of the task; may be repeated.
    task
        For a function of your own: the task whose problems it is tried on; sums of two numbers without it.
    problems
        How many problems each attack is tried on.
    seconds
        A call that takes longer hangs.
    fail_on
        Faults that count, with commas between: control, accepted, hedge, tail, paid, raised, hung, effect.
        Without it all; for a function all but tail; for jsonl all but raised, since its worker's deadline is an
        ERROR; for gym all but tail, paid and raised, since its adapter pays for a score of 1 only.
    only
        For gym: datasets, with commas between.
    json_
        Print as JSON.
    """
    from forkpoint.audits import audit_scorer

    if name == "gym":
        return _table(only, problems=problems, seconds=seconds, fail_on=_faults(fail_on, GYM_FAULTS), as_json=json_)
    if only:
        raise RecipeError("--only goes with the name gym.")
    subject, usual = _subject(name, set_, task, problems)
    counted = _faults(fail_on, usual)
    audit = audit_scorer(subject, timeout_seconds=seconds)
    if json_:
        print_json(_as_table(audit, counted) | {"attacks": [asdict(result) for result in audit.results]})
    else:
        _print_audit(audit, counted)
    return 0 if audit.is_clean(counted) else 1


def _faults(text: str, usual: Sequence[str]) -> tuple[str, ...]:
    from forkpoint.audits import FAULTS

    names = tuple(part.strip() for part in text.split(",") if part.strip())
    for name in names:
        if name not in FAULTS:
            raise RecipeError(unknown_name("--fail-on", name, FAULTS))
    return names or tuple(usual)


def _subject(name: str, settings: Sequence[str], task: str, count: int) -> tuple[Any, tuple[str, ...]]:
    """The scorer of a name with its problems, and the faults that count for it."""
    from forkpoint.assembly import TASKS
    from forkpoint.audits import FAULTS, Subject, sums

    if name.startswith("gym:"):
        with _catalogue() as catalogue:
            dataset = _known(name.removeprefix("gym:"), catalogue.names())
            return _dataset(catalogue, dataset, count), GYM_FAULTS
    if name not in TASKS and ":" not in name:
        raise RecipeError(unknown_name("scorer", name, [*TASKS, "gym:DATASET", "package.module:function"]))
    if name not in TASKS:
        items = _items(_table_of(task, settings), count) if task else sums(count)
        return Subject(name=name, target=name, items=items), FUNCTION_FAULTS
    if task:
        raise RecipeError("--task goes with a function of your own.")
    table = _table_of(name, settings)
    items = _items(table, count)
    made = {key: value for key, value in table.items() if key != "name"}
    if isinstance(made.get("path"), str):
        made["path"] = str(Path.cwd() / made["path"])
    target = f"{TASKS[name]}:build"
    own_worker = name == "jsonl"
    counted = tuple(fault for fault in FAULTS if not (own_worker and fault == "raised"))
    return Subject(name=name, target=target, items=items, settings=made, own_worker=own_worker), counted


def _table_of(name: str, settings: Sequence[str]) -> dict[str, Any]:
    from forkpoint.config.load import override_table

    return dict(override_table({"name": name}, settings))


def _items(table: dict[str, Any], count: int) -> tuple[Any, ...]:
    """Problems of a task, each with its solution and that of the next."""
    from forkpoint.assembly import build_task
    from forkpoint.audits import Item
    from forkpoint.seeds import Key

    task = build_task(table, folder=Path.cwd())
    problems = [task.problem(Key.root(0).child("audit", index)) for index in range(count + 1)]
    texts = [task.solve(problem) for problem in problems]
    return tuple(
        Item(problem=problem, right=text, other=other if other != text else "")
        for problem, text, other in zip(problems, texts, texts[1:], strict=False)
    )


def _catalogue() -> Any:  # noqa: ANN401
    from contextlib import closing

    from forkpoint.tasks.gym import Catalogue

    return closing(Catalogue())


def _known(dataset: str, names: Sequence[str]) -> str:
    if dataset not in names:
        raise RecipeError(unknown_name("dataset of gym", dataset, names))
    return dataset


def _dataset(catalogue: Any, dataset: str, count: int) -> Any:  # noqa: ANN401
    """The raw scorer of a dataset."""
    from forkpoint.audits import Item, Subject

    made = catalogue.problems(dataset, count + 1)
    items = tuple(
        Item(problem=problem, right=problem.answer, other=other.answer if other.answer != problem.answer else "")
        for problem, other in zip(made, [*made[1:], made[0]], strict=True)
    )[:count]
    return Subject(name=f"gym:{dataset}", target="forkpoint.tasks.gym:raw_score", items=items)


def _table(only: str, *, problems: int, seconds: float, fail_on: Sequence[str], as_json: bool) -> int:
    rows = []
    for row in _rows(only, problems, seconds, fail_on):
        rows.append(row)
        print(f"{row['name']}: {row['verdict']}", file=sys.stderr, flush=True)
    if as_json:
        print_json({"scorers": rows, "fail_on": list(fail_on)})
    else:
        cells = [[row["name"], row["verdict"], _number(row["highest"]), row["why"]] for row in rows]
        print_table(["scorer", "verdict", "highest", "about"], cells)
    return 0 if all(row["verdict"] == "clean" for row in rows) else 1


def _rows(only: str, problems: int, seconds: float, fail_on: Sequence[str]) -> Iterator[dict[str, Any]]:
    """One row a dataset; one that cannot even be asked is refused too."""
    from forkpoint.audits import audit_scorer

    with _catalogue() as catalogue:
        names = catalogue.names()
        for dataset in [_known(part.strip(), names) for part in only.split(",") if part.strip()] or names:
            try:
                audit = audit_scorer(_dataset(catalogue, dataset, problems), timeout_seconds=seconds)
            except ForkpointError as error:
                yield {"name": f"gym:{dataset}", "verdict": "refuse", "why": str(error), "highest": None, "faults": {}}
            else:
                yield _as_table(audit, fail_on)


def _as_table(audit: Any, fail_on: Sequence[str]) -> dict[str, Any]:  # noqa: ANN401
    wrong = [result.highest for result in audit.results[1:] if result.highest is not None]
    return {
        "name": audit.name,
        "verdict": "clean" if audit.is_clean(fail_on) else "refuse",
        "why": audit.why(fail_on),
        "highest": max(wrong, default=None),
        "faults": {fault: list(attacks) for fault, attacks in audit.faults.items()},
        "problems": audit.problems,
        "network": audit.network,
        "variables": list(audit.variables),
    }


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def _print_audit(audit: Any, fail_on: Sequence[str]) -> None:  # noqa: ANN401
    """The table of one scorer and its verdict."""
    rows = [
        [
            result.attack, _number(result.highest), f"{result.accepted}/{result.calls}", str(result.raised or ""),
            str(result.hung or ""), "; ".join([*result.faults, *result.effects, *filter(None, [result.example])]),
        ]
        for result in audit.results
    ]  # fmt: skip
    print_table(["attack", "highest", "correct", "exceptions", "hangs", "about"], rows)
    network = "a network" if audit.network else "no network"
    print(f"the child saw {network} and the variables {', '.join(audit.variables)}")
    verdict = "clean" if audit.is_clean(fail_on) else f"refuse ({audit.why(fail_on)})"
    print(f"{audit.name}, {audit.problems} problems: {verdict}")
