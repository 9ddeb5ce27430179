"""Folders: what is saved loads with the Auto classes and gives the same logits; what is broken is one clear line."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import policy_examples as examples
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from forkpoint.batching import Row, pad_rows
from forkpoint.errors import ModelError
from forkpoint.policies.causal import CausalPolicy
from forkpoint.policies.folder import add_adapters, load_folder
from forkpoint.policies.texts import Texts, alphabet_tokenizer
from forkpoint.policies.tiny import build_decoder
from forkpoint.seeds import Key

IDS = torch.tensor([[2, 5, 9, 4, 3, 8]])


def tiny_policy(seed: int = 0, shape: str = "llama") -> CausalPolicy:
    tokenizer = alphabet_tokenizer(examples.ALPHABET)
    model = build_decoder(
        shape=shape, vocabulary=len(tokenizer), layers=2, width=32, heads=4, context=64, key=Key.root(seed)
    )
    return CausalPolicy(model, Texts(tokenizer))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny_policy().save(tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize("shape", ["llama", "qwen3"])
def test_the_same_key_gives_the_same_weights(shape: str) -> None:
    first, again, other = (dict(tiny_policy(seed, shape).model.state_dict()) for seed in (0, 0, 1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    drawn = [name for name in first if first[name].ndim >= 2]
    assert not any(torch.equal(first[name], other[name]) for name in drawn)
    spread = torch.cat([first[name].flatten() for name in drawn])
    assert abs(float(spread.std()) - 0.02) < 5e-4
    assert all(bool((first[name] == 1).all()) for name in first if first[name].ndim == 1)


def test_building_leaves_the_global_generator_alone() -> None:
    before = torch.random.get_rng_state()
    tiny_policy()
    assert torch.equal(before, torch.random.get_rng_state())


def test_a_saved_policy_loads_with_the_auto_classes(folder: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        assert torch.equal(model.eval()(IDS).logits, tiny_policy().model(IDS).logits)
    assert AutoTokenizer.from_pretrained(folder).encode("ab .") == [2, 3, 28, 29]
    loaded = load_folder(folder)
    assert loaded.texts.by_character
    assert not loaded.model.training
    assert loaded.num_parameters == sum(parameter.numel() for parameter in model.parameters())


def test_a_folder_loads_as_the_dtype_that_is_asked_for(folder: Path) -> None:
    policy = load_folder(folder, dtype="bfloat16")
    assert {parameter.dtype for parameter in policy.model.parameters()} == {torch.bfloat16}
    policy.save(folder.parent / "half")
    assert load_folder(folder.parent / "half", dtype="bfloat16").model.dtype == torch.bfloat16
    full = load_folder(folder.parent / "half")
    assert full.model.dtype == torch.float32
    row = Row(prompt=np.array([2, 3], np.int32), tokens=np.array([4, 5, 6], np.int32), loss_mask=np.ones(3, np.bool_))
    halves, _ = policy.logprobs(pad_rows([row], [0]))
    assert halves.dtype == torch.float32
    assert torch.allclose(halves, full.logprobs(pad_rows([row], [0]))[0], atol=0.02)


def test_adapters_change_nothing_at_first_and_are_merged_when_saved(tmp_path: Path) -> None:
    pytest.importorskip("peft", reason="the extra `lora` is not installed")
    plain = tiny_policy().model(IDS).logits
    policies = [
        add_adapters(tiny_policy(), rank=2, alpha=4.0, modules="all-linear", key=Key.root(seed)) for seed in (3, 3, 4)
    ]
    policy = policies[0]
    assert policy.has_adapters
    assert torch.equal(policy.model(IDS).logits, plain)
    trained = {name: value for name, value in policy.model.named_parameters() if value.requires_grad}
    assert trained
    assert all("lora_" in name for name in trained)
    again, other = (dict(made.model.named_parameters()) for made in policies[1:])
    assert all(torch.equal(value, again[name]) for name, value in trained.items())
    assert not any(torch.equal(value, other[name]) for name, value in trained.items() if "lora_A" in name)
    with torch.no_grad():
        for name, value in trained.items():
            if "lora_B" in name:
                value.normal_(std=0.2, generator=torch.Generator().manual_seed(0))
    expected = policy.model(IDS).logits
    assert not torch.allclose(expected, plain, atol=0.005)
    policy.save(tmp_path)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert torch.allclose(merged(IDS).logits, expected, atol=2e-5)
    assert torch.equal(policy.model(IDS).logits, expected)
    assert not (tmp_path / "adapter_config.json").exists()
    with pytest.raises(ModelError, match="lora"):
        add_adapters(tiny_policy(), rank=2, alpha=4.0, modules=("nowhere",), key=Key.root(0))


def without_queries(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    kept = {name: value for name, value in weights.items() if "q_proj" not in name}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})


def without_tokenizer(folder: Path) -> None:
    for path in folder.glob("tokenizer*"):
        path.unlink()


def cut_short(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "no config": (lambda folder: (folder / "config.json").unlink(), "config.json is missing"),
    "broken config": (lambda folder: (folder / "config.json").write_text("{"), "valid JSON"),
    "no type": (lambda folder: (folder / "config.json").write_text("{}"), "model_type"),
    "another kind": (lambda folder: (folder / "config.json").write_text('{"model_type": "t5"}'), "T5Config"),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "no file named model.safetensors"),
    "cut weights": (cut_short, "SafetensorError"),
    "weights missing": (without_queries, "lacks 2 of its weights, model.layers.0.self_attn.q_proj.weight"),
    "no tokenizer": (without_tokenizer, "tokenizer from one of"),
    "broken tokenizer": (lambda folder: (folder / "tokenizer.json").write_text("{}"), "cannot be loaded"),
}


def test_a_folder_whose_tokenizer_would_be_made_up_is_refused(tmp_path: Path) -> None:
    tiny_policy(shape="qwen3").save(tmp_path)
    without_tokenizer(tmp_path)
    with pytest.raises(ModelError, match="has no tokenizer"):
        load_folder(tmp_path)


@pytest.mark.parametrize("fault", BROKEN)
def test_a_broken_folder_is_one_line(folder: Path, fault: str, capfd: pytest.CaptureFixture[str]) -> None:
    damage, message = BROKEN[fault]
    copy = folder.parent / "copy"
    shutil.copytree(folder, copy)
    damage(copy)
    with pytest.raises(ModelError, match=message) as caught:
        load_folder(copy)
    assert "\n" not in str(caught.value)
    assert str(copy) in str(caught.value)
    assert "".join(capfd.readouterr()) == ""
