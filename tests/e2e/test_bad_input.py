"""Bad input is answered as OTLP asks, stores nothing, and harms nobody.

Expected statuses are from the OTLP specification 1.11 ("Failures", "OTLP/HTTP Response"). Where the Go
receiver differs (400 for an oversized body), the specification is followed.
"""

import contextlib
import gzip
import http.client
import json
import zlib
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from google.rpc.error_details_pb2 import RetryInfo
from google.rpc.status_pb2 import Status
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from receiver.errors import MalformedPayloadError
from receiver.otlp.items import decode_logs, decode_spans
from receiver.otlp.metrics import decode_metrics
from tests.e2e.up import KEY, Up
from tests.otlp import (
    GRPC_METRICS,
    PROTOBUF,
    Point,
    call,
    logs_request,
    metrics_request,
    post,
    spans_request,
    trailers_of,
)

LIMIT = 4 * 2**20
"""METERING_MAX_REQUEST_BYTES of this module's server."""

PATHS = {"/v1/metrics": decode_metrics, "/v1/traces": decode_spans, "/v1/logs": decode_logs}
INVALID_ARGUMENT, RESOURCE_EXHAUSTED, UNIMPLEMENTED, UNAUTHENTICATED = 3, 8, 12, 16

NOBODY = "##########"
"""No tenant id, also after some of its bytes were flipped."""

GOOD = metrics_request([Point("bad_input", 1, attributes={"n": n}) for n in range(20)])
GOOD_BODY = GOOD.SerializeToString()


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    monkeypatch = pytest.MonkeyPatch()
    monkeypatch.setenv("METERING_MAX_REQUEST_BYTES", str(LIMIT))
    running = Up(tmp_path_factory.mktemp("bad_input"))
    running.start()
    monkeypatch.undo()
    try:
        yield running
        _check_at_the_end(running)
    finally:
        if running.is_running:
            running.kill()


def _check_at_the_end(running: Up) -> None:
    # At the end of everything: it is the same process, it works, and it counted nothing but this.
    assert running.is_running
    status, _, _ = post(running.http, "/v1/metrics", GOOD_BODY, KEY)
    assert status == 200
    expected = {("bad_input", "api.calls", "2026-09-21T14:13:00Z"): 20}
    running.eventually_totals_of("bad_input", expected)
    listed = running.get("/v1/meter/events", limit=1000, **{"from": "2020-01-01T00:00:00Z"})
    assert {event["tenant_id"] for event in listed["data"]} == {"bad_input"}
    assert len(listed["data"]) == 20
    assert running.stop() == 0


def refusal(answer: tuple[int, bytes, object]) -> tuple[int, int]:
    """HTTP status and google.rpc.Code of a refusal in protobuf."""
    status, body, _ = answer
    parsed = Status.FromString(body)
    assert parsed.message
    return status, parsed.code


def is_decodable(path: str, body: bytes) -> bool:
    try:
        PATHS[path](body)
    except MalformedPayloadError:
        return False
    return True


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(path=st.sampled_from(sorted(PATHS)), body=st.binary(min_size=1, max_size=300))
def test_random_bytes_are_refused_as_bad_data_or_hold_no_usage(
    up: Up, path: str, body: bytes
) -> None:
    status, answer, headers = post(up.http, path, body, KEY)

    assert status == 200 or refusal((status, answer, None)) == (400, INVALID_ARGUMENT)
    assert status == 400 or is_decodable(path, body)
    assert headers["content-type"] == PROTOBUF


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(cut=st.integers(min_value=1, max_value=len(GOOD_BODY) - 1))
def test_a_truncated_request_is_refused_as_a_whole(up: Up, cut: int) -> None:
    answer = post(up.http, "/v1/metrics", GOOD_BODY[:cut], KEY)

    assert refusal(answer) == (400, INVALID_ARGUMENT)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_flipped_bytes_never_harm_the_process(up: Up, data: st.DataObject) -> None:
    path, good = data.draw(
        st.sampled_from(
            [
                ("/v1/traces", spans_request([{"tenant.id": NOBODY}]).SerializeToString()),
                ("/v1/logs", logs_request([{"tenant.id": NOBODY}]).SerializeToString()),
                (
                    "/v1/metrics",
                    metrics_request([Point(NOBODY, 1)], scope="x").SerializeToString(),
                ),
            ]
        )
    )
    body = bytearray(good)
    for place in data.draw(st.lists(st.integers(0, len(body) - 1), min_size=1, max_size=4)):
        body[place] ^= data.draw(st.integers(1, 255))

    status, answer, _ = post(up.http, path, bytes(body), KEY)

    assert status == 200 or refusal((status, answer, None)) == (400, INVALID_ARGUMENT)


