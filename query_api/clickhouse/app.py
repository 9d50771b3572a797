"""The HTTP interface of ClickHouse, as an ASGI application."""

import asyncio
import contextlib
import json
import logging
import secrets
import threading
from collections.abc import Awaitable, Callable, MutableMapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

from otel_metering.clock import Clock
from otel_metering.errors import MeteringError
from query_api.clickhouse import codec
from query_api.clickhouse.access import Access, User
from query_api.clickhouse.calls import Answer
from query_api.clickhouse.engine import Engine
from query_api.clickhouse.errors import (
    NETWORK_ERROR,
    QUERY_IS_TOO_LARGE,
    REQUIRED_PASSWORD,
    TOO_MANY_SIMULTANEOUS_QUERIES,
    ClickHouseError,
    status_of,
    text_of,
)
from query_api.clickhouse.request import Head, call_of, head_of, is_valid_id

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

MAX_BODY_BYTES: Final = 256 * 1024 * 1024
"""Of an administrator's request: a batch of the receiver, with room."""

MAX_READER_BODY_BYTES: Final = 1024 * 1024

MAX_WAITING: Final = 64
"""Statements of readers that wait for one of those that run."""

CANCEL_SECONDS: Final = 0.2
"""Between two attempts to end a statement whose client has left: it may not have begun yet."""

_KINDS: Final = {
    "JSON": "application/json; charset=UTF-8",
    "Native": "application/octet-stream",
    "Arrow": "application/octet-stream",
    "Parquet": "application/octet-stream",
    "RowBinary": "application/octet-stream",
    "CSV": "text/csv; charset=UTF-8; header=absent",
    "TabSeparated": "text/tab-separated-values; charset=UTF-8",
    "TSV": "text/tab-separated-values; charset=UTF-8",
}

_log = logging.getLogger(__name__)


