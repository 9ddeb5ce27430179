import os

import pytest

from forkpoint.files import install_fault_hook


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch):
    """A kill of the process loses nothing that was written, synced or not."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture(autouse=True)
def no_fault_hook():
    """No test leaves a fault behind."""
    yield
    install_fault_hook(None)
