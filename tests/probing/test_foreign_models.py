"""Model folders beside rollouts: what audits say is what they say of the same rollouts of a run of ours."""

import json
from copy import copy
from dataclasses import replace

import numpy as np
import pytest
from test_comparing import KEY, make_policy, make_subject, sampled

from forkpoint.audits.premature_confidence import premature_confidence
from forkpoint.audits.subject import Comparing, Editing, Subject
from forkpoint.audits.table import run_audits
from forkpoint.audits.template_collapse import cross_scores
from forkpoint.audits.token_edits import planned_cost, token_edits
from forkpoint.errors import ForkpointError
from forkpoint.integrations import models
from forkpoint.integrations.models import Folders, ForeignTask, model_probe
from forkpoint.integrations.rollouts import foreign_records
from forkpoint.policies.texts import UNREADABLE
from forkpoint.probe import Answerable
from forkpoint.probing.comparing import SubjectProbe
from forkpoint.records import Problem


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Two model folders, the subject of ours, and its rollouts as another trainer would write them."""
    folder = tmp_path_factory.mktemp("foreign")
    mine, theirs = make_policy(1), make_policy(2)
    for name, policy in (("model", mine), ("base", theirs)):
        policy.save(folder / name)
    groups = sampled(mine, count=6, each=3)
    write(folder / "rollouts.jsonl", groups)
    return folder, make_subject(mine, theirs, groups)


def write(path, groups, **changes):
    rows = [
        {
            "id": rollout.id, "prompt": group.problem.prompt, "completion": rollout.text, "correct": verdict.correct,
            "reference": group.problem.answer, "tokens": rollout.tokens.tolist(), **changes,
        }
        for group in groups
        for rollout, verdict in zip(group.rollouts, group.verdicts, strict=True)
    ]  # fmt: skip
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))


def probe_of(folder, name="rollouts.jsonl", **options):
    (records,) = foreign_records(folder / name)
    return model_probe(records, Folders(model=folder / "model", **options))


def test_the_rollouts_are_read_as_ours_are(written):
    folder, ours = written
    probe, left_out = probe_of(folder, base=folder / "base", answer_lead="#")
    assert left_out == 0
    assert isinstance(probe, Subject)
    assert isinstance(probe, Comparing)
    assert not isinstance(probe, Editing)
    mine = {rollout.id: rollout for group in ours.groups for rollout in group.rollouts}
    theirs = [rollout for group in probe.groups for rollout in group.rollouts]
    assert {rollout.id for rollout in theirs} == set(mine)
    for rollout in theirs:
        assert rollout.tokens.tolist() == mine[rollout.id].tokens.tolist()
        assert rollout.prompt_tokens.tolist() == mine[rollout.id].prompt_tokens.tolist()
    for found, expected in zip(probe.compared(theirs), ours.compared([mine[one.id] for one in theirs]), strict=True):
        np.testing.assert_array_equal(found.tops, expected.tops)
        np.testing.assert_array_equal(found.ranks, expected.ranks)
        np.testing.assert_allclose(found.divergences, expected.divergences, atol=1e-6)
    tables = [cross_scores(one.groups, one, KEY) for one in (probe, ours)]
    assert {name: float(row.max()) for name, row in zip(tables[0].ids, tables[0].table, strict=True)} == pytest.approx(
        {name: float(row.max()) for name, row in zip(tables[1].ids, tables[1].table, strict=True)}, abs=1e-4
    )


def test_findings_are_those_of_ours_but_for_what_must_be_drawn(written):
    folder, ours = written
    probe, _ = probe_of(folder, base=folder / "base", answer_lead="#")
    (records,) = foreign_records(folder / "rollouts.jsonl")
    found = [finding.value for finding in token_edits(records, probe)]
    assert found == pytest.approx([finding.value for finding in token_edits(records, ours)][: len(found)], abs=1e-6)
    assert len(found) == 4
    # Our task also knows where steps begin; without that the two are asked the same.
    stepless = type("Stepless", (SubjectProbe,), {"task": ForeignTask(answer_lead="#")})
    plain = copy(ours)
    plain.__class__ = stepless
    mine, theirs = (premature_confidence(records, one) for one in (plain, probe))
    assert len(theirs) > 1
    assert [finding.value for finding in theirs] == pytest.approx([finding.value for finding in mine], abs=1e-5)
    results = {result.audit: result for result in run_audits(records, probe=probe)}
    assert all(results[name].ran for name in ("token_edits", "premature_confidence", "template_collapse"))
    assert not any("Asked plainly" in finding.claim for finding in results["sabotage"].findings)
    assert not any("answer nothing" in finding.claim for finding in results["reward_hacking"].findings)


@pytest.mark.parametrize("tokens", [[99999, 3], [3, 3], [-1, 3]], ids=["beyond", "another text", "negative"])
def test_tokens_of_another_tokenizer_are_made_anew_from_the_text(written, tokens):
    folder, ours = written
    readable = [
        replace(group, rollouts=tuple(kept), verdicts=group.verdicts[: len(kept)])
        for group in ours.groups
        if (kept := [rollout for rollout in group.rollouts if UNREADABLE not in rollout.text])
    ]
    assert len(readable) > 2
    write(folder / "other.jsonl", readable, tokens=tokens)
    probe, _ = probe_of(folder, "other.jsonl")
    for group in probe.groups:
        for rollout in group.rollouts:
            assert ours.decode(rollout.tokens) == rollout.text
            assert rollout.tokens.tolist() == ours.encode(rollout.text).tolist()


def test_what_does_not_fit_is_left_out_and_counted(written):
    folder, ours = written
    long = ours.groups[0].rollouts[0]
    longer = replace(ours.groups[0], rollouts=(replace(long, id="long", text="1" * 90, tokens=ours.encode("1" * 90)),))
    longer = replace(longer, verdicts=ours.groups[0].verdicts[:1])
    write(folder / "long.jsonl", [*ours.groups, longer])
    probe, left_out = probe_of(folder, "long.jsonl")
    assert left_out == 1
    assert "long" not in {rollout.id for group in probe.groups for rollout in group.rollouts}
    write(folder / "all.jsonl", [longer])
    with pytest.raises(
        ForkpointError, match=r"none of the 1 rollouts: one of them has \d+ tokens, the model's context 64"
    ):
        probe_of(folder, "all.jsonl")


def test_mistakes_are_one_line(written, tmp_path):
    folder, ours = written
    with pytest.raises(ForkpointError, match="there is no model at"):
        probe_of(folder, base=tmp_path)
    write(folder / "snow.jsonl", ours.groups, completion="\N{SNOWMAN}", tokens=None)
    with pytest.raises(ForkpointError, match=r"none of the 18 rollouts: the character .* outside the model's alphabet"):
        probe_of(folder, "snow.jsonl")
    rows = [(folder / name).read_text() for name in ("rollouts.jsonl", "snow.jsonl")]
    (folder / "mixed.jsonl").write_text("".join(rows))
    assert probe_of(folder, "mixed.jsonl")[1] == 18
    probe, _ = probe_of(folder)
    with pytest.raises(ForkpointError, match="have no verifier"):
        probe.verify(ours.groups[0].problem, ours.groups[0].rollouts)
    (records,) = foreign_records(folder / "rollouts.jsonl")
    bare = replace(records, has=records.has - {"text"})
    with pytest.raises(ForkpointError, match="--model: the rollouts lack text"):
        model_probe(bare, Folders(model=folder / "model"))


def test_the_task_gives_the_reference_answer_once():
    task = ForeignTask(answer_lead="#")
    problem = Problem(task="t", key="a", prompt="p", answer="7")
    assert isinstance(task, Answerable)
    assert task.early_answer(problem, "1+6=7;") == "#7"
    assert task.early_answer(problem, "1+6=7;#") == ""
    assert ForeignTask().early_answer(problem, "") == ""
    assert task.early_answer(replace(problem, answer=""), "") == ""


def test_without_a_lead_or_references_nothing_is_said_of_the_right_answer(written):
    folder, ours = written
    write(folder / "unreferenced.jsonl", ours.groups, reference=None)
    for options in ({}, {"name": "unreferenced.jsonl", "answer_lead": "#"}):
        probe, _ = probe_of(folder, base=folder / "base", **options)
        (records,) = foreign_records(folder / "rollouts.jsonl")
        claims = [finding.claim for finding in premature_confidence(records, probe)]
        assert not [claim for claim in claims if "right answer" in claim or "lucky" in claim]


@pytest.mark.parametrize(("texts", "gap"), [(["a# 4", "b# 5", "c#6"], " "), (["a#4"], ""), (["none"], "")])
def test_the_right_answer_stands_where_answers_stand(texts, gap):
    assert models._gap(texts, "#") == gap
    task = ForeignTask(answer_lead="#", gap=gap)
    assert task.early_answer(Problem(task="t", key="a", prompt="p", answer="7"), "") == f"#{gap}7"


def test_texts_that_hold_answers_of_tools_are_left_out(written):
    folder, ours = written
    write(folder / "tools.jsonl", ours.groups, turns=1)
    with pytest.raises(ForkpointError, match="their texts hold answers of tools"):
        probe_of(folder, "tools.jsonl")


def test_a_base_with_another_tokenizer_is_refused(written, tmp_path):
    folder, _ = written
    make_policy(3, extra="abc").save(tmp_path / "odd")
    with pytest.raises(ForkpointError, match="have different tokenizers"):
        probe_of(folder, base=tmp_path / "odd")


class Templated:
    """Texts of a tokenizer with a chat template and one special token."""

    class tokenizer:
        chat_template, all_special_tokens = "yes", ["<|im_start|>"]

        @staticmethod
        def encode(text, add_special_tokens):
            assert not add_special_tokens
            return [len(text)]

    by_character = False

    @staticmethod
    def encode_prompt(text):
        return np.array([-1])


@pytest.mark.parametrize(
    ("prompt", "raw", "expected"), [("2+2?", False, -1), ("2+2?", True, 4), ("<|im_start|>user", False, 16)]
)
def test_a_prompt_goes_through_the_template_once(prompt, raw, expected):
    assert models._prompt(prompt, Templated, raw=raw).tolist() == [expected]


def test_reading_alone_costs_no_samples(written):
    groups = written[1].groups
    assert planned_cost(groups, causal=False)["sampled_tokens"] == 0
    total = sum(len(rollout.tokens) for group in groups for rollout in group.rollouts)
    assert planned_cost(groups, causal=False)["scored_tokens"] == 2 * total
