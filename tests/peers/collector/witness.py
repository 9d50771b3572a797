"""A hop between Collector and receiver that knows which items the receiver acknowledged.

It also keeps some answers to itself, as a broken connection does: then the Collector sends again what is
stored already. Every item carries its name in the attribute `n`.
"""

import gzip
import http.client
import random
import threading
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import grpc
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import KeyValue

from tests.conformance.test_tls import Pki
from tests.e2e.up import KEY, Up
from tests.otlp import post

OPTIONS = [("grpc.initial_reconnect_backoff_ms", 100), ("grpc.max_reconnect_backoff_ms", 300)]
LOST_ANSWERS = 0.15


class Witness:
    """Listens for both transports, for gRPC with TLS, and forwards to the same transport of `up`."""

    def __init__(self, up: Up, pki: Pki, seed: int) -> None:
        self.acknowledged: Counter[str] = Counter()
        """Name of an item -> how often the receiver acknowledged it."""
        self._up = up
        self._chance = random.Random(seed)
        self._lock = threading.Lock()
        self._channel = grpc.insecure_channel(up.grpc, options=OPTIONS)
        self._grpc = grpc.server(ThreadPoolExecutor(8))
        self._grpc.add_generic_rpc_handlers((_Calls(self),))
        key, certificate = pki.path("one.key").read_bytes(), pki.path("one.crt").read_bytes()
        credentials = grpc.ssl_server_credentials([(key, certificate)])
        self.grpc = f"127.0.0.1:{self._grpc.add_secure_port('127.0.0.1:0', credentials)}"
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), _posts(self))
        self.http = f"127.0.0.1:{self._http.server_port}"
        self._serving = threading.Thread(target=self._http.serve_forever, daemon=True)

    def __enter__(self) -> "Witness":
        self._grpc.start()
        self._serving.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._serving.join()
        self._grpc.stop(1).wait()
        self._channel.close()

    def call(self, method: str, body: bytes, context: grpc.ServicerContext) -> bytes:
        """One gRPC call of the Collector."""
        export: grpc.UnaryUnaryMultiCallable[bytes, bytes] = self._channel.unary_unary(method)
        try:
            answer = export(body, timeout=4, metadata=(("authorization", f"Bearer {KEY}"),))
        except grpc.RpcError as error:
            context.abort(error.code(), error.details() or "")
        if self._is_answer_lost(method, body):
            context.abort(grpc.StatusCode.UNAVAILABLE, "the answer got lost")
        return answer

    def post(self, path: str, body: bytes, headers: dict[str, str]) -> tuple[int, bytes]:
        """One POST of the Collector."""
        try:
            status, answer, _ = post(self._up.http, path, body, KEY, headers=headers, timeout=4)
        except (OSError, http.client.HTTPException):
            return 503, b""
        plain = gzip.decompress(body) if headers.get("content-encoding") == "gzip" else body
        if status == 200 and self._is_answer_lost(path, plain):
            return 503, b""
        return status, answer

    def _is_answer_lost(self, where: str, body: bytes) -> bool:
        with self._lock:
            self.acknowledged.update(names_in(where, body))
            return self._chance.random() < LOST_ANSWERS


def names_in(where: str, body: bytes) -> Iterator[str]:
    """The `n` of every item of an export request; `where` is its gRPC method or HTTP path."""
    for attributes in _attributes_in(where.lower(), body):
        for pair in attributes:
            if pair.key == "n":
                yield pair.value.string_value


def _attributes_in(where: str, body: bytes) -> Iterator[Iterable[KeyValue]]:
    if "metrics" in where:
        for resource in ExportMetricsServiceRequest.FromString(body).resource_metrics:
            for scope in resource.scope_metrics:
                for metric in scope.metrics:
                    yield from (point.attributes for point in metric.sum.data_points)
    elif "trace" in where:
        for spans in ExportTraceServiceRequest.FromString(body).resource_spans:
            for scoped in spans.scope_spans:
                yield from (span.attributes for span in scoped.spans)
    else:
        for logs in ExportLogsServiceRequest.FromString(body).resource_logs:
            for records in logs.scope_logs:
                yield from (record.attributes for record in records.log_records)


class _Calls(grpc.GenericRpcHandler):
    def __init__(self, witness: Witness) -> None:
        self._witness = witness

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        method = handler_call_details.method
        return grpc.unary_unary_rpc_method_handler(
            lambda body, context: self._witness.call(method, body, context)
        )


def _posts(witness: Witness) -> type[BaseHTTPRequestHandler]:
    class Posts(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            names = ("content-type", "content-encoding")
            headers = {name: self.headers[name] for name in names if name in self.headers}
            status, answer = witness.post(self.path, body, headers)
            self.send_response(status)
            self.send_header("content-type", "application/x-protobuf")
            self.send_header("content-length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    return Posts
