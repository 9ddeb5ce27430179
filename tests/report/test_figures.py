"""The figures and pages of the lab: their exact numbers, their files, and what is skipped."""

import json
import math
from html.parser import HTMLParser

import numpy as np
import pytest

from forkpoint.errors import ForkpointError, ModelError, StoreError, TaskError
from forkpoint.policies.tabular import from_theory
from forkpoint.records import UpdateRecord
from forkpoint.report import figures, lab, lab_values
from forkpoint.store import RunWriter, checkpoint_path, save_checkpoint, stage_folder
from forkpoint.theory.classes import golden_policy, optimal_policy, uniform_policy
from forkpoint.theory.graphs import PathStar
from forkpoint.theory.solving import hitting_time
from forkpoint.theory.tables import spread_policy

SMALL = PathStar.regular(branches=3, depth=2, lanes=2)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """Quick figures of a small graph, drawn once."""
    pytest.importorskip("matplotlib", reason="the extra `figures` is not installed")
    folder = tmp_path_factory.mktemp("figures")
    lines = []
    written, skipped = figures.draw_figures(folder, graph=SMALL, only=["figure-3", "fork", "hit-within"],
                                            progress=lines.append)  # fmt: skip
    return folder, written, skipped, lines


def test_figures_are_files_of_both_kinds(drawn):
    folder, written, skipped, lines = drawn
    assert {path.name for path in written} == {
        *(f"{name}.{kind}" for name in ("figure-3", "fork", "hit-within") for kind in ("svg", "png")),
        "values.json", "index.html",
    }  # fmt: skip
    assert (folder / "figure-3.png").read_bytes().startswith(b"\x89PNG")
    assert (folder / "figure-3.svg").read_text().rstrip().endswith("</svg>")
    assert skipped == {}
    assert [line.split(":")[0] for line in lines] == ["1/3 figure-3", "2/3 hit-within", "3/3 fork"]


def test_the_numbers_drawn_are_written_down(drawn):
    found = json.loads((drawn[0] / "values.json").read_text())
    curve = found["figure-3"]
    assert curve["graph"] == {"branches": 3, "depths": [2, 2, 2], "lanes": [2, 2, 2]}
    assert math.exp(curve["log_hitting_time"][0]) == pytest.approx(curve["lines"]["uniform"])
    assert curve["lines"]["optimal"] == 4 * 6 + 6 - 4
    assert curve["lines"]["optimal, fork trained"] == 2 * 5 + 6
    assert found["fork"]["hitting_time"]["trained"][-1] == pytest.approx(16, rel=1e-3)
    assert found["fork"]["hitting_time"]["frozen"][-1] == pytest.approx(26, rel=1e-3)


def test_the_same_numbers_give_the_same_bytes(drawn, tmp_path):
    figures.draw_figures(tmp_path, graph=SMALL, only=["figure-3"])
    for kind in ("svg", "png"):
        assert (tmp_path / f"figure-3.{kind}").read_bytes() == (drawn[0] / f"figure-3.{kind}").read_bytes()


def test_every_figure_can_be_drawn(tmp_path, monkeypatch):
    """With small numbers of the same form as the real ones."""
    pytest.importorskip("matplotlib")
    curve = {
        **lab.curve_json([course([3338.4, 144.0])], lab_values.SMALL, about="a test", command="none"),
        "lines": lab_values.theory_lines(lab_values.SMALL),
    }
    small = {
        "figure-3": lab_values.sign_curve(SMALL, iterations=20),
        "figure-4": lab_values.sign_curve(PathStar.regular(branches=2, depth=1, lanes=2), iterations=20),
        "figure-5-left": lab_values.imitation_by_depth(deepest=2),
        "figure-5-right": lab_values.supervised_sweep(SMALL, draws=3),
        "figure-6": curve,
        "figure-7": curve,
        "figure-8": {**lab_values.sign_curve(lab_values.UNEQUAL, iterations=20), "limit": 85.07},
        "hit-within": lab_values.hit_curves(SMALL, points=5),
        "confused-middle": {"graphs": [lab_values.confused_depths(SMALL, iterations=3)]},
        "confused-where": lab_values.confused_map(widest=4, deepest=4),
        "search": lab_values.search_by_lanes(branches=2, depth=1, walkers=20),
        "distillation": lab_values.imitation_curves(SMALL, points=4),
        "fork": lab_values.fork_curves(SMALL, iterations=4),
    }
    assert set(small) == {spec.name for spec in figures.FIGURES}
    monkeypatch.setattr(figures, "_numbers", lambda spec, graph, draws: small[spec.name])
    written, skipped = figures.draw_figures(tmp_path)
    assert (len(written), skipped) == (2 * len(small) + 2, {})
    page = (tmp_path / "index.html").read_text()
    assert all(f'src="{name}.svg"' in page for name in small)


