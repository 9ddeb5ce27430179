"""TOML and overrides to a recipe: what is refused, how it is said, and the way back to TOML."""

import json
import tomllib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forkpoint.config import Recipe, load_recipe, parse_recipe, recipe_to_toml
from forkpoint.config.load import override_table, validate
from forkpoint.config.recipe import sources
from forkpoint.errors import RecipeError

RECIPES = sorted((Path(__file__).resolve().parents[2] / "recipes").glob("*.toml"))
BASE = """
name = "a"
[policy]
kind = "tiny"
[task]
name = "paths"
[[stage]]
name = "base"
kind = "pretrain"
data = "walks"
updates = 1
[[stage]]
name = "rl"
kind = "rl"
from = "base"
updates = 2
max_new_tokens = 4
"""


def refusal(extra="", *overrides):
    with pytest.raises(RecipeError) as caught:
        parse_recipe(BASE + extra, overrides, where="r.toml")
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 900
    return message


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipes_come_back_from_their_own_toml(path):
    recipe = load_recipe(path)
    text = recipe_to_toml(recipe)
    assert parse_recipe(text) == recipe
    assert recipe_to_toml(parse_recipe(text)) == text


def test_every_default_is_written_out():
    tree = tomllib.loads(recipe_to_toml(parse_recipe(BASE)))
    assert tree["seed"] == 0
    assert tree["policy"]["width"] == 96
    assert tree["stage"][1]["credit"] == {"rule": "leave_one_out", "options": {}, "wrap": [], "wrap_options": {}}
    assert tree["stage"][1]["betas"] == [0.9, 0.95]
    assert tree["evaluation"]["final_problems"] == 512


names = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,20}", fullmatch=True)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
values = st.recursive(
    st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)
tables = st.dictionaries(texts, values, max_size=4)


@st.composite
def recipes(draw):
    stages = [{"name": "base", "kind": "pretrain", "data": draw(texts) or "walks", "updates": draw(st.integers(0, 9))}]
    for name in draw(st.lists(names, unique=True, max_size=3)):
        if name in ("base", "policy"):
            continue
        before = draw(st.sampled_from(["policy", *(stage["name"] for stage in stages)]))
        rl = {
            "kind": "rl",
            "max_new_tokens": draw(st.integers(1, 99)),
            "updates": 2 * draw(st.integers(0, 9)),
            "updates_per_batch": draw(st.sampled_from([1, 2])),
            "credit": {"options": draw(tables)},
            "divergence": {"coefficient": draw(st.floats(1e-9, 1e9))},
            "keep_rollouts": draw(st.sampled_from(["all", "every:3", "sample:12"])),
        }
        sft = {"kind": "sft", "data": f"rollouts:{draw(st.sampled_from(stages))['name']}", "updates": 3}
        stages.append({"name": name, "from": before, **draw(st.sampled_from([rl, sft]))})
    policy = draw(
        st.sampled_from(
            [{"kind": "tiny", "width": 32}, {"kind": "hf", "path": draw(texts), "lora": {"modules": ["q_proj"]}}]
        )
    )
    rate = draw(st.floats(1e-300, 1))
    for stage in stages:
        stage["learning_rate"] = rate
    return {"name": draw(names), "seed": draw(st.integers(0, 2**63 - 1)), "policy": policy, "task": draw(tables),
            "stage": stages}  # fmt: skip


@settings(max_examples=60)
@given(recipes())
def test_any_recipe_comes_back_from_its_toml(tree):
    recipe = validate(Recipe, tree, where="drawn")
    again = parse_recipe(recipe_to_toml(recipe))
    assert again == recipe
    # Equality takes 1, 1.0 and True for the same.
    assert json.dumps(again.model_dump(), sort_keys=True) == json.dumps(recipe.model_dump(), sort_keys=True)


TYPOS = {
    "nme = 'x'\n": ("key = 'nme'", "'name'"),
    "polcy = 3\n": ("'polcy'", "'policy'"),
}


@pytest.mark.parametrize(("line", "parts"), TYPOS.items())
def test_a_typo_at_the_top(line, parts):
    with pytest.raises(RecipeError) as caught:
        parse_recipe(line + BASE)
    assert all(part in str(caught.value) for part in parts)


