"""Laws of admission: how requests are cut, ordered and repeated changes no total."""

from collections import Counter
from collections.abc import Iterable, Sequence
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
)

from otel_metering.contract.event import UsageEvent
from otel_metering.contract.meter import Meters, Signal, parse_meters
from receiver import rows
from receiver.admit import Admitted, MicroBatch, Outcome
from receiver.cumulative import Accumulators
from receiver.errors import MalformedPayloadError
from receiver.metering import Metering
from receiver.seen import SeenIds
from receiver.usage import Reason, Sender
from tests.otlp import NOON, Point, logs_request, metrics_request, spans_request

ANYONE = Sender(key_id="k", bound_tenant=None)
METERS = parse_meters(
    {
        "meters": [
            {
                "slug": "http.requests",
                "source": {"signal": "span", "kind": "server"},
                "aggregation": "count",
                "group_by": ["http.route"],
            },
            {
                "slug": "http.seconds",
                "source": {"signal": "span", "kind": "server"},
                "value": "duration",
            },
            {
                "slug": "jobs",
                "source": {"signal": "metric", "name": "worker.*"},
                "group_by": ["queue"],
            },
            {
                "slug": "jobs.fast",
                "source": {"signal": "metric", "name": "worker.fast"},
                "group_by": [],
            },
        ]
    }
)


class Pipe:
    """Bytes to rows, as the receiver does it, without its threads."""

    def __init__(self, meters: Meters = METERS, max_cached_streams: int = 1_000) -> None:
        self._metering = Metering(meters, max_cached_streams)
        self._seen = SeenIds()
        self._states: dict[bytes, bytes] = {}
        self._accumulators = Accumulators(
            lambda keys: {key: self._states[key] for key in keys if key in self._states}
        )
        self._number = 0
        self.now_ns = NOON + 10**9
        self.payloads: dict[str, list[bytes]] = {rows.EVENTS_KEY: [], rows.QUARANTINE_KEY: []}

    def batch(self) -> MicroBatch:
        return MicroBatch(
            self._metering,
            self._seen,
            self._accumulators,
            now_ns=self.now_ns,
            new_id=self._new_id,
        )

    def commit(self, batch: MicroBatch) -> Admitted:
        admitted = batch.admit()
        self._seen.add(admitted.ids, 1, NOON)
        self._states.update(admitted.states)
        self._accumulators.remember(admitted.states)
        for key, payload in admitted.entries:
            self.payloads[key].append(payload)
        return admitted

    def send(self, signal: Signal, body: bytes, sender: Sender = ANYONE) -> Outcome:
        batch = self.batch()
        batch.add_otlp(signal, body, sender)
        return self.commit(batch).outcomes[0]

    def points(self, points: Iterable[Point], **how: object) -> Outcome:
        request = metrics_request(points, **how)  # type: ignore[arg-type]
        return self.send(Signal.METRIC, request.SerializeToString())

    def rows(self) -> list[dict[str, object]]:
        payloads = self.payloads[rows.EVENTS_KEY]
        return rows.to_events(payloads, bytes(16)).to_pylist() if payloads else []

    def quarantined(self) -> list[dict[str, object]]:
        payloads = self.payloads[rows.QUARANTINE_KEY]
        return rows.to_quarantine(payloads, bytes(16)).to_pylist() if payloads else []

    def totals(self) -> Counter[tuple[object, object]]:
        sums: Counter[tuple[object, object]] = Counter()
        for row in self.rows():
            sums[row["tenant_id"], row["meter"]] += row["quantity"]  # type: ignore[operator]
        return sums

    def _new_id(self) -> bytes:
        self._number += 1
        return self._number.to_bytes(16, "big")


points = st.lists(
    st.builds(
        Point,
        tenant=st.sampled_from(["tenant_a", "tenant_b"]),
        value=st.integers(0, 3) | st.sampled_from([0.5, 0.1, 1e6]),
        at_ns=st.integers(NOON, NOON + 2),
        start_ns=st.integers(NOON - 2, NOON),
        meter=st.sampled_from(["api.calls", "bytes"]),
        attributes=st.dictionaries(st.sampled_from(["region", "route"]), st.integers(0, 1)),
    ),
    min_size=1,
    max_size=25,
)


