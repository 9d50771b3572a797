"""ASGI: the tenant of each request and websocket, requests and bytes counted, and a flush at the end.

Pure ASGI, so that it adds a few microseconds and streaming, cancellation and contexts stay as they are.
"""

import asyncio
import os
from collections.abc import Awaitable, Callable, MutableMapping
from functools import lru_cache
from typing import Any, Final, Unpack

from otel_metering._context import current
from otel_metering._guard import guarded
from otel_metering._lifecycle import settle
from otel_metering.middleware._asgi_routes import route_of
from otel_metering.middleware._denial import STATUS, Denial
from otel_metering.middleware._metering import Exchange, Metering
from otel_metering.middleware._request import Request
from otel_metering.middleware.options import MeteringOptions

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

_LAST_MESSAGES: Final = frozenset({"lifespan.shutdown.complete", "lifespan.shutdown.failed"})

_SWITCHING_PROTOCOLS: Final = 101
_FORBIDDEN: Final = 403
"""What a server answers to a handshake that the application closes (ASGI, websocket.close)."""

_TRY_AGAIN_LATER: Final = 1013
"""Close code of a websocket, registered with IANA."""


class MeteringMiddleware:
    """Makes the request's tenant current, and counts requests and bytes if meters are named for them.

    Add it outside of everything that records usage or changes bodies, and inside of the tracing
    instrumentation. The tenant may also become known later: `otel_metering.set_tenant` in any code of the
    request. It also flushes before the server ends the process.

    Dimensions are `http.request.method`, `http.route` (the template, if the framework says it) and
    `http.response.status_class`, e.g. "2xx"; "1xx" is a websocket that was accepted.

    Args:
        app: The application.
        options: See `otel_metering.middleware.options.MeteringOptions`.

    Raises:
        ConfigurationError: An option cannot be used; the message names it.
    """

    def __init__(self, app: App, **options: Unpack[MeteringOptions]) -> None:
        self._app = app
        self._metering = Metering(**options)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection."""
        kind = scope["type"]
        if kind not in _MEASURED:
            if kind == "lifespan":
                await _Lifespan(receive, send).run(self._app, scope)
            else:
                await self._app(scope, receive, send)
            return
        metering = self._metering
        request = AsgiRequest(scope)
        if metering.is_blocking:
            exchange = await asyncio.to_thread(metering.open, request)
        else:
            exchange = metering.open(request)
        token = current.set(exchange.holder)
        try:
            if not exchange.meters:
                await self._app(scope, receive, send)
            elif not (exchange.asks and await _is_refused(exchange, scope, receive, send)):
                measured = _MEASURED[kind](exchange, receive, send)
                await self._app(scope, measured.receive, measured.send)
                exchange.fail()
        except Exception:
            exchange.fail()
            raise
        finally:
            exchange.close()
            current.reset(token)


class AsgiRequest(Request):
    """A request by its ASGI scope."""

    __slots__ = ()

    def header(self, name: str) -> str | None:
        """The value of the header `name`, None if it was not sent; repeated ones are joined by commas."""
        wanted = _wire_name(name)
        found: bytes | None = None
        for key, value in self.native["headers"]:
            if key == wanted:
                found = value if found is None else b"%b,%b" % (found, value)
        return None if found is None else str(found, "latin-1")

    @property
    def method(self) -> str:
        """As it was sent; GET for a websocket."""
        method: str = self.native.get("method", "GET")
        return method

    @property
    def path(self) -> str:
        """Decoded, from the root of the server on."""
        path: str = self.native["path"]
        return path

    @property
    def route(self) -> str | None:
        """The template that Starlette, FastAPI or Litestar found, mounts included."""
        return route_of(self.native)


@lru_cache(256)
def _wire_name(name: str) -> bytes:
    return name.lower().encode("latin-1")


class _Http:
    """Both directions of a request, measured."""

    __slots__ = ("_exchange", "_receive", "_send")

    def __init__(self, exchange: Exchange, receive: Receive, send: Send) -> None:
        self._exchange = exchange
        self._receive = receive
        self._send = send

    async def receive(self) -> Message:
        message = await self._receive()
        exchange = self._exchange
        kind = message["type"]
        if kind == "http.request":
            exchange.request_bytes += len(message.get("body", b""))
            exchange.is_read = not message.get("more_body", False)
        elif kind == "http.disconnect":
            exchange.is_gone = True
            if exchange.status is not None:
                exchange.count()
        return message

    async def send(self, message: Message) -> None:
        exchange = self._exchange
        kind = message["type"]
        if kind == "http.response.start":
            exchange.status = message["status"]
        try:
            await self._send(message)
        except Exception:
            exchange.is_gone = True
            raise
        if kind == "http.response.body":
            # Servers take and drop what is sent to nobody.
            if not exchange.is_gone:
                exchange.response_bytes += len(message.get("body", b""))
            if not message.get("more_body", False):
                exchange.count()
        elif kind == "http.response.pathsend":
            with guarded:
                exchange.response_bytes += os.stat(message["path"]).st_size
            exchange.count()


class _Websocket:
    """Both directions of a websocket, measured: what its messages hold, without frames and compression."""

    __slots__ = ("_exchange", "_receive", "_send")

    def __init__(self, exchange: Exchange, receive: Receive, send: Send) -> None:
        self._exchange = exchange
        self._receive = receive
        self._send = send

    async def receive(self) -> Message:
        message = await self._receive()
        exchange = self._exchange
        kind = message["type"]
        if kind == "websocket.receive":
            exchange.request_bytes += _size_of(message)
        elif kind == "websocket.disconnect":
            exchange.is_gone = True
            exchange.count()
        return message

    async def send(self, message: Message) -> None:
        exchange = self._exchange
        kind = message["type"]
        if kind == "websocket.accept":
            exchange.status = _SWITCHING_PROTOCOLS
        elif kind == "websocket.close" and exchange.status is None:
            exchange.status = _FORBIDDEN
        elif kind == "websocket.http.response.start":
            exchange.status = message["status"]
        try:
            await self._send(message)
        except Exception:
            exchange.is_gone = True
            raise
        if kind == "websocket.send":
            if not exchange.is_gone:
                exchange.response_bytes += _size_of(message)
        elif kind == "websocket.http.response.body":
            exchange.response_bytes += len(message.get("body", b""))
            if not message.get("more_body", False):
                exchange.count()
        elif kind == "websocket.close":
            exchange.count()


_MEASURED: Final[dict[str, type[_Http] | type[_Websocket]]] = {
    "http": _Http,
    "websocket": _Websocket,
}


def _size_of(message: Message) -> int:
    data = message.get("bytes")
    if data is not None:
        return len(data)
    text = message.get("text") or ""
    return len(text) if text.isascii() else len(text.encode())


async def _is_refused(exchange: Exchange, scope: Scope, receive: Receive, send: Send) -> bool:
    """Ask the quota, and answer in place of the application if it denies the request."""
    denial = await exchange.take_async()
    if denial is None:
        return False
    if scope["type"] == "http":
        await _refuse(denial, send, "http")
        return True
    await receive()  # the handshake, which an answer follows
    if "websocket.http.response" in (scope.get("extensions") or ()):
        await _refuse(denial, send, "websocket.http")
    else:
        await send({"type": "websocket.close", "code": _TRY_AGAIN_LATER})
    return True


async def _refuse(denial: Denial, send: Send, kind: str) -> None:
    headers = [(name.encode(), value.encode()) for name, value in denial.headers]
    await send({"type": f"{kind}.response.start", "status": STATUS, "headers": headers})
    await send({"type": f"{kind}.response.body", "body": denial.body})


class _Lifespan:
    """Passes the lifespan on, and flushes once the application is shut down.

    uvicorn ends by the signal that stopped it, without the interpreter's exit handlers: this is the last
    code that runs.
    """

    def __init__(self, receive: Receive, send: Send) -> None:
        self._receive = receive
        self._send = send
        self._is_used = False

    async def run(self, app: App, scope: Scope) -> None:
        try:
            await app(scope, self.receive, self.send)
        except Exception:
            # Before its first message: an application without lifespan, which servers tolerate.
            if self._is_used:
                raise
        if not self._is_used:
            await self._stand_in()

    async def receive(self) -> Message:
        self._is_used = True
        return await self._receive()

    async def send(self, message: Message) -> None:
        self._is_used = True
        if message["type"] in _LAST_MESSAGES:
            _flush()
        await self._send(message)

    async def _stand_in(self) -> None:
        """Speak for an application that does not: the server then says when it ends."""
        await self._receive()
        await self._send({"type": "lifespan.startup.complete"})
        await self._receive()
        _flush()
        await self._send({"type": "lifespan.shutdown.complete"})


def _flush() -> None:
    # Blocks the event loop for a second at most; all requests are done.
    with guarded:
        settle()
