"""The models that ship with the package: unaltered, small, loadable, and made by the recipe beside them."""

from pathlib import Path

import pytest

from forkpoint.assembly import package_model
from forkpoint.config import load_recipe
from forkpoint.config.policies import TinyPolicy
from forkpoint.policies.folder import load_folder
from forkpoint.store import verify_checkpoint

RECIPES = Path(__file__).parents[2] / "recipes"


@pytest.mark.parametrize("name", ["backtrack"])
def test_model_matches_its_manifest_and_its_recipe(name):
    folder = package_model(name)
    manifest = verify_checkpoint(folder)
    assert sum(int(entry["bytes"]) for entry in manifest.values()) < 4_000_000
    policy = load_folder(folder)
    spec = load_recipe(RECIPES / f"{name}-base.toml").policy
    assert isinstance(spec, TinyPolicy)
    config = policy.model.config
    assert (config.num_hidden_layers, config.hidden_size, policy.context_length) == (
        spec.layers,
        spec.width,
        spec.context,
    )
    assert config.model_type == spec.shape
