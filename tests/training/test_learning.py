"""That RL learns: a model of random walks, rewarded for nothing but arriving, arrives more often."""

import numpy as np
from tiny_runs import HEAD, finished, tiny_recipe

from forkpoint.store import RunReader

STAGES = """
[[stage]]
name = "base"
kind = "pretrain"
data = "walks"
updates = 200
batch_size = 64
learning_rate = 1e-2

[[stage]]
name = "rl"
kind = "rl"
from = "base"
updates = 30
problems_per_update = 16
group_size = 8
max_new_tokens = 6
learning_rate = 3e-3
"""


def test_reinforcement_raises_the_solve_rate_of_a_random_walker(tmp_path):
    recipe = tiny_recipe(STAGES, head=HEAD, overrides=("evaluation.final_problems=256",))
    finished(tmp_path / "run", recipe)
    with RunReader(tmp_path / "run") as reader:
        before = reader.evaluations("base", 200, "final")
        after = reader.evaluations("rl", 30, "final")
        _, correct = reader.metrics("rl", "correct")
    assert before.problem_keys == after.problem_keys
    # A walker that never errs goes to the goal within 6 moves with chance 1/2 + 1/4 + 1/8 = 0.875; this one errs too.
    assert 0.2 < before.correct.mean() < 0.6
    assert after.correct.mean() > before.correct.mean() + 0.25
    assert np.mean(correct[-5:]) > np.mean(correct[:5]) + 0.2
