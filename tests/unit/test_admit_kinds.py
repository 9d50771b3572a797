"""Every kind of telemetry as usage: what counts of a gauge, a histogram, a cumulative sum, a span."""

from collections.abc import Sequence
from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otel_metering.contract.event import UsageEvent
from otel_metering.contract.meter import Signal, parse_meters
from receiver import metering
from receiver.admit import Outcome
from receiver.usage import Reason, Sender
from tests.otlp import NOON, Data, Value, data_request, logs_request, spans_request
from tests.unit.test_admit import Pipe

DELTA, CUMULATIVE = 1, 2
TENANT: dict[str, Value] = {"tenant.id": "tenant_a"}
SECOND = 10**9


def pipe_of(*meters: dict[str, object]) -> Pipe:
    return Pipe(parse_meters({"meters": list(meters)}))


def metric_meter(slug: str = "calls", **fields: Any) -> dict[str, object]:
    return {"slug": slug, "source": {"signal": "metric", "name": "api.calls"}, **fields}


def send(pipe: Pipe, *points: Data, resource: dict[str, Value] | None = None) -> Outcome:
    tagged = [replace(point, attributes={**TENANT, **point.attributes}) for point in points]
    request = data_request(tagged, scope="instrumentation", resource=resource)
    return pipe.send(Signal.METRIC, request.SerializeToString())


def quantities(pipe: Pipe) -> list[Decimal]:
    return [row["quantity"] for row in pipe.rows()]  # type: ignore[misc]


def observations(pipe: Pipe) -> list[object]:
    return [row["observations"] for row in pipe.rows()]


def reasons(pipe: Pipe) -> list[object]:
    return [row["reason"] for row in pipe.quarantined()]


def cumulative(value: float, second: int, type: str = "sum", **how: object) -> Data:
    return Data(
        type,
        value,
        at_ns=NOON - 100 * SECOND + second * SECOND,
        start_ns=NOON - 100 * SECOND,
        temporality=CUMULATIVE,
        **how,  # type: ignore[arg-type]
    )


# --- sums


def test_a_cumulative_sum_counts_its_increases() -> None:
    pipe = pipe_of(metric_meter())

    outcome = send(pipe, cumulative(5, 10), cumulative(5, 20), cumulative(7.5, 30))

    assert quantities(pipe) == [Decimal(5), Decimal("2.5")]
    assert (outcome.accepted, outcome.unchanged) == (2, 1)


def test_a_repeated_cumulative_point_adds_nothing() -> None:
    pipe = pipe_of(metric_meter())
    send(pipe, cumulative(5, 10))

    outcome = send(pipe, cumulative(5, 10))

    assert quantities(pipe) == [Decimal(5)]
    assert (outcome.accepted, outcome.unchanged) == (0, 1)


def test_cumulative_rows_say_of_which_total_they_are_an_increase() -> None:
    pipe = pipe_of(metric_meter())

    send(pipe, cumulative(5, 10), cumulative(7, 20))

    assert [row["cumulative_value"] for row in pipe.rows()] == [5, 7]
    ids = [row["event_id"] for row in pipe.rows()]
    assert len(set(ids)) == 2


def test_a_cumulative_sum_that_falls_is_a_conflict_and_its_neighbours_count() -> None:
    pipe = pipe_of(metric_meter())

    outcome = send(pipe, cumulative(5, 10), cumulative(3, 20), cumulative(6, 30))

    assert sum(quantities(pipe)) == 6
    assert outcome.reasons == {Reason.CONFLICT: 1}
    assert reasons(pipe) == ["conflict"]


def test_an_unknown_start_counts_its_first_point_as_0() -> None:
    pipe = pipe_of(metric_meter())

    send(pipe, cumulative(50, 0), cumulative(57, 10))

    assert sum(quantities(pipe)) == 7
    assert observations(pipe) == [0, 1]


def test_a_late_first_point_of_an_unknown_start_takes_back_what_was_counted() -> None:
    pipe = pipe_of(metric_meter())
    send(pipe, cumulative(57, 10))

    outcome = send(pipe, cumulative(50, 0))

    assert quantities(pipe) == [Decimal(57), Decimal(-50)]
    assert observations(pipe) == [1, 0]
    assert len({row["timestamp"] for row in pipe.rows()}) == 1
    assert outcome.accepted == 1


