"""The ASGI middleware behind a real server: bytes are what the client sent and saw."""

import asyncio
import contextlib
import gzip
import json
import socket
import struct
import threading
from collections.abc import AsyncIterator, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from fastapi import FastAPI, Request, WebSocket
from starlette.middleware.gzip import GZipMiddleware
from starlette.responses import FileResponse, Response, StreamingResponse
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

import otel_metering
from otel_metering import record, set_tenant
from otel_metering.clock import ManualClock
from otel_metering.middleware._jwt import KeySet
from otel_metering.middleware.asgi import MeteringMiddleware
from otel_metering.middleware.tenants import jwt_claim, path, subdomain
from tests.integration.web import ALL, Counted, chunked, counting, exchanged, request, served
from tests.waiting import eventually

ACME = "x-tenant-id: acme"
BIG = b"0123456789" * 30_000


async def read(request: Request) -> Response:
    return Response(b"read %d" % len(await request.body()))


async def ignore() -> Response:
    return Response(b"ignored")


async def stream(size: int) -> Response:
    async def parts() -> AsyncIterator[bytes]:
        for number in range(size):
            yield b"%d," % number

    return StreamingResponse(parts())


async def endless() -> Response:
    async def parts() -> AsyncIterator[bytes]:
        while True:
            record("parts")
            yield b"x" * 1000
            await asyncio.sleep(0)

    return StreamingResponse(parts())


async def broken() -> Response:
    raise RuntimeError("broken")


async def nothing() -> Response:
    return Response(status_code=204)


async def echo(websocket: WebSocket) -> None:
    await websocket.accept()
    while True:
        message = await websocket.receive()
        if message["type"] == "websocket.disconnect":
            return
        if message.get("text") == "bye":
            await websocket.close()
            return
        if message.get("text") == "raise":
            raise RuntimeError("raise")
        if message.get("text") is not None:
            await websocket.send_text(message["text"] * 2)
        else:
            await websocket.send_bytes(message["bytes"] * 2)


async def refuse(websocket: WebSocket) -> None:
    await websocket.close()


def shop() -> FastAPI:
    app = FastAPI()
    app.post("/read")(read)
    app.post("/ignore")(ignore)
    app.get("/stream/{size}")(stream)
    app.get("/endless")(endless)
    app.get("/broken")(broken)
    app.get("/nothing")(nothing)
    app.head("/read")(ignore)
    app.get("/file")(lambda: FileResponse(__file__))
    app.websocket("/echo/{room}")(echo)
    app.websocket("/refuse")(refuse)
    return app


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with served(MeteringMiddleware(shop(), **ALL)) as port:
        yield port


@pytest.fixture
def counted() -> Iterator[Counted]:
    with counting() as counted:
        yield counted


def used(
    key: str, bytes_in: int = 0, bytes_out: int = 0
) -> dict[tuple[str, str | None, str], float]:
    units = {"requests": 1, "bytes.in": bytes_in, "bytes.out": bytes_out}
    return {(meter, "acme", key): count for meter, count in units.items() if count}


@pytest.mark.parametrize("size", [0, 1, 300_000])
def test_bodies_of_a_known_length(size: int, port: int, counted: Counted) -> None:
    sent = request("POST", "/read", ACME, f"content-length: {size}", body=BIG[:size])

    _, body = exchanged(port, sent)

    assert body == b"read %d" % size
    counted.becomes(used("POST /read 2xx", size, len(body)))


def test_bodies_in_chunks(port: int, counted: Counted) -> None:
    body = chunked(b"abc", b"defgh", BIG)

    exchanged(port, request("POST", "/read", ACME, "transfer-encoding: chunked", body=body))

    counted.becomes(used("POST /read 2xx", 8 + len(BIG), len(b"read 300008")))


def test_a_body_that_the_application_does_not_read(port: int, counted: Counted) -> None:
    _, body = exchanged(
        port, request("POST", "/ignore", ACME, "content-length: 500", body=b"x" * 500)
    )

    counted.becomes(used("POST /ignore 2xx", 500, len(body)))


@pytest.mark.parametrize("size", [0, 1, 5000])
def test_streamed_responses(size: int, port: int, counted: Counted) -> None:
    head, body = exchanged(port, request("GET", f"/stream/{size}", ACME))

    assert b"chunked" in head
    counted.becomes(used("GET /stream/{size} 2xx", 0, len(body)))


def test_files(port: int, counted: Counted) -> None:
    _, body = exchanged(port, request("GET", "/file", ACME))

    counted.becomes(used("GET /file 2xx", 0, len(body)))


