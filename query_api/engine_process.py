"""The embedded engine in a process of its own, behind its ClickHouse endpoint: `otel-metering clickhouse`.

So receiver and query API can be processes of their own without a ClickHouse server: each asks this one.
"""

import asyncio
from collections.abc import Callable
from contextlib import ExitStack

from otel_metering.clock import Clock
from otel_metering.errors import ConfigurationError
from query_api import config
from query_api.clickhouse.endpoint import Endpoint, is_served
from query_api.serving import Server, stop_signals, until
from receiver.config import Settings
from receiver.store.client import Store
from receiver.store.keys import ApiKeys
from receiver.store.migrate import migrate
from receiver.tls import Tls, from_settings


async def serve_engine(
    settings: Settings,
    api_settings: config.Settings,
    clock: Clock,
    on_ready: Callable[[str], None],
) -> None:
    """Run until SIGTERM or SIGINT.

    Args:
        settings: Of the receiver: those that it shares.
        api_settings: Of the query API: those of the endpoint.
        clock: The time.
        on_ready: Called once with the address, when it answers.

    Raises:
        ConfigurationError: There is nothing to serve, the port is taken, the data directory is in use.
        UnavailableError: The engine did not answer.
    """
    if not is_served(settings.store_url, api_settings.clickhouse_port):
        raise ConfigurationError(
            "there is no endpoint to run: METERING_CLICKHOUSE_URL names a server, or METERING_CLICKHOUSE_PORT "
            "is -1; unset it"
        )
    stopping = stop_signals()
    tls = from_settings(settings)
    with ExitStack() as opened:
        endpoint = await asyncio.to_thread(_open, settings, api_settings, clock, opened)
        server = endpoint_server(endpoint, settings, api_settings, tls)
        try:
            await server.start()
            on_ready(server.address)
            await until(stopping, tls)
        finally:
            await server.stop()
            await asyncio.to_thread(opened.close)


def endpoint_server(
    endpoint: Endpoint, settings: Settings, api_settings: config.Settings, tls: Tls | None
) -> Server:
    """Its HTTP server, which does not listen yet."""
    return Server(
        endpoint.app,
        api_settings.clickhouse_host,
        api_settings.clickhouse_port,
        "the ClickHouse endpoint (--clickhouse-port)",
        read_timeout_seconds=settings.otlp_http_read_timeout_seconds,
        tls=None if tls is None else tls.context(asks_clients=False),
    )


def _open(
    settings: Settings, api_settings: config.Settings, clock: Clock, opened: ExitStack
) -> Endpoint:
    """The engine, migrated, and who may ask it; `opened` ends it."""
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    store = Store(settings.store_url)
    opened.callback(store.close)
    migrate(store, clock)
    keys = ApiKeys(store, clock)
    keys.start()
    opened.callback(keys.stop)
    endpoint = Endpoint(settings.store_url, keys, clock, api_settings)
    opened.callback(endpoint.close)
    return endpoint
