"""The OpenTelemetry SDK's own exporters, unmodified, deliver; what they deliver is counted exactly."""

import random
from collections.abc import Sequence
from decimal import Decimal

import pytest
from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import (
    OTLPMetricExporter as GrpcMetricExporter,
)
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import (
    OTLPSpanExporter as GrpcSpanExporter,
)
from opentelemetry.exporter.otlp.proto.http import Compression
from opentelemetry.exporter.otlp.proto.http.metric_exporter import (
    OTLPMetricExporter as HttpMetricExporter,
)
from opentelemetry.exporter.otlp.proto.http.trace_exporter import (
    OTLPSpanExporter as HttpSpanExporter,
)
from opentelemetry.sdk.metrics import Counter, MeterProvider
from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    Metric,
    MetricExporter,
    MetricExportResult,
    MetricsData,
    NumberDataPoint,
    PeriodicExportingMetricReader,
    ResourceMetrics,
    ScopeMetrics,
    Sum,
)
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanKind

from tests.e2e.up import KEY, Up
from tests.oracle import FORMATS, Usage, totals
from tests.waiting import eventually

DELTA: dict[type, AggregationTemporality] = {Counter: AggregationTemporality.DELTA}
HEADERS = {"authorization": f"Bearer {KEY}"}
DAY = 24 * 3600 * 10**9
SPRING = 1_772_000_000 * 10**9
"""A moment of February 2026, in nanoseconds."""


def metric_exporter(up: Up, transport: str) -> MetricExporter:
    match transport:
        case "grpc":
            return GrpcMetricExporter(
                endpoint=f"http://{up.grpc}",
                insecure=True,
                headers=HEADERS,
                preferred_temporality=DELTA,
            )
        case "http":
            return HttpMetricExporter(
                endpoint=f"http://{up.http}/v1/metrics",
                headers=HEADERS,
                preferred_temporality=DELTA,
            )
        case _:
            return HttpMetricExporter(
                endpoint=f"http://{up.http}/v1/metrics",
                headers=HEADERS,
                preferred_temporality=DELTA,
                compression=Compression.Gzip,
            )


def metrics_data(usages: Sequence[Usage], instance: str) -> MetricsData:
    """Delta sums as the SDK hands them to an exporter; one point for each usage."""
    metrics = []
    for meter in sorted({usage.meter for usage in usages}):
        points = [
            NumberDataPoint(
                attributes={"tenant.id": usage.tenant, "place": f"p{number % 3}"},
                start_time_unix_nano=usage.at_ns - 10**9,
                time_unix_nano=usage.at_ns,
                value=float(usage.quantity) if usage.quantity % 1 else int(usage.quantity),
            )
            for number, usage in enumerate(usages)
            if usage.meter == meter
        ]
        data = Sum(points, AggregationTemporality.DELTA, is_monotonic=True)
        metrics.append(Metric(name=meter, description="", unit="1", data=data))
    scope = ScopeMetrics(InstrumentationScope("otel_metering"), metrics, schema_url="")
    resource = Resource({"service.name": "shop", "service.instance.id": instance})
    return MetricsData([ResourceMetrics(resource, [scope], schema_url="")])


@pytest.mark.parametrize("transport", ["grpc", "http", "http-gzip"])
def test_totals_of_every_window_equal_the_oracle(up: Up, transport: str) -> None:
    chance = random.Random(transport)
    usages = [
        Usage(
            tenant=f"{transport}.tenant_{chance.randrange(7)}",
            meter=f"{transport}.{chance.choice(['calls', 'bytes', 'seconds'])}",
            at_ns=SPRING + chance.randrange(90 * DAY),
            quantity=chance.choice(
                [
                    Decimal(chance.randrange(1, 1000)),
                    Decimal(chance.randrange(1, 10**6)) / 1000,
                    Decimal(2**62 + chance.randrange(10**9)),
                ]
            ),
        )
        for _ in range(4_000)
    ]

    exporter = metric_exporter(up, transport)
    for first in range(0, len(usages), 1_000):
        part = metrics_data(usages[first : first + 1_000], instance=f"{transport}-{first}")
        assert exporter.export(part) is MetricExportResult.SUCCESS
    exporter.shutdown()

    for window in FORMATS:
        up.eventually_totals(totals(usages, window), window)


@pytest.mark.parametrize("transport", ["grpc", "http"])
def test_a_counter_of_the_stock_sdk_is_counted(up: Up, transport: str) -> None:
    reader = PeriodicExportingMetricReader(metric_exporter(up, transport), 3_600_000)
    provider = MeterProvider([reader], resource=Resource.create({"service.name": "stock"}))
    tenant = f"stock.{transport}"
    calls = provider.get_meter("otel_metering").create_counter(f"{transport}.stock.calls")

    for _ in range(3):
        for quantity in (1, 20, 300):
            calls.add(quantity, {"tenant.id": tenant})
        provider.force_flush()
    provider.shutdown()

    eventually(
        lambda: sum(up.totals([f"{transport}.stock.calls"], "month").values()),
        lambda total: total == 3 * 321,
    )


@pytest.mark.parametrize("transport", ["grpc", "http"])
def test_server_spans_of_the_stock_sdk_are_counted_once_each(up: Up, transport: str) -> None:
    exporter: SpanExporter = (
        GrpcSpanExporter(endpoint=f"http://{up.grpc}", insecure=True, headers=HEADERS)
        if transport == "grpc"
        else HttpSpanExporter(endpoint=f"http://{up.http}/v1/traces", headers=HEADERS)
    )
    provider = TracerProvider(resource=Resource.create({"service.name": "stock"}))
    provider.add_span_processor(BatchSpanProcessor(exporter))
    tracer = provider.get_tracer("stock")
    tenant = f"spans.{transport}"

    for number in range(300):
        attributes = {"tenant.id": tenant, "http.route": f"/r{number % 2}"}
        with (
            tracer.start_as_current_span("GET", kind=SpanKind.SERVER, attributes=attributes),
            tracer.start_as_current_span("query", kind=SpanKind.CLIENT),
        ):
            pass
    provider.shutdown()

    def by_route() -> dict[str, str]:
        answer = up.get(
            "/v1/meter/aggregates",
            meter="http.requests",
            tenant_id=tenant,
            window="total",
            group_by="http.route",
        )
        return {row["dimensions"]["http.route"]: row["value"] for row in answer["data"]}

    eventually(by_route, lambda found: found == {"/r0": "150", "/r1": "150"})