@pytest.mark.parametrize("content_type", ["text/plain", "", "application/x-protobuf2"])
def test_another_content_type_is_415(up: Up, content_type: str) -> None:
    status, body, _ = post(
        up.http, "/v1/metrics", GOOD_BODY, KEY, headers={"content-type": content_type}
    )

    assert status == 415
    assert json.loads(body)["code"] == INVALID_ARGUMENT


@pytest.mark.parametrize(
    "content_type", ["APPLICATION/X-PROTOBUF", "application/x-protobuf; charset=utf-8"]
)
def test_case_and_parameters_of_the_content_type_do_not_matter(up: Up, content_type: str) -> None:
    status, _, _ = post(up.http, "/v1/metrics", b"", KEY, headers={"content-type": content_type})

    assert status == 200


@pytest.mark.parametrize("method", ["GET", "PUT", "PATCH", "DELETE"])
def test_another_method_is_405(up: Up, method: str) -> None:
    connection = http.client.HTTPConnection(up.http, timeout=10)
    connection.request(method, "/v1/metrics", headers={"content-type": PROTOBUF})
    response = connection.getresponse()

    assert response.status == 405
    assert response.getheader("allow") == "POST"
    assert Status.FromString(response.read()).code == UNIMPLEMENTED
    connection.close()


def test_another_path_is_404(up: Up) -> None:
    assert refusal(post(up.http, "/v1/nothing", GOOD_BODY, KEY)) == (404, UNIMPLEMENTED)


def test_an_empty_request_is_a_success(up: Up) -> None:
    for path in PATHS:
        assert post(up.http, path, b"", KEY)[:2] == (200, b"")


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(GOOD_BODY, id="plain"),
        pytest.param(b"", id="empty"),
        pytest.param(gzip.compress(GOOD_BODY)[:-9], id="without-its-end"),
        pytest.param(gzip.compress(GOOD_BODY)[:20], id="cut-off"),
        pytest.param(gzip.compress(GOOD_BODY) + b"rest", id="with-a-rest"),
        pytest.param(zlib.compress(GOOD_BODY), id="zlib"),
    ],
)
def test_what_is_not_gzip_is_400(up: Up, body: bytes) -> None:
    answer = post(up.http, "/v1/metrics", body, KEY, headers={"content-encoding": "gzip"})

    assert refusal(answer) == (400, INVALID_ARGUMENT)


def test_an_unknown_content_encoding_is_400(up: Up) -> None:
    answer = post(up.http, "/v1/metrics", GOOD_BODY, KEY, headers={"content-encoding": "br"})

    assert refusal(answer) == (400, INVALID_ARGUMENT)


