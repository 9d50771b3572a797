"""What tests of middlewares share: usage as it was counted in this process, servers, and raw clients."""

import asyncio
import io
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

import uvicorn

from otel_metering._cells import CellBook
from otel_metering._quantity import NANOS_PER_UNIT
from otel_metering._record import sink
from otel_metering.middleware.asgi import App, Message, Receive, Scope, Send
from tests.waiting import eventually

Usage = dict[tuple[str, str | None, str], float]
"""(meter, tenant, "GET /orders/{id} 2xx") -> units; a dash stands for a dimension that is left out."""

ALL: Any = {
    "requests": "requests",
    "request_bytes": "bytes.in",
    "response_bytes": "bytes.out",
}


class Counted:
    """All usage since the start of the test."""

    def __init__(self, book: CellBook) -> None:
        self._book = book

    def usage(self) -> Usage:
        found: Usage = {}
        for series, nanos in self._book.read().deltas.items():
            named = {name: value for name, _, value in series.dimensions}
            dimensions = [
                str(named.pop(name, "-"))
                for name in ("http.request.method", "http.route", "http.response.status_class")
            ]
            dimensions += [f"{name}={value}" for name, value in sorted(named.items())]
            found[series.meter, series.tenant, " ".join(dimensions)] = nanos / NANOS_PER_UNIT
        return found

    def totals(self) -> dict[tuple[str, str | None], float]:
        """By meter and tenant."""
        found: dict[tuple[str, str | None], float] = {}
        for (meter, tenant, _), units in self.usage().items():
            found[meter, tenant] = found.get((meter, tenant), 0) + units
        return found

    def becomes(self, expected: Usage) -> None:
        """A server counts right after the client has the last byte; wait for that."""
        assert (
            eventually(self.usage, lambda usage: usage == expected, seconds=5.0, every=0.005)
            == expected
        )

    def total_becomes(self, expected: dict[tuple[str, str | None], float]) -> None:
        assert eventually(self.totals, lambda totals: totals == expected, seconds=5.0, every=0.005)


@contextmanager
def counting() -> Iterator[Counted]:
    """Usage goes to memory, and nowhere else."""
    book = CellBook(max_series_per_meter=1000, on_new_thread=lambda: None)
    sink.open(book)
    try:
        yield Counted(book)
    finally:
        sink.close()


@contextmanager
def served(app: App, **config: Any) -> Iterator[int]:
    """`app` by a real uvicorn; gives its port."""
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        server = uvicorn.Server(uvicorn.Config(app, log_level="critical", **config))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        eventually(lambda: server.started, bool, every=0.005)
        yield listener.getsockname()[1]
        server.should_exit = True
        thread.join(10)
        assert not thread.is_alive()


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _Handler(WSGIRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        """Stay quiet."""


@contextmanager
def served_by_wsgiref(app: Callable[..., Any]) -> Iterator[int]:
    """`app` by the standard library's WSGI server, a thread for each request; gives its port."""
    with _Server(("127.0.0.1", 0), _Handler) as server:
        server.set_app(app)
        thread = threading.Thread(target=server.serve_forever, args=(0.005,), daemon=True)
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join(10)


def exchanged(port: int, request: bytes) -> tuple[bytes, bytes]:
    """Send `request` and read to the end; the answer's head, and its body out of its chunks."""
    with closing(socket.create_connection(("127.0.0.1", port), timeout=10)) as connection:
        connection.sendall(request)
        answer = b""
        while data := connection.recv(65536):
            answer += data
    head, _, body = answer.partition(b"\r\n\r\n")
    return head, _unchunked(body) if b"transfer-encoding: chunked" in head.lower() else body


def request(method: str, path: str, *headers: str, body: bytes = b"") -> bytes:
    """An HTTP/1.1 request after whose answer the server closes."""
    lines = [f"{method} {path} HTTP/1.1", "host: shop.example.com", "connection: close", *headers]
    return "\r\n".join([*lines, "", ""]).encode() + body


def chunked(*parts: bytes) -> bytes:
    """A body in chunks."""
    return b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (*parts, b""))


def _unchunked(body: bytes) -> bytes:
    found = b""
    while body:
        size, _, rest = body.partition(b"\r\n")
        found += rest[: int(size, 16)]
        body = rest[int(size, 16) + 2 :]
    return found


def scope_of(method: str, path: str, *, kind: str = "http", **headers: str) -> Scope:
    pairs = [(name.replace("_", "-").encode(), text.encode()) for name, text in headers.items()]
    return {
        "type": kind,
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": [(b"host", b"shop.example.com"), *pairs],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 80),
    }


async def call(app: App, scope: Scope, *bodies: bytes) -> list[Message]:
    """Serve one request as an ASGI server does; what the application sent."""
    parts = list(bodies or (b"",))
    sent: list[Message] = []

    async def receive() -> Message:
        if not parts:
            await asyncio.Event().wait()
        part = parts.pop(0)
        return {"type": "http.request", "body": part, "more_body": bool(parts)}

    async def send(message: Message) -> None:
        sent.append(message)

    await app(scope, receive, send)
    return sent


def get(app: App, path: str, **headers: str) -> int:
    sent = asyncio.run(call(app, scope_of("GET", path, **headers)))
    status: int = sent[0]["status"] if sent else 0
    return status


async def reads_and_answers(scope: Scope, receive: Receive, send: Send) -> None:
    while (await receive()).get("more_body"):
        pass
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"abc", "more_body": True})
    await send({"type": "http.response.body", "body": b"de"})


async def never_answers(scope: Scope, receive: Receive, send: Send) -> None:
    return


def environ_of(
    method: str = "GET", path: str = "/", body: bytes = b"", **more: str
) -> dict[str, Any]:
    return {
        "REQUEST_METHOD": method,
        "SCRIPT_NAME": "",
        "PATH_INFO": path,
        "CONTENT_LENGTH": str(len(body)),
        "SERVER_NAME": "shop.example.com",
        "SERVER_PORT": "80",
        "wsgi.url_scheme": "http",
        "wsgi.input": io.BytesIO(body),
        **more,
    }


def call_wsgi(app: Any, environ: dict[str, Any], *, take: int | None = None) -> str:
    """Serve one request as a WSGI server does, the first `take` chunks of the response; its status."""
    statuses = [""]

    def start_response(status: str, headers: object, exc_info: Any = None) -> Any:
        statuses.append(status)
        return lambda _data: None

    body = app(environ, start_response)
    try:
        for number, _ in enumerate(body, 1):
            if number == take:
                break
    finally:
        if hasattr(body, "close"):
            body.close()
    return statuses[-1]
