import base64
import hashlib
import json
import re
import subprocess
import sys
from html.parser import HTMLParser

import numpy as np
import pytest
import report_examples as examples

from forkpoint.config import parse_recipe
from forkpoint.errors import StoreError
from forkpoint.records import Group, Outcome, Problem, UpdateRecord, Verdict, frozen_array
from forkpoint.report import render_report, run_summary, write_report
from forkpoint.report.rollouts import MAX_TOKENS, pick_examples, shade, token_views
from forkpoint.report.summary import stage_data
from forkpoint.store import Evaluation, RunReader, StageStatus, evaluation_results

VOID = {"meta", "link", "br"}
HOSTILE = (
    '<script>alert(1)</script><img src=x onerror=alert(2)>"\' onmouseover="x" javascript:alert(3) '
    "{{ 7 * 7 }} {% raw %} &amp; ]]> --> </pre></style> \x00 \u202eevil\u2066 \ud800"
)


class Page(HTMLParser):
    """Checks nesting, collects ids, links, tags and the text."""

    def __init__(self, html):
        super().__init__()
        self.ids, self.links, self.tags, self.attributes, self.text, self.stack = [], [], [], [], [], []
        self.feed(html)
        self.close()
        assert self.stack == []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += [name for name, _ in attributes]
        values = dict(attributes)
        self.ids += [values["id"]] if "id" in values else []
        self.links += [values["href"]] if "href" in values else []
        if tag not in VOID:
            self.stack.append(tag)

    def handle_endtag(self, tag):
        assert self.stack.pop() == tag, tag

    def handle_data(self, data):
        self.text.append(data)

    @property
    def shown(self):
        return re.sub(r"\s+", " ", " ".join(self.text))


def page_of(*folders):
    readers = [RunReader(folder) for folder in folders]
    try:
        html = render_report(readers if len(readers) > 1 else readers[0])
    finally:
        for reader in readers:
            reader.close()
    html.encode("utf-8")
    page = Page(html)
    assert "script" not in page.tags
    assert not {"img", "iframe", "object", "form", "base"} & set(page.tags)
    assert not [name for name in page.attributes if name.startswith("on") or name == "style"]
    assert len(page.ids) == len(set(page.ids))
    for link in page.links:
        assert link == "data:," or link.removeprefix("#") in page.ids, link
    return page, html


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return examples.small_run(tmp_path_factory.mktemp("report") / "backtrack")


def test_the_page_has_every_part(run):
    page, html = page_of(run)
    for heading in ("The arms", "Learning curves", "How long the final rollouts are", "Rollouts and their credit"):
        assert heading in page.text
    for words in ("backtrack", "done", "paths (branches = 3, depth = 3)", "seed", "torch", "2.13.0", "x86_64"):
        assert words in page.shown
    for chart in ("Solve rate on held-out problems", "Reward", "Entropy", "nats per token", "tokens, mean"):
        assert chart in page.shown
    assert "forkpoint report runs/backtrack" in page.shown
    assert page.tags.count("svg") == 3 + 6 + 2
    assert "began at its first update" in page.shown
    # Nothing is fetched.
    assert "://" not in html


def test_the_numbers_of_the_page_are_those_of_the_summary(run):
    page, _ = page_of(run)
    with RunReader(run) as reader:
        summary = run_summary(reader)
    json.dumps(summary, allow_nan=False)
    for arm in summary["arms"]:
        assert f"{100 * arm['solve_rate']:.1f} %" in page.shown
        assert f"{100 * arm['interval'][0]:.1f} to {100 * arm['interval'][1]:.1f}" in page.shown
        assert f"{arm['moves']:.1f} moves" in page.shown
    assert (summary["status"], summary["seed"], summary["name"]) == ("done", 0, "backtrack")
    assert [stage["name"] for stage in summary["stages"]] == ["base", "rlvr"]
    assert summary["against_parent"]["rlvr"]["problems"] == 40
    metrics = {curve["metric"]: curve for curve in summary["curves"]}
    assert [line["stage"] for line in metrics["evaluation_correct"]["lines"]] == ["base", "rlvr"]
    assert "loss" not in metrics
    for lengths in summary["lengths"]:
        assert sum(lengths["solved"]) + sum(lengths["unsolved"]) == pytest.approx(1)


def test_every_rollout_of_three_groups_is_shown_with_its_credit(run):
    page, html = page_of(run)
    groups = [name for name in page.ids if re.fullmatch(r"group-1-\d+", name)]
    assert groups == ["group-1-1", "group-1-10", "group-1-20"]
    assert len([name for name in page.ids if re.fullmatch(r"group-1-\d+-\d+", name)]) == 3 * 16
    assert re.search(r'<span class="[np][1-5]" title="“[a-z]” advantage [+-]0\.\d{3}, log-probability -\d', html)
    assert "✓ correct" in page.shown
    assert "✗ wrong" in page.shown
    assert "reached the goal" in page.shown


