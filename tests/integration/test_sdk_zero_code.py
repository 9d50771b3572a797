"""`opentelemetry-instrument` in front of applications that never heard of metering."""

import os
import re
import signal
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from pathlib import Path

import httpx
import pytest

from tests.integration.model_api import WORDS, running_models
from tests.integration.sdk_backend import Backend, running_backend
from tests.waiting import eventually

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent

FASTAPI = """
from fastapi import FastAPI
from openai import OpenAI
import os

app = FastAPI()

@app.get("/items/{number}")
async def item(number: int) -> int:
    return number

@app.get("/ask")
def ask(prompt: str) -> str:
    client = OpenAI(base_url=os.environ["MODELS"], api_key="key", max_retries=0)
    parts = client.chat.completions.create(
        model="m-1", messages=[{"role": "user", "content": prompt}],
        stream=True, stream_options={"include_usage": True},
    )
    return " ".join(c.delta.content or "" for part in parts for c in part.choices)
"""

METERED_FASTAPI = """
from fastapi import FastAPI
from otel_metering.middleware.asgi import MeteringMiddleware
from otel_metering.middleware.tenants import path

app = FastAPI()
app.add_middleware(MeteringMiddleware, tenant=path("/of/{tenant}/"), requests="server.requests")

@app.get("/of/{tenant}/items")
async def items(tenant: str) -> str:
    return tenant
"""

FLASK = """
import flask

app = flask.Flask(__name__)

@app.get("/items/<int:number>")
def item(number):
    return str(number)

@app.get("/stream")
def stream():
    return flask.Response(iter(["a", "b"]))
"""

DJANGO = """
from django.conf import settings
from django.core.wsgi import get_wsgi_application
from django.http import HttpResponse
from django.urls import path

settings.configure(
    ROOT_URLCONF=__name__, ALLOWED_HOSTS=["*"],
    MIDDLEWARE=["django.middleware.common.CommonMiddleware"],
)
urlpatterns = [path("items/<int:number>", lambda request, number: HttpResponse(str(number)))]
app = get_wsgi_application()
"""

UVICORN = ("uvicorn", "shop:app", "--port", "0")
GUNICORN = ("gunicorn", "shop:app", "--bind", "127.0.0.1:0", "--workers", "2")


class Shop:
    """An instrumented server."""

    def __init__(self, process: "subprocess.Popen[bytes]", log: Path) -> None:
        self.process = process
        self.log = log

    @property
    def url(self) -> str:
        started = re.compile(r"http://127\.0\.0\.1:\d+")
        found = eventually(
            lambda: started.search(self.log.read_text()) or self.process.poll(), bool, seconds=60
        )
        assert isinstance(found, re.Match), self.log.read_text()
        return found[0]

    def get(self, path: str, tenant: str | None, **params: str) -> str:
        headers = {} if tenant is None else {"x-tenant-id": tenant}
        answer = httpx.get(self.url + path, headers=headers, params=params, timeout=30)
        assert answer.status_code == 200, answer.text
        return answer.text

    def stop(self) -> str:
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(60)
        return self.log.read_text()


Start = Callable[..., Shop]


