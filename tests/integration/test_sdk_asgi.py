import asyncio
import http.client
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from pathlib import Path

import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

import otel_metering
from otel_metering import current_tenant, record, set_tenant
from otel_metering.middleware.asgi import App, Message, MeteringMiddleware, Receive, Scope, Send
from otel_metering.spool import open_spool
from tests.integration.sdk_backend import Backend, attributes_of, running_backend

SHOP = Path(__file__).parents[2] / "examples" / "shop_api.py"


@pytest.fixture
def backend() -> Iterator[Backend]:
    with running_backend() as backend:
        yield backend


@pytest.fixture
def shop(backend: Backend, tmp_path: Path) -> Iterator["subprocess.Popen[str]"]:
    """The example, killed at the end if it still runs."""
    with subprocess.Popen(
        [sys.executable, str(SHOP), "--port", "0"],
        env={
            **{name: value for name, value in os.environ.items() if "PYTEST" not in name},
            "OTEL_EXPORTER_OTLP_ENDPOINT": backend.endpoint,
            "METERING_API_KEY": "key_1",
            "METERING_SPOOL_DIR": str(tmp_path),
            "METERING_BATCH_INTERVAL_SECONDS": "3600",
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        yield process
        process.kill()


def port_of(shop: "subprocess.Popen[str]") -> int:
    assert shop.stdout is not None
    found = re.fullmatch(r"ready http://127\.0\.0\.1:(\d+)\n", shop.stdout.readline())
    assert found is not None
    return int(found[1])


def request(port: int, method: str, path: str, tenant: str, body: object = None) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    headers = {"x-tenant-id": tenant, "content-type": "application/json"}
    connection.request(method, path, json.dumps(body) if body else None, headers)
    status = connection.getresponse().status
    connection.close()
    return status


def test_a_shop_that_gets_sigterm_delivers_everything(
    shop: "subprocess.Popen[str]", backend: Backend, tmp_path: Path
) -> None:
    port = port_of(shop)
    order = {"items": 2, "total": "12.34"}

    with ThreadPoolExecutor(8) as pool:
        products = list(
            pool.map(lambda i: request(port, "GET", "/products", f"tenant_{i % 2}"), range(20))
        )
        orders = list(
            pool.map(lambda _: request(port, "POST", "/orders", "tenant_0", order), range(10))
        )
    assert request(port, "GET", "/products/p1", "not valid") == 200
    shop.send_signal(signal.SIGTERM)
    shop.wait(timeout=20)

    assert (set(products), set(orders)) == ({200}, {201})
    assert backend.totals() == {
        ("api.calls", "tenant_0"): 20,
        ("api.calls", "tenant_1"): 10,
        ("api.calls", None): 1,
        ("orders.items", "tenant_0"): 20,
        ("orders.revenue", "tenant_0"): Decimal("123.4"),
    }
    (path,) = tmp_path.glob("shop/*.db")
    spool = open_spool(path)
    assert spool.entry_count == 0
    spool.close()
    assert {headers["authorization"] for headers in backend.headers} == {"Bearer key_1"}
    assert {span.kind for span in backend.spans} == {Span.SPAN_KIND_SERVER}
    tenants = [attributes_of(span.attributes).get("tenant.id") for span in backend.spans]
    assert (tenants.count("tenant_0"), tenants.count("tenant_1"), len(tenants)) == (20, 10, 31)


async def call(app: App, scope: Scope, incoming: list[Message]) -> list[Message]:
    """Run `app` with what a server would tell it; return what it answered."""
    sent: list[Message] = []

    async def receive() -> Message:
        return incoming.pop(0)

    async def send(message: Message) -> None:
        sent.append(message)

    await app(scope, receive, send)
    return sent


def http_scope(*headers: tuple[bytes, bytes], kind: str = "http") -> Scope:
    return {"type": kind, "headers": list(headers)}


@pytest.mark.parametrize("kind", ["http", "websocket"])
def test_the_header_is_the_tenant_of_the_request_only(kind: str) -> None:
    seen: list[str | None] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(current_tenant())

    async def use() -> None:
        middleware = MeteringMiddleware(app)
        await call(middleware, http_scope((b"x-tenant-id", b"tenant_a"), kind=kind), [])
        await call(middleware, http_scope(kind=kind), [])
        seen.append(current_tenant())

    asyncio.run(use())

    assert seen == ["tenant_a", None, None]


def test_a_tenant_set_in_a_thread_holds_for_the_request() -> None:
    seen: list[str | None] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await asyncio.to_thread(set_tenant, "tenant_b")
        seen.append(current_tenant())

    asyncio.run(call(MeteringMiddleware(app), http_scope((b"x-tenant-id", b"tenant_a")), []))

    assert seen == ["tenant_b"]


def test_a_callable_may_say_the_tenant() -> None:
    seen: list[str | None] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(current_tenant())

    middleware = MeteringMiddleware(app, tenant=lambda request: request.path.strip("/") or None)
    asyncio.run(call(middleware, {**http_scope(), "path": "/tenant_a"}, []))
    asyncio.run(call(middleware, {**http_scope(), "path": "/"}, []))

    assert seen == ["tenant_a", None]


def test_an_invalid_header_is_ignored_and_counted() -> None:
    seen: list[str | None] = []
    before = otel_metering.stats().ignored_tenants

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(current_tenant())

    asyncio.run(call(MeteringMiddleware(app), http_scope((b"x-tenant-id", b"a b\xff")), []))

    assert seen == [None]
    assert otel_metering.stats().ignored_tenants == before + 1


STARTUP: Message = {"type": "lifespan.startup"}
SHUTDOWN: Message = {"type": "lifespan.shutdown"}
COMPLETE = [{"type": "lifespan.startup.complete"}, {"type": "lifespan.shutdown.complete"}]


async def app_with_lifespan(scope: Scope, receive: Receive, send: Send) -> None:
    await receive()
    await send({"type": "lifespan.startup.complete"})
    await receive()
    record("api.calls", 3, tenant="tenant_a")
    await send({"type": "lifespan.shutdown.complete"})


async def app_that_refuses_lifespan(scope: Scope, receive: Receive, send: Send) -> None:
    raise NotImplementedError


async def app_that_ignores_lifespan(scope: Scope, receive: Receive, send: Send) -> None:
    return


@pytest.mark.parametrize(
    "app", [app_with_lifespan, app_that_refuses_lifespan, app_that_ignores_lifespan]
)
def test_usage_is_delivered_before_the_server_hears_that_shutdown_is_complete(
    app: App, backend: Backend, tmp_path: Path
) -> None:
    otel_metering.configure(endpoint=backend.endpoint, spool_dir=tmp_path, service_name="shop")
    record("api.calls", 2, tenant="tenant_a")

    sent = asyncio.run(call(MeteringMiddleware(app), {"type": "lifespan"}, [STARTUP, SHUTDOWN]))

    assert sent == COMPLETE
    assert backend.total("api.calls") == (5 if app is app_with_lifespan else 2)
    otel_metering.shutdown()


def test_a_start_that_fails_is_passed_on() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        raise RuntimeError("no database")

    with pytest.raises(RuntimeError, match="no database"):
        asyncio.run(call(MeteringMiddleware(app), {"type": "lifespan"}, [STARTUP]))