def test_answers_without_a_body(port: int, counted: Counted) -> None:
    for method, path_ in (("HEAD", "/read"), ("GET", "/nothing")):
        _, body = exchanged(port, request(method, path_, ACME))
        assert body == b""

    counted.becomes({**used("HEAD /read 2xx"), **used("GET /nothing 2xx")})


def test_an_unhandled_error(port: int, counted: Counted) -> None:
    _, body = exchanged(port, request("GET", "/broken", ACME))

    counted.becomes(used("GET /broken 5xx", 0, len(body)))


def test_several_requests_of_one_connection(port: int, counted: Counted) -> None:
    with contextlib.closing(socket.create_connection(("127.0.0.1", port), timeout=10)) as client:
        for tenant in ("acme", "other"):
            head = f"GET /stream/1 HTTP/1.1\r\nhost: x\r\nx-tenant-id: {tenant}\r\n\r\n"
            client.sendall(head.encode())
            answer = b""
            while not answer.endswith(b"0\r\n\r\n"):
                answer += client.recv(1000)

    counted.total_becomes(
        {
            (meter, tenant): units
            for tenant in ("acme", "other")
            for meter, units in (("requests", 1), ("bytes.out", 2))
        }
    )


def test_a_client_that_leaves_in_mid_stream(port: int, counted: Counted) -> None:
    client = socket.create_connection(("127.0.0.1", port), timeout=10)
    # A small window, so that little is on its way.
    client.sendall(request("GET", "/endless", ACME))
    seen = len(client.recv(50_000))
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()  # with a reset

    usage = eventually(
        counted.totals, lambda totals: ("requests", "acme") in totals, seconds=10, every=0.005
    )

    # At least what was seen (without head and chunk sizes), at most what was made.
    assert seen * 0.9 - 1000 <= usage["bytes.out", "acme"] <= usage["parts", "acme"] * 1000
    assert counted.totals()["requests", "acme"] == 1


def test_a_client_that_leaves_while_it_sends(port: int, counted: Counted) -> None:
    client = socket.create_connection(("127.0.0.1", port), timeout=10)
    client.sendall(request("POST", "/read", ACME, "content-length: 1000", body=b"x" * 100))
    client.shutdown(socket.SHUT_WR)
    with contextlib.suppress(OSError):
        client.recv(1000)
    client.close()

    totals = eventually(
        counted.totals, lambda totals: ("requests", "acme") in totals, seconds=10, every=0.005
    )

    assert totals == {("requests", "acme"): 1, ("bytes.in", "acme"): 100}


@contextlib.contextmanager
def websocket(port: int, path_: str) -> Iterator[ClientConnection]:
    headers = {"x-tenant-id": "acme"}
    with connect(f"ws://127.0.0.1:{port}{path_}", additional_headers=headers) as client:
        yield client


@pytest.mark.parametrize("ending", ["client", "server", "error"])
def test_messages_of_a_websocket(ending: str, port: int, counted: Counted) -> None:
    messages: list[str | bytes] = ["abc", "für", b"\x00" * 1000, ""]
    with websocket(port, "/echo/lobby") as client:
        for message in messages:
            client.send(message)
            assert client.recv() == message * 2
        assert counted.usage() == {}
        last = {"client": "", "server": "bye", "error": "raise"}[ending]
        if last:
            client.send(last)
            with contextlib.suppress(ConnectionClosed):
                client.recv()

    size = sum(len(one.encode() if isinstance(one, str) else one) for one in messages)
    counted.becomes(used("GET /echo/{room} 1xx", size + len(last), 2 * size))


def test_a_websocket_that_is_refused(port: int, counted: Counted) -> None:
    with pytest.raises(InvalidStatus, match="403"), websocket(port, "/refuse"):
        pass

    counted.becomes(used("GET /refuse 4xx"))


def test_a_websocket_that_leads_nowhere(port: int, counted: Counted) -> None:
    with pytest.raises(InvalidStatus, match="403"), websocket(port, "/none"):
        pass

    counted.becomes(used("GET - 4xx"))


def test_bodies_are_counted_as_the_client_sees_them_if_it_is_the_outermost(
    counted: Counted,
) -> None:
    app = shop()
    app.add_middleware(GZipMiddleware)
    app.add_middleware(MeteringMiddleware, **ALL)
    with served(app) as port:
        sent = request("GET", "/stream/5000", ACME, "accept-encoding: gzip")
        body = exchanged(port, sent)[1]

        assert len(body) != len(gzip.decompress(body))
        counted.becomes(used("GET /stream/{size} 2xx", 0, len(body)))


