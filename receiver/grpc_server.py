"""OTLP/gRPC: raw bytes in, status out.

Handlers take and give bytes (no deserializer), so that the receiver decides how a bad request is
answered: an exception in grpcio's own deserializer would be INTERNAL, which destroys the sender's data.
"""

import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final, NoReturn

import grpc
from grpc_reflection.v1alpha import reflection
from opentelemetry.proto.collector.logs.v1 import logs_service_pb2 as _logs
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2 as _metrics
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as _trace

from otel_metering.contract.meter import Signal
from otel_metering.errors import ConfigurationError, MeteringError, UnavailableError
from receiver.auth import authenticate
from receiver.errors import NO_PROFILES
from receiver.health import Health
from receiver.ingest import Ingest, Work
from receiver.responses import encode_error, encode_response, message_of, retry_info
from receiver.status import status_of
from receiver.store.keys import ApiKeys
from receiver.telemetry import Telemetry
from receiver.tls import Tls

_SERVICES: Final = {
    _metrics.DESCRIPTOR.services_by_name["MetricsService"].full_name: Signal.METRIC,
    _trace.DESCRIPTOR.services_by_name["TraceService"].full_name: Signal.SPAN,
    _logs.DESCRIPTOR.services_by_name["LogsService"].full_name: Signal.LOG,
}

_PROFILES: Final = "/opentelemetry.proto.collector.profiles.v1development.ProfilesService/Export"

_KEEPALIVE_MS: Final = 60_000
"""Silence after which a client is asked whether it is still there."""

_KEEPALIVE_TIMEOUT_MS: Final = 20_000

_MIN_PING_MS: Final = 10_000
"""Clients may ask as often as this, also between calls; grpc's own bound is five minutes."""

_log = logging.getLogger(__name__)

Context = grpc.aio.ServicerContext[bytes, bytes]


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionLimits:
    """Bounds of the server.

    Attributes:
        request_bytes: Largest request, after decompression.
        streams: Calls at once on one connection.
        age_seconds: When a connection is ended in order; 0: never.
        age_grace_seconds: How long its calls may still take.
        has_reflection: Whether anybody may ask which services there are.
    """

    request_bytes: int
    streams: int
    age_seconds: int
    age_grace_seconds: int
    has_reflection: bool = False


class GrpcServer:
    """Listens for OTLP/gRPC."""

    def __init__(
        self,
        ingest: Ingest,
        keys: ApiKeys,
        *,
        limits: ConnectionLimits,
        tls: Tls | None,
        is_healthy: Callable[[], bool],
        telemetry: Telemetry | None = None,
    ) -> None:
        self._ingest = ingest
        self._keys = keys
        self._limits = limits
        self._tls = tls
        self._health = Health(frozenset(_SERVICES), is_healthy)
        self._telemetry = telemetry or Telemetry()
        self._server: grpc.aio.Server | None = None

    async def start(self, host: str, port: int) -> int:
        """Listen; returns the port, which is a free one if `port` was 0.

        Raises:
            ConfigurationError: The address cannot be listened on.
        """
        server = grpc.aio.server(options=_options(self._limits))
        server.add_generic_rpc_handlers((_Methods(self._handle, self._health),))
        if self._limits.has_reflection:
            reflection.enable_server_reflection((*_SERVICES, reflection.SERVICE_NAME), server)
        address = f"{host}:{port}"
        try:
            bound = (
                server.add_insecure_port(address)
                if self._tls is None
                else server.add_secure_port(address, _credentials(self._tls))
            )
        except RuntimeError as error:
            raise ConfigurationError(
                f"OTLP/gRPC cannot listen on {address}; choose another METERING_OTLP_GRPC_PORT"
            ) from error
        await server.start()
        self._server = server
        return bound

    async def stop(self, grace_seconds: float) -> None:
        """Refuse new calls, and let those that run end for `grace_seconds`."""
        self._health.stop()
        if self._server is not None:
            await self._server.stop(grace_seconds)

    async def _handle(self, signal: Signal, body: bytes, context: Context) -> bytes:
        request = self._telemetry.request("grpc", signal)
        try:
            headers = {
                str(key): value
                for key, value in context.invocation_metadata() or ()
                if isinstance(value, str)
            }
            sender = authenticate(headers, self._keys, "grpc")
            work = Work(sender=sender, signal=signal, body=body)
            outcome = await self._ingest.request(work)
            request.acknowledge()
        except MeteringError as error:
            request.refuse(error)
            await _abort(context, error)
        except Exception as error:  # noqa: BLE001 - grpcio would answer UNKNOWN, which destroys data
            request.refuse(error)
            _log.error("A call failed", exc_info=error, extra={"event": "grpc_failed"})
            await _abort(context, UnavailableError("the receiver failed"))
        finally:
            request.end()
        return encode_response(outcome)


