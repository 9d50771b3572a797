"""ASGI: sets the tenant of each request and websocket, and flushes before the server ends the process.

Pure ASGI, so that it adds a few microseconds and streaming, cancellation and contexts stay as they are.
"""

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final

from opentelemetry import trace

from otel_metering._context import Holder, current
from otel_metering._guard import Problem, guarded, problems
from otel_metering._lifecycle import settle
from otel_metering.contract.attributes import TENANT_ID
from otel_metering.contract.event import is_valid_name

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

_LAST_MESSAGES: Final = frozenset({"lifespan.shutdown.complete", "lifespan.shutdown.failed"})


class MeteringMiddleware:
    """Makes the request's tenant current, and the attribute `tenant.id` of its server span.

    Add it outside of everything that records usage, and inside of the tracing instrumentation. The tenant
    may also become known later: `otel_metering.set_tenant` in any code of the request.

    A header is as trustworthy as whoever may send it: use `tenant_header` behind a gateway that sets or
    checks it, else `tenant` or `set_tenant` with an authenticated identity.

    Args:
        app: The application.
        tenant_header: Request header that holds the tenant id; one that is not a valid id is ignored and
            counted in `stats().ignored_tenants`.
        tenant: Says the tenant from the ASGI scope instead, None if it has none.
    """

    def __init__(
        self,
        app: App,
        *,
        tenant_header: str = "x-tenant-id",
        tenant: Callable[[Scope], str | None] | None = None,
    ) -> None:
        self._app = app
        self._header = tenant_header.lower().encode("latin-1")
        self._tenant = tenant or self._tenant_of_header

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection."""
        if scope["type"] in ("http", "websocket"):
            await self._serve(scope, receive, send)
        elif scope["type"] == "lifespan":
            await _Lifespan(receive, send).run(self._app, scope)
        else:
            await self._app(scope, receive, send)

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        holder = Holder(None, previous=current.get())
        with guarded:
            holder.tenant = self._valid_tenant(scope)
            span = trace.get_current_span()
            if span.is_recording():
                holder.span = span
                if holder.tenant is not None:
                    span.set_attribute(TENANT_ID, holder.tenant)
        token = current.set(holder)
        try:
            await self._app(scope, receive, send)
        finally:
            current.reset(token)

    def _valid_tenant(self, scope: Scope) -> str | None:
        tenant = self._tenant(scope)
        if tenant is None or is_valid_name(tenant):
            return tenant
        problems.report(Problem.IGNORED_TENANTS, "a request's tenant is not a valid id")
        return None

    def _tenant_of_header(self, scope: Scope) -> str | None:
        for name, value in scope["headers"]:
            if name == self._header:
                return str(value, "latin-1")
        return None


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
