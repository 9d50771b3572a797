"""Rules of every transport (OTLP specification 1.11, "OTLP/gRPC" and "OTLP/HTTP")."""

import tracemalloc
from collections.abc import Callable
from decimal import Decimal

import pytest
from opentelemetry.proto.common.v1.common_pb2 import (
    AnyValue,
    ArrayValue,
    KeyValue,
    KeyValueList,
)

from receiver.compression import decompress
from receiver.errors import PayloadTooLargeError
from tests.conformance.conftest import LIMIT
from tests.conformance.wire import (
    COMPRESSORS,
    INVALID_ARGUMENT,
    JSON,
    OK,
    PERMISSION_DENIED,
    RESOURCE_EXHAUSTED,
    SIGNALS,
    TRANSPORTS,
    UNAUTHENTICATED,
    UNAVAILABLE,
    Request,
    Signal,
    encode,
    send,
    warning_of,
)
from tests.e2e.up import KEY, Up
from tests.otlp import PROTOBUF, Point, logs_request, metrics_request, spans_request
from tests.waiting import eventually

Stored = Callable[[str], list[dict[str, object]]]

every_transport = pytest.mark.parametrize("transport", TRANSPORTS)
every_signal = pytest.mark.parametrize("signal", SIGNALS, ids=["metrics", "traces", "logs"])

SENDABLE = [
    *((transport, "none") for transport in TRANSPORTS),
    *(("grpc", name) for name in ("gzip", "deflate")),
    *(
        (transport, name)
        for transport in (PROTOBUF, JSON)
        for name in COMPRESSORS
        if name != "none"
    ),
]
UNKNOWN_FIELD = b"\xa2\x06\x03abc"
"""Field 100, of three bytes."""


@pytest.mark.parametrize(("transport", "compression"), SENDABLE)
def test_no_compression_gzip_and_more_are_taken_on_every_transport(
    up: Up, stored: Stored, tenant: str, transport: str, compression: str
) -> None:
    """The specification demands none and gzip.

    Go takes zstd, snappy and lz4 as well, and zstd and snappy over gRPC. Deflate (zlib) is what the
    Python exporter sends. `identity` is refused by Go, in its own tests marked as a bug.
    """
    request = metrics_request([Point(tenant, n) for n in range(1, 51)])

    answer = send(up, transport, request, compression=compression)

    assert (answer.code, warning_of(answer, transport)) == (OK, "")
    rows = eventually(lambda: stored(tenant), lambda rows: len(rows) == 50)
    assert sum(Decimal(str(row["quantity"])) for row in rows) == 1275


@every_transport
@every_signal
def test_an_empty_request_is_a_success_without_partial_success(
    up: Up, transport: str, signal: Signal
) -> None:
    answer = send(up, transport, signal.request())

    assert answer.code == OK
    assert warning_of(answer, transport, signal) == ""
    assert answer.body == (b"{}" if transport == JSON else b"")


@every_signal
@pytest.mark.parametrize("media_type", [PROTOBUF, JSON])
def test_an_empty_body_is_a_success(up: Up, media_type: str, signal: Signal) -> None:
    assert send(up, media_type, b"", signal=signal).code == OK


@every_transport
def test_empty_envelopes_are_a_success(up: Up, transport: str) -> None:
    request = metrics_request([])
    request.resource_metrics.add()
    request.resource_metrics[0].scope_metrics[0].metrics.add(name="without data")

    assert send(up, transport, request).code == OK


@every_transport
def test_success_leaves_partial_success_unset_for_every_signal(
    up: Up, tenant: str, transport: str
) -> None:
    requests: tuple[Request, ...] = (
        metrics_request([Point(tenant, 1)]),
        spans_request(
            [{"tenant.id": tenant}], name=tenant, first_id=hash((tenant, transport)) % 2**60
        ),
        logs_request([{"tenant.id": tenant, "metering.quantity": "1"}]),
    )

    for request, signal in zip(requests, SIGNALS, strict=True):
        assert warning_of(send(up, transport, request), transport, signal) == ""


