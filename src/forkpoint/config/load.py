"""TOML text and `--set key=value` overrides to a Recipe; every mistake is one line."""

import json
import math
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from forkpoint.config.policies import FolderPolicy, TabularPolicy, TinyPolicy
from forkpoint.config.recipe import ForksStage, Recipe, RLStage, TextStage
from forkpoint.errors import RecipeError, unknown_name

MAX_DEPTH = 32
"""Tables and lists within each other."""
MAX_MESSAGE = 800
"""Characters of a message; the middle of a longer one is left out."""
MAX_BITS = 1024
"""Of a whole number; Python refuses to write out much larger ones."""
M = TypeVar("M", bound=BaseModel)

_KINDS: Mapping[str, type[BaseModel]] = {
    "tiny": TinyPolicy, "hf": FolderPolicy, "tabular": TabularPolicy,
    "pretrain": TextStage, "sft": TextStage, "rl": RLStage, "forks": ForksStage,
}  # fmt: skip


def _refusal(text: str) -> RecipeError:
    """The mistake in one line of bounded length, whatever keys and values it quotes."""
    line = "".join(character if character.isprintable() else repr(character)[1:-1] for character in text)
    return RecipeError(
        line if len(line) <= MAX_MESSAGE else f"{line[: MAX_MESSAGE // 2]}...{line[-MAX_MESSAGE // 2 :]}"
    )


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe in a file with overrides applied.  Raises RecipeError with one line."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise _refusal(f"there is no recipe at {path}.") from None
    except UnicodeDecodeError as error:
        raise _refusal(f"the recipe {path} is no text: byte {error.start} is not UTF-8.") from None
    except OSError as error:
        raise _refusal(f"the recipe {path} cannot be read: {error.strerror}.") from None
    return parse_recipe(text, overrides, where=str(path))


def parse_recipe(text: str, overrides: Sequence[str] = (), *, where: str = "the recipe") -> Recipe:
    """The recipe of a TOML text with overrides such as `stage.rlvr.updates=10`."""
    try:
        tree = tomllib.loads(text)
    except ValueError as error:
        raise _refusal(f"{where} is not TOML: {error}.") from None
    except RecursionError:
        raise _refusal(f"{where} is nested too deeply.") from None
    for override in overrides:
        _override(tree, override)
    return validate(Recipe, tree, where=where)


def validate(model: type[M], tree: Mapping[str, Any], *, where: str) -> M:
    """The model of a tree; RecipeError with the first mistake in one line otherwise.

    Numbers are finite, and no value is converted: neither "3" nor true is the number 3.
    """
    for location, flaw in _flaws(tree, ()):
        raise _refusal(f"{where}: {'.'.join(_readable(location, tree))[:200]}{flaw}.")
    try:
        return model.model_validate_json(json.dumps(tree), strict=True)
    except ValidationError as error:
        raise _refusal(f"{where}: {_explain(model, error, tree)}") from None


def _flaws(value: object, place: tuple[str | int, ...]) -> Iterator[tuple[tuple[str | int, ...], str]]:
    """Places of a tree that hold anything but tables, lists, texts and finite numbers, and what is wrong there."""
    if len(place) > MAX_DEPTH:
        yield place, " is nested too deeply"
    elif isinstance(value, Mapping):
        for name, item in value.items():
            yield from _flaws(item, (*place, str(name)))
    elif isinstance(value, list | tuple):
        for number, item in enumerate(value):
            yield from _flaws(item, (*place, number))
    elif isinstance(value, int) and value.bit_length() > MAX_BITS:
        yield place, f": a whole number of {value.bit_length()} bits is too large"
    elif isinstance(value, float) and not math.isfinite(value):
        yield place, f" = {value}: a number must be finite"
    elif isinstance(value, str) and not _encodable(value):
        yield place, f" = {_shorten(value)} is not valid Unicode"
    elif not isinstance(value, bool | int | float | str):
        yield place, f" = {value}: allowed are texts, numbers, true, false, lists and tables"


