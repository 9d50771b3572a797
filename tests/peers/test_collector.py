"""A real Collector with a queue on disk in front of the receiver; both are killed; nothing counts twice.

What the Collector acknowledged to its senders it owes to the receiver, and sends again until the receiver
acknowledged it: other requests than before, since it merges and splits them, and in another order. Killed
between deleting an item that was under way and putting it back, the Collector can lose it (`enqueueNotDispatchedReqs`
in exporterhelper's persistent queue); the witness between the two tells such a loss from one of the receiver.
"""

import random
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from pathlib import Path

import grpc
import pytest

from tests.e2e.up import Up
from tests.otlp import NOON, Point, Value, call, logs_request, metrics_request, spans_request
from tests.peers.collector.build import build
from tests.peers.collector.process import Collector
from tests.peers.collector.witness import Witness
from tests.peers.install import UnavailableError
from tests.waiting import eventually

pytestmark = [pytest.mark.peers, pytest.mark.timeout(1800)]

MANIFEST = Path(__file__).parent / "collector" / "manifest.yaml"
BUILDER = "v0.159.0"
SERVICE = "/opentelemetry.proto.collector."
SENDERS = 3
TENANTS = 4
PAUSE_SECONDS = 0.05
"""Between two requests of a sender: the bound is the listing of every event at the end."""


@pytest.fixture(scope="module")
def program() -> Path:
    try:
        return build(MANIFEST, BUILDER)
    except UnavailableError as error:
        pytest.skip(f"no Collector can be built: {error}")


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
        count = self._chance.choice([1, 5, 40, 300, 900])
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
            call(self._address, body, None, method=method, timeout=10)
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
    eventually(lambda: count_of(up), lambda count: count >= len(expected), seconds=90)
    listed = list(events(up))
    assert [name for name, times in Counter(name for name, _ in listed).items() if times > 1] == []
    assert dict(listed) == expected


@pytest.mark.parametrize("exporter", ["otlp_grpc/meter", "otlp_http/meter"])
def test_what_a_collector_acknowledged_is_counted_once_when_the_receiver_is_killed(
    program: Path, new_up: Up, tmp_path: Path, exporter: str
) -> None:
    up, chance, moment = new_up, random.Random(exporter), threading.Event()
    up.start()
    collector = Collector(program, tmp_path, exporter, up.grpc, up.http)
    collector.start()
    try:
        with Load(collector.grpc, 1) as load:
            for _ in range(3):
                moment.wait(chance.uniform(0.5, 2))
                up.kill()
                up.start()
        sent = load.sent()
        assert len(sent) > 2_000

        assert_each_counts_once(up, sent)
    finally:
        collector.kill()


@pytest.mark.parametrize("exporter", ["otlp_grpc/meter", "otlp_http/meter"])
def test_what_the_receiver_acknowledged_to_a_collector_is_counted_once_when_both_are_killed(
    program: Path, new_up: Up, tmp_path: Path, exporter: str
) -> None:
    up, chance, moment = new_up, random.Random(exporter), threading.Event()
    up.start()
    with Witness(up, seed=1) as witness:
        collector = Collector(program, tmp_path, exporter, witness.grpc, witness.http)
        collector.start()
        try:
            with Load(collector.grpc, 2) as load:
                for number in range(9):
                    moment.wait(chance.uniform(0.2, 1.5))
                    one: Collector | Up = up if number % 3 == 2 else collector
                    one.kill()
                    one.start()
            sent = load.sent()
            assert len(sent) > 2_000

            lost = _never_acknowledged(witness, sent)
            assert_each_counts_once(
                up, {name: value for name, value in sent.items() if name not in lost}
            )
            assert max(witness.acknowledged.values()) > 1, "nothing was sent twice"
        finally:
            collector.kill()
    if lost:
        pytest.xfail(f"the Collector lost {len(lost)} of {len(sent)} items it had acknowledged")


def _never_acknowledged(witness: Witness, sent: dict[str, Decimal]) -> set[str]:
    """What the receiver never got, when nothing more has come for a minute."""
    while missing := len(sent.keys() - witness.acknowledged):
        try:
            eventually(
                lambda: len(sent.keys() - witness.acknowledged),
                lambda left, before=missing: left < before,  # type: ignore[misc] # bound now
                seconds=60,
            )
        except AssertionError:
            return set(sent.keys() - witness.acknowledged)
    return set()
