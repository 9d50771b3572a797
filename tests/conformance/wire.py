"""One request over every transport of OTLP, and what was answered, in one form."""

import base64
import gzip
import json
import socket
import struct
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import grpc
from backports import zstd
from google.protobuf import json_format
from google.rpc.error_details_pb2 import BadRequest, RetryInfo
from google.rpc.status_pb2 import Status
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import (
    ExportLogsServiceRequest,
    ExportLogsServiceResponse,
)
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
    ExportMetricsServiceResponse,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

from tests.e2e.up import KEY, Up
from tests.otlp import PROTOBUF, call, post, trailers_of

JSON = "application/json"
TRANSPORTS = ("grpc", PROTOBUF, JSON)

# google.rpc.Code
OK, INVALID_ARGUMENT, PERMISSION_DENIED, RESOURCE_EXHAUSTED = 0, 3, 7, 8
UNIMPLEMENTED, INTERNAL, UNAVAILABLE, UNAUTHENTICATED = 12, 13, 14, 16

Request = ExportMetricsServiceRequest | ExportTraceServiceRequest | ExportLogsServiceRequest


@dataclass(frozen=True)
class Signal:
    request: type[Request]
    response: Any
    path: str
    method: str


METRICS = Signal(
    ExportMetricsServiceRequest,
    ExportMetricsServiceResponse,
    "/v1/metrics",
    "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export",
)
TRACES = Signal(
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
    "/v1/traces",
    "/opentelemetry.proto.collector.trace.v1.TraceService/Export",
)
LOGS = Signal(
    ExportLogsServiceRequest,
    ExportLogsServiceResponse,
    "/v1/logs",
    "/opentelemetry.proto.collector.logs.v1.LogsService/Export",
)
SIGNALS = (METRICS, TRACES, LOGS)

COMPRESSORS: Mapping[str, Callable[[bytes], bytes]] = {
    "none": lambda body: body,
    "identity": lambda body: body,
    "gzip": lambda body: gzip.compress(body, 1),
    "deflate": zlib.compress,
    "zlib": zlib.compress,
    "zstd": zstd.compress,
}
GRPC_COMPRESSION = {
    "gzip": grpc.Compression.Gzip,
    "deflate": grpc.Compression.Deflate,
}


@dataclass(frozen=True)
class Answer:
    """What a request was answered with, whatever the transport.

    Attributes:
        code: google.rpc.Code.
        http: HTTP status; None: gRPC.
        message: Of the status.
        details: Of the status: full name of a type -> JSON.
        body: As it came.
        headers: Of HTTP; of gRPC the trailers.
    """

    code: int
    http: int | None
    message: str
    details: Mapping[str, Any]
    body: bytes
    headers: Mapping[str, Any]

    @property
    def is_retryable(self) -> bool:
        """As a conforming client decides (OTLP specification, "Failures")."""
        if self.http is not None:
            return self.http in (429, 502, 503, 504)
        if self.code == RESOURCE_EXHAUSTED:
            return "google.rpc.RetryInfo" in self.details
        return self.code in (1, 4, 10, 11, 14, 15)


def encode(request: Request, transport: str) -> bytes:
    return otlp_json(request) if transport == JSON else request.SerializeToString()


def signal_of(request: Request) -> Signal:
    return next(signal for signal in SIGNALS if isinstance(request, signal.request))


def send(
    up: Up,
    transport: str,
    request: Request | bytes,
    *,
    signal: Signal | None = None,
    key: str | None = KEY,
    compression: str = "none",
) -> Answer:
    """Send a request, or the bytes of one, and read the answer."""
    if isinstance(request, bytes):
        signal, body = signal or METRICS, request
    else:
        signal, body = signal or signal_of(request), encode(request, transport)
    if transport == "grpc":
        how = GRPC_COMPRESSION.get(compression, grpc.Compression.NoCompression)
        return _call(up, signal, body, key, how)
    headers = {"content-type": transport}
    if compression != "none":
        headers["content-encoding"] = compression
        body = COMPRESSORS[compression](body)
    return read_http(*post(up.http, signal.path, body, key, headers=headers))


