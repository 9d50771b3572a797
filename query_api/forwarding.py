"""Hands a request on to the receiver and its answer back, as streams: for what another process must decide.

Method, target, query, headers and body go as they came; who asks is checked where it is decided. What belongs to a
connection (RFC 9110, section 7.6.1) stays here, `X-Forwarded-For` and `Via` say which way it took, and
`X-Request-Id` is that of the request here. A client that goes away takes its request along.

A receiver that took no request is answered for with 503: nothing was done. One that had it and did not answer is
answered for with 502: whether it was done is unknown.
"""

import asyncio
import logging
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import httpx
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from otel_metering.errors import ConfigurationError, MeteringError, UnavailableError
from query_api.access_log import HEADER as REQUEST_ID
from query_api.access_log import current_request_id
from query_api.problems import LostError

CONNECT_SECONDS: Final = 2.0
READ_SECONDS: Final = 65.0
"""Longest silence of the receiver. Its own longest wait, for a commit, is half of it."""

WRITE_SECONDS: Final = 30.0
POOL_SECONDS: Final = 5.0
"""How long a request waits for one of the connections."""

CHECK_SECONDS: Final = 2.0
MAX_CONNECTIONS: Final = 256
MAX_IDLE_CONNECTIONS: Final = 64
IDLE_SECONDS: Final = 30.0
"""Shorter than the receiver keeps a silent connection, so that it does not end under a request."""

WHOLE_BYTES: Final = 64 * 1024
"""An answer of up to so much is read whole, so that its connection is free before the client has it."""

_VIA: Final = b"1.1 otel-metering-api"
_OF_THE_CONNECTION: Final = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    }
)
_REQUEST_ID: Final = REQUEST_ID.lower().encode()
# Origin: which pages may read is decided at the edge that they ask. Expect: answered by the server here.
_KEPT_FROM_RECEIVER: Final = _OF_THE_CONNECTION | {
    b"expect",
    b"host",
    b"origin",
    b"via",
    b"x-forwarded-for",
    _REQUEST_ID,
}
# The server here says these itself, and the access log the id, which is the same.
_KEPT_FROM_CLIENT: Final = _OF_THE_CONNECTION | {b"date", b"server", _REQUEST_ID}
_TIMEOUT: Final = {
    "connect": CONNECT_SECONDS,
    "read": READ_SECONDS,
    "write": WRITE_SECONDS,
    "pool": POOL_SECONDS,
}
_NOTHING_SENT: Final = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)

Headers = list[tuple[bytes, bytes]]

_log = logging.getLogger(__name__)


class Forwarder:
    """The connections to one receiver.

    Attributes:
        url: Its address, without a path.
    """

    def __init__(self, url: str, *, ca_file: Path | None = None) -> None:
        """Connect to nobody yet.

        Raises:
            ConfigurationError: It is no address, or the file cannot be used.
        """
        self.url = _checked(url)
        self._verify = _context(ca_file)
        self._transport = httpx.AsyncHTTPTransport(
            verify=self._verify,
            limits=httpx.Limits(
                max_connections=MAX_CONNECTIONS,
                max_keepalive_connections=MAX_IDLE_CONNECTIONS,
                keepalive_expiry=IDLE_SECONDS,
            ),
        )

    def route(self, after: Callable[[], None] | None = None) -> ASGIApp:
        """An application that hands every request on.

        Args:
            after: Called, in a thread, when one was done, and before its answer is given back.
        """
        return _Route(self, after)

    async def send(self, request: httpx.Request) -> httpx.Response:
        """The head of the answer; who calls this reads the rest, and closes it.

        Raises:
            UnavailableError: The receiver did not get the request.
            LostError: It may have got it, and did not answer.
        """
        try:
            return await self._transport.handle_async_request(request)
        except _NOTHING_SENT as error:
            raise UnavailableError(
                f"the receiver at {self.url} cannot be reached ({_why(error)}), and nothing was done; "
                "send the same request again"
            ) from error
        except httpx.TransportError as error:
            raise self.lost(error) from error

    def lost(self, error: Exception) -> LostError:
        """What to say of a request without an answer."""
        return LostError(
            f"the receiver at {self.url} did not answer ({_why(error)}), and whether the request was done "
            "is unknown; send the same again: events with an event_id count once"
        )

    def check(self) -> str:
        """Whether the receiver answers, and is well; blocks.

        Raises:
            UnavailableError: It does not, or is not.
        """
        with httpx.Client(verify=self._verify, trust_env=False, timeout=CHECK_SECONDS) as client:
            try:
                answer = client.get(f"{self.url}/v1/meter/health")
                checks = answer.json()["checks"].items()
                failed = sorted(name for name, check in checks if check["status"] != "ok")
            except (httpx.HTTPError, ValueError, KeyError) as error:
                raise UnavailableError(f"{self.url} does not answer: {_why(error)}") from error
        if failed:
            raise UnavailableError(f"{self.url} answers, and fails in {', '.join(failed)}")
        return f"{self.url} answers"

    async def aclose(self) -> None:
        """Close every connection."""
        await self._transport.aclose()


