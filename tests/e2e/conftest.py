"""A running `otel-metering up` that a module shares; tests keep apart by tenant."""

from collections.abc import Iterator

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
