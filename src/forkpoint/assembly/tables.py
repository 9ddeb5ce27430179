"""What a recipe may name: the tables, as lazy strings, and how a name becomes an object."""

import importlib
import inspect
from collections.abc import Callable, Mapping
from importlib import resources
from pathlib import Path
from types import MappingProxyType, NoneType
from typing import Any, get_args

from forkpoint.config.load import validate
from forkpoint.config.policies import FolderPolicy
from forkpoint.errors import RecipeError, unknown_name
from forkpoint.tasks.demonstrations import kept_copy, kept_file
from forkpoint.tasks.protocol import Task
from forkpoint.verifiers.outside import OutsideTaskVerifier
from forkpoint.verifiers.worker import RAISED

TASKS: Mapping[str, str] = MappingProxyType(
    {
        "paths": "forkpoint.tasks.paths",
        "keychain": "forkpoint.tasks.keychain",
        "arithmetic": "forkpoint.tasks.arithmetic",
        "countdown": "forkpoint.tasks.countdown",
        "dialect": "forkpoint.tasks.dialect",
        "jsonl": "forkpoint.tasks.jsonl",
        "gym": "forkpoint.tasks.gym",
        "lab": "forkpoint.tasks.lab",
        "quiz": "forkpoint.tasks.quiz",
    }
)
"""Modules with `Settings` and `build(settings)`."""

NEEDED: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "gym": ("dataset", "the name of a dataset: write gym:NAME, such as gym:chain_sum"),
        "jsonl": ("path", 'a file: path = "questions.jsonl", or --set path=questions.jsonl'),
    }
)
"""Settings without which a task cannot be, and how to give them."""

CREDIT_RULES: Mapping[str, str] = MappingProxyType(
    {
        name: f"forkpoint.credit:{name}"
        for name in (
            *("leave_one_out", "group_mean_std", "max_rl", "survivors", "critic", "batch_baseline", "with_experts"),
            *("branch", "tree", "counterfactual", "privileged", "answer_progress", "state_group"),
        )
    }
)
CRITIC_RULES = frozenset({"critic"})
"""The credit rules that ask the probe for values."""
LOSSES: Mapping[str, str] = MappingProxyType(
    {name: f"forkpoint.losses:{name}" for name in ("reinforce", "clipped_surrogate", "dppo_tv", "mixed_policy")}
)

_PLAIN: Mapping[Any, tuple[type, ...]] = MappingProxyType(
    {bool: (bool,), int: (int,), float: (int, float), str: (str,)}
)
"""Types that an option may declare, and those of the values that fit."""


def resolve(where: str, name: str, table: Mapping[str, str]) -> Callable[..., Any]:
    """The function of a name in a table, or of `package.module:function`."""
    target = table.get(name, name)
    module, colon, attribute = target.partition(":")
    if not colon:
        raise RecipeError(unknown_name(where, name, table))
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise RecipeError(f"{where} = '{name}' cannot be imported: {error}.") from None
    if not callable(found):
        raise RecipeError(f"{where} = '{name}' is no function.")
    return found


def check_options(where: str, function: Callable[..., Any], options: Mapping[str, Any]) -> None:
    """Raises RecipeError for an option that the function does not have, or not of the plain type that it declares."""
    parameters = _signature(where, function).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return
    known = {name: item for name, item in parameters.items() if item.kind is item.KEYWORD_ONLY}
    for name, value in options.items():
        if name not in known:
            raise RecipeError(unknown_name(where, name, known))
        declared = get_args(known[name].annotation) or (known[name].annotation,)
        kinds = [kind for kind in declared if kind is not NoneType]
        if all(kind in _PLAIN for kind in kinds) and not any(type(value) in _PLAIN[kind] for kind in kinds):
            raise RecipeError(f"{where}.{name} = {value!r} must be {' or '.join(kind.__name__ for kind in kinds)}.")


def _signature(where: str, function: Callable[..., Any]) -> inspect.Signature:
    try:
        return inspect.signature(function)
    except ValueError as error:
        raise RecipeError(f"{where}: {error}; name a function written in Python.") from None


def check_call(where: str, function: Callable[..., Any], count: int, options: Mapping[str, Any]) -> None:
    """Raises RecipeError for a function that cannot be called with so many arguments and these options."""
    try:
        _signature(where, function).bind(*[None] * count, **options)
    except TypeError as error:
        raise RecipeError(f"{where} cannot be called with {count} arguments and its options: {error}.") from None


def build_task(table: Mapping[str, Any], *, where: str = "[task]", folder: Path | None = None) -> Task:
    """The task of a `[task]` table; relative paths are seen from `folder`, the recipe's own."""
    settings = dict(table)
    name = settings.pop("name", None)
    if not isinstance(name, str):
        raise RecipeError(f"{where} name is missing; known: {', '.join(sorted(TASKS))}.")
    if name.startswith("gym:"):
        name, settings["dataset"] = "gym", name.removeprefix("gym:")
    if ":" in name:
        return _outside_task(f"{where} name", name, settings)
    if name not in TASKS:
        raise RecipeError(unknown_name(f"{where} name", name, TASKS))
    if name in NEEDED and NEEDED[name][0] not in settings:
        raise RecipeError(f"{where} {name} needs {NEEDED[name][1]}.")
    module = importlib.import_module(TASKS[name])
    if folder is not None and isinstance(settings.get("path"), str):
        settings["path"] = str(folder / settings["path"])
    task: Task = module.build(validate(module.Settings, settings, where=f"{where} {name}"))
    return task


def kept_task(table: Mapping[str, Any], run: Path, folder: Path, *, keep: bool = False) -> Mapping[str, Any]:
    """The `[task]` table with the run's own copy as its file, where the task reads a file and the run has a copy.

    `keep` makes the copy where there is none; `folder` is the recipe's.
    """
    path = table.get("path")
    # What the settings of a task of somebody else mean is not known here.
    if not isinstance(path, str) or ":" in str(table.get("name")):
        return table
    # A file that is not there is the task's to name.
    if keep and (folder / path).is_file():
        kept_file(run, folder, path, keep=True)
    copy = kept_copy(run, path)
    return {**table, "path": str(copy.resolve())} if copy.is_file() else table


def _outside_task(where: str, name: str, settings: Mapping[str, Any]) -> Task:
    build = resolve(where, name, {})
    try:
        inspect.signature(build).bind(**settings)
    except TypeError as error:
        raise RecipeError(f"{where} = '{name}': {error}.") from None
    try:
        task: Task = build(**settings)
        # Foreign code judges in a child that can be killed; everything else of the task is asked here.
        object.__setattr__(task, "verify", OutsideTaskVerifier(name, settings))
    except RAISED as error:
        line = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise RecipeError(f"{where} = '{name}' cannot be built: {line}.") from None
    return task


def package_model(name: str) -> Path:
    """The folder of a model shipped with the package."""
    root = Path(str(resources.files("forkpoint"))) / "models"
    known = sorted(path.name for path in root.iterdir() if path.is_dir()) if root.is_dir() else []
    if name not in known:
        raise RecipeError(unknown_name("[policy] path = package", name, known))
    return root / name


def model_folder(policy: FolderPolicy, folder: Path) -> Path:
    """Where the model of a recipe in `folder` lies."""
    if policy.path.startswith("package:"):
        return package_model(policy.path.removeprefix("package:"))
    return folder / policy.path
