"""The rules of the source tree: layers, light imports, sizes, forbidden calls, recipes that parse.

Each rule is a function from source text to its violations, so that a few lines of bad code can show that it bites.
"""

import ast
import importlib
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "src" / "forkpoint"
RECIPES = sorted((ROOT / "recipes").glob("*.toml"))

# A module imports only from lower layers, or from its own package; the lowest layer comes first.
# docs/decisions/002 says why `seeds` is in it, 003 why `policies` is a row of its own, 005 where `bugs` stands.
LAYERS = (
    ("records", "errors", "seeds"),
    ("theory", "config", "probe", "files"),
    ("verifiers", "losses", "batching", "curricula"),
    ("tasks", "rewards", "credit", "review", "audits", "bugs"),
    ("policies",),
    ("sampling", "store"),
    ("probing",),
    ("training",),
    ("doctor", "meter", "conformance", "report"),
    ("assembly", "studio", "integrations"),
    ("cli",),
    ("__init__", "__main__"),
)
ROW = {name: row for row, names in enumerate(LAYERS) for name in names}

# Importing these never imports torch (docs/decisions/001 says why `losses` is not among them).
LIGHT = {
    *("records", "errors", "seeds", "theory", "config", "probe", "files", "verifiers", "curricula"),
    *("tasks", "rewards", "credit", "review", "audits", "store", "report", "studio", "__init__"),
}
LIGHT_FILES = ("losses/aggregation.py",)
HEAVY = ("torch", "transformers")

MAX_FILE_LINES = 399
MAX_FUNCTION_LINES = 60
DRAWERS = {"util", "utils", "helper", "helpers", "common", "commons", "misc"}

# The rollout boundary: whatever a verifier raises is recorded as Outcome.ERROR, and training goes on.
MAY_CATCH_ALL = "src/forkpoint/verifiers/guard.py"
PICKLES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
NUMPY_STREAMS = {"Generator", "Philox", "SeedSequence", "BitGenerator"}
TORCH_GLOBAL = {"manual_seed", "seed", "multinomial", "set_rng_state"}
TORCH_DRAWS = {"rand", "randn", "randint", "randperm", "bernoulli", "normal"}

Rule = Callable[[str, str], Iterator[str]]


def python_files(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def violations(rule: Rule, paths: list[Path]) -> list[str]:
    assert paths
    return [
        f"{path.relative_to(ROOT)}:{found}"
        for path in paths
        for found in rule(path.read_text(encoding="utf-8"), path.relative_to(ROOT).as_posix())
    ]


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 2 else parts)


def top_level(path: str) -> str:
    """The package or module right below `forkpoint` that a file belongs to."""
    return Path(path).relative_to("src/forkpoint").with_suffix("").parts[0]


def own_imports(tree: ast.AST, path: str) -> Iterator[tuple[int, str]]:
    """Line and top-level name of each import of our own code, function-level ones included."""
    package = ("forkpoint", *Path(path).relative_to("src/forkpoint").parts[:-1])
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            dotted = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = [*package[: len(package) - node.level + 1], node.module or ""] if node.level else [node.module or ""]
            dotted = [".".join([*filter(None, base), alias.name]) for alias in node.names]
        else:
            continue
        for name in dotted:
            parts = name.split(".")
            if parts[0] == "forkpoint" and len(parts) > 1 and not parts[1].startswith("__"):
                yield node.lineno, parts[1]


def uphill_imports(source: str, path: str) -> Iterator[str]:
    owner = top_level(path)
    if owner not in ROW:
        yield f"1 '{owner}' is in no layer"
        return
    for line, target in own_imports(ast.parse(source), path):
        if target != owner and ROW.get(target, len(LAYERS)) >= ROW[owner]:
            yield f"{line} {owner} imports {target}, which is not below it"


