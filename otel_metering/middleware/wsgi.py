"""WSGI: the tenant of each request, and requests and bytes counted."""

from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Unpack

from otel_metering._context import current
from otel_metering.middleware._denial import Denial
from otel_metering.middleware._metering import Exchange, Metering, MeteringOptions
from otel_metering.middleware._request import EnvironRequest

if TYPE_CHECKING:
    from wsgiref.types import InputStream, StartResponse, WSGIApplication, WSGIEnvironment

_ExcInfo = tuple[type[BaseException], BaseException, TracebackType] | tuple[None, None, None]

_TOO_MANY_REQUESTS: Final = "429 Too Many Requests"


class MeteringMiddleware:
    """Makes the request's tenant current, and counts requests and bytes if meters are named for them.

    Wrap it around everything that records usage or changes bodies. The tenant may also become known later:
    `otel_metering.set_tenant` in any code of the request, while its response is streamed too. What is
    counted is counted when the server closes the response.

    Dimensions are `http.request.method`, `http.route` (the rule of a Flask or other werkzeug application)
    and `http.response.status_class`, e.g. "2xx".

    Args:
        app: The application.
        options: See `MeteringOptions`.

    Raises:
        ConfigurationError: An option cannot be used; the message names it.
    """

    request_class: type[EnvironRequest] = EnvironRequest
    """What a source of tenants is given."""

    def __init__(self, app: "WSGIApplication", **options: Unpack[MeteringOptions]) -> None:
        self._app = app
        self._metering = Metering(**options)

    def __call__(
        self, environ: "WSGIEnvironment", start_response: "StartResponse"
    ) -> Iterable[bytes]:
        """Handle one request."""
        exchange = self._metering.open(self.request_class(environ))
        try:
            denial = exchange.take() if exchange.asks else None
            if denial is not None:
                exchange.close()
                return _refuse(denial, start_response)
            token = current.set(exchange.holder)
            try:
                chunks = self._run(exchange, environ, start_response)
            finally:
                current.reset(token)
        except BaseException as error:
            if isinstance(error, Exception):
                exchange.fail()
            exchange.close()
            raise
        return (
            _SizedBody(chunks, exchange)
            if isinstance(chunks, (list, tuple))
            else _Body(chunks, exchange)
        )

    def _run(
        self, exchange: Exchange, environ: "WSGIEnvironment", start_response: "StartResponse"
    ) -> Iterable[bytes]:
        metering = self._metering
        if not exchange.holder.claimed:
            return self._app(environ, start_response)
        if metering.request_bytes in exchange.meters:
            stream = environ["wsgi.input"]
            # What there is decides how werkzeug reads.
            kind = _RawInput if hasattr(stream, "readinto") else _Input
            environ["wsgi.input"] = kind(stream, exchange)
        return self._app(environ, _StartResponse(start_response, exchange))


class _StartResponse:
    """The server's `start_response`, watched."""

    __slots__ = ("_exchange", "_start")

    def __init__(self, start: "StartResponse", exchange: Exchange) -> None:
        self._start = start
        self._exchange = exchange

    def __call__(
        self,
        status: str,
        headers: list[tuple[str, str]],
        exc_info: _ExcInfo | None = None,
        /,
    ) -> Callable[[bytes], object]:
        # With an error it raises that if a status was sent already.
        write = self._start(status, headers, exc_info) if exc_info else self._start(status, headers)
        code = status[:3]
        self._exchange.started(int(code) if code.isdecimal() else None)
        return _Write(write, self._exchange)


class _Write:
    __slots__ = ("_exchange", "_write")

    def __init__(self, write: Callable[[bytes], object], exchange: Exchange) -> None:
        self._write = write
        self._exchange = exchange

    def __call__(self, chunk: bytes, /) -> object:
        answer = self._write(chunk)
        self._exchange.response_bytes += len(chunk)
        return answer


class _Body:
    """The application's response, with the request's tenant current while it is made."""

    __slots__ = ("_chunks", "_exchange", "_iterator")

    def __init__(self, chunks: Iterable[bytes], exchange: Exchange) -> None:
        self._chunks = chunks
        self._exchange = exchange
        self._iterator: Iterator[bytes] | None = None

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        exchange = self._exchange
        # For this step only: the server's thread may serve others between two chunks.
        token = current.set(exchange.holder)
        try:
            if self._iterator is None:
                self._iterator = iter(self._chunks)
            chunk = next(self._iterator)
        except StopIteration:
            exchange.count()
            raise
        except Exception:
            exchange.fail()
            raise
        finally:
            current.reset(token)
        exchange.response_bytes += len(chunk)
        return chunk

    def close(self) -> None:
        """The server needs no more of it."""
        exchange = self._exchange
        token = current.set(exchange.holder)
        try:
            close = getattr(self._chunks, "close", None)
            if close is not None:
                close()
        finally:
            exchange.fail()
            exchange.close()
            current.reset(token)

    def __del__(self) -> None:
        # For servers that forget to close it (PEP 3333 says they must), such as asgiref's for ASGI.
        self._exchange.close()


class _SizedBody(_Body):
    """One whose number of chunks is known: a server may tell the length of a single one."""

    __slots__ = ()

    def __len__(self) -> int:
        return len(self._chunks)  # type: ignore[arg-type] # a list or a tuple


class _Input:
    """The request's body, measured as it is read."""

    __slots__ = ("_exchange", "_input")

    def __init__(self, stream: "InputStream", exchange: Exchange) -> None:
        self._input = stream
        self._exchange = exchange

    def read(self, size: int = -1, /) -> bytes:
        data = self._input.read(size)
        self._measure(data, is_end=size < 0 or (not data and size > 0))
        return data

    def readline(self, size: int = -1, /) -> bytes:
        line = self._input.readline(size)
        self._measure(line, is_end=not line and size != 0)
        return line

    def readlines(self, hint: int = -1, /) -> list[bytes]:
        lines = self._input.readlines(hint)
        self._measure(b"".join(lines), is_end=not lines)
        return lines

    def __iter__(self) -> Iterator[bytes]:
        while line := self.readline():
            yield line

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 -- whatever else the server's stream can do
        return getattr(self._input, name)

    def _measure(self, data: bytes, *, is_end: bool) -> None:
        self._exchange.request_bytes += len(data)
        if is_end:
            self._exchange.is_read = True


class _RawInput(_Input):
    """One that reads into buffers too."""

    __slots__ = ()

    def readinto(self, buffer: bytearray, /) -> int | None:
        size: int | None = self._input.readinto(buffer)  # type: ignore[attr-defined] # it was looked for
        self._exchange.request_bytes += size or 0
        if size == 0 and len(buffer):
            self._exchange.is_read = True
        return size


def _refuse(denial: Denial, start_response: "StartResponse") -> Iterable[bytes]:
    start_response(_TOO_MANY_REQUESTS, list(denial.headers))
    return [denial.body]
