"""Receiver and query API in one process, on one event loop: `otel-metering up`, and `otel-metering receiver`.

The embedded engine allows one process for a data directory, so this is the only form it has. Beside a receiver on
a server, further processes may answer reads: `query_api.separate`. Order at the end: the edges stop listening,
what they had taken is made durable and answered, the spool is written into the database, and only then does the
process end.
"""

import asyncio
import logging
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from otel_metering.clock import Clock
from otel_metering.contract.event import Admission, UsageEvent
from otel_metering.contract.meter import Meters, Signal
from otel_metering.errors import ConfigurationError, MeteringError, UnavailableError
from otel_metering.spool import Spool
from query_api import config
from query_api.app import create_app
from query_api.clickhouse.endpoint import Endpoint, is_served
from query_api.engine_process import endpoint_server
from query_api.quota_state import QuotaSettings, QuotaState
from query_api.services import Corrector, Fate, Held, Resubmitted, Services
from query_api.serving import STOP_GRACE_SECONDS, Server, stop_signals, until
from query_api.usage_source import Source
from receiver.admit import Outcome
from receiver.app import Receiver
from receiver.config import Settings
from receiver.exposition import exposition
from receiver.identity import explicit_id, replacement_id
from receiver.ingest import Work
from receiver.pending import standstill
from receiver.replay import rehearse, replay
from receiver.store.audit import AT_START, AuditLog
from receiver.store.client import ReadLimits
from receiver.store.corrections import Correction
from receiver.store.keys import ApiKeys, Principal, Scope
from receiver.usage import Reason, Sender

SUBMIT_TIMEOUT_SECONDS: Final = 30.0

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Addresses:
    """Where each edge listens."""

    otlp_grpc: str
    otlp_http: str
    api: str
    clickhouse: str | None
    """None: there is no such edge, because it is off, or the database is a server."""
    admin_key: str | None
    """The key that the first start made; None: there was one."""


async def serve(
    settings: Settings,
    api_settings: config.Settings,
    clock: Clock,
    on_ready: Callable[[Addresses], None],
) -> bool:
    """Run until SIGTERM or SIGINT; SIGHUP reads `meters.yaml` again.

    Args:
        settings: Of the receiver.
        api_settings: Of the query API.
        clock: The time.
        on_ready: Called once, when every edge answers.

    Returns:
        Whether everything acknowledged is in the database; else the rest waits in the spool.

    Raises:
        ConfigurationError: A setting is wrong, a port is taken, the data directory is in use.
    """
    stopping = stop_signals()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(
        signal.SIGHUP, lambda: None
    )  # would end the process until there is a receiver
    receiver = await asyncio.to_thread(Receiver, settings, clock)
    loop.add_signal_handler(signal.SIGHUP, receiver.meters_file.reload)
    await asyncio.to_thread(receiver.start)
    servers: list[Server] = []
    endpoint: Endpoint | None = None
    quotas = open_quotas(receiver, settings, api_settings, clock)
    try:
        await asyncio.to_thread(quotas.start)
        admin_key = await asyncio.to_thread(ensure_admin_key, receiver, settings, clock)
        tls = receiver.tls
        otlp_http = Server(
            receiver.http,
            settings.otlp_host,
            settings.otlp_http_port,
            "OTLP/HTTP",
            read_timeout_seconds=settings.otlp_http_read_timeout_seconds,
            tls=None if tls is None else tls.context(asks_clients=True),
        )
        api = Server(
            create_app(
                services(receiver, quotas, clock, api_settings),
                cors_origins=api_settings.cors_origins,
                has_access_log=api_settings.access_log,
            ),
            api_settings.api_host,
            api_settings.api_port,
            "the query API",
            read_timeout_seconds=settings.otlp_http_read_timeout_seconds,
            tls=None if tls is None else tls.context(asks_clients=False),
        )
        servers = [otlp_http, api]
        named = [("http", otlp_http), ("api", api)]
        if is_served(settings.store_url, api_settings.clickhouse_port):
            endpoint = await asyncio.to_thread(
                Endpoint, settings.store_url, receiver.keys, clock, api_settings
            )
            servers.append(endpoint_server(endpoint, settings, api_settings, tls))
            named.append(("clickhouse", servers[-1]))
        for name, server in named:
            receiver.telemetry.gauge("edge", "connections", server.count, transport=name)
        grpc_port = await receiver.grpc.start(settings.otlp_host, settings.otlp_grpc_port)
        for server in servers:
            await server.start()
        on_ready(
            Addresses(
                otlp_grpc=f"{settings.otlp_host}:{grpc_port}",
                otlp_http=otlp_http.address,
                api=api.address,
                clickhouse=None if endpoint is None else servers[-1].address,
                admin_key=admin_key,
            )
        )
        await until(stopping, tls)
    finally:
        await asyncio.gather(
            receiver.grpc.stop(STOP_GRACE_SECONDS), *(server.stop() for server in servers)
        )
        if endpoint is not None:
            await asyncio.to_thread(endpoint.close)
        await quotas.aclose()
        await asyncio.to_thread(quotas.stop)
        is_drained = await asyncio.to_thread(receiver.stop)
    return is_drained


