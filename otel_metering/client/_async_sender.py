"""Carries out operations on asyncio."""

import asyncio
import contextlib
import functools
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Awaitable,
    Callable,
    Coroutine,
)
from types import TracebackType
from typing import Any, Generic, ParamSpec, Self, TypeVar, overload

import httpx

from otel_metering._config import ClientSettings
from otel_metering.client import _http
from otel_metering.client import _operations as operations
from otel_metering.client._answers import Answer, error_of
from otel_metering.client._lines import Lines
from otel_metering.client._request import Operation, Request
from otel_metering.client._retry import Failure
from otel_metering.errors import NoAnswerError

T = TypeVar("T")
P = ParamSpec("P")


class Does(Generic[P, T]):
    """A method: the operation, carried out. On the class it is the operation itself."""

    def __init__(self, operation: Callable[P, Operation[T]]) -> None:
        self._operation = operation
        self.__doc__ = operation.__doc__

    @overload
    def __get__(self, client: None, owner: type) -> Callable[P, Operation[T]]: ...
    @overload
    def __get__(
        self, client: "AsyncSender", owner: type
    ) -> Callable[P, Coroutine[Any, Any, T]]: ...
    def __get__(
        self, client: "AsyncSender | None", owner: type
    ) -> Callable[P, Operation[T]] | Callable[P, Coroutine[Any, Any, T]]:
        if client is None:
            return self._operation

        @functools.wraps(self._operation)
        async def method(*args: P.args, **kwargs: P.kwargs) -> T:
            return await client.run(self._operation(*args, **kwargs))

        return method


class Iterates(Generic[P, T]):
    """A method that iterates over a list, page by page."""

    def __init__(self, listing: Callable[P, operations.Listing[T]]) -> None:
        self._listing = listing
        self.__doc__ = listing.__doc__

    @overload
    def __get__(self, client: None, owner: type) -> Callable[P, operations.Listing[T]]: ...
    @overload
    def __get__(self, client: "AsyncSender", owner: type) -> Callable[P, AsyncIterator[T]]: ...
    def __get__(
        self, client: "AsyncSender | None", owner: type
    ) -> Callable[P, operations.Listing[T]] | Callable[P, AsyncIterator[T]]:
        if client is None:
            return self._listing

        @functools.wraps(self._listing)
        def method(*args: P.args, **kwargs: P.kwargs) -> AsyncIterator[T]:
            return client.pages(self._listing(*args, **kwargs))

        return method


class Exports(Generic[P]):
    """A method that iterates over the lines of an answer that may be long."""

    def __init__(self, export: Callable[P, Request]) -> None:
        self._export = export
        self.__doc__ = export.__doc__

    @overload
    def __get__(self, client: None, owner: type) -> Callable[P, Request]: ...
    @overload
    def __get__(self, client: "AsyncSender", owner: type) -> Callable[P, AsyncIterator[bytes]]: ...
    def __get__(
        self, client: "AsyncSender | None", owner: type
    ) -> Callable[P, Request] | Callable[P, AsyncIterator[bytes]]:
        if client is None:
            return self._export

        @functools.wraps(self._export)
        def method(*args: P.args, **kwargs: P.kwargs) -> AsyncIterator[bytes]:
            return client.lines(self._export(*args, **kwargs))

        return method


class AsyncSender:
    """Sends requests, again where that is safe, and closes its connections.

    Args:
        settings: Checked ones.
        edges: Clock, randomness and ids.
        wait: Waits for some seconds between two attempts.

    Raises:
        ConfigurationError: The URL or the certificate file cannot be used.
    """

    def __init__(
        self,
        settings: ClientSettings,
        *,
        edges: _http.Edges,
        wait: Callable[[float], Awaitable[object]],
    ) -> None:
        self._settings = settings
        self._edges = edges
        self._wait = wait
        self._http = httpx.AsyncClient(**_http.options(settings))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close all connections."""
        await self._http.aclose()

    async def run(self, operation: Operation[T]) -> T:
        """Carry out `operation`."""
        try:
            request = next(operation)
            while True:
                request = operation.send(await self._answer(request))
        except StopIteration as done:
            result: T = done.value
            return result

    async def pages(self, listing: operations.Listing[T]) -> AsyncIterator[T]:
        """Iterate over `listing`; a page is asked for when the one before is used up."""
        page = listing.page(await self._answer(listing.request))
        for item in page.items:
            yield item
        while page.next_cursor is not None:
            page = listing.page(await self._answer(listing.behind(page.next_cursor)))
            for item in page.items:
                yield item

    async def lines(self, request: Request) -> AsyncIterator[bytes]:
        """Iterate over the lines of the answer to `request`, with their line feeds, while they arrive."""
        lines = Lines()
        async with contextlib.aclosing(self._stream(request)) as chunks:
            async for chunk in chunks:
                for line in lines.of(chunk):
                    yield line
        for line in lines.rest():
            yield line

    async def _answer(self, request: Request) -> Answer:
        attempts = self._edges.attempts(self._settings, request)
        while True:
            outcome = await self._attempt(request, attempts.seconds())
            pause = attempts.pause(outcome)
            if isinstance(outcome, Answer) and pause is None:
                return outcome
            await self._wait(pause or 0.0)

    async def _attempt(self, request: Request, seconds: float) -> Answer | Failure:
        try:
            async with (
                asyncio.timeout(seconds),
                self._http.stream(**_http.arguments(request, self._settings, seconds)) as response,
            ):
                return _http.answer(response, await response.aread())
        except TimeoutError:
            return _http.too_late(seconds)
        except (httpx.RequestError, UnicodeError) as error:
            return _http.failure(error, seconds)

    async def _stream(self, request: Request) -> AsyncGenerator[bytes, None]:
        """The body of a good answer, in chunks; the time limit is one of each read."""
        attempts = self._edges.attempts(self._settings, request)
        has_begun = False
        while True:
            seconds = attempts.seconds()
            try:
                async with self._http.stream(
                    **_http.arguments(request, self._settings, seconds)
                ) as response:
                    outcome: Answer | Failure = _http.answer(response, b"")
                    if response.is_success:
                        async for chunk in response.aiter_bytes():
                            has_begun = True
                            yield chunk
                        return
                    outcome = _http.answer(response, await response.aread())
            except (httpx.RequestError, UnicodeError) as error:
                outcome = _http.failure(error, seconds)
                if has_begun:
                    raise NoAnswerError(
                        f"the export broke off: {outcome.text}; start it again", attempts=1
                    ) from error
            pause = attempts.pause(outcome)
            if isinstance(outcome, Answer) and pause is None:
                raise error_of(outcome)
            await self._wait(pause or 0.0)
