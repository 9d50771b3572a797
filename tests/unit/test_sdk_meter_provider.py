"""The tenant on measurements of the real metrics SDK."""

import pytest
from opentelemetry import trace
from opentelemetry.metrics import Observation
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_ON

from otel_metering import tenant
from otel_metering.meter_provider import TenantMeterProvider


@pytest.fixture
def reader() -> InMemoryMetricReader:
    return InMemoryMetricReader()


@pytest.fixture
def provider(reader: InMemoryMetricReader) -> TenantMeterProvider:
    return TenantMeterProvider(MeterProvider([reader], shutdown_on_exit=False))


def measured(reader: InMemoryMetricReader) -> dict[str, list[dict[str, object]]]:
    """Attributes of each point, by metric."""
    data = reader.get_metrics_data()
    assert data is not None
    return {
        metric.name: [dict(point.attributes or {}) for point in metric.data.data_points]
        for metric in data.resource_metrics[0].scope_metrics[0].metrics
    }


def test_counters_and_histograms_get_the_current_tenant(
    reader: InMemoryMetricReader, provider: TenantMeterProvider
) -> None:
    meter = provider.get_meter("test", "1", "https://example.com/schema")
    counter = meter.create_counter("calls", "{call}", "Calls.")
    histogram = meter.create_histogram("time", "s", explicit_bucket_boundaries_advisory=[1, 2])

    with tenant("acme"):
        counter.add(1, {"region": "eu"})
        histogram.record(1.5)

    assert measured(reader) == {
        "calls": [{"region": "eu", "tenant.id": "acme"}],
        "time": [{"tenant.id": "acme"}],
    }


def test_a_tenant_that_is_given_stays_and_without_one_nothing_is_added(
    reader: InMemoryMetricReader, provider: TenantMeterProvider
) -> None:
    meter = provider.get_meter("test")
    given = {"tenant.id": "given"}

    with tenant("acme"):
        meter.create_counter("given").add(1, given)
    meter.create_counter("nobody").add(1, {"a": 1})
    with tenant("no valid id"):
        meter.create_counter("invalid").add(1)

    assert measured(reader) == {"given": [given], "nobody": [{"a": 1}], "invalid": [{}]}
    assert given == {"tenant.id": "given"}


def test_a_measurement_after_the_request_gets_the_tenant_of_its_span(
    reader: InMemoryMetricReader, provider: TenantMeterProvider
) -> None:
    tracer = TracerProvider(sampler=ALWAYS_ON, shutdown_on_exit=False).get_tracer("test")
    span = tracer.start_span("x", attributes={"tenant.id": "acme"})
    span.end()

    counter = provider.get_meter("test").create_counter("calls")
    counter.add(1, context=trace.set_span_in_context(span))

    assert measured(reader) == {"calls": [{"tenant.id": "acme"}]}


def test_levels_are_left_alone(reader: InMemoryMetricReader, provider: TenantMeterProvider) -> None:
    meter = provider.get_meter("test")
    level = meter.create_up_down_counter("active")
    with tenant("acme"):
        level.add(1)
        meter.create_gauge("gauge").set(1)
        meter.create_observable_counter("oc", [lambda _: [Observation(1)]])
        meter.create_observable_gauge("og", [lambda _: [Observation(1)]])
        meter.create_observable_up_down_counter("ou", [lambda _: [Observation(1)]])
        found = measured(reader)

    assert found == {name: [{}] for name in ("active", "gauge", "oc", "og", "ou")}
