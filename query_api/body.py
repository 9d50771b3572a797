"""Request bodies are bounded before they are read, whatever a route does with them."""

from typing import Final

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

MAX_BODY_BYTES: Final = 16 * 1024 * 1024
"""Bytes of one request: 10,000 events of 1.6 kB."""

_CONTENT_TOO_LARGE: Final = 413


class BodyLimit:
    """Middleware: reading on past `max_bytes` fails, so no more than that is ever held."""

    def __init__(self, app: ASGIApp, *, max_bytes: int = MAX_BODY_BYTES) -> None:
        self._app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hand the request on, with a `receive` that counts."""
        read_bytes = 0

        async def receive_counted() -> Message:
            nonlocal read_bytes
            message = await receive()
            read_bytes += len(message.get("body", b""))
            if read_bytes > self._max_bytes:
                # Starlette's own class: FastAPI hides any other behind a 400 while it reads a body.
                raise HTTPException(
                    _CONTENT_TOO_LARGE,
                    f"the body is beyond the limit of {self._max_bytes} bytes; send several requests",
                )
            return message

        await self._app(scope, receive_counted, send)
