"""The published instrumentations of FastAPI and Flask, metered: exact totals, whatever the sampling."""

import asyncio
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from pathlib import Path

import flask
import httpx
import pytest
from fastapi import Depends, FastAPI, HTTPException, Request
from fastapi.responses import StreamingResponse
from opentelemetry import trace
from opentelemetry.instrumentation._semconv import _OpenTelemetrySemanticConventionStability
from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor
from opentelemetry.instrumentation.flask import FlaskInstrumentor
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import HistogramDataPoint, InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import (
    ALWAYS_OFF,
    ALWAYS_ON,
    ParentBased,
    Sampler,
    TraceIdRatioBased,
)
from opentelemetry.trace import SpanKind
from opentelemetry.util.types import Attributes

import otel_metering
from otel_metering import set_tenant
from otel_metering.meter_provider import TenantMeterProvider
from otel_metering.middleware.asgi import MeteringMiddleware
from otel_metering.spans import meter_spans
from tests.integration.sdk_backend import Backend, running_backend

SAMPLERS: list[Sampler] = [
    ALWAYS_OFF,
    ParentBased(TraceIdRatioBased(0.0)),
    ParentBased(TraceIdRatioBased(0.5)),
    ALWAYS_ON,
]

by_sampler = pytest.mark.parametrize(
    "sampler", SAMPLERS, ids=["always_off", "ratio_0", "ratio_half", "always_on"]
)


@pytest.fixture
def backend(tmp_path: Path) -> Iterator[Backend]:
    with running_backend() as backend:
        otel_metering.configure(service_name="shop", endpoint=backend.endpoint, spool_dir=tmp_path)
        yield backend
        otel_metering.shutdown()


def delivered(backend: Backend) -> dict[tuple[object, ...], Decimal]:
    """(tenant, route, status class) -> requests."""
    assert otel_metering.flush(send=True)
    found: dict[tuple[object, ...], Decimal] = {}
    for point in backend.points:
        assert point.meter == "server.requests"
        attributes = dict(point.attributes)
        names = "tenant.id", "http.route", "http.response.status_class"
        key = tuple(attributes.get(name) for name in names)
        found[key] = found.get(key, Decimal(0)) + point.quantity
    return found


def provider_of(sampler: Sampler) -> TracerProvider:
    return TracerProvider(sampler=sampler, shutdown_on_exit=False)


def authenticate(request: Request) -> None:
    """Runs in a worker thread, as every dependency that is no coroutine."""
    set_tenant(request.headers["authorization"])


def fastapi_shop(sampler: Sampler) -> FastAPI:
    app = FastAPI()
    # Made first, instrumented, and only then metered: tracers exist already.
    provider = provider_of(sampler)
    app.add_middleware(MeteringMiddleware)
    FastAPIInstrumentor.instrument_app(app, tracer_provider=provider)
    meter_spans(provider)

    @app.get("/items/{number}")
    async def item(number: int) -> int:
        if number == 404:
            raise HTTPException(404)
        return number

    @app.get("/mine", dependencies=[Depends(authenticate)])
    def mine() -> str:
        return "mine"

    @app.get("/stream")
    async def stream() -> StreamingResponse:
        return StreamingResponse(iter(["a", "b", "c"]))

    @app.get("/broken")
    async def broken() -> None:
        raise ZeroDivisionError

    return app


@by_sampler
def test_fastapi_requests_count_by_tenant_and_route(backend: Backend, sampler: Sampler) -> None:
    async def use(app: FastAPI) -> None:
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://shop") as client:
            for tenant, count in (("acme", 7), ("umbrella", 4)):
                headers = {"x-tenant-id": tenant}
                for number in range(count):
                    await client.get(f"/items/{number}", headers=headers)
                    await client.get("/mine", headers={"authorization": f"{tenant}-eu"})
                await client.get("/items/404", headers=headers)
                await client.get("/stream", headers=headers)
                await client.get("/broken", headers=headers)
                await client.get(f"/unknown/{tenant}", headers=headers)

    asyncio.run(use(fastapi_shop(sampler)))

    assert delivered(backend) == {
        ("acme", "/items/{number}", "2xx"): 7,
        ("umbrella", "/items/{number}", "2xx"): 4,
        ("acme-eu", "/mine", "2xx"): 7,
        ("umbrella-eu", "/mine", "2xx"): 4,
    } | {
        (tenant, route, status): 1
        for tenant in ("acme", "umbrella")
        for route, status in (
            ("/items/{number}", "4xx"),
            ("/stream", "2xx"),
            ("/broken", "5xx"),
            (None, "4xx"),
        )
    }