def _encodable(text: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _readable(location: Sequence[str | int], tree: Mapping[str, Any]) -> list[str]:
    """The place of a mistake with stages by their names, without the kinds that pydantic puts in."""
    place: list[str] = []
    for depth, part in enumerate(location):
        before = location[depth - 1] if depth else None
        if isinstance(part, int) and place == ["stage"]:
            name = tree["stage"][part].get("name") if isinstance(tree["stage"][part], Mapping) else None
            place.append(str(name) if isinstance(name, str) else str(part))
        elif not (part in _KINDS and (before == "policy" or isinstance(before, int))):
            place.append(str(part))
    return place


def _explain(model: type[BaseModel], error: ValidationError, tree: Mapping[str, Any]) -> str:
    """The mistake that a reader would fix first: a key that does not exist, then the order of the recipe."""
    first = sorted(error.errors(), key=lambda item: item["type"] != "extra_forbidden")[0]
    place = _readable(first["loc"], tree)
    key = ".".join(place)
    context = first.get("ctx", {})
    kinds = ("tiny", "hf", "tabular") if place == ["policy"] else ("pretrain", "sft", "rl", "forks")
    match first["type"]:
        case "extra_forbidden":
            return _unknown_key(model, first, place)
        case "missing":
            return f"{key} is missing."
        case "union_tag_not_found":
            return f"{key}.kind is missing; known: {', '.join(kinds)}."
        case "union_tag_invalid":
            return unknown_name(f"{key}.kind", str(context["tag"]), kinds)
        case "literal_error" if isinstance(first["input"], str):
            return unknown_name(key, first["input"], _literals(str(context["expected"])))
        case "value_error":
            return f"{key}: {_message(first)}." if key else f"{_message(first)}."
    return f"{key} = {_shorten(first['input'])}: {_message(first)}."


def _message(error: ErrorDetails) -> str:
    text = error["msg"].removeprefix("Value error, ").removesuffix(".")
    return text if error["type"] == "value_error" else text[:1].lower() + text[1:]


def _literals(expected: str) -> list[str]:
    """The names in pydantic's "'a', 'b' or 'c'"."""
    return expected.replace("'", "").replace(" or ", ", ").split(", ")


def _unknown_key(model: type[BaseModel], error: ErrorDetails, place: Sequence[str]) -> str:
    if place[-1] in ("top_k", "top_p", "min_p") and "rl" in error["loc"]:
        return (
            f"{'.'.join(place)} is refused: rollouts for a policy gradient are sampled by temperature alone, "
            "or their ratios would be 0 or undefined."
        )
    return unknown_name("key", place[-1], _fields_at(model, error["loc"][:-1])) + f" (at {'.'.join(place)})"


def _shorten(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _fields_at(model: type[BaseModel], location: Sequence[str | int]) -> list[str]:
    """Names that are allowed where an unknown key was found."""
    here = model
    for part in location:
        if isinstance(part, str) and part in here.model_fields:
            annotation = here.model_fields[part].annotation
            inner = [
                kind
                for kind in (annotation, *get_args(annotation))
                if isinstance(kind, type) and issubclass(kind, BaseModel)
            ]
            here = inner[0] if inner else here
        elif isinstance(part, str) and part in _KINDS:
            here = _KINDS[part]
    return [field.alias or name for name, field in here.model_fields.items()]


def _override(tree: dict[str, Any], override: str) -> None:
    """Sets one dotted key; a stage is named by its name: `stage.rlvr.updates=10`."""
    key, equals, text = override.partition("=")
    parts = [part.strip() for part in key.split(".")]
    if not equals or not all(parts):
        raise _refusal(f"--set {override}: write key=value, such as stage.rlvr.updates=10.")
    here: Any = tree
    while len(parts) > 1:
        if not isinstance(here, dict):
            raise _refusal(f"--set {override}: '{parts[0]}' lies in no table.")
        if parts[0] == "stage" and isinstance(here.get("stage"), list):
            here, parts = _named_stage(here["stage"], parts[1:], override)
        else:
            here, parts = here.setdefault(parts[0], {}), parts[1:]
    if not isinstance(here, dict):
        raise _refusal(f"--set {override}: '{parts[0]}' lies in no table.")
    if parts == ["stage"]:
        raise _refusal(f"--set {override}: name a stage and a key, such as stage.rlvr.updates=10.")
    here[parts[0]] = _toml_value(text.strip())


def _named_stage(stages: list[Any], parts: list[str], override: str) -> tuple[Any, list[str]]:
    """The stage that the parts begin with, whose name may hold dots, and the parts after it."""
    tables = {str(item.get("name")): item for item in stages if isinstance(item, dict)}
    for end in range(len(parts) - 1, 0, -1):
        if ".".join(parts[:end]) in tables:
            return tables[".".join(parts[:end])], parts[end:]
    if len(parts) == 1:
        raise _refusal(f"--set {override}: name a stage and a key, such as stage.rlvr.updates=10.")
    raise _refusal(unknown_name(f"--set {override}: stage", parts[0], tables))


def override_table(table: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """The table with `key=value` settings."""
    changed = dict(table)
    for override in overrides:
        _override(changed, override)
    return changed


def _toml_value(text: str) -> object:
    """The TOML value of a text; what is none is taken as the text itself."""
    try:
        tree = tomllib.loads(f"value = {text}")
    except (ValueError, RecursionError):
        return text
    return tree["value"] if len(tree) == 1 else text


def recipe_to_toml(recipe: Recipe) -> str:
    """The recipe with every default written out, as TOML that loads to the same recipe."""
    tree = recipe.model_dump(by_alias=True, exclude_none=True)
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
    return key if key.replace("_", "").replace("-", "").isalnum() and key.isascii() else _toml_text(key)


def _toml_text(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        # JSON's escapes are TOML's, but for characters beyond 16 bits and DEL.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_toml_text(item) for item in value) + "]"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_toml_key(key)} = {_toml_text(item)}" for key, item in value.items()) + "}"
    return repr(value)