def test_no_recorded_value_is_no_reset() -> None:
    pipe = pipe_of(metric_meter())

    outcome = send(pipe, cumulative(5, 10), cumulative(0, 20, flags=1), cumulative(7, 30))

    assert sum(quantities(pipe)) == 7
    assert outcome.ignored == 1


def test_a_delta_sum_that_is_not_monotonic_adds_and_subtracts() -> None:
    pipe = pipe_of(metric_meter())

    send(pipe, Data("sum", 5, is_monotonic=False), Data("sum", -2, is_monotonic=False))

    assert sum(quantities(pipe)) == 3


@pytest.mark.parametrize("start_ns", [2**63, 2**64 - 1])
def test_a_cumulative_start_that_is_no_time_is_set_aside(start_ns: int) -> None:
    pipe = pipe_of(metric_meter())

    send(pipe, replace(cumulative(5, 10), start_ns=start_ns))

    assert reasons(pipe) == ["timestamp_out_of_range"]


# --- levels


@pytest.mark.parametrize("aggregation", ["max", "min", "avg", "latest", "p99"])
def test_a_gauge_is_a_level(aggregation: str) -> None:
    pipe = pipe_of(metric_meter(aggregation=aggregation))

    send(pipe, Data("gauge", 5), Data("gauge", 3, at_ns=NOON + 1))

    assert quantities(pipe) == [Decimal(5), Decimal(3)]


def test_a_cumulative_sum_that_may_fall_is_a_level() -> None:
    pipe = pipe_of(metric_meter(aggregation="max"))

    send(pipe, cumulative(5, 10, is_monotonic=False), cumulative(3, 20, is_monotonic=False))

    assert quantities(pipe) == [Decimal(5), Decimal(3)]


@pytest.mark.parametrize(
    "level", [Data("gauge", 5), cumulative(5, 10, is_monotonic=False)], ids=["gauge", "updown"]
)
def test_levels_are_not_added_up_but_set_aside(level: Data) -> None:
    pipe = pipe_of(metric_meter(aggregation="sum"))

    outcome = send(pipe, level)

    assert reasons(pipe) == ["unsupported"]
    assert "max" in outcome.warning


# --- histograms and summaries


@pytest.mark.parametrize("type", ["histogram", "exponential_histogram"])
@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, Decimal("12.5")),
        ({"value": "sum"}, Decimal("12.5")),
        ({"value": "count"}, Decimal(4)),
        ({"aggregation": "count"}, Decimal(4)),
    ],
)
def test_of_a_delta_histogram_the_meter_chooses_count_or_sum(
    type: str, fields: dict[str, Any], expected: Decimal
) -> None:
    pipe = pipe_of(metric_meter(**fields))

    send(pipe, Data(type, 12.5, count=4))

    assert (quantities(pipe), observations(pipe)) == ([expected], [4])


@pytest.mark.parametrize("type", ["histogram", "exponential_histogram", "summary"])
def test_cumulative_distributions_count_increases_of_sum_and_of_measurements(type: str) -> None:
    pipe = pipe_of(metric_meter())

    outcome = send(
        pipe,
        cumulative(10, 10, type, count=2),
        cumulative(10, 20, type, count=3),
        cumulative(12.5, 30, type, count=4),
        cumulative(12.5, 40, type, count=4),
    )

    assert quantities(pipe) == [Decimal(10), Decimal(0), Decimal("2.5")]
    assert observations(pipe) == [2, 1, 1]
    assert outcome.unchanged == 1


def test_a_histogram_without_a_sum_is_set_aside_unless_its_measurements_count() -> None:
    sums, counts = pipe_of(metric_meter()), pipe_of(metric_meter(value="count"))

    for pipe in (sums, counts):
        send(pipe, Data("histogram", None, count=4))

    assert reasons(sums) == ["no_value"]
    assert quantities(counts) == [Decimal(4)]


def test_a_count_beyond_an_int64_is_set_aside() -> None:
    pipe = pipe_of(metric_meter(value="count"))

    send(pipe, Data("histogram", 1.0, count=2**63))

    assert reasons(pipe) == ["invalid_quantity"]


