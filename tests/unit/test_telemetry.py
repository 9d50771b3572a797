"""The receiver's numbers: added exactly, shown as Prometheus asks, and cut into intervals that add up."""

import math
import re
import threading
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from otel_metering.clock import ManualClock
from otel_metering.contract.meter import Signal
from otel_metering.errors import SpoolFullError, UnavailableError
from receiver.admit import Outcome
from receiver.catalog import CATALOG
from receiver.errors import MalformedPayloadError
from receiver.exposition import exposition
from receiver.instruments import observe
from receiver.pipeline_stats import interval, quantile
from receiver.telemetry import BOUNDS, MAX_KEYS, Distribution, Name, Telemetry
from receiver.usage import Reason
from tests.prometheus import by, parse, total

durations = st.lists(st.floats(min_value=0, max_value=200), min_size=1, max_size=200)


def edge(name: str) -> str:
    return f"otel_metering_receiver_edge_{name}_total"


def test_a_request_counts_in_and_once_out_or_refused() -> None:
    telemetry = Telemetry(ManualClock())
    acknowledged, refused, left, _open = (
        telemetry.request("grpc", Signal.METRIC) for _ in range(4)
    )

    acknowledged.acknowledge()
    acknowledged.refuse(UnavailableError())  # its answer could not be sent; the usage is durable
    acknowledged.end()
    refused.refuse(MalformedPayloadError("bytes"))
    refused.end()
    left.end()

    samples = parse(exposition(telemetry.read()))
    assert total(samples, edge("in"), transport="grpc", signal="metric") == 4
    assert total(samples, edge("out")) == 1
    assert by(samples, edge("refused"), "reason") == {"malformed_payload": 1, "cancelled": 1}


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (UnavailableError("later"), "unavailable"),
        (SpoolFullError(1, 1), "spool_full"),
        (MalformedPayloadError("bytes"), "malformed_payload"),
        (ZeroDivisionError(), "internal"),
    ],
)
def test_a_refusal_is_named_by_its_error(error: Exception, reason: str) -> None:
    telemetry = Telemetry()

    telemetry.request("http", Signal.LOG).refuse(error)
    telemetry.answered([("k", error)])

    samples = parse(exposition(telemetry.read()))
    assert by(samples, edge("refused"), "reason") == {reason: 1}
    refused = by(samples, "otel_metering_receiver_ingest_requests_refused_total", "reason")
    assert refused == {reason: 1}


def test_no_thread_loses_a_count_of_another() -> None:
    telemetry, rounds = Telemetry(), 5_000

    def work() -> None:
        for _ in range(rounds):
            telemetry.request("api", Signal.EVENT).acknowledge()
            telemetry.answered([("k", Outcome(accepted=2, duplicates=1))])

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    counters = telemetry.read().counters
    assert total(parse(exposition(telemetry.read())), edge("out")) == 4 * rounds
    assert counters[Name("ingest", "out")] == 8 * rounds
    assert counters[Name("ingest", "in")] == 12 * rounds


def test_usage_of_a_foreign_tenant_is_counted_by_key_and_keys_are_bounded() -> None:
    telemetry = Telemetry()
    foreign = Outcome(reasons=Counter({Reason.TENANT_NOT_ALLOWED: 1}))

    for key in range(MAX_KEYS + 5):
        telemetry.answered([(f"key{key}", foreign), (f"key{key}", Outcome(accepted=1))])
    telemetry.answered([("key7", foreign)])

    name = "otel_metering_receiver_ingest_tenant_refused_total"
    keys = by(parse(exposition(telemetry.read())), name, "key_id")
    assert len(keys) == MAX_KEYS + 1
    assert (keys["key7"], keys["other"]) == (2, 5)


@pytest.mark.parametrize("text", ['a"b', "a\\b", "a\nb", "\\n", 'ü"\\\n', ""])
def test_labels_are_escaped(text: str) -> None:
    telemetry = Telemetry()

    telemetry.add("writer", "out", 3, table=text)

    samples = parse(exposition(telemetry.read()))
    assert by(samples, "otel_metering_receiver_writer_out_total", "table") == {text: 3}


