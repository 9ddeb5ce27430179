"""Recipes and overrides that no careful person writes: a recipe, or one line that says what is wrong."""

import copy
import json
import tomllib
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from forkpoint.config import Recipe, load_recipe, parse_recipe, recipe_to_toml
from forkpoint.config.load import validate
from forkpoint.errors import RecipeError

FOLDER = Path(__file__).resolve().parents[2] / "recipes"
TEXTS = {path.stem: path.read_text("utf-8") for path in sorted(FOLDER.glob("*.toml"))}
TREES = [tomllib.loads(text) for text in TEXTS.values()]
QUICK = settings(
    derandomize=True,
    deadline=None,
    max_examples=150,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([2**63, -(2**63) - 1, 10**400, 10**5000, 1e308, float("inf"), float("nan"), -0.0, 5e-324]),
    st.floats(),
    st.text(max_size=20),
    st.sampled_from(["", "\x00", "a\nb", "\u2028", "\u202e", "\ud800", "😀" * 5, "x" * 100_000, "../..", "a:b", "all"]),
    st.just([]),
    st.just({}),
    st.lists(st.integers() | st.text(max_size=3), max_size=3),
    st.dictionaries(st.text(max_size=4), st.integers() | st.text(max_size=3), max_size=3),
)


def survives(make):
    """The recipe, or None for one that was refused in one line."""
    try:
        return make()
    except RecipeError as error:
        message = str(error)
    assert len(message.splitlines()) == 1, repr(message)[:500]
    assert len(message) < 2000, len(message)
    return None


def places(tree, path=()):
    """Every place of a tree."""
    yield path
    inner = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in inner:
        yield from places(value, (*path, key))


@st.composite
def mutated(draw):
    tree = copy.deepcopy(draw(st.sampled_from(TREES)))
    for _ in range(draw(st.integers(1, 3))):
        path = draw(st.sampled_from(list(places(tree))[1:] or [("name",)]))
        here = tree
        for part in path[:-1]:
            here = here[part]
        change = draw(st.sampled_from(["replace", "remove", "more"]))
        if change == "replace":
            here[path[-1]] = draw(ODD)
        elif change == "remove":
            del here[path[-1]]
        elif isinstance(here, dict):
            here[draw(st.text(max_size=8))] = draw(ODD)
    return tree


@QUICK
@given(tree=mutated())
def test_a_mutated_recipe_is_a_recipe_or_one_line(tree):
    recipe = survives(lambda: validate(Recipe, tree, where="r.toml"))
    if recipe is not None:
        assert parse_recipe(recipe_to_toml(recipe)) == recipe


@QUICK
@given(name=st.sampled_from(sorted(TEXTS)), place=st.floats(0, 1), length=st.integers(0, 40), put=st.text(max_size=12))
def test_a_mangled_text_is_a_recipe_or_one_line(name, place, length, put):
    text = TEXTS[name]
    at = int(place * len(text))
    survives(lambda: parse_recipe(text[:at] + put + text[at + length :]))


@QUICK
@given(data=st.binary(max_size=200))
@example(data=b"\xff\xfen\x00")
@example(data=b"\xef\xbb\xbfname = 1")
@example(data=b"a = 0x" + b"f" * 9000)
@example(data=b"a = " + b"9" * 9000)
@example(data=b'"a\\nb" = 1')
def test_any_bytes_are_a_recipe_or_one_line(data, tmp_path):
    path = tmp_path / "r.toml"
    path.write_bytes(data)
    survives(lambda: load_recipe(path))


KEYS = st.one_of(
    st.sampled_from(
        ["stage", "stage.", "stage.base", "stage.base.updates", "task.name", "policy", "policy.width", "seed", "name",
         "stage.0.updates", "stage..x", "evaluation.problems", "a.b.c.d", "name.x", "stage.base.credit.options.x"]
    ),
    st.text(max_size=12),
)  # fmt: skip
VALUES = st.one_of(
    st.text(max_size=20),
    ODD.filter(lambda value: not isinstance(value, int) or value.bit_length() < 9999).map(
        lambda value: json.dumps(value)[:5000]
    ),
    st.sampled_from(["1\nname = 2", "]", "[[", '"""', "{a=1", "1e999", "-nan", "0x" + "f" * 5000, "9" * 5000,
                     "[" * 4000, "{a=" * 2000, "'''", "1979-05-27", "# x", "\x00"]),
)  # fmt: skip


@QUICK
@given(name=st.sampled_from(sorted(TEXTS)), settings_=st.lists(st.tuples(KEYS, VALUES), min_size=1, max_size=3))
@example(name="backtrack", settings_=[("stage", "3")])
@example(name="backtrack", settings_=[("stage.rlvr", "3")])
@example(name="backtrack", settings_=[("a\nb", "3")])
@example(name="backtrack", settings_=[("a" * 100_000, "3")])
def test_any_override_is_a_recipe_or_one_line(name, settings_):
    overrides = [f"{key}={value}" for key, value in settings_]
    survives(lambda: parse_recipe(TEXTS[name], overrides))


@pytest.mark.parametrize(
    "text",
    [
        "a = " + "[" * 100_000,
        "a = " + "{a = " * 20_000,
        "[" + ".".join(["a"] * 5000) + "]",
        "\n".join(f"[a{'.a' * number}]" for number in range(200)),
        "stage = 1",
        "[stage]\nname = 1",
        "stage = [1, 2]",
        "[[stage]]\n" * 3000,
        "policy = []\ntask = 3",
        'name = "' + "x" * 1_000_000 + '"',
    ],
)
def test_what_is_deep_or_long_is_refused(text):
    assert survives(lambda: parse_recipe(text)) is None
    assert survives(lambda: parse_recipe(text, ["stage.a.b=1"])) is None
