"""Records that hold markup, scripts, control characters: the page shows them, and runs and fetches nothing.

Elements and attributes of a hostile page are compared with those of a harmless page of the same shape: whatever the
data says, it may only change text.  The pages hold no script at all, so no JSON in one can be closed.
"""

import importlib.util
import json
import tempfile
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from forkpoint.records import Finding, Group, Outcome, Problem, Severity, UpdateRecord, Verdict, frozen_array
from forkpoint.report import render_report, run_summary
from forkpoint.store import Evaluation, RunReader, evaluation_results

# The tests of the report import the same file by its name, if they run in this process at all.
_PLACE = Path(__file__).resolve().parents[1] / "report" / "report_examples.py"
_SPEC = importlib.util.spec_from_file_location("report_examples_of_fuzz", _PLACE)
examples = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(examples)

SHAPE = "harmless"
ATTACKS = [
    "<script>alert(1)</script>",
    "</script><script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "' onmouseover='alert(1)",
    '" autofocus onfocus="alert(1)',
    "</title></style></pre></textarea></svg><h1 id=owned>",
    "<svg onload=alert(1)><a xlink:href='javascript:alert(1)'>x</a></svg>",
    "<math><mtext><style><img src=x onerror=alert(1)>",
    "[x](javascript:alert(1)) javascript:alert(1)",
    "data:text/html,<script>alert(1)</script>",
    "<!-- --><![CDATA[ <?php ?> <!DOCTYPE x>",
    "{{ 7 * 7 }}{% for x in y %}{# #}${1}",
    "&lt;script&gt;&#60;b&#62;&amp;",
    "<iframe srcdoc='<b>'></iframe><base href=//evil><meta http-equiv=refresh content=0>",
    "<style>@import url(//evil)</style><link rel=stylesheet href=//evil>",
    "\x00\x01\x08\x0b\x1b[31m\x7f\x80\x9f",
    "\u202e\u2066\u2067\u2069\u200f\ufeff\u2028\u2029",
    "\ud800<b>\udfff",
    "\ufffe\uffff\U000e0001",
]
QUICK = settings(
    derandomize=True,
    deadline=None,
    max_examples=5,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


class Skeleton(HTMLParser):
    """Elements with their attributes, apart from the text."""

    def __init__(self, html):
        super().__init__()
        self.elements, self.text, self.odd = [], [], []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, tuple(sorted(name for name, _ in attributes))))
        for name, value in attributes:
            assert not name.startswith("on"), (tag, name)
            assert name != "style"
            if name in ("href", "src", "xlink:href"):
                assert value.startswith("#") or value == "data:,", value

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)

    def handle_data(self, data):
        self.text.append(data)

    def handle_comment(self, data):
        self.odd.append(data)

    def unknown_decl(self, data):
        self.odd.append(data)

    def handle_pi(self, data):
        self.odd.append(data)


def clean(text):
    """A text that a name column can hold: without lone surrogates, and not empty."""
    return text.encode("utf-8", "ignore").decode() or "-"


def page(folder, text):
    """The page of a run in which a text stands wherever a text can; of one shape whatever the text is."""
    name = clean(text)
    problem = Problem(task=name, key="f" * 16, prompt=({"role": text, "content": text},), answer=text)
    verdict = Verdict(outcome=Outcome.WRONG, correct=False, answer=text, reason=text)
    rollouts = tuple(sized_rollout(problem, text, stage=name, index=index) for index in range(2))
    final = Group(problem=problem, rollouts=(sized_rollout(problem, text, stage=name, purpose="final"),),
                  verdicts=(verdict,))  # fmt: skip
    with examples.new_run(folder, name=text) as writer:
        writer.set_meta("identity", {text: text})
        writer.begin_stage(name, kind=name, parent=name, updates_total=1)
        record = UpdateRecord(stage=name, update=1, metrics={name: 0.5, "reward": 0.0}, seconds=1.0, tokens=1)
        credits = [examples.plain_credit([sign * 0.5] * 4) for sign in (1, -1)]
        writer.record(record, [Group(problem=problem, rollouts=rollouts, verdicts=(verdict, verdict))], credits)
        evaluation = Evaluation(name="final", results=evaluation_results([final]), groups=[final])
        writer.record_evaluation(name, 1, evaluation, metrics={name: 1.0})
        found = Finding(audit=name, severity=Severity.WARNING, claim=text, value=0.5, evidence=(rollouts[0].id,))
        writer.record_findings([found], stage=name, update=1)
        writer.event(name, text, stage=name)
        writer.finish_stage(name, message=text)
    recipe = examples.RECIPE.replace('name = "paths"', f"name = {toml_text(name)}")
    (folder / "recipe.toml").write_text(recipe)
    tokenizer = folder / "stages" / "rl" / "step-000001" / "tokenizer.json"
    tokenizer.parent.mkdir(parents=True)
    tokenizer.write_text(json.dumps({"model": {"vocab": {f"{number}{text}": number for number in range(4)}}}))
    with RunReader(folder) as reader:
        html = render_report(reader)
        json.dumps(run_summary(reader), allow_nan=False)
    html.encode("utf-8")
    return html


def toml_text(text):
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def sized_rollout(problem, text, *, stage, index=0, purpose="train"):
    made = examples.rollout(problem, "abcd", stage=stage, update=1, index=index, purpose=purpose)
    fields = {name: getattr(made, name) for name in made.__slots__}
    return type(made)(**{**fields, "tokens": frozen_array([0, 1, 2, 3], np.int32), "text": text})


@pytest.fixture(scope="module")
def harmless(tmp_path_factory):
    return Skeleton(page(tmp_path_factory.mktemp("report") / "run", SHAPE)).elements


def check(html, harmless):
    found = Skeleton(html)
    assert found.elements == harmless
    assert found.odd == []
    assert {"script", "img", "iframe", "object", "form", "base"} & {tag for tag, _ in found.elements} == set()
    hidden = [character for character in html if character not in "\n\t" and ord(character) < 32]
    assert hidden == []
    assert not set("\x7f\u202a\u202e\u2066\u2028\ufeff") & set(html)
    return "".join(found.text)


@pytest.mark.parametrize("attack", ATTACKS)
def test_an_attack_is_text(attack, harmless, tmp_path):
    shown = check(page(tmp_path / "run", attack), harmless)
    if attack.isprintable():
        assert attack in shown


@QUICK
@given(parts=st.lists(st.sampled_from(ATTACKS) | st.text(max_size=20), min_size=1, max_size=5))
@example(parts=["<script>\x00" * 2_000])
def test_any_text_is_text(parts, harmless, tmp_path):
    html = page(Path(tempfile.mkdtemp(dir=tmp_path)) / "run", "x" + "".join(parts))
    check(html, harmless)


def test_the_check_itself_would_see_an_escape_that_is_missing(harmless, tmp_path, monkeypatch):
    monkeypatch.setattr("forkpoint.report.page.visible", lambda text: __import__("markupsafe").Markup(text))
    from forkpoint.report.page import _environment  # noqa: PLC0415

    _environment.cache_clear()
    with pytest.raises(AssertionError):
        check(page(tmp_path / "run", "<script>alert(1)</script>"), harmless)
    monkeypatch.undo()
    _environment.cache_clear()


def test_a_huge_text_does_not_make_a_huge_page(tmp_path, monkeypatch, harmless):
    monkeypatch.setitem(globals(), "clean", lambda text: SHAPE)
    html = page(tmp_path / "run", "<script>\x00\u202e" * 20_000)
    assert len(html) < 2_000_000
    check(html, harmless)
