"""A model of a Collector's exporter: sending queue on disk, consumers, batching, retry without end.

It does to requests what the Collector is known to do (exporterhelper and its queuebatch and
persistent_queue packages): it merges queued requests and cuts them anywhere between two data points,
copying the headers; it sends again what was delivered when the answer got lost; killed, it puts what was
in flight at the end of its queue; and it replays a request whole of which parts were delivered.

Every decision follows from one integer; how threads interleave does not.
"""

import random
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

from google.protobuf.message import Message
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests.faults.usage import LOGS, METRICS, SPANS, Item, Request

CONSUMERS: Final = 3
MAX_CRASHES: Final = 3
LOST_ANSWERS: Final = 0.15
"""Share of the deliveries whose answer never reaches the exporter."""

NEW_HEADER: Final = 0.06
"""Share of the items before which headers are written again."""

_REQUESTS: Final[Mapping[str, Callable[[], Message]]] = {
    METRICS: ExportMetricsServiceRequest,
    SPANS: ExportTraceServiceRequest,
    LOGS: ExportLogsServiceRequest,
}
_NOUNS: Final = {METRICS: "metrics", SPANS: "spans", LOGS: "logs"}
_LEAVES: Final = {SPANS: "spans", LOGS: "log_records"}

NOT_SYNCED: Final = 0.2
"""Share of the delivered requests that a crash brings back."""

Send = Callable[[str, Message, random.Random], bool]
"""Signal, request, source of chance -> whether it was acknowledged. Raises when it was refused for good."""


class Collector:
    """Delivers requests until each was acknowledged, as badly as allowed."""

    def __init__(self, seed: int, requests: Sequence[Request], send: Send) -> None:
        self._seed = seed
        self._send = send
        self._queue = deque(requests)
        self._in_flight: list[Request] = []
        self._done: list[Request] = []
        self._lock = threading.Lock()
        self._crashed = threading.Event()
        self._attempts_to_crash = 0
        self.deliveries = 0

    def run(self) -> None:
        """Deliver all of it. Raises what `Send` raises."""
        chance = random.Random(f"collector {self._seed}")
        request_count = len(self._queue)
        crashes = [chance.randrange(1, request_count) for _ in range(chance.randrange(MAX_CRASHES))]
        for life, attempts in enumerate([*crashes, 0]):
            self._live(life, attempts)
        assert not self._queue
        assert not self._in_flight

    def _live(self, life: int, attempts_to_crash: int) -> None:
        """From start to end of the process: a crash after so many attempts (0: none), or all is done."""
        self._crashed.clear()
        self._attempts_to_crash = attempts_to_crash
        # What was in flight at the crash goes to the end of the queue, whole.
        self._queue.extend(self._in_flight)
        self._in_flight.clear()
        # So does some of what was done, if the queue's file is not synced (file_storage's default).
        chance = random.Random(f"{self._seed} {life}")
        self._queue.extend(one for one in self._done if chance.random() < NOT_SYNCED)
        with ThreadPoolExecutor(CONSUMERS) as threads:
            running = [
                threads.submit(self._consume, random.Random(f"{self._seed} {life} {number}"))
                for number in range(CONSUMERS)
            ]
        for one in running:
            one.result()

    def _consume(self, chance: random.Random) -> None:
        while taken := self._take(chance):
            items = [item for request in taken for item in request]
            for part in _cut(items, chance):
                self._deliver(part, chance)
                if self._crashed.is_set():
                    return  # parts may be delivered; `taken` is still in flight
            with self._lock:
                for request in taken:
                    self._in_flight.remove(request)
                self._done += taken

    def _take(self, chance: random.Random) -> list[Request]:
        """The next request, or several of its signal that become one."""
        with self._lock:
            taken: list[Request] = []
            wanted = chance.choice([1, 1, 1, 2, 4])
            while self._queue and len(taken) < wanted:
                if taken and self._queue[0][0].signal != taken[0][0].signal:
                    break
                taken.append(self._queue.popleft())
            self._in_flight += taken
            return taken

    def _deliver(self, part: Sequence[Item], chance: random.Random) -> None:
        """Send until it is acknowledged, or the process ends."""
        backoff = 0.01
        while not self._crashed.is_set():
            # Each attempt copies headers anew: other bytes, the same points.
            message = encode(part, chance)
            is_acknowledged = self._send(part[0].signal, message, chance)
            self._count_attempt()
            if is_acknowledged and chance.random() >= LOST_ANSWERS:
                return
            if chance.random() < 0.5:  # otherwise at once, as SDKs do on a broken connection
                self._crashed.wait(backoff)
                backoff = min(2 * backoff, 0.3)

    def _count_attempt(self) -> None:
        with self._lock:
            self.deliveries += 1
            self._attempts_to_crash -= 1
            if self._attempts_to_crash == 0:
                self._crashed.set()


def _cut(items: Sequence[Item], chance: random.Random) -> list[Sequence[Item]]:
    """Into one to four parts, anywhere between two items, in any order."""
    pieces = min(chance.choice([1, 1, 2, 3, 4]), len(items))
    places = sorted(chance.sample(range(1, len(items)), pieces - 1))
    parts = [
        items[begin:end] for begin, end in zip([0, *places], [*places, len(items)], strict=True)
    ]
    chance.shuffle(parts)
    return parts


def encode(items: Sequence[Item], chance: random.Random) -> Message:
    """An export request; headers are shared by neighbours that agree in them, mostly."""
    request = _REQUESTS[items[0].signal]()
    before: Item | None = None
    outer: Any = None
    inner: Any = None
    for item in items:
        if before is None or item.resource != before.resource or chance.random() < NEW_HEADER:
            before, outer = None, _add(request, f"resource_{_NOUNS[item.signal]}")
            outer.resource.CopyFrom(item.resource)
        if before is None or item.scope != before.scope or chance.random() < NEW_HEADER:
            before, inner = None, _add(outer, f"scope_{_NOUNS[item.signal]}")
            inner.scope.CopyFrom(item.scope)
        if item.metric is None:
            _list(inner, _LEAVES[item.signal]).append(item.leaf)
        else:
            if before is None or item.metric != before.metric or chance.random() < NEW_HEADER:
                inner.metrics.append(item.metric)
            inner.metrics[-1].sum.data_points.append(item.leaf)
        before = item
    return request


def _list(message: Any, name: str) -> Any:
    return getattr(message, name)


def _add(message: Any, name: str) -> Any:
    return _list(message, name).add()