def test_a_training_that_is_not_checked_in_is_skipped_loudly(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(figures, "_numbers", lambda spec, graph, draws: None)
    lines = []
    written, skipped = figures.draw_figures(tmp_path, only=["figure-6"], progress=lines.append)
    assert "forkpoint lab train recipes/lab-rl.toml --curve" in skipped["figure-6"]
    assert "SKIPPED" in lines[0]
    assert [path.name for path in written] == ["values.json", "index.html"]
    assert "Not drawn" in (tmp_path / "index.html").read_text()
    assert lab_values.stored_curve("no-such-training") is None


def test_mistakes(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    with pytest.raises(ForkpointError, match="Did you mean 'figure-3'"):
        figures.draw_figures(tmp_path, only=["figur-3"])
    with pytest.raises(ForkpointError, match="of your own there are: figure-3"):
        figures.draw_figures(tmp_path, graph=SMALL, only=["search"])
    large = PathStar.regular(branches=100, depth=10, lanes=10)
    with pytest.raises(TaskError, match="too many"):
        lab_values.fork_curves(large)
    assert "too many" in figures.draw_figures(tmp_path, graph=large, only=["fork"])[1]["fork"]
    monkeypatch.setattr(figures.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ForkpointError, match=r"pip install 'forkpoint\[figures\]'"):
        figures.draw_figures(tmp_path)


def test_the_heterogeneous_limit_lies_below_the_all_ones_policy():
    """Turning back on the first edge of a deep branch draws the branch anew; at the limit c is stationary there."""
    found = lab_values.unequal_curve(PathStar(depths=(6, 5, 4, 3, 3), lanes=(5,) * 5))
    assert found["lines"]["optimal"] == pytest.approx(85.6)
    assert found["lines"]["paper"] == 84
    assert round(found["limit"], 4) == 85.0725
    assert [round(c, 3) for c in found["entry_probabilities"]] == [0.833, 0.913, 1, 1]
    # By hand: in a branch of depth k a wrong visit costs 4 k + 2 steps with chance c, else 2; a hit needs c too.
    ks, cs = (6, 5, 4, 3, 3), (*found["entry_probabilities"], 1.0)
    steps = 0.0
    for x in range(5):
        wasted = sum(c * (4 * k + 2) + (1 - c) * 2 for i, (k, c) in enumerate(zip(ks, cs, strict=True)) if i != x)
        steps += (1 + (wasted + (1 - cs[x]) * 2) / cs[x] + 2 * ks[x] + 1) / 5
    assert steps == pytest.approx(found["limit"], abs=1e-4)


def test_the_confused_middle_where_it_is_and_where_not():
    counts = lab_values.confused_map(widest=15, deepest=15)
    table = np.array(counts["negative_depths"])
    assert table[counts["branches"].index(3), counts["depths"].index(15)] == 13
    assert table[counts["branches"].index(15), counts["depths"].index(15)] == 0
    assert lab_values.confused_depths(lab_values.HEADLINE, iterations=1)["negative_depths"] == {"b": [], "d": []}


def test_search_values():
    found = lab_values.search_by_lanes(walkers=2, most=20)
    assert set(found["optimal"]) == {466}
    assert np.diff(found["golden"]) == pytest.approx(np.full(19, 105))
    assert [len(found["simulated"][name]) for name in ("optimal", "golden")] == [4, 4]


def test_distillation_restores_what_imitation_of_paths_ruins():
    found = lab_values.imitation_curves()
    assert math.exp(found["log_hitting_time"]["distillation"][-1]) <= 1.001 * 144
    assert math.exp(found["log_hitting_time"]["golden"][-1]) >= 0.99 * 2966044


def test_stages_that_follow_one_another_are_one_curve() -> None:
    early = lab.StageCourse(stage="early", slot=0, updates=(0, 10, 20), steps=(9.0, 8.0, 7.0), exact=True)
    late = lab.StageCourse(stage="late", slot=1, updates=(0, 5), steps=(7.0, 6.0), exact=True, parent="early")
    joined = lab.chained_courses([early, late])
    assert [(c.stage, c.updates, c.steps) for c in joined] == [("late", (0, 10, 20, 25), (9.0, 8.0, 7.0, 6.0))]
    other = lab.StageCourse(stage="other", slot=2, updates=(0, 5), steps=(7.0, 5.0), exact=True, parent="early")
    assert [c.stage for c in lab.chained_courses([early, late, other])] == ["early", "late", "other"]


def course(steps, probabilities=()):
    updates = tuple(range(0, 10 * len(steps), 10))
    return lab.StageCourse(stage="rl", slot=0, updates=updates, steps=tuple(steps), exact=True,
                           probabilities=probabilities)  # fmt: skip


class Tags(HTMLParser):
    """Whether a page is well formed, and the texts in it."""

    def __init__(self):
        super().__init__()
        self.open, self.texts = [], []

    def handle_starttag(self, tag, attributes):
        if tag not in ("meta", "link", "br", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data.strip())


def make_run(folder, policies, *, architecture="table"):
    """A run whose stage `rl` has these policies as checkpoints 10, 20, ... and a first stage of another kind."""
    text = (
        f'name = "<run>"\n[policy]\nkind = "tabular"\n[task]\nname = "lab"\nbranches = 3\ndepth = 2\nlanes = 2\n{STAGE}'
    )
    folder.mkdir()
    (folder / "recipe.toml").write_text(text.replace("<run>", "r"))
    with RunWriter.create(folder, name="<run>", identity={}) as writer:
        writer.add_stage("rl", kind="rl", parent=None, updates_total=20)
        writer.add_stage("after", kind="rl", parent="rl", updates_total=20)
        for update, length in ((1, 250.0), (2, 240.0)):
            metrics = {"length": length}
            writer.record_update(UpdateRecord(stage="rl", update=update, metrics=metrics, seconds=1.0, tokens=1))
    for index, policy in enumerate(policies, 1):
        model = from_theory(spread_policy(policy), architecture=architecture)
        save_checkpoint(checkpoint_path(stage_folder(folder, "rl"), 10 * index), model.save, state={})
    save_checkpoint(checkpoint_path(stage_folder(folder, "after"), 10), model.save, state={})
    return folder


STAGE = '[[stage]]\nname = "rl"\nkind = "rl"\nupdates = 20\nmax_new_tokens = 9\n'


def test_the_page_of_a_run_holds_exact_values(tmp_path):
    run = make_run(tmp_path / "run", [golden_policy(SMALL), optimal_policy(SMALL)])
    with lab.RunReader(run) as reader:
        first, after = lab.stage_courses(reader)
    assert first.updates == (0, 10, 20)
    expected = [hitting_time(make(SMALL)).steps for make in (uniform_policy, golden_policy, optimal_policy)]
    assert first.steps == pytest.approx(expected, rel=1e-5)
    assert (after.updates, after.steps) == ((0, 10), pytest.approx((26, 26), rel=1e-5))
    a, b, c, d = first.probabilities[1]
    assert (a, c) == (pytest.approx(np.ones(2)), pytest.approx(np.ones(2)))
    assert (b, d) == (pytest.approx(np.full(2, 2 / 3)), pytest.approx(np.full(2, 1 / 3)))
    page = lab.write_lab_page(run).read_text()
    tags = Tags()
    tags.feed(page)
    assert tags.open == []
    assert "1.000 \N{MULTIPLICATION SIGN}" in tags.texts
    assert "<run>" not in page
    assert "update 20, depth 2: 1.0000" in tags.texts


def test_a_transformer_is_shown_by_its_sampled_lengths(tmp_path):
    run = make_run(tmp_path / "run", [uniform_policy(SMALL)], architecture="transformer")
    with lab.RunReader(run) as reader:
        courses = lab.stage_courses(reader)
    # The prompt is the first edge.
    assert [(each.exact, each.steps, each.updates) for each in courses] == [
        (False, (251.0, 241.0), (1, 2)),
        (False, (), ()),
    ]
    assert courses[0].probabilities == ()
    assert "sampled" in lab.write_lab_page(run).read_text()
    with pytest.raises(ModelError, match="no table"):
        lab.read_checkpoint(checkpoint_path(stage_folder(run, "rl"), 10))


def test_a_run_without_a_tabular_policy_has_no_page(tmp_path):
    (tmp_path / "run").mkdir()
    with RunWriter.create(tmp_path / "run", name="r", identity={}) as writer:
        writer.add_stage("base", kind="pretrain", parent=None, updates_total=1)
    with pytest.raises(StoreError, match="no checkpoint of a tabular policy"):
        lab.write_lab_page(tmp_path / "run")
    (tmp_path / "tabular.json").write_text('{"architecture": "table"}')
    with pytest.raises(ModelError, match="another kind"):
        lab.read_checkpoint(tmp_path)
    (tmp_path / "tabular.json").write_text('{"architecture": "table", "depths": [1], "lanes": [1]}')
    with pytest.raises(ModelError, match="no tabular policy"):
        lab.read_checkpoint(tmp_path)


def test_many_checkpoints_are_thinned(tmp_path):
    folders = [tmp_path / f"step-{index:06d}" for index in range(1000)]
    kept = lab._thinned(folders)
    assert (len(kept), kept[0], kept[-1]) == (lab.MAX_COLUMNS, folders[0], folders[-1])


def test_charts_of_one_point_and_of_none():
    lines = lab_values.theory_lines(SMALL)
    assert "326" not in lab.time_chart([], lines, "frozen")
    assert "optimal, fork trained: 16" in lab.time_chart([course([100.0])], lines, "trained")
    one = course([100.0], (np.full((4, 1), 0.25),))
    assert "update 0, depth 1: 0.2500" in lab.heat_map(one, 3)