class _Route:
    """An ASGI application."""

    def __init__(self, forwarder: Forwarder, after: Callable[[], None] | None) -> None:
        self._forwarder = forwarder
        self._after = after

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hand one request on, as long as its client waits for it."""
        body = _Body(receive)
        exchange = asyncio.create_task(self._exchange(scope, body, send))
        gone = asyncio.create_task(body.client_gone())
        try:
            await asyncio.wait({exchange, gone}, return_when=asyncio.FIRST_COMPLETED)
            if exchange.done():
                await exchange
        except ClientDisconnect:
            return  # in the middle of its body: there is nobody to answer
        finally:
            for task in (exchange, gone):
                task.cancel()
            await asyncio.gather(exchange, gone, return_exceptions=True)

    async def _exchange(self, scope: Scope, body: "_Body", send: Send) -> None:
        target = scope["raw_path"]
        if scope["query_string"]:
            target += b"?" + scope["query_string"]
        request = httpx.Request(
            scope["method"],
            self._forwarder.url,
            headers=_forwarded_headers(scope),
            content=await body.content(),
            # The target as it came, and not as it would be written here.
            extensions={"timeout": _TIMEOUT, "target": target},
        )
        async with aclosing(await self._forwarder.send(request)) as answer:
            # A small one is read first: its connection is free, and all is well, when the client gets it.
            whole = await self._whole(answer) if _is_small(answer) else None
            if self._after is not None and answer.is_success:
                await asyncio.to_thread(_run, self._after)
            await send(_head(answer))
            if whole is None:
                async for piece in answer.aiter_raw():
                    await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": whole or b""})

    async def _whole(self, answer: httpx.Response) -> bytes:
        try:
            return b"".join([piece async for piece in answer.aiter_raw()])
        except httpx.TransportError as error:
            raise self._forwarder.lost(error) from error


class _Body:
    """The body of a request, and whether its client is still there."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._was_read = asyncio.Event()

    async def content(self) -> bytes | AsyncIterator[bytes]:
        """All of it, if it has arrived; else its pieces.

        Raises:
            ClientDisconnect: The client went away in the middle.
        """
        first, is_last = await self._next()
        return first if is_last else self._pieces(first)

    async def client_gone(self) -> None:
        """Return when the client has gone away; it is looked for behind the body."""
        await self._was_read.wait()
        while (await self._receive())["type"] != "http.disconnect":
            pass

    async def _pieces(self, first: bytes) -> AsyncIterator[bytes]:
        piece, is_last = first, False
        while True:
            if piece:
                yield piece
            if is_last:
                return
            piece, is_last = await self._next()

    async def _next(self) -> tuple[bytes, bool]:
        message = await self._receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        is_last = not message.get("more_body", False)
        if is_last:
            self._was_read.set()
        return message.get("body", b""), is_last


def _forwarded_headers(scope: Scope) -> Headers:
    given: Headers = list(scope["headers"])
    vias = _listed(given, b"via")
    if _VIA in vias:
        raise UnavailableError(
            "the request came round to an API process: METERING_RECEIVER_URL must name the receiver"
        )
    path = _listed(given, b"x-forwarded-for")
    if scope.get("client"):
        path.append(scope["client"][0].encode())
    return [
        *_without(given, _KEPT_FROM_RECEIVER),
        (b"x-forwarded-for", b", ".join(path)),
        (b"via", b", ".join([*vias, _VIA])),
        (_REQUEST_ID, current_request_id().encode()),
    ]


def _head(answer: httpx.Response) -> Message:
    names = [(name.lower(), value) for name, value in answer.headers.raw]
    headers = _without(names, _KEPT_FROM_CLIENT)
    return {"type": "http.response.start", "status": answer.status_code, "headers": headers}


def _without(headers: Headers, dropped: frozenset[bytes]) -> Headers:
    """Those that belong to the message; `Connection` may name further ones that do not."""
    of_connection = {name.lower() for name in _listed(headers, b"connection")}
    return [one for one in headers if one[0] not in dropped and one[0] not in of_connection]


def _listed(headers: Headers, wanted: bytes) -> list[bytes]:
    """The members of a header that is a list."""
    values = b",".join(value for name, value in headers if name == wanted).split(b",")
    return [value.strip() for value in values if value.strip()]


def _is_small(answer: httpx.Response) -> bool:
    return int(answer.headers.get("content-length", WHOLE_BYTES + 1)) <= WHOLE_BYTES


def _run(after: Callable[[], None]) -> None:
    try:
        after()
    except MeteringError as error:
        # The change was made; it is read here a second later.
        _log.warning("A change is not read yet: %s", error, extra={"event": "refresh_failed"})


def _why(error: Exception) -> str:
    return str(error) or type(error).__name__


def _checked(url: str) -> str:
    parts = urlsplit(url)
    is_address = parts.scheme in {"http", "https"} and parts.hostname and "@" not in parts.netloc
    if not is_address or parts.path.strip("/") or parts.query or parts.fragment:
        raise ConfigurationError(
            f"METERING_RECEIVER_URL is {url!r}, and must read http://host:port, or https://"
        )
    return url.rstrip("/")


def _context(ca_file: Path | None) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=ca_file)
    except OSError as error:
        raise ConfigurationError(
            f"METERING_RECEIVER_CA_FILE: {ca_file} must be certificates of CAs in PEM: {error}"
        ) from error