class ClickHouseApp:
    """Answers as ClickHouse does, on the embedded engine."""

    def __init__(
        self, engine: Engine, access: Access, clock: Clock, *, readers: int, administrators: int
    ) -> None:
        """Starts no thread before the first request.

        Args:
            engine: Runs statements.
            access: Knows users.
            clock: The time.
            readers: How many statements of readers run at once.
            administrators: The same, of the administrator.
        """
        self._engine = engine
        self._access = access
        self._clock = clock
        self._readers = ThreadPoolExecutor(readers, thread_name_prefix="clickhouse-reader")
        self._administrators = ThreadPoolExecutor(
            administrators, thread_name_prefix="clickhouse-admin"
        )
        # Never behind what it shall end.
        self._cancels = ThreadPoolExecutor(1, thread_name_prefix="clickhouse-cancel")
        self._max_reads = readers + MAX_WAITING
        self._reads = 0
        self._running: set[tuple[str, bool]] = set()
        self._is_idle = threading.Event()

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Answer a request."""
        head = head_of(scope["method"], scope["query_string"], scope["headers"])
        query_id = head.parameters.get("query_id", "")
        if not is_valid_id(query_id):
            query_id = secrets.token_hex(16)
        reply = _Reply(send, head, query_id, self._engine)
        path = scope["path"]
        if path in ("/ping", "/replicas_status") or (path == "/" and _is_look(head)):
            await reply.text(200, "Ok.\n")
            return
        if path != "/":
            await reply.text(404, f"There is no handle {path}; statements go to /\n")
            return
        try:
            await self._answer(head, receive, reply)
        except ClickHouseError as error:
            await reply.error(error)
        except MeteringError as error:
            await reply.error(ClickHouseError(NETWORK_ERROR, str(error)))

    def close(self) -> None:
        """End what runs, and the threads; call it when nobody asks any more."""
        for executor in (self._readers, self._administrators, self._cancels):
            executor.shutdown(wait=False, cancel_futures=True)
        while self._running:
            for tag, is_reader in tuple(self._running):
                with contextlib.suppress(MeteringError):
                    self._engine.cancel(tag, is_reader=is_reader)
            self._is_idle.wait(CANCEL_SECONDS)

    async def _answer(self, head: Head, receive: Receive, reply: "_Reply") -> None:
        user = self._access.user(head.headers, head.parameters)
        limit = MAX_BODY_BYTES if user.is_administrator else MAX_READER_BODY_BYTES
        body = await _body(receive, limit)
        if body is None:
            return
        encoding = head.headers.get("content-encoding", "").strip().lower()
        if encoding:
            body = await asyncio.to_thread(codec.decompress, encoding, body, limit)
        began = self._clock.monotonic()
        answer = await self._run(head, body, user, receive)
        if answer is not None:
            await reply.answer(answer, self._clock.monotonic() - began)

    async def _run(self, head: Head, body: bytes, user: User, receive: Receive) -> Answer | None:
        """What the statement gives; None: the client has left."""
        tag = secrets.token_hex(16)
        call = call_of(head, body, tag)
        tag = call.settings.get("log_comment", tag) if user.is_administrator else tag
        left = [False]

        def run() -> Answer | None:
            if left[0]:
                return None
            named = tag, not user.is_administrator
            self._running.add(named)
            try:
                if user.is_administrator:
                    return self._engine.administrate(call)
                return self._engine.read(call, user.tenant)
            finally:
                self._running.discard(named)

        if user.is_administrator:
            is_kill = call.sql.lstrip()[:4].upper() == b"KILL"
            executor = self._cancels if is_kill else self._administrators
            return await self._watched(executor, run, left, receive, user, tag)
        if self._reads >= self._max_reads:
            raise ClickHouseError(
                TOO_MANY_SIMULTANEOUS_QUERIES,
                f"{self._reads} statements run or wait; send it later",
            )
        self._reads += 1
        try:
            return await self._watched(self._readers, run, left, receive, user, tag)
        finally:
            self._reads -= 1

    async def _watched(
        self,
        executor: ThreadPoolExecutor,
        run: Callable[[], Answer | None],
        left: list[bool],
        receive: Receive,
        user: User,
        tag: str,
    ) -> Answer | None:
        loop = asyncio.get_running_loop()
        running = loop.run_in_executor(executor, run)
        leaving = asyncio.ensure_future(_until_left(receive))
        try:
            await asyncio.wait((running, leaving), return_when=asyncio.FIRST_COMPLETED)
            left[0] = not running.done()
            while not running.done():
                await loop.run_in_executor(
                    self._cancels,
                    lambda: self._engine.cancel(tag, is_reader=not user.is_administrator),
                )
                await asyncio.wait((running,), timeout=CANCEL_SECONDS)
            if not left[0]:
                return running.result()
            running.exception()  # nobody wants it any more
            return None
        finally:
            leaving.cancel()


class _Reply:
    """Sends one answer."""

    def __init__(self, send: Send, head: Head, query_id: str, engine: Engine) -> None:
        self._send = send
        self._head = head
        self._engine = engine
        self._headers = {
            "X-ClickHouse-Server-Display-Name": engine.display_name,
            "X-ClickHouse-Query-Id": query_id,
            "X-ClickHouse-Timezone": engine.timezone,
        }

    async def answer(self, answer: Answer, seconds: float) -> None:
        """Send what a statement gave."""
        summary = {
            "written_rows": str(answer.written_rows),
            "elapsed_ns": str(round(seconds * 1e9)),
        }
        headers = {"X-ClickHouse-Summary": json.dumps(summary)}
        if answer.format:
            headers["X-ClickHouse-Format"] = answer.format
        encoding, body = "", answer.body
        if self._head.is_compressible:
            accepted = self._head.headers.get("accept-encoding", "")
            encoding, body = await asyncio.to_thread(codec.compress, accepted, body)
        if encoding:
            headers["Content-Encoding"] = encoding
            headers["Vary"] = "Accept-Encoding"
        await self._respond(200, body, _kind(answer.format), headers)

    async def error(self, error: ClickHouseError) -> None:
        """Send why a statement did not run, or failed."""
        headers = {"X-ClickHouse-Exception-Code": str(error.code)}
        if error.code == REQUIRED_PASSWORD:
            headers["WWW-Authenticate"] = 'Basic realm="ClickHouse server HTTP API"'
        if error.retry_after_seconds is not None:
            headers["Retry-After"] = str(error.retry_after_seconds)
        body = text_of(error.code, str(error), self._engine.version)
        await self._respond(
            status_of(error.code), body.encode(), "text/plain; charset=UTF-8", headers
        )

    async def text(self, status: int, text: str) -> None:
        """Send a few words."""
        await self._respond(status, text.encode(), "text/html; charset=UTF-8", {})

    async def _respond(self, status: int, body: bytes, kind: str, headers: dict[str, str]) -> None:
        named = {
            **self._headers,
            **headers,
            "Content-Type": kind,
            "Content-Length": str(len(body)),
            "X-Content-Type-Options": "nosniff",
        }
        raw = [(name.lower().encode(), value.encode("latin-1")) for name, value in named.items()]
        await self._send({"type": "http.response.start", "status": status, "headers": raw})
        is_head = self._head.method == "HEAD"
        await self._send({"type": "http.response.body", "body": b"" if is_head else body})


def _is_look(head: Head) -> bool:
    """Whether somebody only looks whether there is anybody: GET / without a statement."""
    return head.method in ("GET", "HEAD") and "query" not in head.parameters


def _kind(format_name: str) -> str:
    return next(
        (kind for name, kind in _KINDS.items() if format_name.startswith(name)),
        "text/plain; charset=UTF-8",
    )


async def _body(receive: Receive, limit: int) -> bytes | None:
    """The whole body; None: the client has left."""
    parts: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return None
        part = message.get("body", b"")
        size += len(part)
        if size > limit:
            raise ClickHouseError(QUERY_IS_TOO_LARGE, f"The body has more than {limit} bytes")
        parts.append(part)
        if not message.get("more_body"):
            return b"".join(parts)


async def _until_left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
