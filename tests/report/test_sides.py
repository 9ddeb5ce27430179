"""One rollout under every rule: shades of each row by its own scale, blocks that fit, hostile text escaped."""

import pytest

from forkpoint.report.meter import render_meter
from forkpoint.report.rollouts import MAX_TOKENS
from forkpoint.report.sides import BLOCK_TOKENS, side_views

MINUS = "\N{MINUS SIGN}"
UNKNOWN = {"value": None, "interval": [None, None]}


def example(**changes):
    made = {
        "prompt": "1+1>", "answer": "2", "rollout": "r0", "outcome": "correct", "correct": True,
        "group": {"solved": 1, "size": 2}, "tokens": ["a", "b", "c", "d"], "trained": [True, True, True, True],
        "keys": [1], "truth": [0.1, 0.4, None, -0.4], "errors": [0.06, 0.1, None, 0.0],
        "rules": [
            {"rule": "flat", "advantages": [10.0, 10.0, 10.0, 10.0]},
            {"rule": "sharp", "advantages": [0.0, 0.02, -0.01, 0.0]},
        ],
    }  # fmt: skip
    return {**made, **changes}


def document(*examples):
    rule = {"rule": "flat", **dict.fromkeys(("straw", "pearson", "spearman", "auroc"), UNKNOWN), "gradient": None,
            "cost": {"relative": 1.0, "scored_tokens": 0.0, "verifier_calls": 0.0, "forwards": 0.0}}  # fmt: skip
    return {
        "task": "keychain", "variant": "A", "policy": "a table", "tier_text": "drawn", "continuations": 32,
        "rollouts": 2, "solved": 0.5, "places": 3, "reliability": 0.5, "truth_cost": {"sampled_tokens": 9.0},
        "labels": "keys", "threshold": None, "gradient": {"batches": 0}, "rules": [rule], "examples": list(examples),
    }  # fmt: skip


def long(count, text="x", **changes):
    return example(
        tokens=[text] * count, trained=[True] * count, keys=None, truth=[None] * count, errors=[None] * count,
        rules=[{"rule": "flat", "advantages": [1.0] * count}], **changes,
    )  # fmt: skip


def rows(view):
    return {row.name: row for row in view.blocks[0].rows}


def test_each_row_is_shaded_by_its_own_largest_advantage():
    (view,) = side_views([example()])
    found = rows(view)
    assert [cell.shade for cell in found["flat"].cells] == ["p5"] * 4
    assert [cell.shade for cell in found["sharp"].cells] == ["z", "p5", "n2", "z"]
    assert [cell.mark for cell in found["sharp"].cells] == ["·", "+", MINUS, "·"]
    assert (found["flat"].scale, found["sharp"].scale) == ("±10", "±0.02")
    assert found["sharp"].cells[1].title == "token 1: b: +0.0200 by sharp"


def test_the_truth_says_what_it_does_not_know():
    (view,) = side_views([example()])
    truth = rows(view)["truth"]
    # 0.1 lies within two standard errors of 0.06, 0.4 beyond two of 0.1; the last one is exact.
    assert [cell.mark for cell in truth.cells] == ["≈", "+", "", MINUS]
    assert [cell.shade for cell in truth.cells] == ["z", "p5", "u", "n5"]
    assert "standard error 0.1000" in truth.cells[1].title
    assert "standard error" not in truth.cells[3].title
    assert truth.is_truth
    assert view.blocks[0].rows[-1] is truth


def test_keys_are_marked_and_what_is_not_trained_is_grey():
    (view,) = side_views([example(trained=[True, True, False, True])])
    assert [head.key for head in view.blocks[0].heads] == [False, True, False, False]
    assert rows(view)["flat"].cells[2].shade == "o"
    assert side_views([example(keys=None)])[0].keys is False


def test_long_rollouts_are_wrapped_and_cut():
    (view,) = side_views([long(128)])
    assert [len(block.heads) for block in view.blocks] == [BLOCK_TOKENS] * 4
    assert [(block.first, block.last) for block in view.blocks] == [(0, 31), (32, 63), (64, 95), (96, 127)]
    assert all(len(row.cells) == 32 for block in view.blocks for row in block.rows)
    (view,) = side_views([long(MAX_TOKENS + 7)])
    assert sum(len(block.heads) for block in view.blocks) == MAX_TOKENS
    assert view.hidden == 7
    (view,) = side_views([long(40, " counterfactual")])
    assert max(sum(len(head.text) for head in block.heads) for block in view.blocks) <= 80


def test_a_scale_is_that_of_the_whole_rollout():
    advantages = [1.0] * 40 + [4.0] * 8
    (view,) = side_views([{**long(48), "rules": [{"rule": "late", "advantages": advantages}]}])
    assert view.blocks[0].rows[0].cells[0].shade == "p1"
    assert {block.rows[0].scale for block in view.blocks} == {"±4"}


def test_text_of_a_policy_cannot_leave_its_cell():
    hostile = "</th><script>alert(1)</script>"
    made = example(
        prompt=hostile, answer='"><img src=x>', tokens=["<b>", "\u202e", "\n", '" onmouseover="x'],
        rules=[{"rule": "<i>rule</i>", "advantages": [1.0, None, 0.0, -1.0]}],
    )  # fmt: skip
    page = render_meter(document(made))
    for bad in ("<script", "<img", "<i>rule", "\u202e", 'onmouseover="'):
        assert bad not in page
    assert "&lt;b&gt;" in page
    assert "no finite advantage" in page
    assert "One rollout, rule by rule" in page


@pytest.mark.parametrize("examples", [(), None])
def test_a_document_without_examples_has_no_such_section(examples):
    made = document()
    if examples is None:
        del made["examples"]
    assert "rule by rule" not in render_meter(made)


def test_a_rollout_without_tokens_is_shown_as_such():
    assert "has no tokens" in render_meter(document(long(0)))