def test_a_plain_sum_is_one_observation_and_with_value_count_a_quantity_of_1() -> None:
    pipe = pipe_of(metric_meter(value="count"))

    send(pipe, Data("sum", 12))

    assert (quantities(pipe), observations(pipe)) == ([Decimal(1)], [1])


def test_of_our_sdk_a_point_of_5_calls_is_5_where_events_are_counted() -> None:
    spans: dict[str, object] = {
        "slug": "http.requests",
        "source": {"signal": "span"},
        "aggregation": "count",
    }
    pipe = pipe_of(spans, {**spans, "slug": "http.bytes", "aggregation": "sum"})
    for slug in ("http.requests", "http.bytes"):
        request = data_request([Data("sum", 5, attributes=TENANT)], name=slug)
        pipe.send(Signal.METRIC, request.SerializeToString())

    assert quantities(pipe) == [Decimal(5), Decimal(5)]
    assert observations(pipe) == [5, 1]


# --- meters


def test_one_item_feeds_several_meters_and_one_that_cannot_take_it_costs_the_other_nothing() -> (
    None
):
    pipe = pipe_of(metric_meter("highest", aggregation="max"), metric_meter("total"))

    outcome = send(pipe, Data("gauge", 5))

    assert pipe.totals() == {("tenant_a", "highest"): 5}
    assert (outcome.accepted, outcome.quarantined) == (1, 1)


def test_conditions_look_at_the_point_and_then_at_the_resource() -> None:
    source = {"signal": "metric", "where": {"region": ["eu", "us-*"], "service.name": "shop"}}
    pipe = pipe_of({"slug": "calls", "source": source})

    for region in ("eu", "us-1", "ap"):
        send(pipe, Data("sum", 1, attributes={"region": region}))
    other = send(pipe, Data("sum", 1, attributes={"region": "eu"}), resource={"service.name": "x"})

    assert sum(quantities(pipe)) == 2
    assert other.reasons == {Reason.NO_METER: 1}


def test_a_meter_may_name_another_attribute_for_the_tenant() -> None:
    pipe = pipe_of(metric_meter(tenant="customer"), metric_meter("internal"))

    send(pipe, Data("sum", 3, attributes={"customer": "acme"}))

    assert pipe.totals() == {("acme", "calls"): 3, ("tenant_a", "internal"): 3}


def test_the_tenant_attribute_is_no_dimension() -> None:
    pipe = pipe_of(metric_meter(tenant="customer"))

    send(pipe, Data("sum", 3, attributes={"customer": "acme", "region": "eu"}))

    assert pipe.rows()[0]["dimensions"] == [("region", "eu")]


def test_a_bound_key_cannot_write_another_tenant_through_a_tenant_attribute() -> None:
    pipe = pipe_of(metric_meter(tenant="customer"))
    request = data_request([Data("sum", 3, attributes={"customer": "acme"})])

    bound = Sender(key_id="k", bound_tenant="tenant_a")
    outcome = pipe.send(Signal.METRIC, request.SerializeToString(), bound)

    assert outcome.reasons[Reason.TENANT_NOT_ALLOWED] >= 1
    assert ("acme", "calls") not in pipe.totals()


# --- conflicts


def logs(records: Sequence[dict[str, Value]], at_ns: int = NOON) -> bytes:
    return logs_request(
        [{**TENANT, **one} for one in records], event_name="orders", at_ns=at_ns
    ).SerializeToString()


def test_another_event_under_a_used_id_is_a_conflict_and_is_set_aside_once() -> None:
    pipe = pipe_of()
    first: dict[str, Value] = {"metering.event.id": "a", "metering.quantity": 5}
    pipe.send(Signal.LOG, logs([first]))

    again = pipe.send(Signal.LOG, logs([first], at_ns=NOON + SECOND))
    other = [pipe.send(Signal.LOG, logs([{**first, "metering.quantity": 7}])) for _ in range(2)]

    assert sum(quantities(pipe)) == 5
    assert (again.duplicates, again.quarantined) == (1, 0)
    assert [one.reasons for one in other] == [{Reason.CONFLICT: 1}] * 2
    assert reasons(pipe) == ["conflict"]


