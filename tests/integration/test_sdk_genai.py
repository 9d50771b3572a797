"""The published OpenAI client and its instrumentation against a local stand-in: exact tokens by tenant."""

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from fastapi import FastAPI
from fastapi.responses import StreamingResponse
from httpx import ASGITransport, AsyncClient
from openai import APIStatusError, AsyncOpenAI, OpenAI
from opentelemetry.instrumentation.genai.openai import OpenAIInstrumentor
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON, Sampler

import otel_metering
from otel_metering import stats, tenant
from otel_metering.middleware.asgi import MeteringMiddleware
from otel_metering.spans import meter_spans
from tests.integration.sdk_backend import Backend, running_backend

WORDS = ["one", "two", "three"]


class _Models(BaseHTTPRequestHandler):
    """Answers each prompt of n characters with n input tokens and as many output tokens as WORDS."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if self.path.endswith("/embeddings"):
            usage = {"prompt_tokens": len(body["input"]), "total_tokens": len(body["input"])}
            data = [{"object": "embedding", "index": 0, "embedding": [0.5]}]
            self.answer({"object": "list", "model": "e-1", "data": data, "usage": usage})
            return
        prompt = body["messages"][0]["content"]
        if prompt == "fail":
            self.answer({"error": {"message": "no"}}, 400)
            return
        usage = {"prompt_tokens": len(prompt), "completion_tokens": len(WORDS), "total_tokens": 0}
        if body.get("stream"):
            self.stream(body, usage)
            return
        message = {"role": "assistant", "content": " ".join(WORDS)}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        self.answer(self.part("chat.completion", [choice], usage=usage))

    def stream(self, body: dict[str, object], usage: dict[str, int]) -> None:
        parts = [
            self.part("chat.completion.chunk", [{"index": 0, "delta": {"content": word}}])
            for word in WORDS
        ]
        if body.get("stream_options") == {"include_usage": True}:
            parts.append(self.part("chat.completion.chunk", [], usage=usage))
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("connection", "close")
        self.end_headers()
        for part in parts:
            self.wfile.write(f"data: {json.dumps(part)}\n\n".encode())
            self.wfile.flush()
        self.wfile.write(b"data: [DONE]\n\n")
        self.close_connection = True

    def part(self, kind: str, choices: list[object], **more: object) -> dict[str, object]:
        return {
            "id": "c",
            "object": kind,
            "created": 1,
            "model": "m-1-2026",
            "choices": choices,
            **more,
        }

    def answer(self, content: object, status: int = 200) -> None:
        text = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, format: str, *args: object) -> None:
        """Stay quiet."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False


@pytest.fixture(scope="module")
def models() -> Iterator[str]:
    """The base URL of the stand-in."""
    with _Server(("127.0.0.1", 0), _Models) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/v1"
        server.shutdown()
        thread.join()


@pytest.fixture(
    params=[(ALWAYS_OFF, ""), (ALWAYS_ON, ""), (ALWAYS_OFF, "gen_ai_latest_experimental")],
    ids=["dropped", "sampled", "dropped_latest"],
)
def backend(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Backend]:
    from opentelemetry.instrumentation._semconv import _OpenTelemetrySemanticConventionStability

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
        transport = ASGITransport(MeteringMiddleware(app))  # type: ignore[arg-type]
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
