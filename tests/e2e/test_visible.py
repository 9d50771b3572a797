"""Acknowledged usage is in every rollup within two seconds."""

import time

import pytest

from tests.e2e.up import KEY, Up
from tests.oracle import FORMATS, totals
from tests.otlp import Point, metrics_request, post
from tests.waiting import eventually

PROMISED_SECONDS = 2.0


@pytest.mark.parametrize("attempt", range(3))
def test_acknowledged_usage_is_in_every_rollup_within_two_seconds(up: Up, attempt: int) -> None:
    points = [
        Point(f"visible_{attempt}.{n}", value=n, meter=f"visible_{attempt}") for n in range(1, 501)
    ]
    expected = {window: totals((point.usage for point in points), window) for window in FORMATS}

    body = metrics_request(points).SerializeToString()
    assert post(up.http, "/v1/metrics", body, KEY)[0] == 200
    acknowledged_at = time.monotonic()

    for window in ("month", "day", "hour", "minute"):
        left = acknowledged_at + PROMISED_SECONDS - time.monotonic()
        eventually(
            lambda window=window: up.totals([f"visible_{attempt}"], window),  # type: ignore[misc]
            lambda found, window=window: found == expected[window],  # type: ignore[misc]
            seconds=left,
            every=0.02,
        )
