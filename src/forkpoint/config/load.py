"""TOML text and `--set key=value` overrides to a Recipe; every mistake is one line."""

import json
import math
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from forkpoint.config.recipe import FolderPolicy, LoRA, Recipe, RLStage, TextStage, TinyPolicy
from forkpoint.errors import RecipeError, unknown_name


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe in a file with overrides applied.  Raises RecipeError with one line."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise RecipeError(f"there is no recipe at {path}.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"the recipe {path} cannot be read: {error}.") from None
    return parse_recipe(text, overrides, where=str(path))


def parse_recipe(text: str, overrides: Sequence[str] = (), *, where: str = "the recipe") -> Recipe:
    """The recipe of a TOML text with overrides such as `stage.rlvr.updates=10`."""
    try:
        tree = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise RecipeError(f"{where} is not TOML: {error}.") from None
    except RecursionError:
        raise RecipeError(f"{where} is nested too deeply.") from None
    for override in overrides:
        _override(tree, override)
    return validate(Recipe, tree, where=where)


M = TypeVar("M", bound=BaseModel)


def validate(model: type[M], tree: Mapping[str, Any], *, where: str) -> M:
    """The model of a tree; RecipeError with the first mistake in one line otherwise."""
    try:
        return model.model_validate(tree)
    except ValidationError as error:
        raise RecipeError(f"{where}: {_explain(model, error, tree)}") from None


def _readable(location: Sequence[str | int], tree: Mapping[str, Any]) -> list[str]:
    """The place of a mistake with stages by their names."""
    place: list[str] = []
    for part in location:
        if isinstance(part, int) and place == ["stage"]:
            stages = tree.get("stage")
            name = stages[part].get("name") if isinstance(stages, list) and isinstance(stages[part], Mapping) else None
            place.append(str(name) if isinstance(name, str) else str(part))
        elif part not in ("tiny", "hf", "pretrain", "sft", "rl"):
            place.append(str(part))
    return place


def _explain(model: type[BaseModel], error: ValidationError, tree: Mapping[str, Any]) -> str:
    """The mistake that a reader would fix first."""
    first = sorted(error.errors(), key=lambda item: item["type"] != "extra_forbidden")[0]
    place = _readable(first["loc"], tree)
    key = ".".join(place)
    if first["type"] == "extra_forbidden":
        return unknown_name("key", place[-1], _fields_at(model, first["loc"][:-1])) + f" (at {key})"
    if first["type"] == "missing":
        return f"{key} is missing."
    message = first["msg"].removeprefix("Value error, ")
    shown = _shorten(first.get("input"))
    if first["type"] == "value_error" or not key:
        return f"{key}: {message}." if key else f"{message}."
    return f"{key} = {shown}: {message[0].lower()}{message[1:]}."


def _shorten(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _fields_at(model: type[BaseModel], location: Sequence[str | int]) -> list[str]:
    """Names that are allowed where an unknown key was found."""
    kinds: Mapping[str, type[BaseModel]] = {
        "tiny": TinyPolicy, "hf": FolderPolicy, "pretrain": TextStage, "sft": TextStage, "rl": RLStage, "lora": LoRA,
    }  # fmt: skip
    here = model
    for part in location:
        if isinstance(part, str) and part in kinds:
            here = kinds[part]
        elif isinstance(part, str) and part in here.model_fields:
            inner = here.model_fields[part].annotation
            here = inner if isinstance(inner, type) and issubclass(inner, BaseModel) else here
    return [field.alias or name for name, field in here.model_fields.items()]


def _override(tree: dict[str, Any], override: str) -> None:
    """Sets one dotted key; a stage is named by its name: `stage.rlvr.updates=10`."""
    key, equals, text = override.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise RecipeError(f"--set {override}: write key=value, such as stage.rlvr.updates=10.")
    here: Any = tree
    for depth, part in enumerate(parts[:-1]):
        if isinstance(here, dict) and part == "stage" and isinstance(here.get("stage"), list):
            here = here["stage"]
        elif isinstance(here, list):
            names = [str(item.get("name")) for item in here if isinstance(item, dict)]
            if part not in names:
                raise RecipeError(unknown_name(f"--set {override}: stage", part, names))
            here = here[names.index(part)]
        elif isinstance(here, dict):
            here = here.setdefault(part, {})
        if not isinstance(here, dict | list):
            raise RecipeError(f"--set {override}: {'.'.join(parts[: depth + 1])} is no table.")
    if not isinstance(here, dict):
        raise RecipeError(f"--set {override}: name a stage and a key, such as stage.rlvr.updates=10.")
    here[parts[-1]] = _toml_value(text.strip())


def override_table(table: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """The table with `key=value` settings."""
    changed = dict(table)
    for override in overrides:
        _override(changed, override)
    return changed


def _toml_value(text: str) -> object:
    """The TOML value of a text; plain words are strings."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except (tomllib.TOMLDecodeError, RecursionError):
        return text


def recipe_to_toml(recipe: Recipe) -> str:
    """The recipe with every default written out, as TOML that loads to the same recipe."""
    tree = recipe.model_dump(mode="json", by_alias=True, exclude_none=True)
    stages = tree.pop("stage")
    lines = list(_table(tree, ""))
    for stage in stages:
        lines += ["", "[[stage]]", *_table(stage, "stage.")]
    return "\n".join(lines) + "\n"


def _table(tree: Mapping[str, Any], prefix: str) -> Iterator[str]:
    for key, value in tree.items():
        if not isinstance(value, Mapping):
            yield f"{_toml_key(key)} = {_toml_text(value)}"
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield ""
            yield f"[{prefix}{_toml_key(key)}]"
            yield from _table(value, f"{prefix}{_toml_key(key)}.")


def _toml_key(key: str) -> str:
    return key if key.replace("_", "").replace("-", "").isalnum() and key.isascii() else json.dumps(key)


def _toml_text(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return repr(value) if math.isfinite(value) else str(value)
    if isinstance(value, str):
        return json.dumps(value).replace("\x7f", "\\u007f")
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_toml_text(item) for item in value) + "]"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_toml_key(key)} = {_toml_text(item)}" for key, item in value.items()) + "}"
    return str(value)
