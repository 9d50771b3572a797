"""OTLP/gRPC: raw bytes in, status out.

Handlers take and give bytes (no deserializer), so that the receiver decides how a bad request is
answered: an exception in grpcio's own deserializer would be INTERNAL, which destroys the sender's data.
"""

import logging
from collections.abc import Awaitable, Callable
from typing import Final, NoReturn

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.rpc.error_details_pb2 import RetryInfo
from google.rpc.status_pb2 import Status as RpcStatus

from otel_metering.contract.meter import Signal
from otel_metering.errors import ConfigurationError, MeteringError, UnavailableError
from receiver.auth import authenticate
from receiver.ingest import Ingest, Work
from receiver.responses import encode_response
from receiver.status import RETRY_AFTER_SECONDS, Status, status_of
from receiver.store.keys import ApiKeys
from receiver.telemetry import Telemetry

_METHODS: Final = {
    "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export": Signal.METRIC,
    "/opentelemetry.proto.collector.trace.v1.TraceService/Export": Signal.SPAN,
    "/opentelemetry.proto.collector.logs.v1.LogsService/Export": Signal.LOG,
}

_log = logging.getLogger(__name__)

Context = grpc.aio.ServicerContext[bytes, bytes]


class GrpcServer:
    """Listens for OTLP/gRPC."""

    def __init__(
        self,
        ingest: Ingest,
        keys: ApiKeys,
        *,
        max_request_bytes: int,
        telemetry: Telemetry | None = None,
    ) -> None:
        self._ingest = ingest
        self._keys = keys
        self._max_request_bytes = max_request_bytes
        self._telemetry = telemetry or Telemetry()
        self._server: grpc.aio.Server | None = None

    async def start(self, host: str, port: int) -> int:
        """Listen; returns the port, which is a free one if `port` was 0.

        Raises:
            ConfigurationError: The address cannot be listened on.
        """
        server = grpc.aio.server(
            options=[
                ("grpc.max_receive_message_length", self._max_request_bytes),
                (
                    "grpc.so_reuseport",
                    0,
                ),  # a second receiver on the port is an error, not a coin toss
            ]
        )
        server.add_generic_rpc_handlers((_Export(self._handle),))
        try:
            bound = server.add_insecure_port(f"{host}:{port}")
        except RuntimeError as error:
            raise ConfigurationError(
                f"OTLP/gRPC cannot listen on {host}:{port}; choose another METERING_OTLP_GRPC_PORT"
            ) from error
        await server.start()
        self._server = server
        return bound

    async def stop(self, grace_seconds: float) -> None:
        """Refuse new calls, and let those that run end for `grace_seconds`."""
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
            sender = authenticate(headers, self._keys)
            work = Work(sender=sender, signal=signal, body=body)
            outcome = await self._ingest.request(work)
            request.acknowledge()
        except MeteringError as error:
            request.refuse(error)
            await _abort(context, status_of(error), str(error))
        except Exception as error:  # noqa: BLE001 - grpcio would answer UNKNOWN, which destroys data
            request.refuse(error)
            _log.error("A call failed", exc_info=error, extra={"event": "grpc_failed"})
            await _abort(context, status_of(UnavailableError()), "the receiver failed")
        finally:
            request.end()
        return encode_response(outcome)


Handle = Callable[[Signal, bytes, Context], Awaitable[bytes]]


class _Export(grpc.GenericRpcHandler):
    """Finds the handler of each method."""

    def __init__(self, handle: Handle) -> None:
        self._handlers: dict[str, grpc.RpcMethodHandler[bytes, bytes]] = {
            method: grpc.unary_unary_rpc_method_handler(self._bind(handle, signal))
            for method, signal in _METHODS.items()
        }

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


async def _abort(context: Context, status: Status, message: str) -> NoReturn:
    """End the call with `status`."""
    trailers: list[tuple[str, str | bytes]] = []
    if status.is_retryable:
        retry = RetryInfo(retry_delay=Duration(seconds=RETRY_AFTER_SECONDS))
        details = RpcStatus(code=status.number, message=message)
        packed = AnyMessage()
        packed.Pack(retry)
        details.details.append(packed)
        # The Go exporter reads the first, the Python exporter the second.
        trailers.append(("grpc-status-details-bin", details.SerializeToString()))
        trailers.append(("google.rpc.retryinfo-bin", retry.SerializeToString()))
    await context.abort(grpc.StatusCode[status.code], message, tuple(trailers))
