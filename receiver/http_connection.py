"""HTTP connections with bounds that uvicorn does not set: how long a request's head takes, and its size."""

import asyncio
from typing import Any, Final

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MAX_HEAD_BYTES: Final = 64 * 1024

KEEP_ALIVE_SECONDS: Final = 75
"""Silence between two requests. Longer than SDKs pause between two exports (60 s): no new handshake."""

_TOO_LARGE: Final = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\n"
    b"content-type: application/json\r\nconnection: close\r\ncontent-length: %d\r\n\r\n%b"
)
_TOO_LARGE_BODY: Final = (
    b'{"code": 8, "message": "the request headers are larger than %d bytes"}' % MAX_HEAD_BYTES
)


class BoundedConnection(HttpToolsProtocol):
    """uvicorn's connection, which ends when a request's head does not.

    Attributes:
        head_seconds: From the first byte of a request (or the begin of a connection) to its last header.
    """

    head_seconds = 30.0

    def __init__(self, *arguments: Any, **named: Any) -> None:  # noqa: ANN401 - uvicorn's signature
        super().__init__(*arguments, **named)
        self._head_bytes = 0
        self._in_head = True
        self._head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn
        """Wait for a request, but not for ever."""
        super().connection_made(transport)
        self._begin_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop waiting."""
        self._end_head()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take bytes, unless the head of the request has become too large."""
        if self._in_head:
            self._head_bytes += len(data)
        super().data_received(data)
        if self._in_head and self._head_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
            self.transport.write(_TOO_LARGE % (len(_TOO_LARGE_BODY), _TOO_LARGE_BODY))
            self.transport.close()

    def on_message_begin(self) -> None:
        """Begin a request."""
        super().on_message_begin()
        if not self._in_head:  # the first of a connection has begun with it
            self._begin_head()

    def on_headers_complete(self) -> None:
        """Begin its body, whose time and size are the application's to bound."""
        self._end_head()
        super().on_headers_complete()

    def _begin_head(self) -> None:
        self._end_head()
        self._in_head, self._head_bytes = True, 0
        self._head_timer = self.loop.call_later(self.head_seconds, self.timeout_keep_alive_handler)

    def _end_head(self) -> None:
        self._in_head = False
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None


def bounded_connection(head_seconds: float) -> type[BoundedConnection]:
    """The class with another bound: uvicorn takes a class and makes the connections itself."""
    return type("BoundedConnection", (BoundedConnection,), {"head_seconds": head_seconds})
