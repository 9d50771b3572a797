"""The published OpenAI client and its instrumentation against a local stand-in: exact tokens by tenant."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from pathlib import Path

import pytest
from fastapi import FastAPI
from fastapi.responses import StreamingResponse
from httpx import ASGITransport, AsyncClient
from openai import APIStatusError, AsyncOpenAI, OpenAI
from opentelemetry.instrumentation._semconv import _OpenTelemetrySemanticConventionStability
from opentelemetry.instrumentation.genai.openai import OpenAIInstrumentor
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON, Sampler

import otel_metering
from otel_metering import stats, tenant
from otel_metering.middleware.asgi import MeteringMiddleware
from otel_metering.spans import meter_spans
from tests.integration.model_api import WORDS, running_models
from tests.integration.sdk_backend import Backend, running_backend


@pytest.fixture(scope="module")
def models() -> Iterator[str]:
    """The base URL of the stand-in."""
    with running_models() as url:
        yield url


@pytest.fixture(
    params=[(ALWAYS_OFF, ""), (ALWAYS_ON, ""), (ALWAYS_OFF, "gen_ai_latest_experimental")],
    ids=["dropped", "sampled", "dropped_latest"],
)
def backend(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Backend]:
    sampler: Sampler
    sampler, names = request.param
    monkeypatch.setenv("OTEL_SEMCONV_STABILITY_OPT_IN", names)
    _OpenTelemetrySemanticConventionStability._initialized = False
    provider = TracerProvider(sampler=sampler, shutdown_on_exit=False)
    OpenAIInstrumentor().instrument(tracer_provider=provider)
    meter_spans(provider)
    with running_backend() as backend:
        otel_metering.configure(service_name="shop", endpoint=backend.endpoint, spool_dir=tmp_path)
        yield backend
        otel_metering.shutdown()
    OpenAIInstrumentor().uninstrument()
    monkeypatch.undo()
    _OpenTelemetrySemanticConventionStability._initialized = False


def delivered(backend: Backend, *names: str) -> dict[tuple[object, ...], Decimal]:
    """(tenant, values of the named attributes...) -> tokens."""
    assert otel_metering.flush(send=True)
    found: dict[tuple[object, ...], Decimal] = {}
    for point in backend.points:
        if point.meter == "gen_ai.tokens":
            attributes = dict(point.attributes)
            key = tuple(attributes.get(name) for name in ("tenant.id", *names))
            found[key] = found.get(key, Decimal(0)) + point.quantity
    return found


def ask(client: OpenAI, prompt: str, **options: object) -> object:
    return client.chat.completions.create(  # type: ignore[call-overload]
        model="m-1", messages=[{"role": "user", "content": prompt}], **options
    )


def test_tokens_count_by_tenant_model_and_type(backend: Backend, models: str) -> None:
    client = OpenAI(base_url=models, api_key="key", max_retries=0)

    def use(name: str) -> None:
        with tenant(name):
            for _ in range(10):
                ask(client, "abcde")
            client.embeddings.create(model="e-1", input="12345678", encoding_format="float")

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(use, ["acme", "umbrella", "initech"]))

    shown = "gen_ai.request.model", "gen_ai.provider.name", "gen_ai.token.type"
    assert delivered(backend, *shown) == {
        (name, *dimensions): count
        for name in ("acme", "umbrella", "initech")
        for *dimensions, count in (
            ("m-1", "openai", "input", 50),
            ("m-1", "openai", "output", 30),
            ("e-1", "openai", "input", 8),
        )
    }


def test_a_stream_counts_the_usage_of_its_last_part(backend: Backend, models: str) -> None:
    client = OpenAI(base_url=models, api_key="key", max_retries=0)
    with tenant("acme"):
        parts = ask(client, "abcdefg", stream=True, stream_options={"include_usage": True})
    # Read where nobody is the tenant.
    assert len(list(parts)) == len(WORDS) + 1  # type: ignore[call-overload]

    assert delivered(backend, "gen_ai.token.type") == {("acme", "input"): 7, ("acme", "output"): 3}


def test_a_stream_behind_a_streaming_response_counts_for_its_request(
    backend: Backend, models: str
) -> None:
    client = AsyncOpenAI(base_url=models, api_key="key", max_retries=0)
    app = FastAPI()

    @app.get("/")
    async def answer(prompt: str) -> StreamingResponse:
        async def words() -> AsyncIterator[str]:
            async for part in await client.chat.completions.create(
                model="m-1",
                messages=[{"role": "user", "content": prompt}],
                stream=True,
                stream_options={"include_usage": True},
            ):
                for choice in part.choices:
                    yield choice.delta.content or ""

        return StreamingResponse(words())

    async def use() -> None:
        transport = ASGITransport(MeteringMiddleware(app))
        async with AsyncClient(transport=transport, base_url="http://shop") as browser:
            answers = await asyncio.gather(
                *(
                    browser.get("/", params={"prompt": "x" * size}, headers={"x-tenant-id": name})
                    for name, size in (("acme", 5), ("umbrella", 9))
                )
            )
        assert [one.text for one in answers] == ["onetwothree"] * 2
        await client.close()

    asyncio.run(use())

    assert delivered(backend, "gen_ai.token.type") == {
        ("acme", "input"): 5,
        ("acme", "output"): 3,
        ("umbrella", "input"): 9,
        ("umbrella", "output"): 3,
    }


def test_a_stream_without_usage_is_reported_and_a_failed_call_is_not(
    backend: Backend, models: str
) -> None:
    client = OpenAI(base_url=models, api_key="key", max_retries=0)
    before = stats().uncounted_tokens

    with pytest.raises(APIStatusError):
        ask(client, "fail")
    assert stats().uncounted_tokens == before
    list(ask(client, "abc", stream=True))  # type: ignore[call-overload]

    assert stats().uncounted_tokens == before + 1
    assert delivered(backend) == {}