def read_http(status: int, body: bytes, headers: Mapping[str, str]) -> Answer:
    """An HTTP answer; the body of everything but 200 must be a google.rpc.Status."""
    if status == 200:
        return Answer(OK, status, "", {}, body, headers)
    if headers["content-type"] == PROTOBUF:
        parsed = Status.FromString(body)
    else:
        assert headers["content-type"] == JSON
        parsed = json_format.Parse(body, Status())
    return Answer(parsed.code, status, parsed.message, _details(parsed), body, headers)


def _call(
    up: Up, signal: Signal, body: bytes, key: str | None, compression: grpc.Compression
) -> Answer:
    try:
        answered = call(up.grpc, body, key, method=signal.method, compression=compression)
    except grpc.RpcError as error:
        trailers = trailers_of(error)
        details = trailers.get("grpc-status-details-bin", b"")
        assert isinstance(details, bytes)
        return Answer(
            error.code().value[0],
            None,
            error.details() or "",
            _details(Status.FromString(details)),
            b"",
            trailers,
        )
    return Answer(OK, None, "", {}, answered, {})


def _details(status: Status) -> dict[str, Any]:
    found = {}
    for packed in status.details:
        for kind in (BadRequest, RetryInfo):
            if packed.Is(kind.DESCRIPTOR):
                message = kind()
                packed.Unpack(message)
                found[kind.DESCRIPTOR.full_name] = json_format.MessageToDict(message)
    return found


def warning_of(answer: Answer, transport: str, signal: Signal = METRICS) -> str:
    """The message of a partial success, which must have rejected nothing; empty: there is none."""
    response = signal.response()
    if transport == JSON:
        json_format.Parse(answer.body, response)
    else:
        response.ParseFromString(answer.body)
    if not response.HasField("partial_success"):
        return ""
    partial = response.partial_success
    assert [value for field, value in partial.ListFields() if field.name != "error_message"] == []
    return str(partial.error_message)


def otlp_json(request: Request) -> bytes:
    """The request in OTLP/JSON, by protobuf's own JSON printer and the two rules that OTLP adds to it."""
    plain = json_format.MessageToDict(request, use_integers_for_enums=True)
    return json.dumps(_hex_ids(plain)).encode()


def _hex_ids(value: Any) -> Any:
    match value:
        case dict():
            return {
                key: base64.b64decode(item).hex()
                if key in ("traceId", "spanId", "parentSpanId")
                else _hex_ids(item)
                for key, item in value.items()
            }
        case list():
            return [_hex_ids(item) for item in value]
        case _:
            return value


def raw_grpc_call(address: str, encoding: str, message: bytes, *, is_compressed: bool) -> bytes:
    """What a gRPC server answers, frame by frame, to an encoding that grpcio's client does not have."""
    host, _, port = address.partition(":")
    headers = {
        ":method": "POST",
        ":scheme": "http",
        ":path": METRICS.method,
        ":authority": "test",
        "content-type": "application/grpc",
        "te": "trailers",
        "authorization": f"Bearer {KEY}",
    }
    if encoding:
        headers["grpc-encoding"] = encoding
    # HPACK: each a literal without indexing and without Huffman coding.
    block = b"".join(
        b"\0" + bytes([len(name)]) + name.encode() + bytes([len(value)]) + value.encode()
        for name, value in headers.items()
    )
    data = bytes([is_compressed]) + struct.pack(">I", len(message)) + message
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
            + _frame(4, 0, 0, b"")
            + _frame(1, 4, 1, block)
            + _frame(0, 1, 1, data)
        )
        answered = b""
        while b"grpc-status" not in answered:
            part = connection.recv(65_536)
            assert part, answered
            answered += part
        return answered


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    head = struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream)
    return head + payload
