"""Every mistake of a recipe that parses, found before anything is written or trained."""

import importlib.util
import json
import sys

import pytest
import torch
from tiny_runs import BASE, HEAD, RL, tiny_recipe

from forkpoint.assembly import build_policy
from forkpoint.assembly.checks import check_recipe
from forkpoint.errors import ForkpointError, ModelError, RecipeError
from forkpoint.policies.causal import CausalPolicy
from forkpoint.policies.texts import Texts, alphabet_tokenizer
from forkpoint.policies.tiny import build_decoder
from forkpoint.seeds import Key
from forkpoint.tasks.paths import Settings, build

SFT = "[[stage]]\nname='sft'\nkind='sft'\nfrom='rl'\ndata='rollouts:rl'\nupdates=1\n"


def refusal(folder, *overrides, text=BASE + RL + SFT, head=HEAD):
    recipe = tiny_recipe(text, overrides=overrides, head=head)
    before = sorted(folder.rglob("*"))
    with pytest.raises(ForkpointError) as caught:
        check_recipe(recipe, folder, folder / "runs" / "tiny")
    assert sorted(folder.rglob("*")) == before
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_a_sound_recipe_passes_and_writes_nothing(tmp_path):
    check_recipe(tiny_recipe(BASE, RL, SFT), tmp_path, tmp_path / "runs")
    assert list(tmp_path.iterdir()) == []


BAD = [
    (["task.name=path"], ["[task] name = 'path'", "Did you mean 'paths'?"]),
    (["task.name=3"], ["[task] name is missing", "paths"]),
    (["task.branchs=2"], ["[task] paths", "'branchs'", "Did you mean 'branches'?"]),
    (["task.branches=0"], ["[task] paths: branches = 0", "1"]),
    (["task.branches=two"], ["[task] paths: branches = 'two'", "integer"]),
    (["task.branches=true"], ["[task] paths: branches = True", "integer"]),
    (["task.dead_ends=2"], ["dead_ends = 2"]),
    (["task.branches=30", "task.depth=30"], ["branches = 30", "901 nodes", "at most 62"]),
    (["stage.rl.task.name=pths"], ["[stage.rl.task] name = 'pths'", "Did you mean 'paths'?"]),
    (["stage.base.data=walk"], ["'base': data = 'walk'", "Did you mean 'walks'?"]),
    (["stage.base.data=walk", "stage.base.updates=0"], ["'base': data = 'walk'"]),
    (["stage.rl.credit.rule=leave_one"], ["credit.rule = 'leave_one'", "Did you mean 'leave_one_out'?"]),
    (["stage.rl.credit.rule=no.module:x"], ["credit.rule = 'no.module:x' cannot be imported"]),
    (["stage.rl.credit.rule=:x"], ["credit.rule = ':x' cannot be imported"]),
    (["stage.rl.credit.rule=math:none"], ["'math:none' cannot be imported"]),
    (["stage.rl.credit.rule=math:pi"], ["'math:pi' is no function"]),
    (["stage.rl.credit.rule=builtins:max"], ["no signature found", "name a function written in Python"]),
    (["stage.rl.credit.rule=os:getcwd"], ["credit.rule = 'os:getcwd' cannot be called with 2 arguments"]),
    (["stage.rl.loss.name=os.path:dirname"], ["loss.name = 'os.path:dirname' cannot be called with 4 arguments"]),
    (["stage.rl.credit.options.ddf=1"], ["credit.options = 'ddf' is not known", "none"]),
    (["stage.rl.credit.rule=group_mean_std", "stage.rl.credit.options.ddf=1"], ["'ddf'", "Did you mean 'ddof'?"]),
    (["stage.rl.credit.rule=group_mean_std", "stage.rl.credit.options.ddof=a"], ["ddof = 'a' must be int"]),
    (["stage.rl.credit.rule=group_mean_std", "stage.rl.credit.options.ddof=2"], ["ddof = 2 must be 0 or 1"]),
    (["stage.rl.credit.rule=max_rl"], ["max_rl", "length_penalty must be 0"]),
    (["stage.rl.loss.name=reinforc"], ["loss.name = 'reinforc'", "Did you mean 'reinforce'?"]),
    (["stage.rl.loss.name=clipped_surrogate", "stage.rl.loss.options.clip_hi=1"], ["Did you mean 'clip_high'?"]),
    (["stage.rl.loss.name=clipped_surrogate", "stage.rl.loss.options.clip_high=a"], ["clip_high = 'a' must be float"]),
    (["stage.rl.loss.name=clipped_surrogate", "stage.rl.loss.options.clip_high=-1"], ["clip_high = -1 must be"]),
    (["stage.rl.loss.name=clipped_surrogate", "stage.rl.loss.options.dual_clip=true"], ["True must be float"]),
    (["stage.rl.updates_per_batch=2"], ["updates_per_batch = 2", "clipped_surrogate, dppo_tv", "reinforce"]),
    (["stage.rl.max_new_tokens=60"], ["'rl'", "a rollout of 60", "context of 64"]),
    (["evaluation.max_new_tokens=60"], ["a rollout of 60", "context of 64"]),
    (["policy.context=15"], ["do not fit the model's context of 15"]),
    (["task.walk_length=60"], ["'base': a text of", "context of 64"]),
    (["policy.device=cuda:77"], ["device = 'cuda:77' cannot be used here"]),
    (["policy.device=gpu"], ["device = 'gpu' cannot be used here"]),
    (["policy.kind=hf", "policy.path=none"], ["there is no model at", "config.json is missing"]),
    (["policy.kind=hf", "policy.path=package:backtrak"], ["'backtrak'"]),
]  # fmt: skip


