"""One running `otel-metering up` for all conformance tests; they keep apart by tenant."""

import itertools
from collections.abc import Callable, Iterator

import pytest

from tests.e2e.conftest import new_up
from tests.e2e.up import Up

__all__ = ["new_up", "stored", "tenant", "up"]

LIMIT = 4 * 2**20
"""METERING_MAX_REQUEST_BYTES of the server."""

READ_TIMEOUT_SECONDS = 4
"""METERING_OTLP_HTTP_READ_TIMEOUT_SECONDS of the server."""

_SETTINGS = {
    "METERING_MAX_REQUEST_BYTES": str(LIMIT),
    "METERING_OTLP_HTTP_READ_TIMEOUT_SECONDS": str(READ_TIMEOUT_SECONDS),
    "METERING_OTLP_CORS_ALLOWED_ORIGINS": "https://shop.example,https://*.team.example",
    "METERING_OTLP_CORS_MAX_AGE_SECONDS": "600",
}

_numbers = itertools.count()


@pytest.fixture(scope="session")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    running = Up(tmp_path_factory.mktemp("conformance"))
    with pytest.MonkeyPatch.context() as patch:
        for name, value in _SETTINGS.items():
            patch.setenv(name, value)
        running.start()
    try:
        yield running
        # Whatever the tests have sent: it is the same process, and it ends in order.
        assert running.stop() == 0
    finally:
        if running.is_running:
            running.kill()


@pytest.fixture
def tenant() -> str:
    """One that no other test has."""
    return f"tenant_{next(_numbers)}"


@pytest.fixture
def stored(up: Up) -> Callable[[str], list[dict[str, object]]]:
    """The events of a tenant, as the query API shows them now."""

    def events(tenant_id: str) -> list[dict[str, object]]:
        answer = up.get(
            "/v1/meter/events",
            tenant_id=tenant_id,
            limit=1000,
            **{"from": "2020-01-01T00:00:00Z"},
        )
        return list(answer["data"])

    return events