def test_a_histogram_is_cumulative_and_ends_with_everything() -> None:
    clock = ManualClock()
    telemetry = Telemetry(clock)
    for seconds in (0.0001, 0.5, 0.5, 3.0, 1_000.0):
        request = telemetry.request("http", Signal.SPAN)
        clock.advance(seconds)
        request.acknowledge()

    samples = parse(exposition(telemetry.read()))
    name = "otel_metering_receiver_edge_ack_duration_seconds"
    buckets = {float(le): count for le, count in by(samples, f"{name}_bucket", "le").items()}

    expected = {1.0: 3, 2.0: 3, 4.0: 4, 128.0: 4, math.inf: 5}
    assert {bound: buckets[bound] for bound in expected} == expected
    assert total(samples, f"{name}_count") == 5
    assert total(samples, f"{name}_sum") == pytest.approx(1_004.0001, rel=1e-6)


def test_names_are_unique_and_valid_in_both_worlds() -> None:
    for names in ([m.otel_name for m in CATALOG], [m.prometheus_name for m in CATALOG]):
        assert len(set(names)) == len(names)
    assert all(re.fullmatch(r"[a-z][a-z0-9_.]{0,254}", m.otel_name) for m in CATALOG)
    assert all(re.fullmatch(r"[a-zA-Z_:][a-zA-Z0-9_:]*", m.prometheus_name) for m in CATALOG)


@given(durations, st.sampled_from([0.5, 0.95, 0.99, 1.0]))
def test_a_quantile_lies_in_the_bucket_of_the_exact_one(seconds: list[float], share: float) -> None:
    distribution = Distribution()
    for one in seconds:
        distribution.add(one)

    found = quantile(distribution.counts, share, distribution.peak)

    exact = sorted(seconds)[math.ceil(share * len(seconds)) - 1]
    bounds = [0.0, *BOUNDS, math.inf]
    place = next(i for i in range(1, len(bounds)) if exact <= bounds[i])
    assert bounds[place - 1] <= found <= min(bounds[place], max(seconds))


@given(st.lists(durations, min_size=1, max_size=5))
def test_intervals_add_up_to_everything(rounds: list[list[float]]) -> None:
    clock = ManualClock()
    telemetry = Telemetry(clock)
    before, sums, peaks = telemetry.read(take_peaks=True), {"delta": 0.0, "count": 0.0}, []

    for seconds in rounds:
        for one in seconds:
            request = telemetry.request("grpc", Signal.METRIC)
            clock.ns += round(one * 1e9)
            request.acknowledge()
        after = telemetry.read(take_peaks=True)
        for name, stat, value in interval(before, after):
            if name.name in ("out", "ack_duration") and stat in sums:
                sums[stat] += value
            if stat == "max":
                peaks.append(value)
        before = after

    everything = sum(len(seconds) for seconds in rounds)
    assert sums == {"delta": everything, "count": everything}
    assert peaks == pytest.approx([max(seconds) for seconds in rounds], abs=1e-6)
    assert not [row for row in interval(before, telemetry.read()) if row[1] != "value"]


def test_the_age_is_that_of_the_oldest_entry_also_when_the_writer_was_faster() -> None:
    clock = ManualClock()
    telemetry = Telemetry(clock)
    age = Name("spool", "oldest_age")

    telemetry.found(entries=2, since_ns=clock.ns - 7_000_000_000)
    telemetry.committed(entries=1, rows=10)
    clock.advance(3)
    assert telemetry.read().gauges[age] == 10
    with telemetry.attempt(2):
        pass
    assert telemetry.read().gauges[age] == 3
    with telemetry.attempt(2):  # one of them is not known to be committed yet
        pass
    assert telemetry.read().gauges[age] == 0
    telemetry.committed(entries=1, rows=10)
    clock.advance(3)
    assert telemetry.read().gauges[age] == 0


def test_an_sdk_that_is_configured_gets_every_number() -> None:
    telemetry, reader = Telemetry(ManualClock()), InMemoryMetricReader()
    provider = MeterProvider([reader])
    observe(telemetry, provider)
    telemetry.request("grpc", Signal.METRIC).acknowledge()
    telemetry.add("writer", "out", 41, table="events")

    data = reader.get_metrics_data()

    assert data is not None
    found = {
        (metric.name, tuple(sorted((point.attributes or {}).items()))): point.value  # type: ignore[union-attr]
        for metric in data.resource_metrics[0].scope_metrics[0].metrics
        for point in metric.data.data_points
    }
    grpc = (("signal", "metric"), ("transport", "grpc"))
    assert found["otel_metering.receiver.edge.in", grpc] == 1
    assert found["otel_metering.receiver.writer.out", (("table", "events"),)] == 41
    assert found["otel_metering.receiver.edge.ack_duration.count", (("transport", "grpc"),)] == 1
    assert found["otel_metering.receiver.spool.oldest_age", ()] == 0
    provider.shutdown()
