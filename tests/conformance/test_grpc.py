"""Rules of OTLP/gRPC (OTLP specification 1.11, "OTLP/gRPC"; gRPC over HTTP/2; gRPC health checking)."""

import threading

import grpc
import pytest
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from tests.conformance.wire import (
    OK,
    RESOURCE_EXHAUSTED,
    SIGNALS,
    UNIMPLEMENTED,
    Signal,
    raw_grpc_call,
    send,
)
from tests.e2e.up import KEY, Up
from tests.otlp import GRPC_METRICS, Point, call, metrics_request

PROFILES = Signal(
    bytes,  # type: ignore[arg-type]  # it is sent as bytes
    None,
    "/v1development/profiles",
    "/opentelemetry.proto.collector.profiles.v1development.ProfilesService/Export",
)


def exporter(channel: grpc.Channel) -> "grpc.UnaryUnaryMultiCallable[bytes, bytes]":
    return channel.unary_unary(GRPC_METRICS, request_serializer=None, response_deserializer=None)


def leaves(channel: grpc.Channel) -> threading.Event:
    """Set as soon as a connection of the channel was ended."""
    states: list[grpc.ChannelConnectivity] = []
    has_left = threading.Event()

    def note(state: grpc.ChannelConnectivity) -> None:
        states.append(state)
        if grpc.ChannelConnectivity.READY in states and state is grpc.ChannelConnectivity.IDLE:
            has_left.set()

    channel.subscribe(note)
    return has_left


@pytest.mark.parametrize("signal", SIGNALS, ids=["metrics", "traces", "logs"])
def test_the_services_of_the_three_signals_exist(up: Up, signal: Signal) -> None:
    assert send(up, "grpc", signal.request()).code == OK


def test_profiles_are_unimplemented_and_it_says_so(up: Up) -> None:
    """Profiles are in development in the specification, and hold nothing that is metered."""
    answer = send(up, "grpc", b"", signal=PROFILES)

    assert answer.code == UNIMPLEMENTED
    assert "profiles" in answer.message


@pytest.mark.parametrize("method", [GRPC_METRICS.replace("Export", "Import"), "/no.Service/Export"])
def test_another_method_is_unimplemented(up: Up, method: str) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        call(up.grpc, b"", KEY, method=method)

    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


@pytest.mark.parametrize("encoding", ["zstd", "snappy"])
def test_an_encoding_that_grpcio_does_not_have_is_refused_for_good(up: Up, encoding: str) -> None:
    """A known shortfall, of grpcio: it answers INTERNAL (13).

    "Compression in gRPC" asks for UNIMPLEMENTED with grpc-accept-encoding, which grpc-go sends. A Collector
    gives up on either, so its exporter has to be set to gzip or none.
    """
    answered = raw_grpc_call(up.grpc, encoding, b"\0", is_compressed=True)

    assert b"grpc-status\x0213" in answered
    assert b"Error parsing 'grpc-encoding' metadata" in answered


def test_a_compressed_message_without_an_encoding_is_internal(up: Up) -> None:
    answered = raw_grpc_call(up.grpc, "", b"\0", is_compressed=True)

    assert b"grpc-status\x0213" in answered


def test_what_is_not_gzip_is_internal(up: Up) -> None:
    answered = raw_grpc_call(up.grpc, "gzip", b"abcd", is_compressed=True)

    assert b"grpc-status\x0213" in answered


def test_metadata_that_is_too_large_is_refused_and_harms_nobody(up: Up, tenant: str) -> None:
    with grpc.insecure_channel(up.grpc) as channel:
        export = exporter(channel)
        with pytest.raises(grpc.RpcError) as caught:
            export(b"", timeout=20, metadata=(("x-large", "x" * 100_000),))

    assert caught.value.code().value[0] == RESOURCE_EXHAUSTED
    assert send(up, "grpc", metrics_request([Point(tenant, 1)])).code == OK


@pytest.mark.long
def test_a_client_may_ping_every_ten_seconds_between_calls(up: Up) -> None:
    """grpc's own bound is five minutes, and the third ping before it ends the connection."""
    options = [
        ("grpc.keepalive_time_ms", 10_000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
    ]
    with grpc.insecure_channel(up.grpc, options=options) as channel:
        has_left = leaves(channel)
        exporter(channel)(b"", timeout=20, metadata=(("authorization", f"Bearer {KEY}"),))

        assert not has_left.wait(55)


def _health(up: Up, method: str, body: bytes) -> bytes:
    return call(up.grpc, body, None, method=f"/grpc.health.v1.Health/{method}")


def test_health_is_answered_without_a_key(up: Up) -> None:
    """SERVING is 1. The empty name is the whole server."""
    service = GRPC_METRICS.split("/")[1].encode()

    assert _health(up, "Check", b"") == b"\x08\x01"
    assert _health(up, "Check", b"\x0a" + bytes([len(service)]) + service) == b"\x08\x01"


@pytest.mark.parametrize(
    ("body", "code"),
    [(b"\x0a\x01x", grpc.StatusCode.NOT_FOUND), (b"\xff", grpc.StatusCode.INVALID_ARGUMENT)],
)
def test_health_of_an_unknown_service_is_not_found(
    up: Up, body: bytes, code: grpc.StatusCode
) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        _health(up, "Check", body)

    assert caught.value.code() is code


def test_a_watch_is_told_at_once_and_does_not_hold_up_the_stop(new_up: Up) -> None:
    """Health protocol: Watch sends the status at once, and again when it changes (NOT_SERVING is 2)."""
    new_up.start()
    statuses: list[bytes] = []
    has_first, has_ended = threading.Event(), threading.Event()

    def watch() -> None:
        with grpc.insecure_channel(new_up.grpc) as channel:
            method: grpc.UnaryStreamMultiCallable[bytes, bytes] = channel.unary_stream(
                "/grpc.health.v1.Health/Watch",
                request_serializer=None,
                response_deserializer=None,
            )
            for status in method(b""):
                statuses.append(status)
                has_first.set()
        has_ended.set()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    assert has_first.wait(10)
    assert new_up.stop() == 0

    assert has_ended.wait(10)
    assert statuses == [b"\x08\x01", b"\x08\x02"]


def test_a_connection_is_ended_in_order_at_its_age(
    new_up: Up, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client is told to go away, connects again, and no call fails."""
    monkeypatch.setenv("METERING_OTLP_GRPC_MAX_CONNECTION_AGE_SECONDS", "1")
    new_up.start()
    with grpc.insecure_channel(new_up.grpc) as channel:
        has_left = leaves(channel)
        export = exporter(channel)
        metadata = (("authorization", f"Bearer {KEY}"),)
        export(b"", timeout=20, metadata=metadata)
        assert has_left.wait(20)
        export(b"", timeout=20, metadata=metadata)
    assert new_up.stop() == 0


def services_of(up: Up) -> set[str]:
    """What server reflection lists; raises grpc.RpcError."""
    with grpc.insecure_channel(up.grpc) as channel:
        ask = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo
        question = reflection_pb2.ServerReflectionRequest(list_services="")
        (answer,) = ask(iter([question]), timeout=20)
        return {one.name for one in answer.list_services_response.service}


def test_reflection_is_off_by_default(up: Up) -> None:
    with pytest.raises(grpc.RpcError) as refused:
        services_of(up)

    assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_reflection_lists_the_services_when_it_is_on(
    new_up: Up, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("METERING_OTLP_GRPC_REFLECTION", "true")
    new_up.start()

    found = services_of(new_up)

    assert {method.split("/")[1] for method in (GRPC_METRICS,)} < found
    assert len(found) == 4