@pytest.mark.parametrize(("overrides", "parts"), BAD, ids=[" ".join(item[0])[:60] for item in BAD])
def test_a_mistake_is_one_line_that_says_where(overrides, parts, tmp_path):
    head = HEAD
    if any("policy.kind=hf" in each for each in overrides):
        head = HEAD.replace(HEAD[HEAD.index("[policy]") : HEAD.index("[task]")], "[policy]\n")
    if "task.walk_length=60" in overrides:
        head = head.replace("depth = 1", "depth = 2")
    message = refusal(tmp_path, *overrides, head=head)
    assert all(part in message for part in parts), message


def test_a_stage_without_a_budget_for_its_evaluation_is_refused(tmp_path):
    head = HEAD.replace("max_new_tokens = 6\n", "")
    assert "[evaluation] max_new_tokens is missing" in refusal(tmp_path, text=BASE, head=head)


def test_a_task_of_fixed_length_wants_that_budget(tmp_path):
    head = HEAD[: HEAD.index("[task]")] + '[task]\nname = "keychain"\n' + HEAD[HEAD.index("[evaluation]") :]
    assert "a rollout of keychain has exactly" in refusal(tmp_path, "stage.rl.from=policy", text=RL, head=head)


def model_folder(folder, *, alphabet="abc |>:"):
    """A small model whose alphabet is its own."""
    tokenizer = alphabet_tokenizer(alphabet)
    model = build_decoder(
        shape="llama", vocabulary=len(tokenizer), layers=1, width=16, heads=2, context=64, key=Key.root(0)
    )
    CausalPolicy(model, Texts(tokenizer)).save(folder)


HF = HEAD.replace(HEAD[HEAD.index("[policy]") : HEAD.index("[task]")], '[policy]\nkind = "hf"\npath = "model"\n')


def test_a_character_outside_the_alphabet_of_a_model_is_refused(tmp_path):
    model_folder(tmp_path / "model")
    message = refusal(tmp_path, head=HF)
    assert "is outside the model's alphabet" in message
    assert "' :>abc|'" in message


@pytest.mark.parametrize("damage", ["config", "weights", "tokenizer"])
def test_a_model_folder_that_is_damaged_is_refused(damage, tmp_path):
    model_folder(tmp_path / "model")
    if damage == "config":
        (tmp_path / "model" / "config.json").write_text("{")
    elif damage == "weights":
        (tmp_path / "model" / "model.safetensors").unlink()
    else:
        (tmp_path / "model" / "tokenizer.json").unlink()
        (tmp_path / "model" / "tokenizer_config.json").unlink()
    assert "cannot be loaded" in refusal(tmp_path, head=HF)


@pytest.mark.skipif(importlib.util.find_spec("peft") is not None, reason="the extra `lora` is installed")
def test_adapters_need_their_extra(tmp_path):
    model_folder(tmp_path / "model", alphabet=build(Settings(branches=2, depth=1)).alphabet)
    assert "forkpoint[lora]" in refusal(tmp_path, "policy.lora.rank=2", head=HF)


def test_a_tiny_policy_needs_an_alphabet(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "outside", Outside)
    message = refusal(
        tmp_path, head=HEAD.partition("[task]")[0] + '[task]\nname = "outside:free"\n[evaluation]\nproblems=1\n'
    )
    assert "needs a task with an alphabet" in message
    assert "kind = 'hf'" in message


class Outside:
    """A module of somebody else."""

    @staticmethod
    def free(*, size=1):
        class Free:
            alphabet = None
            name = "free"

            def __getattr__(self, name):
                return getattr(build(Settings()), name)

        return Free()


def test_settings_that_an_outside_task_does_not_take_are_refused(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "outside", Outside)
    head = HEAD.partition("[task]")[0] + '[task]\nname = "outside:free"\nsiz = 3\n[evaluation]\nproblems=1\n'
    message = refusal(tmp_path, head=head)
    assert "[task] name = 'outside:free'" in message
    assert "siz" in message


def jsonl_head(path):
    return (
        HEAD.partition("[policy]")[0]
        + f'[policy]\nkind = "hf"\npath = "model"\n[task]\nname = "jsonl"\npath = "{path}"\n'
    )


@pytest.mark.parametrize(
    ("lines", "part"),
    [
        ([], "holds no question"),
        (["{"], "questions.jsonl:1"),
        ([json.dumps({"question": "a"})], "questions.jsonl:1"),
        (None, "questions.jsonl"),
    ],
)
def test_a_file_of_questions_is_read_before_anything_starts(lines, part, tmp_path):
    model_folder(tmp_path / "model")
    if lines is not None:
        (tmp_path / "questions.jsonl").write_text("".join(line + "\n" for line in lines))
    head = jsonl_head("questions.jsonl") + "[evaluation]\nproblems = 1\n"
    assert part in refusal(tmp_path, "stage.rl.from=policy", text=RL, head=head)


def test_a_check_leaves_the_global_generator_alone(tmp_path):
    before = torch.random.get_rng_state()
    check_recipe(tiny_recipe(BASE), tmp_path, tmp_path)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_policy_is_a_function_of_the_seed(tmp_path):
    one, two, other = (build_policy(tiny_recipe(BASE, overrides=(f"seed={seed}",)), tmp_path) for seed in (0, 0, 1))
    states = [policy.model.state_dict() for policy in (one, two, other)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert not all(torch.equal(states[0][name], states[2][name]) for name in states[0])


def test_errors_are_of_the_kind_that_they_name(tmp_path):
    with pytest.raises(ModelError):
        check_recipe(tiny_recipe(BASE, RL, overrides=("policy.context=15",)), tmp_path, tmp_path)
    with pytest.raises(RecipeError):
        check_recipe(tiny_recipe(BASE, RL, overrides=("stage.rl.loss.name=x",)), tmp_path, tmp_path)
