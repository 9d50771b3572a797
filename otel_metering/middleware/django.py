"""Django: a middleware for `MIDDLEWARE`, sync and async; its options are in `settings.OTEL_METERING`."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

from asgiref.sync import iscoroutinefunction, markcoroutinefunction
from django.conf import settings
from django.http import HttpRequest, HttpResponse
from django.http.response import HttpResponseBase

from otel_metering._context import current
from otel_metering._guard import guarded
from otel_metering.middleware._denial import STATUS, Denial
from otel_metering.middleware._metering import Exchange, Metering
from otel_metering.middleware._request import Request

GetResponse = Callable[[HttpRequest], HttpResponseBase | Awaitable[HttpResponseBase]]


class MeteringMiddleware:
    """Makes the request's tenant current, and counts requests and bytes if meters are named for them.

    Put it first into `MIDDLEWARE`: "otel_metering.middleware.django.MeteringMiddleware". The tenant may also
    become known later: `otel_metering.set_tenant` in any code of the request. A streamed response is counted
    when it is closed, any other when it is ready.

    Dimensions are `http.request.method`, `http.route` (as the pattern is written in the URLconf) and
    `http.response.status_class`, e.g. "2xx".

    Args:
        get_response: The rest of the application.

    Raises:
        ConfigurationError: `OTEL_METERING`, a dict as `otel_metering.middleware.options.MeteringOptions`
            describes it, cannot be used.
    """

    sync_capable = True
    async_capable = True

    def __init__(self, get_response: GetResponse) -> None:
        self._get_response: Callable[[HttpRequest], Any] = get_response
        self._metering = Metering(**getattr(settings, "OTEL_METERING", {}))
        self._is_async = iscoroutinefunction(get_response)
        if self._is_async:
            markcoroutinefunction(self)

    def __call__(self, request: Any) -> Any:  # noqa: ANN401 -- Django publishes no types
        """Handle one request."""
        return self._serve_async(request) if self._is_async else self._serve(request)

    def _serve(self, request: HttpRequest) -> HttpResponseBase:
        exchange = self._metering.open(DjangoRequest(request))
        _measure_body(request, exchange)
        denial = exchange.take() if exchange.asks else None
        if denial is not None:
            exchange.close()
            return _refuse(denial)
        token = current.set(exchange.holder)
        try:
            return _measured(self._get_response(request), exchange)
        except Exception:
            exchange.fail()
            exchange.close()
            raise
        finally:
            current.reset(token)

    async def _serve_async(self, request: HttpRequest) -> HttpResponseBase:
        if self._metering.is_blocking:
            exchange = await asyncio.to_thread(self._metering.open, DjangoRequest(request))
        else:
            exchange = self._metering.open(DjangoRequest(request))
        _measure_body(request, exchange)
        denial = await exchange.take_async() if exchange.asks else None
        if denial is not None:
            exchange.close()
            return _refuse(denial)
        token = current.set(exchange.holder)
        try:
            return _measured(await self._get_response(request), exchange)
        except BaseException as error:  # a client that leaves cancels
            if isinstance(error, Exception):
                exchange.fail()
            exchange.close()
            raise
        finally:
            current.reset(token)


class DjangoRequest(Request):
    """A request by Django's."""

    __slots__ = ()

    def header(self, name: str) -> str | None:
        """The value of the header `name`, None if it was not sent; repeated ones are joined by commas."""
        value: str | None = self.native.headers.get(name)
        return value

    @property
    def method(self) -> str:
        """As it was sent."""
        return str(self.native.method)

    @property
    def path(self) -> str:
        """Decoded, from the root of the server on."""
        return str(self.native.path)

    @property
    def route(self) -> str | None:
        """As it is written in the URLconf, without a slash in front of it; that of the root is a slash."""
        match = self.native.resolver_match
        return None if match is None else str(match.route) or "/"


def _measured(response: HttpResponseBase, exchange: Exchange) -> HttpResponseBase:
    """`response`, counted now or when it has been streamed."""
    exchange.status = response.status_code
    if not response.streaming:
        if isinstance(response, HttpResponse):
            exchange.response_bytes = len(response.content)
        exchange.close()
        return response
    with guarded:
        streamed: Any = response
        chunks = streamed.streaming_content
        # Also ends the shortcut of FileResponse, by which a server would send the file itself.
        streamed.streaming_content = (
            _AsyncChunks(chunks, exchange) if streamed.is_async else _Chunks(chunks, exchange)
        )
    return response


class _Chunks:
    """A streamed body, with the request's tenant current while it is made."""

    def __init__(self, chunks: Iterator[bytes], exchange: Exchange) -> None:
        self._chunks = chunks
        self._exchange = exchange

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        token = current.set(self._exchange.holder)
        try:
            chunk = next(self._chunks)
        finally:
            current.reset(token)
        self._exchange.response_bytes += len(chunk)
        return chunk

    def close(self) -> None:
        """Django closes the response."""
        self._exchange.close()


class _AsyncChunks:
    """As `_Chunks`, of an asynchronous body."""

    def __init__(self, chunks: AsyncIterator[bytes], exchange: Exchange) -> None:
        self._chunks = chunks
        self._exchange = exchange

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        token = current.set(self._exchange.holder)
        try:
            chunk = await anext(self._chunks)
        finally:
            current.reset(token)
        self._exchange.response_bytes += len(chunk)
        return chunk

    def close(self) -> None:
        """Django closes the response."""
        self._exchange.close()


def _measure_body(request: HttpRequest, exchange: Exchange) -> None:
    """Under ASGI the body is there already; under WSGI Django reads no more than was announced."""
    stream: Any = getattr(request, "_stream", None)
    if exchange.meters and hasattr(request, "scope") and hasattr(stream, "seek"):
        with guarded:
            exchange.request_bytes = stream.seek(0, 2)
            exchange.is_read = True
            stream.seek(0)


def _refuse(denial: Denial) -> HttpResponse:
    response = HttpResponse(denial.body, status=STATUS)
    for name, value in denial.headers:
        response[name] = value
    return response
