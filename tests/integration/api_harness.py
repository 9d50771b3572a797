"""The API on a real chDB and a real port of this machine, with a ledger in place of the receiver."""

import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import pyarrow as pa
import uvicorn
from fastapi import FastAPI

from otel_metering.clock import ManualClock
from otel_metering.contract.event import Admission, UsageEvent
from otel_metering.contract.meter import Aggregation, MeterDefinition, Meters
from query_api.app import create_app
from query_api.quota_state import QuotaSettings, QuotaState
from query_api.services import Corrector, Services
from query_api.usage_source import Source
from receiver.identity import explicit_id, replacement_id
from receiver.pending import Pending
from receiver.store import tables
from receiver.store.client import Store
from receiver.store.corrections import Correction
from receiver.store.keys import ApiKeys, Principal, Scope
from receiver.store.meters import ApiMeters
from receiver.store.migrate import migrate

METERS = Meters(
    (
        MeterDefinition(slug="api.calls", unit="{call}", group_by=("plan", "region")),
        MeterDefinition(slug="requests", aggregation=Aggregation.COUNT, group_by=()),
    )
)

METRICS = "# TYPE numbers counter\nnumbers_total 1\n"


@dataclass
class Ledger:
    """Accepts each explicit id once, and no tenant named `refused`."""

    seen: set[str] = field(default_factory=set)
    events: list[UsageEvent] = field(default_factory=list)
    corrections: list[Correction] = field(default_factory=list)

    def correct(self, correction: Correction, principal: Principal) -> bool:
        self.corrections.append(correction)
        return True

    def submit(self, events: Sequence[UsageEvent], principal: Principal) -> Admission:
        fresh = duplicates = 0
        rejected = []
        for i, event in enumerate(events):
            if event.tenant_id == "refused":
                rejected.append((i, "tenant refused"))
            elif event.event_id is not None and event.event_id in self.seen:
                duplicates += 1
            else:
                fresh += 1
                self.seen |= {event.event_id} if event.event_id else set()
                self.events.append(event)
        return Admission(accepted=fresh, duplicates=duplicates, rejected=tuple(rejected))


@dataclass(kw_only=True)
class Api:
    app: FastAPI
    url: str
    store: Store
    keys: ApiKeys
    clock: ManualClock
    ledger: Ledger
    checks: dict[str, Any]
    inserts: int = 0
    clients: list[httpx.Client] = field(default_factory=list)

    def key(self, *scopes: Scope, tenant_id: str | None = None) -> str:
        """A new API key."""
        return self.keys.create(name="test", scopes=scopes, tenant_id=tenant_id)[1]

    def client(self, *scopes: Scope, tenant_id: str | None = None) -> httpx.Client:
        """A client with a new key; without scopes, with none."""
        headers = {"x-api-key": self.key(*scopes, tenant_id=tenant_id)} if scopes else {}
        client = httpx.Client(base_url=self.url, headers=headers, timeout=30)
        self.clients.append(client)
        return client

    @contextmanager
    def submitting(self, instead: Callable[..., Any]) -> Iterator[None]:
        """For a while, something else becomes of events."""
        before = self.app.state.services
        self.app.state.services = replace(before, submit=instead)
        try:
            yield
        finally:
            self.app.state.services = before

    def close(self) -> None:
        for client in self.clients:
            client.close()

    def insert(self, rows: Sequence[dict[str, Any]]) -> None:
        """Store events; only what matters to a test must be given."""
        self.inserts += 1
        self.store.insert(tables.EVENTS, to_table(rows), token=f"block-{self.inserts}")

    def correct(self, rows: Sequence[dict[str, Any]]) -> None:
        """Void events that were stored, given as to `insert`."""
        if not rows:
            return
        self.inserts += 1
        kept = [
            "event_id",
            "tenant_id",
            "meter",
            "timestamp",
            "quantity",
            "observations",
            "dimensions",
            "batch_id",
        ]
        table = to_table(rows).select(kept)
        for name, value in {"action": "void", "reason": "wrong", "key_id": "key"}.items():
            table = table.append_column(name, pa.array([value] * len(rows), pa.string()))
        self.store.insert(tables.EVENT_CORRECTIONS, table, token=f"block-{self.inserts}")


