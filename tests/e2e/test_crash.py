"""kill -9 at random moments under load: nothing acknowledged is lost, nothing is counted twice."""

import http.client
import random
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import grpc
import pytest

from otel_metering.spool import open_spool
from tests.e2e.up import KEY, Up
from tests.oracle import FORMATS, Usage, totals
from tests.otlp import Point, Value, call, logs_request, metrics_request, post, spans_request

SENDERS = 4
SECOND = 10**9


class Sender:
    """Sends usage without end, each request until it is acknowledged, as a Collector does."""

    def __init__(self, up: Up, name: str, seed: int) -> None:
        self._up, self._name = up, name
        self._chance = random.Random(seed)
        self._number = 0
        self.usages: list[Usage] = []
        self.repeated = 0
        self.answers: set[object] = set()
        self._earlier: list[tuple[str, bytes]] = []

    def run(self, stopping: threading.Event) -> None:
        while not stopping.is_set():
            for path, body in self._requests():
                self._send(path, body)

    def _requests(self) -> Iterator[tuple[str, bytes]]:
        """New usage, and now and then a request that was acknowledged before."""
        kind = self._chance.randrange(10)
        request = self._metrics() if kind < 8 else self._spans() if kind == 8 else self._logs()
        self._earlier.append(request)
        yield request
        if self._chance.random() < 0.2:
            self.repeated += 1
            yield self._chance.choice(self._earlier)

    def _metrics(self) -> tuple[str, bytes]:
        points = []
        for _ in range(self._chance.randrange(1, 200)):
            self._number += 1
            points.append(
                Point(
                    f"tenant_{self._chance.randrange(5)}",
                    value=self._chance.choice([self._number, self._number / 8]),
                    at_ns=1_780_000_000 * SECOND + self._chance.randrange(10**6) * SECOND,
                    start_ns=1_770_000_000 * SECOND + self._number,
                    attributes={"sender": self._name},
                )
            )
        self.usages += [point.usage for point in points]
        return "/v1/metrics", metrics_request(points).SerializeToString()

    def _spans(self) -> tuple[str, bytes]:
        first, count = self._chance.randrange(2**100), self._chance.randrange(1, 20)
        at_ns = 1_780_000_000 * SECOND + self._chance.randrange(10**6) * SECOND
        attributes = {"tenant.id": "tenant_1", "http.route": "/x"}
        self.usages += [Usage("tenant_1", "http.requests", at_ns, 1)] * count  # type: ignore[arg-type]
        body = spans_request([attributes] * count, first_id=first % 2**60, end_ns=at_ns)
        return "/v1/traces", body.SerializeToString()

    def _logs(self) -> tuple[str, bytes]:
        self._number += 1
        at_ns = 1_780_000_000 * SECOND + self._number * SECOND
        record: dict[str, Value] = {
            "tenant.id": "tenant_2",
            "metering.event.id": f"{self._name}-{self._number}",
            "metering.quantity": self._number,
        }
        self.usages.append(Usage("tenant_2", "orders", at_ns, self._number))  # type: ignore[arg-type]
        body = logs_request([record], event_name="orders", at_ns=at_ns)
        return "/v1/logs", body.SerializeToString()

    def _send(self, path: str, body: bytes) -> None:
        """Until it is acknowledged, also after the end was asked for: what was made must be counted."""
        pause = threading.Event()
        while not self._is_acknowledged(path, body):
            pause.wait(0.05)

    def _is_acknowledged(self, path: str, body: bytes) -> bool:
        if path == "/v1/metrics" and self._name.endswith("grpc"):
            return self._is_acknowledged_by_grpc(body)
        try:
            status, _, _ = post(self._up.http, path, body, KEY, timeout=10)
        except (OSError, http.client.HTTPException):
            return False  # nobody listens, or the answer was cut off
        self.answers.add(status)
        return status == 200

    def _is_acknowledged_by_grpc(self, body: bytes) -> bool:
        try:
            call(self._up.grpc, body, KEY, timeout=10)
        except grpc.RpcError as error:
            self.answers.add(error.code())
            return False
        return True


RETRYABLE = {
    200,
    503,
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.CANCELLED,
}


class Load:
    """Senders that work until the end of the block, and then until all they made is acknowledged."""

    def __init__(self, up: Up, seed: int) -> None:
        names = [f"s{i}.{'grpc' if i % 2 else 'http'}" for i in range(SENDERS)]
        self._senders = [Sender(up, name, seed * 100 + i) for i, name in enumerate(names)]
        self._stopping = threading.Event()
        self._threads = ThreadPoolExecutor(SENDERS)

    def __enter__(self) -> "Load":
        self._running = [self._threads.submit(one.run, self._stopping) for one in self._senders]
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._threads.shutdown()

    def usages(self) -> list[Usage]:
        for one in self._running:
            one.result(timeout=1)
        # Any other answer would have made an OTLP client drop its data.
        assert set().union(*(sender.answers for sender in self._senders)) <= RETRYABLE
        assert sum(sender.repeated for sender in self._senders) > 0
        return [usage for sender in self._senders for usage in sender.usages]


@pytest.mark.parametrize(
    ("seed", "kills"),
    [(1, 8), pytest.param(2, 200, marks=[pytest.mark.long, pytest.mark.timeout(1800)])],
)
def test_kill_9_at_random_moments_under_load_keeps_totals_exact(
    new_up: Up, seed: int, kills: int
) -> None:
    up, chance, moment = new_up, random.Random(seed), threading.Event()

    up.start()
    with Load(up, seed) as load:
        for _ in range(kills):
            moment.wait(chance.uniform(0.0, 1.5))
            up.kill()
            up.start()

    usages = load.usages()
    assert len(usages) > 1_000
    for window in FORMATS:
        up.eventually_totals(totals(usages, window), window, seconds=60)
    assert up.stop() == 0


def test_a_stop_under_load_writes_everything_acknowledged_into_the_database(new_up: Up) -> None:
    up, moment = new_up, threading.Event()

    up.start()
    with Load(up, 3) as load:
        for _ in range(3):
            moment.wait(1)
            assert up.stop() == 0
            assert up.printed[-1] == "stopped; everything acknowledged is in the database\n"
            with closing(open_spool(up.data_dir / "spool" / "receiver.db")) as spool:
                assert spool.entry_count == 0
            up.start()

    usages = load.usages()
    for window in FORMATS:
        up.eventually_totals(totals(usages, window), window, seconds=60)
    assert up.stop() == 0