def test_a_conflict_is_found_inside_one_request() -> None:
    pipe = pipe_of()

    outcome = pipe.send(
        Signal.LOG,
        logs([{"metering.event.id": "a", "metering.quantity": n} for n in (5, 5, 7)]),
    )

    assert (outcome.accepted, outcome.duplicates, outcome.quarantined) == (1, 1, 1)


def test_an_api_event_that_is_sent_again_without_a_time_is_no_conflict() -> None:
    pipe = pipe_of()
    events = [
        UsageEvent(tenant_id="tenant_a", meter="calls", event_id="a", timestamp_ns=at)
        for at in (None, NOON - 5)
    ]

    batch = pipe.batch()
    batch.add_events(events, Sender(key_id="k", bound_tenant=None))
    outcome = pipe.commit(batch).outcomes[0]

    assert (outcome.accepted, outcome.duplicates, outcome.quarantined) == (1, 1, 0)


# --- accounting


kinds = st.one_of(
    st.builds(
        Data,
        type=st.sampled_from(["sum", "gauge", "histogram", "summary", "exponential_histogram"]),
        value=st.sampled_from([None, 0, 3, -1, 2.5, float("nan")]).filter(lambda v: v is not None)
        | st.just(1),
        count=st.integers(0, 3),
        at_ns=st.sampled_from([0, NOON - 5, NOON, NOON * 2]),
        start_ns=st.sampled_from([0, NOON - 5, NOON, NOON + 5]),
        temporality=st.integers(0, 3),
        is_monotonic=st.booleans(),
        flags=st.integers(0, 1),
        attributes=st.sampled_from([{}, TENANT, {"tenant.id": "?"}, {**TENANT, "a": 1}]),
    )
)


@given(points=st.lists(kinds, max_size=12))
def test_every_point_is_in_exactly_one_count(points: list[Data]) -> None:
    pipe = pipe_of(metric_meter("calls", aggregation="max"))

    request = data_request(points, scope="instrumentation").SerializeToString()
    outcomes = [pipe.send(Signal.METRIC, request) for _ in range(2)]

    assert [outcome.uses for outcome in outcomes] == [len(points)] * 2
    assert outcomes[1].accepted == 0


def test_a_span_feeds_meters_by_count_duration_and_attribute() -> None:
    source = {"signal": "span", "kind": "server"}
    pipe = pipe_of(
        {"slug": "requests", "source": source, "aggregation": "count"},
        {"slug": "seconds", "source": source, "value": "duration"},
        {"slug": "bytes", "source": source, "value": "http.response.body.size"},
        {
            "slug": "users",
            "source": source,
            "aggregation": "unique_count",
            "value": "enduser.id",
        },
    )
    spans: dict[str, Value] = {**TENANT, "http.response.body.size": 512, "enduser.id": "u1"}

    pipe.send(Signal.SPAN, spans_request([spans], seconds=0.25).SerializeToString())

    assert pipe.totals() == {
        ("tenant_a", "requests"): 1,
        ("tenant_a", "seconds"): Decimal("0.25"),
        ("tenant_a", "bytes"): 512,
        ("tenant_a", "users"): 1,
    }


@pytest.mark.parametrize("bound", ["MAX_CACHED_ITEMS", "MAX_CACHED_ATTRIBUTES"])
def test_a_cache_that_is_always_full_changes_nothing_of_spans(
    bound: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metering, bound, 0)
    source = {"signal": "span", "kind": "server"}
    pipe = pipe_of(
        {"slug": "requests", "source": source, "aggregation": "count", "group_by": ["http.route"]}
    )
    spans: list[dict[str, Value]] = [
        {"tenant.id": f"tenant_{n % 2}", "http.route": f"/{n % 3}", "url.full": f"/{n}"}
        for n in range(12)
    ]

    for first in (1, 1, 101):
        pipe.send(Signal.SPAN, spans_request(spans, first_id=first).SerializeToString())

    assert pipe.totals() == {("tenant_0", "requests"): 12, ("tenant_1", "requests"): 12}
    assert {dict(row["attributes"])["url.full"] for row in pipe.rows()} == {  # type: ignore[call-overload]
        f"/{n}" for n in range(12)
    }
    assert {row["dimensions"][0] for row in pipe.rows()} == {  # type: ignore[index]
        ("http.route", f"/{n}") for n in range(3)
    }


