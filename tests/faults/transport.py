"""OTLP on the wire as a careless client speaks it: connections cut at any moment, answers unread."""

import gzip
import http.client
import json
import random
import socket
import threading
from base64 import b64decode
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any, Final

import grpc
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message

from tests.otlp import PROTOBUF

JSON: Final = True
"""Whether OTLP/JSON is sent as well."""

METHODS: Final = {
    "metrics": "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export",
    "traces": "/opentelemetry.proto.collector.trace.v1.TraceService/Export",
    "logs": "/opentelemetry.proto.collector.logs.v1.LogsService/Export",
}

RETRYABLE_HTTP: Final = {429, 502, 503, 504}
RETRYABLE_GRPC: Final = {
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.ABORTED,
    grpc.StatusCode.OUT_OF_RANGE,
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DATA_LOSS,
}
"""OTLP specification, "Failures": after every other code the client drops the data."""

CUT_OFF: Final = 0.06
"""Share of the attempts at the end of which the client does not wait for the answer."""

TIMEOUT_SECONDS: Final = 10.0


class RefusedError(AssertionError):
    """The receiver answered in a way that makes exporters drop usage."""


class Transports:
    """Every way to send a request; each attempt takes one by chance."""

    def __init__(self, grpc_address: str, http_address: str, key: str) -> None:
        self._http_address = http_address
        self._authorization = f"Bearer {key}"
        self._channel = grpc.insecure_channel(
            grpc_address,
            options=[
                ("grpc.initial_reconnect_backoff_ms", 50),
                ("grpc.min_reconnect_backoff_ms", 50),
                ("grpc.max_reconnect_backoff_ms", 300),
            ],
        )
        self.answers: set[object] = set()

    def close(self) -> None:
        self._channel.close()

    def send(self, signal: str, message: Message, chance: random.Random) -> bool:
        """Whether it was acknowledged.

        Raises:
            RefusedError: It was refused for good.
        """
        ways = [self._by_grpc, self._by_http, *([self._by_json] if JSON else [])]
        return chance.choice(ways)(signal, message, chance)

    def _by_grpc(self, signal: str, message: Message, chance: random.Random) -> bool:
        export: grpc.UnaryUnaryMultiCallable[bytes, bytes] = self._channel.unary_unary(
            METHODS[signal], request_serializer=None, response_deserializer=None
        )
        compression = chance.choice([grpc.Compression.Gzip, grpc.Compression.NoCompression])
        call = export.future(
            message.SerializeToString(),
            timeout=TIMEOUT_SECONDS,
            metadata=(("authorization", self._authorization),),
            compression=compression,
        )
        if chance.random() < CUT_OFF:
            threading.Event().wait(chance.uniform(0, 0.02))
            call.cancel()
            return False
        try:
            call.result()
        except grpc.FutureCancelledError:
            return False
        except grpc.RpcError as error:
            code = error.code()
            self.answers.add(code)
            if code not in RETRYABLE_GRPC:
                raise RefusedError(f"{code}: {error.details()}") from error
            return False
        return True

    def _by_http(self, signal: str, message: Message, chance: random.Random) -> bool:
        return self._post(signal, message.SerializeToString(), PROTOBUF, chance)

    def _by_json(self, signal: str, message: Message, chance: random.Random) -> bool:
        body = json.dumps(to_json(message)).encode()
        return self._post(signal, body, "application/json", chance)

    def _post(self, signal: str, body: bytes, media_type: str, chance: random.Random) -> bool:
        headers = {"authorization": self._authorization, "content-type": media_type}
        if chance.random() < 0.5:
            body, headers["content-encoding"] = gzip.compress(body, 1), "gzip"
        cut = chance.choice(["body", "answer"]) if chance.random() < CUT_OFF else ""
        try:
            with self._connection() as connection:
                connection.putrequest("POST", f"/v1/{signal}")
                for name, value in {**headers, "content-length": str(len(body))}.items():
                    connection.putheader(name, value)
                connection.endheaders(body[: len(body) // 2] if cut == "body" else body)
                if cut:
                    threading.Event().wait(chance.uniform(0, 0.02))
                    return False
                response = connection.getresponse()
                answer = response.read()
        except (OSError, http.client.HTTPException):
            return False  # nobody listens, or the answer was cut off
        self.answers.add(response.status)
        if response.status not in {200, *RETRYABLE_HTTP}:
            raise RefusedError(f"HTTP {response.status}: {answer!r}")
        return response.status == 200

    @contextmanager
    def _connection(self) -> Iterator[http.client.HTTPConnection]:
        made = http.client.HTTPConnection(self._http_address, timeout=TIMEOUT_SECONDS)
        with closing(made) as connection:
            connection.connect()
            connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            yield connection


def to_json(message: Message) -> Any:
    """OTLP/JSON: protobuf's JSON, but ids are hexadecimal and enums are numbers."""
    return _with_hex_ids(MessageToDict(message, use_integers_for_enums=True))


def _with_hex_ids(value: Any) -> Any:
    if isinstance(value, list):
        return [_with_hex_ids(one) for one in value]
    if not isinstance(value, dict):
        return value
    ids = {"traceId", "spanId", "parentSpanId"}
    return {
        name: b64decode(one).hex() if name in ids else _with_hex_ids(one)
        for name, one in value.items()
    }
