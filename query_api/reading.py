"""Runs statements for a request: within its limits, in a thread, and no longer than anybody waits for it."""

import asyncio
import secrets
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Final, TypeVar

import pyarrow as pa
from fastapi import Request
from starlette.concurrency import run_in_threadpool

from query_api.aggregates import Work
from query_api.problems import TooLargeError
from query_api.queries import Statement
from query_api.services import Services
from receiver.store.client import ReadLimitError, ReadLimits, Store

_T = TypeVar("_T")

_cancelling: Final[set[asyncio.Future[None]]] = set()
"""Kept until they are done: an event loop forgets tasks that nobody holds."""

_CANCEL_AGAIN_SECONDS: Final = 0.1

_REMEDY: Final = "shorten the range, widen the window, name a tenant, or filter by dimensions instead of attributes"


async def read(
    request: Request, services: Services, statement: Statement
) -> Sequence[Sequence[Any]]:
    """The rows of a statement; it is cancelled when the client of `request` goes away.

    Raises:
        TooLargeError: It passed a limit.
        UnavailableError: The database did not answer.
    """
    return await _run(
        request,
        services,
        lambda store, limits: store.query(statement.sql, statement.parameters, limits),
    )


async def answer(request: Request, services: Services, work: Work[_T]) -> _T:
    """Do a work; its statements are read as by `read`. Raises as that and the work do."""
    try:
        statement = next(work)
        while True:
            statement = work.send(await read(request, services, statement))
    except StopIteration as stop:
        found: _T = stop.value
        return found


async def read_table(request: Request, services: Services, statement: Statement) -> pa.Table:
    """As `read`, as an Arrow table."""
    return await _run(
        request,
        services,
        lambda store, limits: store.query_table(statement.sql, statement.parameters, limits),
    )


async def _run(request: Request, services: Services, work: Callable[[Store, ReadLimits], _T]) -> _T:
    store = services.store
    limits = replace(services.limits, tag=f"read-{secrets.token_hex(8)}")
    running = asyncio.ensure_future(run_in_threadpool(work, store, limits))
    leaving = asyncio.ensure_future(_left(request))
    try:
        await asyncio.wait({running, leaving}, return_when=asyncio.FIRST_COMPLETED)
        await _end(store, limits.tag, running)
        return running.result()
    except ReadLimitError as error:
        raise TooLargeError(
            f"the read was ended: {error}; it may take {limits.seconds:g} s and scan {limits.rows} rows; "
            f"{_REMEDY}"
        ) from error
    except asyncio.CancelledError:
        # The answer had begun, and its client has gone away. Whoever cancels may do so again: the task is kept.
        _cancelling.add(task := asyncio.ensure_future(_end(store, limits.tag, running)))
        task.add_done_callback(_cancelling.discard)
        await asyncio.shield(task)
        raise
    finally:
        leaving.cancel()


async def _end(store: Store, tag: str, running: asyncio.Future[_T]) -> None:
    """Let a read end soon, and wait until it has."""
    while not running.done():
        # Again and again: a read that has not begun yet cannot be found.
        await run_in_threadpool(store.cancel, tag)
        await asyncio.wait({running}, timeout=_CANCEL_AGAIN_SECONDS)
    running.exception()  # so that nobody misses it, where nobody asks


async def _left(request: Request) -> None:
    """Return when the client has gone away; the body must have been read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