def sums(of: Iterable[Point]) -> Counter[tuple[object, object]]:
    """The ten-line oracle: each different point once."""
    expected: Counter[tuple[object, object]] = Counter()
    different = {
        (p.tenant, p.meter, p.at_ns, p.start_ns, p.value, tuple(sorted(p.attributes.items()))): p
        for p in of
    }
    for point in different.values():
        expected[point.tenant, point.meter] += point.usage.quantity  # type: ignore[assignment]
    return expected


@given(sent=points, data=st.data())
def test_splitting_merging_and_repeating_changes_no_total(
    sent: list[Point], data: st.DataObject
) -> None:
    pipe = Pipe(max_cached_streams=data.draw(st.sampled_from([1, 1_000])))
    pieces = data.draw(st.lists(st.lists(st.sampled_from(sent), min_size=1), max_size=5))

    batch = pipe.batch()
    for piece in [sent, *pieces]:
        reverse = data.draw(st.booleans())
        body = metrics_request(piece, reverse_attributes=reverse).SerializeToString()
        batch.add_otlp(Signal.METRIC, body, ANYONE)
        if data.draw(st.booleans()):
            pipe.commit(batch)
            batch = pipe.batch()
    pipe.commit(batch)

    assert +pipe.totals() == +sums(sent)


@given(sent=points)
def test_admitting_twice_changes_nothing_and_is_all_accounted_for(sent: list[Point]) -> None:
    pipe = Pipe()

    first = pipe.points(sent)
    before = pipe.rows()
    second = pipe.points(sent)

    assert pipe.rows() == before
    assert first.accepted + first.duplicates == len(sent)
    assert (second.accepted, second.duplicates) == (0, len(sent))


def test_what_was_not_committed_is_not_remembered() -> None:
    pipe = Pipe()
    body = metrics_request([Point("tenant_a", 3)]).SerializeToString()

    lost = pipe.batch()
    lost.add_otlp(Signal.METRIC, body, ANYONE)
    lost.admit()  # and then the disk was full

    assert pipe.send(Signal.METRIC, body).accepted == 1


def test_a_malformed_request_leaves_its_neighbours_alone() -> None:
    pipe = Pipe()
    good = metrics_request([Point("tenant_a", 3)]).SerializeToString()
    batch = pipe.batch()

    batch.add_otlp(Signal.METRIC, good, ANYONE)
    with pytest.raises(MalformedPayloadError):
        batch.add_otlp(
            Signal.METRIC,
            metrics_request([Point("tenant_a", 5)]).SerializeToString() + b"\x0a\x7f",
            ANYONE,
        )

    assert [outcome.accepted for outcome in pipe.commit(batch).outcomes] == [1]
    assert pipe.totals() == {("tenant_a", "api.calls"): 3}


def with_resource(tenant: str) -> dict[str, str]:
    return {"service.name": "shop", "tenant.id": tenant}


def test_the_tenant_is_the_points_then_the_resources_then_the_keys() -> None:
    pipe = Pipe()
    without = metrics_request([Point("x", 1)], resource={"service.name": "a"})
    for metric in without.resource_metrics[0].scope_metrics[0].metrics:
        del metric.sum.data_points[0].attributes[:]
    of_resource = ExportMetricsServiceRequest.FromString(without.SerializeToString())
    of_resource.resource_metrics[0].resource.attributes.add(
        key="tenant.id"
    ).value.string_value = "of.resource"

    pipe.points([Point("of.point", 1)], resource=with_resource("of.resource"))
    pipe.send(Signal.METRIC, of_resource.SerializeToString())
    pipe.send(Signal.METRIC, without.SerializeToString(), Sender(key_id="k", bound_tenant="of.key"))
    nobody = pipe.send(Signal.METRIC, without.SerializeToString())

    assert pipe.totals() == {
        (tenant, "api.calls"): 1 for tenant in ("of.point", "of.resource", "of.key")
    }
    assert (nobody.quarantined, nobody.warning.partition(":")[0]) == (1, "no_tenant")


def reasons(pipe: Pipe) -> list[object]:
    return [row["reason"] for row in pipe.quarantined()]


DAY = 24 * 3600 * 10**9


