"""How errors of the pipeline leave the receiver (OTLP specification, "Failures"; Go: errors.go).

In one process, with a pipeline that refuses as told: Go's tests do the same with a failing consumer. Where Go
answers 500 / INTERNAL to an error that it does not know, this receiver answers 503 / UNAVAILABLE: the
sender would lose its data over a bug of ours.
"""

import asyncio
from collections.abc import Mapping
from typing import Any, cast

import grpc
import pytest
from google.rpc.error_details_pb2 import RetryInfo

from otel_metering.errors import InvalidUsageError, SpoolFullError, UnavailableError
from receiver import errors
from receiver.admit import Outcome
from receiver.cors import Cors
from receiver.grpc_server import ConnectionLimits, GrpcServer
from receiver.health import CHECK, Health
from receiver.http_server import HttpApp
from receiver.ingest import Ingest, Work
from receiver.store.keys import ApiKeys, Principal, Scope
from tests.conformance.wire import JSON, SIGNALS, Answer, Signal, read_http
from tests.otlp import PROTOBUF


class Pipeline:
    """Takes nothing, with the error that it was given; or everything."""

    def __init__(self, error: Exception | None) -> None:
        self._error = error

    async def request(self, _: Work) -> Outcome:
        if self._error is not None:
            raise self._error
        return Outcome(accepted=1)


class Keys:
    """Knows everybody, or cannot be asked."""

    def __init__(self, error: Exception | None = None) -> None:
        self._error = error

    def enter(self, _: str, scope: Scope, transport: str) -> Principal:
        if self._error is not None:
            raise self._error
        return Principal(key_id="k", scopes=frozenset({scope}), tenant_id=None)


def over_http(
    error: Exception | None,
    *,
    keys: Keys | None = None,
    media_type: str = JSON,
    path: str = "/v1/metrics",
) -> Answer:
    app = HttpApp(
        cast(Ingest, Pipeline(error)),
        cast(ApiKeys, keys or Keys()),
        max_request_bytes=1000,
        read_timeout_seconds=10,
        cors=Cors([], [], max_age_seconds=0),
    )
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    headers = [(b"content-type", media_type.encode()), (b"x-api-key", b"any")]
    scope = {"type": "http", "method": "POST", "path": path, "headers": headers}
    asyncio.run(app(scope, receive, send))
    start, body = sent
    answered = {name.decode(): value.decode() for name, value in start["headers"]}
    return read_http(start["status"], body["body"], answered)


def over_grpc(
    error: Exception | None, *, keys: Keys | None = None, signal: Signal = SIGNALS[0]
) -> grpc.aio.AioRpcError | bytes:
    async def run() -> grpc.aio.AioRpcError | bytes:
        server = GrpcServer(
            cast(Ingest, Pipeline(error)),
            cast(ApiKeys, keys or Keys()),
            limits=ConnectionLimits(
                request_bytes=1000, streams=10, age_seconds=0, age_grace_seconds=1
            ),
            tls=None,
            is_healthy=lambda: True,
        )
        port = await server.start("127.0.0.1", 0)
        try:
            async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
                export: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(
                    signal.method, request_serializer=None, response_deserializer=None
                )
                return await export(b"", timeout=20, metadata=(("x-api-key", "any"),))
        except grpc.aio.AioRpcError as refused:
            return refused
        finally:
            await server.stop(0)

    return asyncio.run(run())


def limited(seconds: float) -> errors.RateLimitedError:
    return errors.RateLimitedError("slow down", retry_after_seconds=seconds)


CASES: Mapping[str, tuple[Exception, int, str, str | None]] = {
    # What was raised; HTTP; gRPC; Retry-After.
    "unavailable": (UnavailableError("later"), 503, "UNAVAILABLE", "1"),
    "spool full": (SpoolFullError(10, 5), 503, "UNAVAILABLE", "1"),
    "a bug": (ValueError("a bug"), 503, "UNAVAILABLE", "1"),
    "bad data": (errors.MalformedPayloadError("no OTLP"), 400, "INVALID_ARGUMENT", None),
    "bad usage": (InvalidUsageError("never"), 400, "INVALID_ARGUMENT", None),
    "too large": (errors.PayloadTooLargeError(5), 413, "RESOURCE_EXHAUSTED", None),
    "rate limit": (limited(2), 429, "RESOURCE_EXHAUSTED", "2"),
    "rate limit, less than a second": (limited(0.2), 429, "RESOURCE_EXHAUSTED", "1"),
    "rate limit, at once": (limited(0), 429, "RESOURCE_EXHAUSTED", "0"),
    "rate limit, 13 s": (limited(13), 429, "RESOURCE_EXHAUSTED", "13"),
    "forbidden": (errors.PermissionDeniedError("not for this"), 403, "PERMISSION_DENIED", None),
}
every_case = pytest.mark.parametrize("case", CASES)


