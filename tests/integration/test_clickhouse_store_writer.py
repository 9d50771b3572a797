"""The tests of the writer, on a store that goes through the ClickHouse endpoint."""

from collections.abc import Iterator

import pytest

from tests.integration.clickhouse_endpoint import running_endpoint
from tests.integration.test_writer import *  # noqa: F403 - that these run here is the point
from tests.integration.test_writer import FaultyStore


@pytest.fixture(scope="module")  # type: ignore[no-redef]  # instead of theirs
def shared_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaultyStore]:
    with running_endpoint(tmp_path_factory.mktemp("engine")) as running:
        store = FaultyStore(running.url())
        yield store
        store.close()