@pytest.mark.parametrize(
    ("point", "reason"),
    [
        (Point("no such tenant", 1), "invalid_tenant"),
        (Point("t" * 129, 1), "invalid_tenant"),
        (Point("tenant_a", 1, meter="no such meter"), "invalid_meter"),
        (Point("tenant_a", -1), "invalid_quantity"),
        (Point("tenant_a", float("nan")), "invalid_quantity"),
        (Point("tenant_a", float("inf")), "invalid_quantity"),
        (Point("tenant_a", 2.0**63), "invalid_quantity"),
        (Point("tenant_a", 1, at_ns=0), "no_timestamp"),
        (Point("tenant_a", 1, at_ns=1), "timestamp_out_of_range"),
        (Point("tenant_a", 1, at_ns=NOON + 2 * DAY), "timestamp_out_of_range"),
        (Point("tenant_a", 1, at_ns=2**64 - 1), "timestamp_out_of_range"),
        (Point("tenant_a", 1, attributes={"metering.quantity.scale": 10}), "invalid_quantity"),
    ],
)
def test_what_cannot_be_billed_is_set_aside_alone_and_once(point: Point, reason: str) -> None:
    pipe = Pipe()
    neighbours = [Point("tenant_a", 3), Point("tenant_b", 4)]

    outcome = pipe.points([neighbours[0], point, neighbours[1]])
    pipe.points([point, *neighbours])

    assert (outcome.accepted, outcome.quarantined) == (2, 1)
    assert outcome.warning.startswith(f"{reason}: ")
    assert reasons(pipe) == [reason]
    assert pipe.totals() == {("tenant_a", "api.calls"): 3, ("tenant_b", "api.calls"): 4}


def test_what_is_set_aside_can_be_sent_again() -> None:
    pipe = Pipe()
    pipe.points([Point("no such tenant", 1, attributes={"n": 1})])

    (row,) = pipe.quarantined()
    payload = row["payload"]
    assert isinstance(payload, bytes)
    request = ExportMetricsServiceRequest.FromString(payload)

    assert request == metrics_request([Point("no such tenant", 1, attributes={"n": 1})])


@pytest.mark.parametrize("temporality", [0, 7])
def test_an_unknown_temporality_is_set_aside(temporality: int) -> None:
    pipe = Pipe()

    pipe.points([Point("tenant_a", 1)], temporality=temporality)

    assert reasons(pipe) == ["unknown_temporality"]


def test_telemetry_that_is_no_usage_is_ignored() -> None:
    pipe = Pipe()
    request = metrics_request([Point("x", 1, meter="process.cpu")], scope="other")
    for metric in request.resource_metrics[0].scope_metrics[0].metrics:
        del metric.sum.data_points[0].attributes[:]

    outcome = pipe.send(Signal.METRIC, request.SerializeToString())
    spans = pipe.send(Signal.SPAN, spans_request([{}], kind=3).SerializeToString())

    assert (outcome.ignored, spans.ignored) == (1, 1)
    assert (pipe.rows(), pipe.quarantined()) == ([], [])


def test_a_point_that_names_a_tenant_but_no_meter_is_set_aside() -> None:
    pipe = Pipe()

    pipe.points([Point("tenant_a", 1, meter="other.metric")], scope="other")

    assert reasons(pipe) == ["no_meter"]


def test_one_point_may_feed_several_meters() -> None:
    pipe = Pipe()
    sent = [
        Point("tenant_a", 5, meter="worker.fast", attributes={"queue": "q", "host": "h"}),
        Point("tenant_a", 7, meter="worker.slow", attributes={"queue": "q", "host": "h"}),
    ]

    first = pipe.points(sent, scope="other")
    pipe.points(sent, scope="other")

    assert first.accepted == 3
    assert pipe.totals() == {("tenant_a", "jobs"): 12, ("tenant_a", "jobs.fast"): 5}
    dimensions = {(row["meter"], str(row["dimensions"])) for row in pipe.rows()}
    assert dimensions == {("jobs", "[('queue', 'q')]"), ("jobs.fast", "[]")}


def test_a_span_is_counted_by_each_meter_that_it_feeds() -> None:
    pipe = Pipe()
    span = {"tenant.id": "tenant_a", "http.route": "/x", "note": "n"}

    pipe.send(Signal.SPAN, spans_request([span], seconds=0.25).SerializeToString())

    assert pipe.totals() == {
        ("tenant_a", "http.requests"): 1,
        ("tenant_a", "http.seconds"): Decimal("0.25"),
    }
    row = next(row for row in pipe.rows() if row["meter"] == "http.requests")
    assert row["dimensions"] == [("http.route", "/x")]
    assert row["trace_id"] == f"{1:032x}"
    assert row["span_id"] == f"{1:016x}"
    assert row["signal"] == "span"