@pytest.mark.parametrize("has_length", [True, False])
def test_a_body_over_the_limit_is_413(up: Up, has_length: bool) -> None:
    connection = http.client.HTTPConnection(up.http, timeout=10)
    size = LIMIT + 1
    headers = {"content-type": PROTOBUF, "authorization": f"Bearer {KEY}"}
    body = bytes(size) if has_length else iter([bytes(2**16)] * (size // 2**16 + 1))
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # answered before all was sent
        connection.request("POST", "/v1/metrics", body, headers, encode_chunked=not has_length)
    response = connection.getresponse()

    assert response.status == 413
    assert Status.FromString(response.read()).code == RESOURCE_EXHAUSTED
    connection.close()


def test_a_decompression_bomb_is_413(up: Up) -> None:
    bomb = gzip.compress(bytes(64 * LIMIT))
    assert len(bomb) < LIMIT

    answer = post(up.http, "/v1/metrics", bomb, KEY, headers={"content-encoding": "gzip"})

    assert refusal(answer) == (413, RESOURCE_EXHAUSTED)


@pytest.mark.parametrize(
    "authorization",
    [None, "", "Bearer", "Bearer ", "Basic " + KEY, KEY, "Bearer otm_root_wrong", f"Bearer {KEY}0"],
)
def test_a_missing_or_unknown_key_is_401_and_nothing_else(
    up: Up, authorization: str | None
) -> None:
    headers = {} if authorization is None else {"authorization": authorization}

    answer = post(up.http, "/v1/metrics", GOOD_BODY, None, headers=headers)

    assert refusal(answer) == (401, UNAUTHENTICATED)


def test_a_key_without_the_scope_is_403(up: Up) -> None:
    _, made = up.post("/v1/meter/keys", {"name": "reader", "scopes": ["query"]})

    answer = post(up.http, "/v1/metrics", GOOD_BODY, made["key"])

    assert refusal(answer)[0] == 403


def test_usage_for_a_tenant_that_the_key_is_not_bound_to_is_set_aside(up: Up) -> None:
    scopes = {"name": "bound", "scopes": ["ingest"], "tenant_id": "own"}
    _, made = up.post("/v1/meter/keys", scopes)

    status, answer, _ = post(up.http, "/v1/metrics", GOOD_BODY, made["key"])

    assert status == 200
    assert b"20 in quarantine" in answer
    assert b"tenant_not_allowed" in answer


def grpc_answer(up: Up, body: bytes, **how: Any) -> grpc.RpcError | bytes:
    try:
        return call(up.grpc, body, how.pop("key", KEY), **how)
    except grpc.RpcError as error:
        return error


@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(body=st.binary(min_size=1, max_size=200))
def test_grpc_random_bytes_are_invalid_argument_or_hold_no_usage(up: Up, body: bytes) -> None:
    answer = grpc_answer(up, body)

    if isinstance(answer, grpc.RpcError):
        assert answer.code() is grpc.StatusCode.INVALID_ARGUMENT
    else:
        assert is_decodable("/v1/metrics", body)


def test_grpc_refusals(up: Up) -> None:
    expected = {
        grpc.StatusCode.UNAUTHENTICATED: grpc_answer(up, GOOD_BODY, key=None),
        grpc.StatusCode.UNIMPLEMENTED: grpc_answer(
            up, GOOD_BODY, method=GRPC_METRICS.replace("Export", "Import")
        ),
        grpc.StatusCode.RESOURCE_EXHAUSTED: grpc_answer(up, bytes(LIMIT + 1)),
    }

    for code, answer in expected.items():
        assert isinstance(answer, grpc.RpcError)
        assert answer.code() is code
        assert "google.rpc.retryinfo-bin" not in trailers_of(answer), "a client would send it again"


def test_grpc_a_compressed_bomb_is_refused(up: Up) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        call(up.grpc, bytes(64 * LIMIT), KEY, compression=grpc.Compression.Gzip)

    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_a_full_spool_is_retryable_at_once(new_up: Up, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METERING_MAX_SPOOL_BYTES", "10")
    full = new_up
    full.start()

    status, body, headers = post(full.http, "/v1/metrics", GOOD_BODY, KEY)
    answer = grpc_answer(full, GOOD_BODY)

    assert (status, Status.FromString(body).code) == (503, 14)
    assert headers["retry-after"] == "1"
    assert isinstance(answer, grpc.RpcError)
    assert answer.code() is grpc.StatusCode.UNAVAILABLE
    retry = trailers_of(answer)["google.rpc.retryinfo-bin"]
    assert isinstance(retry, bytes)
    assert RetryInfo.FromString(retry).retry_delay.seconds == 1
    assert full.stop() == 0


def test_bad_utf_8_in_an_attribute_costs_nobody_anything(up: Up) -> None:
    body = metrics_request([Point(NOBODY, 1, attributes={"city": "Köln"})])
    broken = body.SerializeToString().replace("ö".encode(), b"\xff\xfe")

    status, answer, _ = post(up.http, "/v1/metrics", broken, KEY)

    assert status == 200
    assert b"invalid_tenant" in answer
