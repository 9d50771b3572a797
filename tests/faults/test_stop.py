"""A stop under load: what was acknowledged is in the database when the process has ended, and once."""

import http.client
import json
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import grpc
import pytest

from otel_metering.spool import open_spool
from tests.e2e.up import KEY, Up
from tests.faults.transport import RETRYABLE_GRPC, RETRYABLE_HTTP
from tests.otlp import GRPC_METRICS, NOON, PROTOBUF, Point, metrics_request
from tests.waiting import eventually

SENDERS = 4
POINTS = 20

STORED = """
import json, sys
from receiver.store.client import Store
store = Store(f"chdb://{sys.argv[1]}")
rows = store.query(
    "SELECT attributes['request'], count(), uniqExact(event_id) FROM metering.events GROUP BY 1"
)
rollups = [
    int(store.query(f"SELECT sum(quantity_count) FROM metering.usage_{width}")[0][0])
    for width in ("minute", "hour", "day", "month")
]
print(json.dumps([[list(row) for row in rows], rollups]))
store.close()
"""


class Sender:
    """Sends each request once, over one connection that it keeps, until nobody listens any more."""

    def __init__(self, up: Up, name: str) -> None:
        self._up, self._name = up, name
        self.acknowledged: set[str] = set()
        self.unknown: set[str] = set()
        self._number = 0

    def run(self, ended: threading.Event) -> None:
        """Until the process has ended."""
        with (
            grpc.insecure_channel(self._up.grpc) as channel,
            closing(http.client.HTTPConnection(self._up.http, timeout=20)) as connection,
        ):
            while not ended.is_set():
                self._number += 1
                request = f"{self._name}.{self._number}"
                points = [
                    Point("stopped", 1, at_ns=NOON + number, attributes={"request": request})
                    for number in range(POINTS)
                ]
                body = metrics_request(points).SerializeToString()
                if "grpc" in self._name:
                    is_acknowledged = _by_grpc(channel, body)
                else:
                    is_acknowledged = _by_http(connection, body)
                (self.acknowledged if is_acknowledged else self.unknown).add(request)
                if not is_acknowledged:
                    ended.wait(0.01)


def _by_grpc(channel: grpc.Channel, body: bytes) -> bool:
    export: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(
        GRPC_METRICS, request_serializer=None, response_deserializer=None
    )
    try:
        export(body, timeout=20, metadata=(("authorization", f"Bearer {KEY}"),))
    except grpc.RpcError as error:
        if error.code() not in RETRYABLE_GRPC:
            raise
        return False
    return True


def _by_http(connection: http.client.HTTPConnection, body: bytes) -> bool:
    headers = {"authorization": f"Bearer {KEY}", "content-type": PROTOBUF}
    try:
        connection.request("POST", "/v1/metrics", body, headers)
        response = connection.getresponse()
        response.read()
    except (OSError, http.client.HTTPException):
        connection.close()  # the next request opens it again
        return False
    assert response.status in {200, *RETRYABLE_HTTP}, response.status
    return response.status == 200


def stored(data_dir: Path) -> tuple[dict[str, tuple[int, int]], list[int]]:
    """What the database of an ended process holds: request -> (events, different ids); rollups' counts."""
    run = subprocess.run(
        [sys.executable, "-c", STORED, data_dir / "clickhouse"],
        check=True,
        capture_output=True,
        text=True,
    )
    rows, rollups = json.loads(run.stdout)
    return {request: (count, ids) for request, count, ids in rows}, rollups


def stop(up: Up, numbers: Sequence[signal.Signals], chance: random.Random) -> int:
    """Ask for an end several times, at odd moments; returns the exit status."""
    for number in numbers:
        up.send_signal(number)
        threading.Event().wait(chance.uniform(0, 0.3))
    return up.wait()


@pytest.fixture
def up(tmp_path: Path) -> Iterator[Up]:
    made = Up(tmp_path)
    try:
        yield made
    finally:
        if made.is_running:
            made.kill()


@pytest.mark.parametrize(
    ("round_", "signals"),
    [
        (1, [signal.SIGTERM]),
        (2, [signal.SIGTERM, signal.SIGTERM, signal.SIGINT]),
        (3, [signal.SIGINT, signal.SIGINT, signal.SIGTERM, signal.SIGTERM]),
    ],
)
def test_after_a_stop_under_load_the_database_holds_what_was_acknowledged_and_each_once(
    up: Up, round_: int, signals: list[signal.Signals]
) -> None:
    chance, ended = random.Random(round_), threading.Event()
    up.start()
    senders = [Sender(up, f"{'grpc' if i % 2 else 'http'}.{i}") for i in range(SENDERS)]

    with ThreadPoolExecutor(SENDERS) as threads:
        running = [threads.submit(sender.run, ended) for sender in senders]
        try:
            eventually(lambda: min(len(one.acknowledged) for one in senders), lambda n: n > 20)
            threading.Event().wait(chance.uniform(0, 0.5))
            status = stop(up, signals, chance)
        finally:
            ended.set()
    for one in running:
        one.result()

    # A signal that comes when all is said and done may still end the process by itself.
    assert status == 0 or (len(signals) > 1 and -status in signals), "".join(up.printed)
    assert up.printed[-1] == "stopped; everything acknowledged is in the database\n"
    with closing(open_spool(up.data_dir / "spool" / "receiver.db")) as spool:
        assert spool.entry_count == 0
    acknowledged = {request for sender in senders for request in sender.acknowledged}
    unknown = {request for sender in senders for request in sender.unknown}
    found, rollups = stored(up.data_dir)
    assert acknowledged <= found.keys() <= acknowledged | unknown
    assert set(found.values()) == {(POINTS, POINTS)}
    assert set(rollups) == {POINTS * len(found)}
