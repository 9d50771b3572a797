"""Carries out operations: sends what they ask for, and waits."""

import contextlib
import functools
from collections.abc import Callable, Generator, Iterator
from types import TracebackType
from typing import Generic, ParamSpec, Self, TypeVar, overload

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
    def __get__(self, client: "Sender", owner: type) -> Callable[P, T]: ...
    def __get__(
        self, client: "Sender | None", owner: type
    ) -> Callable[P, Operation[T]] | Callable[P, T]:
        if client is None:
            return self._operation

        @functools.wraps(self._operation)
        def method(*args: P.args, **kwargs: P.kwargs) -> T:
            return client.run(self._operation(*args, **kwargs))

        return method


class Iterates(Generic[P, T]):
    """A method that iterates over a list, page by page."""

    def __init__(self, listing: Callable[P, operations.Listing[T]]) -> None:
        self._listing = listing
        self.__doc__ = listing.__doc__

    @overload
    def __get__(self, client: None, owner: type) -> Callable[P, operations.Listing[T]]: ...
    @overload
    def __get__(self, client: "Sender", owner: type) -> Callable[P, Iterator[T]]: ...
    def __get__(
        self, client: "Sender | None", owner: type
    ) -> Callable[P, operations.Listing[T]] | Callable[P, Iterator[T]]:
        if client is None:
            return self._listing

        @functools.wraps(self._listing)
        def method(*args: P.args, **kwargs: P.kwargs) -> Iterator[T]:
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
    def __get__(self, client: "Sender", owner: type) -> Callable[P, Iterator[bytes]]: ...
    def __get__(
        self, client: "Sender | None", owner: type
    ) -> Callable[P, Request] | Callable[P, Iterator[bytes]]:
        if client is None:
            return self._export

        @functools.wraps(self._export)
        def method(*args: P.args, **kwargs: P.kwargs) -> Iterator[bytes]:
            return client.lines(self._export(*args, **kwargs))

        return method


class Sender:
    """Sends requests, again where that is safe, and closes its connections.

    Args:
        settings: Checked ones.
        edges: Clock, randomness and ids.
        wait: Waits for some seconds between two attempts.

    Raises:
        ConfigurationError: The URL or the certificate file cannot be used.
    """

    def __init__(
        self, settings: ClientSettings, *, edges: _http.Edges, wait: Callable[[float], object]
    ) -> None:
        self._settings = settings
        self._edges = edges
        self._wait = wait
        self._http = httpx.Client(**_http.options(settings))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections."""
        self._http.close()

    def run(self, operation: Operation[T]) -> T:
        """Carry out `operation`."""
        try:
            request = next(operation)
            while True:
                request = operation.send(self._answer(request))
        except StopIteration as done:
            result: T = done.value
            return result

    def pages(self, listing: operations.Listing[T]) -> Iterator[T]:
        """Iterate over `listing`; a page is asked for when the one before is used up."""
        page = listing.page(self._answer(listing.request))
        yield from page.items
        while page.next_cursor is not None:
            page = listing.page(self._answer(listing.behind(page.next_cursor)))
            yield from page.items

    def lines(self, request: Request) -> Iterator[bytes]:
        """Iterate over the lines of the answer to `request`, with their line feeds, while they arrive."""
        lines = Lines()
        with contextlib.closing(self._stream(request)) as chunks:
            for chunk in chunks:
                yield from lines.of(chunk)
        yield from lines.rest()

    def _answer(self, request: Request) -> Answer:
        attempts = self._edges.attempts(self._settings, request)
        while True:
            outcome = self._attempt(request, attempts.seconds())
            pause = attempts.pause(outcome)
            if isinstance(outcome, Answer) and pause is None:
                return outcome
            self._wait(pause or 0.0)

    def _attempt(self, request: Request, seconds: float) -> Answer | Failure:
        clock = self._edges.clock
        ends_at = clock.monotonic() + seconds
        try:
            with self._http.stream(**_http.arguments(request, self._settings, seconds)) as response:
                content = bytearray()
                # httpx bounds each read; an answer that drips would pass every one of them.
                for chunk in response.iter_bytes():
                    content += chunk
                    if clock.monotonic() > ends_at:
                        return _http.too_late(seconds)
                return _http.answer(response, bytes(content))
        except (httpx.RequestError, UnicodeError) as error:
            return _http.failure(error, seconds)

    def _stream(self, request: Request) -> Generator[bytes, None, None]:
        """The body of a good answer, in chunks; the time limit is one of each read."""
        attempts = self._edges.attempts(self._settings, request)
        has_begun = False
        while True:
            seconds = attempts.seconds()
            try:
                with self._http.stream(
                    **_http.arguments(request, self._settings, seconds)
                ) as response:
                    outcome: Answer | Failure = _http.answer(response, b"")
                    if response.is_success:
                        for chunk in response.iter_bytes():
                            has_begun = True
                            yield chunk
                        return
                    outcome = _http.answer(response, response.read())
            except (httpx.RequestError, UnicodeError) as error:
                outcome = _http.failure(error, seconds)
                if has_begun:
                    raise NoAnswerError(
                        f"the export broke off: {outcome.text}; start it again", attempts=1
                    ) from error
            pause = attempts.pause(outcome)
            if isinstance(outcome, Answer) and pause is None:
                raise error_of(outcome)
            self._wait(pause or 0.0)
