"""`forkpoint lab`: exact numbers from the command line, the shape of its JSON, its errors, and what it imports."""

import json
import subprocess
import sys
from decimal import Decimal

import pytest
from forked_command import Launched

from forkpoint.cli.main import app, main
from forkpoint.theory.classes import golden_policy
from forkpoint.theory.graphs import PathStar
from forkpoint.theory.tables import policy_text, spread_policy


@pytest.fixture
def ask(capsys):
    """Runs a command of the lab in this process and gives its JSON."""

    def run(*arguments):
        assert app(["lab", *map(str, arguments), "--json"]) == 0
        text = capsys.readouterr().out
        assert not {"Infinity", "NaN", "inf", "nan"} & set(text.replace(",", " ").split())
        return json.loads(text)

    return run


@pytest.fixture
def fail(capsys, monkeypatch):
    """Runs a command that must fail, and gives its one line."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["forkpoint", "lab", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            main()
        said = capsys.readouterr()
        assert (stopped.value.code, said.out, said.err.count("\n")) == (2, "", 1)
        return said.err

    return run


def shape(branches, depth, lanes):
    return ("--branches", branches, "--depth", depth, "--lanes", lanes)


OPTIMA = [((15, 15, 5), 900, 466), ((6, 6, 5), 144, 79)]
UNIFORM = [((15, 15, 5), 50142.0), ((10, 10, 5), 15068.0), ((6, 6, 5), 3338.4), ((4, 4, 3), 754.7), ((3, 3, 5), 438.0)]
SFT = {
    1: (74, 316, 1278, 5120, 20482, 81924),
    2: (89, 428.5, 1949, 8786, 39542, 177940),
    3: (107, 607, 3264, 17425, 92942, 495689),
    4: (126, 832, 5228, 32696, 204359, 1277245),
    5: (146, 1098, 7943, 57214, 411951, 2966044),
}


@pytest.mark.parametrize(("graph", "frozen", "trained"), OPTIMA)
def test_the_optimum_with_the_fork_frozen_and_trained(ask, graph, frozen, trained):
    width, depth, _ = graph
    found = ask("hitting-time", *shape(*graph), "--policy", "optimal")
    assert found["hitting_time"] == pytest.approx(frozen, rel=1e-12)
    assert frozen == 4 * width * depth + 2 * width - 2 * depth
    assert found["shortest_path"] == 2 * depth + 2
    found = ask("hitting-time", *shape(*graph), "--policy", "optimal", "--fork", "trained")
    assert found["hitting_time"] == trained == (width - 1) * (2 * depth + 1) + 2 * depth + 2


@pytest.mark.parametrize(("graph", "steps"), UNIFORM)
def test_the_uniform_policy(ask, graph, steps):
    assert round(ask("hitting-time", *shape(*graph))["hitting_time"], 1) == steps


def test_the_thirty_values_of_converged_imitation(ask):
    for lanes, row in SFT.items():
        for depth, steps in enumerate(row, 1):
            found = ask("hitting-time", *shape(6, depth, lanes), "--policy", "golden")["hitting_time"]
            assert abs(found - steps) <= 0.5 + 1e-9


def test_imitation_on_the_deep_graph(ask):
    found = ask("hitting-time", "--policy", "golden")
    assert (found["branches"], found["depth"], found["lanes"]) == (15, 15, 5)
    assert found["hitting_time"] == pytest.approx(4.31844824909801e14, rel=1e-13)


def test_the_json_has_what_is_promised(ask):
    found = ask("hitting-time", *shape(6, 6, 5), "--policy", "golden", "--within", 14, "--within", 3338)
    assert list(found)[:4] == ["branches", "depth", "lanes", "policy"]
    assert {"hitting_time", "log_hitting_time", "shortest_path", "fork", "target", "exactness"} <= set(found)
    assert found["exactness"] == "exact"
    assert {horizon: round(share, 3) for horizon, share in found["hit_within"].items()} == {"14": 0.167, "3338": 0.167}
    found = ask("hitting-time", *shape(6, 6, 5), "--policy", "optimal", "--within", 600)
    assert round(found["hit_within"]["600"], 3) == 0.985


def test_branches_that_differ(ask):
    depths = [part for depth in (6, 5, 4, 3, 3) for part in ("--depth", depth)]
    found = ask("hitting-time", *depths, "--policy", "optimal")
    assert (found["branches"], found["depth"], found["lanes"]) == (5, [6, 5, 4, 3, 3], 5)
    # Not the paper's 4 * 21 = 84: the fork chooses uniformly, so it is 4 * 21 + 2 W - 2 * (mean depth).
    assert found["hitting_time"] == pytest.approx(85.6) == pytest.approx(4 * 21 + 2 * 5 - 2 * 21 / 5)
    assert found["shortest_path"] == pytest.approx(10.4)
    deep = ask("hitting-time", *depths, "--policy", "optimal", "--target", 0)
    assert deep["shortest_path"] == 14
    # From fork to fork a walk spends 4 k + 2 steps in each of the other branches, once in the mean.
    assert deep["hitting_time"] == pytest.approx(1 + sum(4 * k + 2 for k in (5, 4, 3, 3)) + 13)
    trained = ask("hitting-time", *depths, "--policy", "optimal", "--fork", "trained", "--target", 1, "--within", 54)
    # Shallow branches first: 3, 3, 4, then the one of depth 5.
    assert trained["hitting_time"] == 14 + 14 + 18 + 12
    assert trained["hit_within"]["54"] == 0


def test_the_deepest_graph_is_told_by_its_logarithm(ask):
    found = ask("hitting-time", *shape(1000, 1000, 1000), "--policy", "golden")
    assert found["hitting_time"] is None
    # The recurrence of Theorem 4 for the time to leave one wrong branch, of which a walk tries W - 1 in the mean.
    lanes, leave = Decimal(1000), Decimal(1)
    for i in range(1, 1001):
        back = (lanes + 1) / lanes * leave + (2 * i - 1) / lanes + 1
        leave = (lanes + 1) * back + 2 * i * lanes + 1
    assert found["log_hitting_time"] == pytest.approx(float((999 * leave).ln()), abs=1e-6)
    edges, resistance = 1000 * 1000 + 1001, 1000 + 1 + 1
    uniform = ask("hitting-time", *shape(1000, 1000, 1000))["hitting_time"]
    assert uniform == pytest.approx(1999 * edges * resistance + 1, rel=1e-12)


def test_a_horizon_stops_the_walk(ask):
    found = ask("hitting-time", *shape(1, 1, 1), "--horizon", 4)
    # Start, fork, then L+, R+, leaf: both choices are even, and going back costs more than there is time for.
    assert (found["hit_within_horizon"], found["mean_steps_within_horizon"]) == (0.25, 4.0)
    near = ask("hitting-time", *shape(1, 1, 1), "--horizon", 5)
    assert near["mean_steps_within_horizon"] == 4.75
    far = ask("hitting-time", *shape(2, 1, 2), "--horizon", 2000)
    assert far["mean_steps_within_horizon"] == pytest.approx(far["hitting_time"], rel=1e-9)


def test_the_sign_flow_at_the_papers_graph(ask):
    found = ask("gradient-flow", "--points", 2, "--within", 600)
    assert found["times"] == [0, 600, 1200]
    assert [round(steps, 1) for steps in found["hitting_time"]] == [50142.0, 1078.0, 900.4]
    assert found["profiles"][0]["confused_depths"] == {"a": [], "b": [], "c": [], "d": []}
    assert len(found["profiles"][0]["probabilities"]["b"]) == 15
    assert len(found["hit_within"]["600"]) == 3


def test_the_confused_middle_exists_on_a_narrow_graph(ask):
    found = ask("gradient-flow", *shape(3, 15, 5), "--until", 10, "--points", 1)
    assert found["profiles"][0]["confused_depths"]["b"] == list(range(2, 15))


def test_flows_of_imitation(ask):
    graph = shape(6, 6, 5)
    distilled = ask("gradient-flow", *graph, "--method", "distillation", "--until", 1000, "--points", 3)
    assert distilled["hitting_time"][-1] <= 1.1 * 144
    golden = ask("gradient-flow", *graph, "--method", "sft", "--until", 1e7, "--points", 3)
    assert golden["hitting_time"][-1] == pytest.approx(2966044, rel=1e-3)
    helped = ask("gradient-flow", *graph, "--method", "sft", "--until", 1e7, "--points", 3, "--supervised", 1)
    assert helped["hitting_time"][-1] == pytest.approx(144, rel=1e-3)


def test_a_trained_fork_and_a_horizon_follow_the_full_table(ask):
    graph = shape(3, 1, 2)
    trained = ask("gradient-flow", *graph, "--fork", "trained", "--step", 0.05, "--until", 300, "--points", 1)
    assert trained["hitting_time"][-1] == pytest.approx(2 * 3 + 4, rel=1e-3)
    short = ask("gradient-flow", *graph, "--horizon", 20, "--step", 0.05, "--until", 300, "--points", 1)
    assert short["hitting_time"][-1] == pytest.approx(12 + 6 - 2, rel=1e-3)


def test_the_policy_at_the_end_can_be_asked_about(ask, tmp_path):
    graph, out = shape(3, 2, 2), tmp_path / "policy.json"
    flow = ask("gradient-flow", *graph, "--until", 300, "--points", 1, "--out", out)
    found = ask("hitting-time", *graph, "--policy", out)
    assert found["hitting_time"] == pytest.approx(flow["hitting_time"][-1], rel=1e-9)
    assert found["policy"] == str(out)
    one = [ask("hitting-time", *graph, "--policy", out, "--target", branch)["hitting_time"] for branch in range(3)]
    assert sum(one) / 3 == pytest.approx(found["hitting_time"])
    assert ask("gradient-flow", *graph, "--policy", out, "--until", 5, "--points", 1)["hitting_time"][0] == (
        pytest.approx(found["hitting_time"], rel=1e-9)
    )


@pytest.mark.parametrize(("lanes", "imitation"), [(2, 571), (5, 886), (10, 1411), (20, 2461)])
def test_search(ask, lanes, imitation):
    graph = shape(15, 15, lanes)
    assert ask("search", *graph, "--policy", "optimal")["steps"] == 466
    found = ask("search", *graph, "--policy", "golden")
    assert (found["steps"], found["hit_probability"], found["exactness"]) == (pytest.approx(imitation), 1, "exact")


def test_search_is_simulated_where_it_must_be(ask, tmp_path):
    graph = PathStar.regular(branches=3, depth=2, lanes=2)
    out = tmp_path / "golden.json"
    out.write_text(policy_text(spread_policy(golden_policy(graph))))
    exact = ask("search", *shape(3, 2, 2), "--policy", "golden")["steps"]
    found = ask("search", *shape(3, 2, 2), "--policy", out, "--walkers", 2000, "--within", 6)
    assert found["exactness"] == "simulated"
    assert abs(found["steps"] - exact) <= 4 * found["standard_error"]
    assert found["hit_within"]["6"] == pytest.approx(1 / 3, abs=0.05)
    same = ask("search", *shape(3, 2, 2), "--policy", out, "--walkers", 2000, "--within", 6)
    assert same == found


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["hitting-time", "--branches", 0], "--branches 0: the graph needs 1 to 1000000 branches"),
        (["hitting-time", "--depth", 0], "--depth 0: every branch needs at least 1"),
        (["hitting-time", "--lanes", -2], "--lanes -2: every branch needs at least 1"),
        (["hitting-time", "--branches", 3, "--depth", 2, "--depth", 1], "--depth is given 2 times for 3 branches"),
        (["hitting-time", "--target", 15], "target = 15: the graph has branches 0 to 14"),
        (["hitting-time", "--policy", "optimal", "--fork", "trained", "--target", -1], "target = -1"),
        (["hitting-time", "--horizon", 0], "horizon = 0: at least 1 step"),
        (["hitting-time", "--within", 0], "horizon = 0: at least 1 step"),
        (["hitting-time", "--within", 10**9], "too many to walk"),
        (["hitting-time", "--policy", "unifrom"], "Did you mean 'uniform'?"),
        (["hitting-time", "--fork", "melted"], '"frozen", "trained"'),
        (["search", "--policy", "none.json"], "A file of that name does not exist"),
        (["search", "--horizon", 0], "horizon = 0"),
        (["gradient-flow", "--policy", "golden"], "needs finite logits"),
        (["gradient-flow", "--fork", "trained", "--method", "sft"], "sign or gradient"),
        (["gradient-flow", "--target", 1], "draws its target uniformly"),
        (["gradient-flow", "--until", 0.5], "at least 1 iteration"),
        (["train", "none.toml"], "there is no recipe at none.toml"),
    ],
)
def test_a_mistake_is_one_line(fail, arguments, says):
    assert says in fail(*arguments)


def test_a_policy_of_another_graph_is_refused(fail, tmp_path):
    out = tmp_path / "policy.json"
    out.write_text(policy_text(spread_policy(golden_policy(PathStar.regular(branches=2, depth=1, lanes=2)))))
    said = fail("hitting-time", *shape(2, 2, 2), "--policy", out)
    assert "belongs to the graph with depths [1, 1]" in said
    out.write_text("no")
    assert "not JSON" in fail("hitting-time", *shape(2, 2, 2), "--policy", out)
    assert "no tabular policy" in fail("hitting-time", "--policy", tmp_path)


def test_tables_for_people(capsys):
    assert app(["lab", "hitting-time", "--policy", "golden", "--branches", "900", "--depth", "900"]) == 0
    out = capsys.readouterr().out
    assert "10^775.2" in out
    assert "exact" in out
    assert app(["lab", "gradient-flow", "--until", "2", "--points", "2", "--depth", "2"]) == 0
    assert "iteration" in capsys.readouterr().out
    assert app(["lab", "search", "--walkers", "50", "--branches", "2", "--depth", "1"]) == 0
    assert "standard error" in capsys.readouterr().out


def test_no_command_but_train_imports_torch():
    code = (
        "import sys\n"
        "from forkpoint.cli.main import app\n"
        "app(['lab', 'hitting-time', '--within', '20'])\n"
        "app(['lab', 'search', '--walkers', '10', '--depth', '1', '--branches', '2'])\n"
        "app(['lab', 'gradient-flow', '--until', '2'])\n"
        "import forkpoint.report.figures, forkpoint.report.lab\n"
        "heavy = {'torch', 'transformers', 'matplotlib'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


def test_a_run_of_the_lab_is_planned_from_options(capsys, tmp_path):
    options = ["--branches", "2", "--depth", "1", "--depth", "2", "--fork", "trained", "--horizon", "50"]
    assert app(["lab", "train", "--dry-run", "--json", "--runs", str(tmp_path), *options]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert [stage["name"] for stage in plan["stages"]] == ["rlvr", "imitation"]
    assert plan["stages"][0]["max_sampled_tokens"] == 49 * plan["stages"][0]["rollouts"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("code", "told"), [(130, True), (2, False)])
def test_a_stopped_run_of_the_lab_says_how_to_have_its_page(capsys, monkeypatch, tmp_path, code, told):
    monkeypatch.setattr("forkpoint.cli.run.run", lambda *_, **__: code)
    options = ["--runs", str(tmp_path / "r"), "--name", "x", "--horizon", "50"]
    assert app(["lab", "train", *options]) == code
    err = capsys.readouterr().err
    again = f"forkpoint lab train --horizon 50 --checkpoint-every 20 --runs {tmp_path}/r --name x --resume"
    assert (again in err) == told


def test_train_wants_a_tabular_policy(fail):
    assert "the lab trains tabular policies" in fail("train", "recipes/backtrack.toml")


def test_a_run_of_the_lab_from_end_to_end(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    quick = ["--set=stage.rlvr.updates=4", "--set=stage.imitation.updates=4", "--set=evaluation.final_problems=16"]
    options = ["--depth", "1", "--lanes", "2", "--horizon", "40", "--checkpoint-every", "2", "--curve", "curve.json"]
    done = Launched("lab", "train", *options, *quick, folder=tmp_path / "console")
    assert done.wait() == 0, done.err
    assert "lab page: runs/lab/lab.html" in done.out
    curve = json.loads((tmp_path / "curve.json").read_text())
    assert [(one["label"], one["updates"], one["measure"]) for one in curve["curves"]] == [
        ("rlvr", [0, 2, 4], "exact"),
        ("imitation", [0, 2, 4], "exact"),
    ]
    assert curve["command"].startswith("forkpoint lab train --horizon 40 --checkpoint-every 2")
    assert str(tmp_path) not in json.dumps(curve)
    first = [one["steps"][0] for one in curve["curves"]]
    # Uniform on W = 3, K = 1, L = 2: (2 W - 1) m (K + 1 + K / L) + 1 with m = K L + K + 1.
    assert first == pytest.approx([5 * 4 * 2.5 + 1] * 2)
    assert "The four probabilities" in (tmp_path / "runs/lab/lab.html").read_text()