def test_tenants_of_path_and_host(counted: Counted) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"ok"})

    sources = [path("/t/{tenant}"), subdomain("example.com")]
    with served(
        MeteringMiddleware(app, requests="requests", tenant=sources), lifespan="off"
    ) as port:
        exchanged(port, request("GET", "/t/by-path/x"))
        exchanged(port, request("GET", "/t/with%20blank"))
        exchanged(port, request("GET", "/"))  # to shop.example.com

        counted.total_becomes(
            {("requests", "by-path"): 1, ("requests", None): 1, ("requests", "shop"): 1}
        )


class _Keys(BaseHTTPRequestHandler):
    server: "_KeyServer"

    def do_GET(self) -> None:
        self.server.asked += 1
        body = json.dumps({"keys": self.server.keys}).encode()
        self.send_response(self.server.status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Stay quiet."""


class _KeyServer(ThreadingHTTPServer):
    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Keys)
        self.keys: list[dict[str, Any]] = []
        self.status = 200
        self.asked = 0


@pytest.fixture
def issuer() -> Iterator[_KeyServer]:
    with _KeyServer() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.005,), daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join(10)


def test_keys_are_read_from_the_issuer_and_kept(issuer: _KeyServer, counted: Counted) -> None:
    private = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    public = json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(private.public_key()))
    issuer.keys = [{**public, "kid": "k1", "use": "sig", "alg": "RS256"}]
    url = f"http://127.0.0.1:{issuer.server_port}/keys"
    app = MeteringMiddleware(
        shop(), requests="requests", tenant=jwt_claim("org", jwks_url=url, algorithms=["RS256"])
    )
    before = otel_metering.stats().ignored_tenants
    good = jwt.encode({"org": "acme"}, private, "RS256", headers={"kid": "k1"})
    strange = jwt.encode({"org": "acme"}, private, "RS256", headers={"kid": "k2"})
    with served(app) as port:
        for token in (good, strange, good, strange):
            exchanged(port, request("GET", "/nothing", f"authorization: Bearer {token}"))

        counted.total_becomes({("requests", "acme"): 2, ("requests", None): 2})

    # Tokens with invented keys make nobody ask again and again.
    assert issuer.asked == 1
    assert otel_metering.stats().ignored_tenants == before + 2


def test_keys_are_read_again_and_outlive_an_outage(issuer: _KeyServer) -> None:
    private = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    public = json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(private.public_key()))
    first = {**public, "kid": "k1", "use": "sig", "alg": "RS256"}
    token = jwt.encode({"org": "acme"}, private, "RS256", headers={"kid": "k1"})
    issuer.keys = [first]
    clock = ManualClock()
    keys = KeySet(f"http://127.0.0.1:{issuer.server_port}/keys", clock)

    assert keys.key_of(token).key_id == "k1"
    clock.advance(301)
    for status, found in ((503, [first]), (200, [])):  # no keys at all is a fault as well
        issuer.status, issuer.keys = status, found
        assert [keys.key_of(token).key_id for _ in range(3)] == ["k1"] * 3
        clock.advance(11)
    assert issuer.asked == 3
    issuer.keys = [{**first, "kid": "k2"}]
    with pytest.raises(jwt.InvalidKeyError):
        keys.key_of(token)


def test_an_issuer_that_fails_costs_tenants_and_no_requests(
    issuer: _KeyServer, counted: Counted
) -> None:
    issuer.status = 503
    url = f"http://127.0.0.1:{issuer.server_port}/keys"
    source = jwt_claim("org", jwks_url=url, algorithms=["HS256"])
    token = jwt.encode({"org": "acme"}, "k" * 32, "HS256", headers={"kid": "k1"})
    with served(MeteringMiddleware(shop(), requests="requests", tenant=source)) as port:
        for _ in range(3):
            head, _body = exchanged(
                port, request("GET", "/nothing", f"authorization: Bearer {token}")
            )
            assert b" 204 " in head

        counted.total_becomes({("requests", None): 3})
    assert issuer.asked == 1


def test_a_tenant_that_is_known_after_authentication(counted: Counted) -> None:
    app = FastAPI()

    def authenticate() -> None:  # in a thread
        set_tenant("authenticated")

    from fastapi import Depends

    app.get("/", dependencies=[Depends(authenticate)])(lambda: "ok")
    with served(MeteringMiddleware(app, **ALL)) as port:
        exchanged(port, request("GET", "/", ACME))

        counted.total_becomes({("requests", "authenticated"): 1, ("bytes.out", "authenticated"): 4})
