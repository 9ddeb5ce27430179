"""Recipes of a walker whose rollouts are reviewed."""

from tiny_runs import tiny_recipe

WALKER_HEAD = """
name = "tiny"
[policy]
kind = "hf"
path = "package:backtrack"
[task]
name = "paths"
[evaluation]
problems = 2
final_problems = 2
max_new_tokens = 16
"""
"""Walks at random on stars of three branches of three, and solves about a third of them."""
WALKER = '[[stage]]\nname = "base"\nkind = "pretrain"\nupdates = 0\n'
PATHS = 'name = "paths"\nbranches = 2\ndepth = 1\nwalk_length = 6'
QUICK = ("doctor.before=false", "doctor.every=0")
LEARN = """
[[stage]]
name = "learn"
kind = "sft"
from = "base"
data = "DATA"
examples = 40
updates = 3
batch_size = 8
warmup = 0
checkpoint_every = 1
"""
REVIEW = '[stage.review]\nproblems = 24\ngroup_size = 4\nedit = "EDIT"\n'


def recipe_of(data, *more, edit=None, head=WALKER_HEAD):
    text = LEARN.replace("DATA", data) + "".join(more) + (REVIEW.replace("EDIT", edit) if edit else "")
    return tiny_recipe(WALKER, text, overrides=QUICK, head=head)


def fixing(more):
    """Fixes of walks of eight moves, where a wrong branch costs the game."""
    text = LEARN.replace("DATA", "edits:base") + REVIEW.replace("EDIT", "fix").replace("24", "12") + more
    return tiny_recipe(WALKER, text, overrides=QUICK, head=WALKER_HEAD.replace("tokens = 16", "tokens = 8"))
