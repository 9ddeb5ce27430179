"""`forkpoint task`: look at problems, check the verifier without a model, play one by hand."""

import itertools
import sys
from collections.abc import Sequence
from typing import Annotated, Any

from cyclopts import App, Parameter
from cyclopts.validators import Number

from forkpoint.cli.options import Json, Positive, Settings
from forkpoint.cli.output import print_json, print_table, visible
from forkpoint.errors import ForkpointError

app = App(name="task", help="Look at problems; the reference answer must verify; play one by hand.")


def _task(name: str, settings: Sequence[str]) -> Any:  # noqa: ANN401
    from forkpoint.assembly import build_task
    from forkpoint.config.load import override_table

    return build_task(override_table({"name": name}, settings))


@app.command(name="list")
def list_(*, json_: Json = False) -> None:
    """The tasks, one line each."""
    import importlib

    from forkpoint.assembly import TASKS

    rows = []
    for name, module in sorted(TASKS.items()):
        first = (importlib.import_module(module).__doc__ or "").strip().splitlines()[0]
        rows.append({"name": name, "about": first.removeprefix(f"`{name}`: ")})
    if json_:
        print_json({"tasks": rows})
    else:
        for row in rows:
            print(f"{row['name']:<12} {row['about']}")


@app.command
def show(
    name: str,
    /,
    *,
    set_: Settings = (),
    count: Positive = 3,
    seed: int = 0,
    difficulty: Annotated[float | None, Parameter(validator=Number(gte=0, lte=1))] = None,
    json_: Json = False,
) -> None:
    """The settings of a task and some of its problems with their reference answers.

    Parameters
    ----------
    name
        A task, see `forkpoint task list`.
    set_
        key=value: a setting of the task; may be repeated.
    count
        How many problems.
    seed
        Which problems.
    difficulty
        From 0 to 1; without it the task's own setting.
    json_
        Print as JSON.
    """
    from forkpoint.seeds import Key

    task = _task(name, set_)
    problems = [task.problem(Key.root(seed).child("show", index), difficulty) for index in range(count)]
    texts = {corpus: _first_text(task, corpus, seed) for corpus in task.corpora}
    settings = _settings(name)
    if json_:
        shown = [{"key": p.key, "prompt": p.prompt, "answer": p.answer, "solution": task.solve(p)} for p in problems]
        print_json({"task": task.name, "settings": settings, "problems": shown, "corpora": texts})
        return
    print(f"{_about(name)}\n")
    if settings:
        print_table(["setting", "default", "about"], [[row["name"], row["default"], row["about"]] for row in settings])
    for problem in problems:
        print(f"\nproblem {problem.key}\n  prompt    {visible(str(problem.prompt))}")
        print(f"  answer    {visible(problem.answer)}")
        print(f"  solution  {visible(task.solve(problem))}")
    for corpus, text in texts.items():
        print(f"\ncorpus {corpus}\n  prompt    {visible(str(text['prompt']))}\n  text      {visible(text['text'])}")


def _module(name: str) -> Any:  # noqa: ANN401
    """The module of one of our own tasks, else None."""
    import importlib

    from forkpoint.assembly import TASKS

    key = "gym" if name.startswith("gym:") else name
    return importlib.import_module(TASKS[key]) if key in TASKS else None


def _about(name: str) -> str:
    """What a task is, how its prompts read and how to answer."""
    module = _module(name)
    return (module.__doc__ or "").strip() if module else ""


def _settings(name: str) -> list[dict[str, str]]:
    module = _module(name)
    if module is None:
        return []
    fields = module.Settings.model_fields
    return [
        {
            "name": field,
            "default": "required" if info.is_required() else repr(info.get_default(call_default_factory=True)),
            "about": " ".join((info.description or "").split()),
        }
        for field, info in fields.items()
    ]


def _first_text(task: Any, corpus: str, seed: int) -> dict[str, Any]:  # noqa: ANN401
    from forkpoint.seeds import Key

    text = next(iter(task.corpus(corpus, Key.root(seed).child("corpus"))))
    return {"prompt": text.prompt, "text": text.text}


@app.command
def check(name: str, /, *, set_: Settings = (), count: Positive = 200, seed: int = 0, json_: Json = False) -> int:
    """The reference answers must verify and wrong answers must not; no model is involved.

    Parameters
    ----------
    name
        A task, see `forkpoint task list`.
    set_
        key=value: a setting of the task; may be repeated.
    count
        How many problems.
    seed
        Which problems.
    json_
        Print as JSON.
    """
    from forkpoint.conformance import check_task

    result = check_task(_task(name, set_), count=count, seed=seed)
    if json_:
        print_json({"task": name, "ok": result.ok, "problems": result.problems, "accepted": result.accepted,
                    "wrong": result.wrong, "refused": result.refused, "faults": list(result.faults)})  # fmt: skip
    else:
        print(f"{name}: {result.accepted} of {result.problems} reference answers accepted, "
              f"{result.refused} of {result.wrong} wrong answers refused")  # fmt: skip
        for fault in itertools.islice(result.faults, 20):
            print(f"  {visible(fault)}")
    return 0 if result.ok else 1


@app.command
def play(name: str, /, *, set_: Settings = (), seed: int = 0) -> int:
    """Answer one problem by hand and see the verdict.

    Parameters
    ----------
    name
        A task, see `forkpoint task list`.
    set_
        key=value: a setting of the task; may be repeated.
    seed
        Which problem.
    """
    from forkpoint.seeds import Key
    from forkpoint.verifiers.guard import guarded
    from forkpoint.verifiers.outside import written_rollout

    task = _task(name, set_)
    problem = task.problem(Key.root(seed).child("play"))
    print(f"{_about(name)}\n")
    print(visible(str(problem.prompt)))
    try:
        text = input("your answer: ") if sys.stdin.isatty() else sys.stdin.readline().rstrip("\n")
    except EOFError:
        raise ForkpointError("no answer was given.") from None
    verdict = guarded(task.verify)(problem, written_rollout(problem, text))
    print(f"{verdict.outcome}: {visible(verdict.reason)}")
    print(f"a right answer: {visible(task.solve(problem))}")
    return 0 if verdict.correct else 1