def test_what_matters_to_a_meter_is_decided_anew_and_what_does_not_is_not() -> None:
    source = {"signal": "span", "kind": "server"}
    pipe = pipe_of(
        {"slug": "requests", "source": source, "group_by": ["http.route"]},
        {"slug": "bytes", "source": source, "value": "size", "group_by": []},
        {
            "slug": "users",
            "source": source,
            "aggregation": "unique_count",
            "value": "enduser.id",
            "group_by": [],
        },
        {"slug": "errors", "source": {**source, "where": {"code": 500}}, "group_by": []},
    )
    spans: list[dict[str, Value]] = [
        {**TENANT, "http.route": "/a", "size": 1, "enduser.id": "u", "code": 200, "url": "1"},
        {**TENANT, "http.route": "/b", "size": 20, "enduser.id": "v", "code": 500, "url": "2"},
        {**TENANT, "http.route": "/a", "size": 1, "enduser.id": "u", "code": 200, "url": "3"},
        {**TENANT, "http.route": "/a", "size": 300, "enduser.id": "w", "code": 200, "url": "4"},
    ]

    pipe.send(Signal.SPAN, spans_request(spans).SerializeToString())

    found = sorted(
        (row["meter"], row["dimensions"], row["quantity"], row["unique_key"]) for row in pipe.rows()
    )
    assert found == [
        ("bytes", [], 1, ""),
        ("bytes", [], 1, ""),
        ("bytes", [], 20, ""),
        ("bytes", [], 300, ""),
        ("errors", [], 1, ""),
        ("requests", [("http.route", "/a")], 1, ""),
        ("requests", [("http.route", "/a")], 1, ""),
        ("requests", [("http.route", "/a")], 1, ""),
        ("requests", [("http.route", "/b")], 1, ""),
        ("users", [], 1, "u"),
        ("users", [], 1, "u"),
        ("users", [], 1, "v"),
        ("users", [], 1, "w"),
    ]


@pytest.mark.parametrize("ids", [(b"", b""), (bytes(16), bytes(8)), (b"abc", b"d" * 9)])
def test_spans_without_valid_ids_are_told_apart_by_what_they_say(ids: tuple[bytes, bytes]) -> None:
    pipe = pipe_of(
        {"slug": "requests", "source": {"signal": "span", "kind": "server"}, "aggregation": "count"}
    )
    request = spans_request([{**TENANT, "n": number} for number in range(3)])
    for span in request.resource_spans[0].scope_spans[0].spans:
        span.trace_id, span.span_id = ids

    outcomes = [pipe.send(Signal.SPAN, request.SerializeToString()) for _ in range(2)]

    assert [(one.accepted, one.duplicates) for one in outcomes] == [(3, 0), (0, 3)]


def test_a_record_without_a_time_counts_once_whenever_it_comes_again() -> None:
    pipe = pipe_of()
    record = logs([{"metering.quantity": 5}], at_ns=0)

    outcomes = []
    for _ in range(2):
        outcomes.append(pipe.send(Signal.LOG, record))
        pipe.now_ns += 3_600 * SECOND

    assert [(one.accepted, one.duplicates) for one in outcomes] == [(1, 0), (0, 1)]


def test_a_conflict_is_found_in_attributes_that_matter_to_no_meter() -> None:
    pipe = pipe_of(
        {"slug": "requests", "source": {"signal": "span", "kind": "server"}, "group_by": []}
    )
    span: dict[str, Value] = {**TENANT, "metering.event.id": "a", "url": "/1"}

    outcomes = [
        pipe.send(Signal.SPAN, spans_request([{**span, "url": url}]).SerializeToString())
        for url in ("/1", "/1", "/2")
    ]

    assert [(one.accepted, one.duplicates, one.quarantined) for one in outcomes] == [
        (1, 0, 0),
        (0, 1, 0),
        (0, 0, 1),
    ]