@pytest.fixture
def backend() -> Iterator[Backend]:
    with running_backend() as backend:
        yield backend


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder on the path that says of our distribution what the next installation will say of it."""
    folder = tmp_path_factory.mktemp("installed")
    info = folder / "otel_metering-0.1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: otel-metering\nVersion: 0.1.0\n")
    groups = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]
    name = "opentelemetry_instrumentor"
    lines = [f"[{name}]", *(f"{key} = {value}" for key, value in groups[name].items())]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture
def start(tmp_path: Path, backend: Backend, installed: Path) -> Iterator[Start]:
    started: list[subprocess.Popen[bytes]] = []

    def start(code: str, command: tuple[str, ...], **variables: str) -> Shop:
        (tmp_path / "shop.py").write_text(code)
        log = tmp_path / "log"
        inherited = {name: os.environ[name] for name in os.environ if "PYTEST" not in name}
        paths = [str(installed), str(ROOT), os.environ.get("PYTHONPATH", "")]
        with log.open("wb") as stderr:
            process = subprocess.Popen(
                ["opentelemetry-instrument", *command],
                cwd=tmp_path,
                env={
                    **inherited,
                    "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
                    "PYTHONPATH": os.pathsep.join(filter(None, paths)),
                    "OTEL_SERVICE_NAME": "shop",
                    "OTEL_EXPORTER_OTLP_ENDPOINT": backend.endpoint,
                    "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
                    "OTEL_METRICS_EXPORTER": "none",
                    "OTEL_LOGS_EXPORTER": "none",
                    "OTEL_BSP_SCHEDULE_DELAY": "50",
                    "METERING_SPOOL_DIR": str(tmp_path / "spool"),
                    **variables,
                },
                stdout=stderr,
                stderr=stderr,
            )
        started.append(process)
        return Shop(process, log)

    yield start
    for process in started:
        process.kill()
        process.wait()


def delivered(backend: Backend, meter: str, *names: str) -> dict[tuple[object, ...], Decimal]:
    """(values of the named attributes...) -> quantity."""
    found: dict[tuple[object, ...], Decimal] = {}
    for point in set(backend.points):
        if point.meter == meter:
            attributes = dict(point.attributes)
            key = tuple(attributes.get(name) for name in names)
            found[key] = found.get(key, Decimal(0)) + point.quantity
    return found


def served(backend: Backend) -> list[str]:
    """Names of the exported spans of requests."""
    return [span.name for span in backend.spans if span.kind == span.SPAN_KIND_SERVER]


def requests_of(backend: Backend) -> dict[tuple[object, ...], Decimal]:
    return delivered(
        backend, "server.requests", "tenant.id", "http.route", "http.response.status_class"
    )


by_sampler = pytest.mark.parametrize(
    "sampler", ["always_off", pytest.param("always_on", marks=pytest.mark.long)]
)


@by_sampler
def test_fastapi_requests_and_tokens_count_by_tenant(
    start: Start, backend: Backend, sampler: str
) -> None:
    with running_models() as models, ThreadPoolExecutor(4) as pool:
        shop = start(FASTAPI, UVICORN, OTEL_TRACES_SAMPLER=sampler, MODELS=models)
        for tenant, count in (("acme", 12), ("umbrella", 5)):
            list(pool.map(lambda n, of=tenant: shop.get(f"/items/{n}", of), range(count)))
            shop.get("/ask", tenant, prompt="x" * count)
        # The same endpoint is sent the spans, where sampling lets them through.
        sent = {"always_on": 19, "always_off": 0}[sampler]
        eventually(lambda: len(served(backend)), lambda count: count == sent)
        shop.stop()

    assert requests_of(backend) == {
        ("acme", "/items/{number}", "2xx"): 12,
        ("umbrella", "/items/{number}", "2xx"): 5,
        ("acme", "/ask", "2xx"): 1,
        ("umbrella", "/ask", "2xx"): 1,
    }
    assert delivered(backend, "gen_ai.tokens", "tenant.id", "gen_ai.token.type") == {
        ("acme", "input"): 12,
        ("acme", "output"): len(WORDS),
        ("umbrella", "input"): 5,
        ("umbrella", "output"): len(WORDS),
    }


@by_sampler
def test_flask_requests_count_by_tenant_in_all_workers(
    start: Start, backend: Backend, sampler: str
) -> None:
    shop = start(FLASK, GUNICORN, OTEL_TRACES_SAMPLER=sampler)
    with ThreadPoolExecutor(4) as pool:
        for tenant, count in (("acme", 24), ("umbrella", 9)):
            list(pool.map(lambda n, of=tenant: shop.get(f"/items/{n}", of), range(count)))
            assert shop.get("/stream", tenant) == "ab"
    shop.stop()

    assert requests_of(backend) == {
        ("acme", "/items/<int:number>", "2xx"): 24,
        ("umbrella", "/items/<int:number>", "2xx"): 9,
        ("acme", "/stream", "2xx"): 1,
        ("umbrella", "/stream", "2xx"): 1,
    }


def test_django_requests_count_without_any_spans_under_settings_of_their_own(
    start: Start, backend: Backend
) -> None:
    shop = start(
        DJANGO,
        GUNICORN,
        OTEL_TRACES_EXPORTER="none",
        METERING_REQUESTS_METER="shop.requests",
        METERING_TENANT_HEADER="x-customer",
    )
    for number in range(7):
        headers = {"x-customer": "acme"}
        assert httpx.get(f"{shop.url}/items/{number}", headers=headers, timeout=30).text
    shop.stop()

    found = delivered(backend, "shop.requests", "tenant.id", "http.response.status_class")
    assert found == {("acme", "2xx"): 7}
    assert requests_of(backend) == {}


def test_an_application_that_meters_itself_counts_once_and_by_its_own_rules(
    start: Start, backend: Backend
) -> None:
    shop = start(METERED_FASTAPI, UVICORN)
    for _ in range(6):
        shop.get("/of/acme/items", "spoofed")
    shop.stop()

    assert requests_of(backend) == {("acme", "/of/{tenant}/items", "2xx"): 6}


def test_disabled_it_meters_nothing_and_tracing_goes_on(start: Start, backend: Backend) -> None:
    shop = start(FASTAPI, UVICORN, OTEL_PYTHON_DISABLED_INSTRUMENTATIONS="redis, otel_metering")
    shop.get("/items/1", "acme")
    eventually(lambda: served(backend), lambda names: names == ["GET /items/{number}"])
    shop.stop()

    assert backend.points == []
