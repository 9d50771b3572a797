import pytest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsPartialSuccess,
    ExportMetricsServiceResponse,
)

from otel_metering._answers import Answer, Delivered, NotNow, Refused
from otel_metering._export import Backoff
from otel_metering._otlp_http import judge

NOW_NS = 1_700_000_000 * 10**9  # Tue, 14 Nov 2023 22:13:20 GMT


def answer(status: int, content: bytes = b"", **headers: str) -> Answer:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return judge(status, named, content, now_ns=NOW_NS)


def test_only_200_is_delivered() -> None:
    assert answer(200) == Delivered(rejected_points=0, message="")
    for status in (201, 202, 204, 301, 302, 401, 403, 404, 408, 429, 500, 501, 502, 503, 504):
        assert isinstance(answer(status), NotNow)


@pytest.mark.parametrize("status", [400, 413, 415, 422])
def test_a_bad_request_is_refused(status: int) -> None:
    assert isinstance(answer(status, b"bad"), Refused)


def test_rejected_points_are_read() -> None:
    partial = ExportMetricsPartialSuccess(rejected_data_points=3, error_message="why")
    content = ExportMetricsServiceResponse(partial_success=partial).SerializeToString()

    assert answer(200, content) == Delivered(rejected_points=3, message="why")
    assert answer(
        200,
        b'{"partialSuccess": {"rejectedLogRecords": "2", "errorMessage": "why"}}',
        content_type="application/json; charset=utf-8",
    ) == Delivered(rejected_points=2, message="why")


@pytest.mark.parametrize("content_type", ["text/html", "application/json"])
def test_a_web_page_is_not_an_acknowledgement(content_type: str) -> None:
    assert isinstance(answer(200, b"<html>log in</html>", content_type=content_type), NotNow)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("7", 7.0),
        ("Tue, 14 Nov 2023 22:13:30 GMT", 10.0),
        ("86400", 300.0),
        ("-5", 0.0),
        ("nan", 0.0),
        ("later", 0.0),
    ],
)
def test_retry_after_is_honoured_within_reason(value: str, seconds: float) -> None:
    retry = answer(503, retry_after=value)

    assert isinstance(retry, NotNow)
    assert retry.after_seconds == seconds


def test_pauses_double_up_to_the_longest() -> None:
    backoff = Backoff(initial_seconds=0.5, max_seconds=30.0, jitter=lambda: 1.0)

    pauses = [backoff.pause_seconds(failures, 0.0) for failures in (1, 2, 3, 10, 100_000)]

    assert pauses == [0.5, 1.0, 2.0, 30.0, 30.0]
    assert backoff.pause_seconds(1, 60.0) == 60.0


def test_jitter_shortens_a_pause_by_half_at_most() -> None:
    backoff = Backoff(initial_seconds=0.5, max_seconds=30.0, jitter=lambda: 0.0)

    assert backoff.pause_seconds(1, 0.0) == 0.25
