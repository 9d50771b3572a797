"""A real OTLP/gRPC server on loopback that misbehaves as told; sibling of `sdk_backend`."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import grpc

from tests.integration.sdk_backend import TAKING, Act, Backend, response_of


class GrpcBackend(Backend):
    """`codes` says what happens to the next requests: an `Act` or a status each.

    Attributes:
        trailers: Sent with each error.
    """

    def __init__(self) -> None:
        super().__init__("")
        self.codes: list[Act | grpc.StatusCode] = []
        self.trailers: tuple[tuple[str, bytes], ...] = ()

    def export(self, method: str, body: bytes, context: grpc.ServicerContext) -> bytes:
        with self.lock:
            metadata = context.invocation_metadata()
            self.headers.append({str(key): str(value) for key, value in metadata})
            act = self.codes.pop(0) if self.codes else 200
        if act in TAKING:
            self.take("/v1/metrics" if "MetricsService" in method else "/v1/logs", body)
        if act in (Act.HANG, Act.HANG_UNREAD):
            context.add_callback(self.stopped.set)
            self.stopped.wait(30)
            self.stopped.clear()
        context.set_trailing_metadata(self.trailers)
        if isinstance(act, grpc.StatusCode):
            context.abort(act, "as told")
        if act in (Act.HANG_UP, Act.LOSE_ANSWER, Act.HANG, Act.HANG_UNREAD):
            context.abort(grpc.StatusCode.UNAVAILABLE, "gone")
        return response_of(act)


class _Methods(grpc.GenericRpcHandler):
    def __init__(self, backend: GrpcBackend) -> None:
        self._backend = backend

    def service(
        self, handler_call_details: grpc.HandlerCallDetails
    ) -> "grpc.RpcMethodHandler[bytes, bytes]":
        method = handler_call_details.method
        return grpc.unary_unary_rpc_method_handler(
            lambda body, context: self._backend.export(method, body, context)
        )


@contextmanager
def running_grpc_backend(
    credentials: grpc.ServerCredentials | None = None,
    options: Sequence[tuple[str, int]] = (),
    backend: GrpcBackend | None = None,
) -> Iterator[GrpcBackend]:
    """Serve until the block ends; a given `backend` is served where it was before."""
    backend = backend or GrpcBackend()
    with ThreadPoolExecutor(8) as executor:
        server = grpc.server(executor, options=[("grpc.so_reuseport", 0), *options])
        server.add_generic_rpc_handlers((_Methods(backend),))
        address = backend.endpoint.rpartition("/")[2] or "127.0.0.1:0"
        if credentials is None:
            port = server.add_insecure_port(address)
        else:
            port = server.add_secure_port(address, credentials)
        backend.endpoint = f"http{'' if credentials is None else 's'}://127.0.0.1:{port}"
        server.start()
        try:
            yield backend
        finally:
            backend.stopped.set()
            server.stop(0).wait()
