"""The endpoint as a part of a process: its stores, its threads, its application."""

from urllib.parse import urlsplit

from otel_metering.clock import Clock
from query_api.clickhouse.access import Access
from query_api.clickhouse.app import ClickHouseApp
from query_api.clickhouse.calls import Limits
from query_api.clickhouse.engine import Engine
from query_api.config import Settings
from receiver.store.client import Store
from receiver.store.keys import ApiKeys

OFF = -1
"""As port: no endpoint."""

ADMINISTRATORS = 12
"""Statements of the administrator at once: of a receiver and an API process, each with all its handles."""

SPARE = 2
"""Handles that no statement takes: for those that end statements."""


class Endpoint:
    """The embedded engine for clients of ClickHouse.

    It has handles of its own, so that whatever clients ask, the handles of the writer are free.

    Attributes:
        app: The ASGI application.
    """

    def __init__(self, url: str, keys: ApiKeys, clock: Clock, settings: Settings) -> None:
        """Reads what the engine can do; listens to nobody.

        Args:
            url: Of the embedded engine, which has every table.
            keys: The API keys.
            clock: The time.
            settings: Of the query API.

        Raises:
            EngineError: The engine did not answer.
        """
        readers = settings.clickhouse_max_reads
        self._readers = Store(url, handles=readers + SPARE)
        self._administrators = Store(url, handles=ADMINISTRATORS + SPARE)
        password = settings.clickhouse_admin_password
        engine = Engine(
            self._readers,
            self._administrators,
            Limits(
                seconds=settings.query_max_seconds,
                rows=settings.query_max_rows,
                memory_bytes=settings.clickhouse_max_memory_bytes,
                result_rows=settings.clickhouse_max_result_rows,
                result_bytes=settings.clickhouse_max_result_bytes,
            ),
        )
        access = Access(
            keys,
            clock,
            administrator_password=None if password is None else password.get_secret_value(),
        )
        self.app = ClickHouseApp(
            engine, access, clock, readers=readers, administrators=ADMINISTRATORS
        )

    def close(self) -> None:
        """End what runs, and the handles; call it when nobody listens."""
        self.app.close()
        self._readers.close()
        self._administrators.close()


def is_served(url: str, port: int) -> bool:
    """Whether there is an endpoint: a server has its own."""
    return urlsplit(url).scheme == "chdb" and port != OFF
