"""The tests of API keys, on a store that goes through the ClickHouse endpoint."""

from collections.abc import Iterator

import pytest

from otel_metering.clock import ManualClock
from receiver.store.client import Store
from receiver.store.migrate import migrate
from tests.integration.clickhouse_endpoint import running_endpoint
from tests.integration.test_keys import *  # noqa: F403 - that these run here is the point

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")  # type: ignore[no-redef]  # instead of theirs
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    path = tmp_path_factory.mktemp("keys")
    with running_endpoint(path, is_migrated=False) as running:
        # The database that the URL names is made by the first migration.
        opened = Store(running.url())
        migrate(opened, ManualClock())
        yield opened
        opened.close()