def test_numbers_lead_to_rollouts(run):
    page, _ = page_of(run)
    assert {"#final-0-0", "#final-0-1", "#group-1-1"} <= set(page.links)


def test_the_policy_of_the_page_allows_its_own_style_only(run):
    _, html = page_of(run)
    style = re.search(r"<style>(.*?)</style>", html, re.DOTALL)[1]
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert f"default-src 'none'; style-src 'sha256-{digest}'" in html


def test_the_page_is_a_pure_function_of_the_records(run):
    assert page_of(run)[1] == page_of(run)[1]


def test_the_report_is_written_into_the_run(tmp_path):
    folder = examples.small_run(tmp_path / "run")
    path = write_report(folder)
    assert path == folder / "report.html"
    assert path.read_text(encoding="utf-8") == page_of(folder)[1]
    with pytest.raises(StoreError, match="holds no run"):
        write_report(tmp_path)


def test_several_runs_share_a_page(run, tmp_path):
    page, _ = page_of(run, examples.small_run(tmp_path / "other", name="other"))
    assert {"run1-arms", "run2-arms"} <= set(page.ids)
    assert "other" in page.shown


def test_a_run_that_has_not_begun(tmp_path):
    examples.new_run(tmp_path).close()
    (tmp_path / "recipe.toml").unlink()
    page, _ = page_of(tmp_path)
    assert "This run has not begun: it has no stage yet." in page.shown
    assert "svg" not in page.tags


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (StageStatus.RUNNING, "This run is in progress in rlvr, or was killed there; 1 of 2 stages are done."),
        (StageStatus.STOPPED, "This run was stopped in rlvr; 1 of 2 stages are done."),
        (StageStatus.FAILED, "This run failed in rlvr; 1 of 2 stages are done."),
    ],
)
def test_an_unfinished_run_is_shown_as_far_as_it_came(tmp_path, status, words):
    held_out = examples.problems(8)
    with examples.new_run(tmp_path) as writer:
        examples.write_stage(
            writer, "base", kind="pretrain", parent=None, skills=(0.0, 0.0), updates=0, held_out=held_out
        )
        examples.write_stage(
            writer, "rlvr", kind="rl", parent="base", skills=(0.2, 0.4), updates=12, held_out=held_out, final=False
        )
        if status is not StageStatus.RUNNING:
            writer.finish_stage("rlvr", status=status, message="why it ended")
        writer.rewind("rlvr", 10)
        if status is not StageStatus.RUNNING:
            writer.finish_stage("rlvr", status=status, message="why it ended")
        writer.event("damaged", "step-000011 is incomplete", stage="rlvr")
    page, _ = page_of(tmp_path)
    assert words in page.shown
    assert "resumed after update 10" in page.shown
    assert "step-000011 is incomplete" in page.shown
    assert page.ids.count("group-1-10") == 1


def test_one_stage_without_rollouts_or_recipe(tmp_path):
    with examples.new_run(tmp_path) as writer:
        writer.begin_stage("only", kind="sft", updates_total=2)
        for number, loss in ((1, 2.0), (2, float("nan"))):
            writer.record(UpdateRecord(stage="only", update=number, metrics={"loss": loss}, seconds=1.0, tokens=0))
        writer.finish_stage("only")
    (tmp_path / "recipe.toml").write_text("not = [toml")
    page, _ = page_of(tmp_path)
    assert "No stage is finished and evaluated yet" in page.shown
    assert "values left out because they are not finite: 1" in page.shown
    with RunReader(tmp_path) as reader:
        assert run_summary(reader)["recipe"] is None


def hostile_run(folder):
    # Names are plain text columns; everything that a model or a verifier writes may hold lone surrogates as well.
    stage = HOSTILE.replace("\ud800", "")
    problem = Problem(task=stage, key="f" * 16, prompt=({"role": HOSTILE, "content": HOSTILE},), answer=HOSTILE)
    verdict = Verdict(outcome=Outcome.WRONG, correct=False, answer=HOSTILE, reason=HOSTILE)
    rollouts = tuple(examples.rollout(problem, HOSTILE, stage=stage, update=1, index=index) for index in range(2))
    last = (examples.rollout(problem, HOSTILE, stage=stage, update=1, purpose="final"),)
    final = Group(problem=problem, rollouts=last, verdicts=(verdict,))
    with examples.new_run(folder, name=HOSTILE) as writer:
        writer.set_meta("identity", {HOSTILE: HOSTILE})
        writer.begin_stage(stage, kind=stage, parent=stage, updates_total=1)
        record = UpdateRecord(stage=stage, update=1, metrics={"reward": 0.0}, seconds=1.0, tokens=1)
        credits = [examples.plain_credit([sign * 0.5] * len(HOSTILE)) for sign in (1, -1)]
        writer.record(record, [Group(problem=problem, rollouts=rollouts, verdicts=(verdict, verdict))], credits)
        evaluation = Evaluation(name="final", results=evaluation_results([final]), groups=[final])
        writer.record_evaluation(stage, 1, evaluation)
        writer.event(stage, HOSTILE, stage=stage)
        writer.finish_stage(stage, message=HOSTILE)
    recipe = examples.RECIPE.replace('name = "paths"', f"name = {json.dumps(stage)}")
    (folder / "recipe.toml").write_text(recipe)
    return folder


