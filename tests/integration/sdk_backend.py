"""A real OTLP/HTTP server on loopback that misbehaves as told, and the totals that it was sent."""

import gzip
import ssl
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from decimal import Decimal
from enum import Enum
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import repeat
from pathlib import Path
from typing import NamedTuple

from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsPartialSuccess,
    ExportMetricsServiceRequest,
    ExportMetricsServiceResponse,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span

import otel_metering


class Act(Enum):
    """What the server does with a request that is not simply taken."""

    HANG_UP = "close the connection, take nothing"
    LOSE_ANSWER = "take it, then close the connection without an answer"
    HANG = "take it, then answer nothing for as long as the server runs"
    HANG_UNREAD = "take nothing, answer nothing for as long as the server runs"
    REJECT_ONE = "take it, but say that one point was rejected"
    WARN = "take it, with a warning"
    NOT_OTLP = "answer 200 with a web page"


TAKING = (200, Act.LOSE_ANSWER, Act.HANG, Act.REJECT_ONE, Act.WARN)


class Point(NamedTuple):
    """What identifies a delta point, and its quantity."""

    instance: object
    meter: str
    attributes: tuple[tuple[str, object], ...]
    start_ns: int
    end_ns: int
    quantity: Decimal


class Backend:
    """What arrived. `script` says what happens to the next requests: an `Act` or an HTTP status each.

    `chance` says it for the ones after those.

    Attributes:
        poison: A request with these bytes is answered 500 each time.
    """

    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint
        self.script: list[Act | int] = []
        self.poison: bytes | None = None
        self.chance: Iterator[Act | int] = repeat(200)
        self.headers: list[dict[str, str]] = []
        self.points: list[Point] = []
        self.events: list[tuple[str, Decimal, dict[str, object]]] = []
        self.spans: list[Span] = []
        self.request_sizes: list[int] = []
        self.stopped = threading.Event()
        self.lock = threading.Lock()

    def totals(self) -> dict[tuple[str, object], Decimal]:
        """Sum by (meter, tenant), each point once however often it came."""
        sums: dict[tuple[str, object], Decimal] = {}
        with self.lock:
            points = set(self.points)
        for point in points:
            key = (point.meter, dict(point.attributes).get("tenant.id"))
            sums[key] = sums.get(key, Decimal(0)) + point.quantity
        return sums

    def total(self, meter: str, tenant: str | None = "tenant_a") -> Decimal:
        return self.totals().get((meter, tenant), Decimal(0))

    def take(self, path: str, body: bytes) -> None:
        with self.lock:
            if path.endswith("/v1/metrics"):
                self._take_metrics(ExportMetricsServiceRequest.FromString(body))
            elif path.endswith("/v1/logs"):
                self._take_logs(ExportLogsServiceRequest.FromString(body))
            else:
                request = ExportTraceServiceRequest.FromString(body)
                for resource_spans in request.resource_spans:
                    for scope_spans in resource_spans.scope_spans:
                        self.spans.extend(scope_spans.spans)

    def _take_metrics(self, request: ExportMetricsServiceRequest) -> None:
        count = 0
        for resource_metrics in request.resource_metrics:
            instance = attributes_of(resource_metrics.resource.attributes)["service.instance.id"]
            for scope_metrics in resource_metrics.scope_metrics:
                assert scope_metrics.scope.name == "otel_metering"
                for metric in scope_metrics.metrics:
                    assert metric.sum.is_monotonic
                    assert metric.sum.aggregation_temporality == 1
                    for point in metric.sum.data_points:
                        attributes = attributes_of(point.attributes)
                        scale = attributes.get("metering.quantity.scale", 0)
                        assert isinstance(scale, int)
                        count += 1
                        self.points.append(
                            Point(
                                instance,
                                metric.name,
                                tuple(sorted(attributes.items())),
                                point.start_time_unix_nano,
                                point.time_unix_nano,
                                Decimal(point.as_int).scaleb(-scale),
                            )
                        )
        self.request_sizes.append(count)

    def _take_logs(self, request: ExportLogsServiceRequest) -> None:
        for resource_logs in request.resource_logs:
            for scope_logs in resource_logs.scope_logs:
                for record in scope_logs.log_records:
                    attributes = attributes_of(record.attributes)
                    quantity = Decimal(str(attributes.pop("metering.quantity")))
                    self.events.append((record.event_name, quantity, attributes))


def attributes_of(pairs: Iterable[KeyValue]) -> dict[str, object]:
    """OTLP attributes as a dict of Python values."""
    found: dict[str, object] = {}
    for pair in pairs:
        found[pair.key] = getattr(pair.value, str(pair.value.WhichOneof("value")))
    return found


def response_of(act: object) -> bytes:
    """The body of a success, or of what claims to be one."""
    match act:
        case Act.REJECT_ONE:
            partial = ExportMetricsPartialSuccess(rejected_data_points=1, error_message="why")
        case Act.WARN:
            partial = ExportMetricsPartialSuccess(error_message="1 in quarantine: no_tenant")
        case Act.NOT_OTLP:
            return b"<html>log in</html>"
        case _:
            return b""
    return ExportMetricsServiceResponse(partial_success=partial).SerializeToString()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: "_Server"

    def do_POST(self) -> None:
        backend = self.server.backend
        body = self.rfile.read(int(self.headers["content-length"]))
        if self.headers.get("content-encoding") == "gzip":
            body = gzip.decompress(body)
        with backend.lock:
            backend.headers.append({name.lower(): value for name, value in self.headers.items()})
            act = backend.script.pop(0) if backend.script else next(backend.chance)
        if backend.poison is not None and backend.poison in body:
            act = 500
        if act in TAKING:
            backend.take(self.path, body)
        if act in (Act.HANG, Act.HANG_UNREAD):
            backend.stopped.wait(30)
        if act in (Act.LOSE_ANSWER, Act.HANG, Act.HANG_UNREAD, Act.HANG_UP):
            self.close_connection = True
        else:
            self.answer(act)

    def answer(self, act: Act | int) -> None:
        content = response_of(act)
        self.send_response(act if isinstance(act, int) else 200)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        """Stay quiet."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, tls: ssl.SSLContext | None) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        if tls is not None:
            self.socket = tls.wrap_socket(self.socket, server_side=True)
        scheme = "http" if tls is None else "https"
        self.backend = Backend(f"{scheme}://127.0.0.1:{self.server_port}")

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that hangs up is part of the tests."""


Configure = Callable[..., None]


@contextmanager
def configured(backend: Backend, spool_dir: Path, **defaults: object) -> Iterator[Configure]:
    """`otel_metering.configure`, for a backend, with short pauses; shut down at the end."""

    def call(**arguments: object) -> None:
        common: dict[str, object] = {
            "service_name": "shop",
            "endpoint": backend.endpoint,
            "spool_dir": spool_dir,
            "flush_interval_seconds": 60.0,
            "retry_initial_seconds": 0.01,
            "retry_max_seconds": 0.05,
        }
        otel_metering.configure(**{**common, **defaults, **arguments})  # type: ignore[arg-type] # checked at run time, which is tested

    try:
        yield call
    finally:
        otel_metering.shutdown()


def deliver() -> None:
    assert otel_metering.flush(send=True, timeout_seconds=20)


@contextmanager
def running_backend(tls: ssl.SSLContext | None = None) -> Iterator[Backend]:
    """Serve until the block ends."""
    with _Server(tls) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield server.backend
        finally:
            server.backend.stopped.set()
            server.shutdown()
            thread.join()
