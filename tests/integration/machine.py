"""A receiver with its API on a data directory, which can be ended and started again."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
import pyarrow as pa
import pytest

import receiver.app
from otel_metering.clock import SystemClock
from otel_metering.contract.meter import Signal
from otel_metering.errors import UnavailableError
from query_api import config
from query_api.app import create_app
from query_api.embedded import open_quotas, services
from receiver.admit import Outcome
from receiver.app import Receiver
from receiver.config import Settings
from receiver.ingest import Work
from receiver.store import tables
from receiver.store.client import Store
from receiver.store.keys import Scope
from receiver.usage import Sender
from tests.integration.api_harness import served

AT = "2026-02-01T12:00:00Z"

SENDER = Sender(key_id="k", bound_tenant=None)

Cell = tuple[str, str, str, tuple[tuple[str, str], ...]]
"""(tenant, meter, begin of the window, dimensions)."""


class Faults:
    """What becomes of the next INSERTs: "before": it fails; "after": it is stored, and nobody hears of it."""

    def __init__(self) -> None:
        self.next: list[str] = []
        self.inserted: list[tuple[str, str]] = []

    def insert(self, table: str, token: str, store: Any) -> None:
        is_usage = table in {tables.EVENTS, tables.EVENT_CORRECTIONS}
        fault = self.next.pop(0) if self.next and is_usage else "none"
        if fault != "before":
            store()
            self.inserted.append((table, token))
        if fault in ("before", "after"):
            raise UnavailableError(f"lost {fault} the INSERT")


class Machine:
    """Nothing is written into the database until `write`, unless its writer is started."""

    def __init__(self, path: Path, faults: Faults, meters: Path) -> None:
        self._settings = Settings(data_dir=path, meters_file=meters)
        self._faults = faults
        self._clients: list[httpx.Client] = []
        self.receiver: Receiver

    @contextmanager
    def running(self) -> Iterator["Machine"]:
        """From its start to its end; what is in the spool stays there."""
        self.receiver = Receiver(self._settings, SystemClock())
        self.receiver.keys.start()
        self.receiver.ingest.start()
        clock, settings = SystemClock(), config.Settings()
        quotas = open_quotas(self.receiver, self._settings, settings, clock)
        quotas.start()
        app = create_app(services(self.receiver, quotas, clock, settings))
        try:
            with served(app) as self.url:
                self.client = self.client_of(Scope.ADMIN)
                yield self
                for client in self._clients:
                    client.close()
        finally:
            quotas.stop()
            self.receiver.ingest.stop()
            self.receiver.writer.stop(0)
            self.receiver.keys.stop()
            self.receiver.spool.close()
            self.receiver.store.close()

    def client_of(self, *scopes: Scope, tenant_id: str | None = None) -> httpx.Client:
        _, key = self.receiver.keys.create(name="test", scopes=scopes, tenant_id=tenant_id)
        client = httpx.Client(base_url=self.url, headers={"x-api-key": key}, timeout=30)
        self._clients.append(client)
        return client

    def write(self) -> None:
        """Write what is in the spool, however often it fails."""
        while self.receiver.spool.entry_count:
            try:
                self.receiver.writer.write_batch()
            except UnavailableError:
                continue

    def send(self, *events: dict[str, Any]) -> dict[str, Any]:
        response = self.client.post("/v1/meter/events", json=list(events))
        assert response.status_code == 202, response.text
        answer: dict[str, Any] = response.json()
        return answer

    def send_otlp(self, signal: Signal, body: bytes) -> Outcome:
        return self.receiver.ingest.submit(Work(sender=SENDER, signal=signal, body=body)).result(20)

    def void(self, event_id: str, **more: Any) -> httpx.Response:
        body = {"reason": "wrong", **more}
        return self.client.post(f"/v1/meter/events/{event_id}/void", json=body)

    def correct(self, event_id: str, **more: Any) -> httpx.Response:
        body = {"reason": "wrong", **more}
        return self.client.post(f"/v1/meter/events/{event_id}/correct", json=body)

    def events(self, **parameters: Any) -> list[dict[str, Any]]:
        """All events, the oldest first."""
        found: list[dict[str, Any]] = []
        asked = {"from": "2000-01-01", "to": "2100-01-01", "limit": 1000, **parameters}
        while True:
            page = self.client.get("/v1/meter/events", params=asked).json()
            found += page["data"]
            if page["next_cursor"] is None:
                return found[::-1]
            asked["cursor"] = page["next_cursor"]

    def rollups(self) -> list[dict[Cell, tuple[Decimal, int]]]:
        """Sum and count of each window that is not empty, from the events and from each rollup."""
        counted = f"event_id NOT IN (SELECT event_id FROM {tables.EVENT_CORRECTIONS})"
        found = []
        for table, function in zip(tables.ROLLUPS, _STARTS, strict=True):
            start = f"toString(toDateTime({function}(timestamp, 'UTC'), 'UTC'))"
            found.append(
                self._cells(
                    f"SELECT tenant_id, meter, {start}, dimensions, sum(quantity), "
                    f"toInt64(sum(observations)) FROM {tables.EVENTS} WHERE {counted} GROUP BY 1, 2, 3, 4"
                )
            )
            found.append(
                self._cells(
                    "SELECT tenant_id, meter, toString(window_start), dimensions, sum(quantity_sum), "
                    f"toInt64(sum(quantity_count)) FROM {table} GROUP BY 1, 2, 3, 4"
                )
            )
        return found

    def _cells(self, sql: str) -> dict[Cell, tuple[Decimal, int]]:
        cells: dict[Cell, tuple[Decimal, int]] = defaultdict(lambda: (Decimal(0), 0))
        for tenant, meter, start, dimensions, total, count in self.receiver.store.query(sql):
            key = tenant, meter, start, tuple(sorted(dimensions.items()))
            cells[key] = cells[key][0] + total, cells[key][1] + count
        return {key: value for key, value in cells.items() if any(value)}


_STARTS = ("toStartOfMinute", "toStartOfHour", "toStartOfDay", "toStartOfMonth")

CALLS = ("  - {slug: calls, group_by: [region]}",)

FORMATS = ("%Y-%m-%d %H:%M:00", "%Y-%m-%d %H:00:00", "%Y-%m-%d 00:00:00", "%Y-%m-01 00:00:00")
"""How ClickHouse writes the begin of a window, of each rollup."""


def new_machine(
    path: Path, monkeypatch: pytest.MonkeyPatch, definitions: Sequence[str] = ()
) -> tuple[Machine, Faults]:
    """A machine whose database fails as it is told to."""
    faults = Faults()

    class FaultyStore(Store):
        def insert(self, table: str, rows: pa.Table, *, token: str) -> None:
            faults.insert(
                table, token, lambda: super(FaultyStore, self).insert(table, rows, token=token)
            )

    monkeypatch.setattr(receiver.app, "Store", FaultyStore)
    meters = path / "meters.yaml"
    meters.write_text("\n".join(["meters:", *(definitions or CALLS)]))
    return Machine(path / "data", faults, meters), faults


def event(event_id: str, quantity: str = "1", **more: Any) -> dict[str, Any]:
    return {
        "tenant_id": "a",
        "meter": "calls",
        "event_id": event_id,
        "quantity": quantity,
        "timestamp": AT,
        "attributes": {"region": "eu"},
    } | more


def written(machine: Machine, response: httpx.Response) -> dict[str, Any]:
    """The answer to a correction, and then it is in the database."""
    assert response.status_code == 200, response.text
    machine.write()
    answer: dict[str, Any] = response.json()
    return answer


def all_equal(machine: Machine, expected: dict[str, tuple[str, int]]) -> None:
    """Raw events and rollups have these (sum, count) of each region, and nothing else."""
    for cells in machine.rollups():
        found = {dict(cell[3]).get("region", ""): value for cell, value in cells.items()}
        assert found == {key: (Decimal(q), n) for key, (q, n) in expected.items()}
