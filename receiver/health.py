"""The gRPC health protocol, `grpc.health.v1.Health`: for load balancers, so without a key.

Two messages of one field each, read and written by hand: a package for them would be one more dependency.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Final

import grpc
from google.protobuf.message import DecodeError
from google.protobuf.wrappers_pb2 import StringValue

CHECK: Final = "/grpc.health.v1.Health/Check"
WATCH: Final = "/grpc.health.v1.Health/Watch"

SERVING, NOT_SERVING, SERVICE_UNKNOWN = (b"\x08\x01", b"\x08\x02", b"\x08\x03")
"""HealthCheckResponse{status}."""

_WATCH_SECONDS: Final = 1.0

Context = grpc.aio.ServicerContext[bytes, bytes]


class Health:
    """Answers for the whole server, which is the service of the empty name, and for each OTLP service."""

    def __init__(self, services: frozenset[str], is_healthy: Callable[[], bool]) -> None:
        self._services = services | {""}
        self._is_healthy = is_healthy
        self._stopping = asyncio.Event()

    def handlers(self) -> "dict[str, grpc.RpcMethodHandler[bytes, bytes]]":
        """Method -> handler."""
        return {
            CHECK: grpc.unary_unary_rpc_method_handler(self._check),
            WATCH: grpc.unary_stream_rpc_method_handler(self._watch),
        }

    def stop(self) -> None:
        """Say NOT_SERVING from now on, and end every watch, which would else hold up the stop."""
        self._stopping.set()

    def _status(self) -> bytes:
        is_serving = self._is_healthy() and not self._stopping.is_set()
        return SERVING if is_serving else NOT_SERVING

    async def _check(self, body: bytes, context: Context) -> bytes:
        if await _service_of(body, context) not in self._services:
            await context.abort(grpc.StatusCode.NOT_FOUND, "there is no such service here")
        return self._status()

    async def _watch(self, body: bytes, context: Context) -> AsyncIterator[bytes]:
        is_known = await _service_of(body, context) in self._services
        told = b""
        while True:
            is_last = self._stopping.is_set()
            status = self._status() if is_known else SERVICE_UNKNOWN
            if status != told:
                yield status
                told = status
            if is_last:
                return
            try:
                async with asyncio.timeout(_WATCH_SECONDS):
                    await self._stopping.wait()
            except TimeoutError:
                continue


async def _service_of(body: bytes, context: Context) -> str:
    try:
        return StringValue.FromString(body).value  # HealthCheckRequest{service}: the same wire
    except DecodeError:
        await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "not a HealthCheckRequest")
