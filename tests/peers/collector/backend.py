"""The backend that users have beside us: takes OTLP/HTTP, and remembers the names of what it got."""

import gzip
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest


class Backend:
    """Listens inside the block.

    Attributes:
        got: Names of metrics and spans, and event names of log records.
    """

    def __init__(self) -> None:
        self.got: set[str] = set()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _posts(self))
        self._serving = threading.Thread(target=self._server.serve_forever, daemon=True)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> "Backend":
        self._serving.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._serving.join()


def names_in(path: str, body: bytes) -> Iterator[str]:
    """Of every item of an export request."""
    if path == "/v1/metrics":
        for metrics in ExportMetricsServiceRequest.FromString(body).resource_metrics:
            yield from (one.name for scope in metrics.scope_metrics for one in scope.metrics)
    elif path == "/v1/traces":
        for spans in ExportTraceServiceRequest.FromString(body).resource_spans:
            yield from (one.name for scope in spans.scope_spans for one in scope.spans)
    else:
        for logs in ExportLogsServiceRequest.FromString(body).resource_logs:
            yield from (one.event_name for scope in logs.scope_logs for one in scope.log_records)


def _posts(backend: Backend) -> type[BaseHTTPRequestHandler]:
    class Posts(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            if self.headers.get("content-encoding") == "gzip":
                body = gzip.decompress(body)
            backend.got.update(names_in(self.path, body))
            self.send_response(200)
            self.send_header("content-type", "application/x-protobuf")
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            pass

    return Posts
