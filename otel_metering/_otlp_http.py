"""One OTLP/HTTP request and what its answer means."""

import gzip
import json
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from typing import Final
from urllib.parse import urlsplit

from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceResponse,
)

from otel_metering._config import Settings
from otel_metering.clock import Clock
from otel_metering.errors import ConfigurationError

_OK: Final = 200

_REFUSALS: Final = frozenset({400, 413, 415, 422})
"""What is wrong is the request. All other statuses can heal: a key, a route, a proxy is corrected."""

_MAX_ANSWER_BYTES: Final = 65_536
"""An answer holds an error message at most."""

_MAX_RETRY_AFTER_SECONDS: Final = 300.0
"""Whatever the receiver asks for, its data is offered again within five minutes."""

_GZIP_LEVEL: Final = 3
"""Points of one request are alike: higher levels cost more time than they save bytes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivered:
    """The receiver has it; `rejected_points` of it it will never count."""

    rejected_points: int
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """The receiver will never take it."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class NotNow:
    """To be sent again, unchanged; `after_seconds` at the earliest."""

    reason: str
    after_seconds: float = 0.0


Answer = Delivered | Refused | NotNow


class Destination:
    """The receiver: one connection, kept open. One thread; `abort` from any."""

    def __init__(self, settings: Settings, clock: Clock) -> None:
        """Prepare, without connecting.

        Raises:
            ConfigurationError: The CA certificates cannot be read.
        """
        self._settings = settings
        self._clock = clock
        self._url = urlsplit(settings.endpoint)
        self._headers = {
            **settings.headers,
            "content-type": "application/x-protobuf",
            "user-agent": "otel-metering",
        }
        if settings.compression == "gzip":
            self._headers["content-encoding"] = "gzip"
        self._tls = _tls(settings) if self._url.scheme == "https" else None
        self._connection: HTTPConnection | None = None

    def send(self, signal: str, payload: bytes) -> Answer:
        """Send one request to `/v1/<signal>` and wait for its answer."""
        body = (
            gzip.compress(payload, _GZIP_LEVEL, mtime=0)
            if self._settings.compression == "gzip"
            else payload
        )
        was_open = self._connection is not None
        answer = self._attempt(signal, body)
        if was_open and self._connection is None and isinstance(answer, NotNow):
            # The receiver may have closed an idle connection; that says nothing about a new one.
            answer = self._attempt(signal, body)
        return answer

    def abort(self) -> None:
        """Make a `send` of another thread return soon."""
        connection = self._connection
        if connection is not None and connection.sock is not None:
            try:
                connection.sock.shutdown(2)
            except OSError:
                return  # already gone, which is what we want

    def close(self) -> None:
        """Close the connection; the next `send` opens a new one."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _attempt(self, signal: str, body: bytes) -> Answer:
        if self._connection is None:
            self._connection = self._connect()
        connection = self._connection
        try:
            connection.request("POST", f"{self._url.path}/v1/{signal}", body, self._headers)
            response = connection.getresponse()
            content = response.read(_MAX_ANSWER_BYTES)
        except (OSError, HTTPException) as error:
            self.close()
            return NotNow(reason=f"{self._settings.endpoint} does not answer: {error!r}")
        if response.will_close or not response.isclosed():
            self.close()
        headers = {name.lower(): value for name, value in response.getheaders()}
        return judge(response.status, headers, content, now_ns=self._clock.now_ns())

    def _connect(self) -> HTTPConnection:
        host, timeout = self._url.hostname or "", self._settings.timeout_seconds
        if self._tls is not None:
            return HTTPSConnection(host, self._url.port, timeout=timeout, context=self._tls)
        return HTTPConnection(host, self._url.port, timeout=timeout)


def judge(status: int, headers: Mapping[str, str], content: bytes, *, now_ns: int) -> Answer:
    """Return what an answer means. `headers`: names in lower case."""
    if status == _OK:
        return _judge_success(headers, content)
    reason = f"HTTP {status} {_message(content)}".strip()
    if status in _REFUSALS:
        return Refused(reason=reason)
    return NotNow(reason=reason, after_seconds=_retry_after(headers.get("retry-after"), now_ns))


def _judge_success(headers: Mapping[str, str], content: bytes) -> Answer:
    if headers.get("content-type", "").startswith("application/json"):
        return _judge_json(content)
    response = ExportMetricsServiceResponse()
    try:
        # The answer to logs has the same fields by number.
        response.ParseFromString(content)
    except DecodeError:
        # Whatever this is, a login page or the wrong port, no receiver said that it has the usage.
        return NotNow(reason=f"HTTP 200, but not an OTLP answer: {_message(content)}")
    partial = response.partial_success
    return Delivered(rejected_points=partial.rejected_data_points, message=partial.error_message)


def _judge_json(content: bytes) -> Answer:
    try:
        partial = json.loads(content or b"{}").get("partialSuccess") or {}
        rejected = partial.get("rejectedDataPoints") or partial.get("rejectedLogRecords") or 0
        return Delivered(
            rejected_points=int(rejected), message=str(partial.get("errorMessage", ""))
        )
    except (ValueError, TypeError, AttributeError):
        return NotNow(reason=f"HTTP 200, but not an OTLP answer: {_message(content)}")


def _message(content: bytes) -> str:
    """What people can read of an answer; a Status message in protobuf has its text in it."""
    text = content[:200].decode("utf-8", "replace")
    return "".join(char for char in text if char.isprintable() and char != "\ufffd")


def _retry_after(value: str | None, now_ns: int) -> float:
    if value is None:
        return 0.0
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(value).timestamp() - now_ns / 1e9
        except ValueError:
            return 0.0
    # min and max in this order: NaN becomes 0.
    return max(0.0, min(seconds, _MAX_RETRY_AFTER_SECONDS))


def _tls(settings: Settings) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=settings.certificate_file)
    except OSError as error:
        raise ConfigurationError(
            f"certificate_file {settings.certificate_file} cannot be read: {error}"
        ) from error