@contextmanager
def running_api(path: Path, **options: Any) -> Iterator[Api]:
    """Run it, with the options of `create_app`."""
    store = Store(f"chdb://{path}")
    clock, ledger = ManualClock(), Ledger()
    migrate(store, clock)
    keys = ApiKeys(store, clock)
    keys.refresh()
    quotas = QuotaState(
        QuotaSettings(journal=path / "quota.db"),
        store=store,
        meters=lambda: METERS,
        # What the ledger took is nowhere: counters have what is in the database.
        source=Source(
            name="ledger",
            store=store,
            at_rest=lambda _: nullcontext(Pending(number=0, events=None)),
            meters=lambda: METERS,
        ),
        clock=clock,
    )
    checks: dict[str, Any] = {"store": lambda: f"{store.query('SELECT 1')[0][0]} row"}
    services = Services(
        store=store,
        keys=keys,
        clock=clock,
        meters=lambda: METERS,
        quota_state=quotas,
        submit=ledger.submit,
        checks=checks,
        metrics=lambda: METRICS,
        file_meters=lambda: METERS,
        made_meters=ApiMeters(store, clock),
        corrector=Corrector(
            identify=lambda *names: UUID(bytes=explicit_id(*names)),
            submit=ledger.correct,
            replacement_of=lambda event_id: UUID(bytes=replacement_id(event_id.bytes)),
            settled=lambda: lambda: True,
        ),
    )
    app = create_app(services, **options)
    quotas.start()
    try:
        with served(app) as url:
            api = Api(
                app=app,
                url=url,
                store=store,
                keys=keys,
                clock=clock,
                ledger=ledger,
                checks=checks,
            )
            yield api
            api.close()
    finally:
        quotas.stop()
        store.close()


@contextmanager
def served(app: Any) -> Iterator[str]:
    configuration = uvicorn.Config(
        app, log_config=None, ws="none", lifespan="off", proxy_headers=False
    )
    server = uvicorn.Server(configuration)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            # The listener queues connections until the server takes them: nothing to wait for.
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()


def to_table(rows: Sequence[dict[str, Any]]) -> pa.Table:
    text = pa.map_(pa.string(), pa.string())
    columns: dict[str, tuple[Any, list[Any]]] = {
        "event_id": (pa.binary(16), [as_uuid_column(row["event_id"]) for row in rows]),
        "tenant_id": (pa.string(), [row["tenant_id"] for row in rows]),
        "meter": (pa.string(), [row.get("meter", "api.calls") for row in rows]),
        "quantity": (pa.decimal128(38, 9), [Decimal(row.get("quantity", 1)) for row in rows]),
        "observations": (pa.int64(), [row.get("observations", 1) for row in rows]),
        "unique_key": (pa.string(), [row.get("unique_key", "") for row in rows]),
        "timestamp": (pa.timestamp("ns", "UTC"), [row["timestamp"] for row in rows]),
        "start_time": (pa.timestamp("ns", "UTC"), [row.get("start_time", 0) for row in rows]),
        "dimensions": (text, [list(row.get("dimensions", {}).items()) for row in rows]),
        "attributes": (text, [list(row.get("attributes", {}).items()) for row in rows]),
        "service_name": (pa.string(), [row.get("service_name", "") for row in rows]),
        "signal": (pa.string(), [row.get("signal", "event") for row in rows]),
        "trace_id": (pa.string(), [row.get("trace_id", "") for row in rows]),
        "span_id": (pa.string(), [row.get("span_id", "") for row in rows]),
        "stream_id": (pa.binary(16), [bytes(16) for _ in rows]),
        "ingested_at": (pa.timestamp("ms", "UTC"), [row.get("ingested_at", 0) for row in rows]),
        "batch_id": (pa.binary(16), [bytes(16) for _ in rows]),
    }
    return pa.table({name: pa.array(items, kind) for name, (kind, items) in columns.items()})


def as_uuid_column(event_id: UUID) -> bytes:
    return event_id.bytes
