"""A stage of a run as arrays: every column against the records that were written."""

import numpy as np
import pytest
from stored_example import group, stored_run

from forkpoint.errors import StoreError
from forkpoint.records import OUTCOMES, STOPS, Outcome, StopReason
from forkpoint.seeds import content_hash
from forkpoint.store.columns import stage_records


def test_columns_are_what_was_written(tmp_path):
    records = stage_records(stored_run(tmp_path / "run"), "rl")
    train = records.training
    assert (len(records), int(train.sum()), records.purposes) == (480, 384, ("train", "final"))
    assert (records.run, records.stage, records.unit) == ("made", "rl", "tokens")
    first = group("rl", 1, 0, right=1)
    rows = [records.ids.tolist().index(rollout.id.encode()) for rollout in first.rollouts]
    assert records.length[rows].tolist() == [3, 4, 5, 6]
    assert records.correct[rows].tolist() == [1, 0, 0, 0]
    assert records.turns[rows].tolist() == [0, 1, 2, 3]
    assert records.turns[~records.training & ~records.kept].tolist() == [-1] * 92
    assert records.reward[rows].tolist() == [1, 0, 0, 0]
    assert [OUTCOMES[place] for place in records.outcome[rows]] == [Outcome.CORRECT] + [Outcome.WRONG] * 3
    assert [STOPS[place] for place in records.stop[rows]] == [StopReason.LENGTH] + [StopReason.EOS] * 3
    assert records.parts["moves"][rows].tolist() == [3, 4, 5, 6]
    assert set(records.problem[rows].tolist()) == {int(content_hash("sums", 0), 16)}
    assert len(np.unique(records.group[train])) == 4 * 24
    assert (np.diff(records.update[train]) >= 0).all()
    assert records.metrics["mismatch_max"][0].tolist() == [1, 2, 3, 4]


def test_contents_follow_their_rows_and_only_the_kept_are_there(tmp_path):
    records = stage_records(stored_run(tmp_path / "run"), "rl")
    evaluated = ~records.training
    assert int((evaluated & records.kept).sum()) == 4
    assert records.ids[evaluated & ~records.kept].tolist() == [b""] * 92
    rows = np.flatnonzero(records.kept)[[5, 0]]
    said = list(records.contents(rows))
    for row, part in zip(rows.tolist(), said, strict=True):
        assert part.prompt is not None
        number = int(part.prompt.split()[0])
        assert records.problem[row] == int(content_hash("sums", number), 16)
        assert part.tokens is not None
        assert len(part.tokens) == records.length[row]
        assert part.reference == str(number + 1)
    assert next(records.contents(np.flatnonzero(~records.kept)[:1])).text is None
    assert {"text", "evaluations", "groups", "updates", "reward", "metrics"} <= records.has
    assert "trainer_logprobs" not in records.has


def test_a_stage_without_rollouts_and_an_unknown_one(tmp_path):
    run = stored_run(tmp_path / "run", problems=1)
    assert len(stage_records(run, "base")) == 4
    with pytest.raises(StoreError, match="It has: base, rl"):
        stage_records(run, "lr")
