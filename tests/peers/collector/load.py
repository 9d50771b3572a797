"""Usage for a Collector, each item with a name; and what the query API says of it in the end."""

import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal

import grpc

from tests.e2e.up import Up
from tests.otlp import NOON, Point, Value, call, logs_request, metrics_request, spans_request
from tests.peers.collector.process import TOKEN
from tests.waiting import eventually

SERVICE = "/opentelemetry.proto.collector."
SENDERS = 3
TENANTS = 4
PAUSE_SECONDS = 0.1
"""Between two requests of a sender: the bound is the listing of every event at the end."""


class Sender:
    """Sends items with names, each request until the Collector acknowledged it."""

    def __init__(self, address: str, name: str, seed: int) -> None:
        self._address, self._name = address, name
        self._chance = random.Random(seed)
        self.sent: dict[str, Decimal] = {}
        """Name of an item -> its quantity."""

    def run(self, stopping: threading.Event) -> None:
        pause = threading.Event()
        while not stopping.is_set():
            method, body = self._request()
            while not self._is_acknowledged(method, body):
                pause.wait(PAUSE_SECONDS)
            pause.wait(PAUSE_SECONDS)

    def _request(self) -> tuple[str, bytes]:
        count = self._chance.choice([1, 5, 40, 90, 450])
        first = len(self.sent)
        names = [f"{self._name}-{number}" for number in range(first, first + count)]
        kind = self._chance.randrange(5)
        if kind == 0:
            return self._spans(first, names)
        return self._logs(names) if kind == 1 else self._metrics(names)

    def _metrics(self, names: list[str]) -> tuple[str, bytes]:
        points = [
            Point(
                f"tenant_{self._chance.randrange(TENANTS)}",
                value=self._chance.choice([1, 7, 0.125]),
                at_ns=NOON + number,
                attributes={"n": name},
            )
            for number, name in enumerate(names)
        ]
        self.sent |= {str(point.attributes["n"]): Decimal(repr(point.value)) for point in points}
        body = metrics_request(points, resource={"service.name": self._name})
        return f"{SERVICE}metrics.v1.MetricsService/Export", body.SerializeToString()

    def _spans(self, first: int, names: list[str]) -> tuple[str, bytes]:
        self.sent |= dict.fromkeys(names, Decimal(1))
        body = spans_request(
            [{"tenant.id": "tenant_1", "n": name} for name in names],
            first_id=int(self._name[1:]) * 2**40 + first + 1,
        )
        return f"{SERVICE}trace.v1.TraceService/Export", body.SerializeToString()

    def _logs(self, names: list[str]) -> tuple[str, bytes]:
        self.sent |= dict.fromkeys(names, Decimal(3))
        records: list[dict[str, Value]] = [
            {"tenant.id": "tenant_2", "metering.quantity": 3, "n": name} for name in names
        ]
        return f"{SERVICE}logs.v1.LogsService/Export", logs_request(records).SerializeToString()

    def _is_acknowledged(self, method: str, body: bytes) -> bool:
        try:
            call(self._address, body, TOKEN, method=method, timeout=10)
        except grpc.RpcError:
            return False
        return True


class Load:
    """Senders that work until the end of the block, and then until all they made is acknowledged."""

    def __init__(self, address: str, seed: int) -> None:
        self._senders = [Sender(address, f"s{i}", seed * 100 + i) for i in range(SENDERS)]
        self._stopping = threading.Event()
        self._threads = ThreadPoolExecutor(SENDERS)

    def __enter__(self) -> "Load":
        self._running = [self._threads.submit(one.run, self._stopping) for one in self._senders]
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._threads.shutdown()

    def sent(self) -> dict[str, Decimal]:
        for one in self._running:
            one.result(timeout=1)
        return {name: value for sender in self._senders for name, value in sender.sent.items()}


def events(up: Up) -> Iterator[tuple[str, Decimal]]:
    """Name and quantity of every single event at the query API."""
    cursor: dict[str, str] = {}
    while True:
        page = up.get("/v1/meter/events", limit=1000, **{"from": "2020-01-01T00:00:00Z"}, **cursor)
        for event in page["data"]:
            yield event["attributes"]["n"], Decimal(event["quantity"])
        if page["next_cursor"] is None:
            return
        cursor = {"cursor": page["next_cursor"]}


def count_of(up: Up) -> int:
    meters = ("api.calls", "http.requests")
    answers = [
        up.get(
            "/v1/meter/aggregates",
            meter=meter,
            aggregation="count",
            window="total",
            **{"from": "2020-01-01T00:00:00Z", "to": "2030-01-01T00:00:00Z"},
        )
        for meter in meters
    ]
    return sum(int(row["value"]) for answer in answers for row in answer["data"])


def assert_each_counts_once(up: Up, expected: dict[str, Decimal]) -> None:
    assert until_it_stalls(lambda: count_of(up), len(expected)) >= len(expected)
    listed = list(events(up))
    assert [name for name, times in Counter(name for name, _ in listed).items() if times > 1] == []
    assert dict(listed) == expected


def until_it_stalls(count: Callable[[], int], wanted: int) -> int:
    """The count when it is `wanted` or more, or has not risen for a minute, however slow the machine is."""
    reached = count()
    while reached < wanted:
        try:
            reached = eventually(count, lambda now, before=reached: now > before, seconds=60)  # type: ignore[misc] # bound now
        except AssertionError:
            break
    return reached
