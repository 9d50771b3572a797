"""The id of each request, and, if it is wanted, one line of log about its answer.

A line has no text of the client: no path (the template of the route instead, as paths hold ids), no query, no
header, no key; a key is named by its id. The request id is taken over from the client, but only in a form that
no log can be confused by.
"""

import logging
import re
import secrets
from contextvars import ContextVar
from typing import Any, Final

from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from otel_metering.clock import Clock

HEADER: Final = "X-Request-Id"

_HEADER: Final = HEADER.lower().encode()
_GOOD_ID: Final = re.compile(rb"[A-Za-z0-9._-]{1,128}")
_NO_ROUTE: Final = "-"

_log = logging.getLogger("query_api.access")
_request_id: ContextVar[str] = ContextVar("request_id", default="")


class AccessLog:
    """Middleware around everything, so that the answer to a bug has a request id as well."""

    def __init__(self, app: ASGIApp, clock: Clock, *, is_on: bool) -> None:
        self._app = app
        self._clock = clock
        self._is_on = is_on

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hand the request on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = _given_id(scope) or secrets.token_hex(16)
        _request_id.set(request_id)
        answer = _Answer(send, request_id)
        if not self._is_on:
            await self._app(scope, receive, answer.send)
            return
        began = self._clock.monotonic()
        try:
            await self._app(scope, receive, answer.send)
        finally:
            _write(scope, answer, milliseconds=(self._clock.monotonic() - began) * 1_000)


class _Answer:
    """Counts what is sent, and puts the id into its head."""

    __slots__ = ("_send", "request_id", "size", "status")

    def __init__(self, send: Send, request_id: str) -> None:
        self._send = send
        self.request_id = request_id
        self.status = 0
        self.size = 0

    async def send(self, message: Message) -> None:
        """Hand a message on."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            header = (_HEADER, self.request_id.encode())
            message["headers"] = [*message.get("headers", ()), header]
        else:
            self.size += len(message.get("body", b""))
        await self._send(message)


def current_request_id() -> str:
    """The id of the request that is being answered, also in the threads that work for it; empty: none is."""
    return _request_id.get()


def name_key(request: Request, key_id: str) -> None:
    """Let the line of this request say which key it came with."""
    request.state.key_id = key_id


def _given_id(scope: Scope) -> str | None:
    given = [value for name, value in scope["headers"] if name == _HEADER]
    return given[0].decode() if len(given) == 1 and _GOOD_ID.fullmatch(given[0]) else None


def _write(scope: Scope, answer: _Answer, *, milliseconds: float) -> None:
    route = getattr(scope.get("route"), "path", _NO_ROUTE)
    key_id = scope.get("state", {}).get("key_id", "-")
    fields: dict[str, Any] = {
        "event": "api_request",
        "method": scope["method"],
        "route": route,
        "status": answer.status,
        "duration_ms": milliseconds,
        "response_bytes": answer.size,
        "key_id": key_id,
        "request_id": answer.request_id,
    }
    _log.info(
        "%s %s %d %.1f ms %d bytes key=%s request=%s",
        scope["method"],
        route,
        answer.status,
        milliseconds,
        answer.size,
        key_id,
        answer.request_id,
        extra=fields,
    )
