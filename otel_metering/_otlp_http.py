"""One OTLP/HTTP request and what its answer means."""

import gzip
import json
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from typing import Final
from urllib.parse import urlsplit

from otel_metering._answers import (
    GZIP_LEVEL,
    Answer,
    Delivered,
    NotNow,
    Refused,
    read_response,
    readable,
    within_reason,
)
from otel_metering._config import Settings
from otel_metering._tls_files import client_context
from otel_metering.clock import Clock
from otel_metering.errors import ConfigurationError

_OK: Final = 200

_REFUSALS: Final = frozenset({400, 413, 415, 422})
"""What is wrong is the request. All other statuses can heal: a key, a route, a proxy is corrected."""

_MAX_ANSWER_BYTES: Final = 65_536
"""An answer holds an error message at most."""


class HttpDestination:
    """A receiver of OTLP/HTTP: one connection, kept open. One thread; `abort` from any."""

    def __init__(self, settings: Settings, clock: Clock) -> None:
        """Prepare, without connecting.

        Raises:
            ConfigurationError: A certificate or key cannot be used.
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
        if self._url.scheme == "https":
            client_context(settings)  # so that a wrong file is said at once
        self._connection: HTTPConnection | None = None

    def send(self, signal: str, payload: bytes) -> Answer:
        """Send one request to `/v1/<signal>` and wait for its answer."""
        body = (
            gzip.compress(payload, GZIP_LEVEL, mtime=0)
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
        try:
            connection = self._connection = self._connection or self._connect()
            connection.request("POST", f"{self._url.path}/v1/{signal}", body, self._headers)
            response = connection.getresponse()
            content = response.read(_MAX_ANSWER_BYTES)
        except (OSError, HTTPException, ConfigurationError) as error:
            self.close()
            return NotNow(reason=f"{self._settings.endpoint} does not answer: {error!r}")
        if response.will_close or not response.isclosed():
            self.close()
        headers = {name.lower(): value for name, value in response.getheaders()}
        return judge(response.status, headers, content, now_ns=self._clock.now_ns())

    def _connect(self) -> HTTPConnection:
        host, timeout = self._url.hostname or "", self._settings.timeout_seconds
        if self._url.scheme == "https":
            # Read again for each connection: certificates are renewed while a service runs.
            context = client_context(self._settings)
            return HTTPSConnection(host, self._url.port, timeout=timeout, context=context)
        return HTTPConnection(host, self._url.port, timeout=timeout)


def judge(status: int, headers: Mapping[str, str], content: bytes, *, now_ns: int) -> Answer:
    """Return what an answer means. `headers`: names in lower case."""
    if status == _OK:
        return _judge_success(headers, content)
    reason = f"HTTP {status} {readable(content)}".strip()
    if status in _REFUSALS:
        return Refused(reason=reason)
    return NotNow(reason=reason, after_seconds=_retry_after(headers.get("retry-after"), now_ns))


def _judge_success(headers: Mapping[str, str], content: bytes) -> Answer:
    if headers.get("content-type", "").startswith("application/json"):
        return _judge_json(content)
    return read_response(content, "HTTP 200")


def _judge_json(content: bytes) -> Answer:
    try:
        partial = json.loads(content or b"{}").get("partialSuccess") or {}
        rejected = partial.get("rejectedDataPoints") or partial.get("rejectedLogRecords") or 0
        return Delivered(
            rejected_points=int(rejected), message=str(partial.get("errorMessage", ""))
        )
    except (ValueError, TypeError, AttributeError):
        return NotNow(reason=f"HTTP 200, but not an OTLP answer: {readable(content)}")


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
    return within_reason(seconds)
