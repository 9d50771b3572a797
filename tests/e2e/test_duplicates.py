"""What is sent again, in whatever form, is counted once."""

import random

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
)

from tests.e2e.up import KEY, Up
from tests.oracle import totals
from tests.otlp import Point, Value, logs_request, metrics_request, post, spans_request

SECOND = 10**9


def send(up: Up, request: ExportMetricsServiceRequest) -> None:
    status, body, _ = post(up.http, "/v1/metrics", request.SerializeToString(), KEY)
    assert (status, body) == (200, b"")


def points_of(tenant: str, count: int = 200) -> list[Point]:
    return [
        Point(
            tenant,
            value=1 + number,
            at_ns=1_780_000_000 * SECOND + (number % 40) * SECOND,
            attributes={"region": f"r{number // 40}", "size": number, "ok": True, "rate": 0.5},
        )
        for number in range(count)
    ]


def expect_once(up: Up, points: list[Point]) -> None:
    expected = totals((point.usage for point in points), "minute")
    up.eventually_totals_of(points[0].tenant, expected)


def test_the_same_request_five_times_counts_once(up: Up) -> None:
    points = points_of("five.times")

    for _ in range(5):
        send(up, metrics_request(points))

    expect_once(up, points)


def test_points_split_and_merged_into_other_requests_count_once(up: Up) -> None:
    points, chance = points_of("split.merged"), random.Random(7)

    send(up, metrics_request(points))
    for _ in range(20):
        some = chance.sample(points, chance.randrange(1, len(points)))
        merged = metrics_request(some)
        merged.MergeFrom(metrics_request(chance.sample(points, 30)))
        send(up, merged)

    expect_once(up, points)


def test_attributes_in_another_order_count_once(up: Up) -> None:
    points = points_of("other.order")

    send(up, metrics_request(points))
    send(up, metrics_request(points, reverse_attributes=True))
    send(
        up,
        metrics_request(
            reversed(points), reverse_attributes=True, resource={"service.name": "shop"}
        ),
    )

    expect_once(up, points)


def test_resource_attributes_in_another_order_count_once(up: Up) -> None:
    points = points_of("resource.order")

    send(up, metrics_request(points, resource={"service.name": "shop", "host.name": "h"}))
    send(up, metrics_request(points, resource={"host.name": "h", "service.name": "shop"}))

    expect_once(up, points)


def test_what_was_sent_before_a_restart_counts_once_after_it(up: Up) -> None:
    points = points_of("restarted")
    send(up, metrics_request(points))

    up.stop()
    up.start()
    send(up, metrics_request(points))
    up.kill()
    up.start()
    send(up, metrics_request(points))

    expect_once(up, points)


def test_points_that_differ_only_in_value_start_or_time_all_count(up: Up) -> None:
    first = Point("all.count", value=1)
    points = [
        first,
        Point("all.count", value=2),
        Point("all.count", value=1, at_ns=first.at_ns + 1),
        Point("all.count", value=1, start_ns=first.start_ns + 1),
        Point("all.count", value=1, attributes={"region": "eu"}),
    ]

    send(up, metrics_request(points))

    expect_once(up, points)


def test_an_explicit_id_counts_once_whatever_its_time_and_quantity(up: Up) -> None:
    event: dict[str, Value] = {
        "tenant.id": "explicit.id",
        "metering.event.id": "order-1",
        "metering.quantity": 3,
    }

    changes: list[dict[str, Value]] = [{}, {"metering.quantity": 4}, {"note": "again"}]
    for changed in changes:
        body = logs_request([event | changed], event_name="orders").SerializeToString()
        assert post(up.http, "/v1/logs", body, KEY)[0] == 200
    status, answer = up.post(
        "/v1/meter/events",
        {"tenant_id": "explicit.id", "meter": "orders", "quantity": "9", "event_id": "order-1"},
    )

    assert (status, answer) == (202, {"accepted": 0, "duplicates": 1, "rejected": []})
    up.eventually_totals_of("explicit.id", {("explicit.id", "orders", "2026-09-21T14:13:00Z"): 3})


def test_a_span_counts_once_and_another_tenant_cannot_use_up_its_id(up: Up) -> None:
    for tenant in ("span.once", "span.other", "span.once"):
        body = spans_request([{"tenant.id": tenant}], first_id=77).SerializeToString()
        assert post(up.http, "/v1/traces", body, KEY)[0] == 200

    for tenant in ("span.once", "span.other"):
        up.eventually_totals_of(tenant, {(tenant, "http.requests", "2026-09-21T14:13:00Z"): 1})