@by_sampler
def test_flask_requests_count_by_tenant_and_route(backend: Backend, sampler: Sampler) -> None:
    app = flask.Flask(__name__)
    provider = provider_of(sampler)
    FlaskInstrumentor().instrument_app(app, tracer_provider=provider)  # type: ignore[no-untyped-call]
    meter_spans(provider)

    @app.before_request
    def identify() -> None:
        tenant = flask.request.headers["x-tenant-id"]
        trace.get_current_span().set_attribute("tenant.id", tenant)

    @app.get("/items/<int:number>")
    def item(number: int) -> str:
        return str(number)

    @app.get("/stream")
    def stream() -> flask.Response:
        return flask.Response(iter(["a", "b"]))

    @app.get("/broken")
    def broken() -> str:
        raise ZeroDivisionError

    def use(tenant: str) -> None:
        client = app.test_client()
        for number in range(30):
            client.get(f"/items/{number}", headers={"x-tenant-id": tenant})
        for path in ("/stream", "/broken", "/unknown"):
            client.get(path, headers={"x-tenant-id": tenant}).get_data()

    tenants = [f"tenant_{number}" for number in range(4)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(use, tenants))

    assert delivered(backend) == {
        (tenant, route, status): count
        for tenant in tenants
        for route, status, count in (
            ("/items/<int:number>", "2xx", 30),
            ("/stream", "2xx", 1),
            ("/broken", "5xx", 1),
            (None, "4xx", 1),
        )
    }


class Slow(SpanExporter):
    """As slow as a Collector far away: the queue in front of it overflows."""

    def __init__(self) -> None:
        self.count = 0
        self._never = threading.Event()

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.count += len(spans)
        self._never.wait(0.05)
        return SpanExportResult.SUCCESS


@pytest.mark.filterwarnings("ignore")
def test_a_burst_that_the_exporter_drops_counts_in_full(backend: Backend) -> None:
    provider, exporter = provider_of(ALWAYS_ON), Slow()
    provider.add_span_processor(BatchSpanProcessor(exporter))
    meter_spans(provider)
    tracer = provider.get_tracer("test")

    def burst(tenant: str) -> None:
        attributes: Attributes = {"tenant.id": tenant, "http.route": "/", "http.status_code": 200}
        for _ in range(5_000):
            tracer.start_span("GET /", kind=SpanKind.SERVER, attributes=attributes).end()

    tenants = [f"tenant_{number}" for number in range(4)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(burst, tenants))
    provider.shutdown()

    assert exporter.count < 20_000
    assert delivered(backend) == {(tenant, "/", "2xx"): 5_000 for tenant in tenants}


@pytest.fixture
def stable_names(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Instrumentations read the choice once in a process."""
    monkeypatch.setenv("OTEL_SEMCONV_STABILITY_OPT_IN", "http")
    _OpenTelemetrySemanticConventionStability._initialized = False
    yield
    monkeypatch.undo()
    _OpenTelemetrySemanticConventionStability._initialized = False


@pytest.mark.usefixtures("stable_names")
@pytest.mark.parametrize("is_outside", [True, False], ids=["outside", "inside"])
def test_the_metrics_of_an_instrumentation_carry_the_tenant(*, is_outside: bool) -> None:
    reader = InMemoryMetricReader()
    tracing = provider_of(ALWAYS_OFF)
    meter_spans(tracing)
    shop = FastAPI()
    if not is_outside:
        shop.add_middleware(MeteringMiddleware)
    FastAPIInstrumentor.instrument_app(
        shop,
        tracer_provider=tracing,
        meter_provider=TenantMeterProvider(MeterProvider([reader], shutdown_on_exit=False)),
    )

    @shop.get("/items/{number}")
    async def item(number: int) -> int:
        return number

    async def use(app: Callable[..., object]) -> None:
        transport = httpx.ASGITransport(app)  # type: ignore[arg-type] # an ASGI application
        async with httpx.AsyncClient(transport=transport, base_url="http://shop") as client:
            for tenant in ("acme", "acme", "umbrella"):
                await client.get("/items/1", headers={"x-tenant-id": tenant})

    asyncio.run(use(MeteringMiddleware(shop) if is_outside else shop))

    data = reader.get_metrics_data()
    assert data is not None
    found = {}
    for metric in data.resource_metrics[0].scope_metrics[0].metrics:
        if metric.name == "http.server.request.duration":
            for point in metric.data.data_points:
                assert isinstance(point, HistogramDataPoint)
                assert point.attributes is not None
                found[point.attributes.get("tenant.id")] = point.count
        if metric.name == "http.server.active_requests":
            assert [point.value for point in metric.data.data_points] == [0]  # type: ignore[union-attr]
    assert found == {"acme": 2, "umbrella": 1}