def ensure_admin_key(receiver: Receiver, settings: Settings, clock: Clock) -> str | None:
    """Make the first admin key, if there is none; returns its text if it was made up here.

    Raises:
        ConfigurationError: `METERING_ADMIN_KEY` does not look like a key, or is not the key of its id.
    """
    given = settings.admin_key.get_secret_value() if settings.admin_key else None
    if given is not None and _is_there(receiver.keys, given):
        return None
    if given is None and any(Scope.ADMIN in key.scopes for key in receiver.keys.list()):
        return None
    try:
        _, text = receiver.keys.create(
            name="first admin key",
            scopes=[Scope.ADMIN],
            key=given,
            before_save=lambda key: AuditLog(receiver.store, clock).record(
                key_id=AT_START,
                action="key.create",
                target=key.key_id,
                tenant_id=None,
                details={"name": key.name, "scopes": ", ".join(key.scopes)},
            ),
        )
    except MeteringError as error:
        raise ConfigurationError(f"METERING_ADMIN_KEY: {error}") from error
    return text if given is None else None


def _is_there(keys: ApiKeys, given: str) -> bool:
    """Whether the key of this text was made before. A revoked one is not brought back to life."""
    found = keys.find(given)
    if found is not None and keys.active(found.key_id) is None:
        _log.warning(
            "METERING_ADMIN_KEY is key %s, which is revoked or expired, and opens nothing; set another",
            found.key_id,
            extra={"event": "admin_key_inactive"},
        )
    return found is not None


def meters_of(receiver: Receiver) -> Meters:
    """The definitions in force: those of the file, and those made by API."""
    return receiver.made_meters.with_those_of(receiver.meters)


def open_quotas(
    receiver: Receiver, settings: Settings, api_settings: config.Settings, clock: Clock
) -> QuotaState:
    """Quotas that count what this receiver admits; they are not started.

    Raises:
        ConfigurationError: The journal of reservations cannot be used.
    """

    def add(name: str, count: int, **labels: str) -> None:
        receiver.telemetry.add("quota", name, count, **labels)

    quotas = QuotaState(
        QuotaSettings.of(api_settings, settings.data_dir),
        store=receiver.store,
        meters=lambda: meters_of(receiver),
        source=Source(
            name=receiver.spool.mark.spool_id,
            store=receiver.store,
            at_rest=lambda timeout: standstill(receiver.spool, receiver.writer, timeout),
            meters=lambda: meters_of(receiver),
        ),
        clock=clock,
        add=add,
    )
    receiver.ingest.tell(quotas.tally.admitted)
    quotas.tally.begin(receiver.spool.mark.appended)
    return quotas