BAD = [
    # (lines after the rl stage, what the one line must say)
    ("learning_rte = 1", ["'learning_rte'", "Did you mean 'learning_rate'?", "stage.rl.learning_rte"]),
    ("[stage.credit]\nrul = 'x'", ["'rul'", "Did you mean 'rule'?", "stage.rl.credit.rul"]),
    ("[stage.loss]\nnam = 'x'", ["'nam'", "Did you mean 'name'?"]),
    ("[stage.divergence]\ncoefficent = 1", ["'coefficent'", "Did you mean 'coefficient'?"]),
    ("[stage.reward]\nlenght_penalty = 1", ["'lenght_penalty'", "Did you mean 'length_penalty'?"]),
    ("data = 'walks'", ["'data'", "stage.rl.data"]),
    ("group_size = 1", ["stage.rl.group_size = 1", "2"]),
    ("group_size = '16'", ["stage.rl.group_size = '16'", "integer"]),
    ("group_size = true", ["stage.rl.group_size", "integer"]),
    ("group_size = 1.5", ["stage.rl.group_size = 1.5", "integer"]),
    ("group_size = -3", ["stage.rl.group_size = -3"]),
    ("problems_per_update = 0", ["problems_per_update = 0"]),
    ("temperature = 1e400", ["stage.rl.temperature = inf", "finite"]),
    ("temperature = nan", ["stage.rl.temperature = nan", "finite"]),
    ("temperature = 0", ["stage.rl.temperature = 0"]),
    ("temperature = '1'", ["stage.rl.temperature = '1'", "number"]),
    ("learning_rate = -1e-3", ["learning_rate = -0.001"]),
    ("top_p = 0.9", ["stage.rl.top_p is refused", "temperature alone"]),
    ("top_k = 5", ["stage.rl.top_k is refused"]),
    ("truncated = 'wrnog'", ["'wrnog'", "Did you mean 'wrong'?"]),
    ("aggregation = 'tokn_mean'", ["Did you mean 'token_mean'?"]),
    ("schedule = 'cosin'", ["Did you mean 'cosine'?"]),
    ("keep_rollouts = 'every:0'", ["keep_rollouts = 'every:0'"]),
    ("keep_rollouts = 'every:٣'", ["keep_rollouts"]),
    ("betas = [0.9]", ["stage.rl.betas"]),
    ("betas = [0.9, 2]", ["stage.rl.betas.1 = 2"]),
    ("updates_per_batch = 3", ["updates = 2", "updates_per_batch = 3"]),
    ("updates_per_batch = 2\nproblems_per_update = 1", ["problems_per_update"]),
    ("[stage.divergence]\ncoefficient = 0", ["coefficient = 0"]),
    ("[stage.divergence]\ncoefficient = 1\nkind = 'k3'", ["divergence.kind", "'k3'", "sequence_k2"]),
    ("[stage.divergence]\ncoefficient = 1\nwhere = 'uncredited'", ["where = 'uncredited' needs kind = 'token_k2'"]),
    ("[stage.task]\nname = 1979-05-27", ["stage.rl.task.name = 1979-05-27", "allowed are"]),
    ("[stage.credit.options]\nx = inf", ["stage.rl.credit.options.x = inf"]),
    ("[[stage]]\nname = 'x'\nupdates = 1", ["stage.x.kind is missing", "pretrain, sft, rl"]),
    ("[[stage]]\nname = 'x'\nkind = 'rll'\nupdates = 1", ["stage.x.kind = 'rll'", "Did you mean 'rl'?"]),
    ("[[stage]]\nname = 'x'\nkind = 'sft'\nupdates = 1", ["stage.x", "data is missing"]),
    ("[[stage]]\nname = 'x'\nkind = 'sft'\ndata = 'a'", ["stage.x.updates is missing"]),
    ("[[stage]]\nname = 'rl'\nkind = 'sft'\ndata = 'a'\nupdates = 1", ["'rl' is given twice"]),
    ("[[stage]]\nname = 'policy'\nkind = 'sft'\ndata = 'a'\nupdates = 1", ["'policy' is given twice"]),
    ("[[stage]]\nname = 'x'\nkind = 'sft'\nfrom = 'bse'\ndata = 'a'\nupdates = 1", ["'bse'", "Did you mean 'base'?"]),
    ("[[stage]]\nname = 'x'\nkind = 'sft'\nfrom = 'x'\ndata = 'a'\nupdates = 1", ["earlier stage", "'x'"]),
    ("[[stage]]\nname = 'x'\nkind = 'sft'\ndata = 'rollouts:rll'\nupdates = 1", ["'rll'", "Did you mean 'rl'?"]),
    ("[[stage]]\nname = '../x'\nkind = 'sft'\ndata = 'a'\nupdates = 1", ["'../x'"]),
    ("[[stage]]\nname = ''\nkind = 'sft'\ndata = 'a'\nupdates = 1", ["stage..name = ''"]),
    ("[[stage]]\nname = 3\nkind = 'sft'\ndata = 'a'\nupdates = 1", ["stage.2.name = 3"]),
]  # fmt: skip


@pytest.mark.parametrize(("lines", "parts"), BAD, ids=[lines.replace("\n", " ")[:40] for lines, _ in BAD])
def test_a_mistake_in_a_stage_is_one_line_that_names_it(lines, parts):
    message = refusal(lines)
    assert message.startswith("r.toml")
    assert all(part in message for part in parts), message


