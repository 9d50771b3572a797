"""The receiver as a process, as the end-to-end tests run it, and the shipped Collector."""

from pathlib import Path

import pytest

from tests.e2e.conftest import new_up
from tests.peers.collector.build import shipped
from tests.peers.install import UnavailableError

__all__ = ["new_up", "program"]


@pytest.fixture(scope="session")
def program() -> Path:
    """The Collector that `collector/manifest.yaml` describes."""
    try:
        return shipped()
    except UnavailableError as error:
        pytest.skip(f"no Collector can be built: {error}")
