"""Bad bytes store nothing and harm nobody; what each refusal looks like is in tests/conformance."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import grpc
import pytest
from google.protobuf import json_format
from google.rpc.status_pb2 import Status
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from otel_metering.contract.meter import Signal
from receiver.errors import MalformedPayloadError
from receiver.otlp.items import decode_logs, decode_spans
from receiver.otlp.json import to_protobuf
from receiver.otlp.metrics import decode_metrics
from tests.e2e.up import KEY, Up
from tests.otlp import (
    PROTOBUF,
    Point,
    call,
    logs_request,
    metrics_request,
    post,
    spans_request,
)

PATHS: Mapping[str, tuple[Callable[[bytes], object], Signal]] = {
    "/v1/metrics": (decode_metrics, Signal.METRIC),
    "/v1/traces": (decode_spans, Signal.SPAN),
    "/v1/logs": (decode_logs, Signal.LOG),
}
JSON = "application/json"
INVALID_ARGUMENT = 3

NOBODY = "##########"
"""No tenant id, also after some of its bytes were flipped."""

GOOD = metrics_request([Point("bad_input", 1, attributes={"n": n}) for n in range(20)])
GOOD_BODY = GOOD.SerializeToString()


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    running = Up(tmp_path_factory.mktemp("bad_input"))
    running.start()
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


def refusal(answer: tuple[int, bytes, Mapping[str, str]]) -> tuple[int, int]:
    """HTTP status and google.rpc.Code of a refusal."""
    status, body, headers = answer
    if headers["content-type"] == JSON:
        parsed = json_format.Parse(body, Status())
    else:
        parsed = Status.FromString(body)
    assert parsed.message
    return status, parsed.code


def is_decodable(path: str, body: bytes, media_type: str = PROTOBUF) -> bool:
    try:
        decode, signal = PATHS[path]
        decode(to_protobuf(signal, body) if media_type == JSON else body)
    except MalformedPayloadError:
        return False
    return True


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    path=st.sampled_from(sorted(PATHS)),
    body=st.binary(min_size=1, max_size=300),
    media_type=st.sampled_from([PROTOBUF, JSON]),
)
def test_random_bytes_are_refused_as_bad_data_or_hold_no_usage(
    up: Up, path: str, body: bytes, media_type: str
) -> None:
    answer = post(up.http, path, body, KEY, headers={"content-type": media_type})

    status, _, headers = answer
    assert status == 200 or refusal(answer) == (400, INVALID_ARGUMENT)
    assert status == 400 or is_decodable(path, body, media_type)
    assert headers["content-type"] == media_type


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

    answer = post(up.http, path, bytes(body), KEY)

    assert answer[0] == 200 or refusal(answer) == (400, INVALID_ARGUMENT)


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
