"""Where rollouts are cut: hand-worked places, and that no cut depends on what comes after it."""

import numpy as np
import pytest
from enumerated_language import PROBLEM, rollout_of
from hypothesis import given
from hypothesis import strategies as st

from forkpoint.credit.cuts import CutRule, causal_cuts, read_cuts
from forkpoint.errors import RecipeError
from forkpoint.seeds import Key
from forkpoint.tasks import arithmetic, countdown, dialect, keychain, paths
from forkpoint.verifiers.outside import written_rollout


def cut(rollout, text, *, task=None, max_cuts=99):
    return causal_cuts(PROBLEM, rollout, task, rule=read_cuts(text), max_cuts=max_cuts)


def with_probabilities(*values, mask=None):
    return rollout_of("a" * len(values), logprobs=np.log(values), mask=mask)


class Marked:
    """A task whose steps begin at fixed places."""

    def __init__(self, *places):
        self.places = places

    def cut_points(self, problem, rollout):
        return [place for place in self.places if place < len(rollout.tokens)]


def test_texts_are_read():
    assert read_cuts("every:8") == CutRule(kind="every", stride=8)
    assert read_cuts("steps") == CutRule(kind="steps", stride=1)
    assert read_cuts("steps:3") == CutRule(kind="steps", stride=3)
    assert read_cuts("unlikely") == read_cuts("unlikely:0.9") == CutRule(kind="unlikely", below=0.9)
    assert read_cuts("unlikely:.5:2") == CutRule(kind="unlikely", stride=2, below=0.5)


@pytest.mark.parametrize(
    "text",
    ["every", "every:0", "every:-1", "every:x", "every:1:2", "steps:0", "unlikely:0", "unlikely:1.5", "unlikely:.9:0",
     "unlikely:nan", "unlikely:1e-3", "steps:1:1", "every:", "unlikely:0.9:1:1"],
)  # fmt: skip
def test_a_malformed_text_is_one_line(text):
    with pytest.raises(RecipeError, match="must be one of every:N, steps, steps:N") as found:
        read_cuts(text)
    assert "\n" not in str(found.value)
    assert f"'{text}'" in str(found.value)


def test_an_unknown_kind_gets_the_nearest_one():
    with pytest.raises(RecipeError, match=r"'step' is not known\. Did you mean 'steps'"):
        read_cuts("step")


def test_every_counts_trained_tokens():
    assert cut(rollout_of("aaaaaaa"), "every:3") == (0, 3, 6)
    assert cut(rollout_of("aaaaaa"), "every:3") == (0, 3)
    assert cut(rollout_of("aaa"), "every:3") == (0,)
    # Tokens 2 and 3 are an environment's.
    assert cut(rollout_of("aaaaaaa", mask=[1, 1, 0, 0, 1, 1, 1]), "every:3") == (0, 5)
    assert cut(rollout_of("aa", mask=[0, 0]), "every:1") == (0,)
    # A branched rollout begins where its own tokens do.
    branched = rollout_of("aaaaa", mask=[0, 0, 1, 1, 1])
    assert cut(branched, "every:1") == (0, 3, 4)
    assert cut(branched, "steps", task=Marked(0, 1, 2, 4)) == (0, 4)


def test_an_unlikely_token_makes_a_cut_after_itself():
    rollout = with_probabilities(0.95, 0.5, 0.95, 0.89, 0.2, 0.95, 0.1)
    assert cut(rollout, "unlikely:0.9") == (0, 2, 4, 5)
    assert cut(rollout, "unlikely:0.9:2") == (0, 4)
    assert cut(rollout, "unlikely:0.3") == (0, 5)


def test_a_cut_before_an_environment_s_token_moves_behind_it():
    rollout = with_probabilities(0.5, 0.95, 1, 1, 0.95, mask=[1, 1, 0, 0, 1])
    assert cut(rollout, "unlikely:0.9") == (0, 1)
    late = with_probabilities(0.95, 0.5, 1, 1, 0.95, mask=[1, 1, 0, 0, 1])
    assert cut(late, "unlikely:0.9") == (0, 4)
    ended = with_probabilities(0.95, 0.5, 1, 1, mask=[1, 1, 0, 0])
    assert cut(ended, "unlikely:0.9") == (0,)


def test_steps_are_the_task_s_and_the_first_cuts_are_kept():
    rollout = rollout_of("aaaaaaaaaa")
    assert cut(rollout, "steps", task=Marked(0, 2, 5, 6)) == (0, 2, 5, 6)
    assert cut(rollout, "steps:2", task=Marked(0, 2, 5, 6)) == (0, 5)
    assert cut(rollout, "steps", task=Marked(0, 2, 5, 6), max_cuts=2) == (0, 2, 5)
    assert cut(rollout, "every:1", max_cuts=0) == (0,)
    with pytest.raises(RecipeError, match="needs a task with `cut_points`"):
        cut(rollout, "steps")
    with pytest.raises(RecipeError, match="max_cuts = -1"):
        cut(rollout, "every:1", max_cuts=-1)


@given(
    past=st.lists(st.tuples(st.floats(0.01, 1), st.booleans()), min_size=1, max_size=12),
    futures=st.tuples(*[st.lists(st.tuples(st.floats(0.01, 1), st.booleans()), min_size=1, max_size=8)] * 2),
    text=st.sampled_from(["every:1", "every:3", "unlikely:0.9", "unlikely:0.5:2"]),
    max_cuts=st.integers(0, 9),
)  # fmt: skip
def test_cuts_up_to_a_token_do_not_depend_on_what_follows(past, futures, text, max_cuts):
    found = []
    for future in futures:
        # What a token is, the policy's or an environment's, is part of the past: the next one must agree.
        whole = [*past, (future[0][0], True), *future[1:]]
        rollout = with_probabilities(*(p for p, _ in whole), mask=[mine for _, mine in whole])
        found.append([place for place in cut(rollout, text, max_cuts=max_cuts) if place <= len(past)])
    assert found[0] == found[1]


@pytest.mark.parametrize("module", [arithmetic, countdown, dialect, keychain, paths])
def test_the_steps_of_our_tasks_follow_from_the_tokens_before_them(module):
    task = module.build(module.Settings())
    problem = task.problem(Key.root(0))
    texts = [task.solve(problem), *(text for text in task.wrong_answers(problem) if text)]
    for text in texts:
        whole = list(task.cut_points(problem, written_rollout(problem, text)))
        for length in range(1, len(text)):
            part = list(task.cut_points(problem, written_rollout(problem, text[:length])))
            assert part == [place for place in whole if place < length]
