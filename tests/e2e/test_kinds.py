"""Every kind of telemetry, from OTLP to what the API answers, in rollups and at the edges of a range."""

from collections.abc import Iterator
from dataclasses import replace

import pytest

from tests.e2e.up import KEY, Up
from tests.otlp import NOON, Data, data_request, post
from tests.waiting import eventually

SECOND = 10**9
CUMULATIVE = 2
METERS = """
meters:
  - slug: latency
    source: {signal: metric, name: request.duration}
  - slug: latency.measurements
    source: {signal: metric, name: request.duration}
    aggregation: count
  - slug: seats
    source: {signal: metric, name: seats}
    aggregation: max
  - slug: bytes
    source: {signal: metric, name: bytes, where: {direction: [in, out]}}
    tenant: customer
"""


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    folder = tmp_path_factory.mktemp("kinds")
    meters = folder / "meters.yaml"
    meters.write_text(METERS)
    running = Up(folder / "data", f"--meters={meters}")
    running.start()
    try:
        yield running
    finally:
        running.stop()


def send(up: Up, name: str, *points: Data) -> None:
    body = data_request(points, name=name, scope="any").SerializeToString()
    status, answer, _ = post(up.http, "/v1/metrics", body, KEY)
    assert (status, answer) == (200, b"")


def expect(up: Up, value: str, *, meter: str, tenant: str, **how: str) -> None:
    """In a range that rollups hold, and in one with edges that only events hold."""
    for begin in ("2026-09-01T00:00:00Z", "2026-09-01T00:00:00.5Z"):
        eventually(
            lambda begin=begin: [  # type: ignore[misc]
                row["value"]
                for row in up.get(
                    "/v1/meter/aggregates",
                    meter=meter,
                    tenant_id=tenant,
                    window="total",
                    **{"from": begin, "to": "2026-10-01T00:00:00Z"},
                    **how,
                )["data"]
            ],
            lambda found: found == [value],
        )


@pytest.mark.parametrize("type", ["histogram", "exponential_histogram", "summary"])
def test_distributions_answer_sum_count_and_average_of_their_measurements(
    up: Up, type: str
) -> None:
    first = Data(
        type,
        10.0,
        count=4,
        at_ns=NOON - 60 * SECOND,
        start_ns=NOON - 600 * SECOND,
        temporality=CUMULATIVE,
        attributes={"tenant.id": type},
    )

    send(up, "request.duration", first, replace(first, value=12.0, count=5, at_ns=NOON))

    expect(up, "12", meter="latency", tenant=type)
    expect(up, "5", meter="latency", tenant=type, aggregation="count")
    expect(up, "2.4", meter="latency", tenant=type, aggregation="avg")
    expect(up, "5", meter="latency.measurements", tenant=type)


def test_a_late_first_point_of_an_unknown_start_leaves_the_right_sum_and_count(up: Up) -> None:
    start = NOON - 300 * SECOND
    late = Data(
        "histogram",
        100.0,
        count=40,
        at_ns=start,
        start_ns=start,
        temporality=CUMULATIVE,
        attributes={"tenant.id": "late"},
    )

    send(up, "request.duration", replace(late, value=112.0, count=45, at_ns=NOON))
    send(up, "request.duration", late)

    expect(up, "12", meter="latency", tenant="late")
    expect(up, "5", meter="latency", tenant="late", aggregation="count")


def test_a_gauge_answers_its_highest_and_latest_level(up: Up) -> None:
    levels = [
        Data("gauge", value, at_ns=NOON + second * SECOND, attributes={"tenant.id": "levels"})
        for second, value in enumerate([3, 7, 5])
    ]

    send(up, "seats", *levels)

    expect(up, "7", meter="seats", tenant="levels")
    expect(up, "5", meter="seats", tenant="levels", aggregation="latest")


def test_conditions_and_a_tenant_attribute_choose_what_counts_and_for_whom(up: Up) -> None:
    points = [
        Data("sum", value, attributes={"customer": "acme", "direction": direction})
        for value, direction in ((1, "in"), (20, "out"), (300, "loop"))
    ]

    send(up, "bytes", *points)

    expect(up, "21", meter="bytes", tenant="acme")