@every_transport
def test_what_is_set_aside_is_a_warning_with_nothing_rejected(up: Up, transport: str) -> None:
    """DESIGN: usage in quarantine is stored, so `rejected` stays 0: a client must not send it again."""
    answer = send(up, transport, metrics_request([Point("no tenant ##", 1)]))

    assert answer.code == OK
    assert "1 in quarantine" in warning_of(answer, transport)


@every_transport
def test_an_answer_stays_far_below_64_kib(up: Up, transport: str) -> None:
    """Go's exporter reads 64 KiB of an answer and took more for a failure."""
    points = [Point("x" * 500, 1, attributes={"n": n}) for n in range(500)]

    answer = send(up, transport, metrics_request(points))

    assert "500 in quarantine" in warning_of(answer, transport)
    assert len(answer.body) < 4_096


@every_transport
def test_unknown_fields_are_ignored(up: Up, stored: Stored, tenant: str, transport: str) -> None:
    body = encode(metrics_request([Point(tenant, 1)]), transport)
    if transport == JSON:
        body = b'{"new": {"nested": [{"x": [1, {"y": null}]}]}, ' + body[1:]
    else:
        body += UNKNOWN_FIELD

    assert send(up, transport, body).code == OK
    eventually(lambda: stored(tenant), lambda rows: len(rows) == 1)


@every_transport
def test_attribute_values_of_every_kind_are_taken(
    up: Up, stored: Stored, tenant: str, transport: str
) -> None:
    values = [
        AnyValue(),
        AnyValue(bytes_value=b"\xff\0"),
        AnyValue(kvlist_value=KeyValueList(values=[KeyValue(key="k")])),
        AnyValue(
            array_value=ArrayValue(values=[AnyValue(int_value=1), AnyValue(string_value="a")])
        ),
    ]
    request = metrics_request([Point(tenant, 1)])
    point = request.resource_metrics[0].scope_metrics[0].metrics[0].sum.data_points[0]
    point.attributes.extend(KeyValue(key=f"a{n}", value=value) for n, value in enumerate(values))

    assert warning_of(send(up, transport, request), transport) == ""
    rows = eventually(lambda: stored(tenant), lambda rows: len(rows) == 1)
    shown = rows[0]["attributes"]
    assert isinstance(shown, dict)
    assert {name: shown[name] for name in ("a0", "a1", "a2", "a3")} == {
        "a0": "",
        "a1": "/wA=",
        "a2": '{"k": ""}',
        "a3": '[1, "a"]',
    }


def test_the_same_usage_over_every_transport_counts_once(
    up: Up, stored: Stored, tenant: str
) -> None:
    """The protocol allows duplicate delivery, also by another route."""
    request = metrics_request([Point(tenant, 5)])

    for transport in TRANSPORTS:
        assert send(up, transport, request).code == OK
        eventually(lambda: stored(tenant), lambda rows: len(rows) == 1)
    assert len(stored(tenant)) == 1


@every_transport
def test_bad_data_is_refused_for_good_and_says_why(up: Up, transport: str) -> None:
    """`BadRequest` SHOULD be there over HTTP, and MAY over gRPC."""
    answer = send(up, transport, b"\x0a\xffnonsense")

    assert answer.code == INVALID_ARGUMENT
    assert answer.http in (None, 400)
    assert not answer.is_retryable
    violations = answer.details["google.rpc.BadRequest"]["fieldViolations"]
    assert violations == [{"field": "body", "description": answer.message}]