def test_hostile_text_is_shown_as_text(tmp_path):
    page, html = page_of(hostile_run(tmp_path))
    assert "<script>alert(1)</script><img src=x onerror=alert(2)>" in page.shown
    assert "{{ 7 * 7 }}" in page.shown
    assert "\\x00 \\u202eevil\\u2066 \\ud800" in page.shown
    assert not re.search("[\x00\u202e\u2066\ud800]", html)
    write_report(tmp_path)


def test_hostile_text_token_by_token(tmp_path):
    folder = hostile_run(tmp_path)
    checkpoint = folder / "stages" / "rl" / "step-000001"
    checkpoint.mkdir(parents=True)
    (checkpoint / "tokenizer.json").write_text(
        json.dumps({"model": {"vocab": {HOSTILE + str(place): place for place in range(100)}}})
    )
    page, _ = page_of(folder)
    assert "<script>alert(1)</script>" in page.shown


def rollout_of(tokens, mask, text="abcdef"):
    problem = Problem(task="t", key="a", prompt="p", answer="1")
    plain = examples.rollout(problem, text[: len(tokens)] or text, stage="s", update=1)
    return type(plain)(
        **{
            **{name: getattr(plain, name) for name in plain.__slots__},
            "tokens": frozen_array(tokens, np.int32),
            "loss_mask": frozen_array(mask, np.bool_),
            "behavior_logprobs": frozen_array([-0.5] * len(tokens), np.float32),
            "text": text,
        }
    )


def test_observations_are_one_grey_piece():
    rollout = rollout_of([0, 1, 2, 3], [True, False, False, True])
    views = token_views(rollout, dict(enumerate("wxyz")), examples.plain_credit([1.0, 0.0, 0.0, -0.2]), 1.0)
    assert [(view.text, view.shade) for view in views] == [("w", "p5"), ("xy", "o"), ("z", "n1")]
    assert views[0].title == "“w” advantage +1.000, log-probability -0.500 nats"
    assert "not trained on" in views[1].title


def test_unknown_tokens_split_the_text_evenly():
    views = token_views(rollout_of([0, 1, 7], [True] * 3), {0: "w", 1: "x"}, None, 0.0)
    assert [(view.text, view.shade) for view in views] == [("ab", ""), ("cd", ""), ("ef", "")]


def test_a_line_break_is_visible_and_a_long_rollout_is_cut():
    assert token_views(rollout_of([0], [True]), {0: "a\n"}, None, 0.0)[0].text == "a↵\n"
    long = rollout_of([0] * (MAX_TOKENS + 5), [True] * (MAX_TOKENS + 5))
    assert len(token_views(long, {0: "a"}, None, 0.0)) == MAX_TOKENS


@pytest.mark.parametrize(
    ("advantage", "scale", "expected"),
    [
        (0.5, 1.0, "p2"),
        (-0.5, 1.0, "n2"),
        (2.0, 1.0, "p5"),
        (1e-9, 1.0, "p1"),
        (float("nan"), 1.0, "z"),
        (1.0, 0.0, "z"),
    ],
)
def test_shades(advantage, scale, expected):
    assert shade(advantage, scale) == expected


def test_examples_are_chosen_where_arms_differ():
    solved = {"all": 4, "none": 0, "half": 2, "one": 1, "three": 3}
    assert pick_examples(solved, dict.fromkeys(solved, 4)) == ["half", "one", "all", "none"]


def test_the_package_never_imports_torch(run):
    code = (
        "import sys; from pathlib import Path; from forkpoint.report import render_report; "
        "from forkpoint.store import RunReader; render_report(RunReader(Path(sys.argv[1]))); "
        "assert not {'torch', 'transformers', 'scipy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, str(run)], check=True, timeout=120)


def test_what_a_stage_learns_from_is_said_in_full():
    head = '[policy]\nkind = "tiny"\n[task]\nname = "paths"\n[evaluation]\nmax_new_tokens = 8\nproblems = 2\n'
    texts = '[[stage]]\nname = "a"\nkind = "pretrain"\nupdates = 0\n[[stage]]\nname = "b"\nkind = "sft"\nupdates = 1\n'
    more = '[stage.review]\nedit = "prune"\n[stage.mix]\ndata = "golden"\nshare = 0.25\n'
    recipe = parse_recipe(f'name = "x"\n{head}{texts}data = "edits:a"\n{more}')
    assert stage_data(recipe, "a") == "nothing"
    assert stage_data(recipe, "b") == "edits:a (prune), 25% golden"
    assert stage_data(recipe, "c") == stage_data(None, "b") == ""
