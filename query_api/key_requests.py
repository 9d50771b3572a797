"""Counts what became of requests that showed a key: each once, when it is over.

A key is let through unless something on the way refuses it, and what a key lacks may be found out late: a route
knows which tenant a request is about.
"""

from typing import Final

from fastapi import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from receiver.store.key_counts import KeyCounts, Refusal, Refused

TRANSPORT: Final = "api"


class KeyRequests:
    """Middleware around everything that may refuse a key."""

    def __init__(self, app: ASGIApp, counts: KeyCounts) -> None:
        self._app = app
        self._counts = counts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hand the request on."""
        try:
            await self._app(scope, receive, send)
        finally:
            state = scope.get("state") or {}
            key_id = state.get("key_id")
            if key_id is not None:
                reason = state.get("key_refused")
                if reason is None:
                    self._counts.passed(TRANSPORT, key_id)
                else:
                    self._counts.refused(TRANSPORT, Refusal(reason, key_id))


def note_refused(request: Request, reason: Refused) -> None:
    """The key of this request is refused."""
    request.state.key_refused = reason
