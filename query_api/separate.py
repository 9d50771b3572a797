"""The query API in a process of its own, beside a receiver: `otel-metering api`.

Any number of them may run. They share nothing but the database, and hand on to the receiver what one process must
decide (`query_api.placement`). Without the receiver they still answer reads; without the database neither does.
"""

import asyncio
import signal
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Final
from urllib.parse import urlsplit
from uuid import UUID

from otel_metering.clock import Clock
from otel_metering.contract.event import Admission, UsageEvent
from otel_metering.errors import ConfigurationError, UnavailableError
from query_api import config
from query_api.app import create_app
from query_api.forwarding import Forwarder
from query_api.services import Corrector, Services
from query_api.serving import Server, stop_signals, until
from receiver.config import Settings
from receiver.identity import explicit_id, replacement_id
from receiver.meters_file import MetersFile
from receiver.store.client import ReadLimits, Store
from receiver.store.corrections import Correction
from receiver.store.keys import ApiKeys, Principal
from receiver.store.meters import ApiMeters
from receiver.store.migrate import pending, shipped
from receiver.tls import from_settings

_NO_RECEIVER: Final = "there is no receiver in this process; ask where it runs"


async def serve_api(
    settings: Settings,
    api_settings: config.Settings,
    clock: Clock,
    on_ready: Callable[[str], None],
) -> None:
    """Run until SIGTERM or SIGINT; SIGHUP reads `meters.yaml` again.

    Args:
        settings: Of the receiver: those that it shares.
        api_settings: Of the query API.
        clock: The time.
        on_ready: Called once with the address, when it answers.

    Raises:
        ConfigurationError: A setting is wrong, the port is taken, or the database was not migrated.
        UnavailableError: The database did not answer.
    """
    stopping = stop_signals()
    loop = asyncio.get_running_loop()
    forwarder = Forwarder(api_settings.receiver_url, ca_file=api_settings.receiver_ca_file)
    tls = from_settings(settings)
    meters_file = MetersFile(settings.meters_file, clock)
    loop.add_signal_handler(signal.SIGHUP, meters_file.reload)
    with ExitStack() as opened:
        services = await asyncio.to_thread(
            _open, settings, api_settings, clock, meters_file, forwarder, opened
        )
        server = Server(
            create_app(
                services,
                cors_origins=api_settings.cors_origins,
                has_access_log=api_settings.access_log,
                forwarder=forwarder,
            ),
            api_settings.api_host,
            api_settings.api_port,
            "the query API",
            read_timeout_seconds=settings.otlp_http_read_timeout_seconds,
            tls=None if tls is None else tls.context(asks_clients=False),
            # Whose address `X-Forwarded-For` already has is not replaced by what it says.
            trusts_proxies=False,
        )
        try:
            await server.start()
            on_ready(server.address)
            await until(stopping, tls)
        finally:
            await server.stop()
            await forwarder.aclose()
            await asyncio.to_thread(opened.close)


def _open(
    settings: Settings,
    api_settings: config.Settings,
    clock: Clock,
    meters_file: MetersFile,
    forwarder: Forwarder,
    opened: ExitStack,
) -> Services:
    """Everything that the API needs; `opened` ends it."""
    store = _open_store(settings)
    opened.callback(store.close)
    _check_migrated(store)
    keys, made_meters = ApiKeys(store, clock), ApiMeters(store, clock)
    for part in (keys, made_meters):
        part.start()
        opened.callback(part.stop)
    meters_file.start(lambda _: None)
    opened.callback(meters_file.stop)

    def check_database() -> str:
        store.query("SELECT 1")
        return "answers"

    return Services(
        store=store,
        keys=keys,
        clock=clock,
        meters=lambda: made_meters.with_those_of(meters_file.meters),
        file_meters=lambda: meters_file.meters,
        made_meters=made_meters,
        quota_state=None,
        submit=_submit,
        is_metrics_public=api_settings.metrics_public,
        limits=ReadLimits(seconds=api_settings.query_max_seconds, rows=api_settings.query_max_rows),
        corrector=Corrector(
            identify=lambda tenant, meter, event_id: UUID(
                bytes=explicit_id(tenant, meter, event_id)
            ),
            submit=_correct,
            replacement_of=lambda event_id: UUID(bytes=replacement_id(event_id.bytes)),
            settled=lambda: lambda: True,
        ),
        checks={"database": check_database, "meters": meters_file.describe},
        upstreams={"receiver": forwarder.check},
    )


def _open_store(settings: Settings) -> Store:
    if urlsplit(settings.store_url).scheme == "chdb":
        raise ConfigurationError(
            "METERING_CLICKHOUSE_URL names no server, and the embedded engine belongs to one process: set it "
            "to clickhouse://user:password@host:8123/metering, or run everything with: otel-metering up"
        )
    return Store(settings.store_url)


def _check_migrated(store: Store) -> None:
    missing = pending(store, shipped())
    if missing:
        raise ConfigurationError(
            f"the database lacks {len(missing)} migrations of this release; start the receiver first, or run: "
            "otel-metering migrate"
        )


# The routes that would come here are answered by the receiver.
def _submit(events: Sequence[UsageEvent], principal: Principal) -> Admission:
    raise UnavailableError(_NO_RECEIVER)


def _correct(correction: Correction, principal: Principal) -> bool:
    raise UnavailableError(_NO_RECEIVER)
