"""The tests of the memory of ids, on a store that goes through the ClickHouse endpoint."""

from collections.abc import Iterator

import pytest

from receiver.store.client import Store
from tests.integration.clickhouse_endpoint import running_endpoint
from tests.integration.test_ids import *  # noqa: F403 - that these run here is the point

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")  # type: ignore[no-redef]  # instead of theirs
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    with running_endpoint(tmp_path_factory.mktemp("engine")) as running:
        store = Store(running.url())
        yield store
        store.close()
