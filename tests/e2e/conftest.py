"""A running `otel-metering up` that a module shares; tests keep apart by tenant."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.up import Up


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    running = Up(tmp_path_factory.mktemp("up"))
    running.start()
    try:
        yield running
    finally:
        if running.is_running:
            running.stop()


@pytest.fixture
def new_up(tmp_path: Path) -> Iterator[Up]:
    """One for this test alone; not started, and ended in any case."""
    made = Up(tmp_path)
    try:
        yield made
    finally:
        if made.is_running:
            made.kill()