@every_case
@pytest.mark.parametrize("media_type", [JSON, PROTOBUF])
@pytest.mark.parametrize("path", [signal.path for signal in SIGNALS])
def test_http_statuses_and_when_to_send_again(case: str, media_type: str, path: str) -> None:
    error, status, code, retry_after = CASES[case]

    answer = over_http(error, media_type=media_type, path=path)

    assert (answer.http, answer.code) == (status, grpc.StatusCode[code].value[0])
    assert answer.headers["content-type"] == media_type
    assert answer.headers.get("retry-after") == retry_after
    assert answer.is_retryable == (retry_after is not None)
    # A bug is not told to the world; everything else is.
    assert answer.message == ("the receiver failed" if case == "a bug" else str(error))
    assert ("google.rpc.BadRequest" in answer.details) == (status == 400)


@every_case
@pytest.mark.parametrize("signal", SIGNALS, ids=["metrics", "traces", "logs"])
def test_grpc_statuses_and_when_to_send_again(case: str, signal: Signal) -> None:
    error, _, code, retry_after = CASES[case]

    answer = over_grpc(error, signal=signal)

    assert isinstance(answer, grpc.aio.AioRpcError)
    assert answer.code() is grpc.StatusCode[code]
    trailer = dict(answer.trailing_metadata()).get("google.rpc.retryinfo-bin")
    assert (trailer is not None) == (retry_after is not None)
    if retry_after is not None:
        assert isinstance(trailer, bytes)
        assert RetryInfo.FromString(trailer).retry_delay.seconds == int(retry_after)


def test_what_was_taken_is_a_success() -> None:
    assert over_http(None).body == b"{}"
    assert over_grpc(None) == b""


def test_keys_that_cannot_be_read_are_unavailable_and_not_unauthenticated() -> None:
    """As Go lets the status of an authenticator pass: UNAVAILABLE stays UNAVAILABLE."""
    down = Keys(UnavailableError("the database does not answer"))

    assert over_http(None, keys=down).http == 503
    answer = over_grpc(None, keys=down)
    assert isinstance(answer, grpc.aio.AioRpcError)
    assert answer.code() is grpc.StatusCode.UNAVAILABLE


def test_a_message_of_any_text_and_length_can_be_answered() -> None:
    """A lone surrogate is no text for protobuf; 64 KiB is all that Go's exporter reads."""
    odd = errors.MalformedPayloadError("\ud800" + "x" * 100_000, field="\udfff" * 5_000)

    for media_type in (JSON, PROTOBUF):
        answer = over_http(odd, media_type=media_type)
        assert answer.http == 400
        assert len(answer.body) < 8_192
    answer_grpc = over_grpc(odd)
    assert isinstance(answer_grpc, grpc.aio.AioRpcError)
    assert answer_grpc.code() is grpc.StatusCode.INVALID_ARGUMENT


def checked(health: Health) -> bytes:
    """What Check answers to the whole server's name."""
    check = cast(Any, health.handlers()[CHECK]).unary_unary
    return cast(bytes, asyncio.run(check(b"", None)))


@pytest.mark.parametrize(("is_healthy", "status"), [(True, b"\x08\x01"), (False, b"\x08\x02")])
def test_health_is_that_of_the_pipeline(is_healthy: bool, status: bytes) -> None:
    """gRPC health: SERVING is 1, NOT_SERVING 2."""
    health = Health(frozenset(), lambda: is_healthy)

    assert checked(health) == status


def test_health_is_not_serving_while_it_stops() -> None:
    health = Health(frozenset(), lambda: True)
    health.stop()

    assert checked(health) == b"\x08\x02"