@every_transport
def test_a_request_at_the_limit_is_taken_and_one_above_is_not(up: Up, transport: str) -> None:
    """HTTP answers 413 as the specification says; Go answers 400."""

    def padded(size: int) -> bytes:
        if transport == JSON:
            return b'{"ignored": "' + b"x" * (size - 15) + b'"}'
        inner = size - 6  # the tag takes two bytes, the size four
        sizes = [inner >> shift & 127 for shift in (0, 7, 14, 21)]
        return UNKNOWN_FIELD[:2] + bytes([*(n | 128 for n in sizes[:3]), sizes[3]]) + bytes(inner)

    assert len(padded(LIMIT)) == LIMIT
    assert send(up, transport, padded(LIMIT)).code == OK
    refused = send(up, transport, padded(LIMIT + 1))
    assert (refused.code, refused.is_retryable) == (RESOURCE_EXHAUSTED, False)
    assert refused.http in (None, 413)


@pytest.mark.parametrize(
    ("transport", "compression"), [s for s in SENDABLE if s[1] not in ("none", "identity")]
)
def test_the_limit_holds_after_decompression(up: Up, transport: str, compression: str) -> None:
    answer = send(up, transport, bytes(64 * LIMIT), compression=compression)

    assert (answer.code, answer.is_retryable) == (RESOURCE_EXHAUSTED, False)
    assert answer.http in (None, 413)


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "zstd"])
def test_memory_above_the_limit_is_never_taken(encoding: str) -> None:
    limit = 2**20
    bomb = COMPRESSORS[encoding](bytes(256 * limit))
    tracemalloc.start()
    try:
        with pytest.raises(PayloadTooLargeError):
            decompress(encoding, bomb, limit)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert peak < 4 * limit


@every_transport
@pytest.mark.parametrize("key", [None, "", "wrong", "otm_root_wrong", KEY + "0"])
def test_only_a_credential_known_to_be_bad_is_unauthenticated(
    up: Up, transport: str, key: str | None
) -> None:
    answer = send(up, transport, metrics_request([Point("nobody", 1)]), key=key)

    assert answer.code == UNAUTHENTICATED
    assert answer.http in (None, 401)
    assert not answer.is_retryable
    if key:
        assert key not in answer.message


@every_transport
def test_a_credential_that_may_not_is_permission_denied(up: Up, transport: str) -> None:
    _, made = up.post("/v1/meter/keys", {"name": "reader", "scopes": ["query"]})

    answer = send(up, transport, metrics_request([Point("nobody", 1)]), key=made["key"])

    assert answer.code == PERMISSION_DENIED
    assert answer.http in (None, 403)


def test_overload_is_retryable_at_once_and_says_when(
    new_up: Up, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both trailers over gRPC: Go reads grpc-status-details-bin, Python google.rpc.retryinfo-bin."""
    monkeypatch.setenv("METERING_MAX_SPOOL_BYTES", "10")
    new_up.start()

    for transport in TRANSPORTS:
        answer = send(new_up, transport, metrics_request([Point("shop", 1)]))
        assert answer.code == UNAVAILABLE
        assert answer.is_retryable
        assert answer.details["google.rpc.RetryInfo"] == {"retryDelay": "1s"}
        if transport == "grpc":
            assert "google.rpc.retryinfo-bin" in answer.headers
        else:
            assert (answer.http, answer.headers["retry-after"]) == (503, "1")
    assert new_up.stop() == 0


def test_bad_utf_8_in_an_attribute_costs_nobody_anything(
    up: Up, stored: Stored, tenant: str
) -> None:
    """Go does not check UTF-8, so a Collector forwards it; Python's protobuf would refuse the request."""
    request = metrics_request([Point(tenant, 1, attributes={"city": "Köln"}), Point(tenant, 2)])

    for transport in TRANSPORTS:
        body = encode(request, transport).replace(b"K\\u00f6ln", "Köln".encode())
        broken = body.replace("ö".encode(), b"\xff\xfe")
        assert broken != body
        assert warning_of(send(up, transport, broken), transport) == ""
    rows = eventually(lambda: stored(tenant), lambda rows: len(rows) >= 2)
    shown = {row["attributes"].get("city") for row in rows}  # type: ignore[attr-defined]
    assert (len(rows), shown) == (2, {"K��ln", None})
