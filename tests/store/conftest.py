import pytest

from forkpoint.files import install_fault_hook


@pytest.fixture(autouse=True)
def no_fault_hook():
    """No test leaves a fault behind."""
    yield
    install_fault_hook(None)
