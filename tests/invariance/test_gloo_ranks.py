"""Data-parallel ranks: real gloo processes against one process, and shares of an update."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from invariance_cases import AGGREGATIONS, LIMITS, LOSSES, frozen_rows, objective_of, policy_of, rows_of
from invariance_ledger import module_ledger  # noqa: F401

from forkpoint.training import ranks as ranks_module
from forkpoint.training.ranks import Alone, accumulate_share, add_gradients, combined, shares

WORKER = Path(__file__).with_name("gloo_worker.py")


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gloo")
    done = subprocess.run(
        [sys.executable, str(WORKER), str(folder)], capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((folder / "found.json").read_text())


@pytest.mark.parametrize("size", ["1", "2", "3"])
def test_ranks_do_not_change_the_gradient(size, found, ledger):
    mine = found[size]
    for dtype, limit in LIMITS.items():
        assert len(mine[dtype]) == len(LOSSES) * len(AGGREGATIONS) + 1
        for number, difference in enumerate(mine[dtype]):
            ledger.add(f"gloo {dtype}", (size, number), difference)
            assert difference <= limit
    # The sums of float32 policies are float32 sums in another order.
    assert mine["sums"] <= 1e-5
    assert mine["disagreements"] == 0


def test_a_rank_without_rows_takes_part(found):
    assert found["3"]["empty_shares"] > 0


def test_shares_hold_every_row_once_in_runs_of_equal_tokens():
    rows = frozen_rows("decoder", "token", even=False)
    for size in range(1, 20):
        parts = shares(rows, size)
        assert len(parts) == size
        assert [place for part in parts for place in part] == list(range(len(rows)))
    tokens = [sum(len(rows[place].prompt) + len(rows[place].tokens) for place in part) for part in shares(rows, 3)]
    longest = max(len(row.prompt) + len(row.tokens) for row in rows)
    assert max(tokens) - min(tokens) <= 2 * longest
    assert shares([], 3) == [[], [], []]
    with pytest.raises(ValueError, match="size = 0"):
        shares(rows, 0)


class Doubled(Alone):
    """Two ranks that hold the same."""

    size = 2

    def __init__(self):
        self.calls = []

    def add(self, numbers):
        self.calls.append(numbers.numel())
        numbers.mul_(2)


@pytest.mark.parametrize(("bucket", "calls"), [(100, [9]), (6, [6, 3]), (4, [4, 2, 3]), (1, [4, 2, 3])])
def test_gradients_travel_in_buckets(bucket, calls, monkeypatch):
    monkeypatch.setattr(ranks_module, "BUCKET", bucket)
    parameters = [torch.nn.Parameter(torch.zeros(shape)) for shape in ((2, 2), (2,), (3,))]
    for number, parameter in enumerate(parameters[:2]):
        parameter.grad = torch.full_like(parameter, number + 1.0)
    ranks = Doubled()
    add_gradients(parameters, ranks)
    assert ranks.calls == calls
    assert [parameter.grad.flatten()[0].item() for parameter in parameters] == [2.0, 4.0, 0.0]


def test_sums_over_ranks_by_hand():
    shares = [{"loss": 1.0, "mismatch_max": 0.5, "padding_share": 0.2}, {"loss": 2.0, "tokens": 3.0, "mismatch_max": 0.1, "padding_share": 0.4}]  # fmt: skip  # noqa: E501
    assert combined(shares) == pytest.approx({"loss": 3.0, "tokens": 3.0, "mismatch_max": 0.5, "padding_share": 0.3})


def test_one_process_needs_no_process_group():
    assert not torch.distributed.is_initialized()
    rows, objective = (
        rows_of("table", "reinforce", "token_mean", "token"),
        objective_of("reinforce", "table", "float64"),
    )
    policy = policy_of("table", "float64")
    sums = accumulate_share(policy, rows, objective, max_tokens=64, ranks=Alone())
    policy.model.zero_grad(set_to_none=True)
    assert sums["trained_tokens"] == sum(int(row.loss_mask.sum()) for row in rows)