Handle = Callable[[Signal, bytes, Context], Awaitable[bytes]]


class _Methods(grpc.GenericRpcHandler):
    """Finds the handler of each method."""

    def __init__(self, handle: Handle, health: Health) -> None:
        self._handlers: dict[str, grpc.RpcMethodHandler[bytes, bytes]] = {
            f"/{service}/Export": grpc.unary_unary_rpc_method_handler(self._bind(handle, signal))
            for service, signal in _SERVICES.items()
        }
        self._handlers[_PROFILES] = grpc.unary_unary_rpc_method_handler(_refuse_profiles)
        self._handlers |= health.handlers()

    def service(
        self, handler_call_details: grpc.HandlerCallDetails
    ) -> "grpc.RpcMethodHandler[bytes, bytes] | None":
        """The handler; None: UNIMPLEMENTED."""
        return self._handlers.get(handler_call_details.method)

    @staticmethod
    def _bind(handle: Handle, signal: Signal) -> Callable[[bytes, Context], Awaitable[bytes]]:
        async def export(body: bytes, context: Context) -> bytes:
            return await handle(signal, body, context)

        return export


async def _refuse_profiles(_: bytes, context: Context) -> bytes:
    await context.abort(grpc.StatusCode.UNIMPLEMENTED, NO_PROFILES)


def _options(limits: ConnectionLimits) -> list[tuple[str, int]]:
    options = [
        ("grpc.max_receive_message_length", limits.request_bytes),
        # A second receiver on the port is an error, not a coin toss.
        ("grpc.so_reuseport", 0),
        ("grpc.max_concurrent_streams", limits.streams),
        ("grpc.keepalive_time_ms", _KEEPALIVE_MS),
        ("grpc.keepalive_timeout_ms", _KEEPALIVE_TIMEOUT_MS),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", _MIN_PING_MS),
    ]
    if limits.age_seconds:
        options += [
            ("grpc.max_connection_age_ms", limits.age_seconds * 1_000),
            ("grpc.max_connection_age_grace_ms", limits.age_grace_seconds * 1_000),
        ]
    return options


def _credentials(tls: Tls) -> grpc.ServerCredentials:
    # Asked at each handshake, so a certificate that was read again is the next client's.
    def configuration() -> grpc.ServerCertificateConfiguration:
        files = tls.current
        return grpc.ssl_server_certificate_configuration(
            [(files.key, files.certificate)], root_certificates=files.client_ca
        )

    asks_clients = tls.current.client_ca is not None
    return grpc.dynamic_ssl_server_credentials(configuration(), configuration, asks_clients)


async def _abort(context: Context, error: MeteringError) -> NoReturn:
    """End the call with the status of `error`."""
    # The Go exporter reads the first, the Python exporter the second.
    trailers: list[tuple[str, str | bytes]] = [("grpc-status-details-bin", encode_error(error))]
    retry = retry_info(error)
    if retry is not None:
        trailers.append(("google.rpc.retryinfo-bin", retry.SerializeToString()))
    code = grpc.StatusCode[status_of(error).code]
    await context.abort(code, message_of(error), tuple(trailers))