OVERRIDES = [
    (["stage.rl.updates"], ["write key=value"]),
    (["=3"], ["write key=value"]),
    (["a..b=3"], ["write key=value"]),
    (["stage.rll.updates=3"], ["'rll'", "Did you mean 'rl'?"]),
    (["stage.0.updates=3"], ["'0'", "base, rl"]),
    (["stage=3"], ["name a stage and a key"]),
    (["stage.rl=3"], ["name a stage and a key"]),
    (["name.x=1"], ["'x' lies in no table"]),
    (["name.x.y=1"], ["lies in no table"]),
    (["stage.rl.betas.0=1"], ["betas"]),
    (["stage.rl.updates=٣"], ["stage.rl.updates = '٣'", "integer"]),
    (["stage.rl.updates="], ["stage.rl.updates = ''"]),
    (["stage.rl.updates=10x"], ["stage.rl.updates = '10x'"]),
    (["stage.rl.updates=2\nname='b'"], ["stage.rl.updates ="]),
    (["policy.widht=3"], ["Did you mean 'width'?"]),
    (["policy.width=98"], ["width = 98", "heads = 4"]),
    (["policy.kind=tables"], ["policy.kind = 'tables'", "hf, tabular, tiny"]),
    (["policy.kind=hf"], ["policy.", "is"]),
    (["policy=3"], ["policy = 3"]),
    (["seed=-1"], ["seed = -1"]),
    (["seed=99999999999999999999"], ["seed = 99999999999999999999"]),
    (["seed=" + "9" * 5000], ["seed = '999"]),
    (["processes=1000"], ["processes = 1000"]),
    (["name=\udc80"], ["not valid Unicode"]),
    (["name=a/b"], ["name = 'a/b'"]),
    ([".".join("a" * 5000) + "=1"], ["nested too deeply"]),
    (["task.x=" + "[" * 40 + "]" * 40], ["nested too deeply"]),
    (["evaluation.problems=0"], ["evaluation.problems = 0"]),
    (["evaluation.problem=3"], ["Did you mean 'problems'?"]),
    (["policy.kind=hf", "policy.path=x", "policy.lora.rank=0"], ["policy."]),
]


@pytest.mark.parametrize(("overrides", "parts"), OVERRIDES, ids=[item[0][0][:30] for item in OVERRIDES])
def test_a_mistake_in_an_override_is_one_line(overrides, parts):
    message = refusal("", *overrides).replace("\n", " ")
    assert all(part in message for part in parts), message


@pytest.mark.parametrize(
    "text",
    ["a = ", "a = 1\na = 2", "= 3", "a = '\x00'", "x = " + "9" * 5000, "a = " + "[" * 3000 + "]" * 3000, "\ufeffa"],
)
def test_what_is_no_toml_is_one_line(text):
    with pytest.raises(RecipeError, match=r"r\.toml is n") as caught:
        parse_recipe(text, where="r.toml")
    assert "\n" not in str(caught.value)


def test_an_empty_recipe_names_what_is_missing():
    with pytest.raises(RecipeError, match="name is missing"):
        parse_recipe("")
    with pytest.raises(RecipeError, match=r"stage = \[\]"):
        parse_recipe('name="a"\nstage=[]\n[policy]\nkind="tiny"\n[task]\n')


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(RecipeError, match="there is no recipe at"):
        load_recipe(tmp_path / "none.toml")
    with pytest.raises(RecipeError, match="cannot be read"):
        load_recipe(tmp_path)
    (tmp_path / "latin.toml").write_bytes(b"name = '\xe9'")
    with pytest.raises(RecipeError, match="byte 8 is not UTF-8"):
        load_recipe(tmp_path / "latin.toml")


def test_overrides_set_values_by_the_name_of_the_stage():
    recipe = parse_recipe(BASE, ["stage.rl.updates=10", "seed = 7", "stage.base.task.name=paths", "task.depth=2",
                                 "stage.rl.credit.options.ddof=0", "stage.rl.truncated=drop"])  # fmt: skip
    assert recipe.get_stage("rl").updates == 10
    assert recipe.seed == 7
    assert recipe.task == {"name": "paths", "depth": 2}
    assert recipe.get_stage("base").task == {"name": "paths"}
    assert recipe.get_stage("rl").credit.options == {"ddof": 0}
    assert recipe.get_stage("rl").truncated == "drop"


def test_a_stage_whose_name_holds_dots_can_be_overridden():
    text = BASE.replace('name = "rl"', 'name = "rl.v2"')
    assert parse_recipe(text, ["stage.rl.v2.updates=4"]).get_stage("rl.v2").updates == 4


def test_an_override_leaves_the_table_that_it_was_given():
    table = {"name": "paths"}
    assert override_table(table, ["depth=2"]) == {"name": "paths", "depth": 2}
    assert table == {"name": "paths"}


def test_the_sources_of_a_stage():
    text = BASE + "[[stage]]\nname='x'\nkind='sft'\nfrom='base'\ndata='rollouts:rl'\nupdates=1"
    recipe = parse_recipe(text)
    assert [sources(stage) for stage in recipe.stage] == [(), ("base",), ("base", "rl")]
    with pytest.raises(KeyError):
        recipe.get_stage("y")