def services(
    receiver: Receiver, quotas: QuotaState, clock: Clock, settings: config.Settings
) -> Services:
    """What the query API needs of a receiver in the same process."""

    def submit_work(work: Work) -> Outcome:
        request = receiver.telemetry.request("api", Signal.EVENT)
        try:
            outcome = receiver.ingest.submit(work).result(SUBMIT_TIMEOUT_SECONDS)
            request.acknowledge()
        except MeteringError as error:
            request.refuse(error)
            raise
        except TimeoutError as error:
            raise UnavailableError(
                f"nothing was stored within {SUBMIT_TIMEOUT_SECONDS:.0f} s; send the same again: events "
                "with an event_id count once"
            ) from error
        finally:
            request.end()
        return outcome

    def submit(events: Sequence[UsageEvent], principal: Principal) -> Admission:
        sender = Sender(key_id=principal.key_id, bound_tenant=principal.tenant_id)
        outcome = submit_work(Work(sender=sender, signal=Signal.EVENT, events=events))
        # Another event under a used id counts no second time either; it is also in quarantine.
        repeated = outcome.duplicates + outcome.reasons[Reason.CONFLICT]
        return Admission(accepted=outcome.accepted, duplicates=repeated, rejected=outcome.rejected)

    def resubmit(items: Sequence[Held], *, is_dry: bool) -> Sequence[Resubmitted]:
        works = [
            Work(
                sender=Sender(key_id=item.key_id, bound_tenant=item.bound_tenant),
                signal=item.signal,
                body=item.payload,
            )
            for item in items
        ]
        if is_dry:
            return [_fate(answer) for answer in rehearse(works, receiver.meters, clock)]
        return [_fate(answer) for answer in replay(works, receiver.ingest, receiver.telemetry)]

    def correct(correction: Correction, principal: Principal) -> bool:
        sender = Sender(key_id=principal.key_id, bound_tenant=principal.tenant_id)
        return (
            submit_work(Work(sender=sender, signal=Signal.EVENT, correction=correction)).corrected
            > 0
        )

    return Services(
        store=receiver.store,
        keys=receiver.keys,
        clock=clock,
        meters=lambda: meters_of(receiver),
        file_meters=lambda: receiver.meters,
        made_meters=receiver.made_meters,
        quota_state=quotas,
        submit=submit,
        metrics=lambda: exposition(receiver.telemetry.read()),
        is_metrics_public=settings.metrics_public,
        limits=ReadLimits(seconds=settings.query_max_seconds, rows=settings.query_max_rows),
        resubmit=resubmit,
        corrector=Corrector(
            identify=lambda tenant, meter, event_id: UUID(
                bytes=explicit_id(tenant, meter, event_id)
            ),
            submit=correct,
            replacement_of=lambda event_id: UUID(bytes=replacement_id(event_id.bytes)),
            settled=lambda: _settled(receiver.spool),
        ),
        checks={
            "database": lambda: _check_database(receiver),
            "ingest": lambda: _check_ingest(receiver),
            "meters": receiver.meters_file.describe,
            "spool": lambda: _check_spool(receiver),
            "writer": lambda: _check_writer(receiver),
        },
    )


def _settled(spool: Spool) -> Callable[[], bool]:
    """Whether everything that is in the spool now has left it."""
    durable = spool.mark.appended
    return lambda: spool.mark.dropped >= durable


def _fate(answer: Outcome | MeteringError) -> Resubmitted:
    """What became of one item; one that feeds several meters is replayed if it counts for any."""
    if isinstance(answer, UnavailableError):
        return Resubmitted(fate=Fate.UNAVAILABLE, detail=str(answer))
    if isinstance(answer, MeteringError):
        return Resubmitted(fate=Fate.QUARANTINED, detail=str(answer))
    if answer.quarantined:
        return Resubmitted(fate=Fate.QUARANTINED, detail=answer.warning)
    if answer.accepted:
        return Resubmitted(fate=Fate.REPLAYED)
    if answer.ignored:
        return Resubmitted(fate=Fate.IGNORED, detail="ignored: it is not usage of any meter")
    return Resubmitted(fate=Fate.DUPLICATE)


def _check_database(receiver: Receiver) -> str:
    receiver.store.query("SELECT 1")
    return "answers"


def _check_ingest(receiver: Receiver) -> str:
    if not receiver.ingest.is_exact:
        raise UnavailableError("the memory of ids is not exact any more; restart the receiver")
    return "admits"


def _check_spool(receiver: Receiver) -> str:
    used, limit = receiver.spool.byte_count, receiver.spool.max_bytes
    if used >= limit:
        raise UnavailableError(f"full: {used} of {limit} bytes")
    return f"{receiver.spool.entry_count} entries, {used} of {limit} bytes"


def _check_writer(receiver: Receiver) -> str:
    error = receiver.writer.last_error
    if error is not None:
        raise UnavailableError(f"the last batch is not stored yet: {error}")
    return "the last batch was stored"
