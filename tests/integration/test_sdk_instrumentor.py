"""The instrumentor by hand: what it changes, and that it changes it back."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI
from flask import Flask
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace import SpanKind
from opentelemetry.util.types import Attributes
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route

import otel_metering
from otel_metering import current_tenant
from otel_metering.instrumentor import MeteringInstrumentor
from otel_metering.spans import MeteringSampler
from tests.integration.sdk_backend import Backend, running_backend


@pytest.fixture
def provider() -> TracerProvider:
    return TracerProvider(sampler=ALWAYS_OFF, shutdown_on_exit=False)


@pytest.fixture
def backend(
    provider: TracerProvider, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Backend]:
    with running_backend() as backend:
        monkeypatch.setenv("METERING_ENDPOINT", backend.endpoint)
        monkeypatch.setenv("METERING_SPOOL_DIR", str(tmp_path))
        MeteringInstrumentor().instrument(tracer_provider=provider)
        yield backend
        MeteringInstrumentor().uninstrument()
        otel_metering.shutdown()


def ask(app: FastAPI | Starlette, path: str) -> str:
    async def get() -> str:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://shop") as client:
            return (await client.get(path, headers={"x-tenant-id": "acme"})).text

    return asyncio.run(get())


def starlette_shop() -> Starlette:
    async def show(_request: object) -> PlainTextResponse:
        return PlainTextResponse(str(current_tenant()))

    inner = FastAPI()
    inner.add_route("/items/{number}", show)
    return Starlette(routes=[Route("/", show), Mount("/inner", inner)])


def totals(backend: Backend) -> dict[tuple[str, object], object]:
    assert otel_metering.flush(send=True)
    return dict(backend.totals())


def test_an_application_inside_of_another_counts_its_requests_once(backend: Backend) -> None:
    app = starlette_shop()

    assert ask(app, "/") == "acme"
    assert ask(app, "/inner/items/1") == "acme"

    assert totals(backend) == {("server.requests", "acme"): 2}


def test_spans_of_servers_without_middleware_count(
    backend: Backend, provider: TracerProvider
) -> None:
    provider.get_tracer("grpc").start_span("Shop/Get", kind=SpanKind.SERVER).end()

    assert totals(backend) == {("server.requests", None): 1}


@pytest.mark.usefixtures("backend")
def test_uninstrumenting_leaves_no_trace(provider: TracerProvider) -> None:
    app = Flask("shop")
    samplers = [type(provider.sampler)]
    MeteringInstrumentor().uninstrument()
    try:
        samplers.append(type(provider.sampler))
        assert samplers == [MeteringSampler, type(ALWAYS_OFF)]
        assert ask(starlette_shop(), "/") == "None"
        assert app.test_client().get("/").status_code == 404
        assert app.extensions == {}
    finally:
        MeteringInstrumentor().instrument(tracer_provider=provider)


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("METERING_REQUESTS_METER", "no slug"),
        ("METERING_TRUST_BAGGAGE", "perhaps"),
        ("METERING_ENDPOINT", "nowhere"),
    ],
)
def test_a_wrong_setting_is_logged_and_changes_nothing(
    provider: TracerProvider,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    variable: str,
    value: str,
) -> None:
    monkeypatch.setenv(variable, value)

    MeteringInstrumentor().instrument(tracer_provider=provider)
    MeteringInstrumentor().uninstrument()

    assert variable in caplog.text
    assert provider.sampler is ALWAYS_OFF


def test_meters_can_be_renamed_and_turned_off(
    provider: TracerProvider, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("METERING_SPOOL_DIR", str(tmp_path))
    monkeypatch.setenv("METERING_REQUESTS_METER", "none")
    monkeypatch.setenv("METERING_TOKENS_METER", "my.tokens")
    with running_backend() as backend:
        monkeypatch.setenv("METERING_ENDPOINT", backend.endpoint)
        MeteringInstrumentor().instrument(tracer_provider=provider)
        ask(starlette_shop(), "/")
        attributes: Attributes = {
            "gen_ai.operation.name": "chat",
            "gen_ai.usage.input_tokens": 5,
        }
        provider.get_tracer("t").start_span("chat", attributes=attributes).end()
        found = totals(backend)
        MeteringInstrumentor().uninstrument()
        otel_metering.shutdown()

    assert found == {("my.tokens", None): 5}
