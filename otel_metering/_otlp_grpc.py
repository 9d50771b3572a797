"""One OTLP/gRPC request and what its answer means. The only module of the SDK that imports grpc."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import grpc
from google.protobuf.any_pb2 import Any
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import DecodeError

from otel_metering._answers import Answer, NotNow, Refused, read_response, within_reason
from otel_metering._config import Settings
from otel_metering._tls_files import client_context
from otel_metering.errors import ConfigurationError

_METHODS: Final = {
    "metrics": "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export",
    "logs": "/opentelemetry.proto.collector.logs.v1.LogsService/Export",
}

_DEFAULT_PORT: Final = {"http": 80, "https": 443}
"""As in every URL."""

_RETRY_INFO: Final = "google.rpc.retryinfo-bin"
_STATUS_DETAILS: Final = "grpc-status-details-bin"

_OPTIONS: Final = (
    ("grpc.primary_user_agent", "otel-metering"),
    # Pauses are the sender's: a channel's own would hold a receiver that is back for down.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_retries", 0),
)


class GrpcDestination:
    """A receiver of OTLP/gRPC: one channel, kept open. One thread; `abort` from any."""

    def __init__(self, settings: Settings) -> None:
        """Prepare, without connecting.

        Raises:
            ConfigurationError: A certificate or key cannot be used, or a header cannot be sent.
        """
        self._settings = settings
        url = urlsplit(settings.endpoint)
        host = f"[{url.hostname}]" if ":" in (url.hostname or "") else url.hostname
        self._target = f"{host}:{url.port or _DEFAULT_PORT[url.scheme]}"
        self._is_secure = url.scheme == "https"
        if self._is_secure:
            client_context(settings)  # grpc itself only fails at the first request
        self._metadata = _metadata(settings.headers)
        self._compression = (
            grpc.Compression.Gzip
            if settings.compression == "gzip"
            else grpc.Compression.NoCompression
        )
        self._channel: grpc.Channel | None = None
        self._call: grpc.Future[bytes] | None = None

    def send(self, signal: str, payload: bytes) -> Answer:
        """Send one request to the service of `signal` and wait for its answer."""
        try:
            if self._channel is None:
                self._channel = self._connect()
            export: grpc.UnaryUnaryMultiCallable[bytes, bytes] = self._channel.unary_unary(
                _METHODS[signal], request_serializer=None, response_deserializer=None
            )
            self._call = export.future(
                payload,
                timeout=self._settings.timeout_seconds,
                metadata=self._metadata,
                compression=self._compression,
            )
            return read_response(self._call.result(), "gRPC OK")
        except grpc.RpcError as error:
            trailers = [(entry.key, entry.value) for entry in error.trailing_metadata() or ()]
            answer = judge(error.code(), error.details() or "", trailers)
            if isinstance(answer, NotNow):
                # A new channel: this one may be a connection that nobody answers any more.
                self.close()
            return answer
        except (grpc.FutureCancelledError, OSError) as error:
            self.close()
            return NotNow(reason=f"{self._settings.endpoint} does not answer: {error!r}")
        finally:
            self._call = None

    def abort(self) -> None:
        """Make a `send` of another thread return soon."""
        call = self._call
        if call is not None:
            call.cancel()

    def close(self) -> None:
        """Close the channel; the next `send` opens a new one."""
        if self._channel is not None:
            self._channel.close()
            self._channel = None

    def _connect(self) -> grpc.Channel:
        if not self._is_secure:
            return grpc.insecure_channel(self._target, options=_OPTIONS)
        settings = self._settings
        certificate = _read(settings.client_certificate_file)
        # Read again for each channel: certificates are renewed while a service runs.
        credentials = grpc.ssl_channel_credentials(
            root_certificates=_read(settings.certificate_file),
            private_key=_read(settings.client_key_file) or certificate,
            certificate_chain=certificate,
        )
        return grpc.secure_channel(self._target, credentials, options=_OPTIONS)


def judge(
    code: grpc.StatusCode, details: str, trailers: Iterable[tuple[str, str | bytes]]
) -> Answer:
    """Return what an error means.

    INVALID_ARGUMENT alone ends a request (OTLP specification, "Failures": the server could not make sense
    of the data). By the specification others are not to be sent again either, UNAUTHENTICATED or
    UNIMPLEMENTED say; but a key or a route is corrected some day, and usage that was thrown away is not
    had back.
    """
    reason = f"gRPC {code.name} {details}".strip()
    if code is grpc.StatusCode.INVALID_ARGUMENT:
        return Refused(reason=reason)
    return NotNow(reason=reason, after_seconds=_retry_delay(trailers))


def _retry_delay(trailers: Iterable[tuple[str, str | bytes]]) -> float:
    """Seconds that `google.rpc.RetryInfo` asks for: in a trailer of its own, or in the status' details."""
    try:
        for name, value in trailers:
            if not isinstance(value, bytes):
                continue
            if name == _RETRY_INFO:
                return _delay(value)
            if name == _STATUS_DETAILS:
                for detail in map(Any.FromString, _messages(value, 3)):
                    if detail.type_url.endswith("/google.rpc.RetryInfo"):
                        return _delay(detail.value)
    except (DecodeError, IndexError):
        return 0.0  # a hint that nobody can read is none
    return 0.0


def _delay(retry_info: bytes) -> float:
    for delay in map(Duration.FromString, _messages(retry_info, 1)):
        return within_reason(delay.seconds + delay.nanos / 1e9)
    return 0.0


def _messages(encoded: bytes, number: int) -> Iterator[bytes]:
    """Values of a field of a message whose generated class is not among the SDK's dependencies.

    Protocol buffers, "Encoding": 0 is a varint, 1 and 5 are of fixed size, 2 has its length before it.
    """
    at = 0
    while at < len(encoded):
        tag, at = _varint(encoded, at)
        match tag & 7:
            case 0:
                _, at = _varint(encoded, at)
            case 1:
                at += 8
            case 5:
                at += 4
            case 2:
                size, at = _varint(encoded, at)
                if tag >> 3 == number:
                    yield encoded[at : at + size]
                at += size
            case _:
                return


def _varint(encoded: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = encoded[at]
        at += 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return value, at


def _metadata(headers: Mapping[str, str]) -> tuple[tuple[str, str | bytes], ...]:
    for name in headers:
        if name.startswith("grpc-") or not all(
            char.isascii() and (char.isalnum() or char in "_-.") for char in name
        ):
            raise ConfigurationError(f"headers: {name!r} cannot be sent over gRPC")
    return tuple(
        (name, value.encode() if name.endswith("-bin") else value)
        for name, value in headers.items()
    )


def _read(path: str | None) -> bytes | None:
    if path is None:
        return None
    return Path(path).read_bytes()