def test_an_event_with_a_quantity_is_usage_of_the_meter_it_is_named_after() -> None:
    pipe = Pipe()
    records: Sequence[dict[str, str | bool | int | float]] = [
        {"tenant.id": "tenant_a", "metering.quantity": 2},
        {"tenant.id": "tenant_a", "metering.quantity": 0.1},
        {"tenant.id": "tenant_a", "metering.quantity": "12.345678901"},
        {"tenant.id": "tenant_a", "metering.quantity": "many"},
        {"tenant.id": "tenant_a", "metering.quantity": True},
    ]

    outcome = pipe.send(Signal.LOG, logs_request(records, event_name="gb").SerializeToString())

    assert (outcome.accepted, outcome.quarantined) == (3, 2)
    assert pipe.totals() == {("tenant_a", "gb"): Decimal("14.445678901")}


def test_scaled_integers_are_exact_decimals() -> None:
    pipe = Pipe()
    scaled: dict[str, str | bool | int | float] = {"metering.quantity.scale": 2, "region": "eu"}

    pipe.points([Point("tenant_a", 1_234, attributes=scaled)])

    (row,) = pipe.rows()
    assert row["quantity"] == Decimal("12.34")
    assert row["dimensions"] == [("region", "eu")]


def test_a_stale_marker_is_no_usage() -> None:
    pipe = Pipe()
    request = metrics_request([Point("tenant_a", 9)])
    request.resource_metrics[0].scope_metrics[0].metrics[0].sum.data_points[0].flags = 1

    assert pipe.send(Signal.METRIC, request.SerializeToString()).ignored == 1


def test_events_of_the_json_api_are_rejected_by_index() -> None:
    pipe = Pipe()
    events = [
        UsageEvent(tenant_id="tenant_a", meter="calls", quantity=Decimal("1.5")),
        UsageEvent(tenant_id="not ok", meter="calls"),
        UsageEvent(tenant_id="tenant_a", meter="calls", quantity=Decimal("1e-10")),
        UsageEvent(tenant_id="tenant_a", meter="calls", event_id="one"),
        UsageEvent(tenant_id="tenant_a", meter="calls", event_id="one", quantity=Decimal(7)),
        UsageEvent(tenant_id="tenant_a", meter="calls", quantity=Decimal("1.5")),
        UsageEvent(tenant_id="tenant_a", meter="calls", timestamp_ns=1),
        UsageEvent(tenant_id="tenant_a", meter="calls", event_id=""),
    ]

    batch = pipe.batch()
    batch.add_events(events, ANYONE)
    outcome = pipe.commit(batch).outcomes[0]

    assert (outcome.accepted, outcome.duplicates) == (3, 0)
    assert outcome.reasons == {Reason.CONFLICT: 1}
    assert [index for index, _ in outcome.rejected] == [1, 2, 6, 7]
    assert pipe.totals() == {("tenant_a", "calls"): 4}


def test_a_bound_key_writes_no_other_tenant() -> None:
    pipe, bound = Pipe(), Sender(key_id="k", bound_tenant="tenant_a")
    body = metrics_request([Point("tenant_b", 1)]).SerializeToString()

    batch = pipe.batch()
    batch.add_otlp(Signal.METRIC, body, bound)
    batch.add_events([UsageEvent(tenant_id="tenant_b", meter="calls")], bound)
    otlp, api = pipe.commit(batch).outcomes

    assert (otlp.quarantined, reasons(pipe)) == (1, ["tenant_not_allowed"])
    assert [index for index, _ in api.rejected] == [0]
    # And what it tried does not stand in the way of the tenant's own usage.
    assert pipe.send(Signal.METRIC, body).accepted == 1


@given(
    body=st.binary(max_size=200), signal=st.sampled_from([Signal.METRIC, Signal.SPAN, Signal.LOG])
)
def test_random_bytes_are_an_outcome_or_malformed(body: bytes, signal: Signal) -> None:
    pipe = Pipe()
    try:
        pipe.send(signal, body)
    except MalformedPayloadError:
        return
    assert pipe.rows() == []