def heavy_imports(source: str, path: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        yield from (f"{node.lineno} imports {name}" for name in names if name.split(".")[0] in HEAVY)


def long_code(source: str, path: str) -> Iterator[str]:
    lines = source.count("\n")
    if lines > MAX_FILE_LINES:
        yield f"1 {lines} lines, allowed are {MAX_FILE_LINES}"
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            if length > MAX_FUNCTION_LINES:
                yield f"{node.lineno} {node.name} has {length} lines, allowed are {MAX_FUNCTION_LINES}"


def drawers(source: str, path: str) -> Iterator[str]:
    yield from (f"1 '{part}' names no idea" for part in Path(path).with_suffix("").parts if part in DRAWERS)


def imported_names(tree: ast.AST) -> dict[str, str]:
    """Local name to the dotted name that it was imported from."""
    names: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                root = alias.name.split(".")[0]
                names[alias.asname or root] = alias.name if alias.asname else root
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.update({alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names})
    return names


def dotted_name(node: ast.expr, names: dict[str, str]) -> str:
    """What an expression such as `np.random.rand` refers to, empty when that cannot be told."""
    if isinstance(node, ast.Name):
        return names.get(node.id, "")
    if isinstance(node, ast.Attribute):
        base = dotted_name(node.value, names)
        return f"{base}.{node.attr}" if base else ""
    return ""


def is_global_draw(dotted: str) -> bool:
    match dotted.split("."):
        case ["numpy", "random", name, *_]:
            return name not in NUMPY_STREAMS
        case ["random", name, *_]:
            return name != "Random"
        case ["torch", name] | ["torch", "cuda", name] | ["torch", "random", name]:
            return name in TORCH_GLOBAL
    return False


def global_randomness(source: str, path: str) -> Iterator[str]:
    tree = ast.parse(source)
    names = imported_names(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute | ast.Name) and is_global_draw(dotted_name(node, names)):
            yield f"{node.lineno} {ast.unparse(node)} draws from a global generator, use forkpoint.seeds"
        elif isinstance(node, ast.Call):
            owner, _, name = dotted_name(node.func, names).rpartition(".")
            keyed = any(keyword.arg == "generator" for keyword in node.keywords)
            method = isinstance(node.func, ast.Attribute) and name == "" and node.func.attr == "multinomial"
            if method or (owner == "torch" and name in TORCH_DRAWS and not keyed):
                yield f"{node.lineno} {ast.unparse(node.func)} draws from a global generator, use forkpoint.seeds"


def is_blind(handler: ast.ExceptHandler) -> bool:
    """Whether a handler catches our own bugs; `except BaseException` may clean up and raise again."""
    caught = handler.type.elts if isinstance(handler.type, ast.Tuple) else [handler.type]
    names = {node.id for node in caught if isinstance(node, ast.Name)}
    last = handler.body[-1]
    raises_again = isinstance(last, ast.Raise) and last.exc is None
    return handler.type is None or "Exception" in names or ("BaseException" in names and not raises_again)


def forbidden_code(source: str, path: str) -> Iterator[str]:
    tree = ast.parse(source)
    names = imported_names(tree)
    yield from (f"1 imports {dotted}" for dotted in names.values() if dotted.split(".")[0] in PICKLES)
    for node in ast.walk(tree):
        if isinstance(node, ast.ExceptHandler):
            if is_blind(node) and path != MAY_CATCH_ALL:
                yield f"{node.lineno} catches everything"
        elif isinstance(node, ast.Call):
            if isinstance(node.func, ast.Name) and node.func.id in {"eval", "exec"}:
                yield f"{node.lineno} calls {node.func.id}"
            elif dotted_name(node.func, names) in {"torch.save", "torch.load"}:
                yield f"{node.lineno} {ast.unparse(node.func)} pickles, use safetensors"


SOURCE_RULES: list[Rule] = [uphill_imports, global_randomness, forbidden_code]
SIZE_RULES: list[Rule] = [long_code, drawers]


@pytest.mark.parametrize("rule", SOURCE_RULES)
def test_source(rule: Rule) -> None:
    assert violations(rule, python_files("src/forkpoint")) == []


@pytest.mark.parametrize("rule", SIZE_RULES)
def test_sizes_and_names(rule: Rule) -> None:
    assert violations(rule, python_files("src", "tests", "benchmarks")) == []


def test_files_that_stay_light_within_heavy_packages() -> None:
    assert violations(heavy_imports, [PACKAGE / name for name in LIGHT_FILES]) == []


def run_python(code: str, *arguments: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False, cwd=ROOT, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_light_modules_do_not_import_torch() -> None:
    light = [path for path in python_files("src/forkpoint") if top_level(path.relative_to(ROOT).as_posix()) in LIGHT]
    modules = [module_name(path).removesuffix(".__init__") for path in light]
    assert len(modules) > len(LIGHT) // 2
    run_python(
        "import importlib, sys\n"
        "for name in sys.argv[1:]:\n"
        "    importlib.import_module(name)\n"
        f"    heavy = sorted(set({HEAVY}) & set(sys.modules))\n"
        "    assert not heavy, f'{name} imports {heavy}'\n",
        *modules,
    )


def test_help_does_not_import_torch() -> None:
    run_python(
        "import sys\n"
        "from forkpoint.cli.main import main\n"
        "sys.argv = ['forkpoint', '--help']\n"
        "try:\n"
        "    code = main()\n"
        "except SystemExit as stop:\n"
        "    code = stop.code\n"
        "assert not code, code\n"
        f"heavy = sorted(set({HEAVY}) & set(sys.modules))\n"
        "assert not heavy, heavy\n"
    )


def test_there_are_recipes() -> None:
    assert "backtrack.toml" in {path.name for path in RECIPES}


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.name)
def test_recipe_parses(recipe: Path) -> None:
    importlib.import_module("forkpoint.config").load_recipe(recipe)


@pytest.mark.parametrize(
    ("rule", "path", "source", "count"),
    [
        (uphill_imports, "credit/group.py", "from forkpoint.training.rl import update", 1),
        (uphill_imports, "credit/group.py", "def f():\n    import forkpoint.rewards", 1),
        (uphill_imports, "credit/group.py", "from forkpoint import records, cli", 1),
        (uphill_imports, "credit/group.py", "from ..store import run\nfrom . import spread\nfrom .. import probe", 1),
        (
            uphill_imports,
            "credit/group.py",
            "from forkpoint import __version__\nimport forkpoint.credit.spread",
            0,
        ),
        (uphill_imports, "drawer.py", "", 1),
        (heavy_imports, "losses/aggregation.py", "import torch.nn\nfrom transformers import Cache\nimport numpy", 2),
        (long_code, "a.py", "x = 1\n" * 400, 1),
        (long_code, "a.py", "x = 1\n" * 399, 0),
        (long_code, "a.py", "def f():\n" + "    x = 1\n" * 60, 1),
        (long_code, "a.py", "def f():\n" + "    x = 1\n" * 59, 0),
        (drawers, "tasks/utils.py", "", 1),
        (drawers, "common/paths.py", "", 1),
        (global_randomness, "a.py", "import numpy as np\nnp.random.seed(0)", 1),
        (global_randomness, "a.py", "from numpy.random import default_rng\ndefault_rng(0)", 1),
        (global_randomness, "a.py", "import numpy as np\nnp.random.Generator(np.random.Philox(key=1))", 0),
        (global_randomness, "a.py", "import random\nrandom.shuffle(x)", 1),
        (global_randomness, "a.py", "from random import choice\nchoice(x)", 1),
        (global_randomness, "a.py", "import torch\ntorch.manual_seed(0)\ntorch.multinomial(p, 1)", 2),
        (global_randomness, "a.py", "import torch\np.multinomial(1)\ntorch.rand(2)", 2),
        (global_randomness, "a.py", "import torch\ntorch.rand(2, generator=g)\ngenerator.random(2)", 0),
        (forbidden_code, "a.py", "eval('1')\nexec('1')\nmodel.eval()", 2),
        (forbidden_code, "a.py", "import pickle\nfrom dill import loads", 2),
        (forbidden_code, "a.py", "import torch\ntorch.load(path)", 1),
        (forbidden_code, "a.py", "try:\n    f()\nexcept Exception:\n    raise", 1),
        (forbidden_code, "a.py", "try:\n    f()\nexcept (ValueError, Exception):\n    pass", 1),
        (forbidden_code, "a.py", "try:\n    f()\nexcept:\n    pass", 1),
        (forbidden_code, "a.py", "try:\n    f()\nexcept BaseException:\n    g()", 1),
        (forbidden_code, "a.py", "try:\n    f()\nexcept BaseException:\n    g()\n    raise", 0),
        (forbidden_code, "verifiers/guard.py", "try:\n    f()\nexcept Exception:\n    g()", 0),
        (forbidden_code, "a.py", "try:\n    f()\nexcept ValueError:\n    g()", 0),
    ],
)
def test_the_rules_bite(rule: Rule, path: str, source: str, count: int) -> None:
    assert len(list(rule(source, f"src/forkpoint/{path}"))) == count
