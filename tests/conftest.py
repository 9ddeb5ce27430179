"""What every test shares: one thread, no network, reproducible examples."""

import os

# Read when torch, tokenizers and huggingface_hub are first imported, also by the processes that tests start.
os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false", HF_HUB_OFFLINE="1")

import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

# Files of this name hold no doctests, and as modules they would shadow one another.
collect_ignore_glob = ["*conftest.py"]

# Machines may be ten times slower than ours, so no example has a deadline.
settings.register_profile("local", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("ci", settings.get_profile("local"), derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "local")


@pytest.fixture(autouse=True)
def one_torch_thread() -> None:
    """Torch computes with one thread; tests that need no torch do not import it."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.get_num_threads() != 1:
        torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def doctest_names(doctest_namespace: dict[str, object]) -> None:
    """Doctests may write `np`."""
    doctest_namespace["np"] = np


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """An empty folder for run folders."""
    folder = tmp_path / "runs"
    folder.mkdir()
    return folder
