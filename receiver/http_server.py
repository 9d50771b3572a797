"""OTLP/HTTP with protobuf or JSON: an ASGI application.

In order, from the outside in (OTLP specification, "OTLP/HTTP"): CORS preflight, path, method, content
type, key, size, decompression, JSON. The body of every error is a google.rpc.Status in the encoding of
the request, JSON where that is unknown.

Where bodies are decoded: here and not in the ingest thread, which everybody waits for and which JSON
would keep ten times as long as protobuf. What takes more than about a millisecond goes to two threads of
its own, so that one sender of large bodies slows down neither the event loop nor the ingest thread.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, Final

from otel_metering.contract.meter import Signal
from otel_metering.errors import MeteringError, UnavailableError
from receiver import errors
from receiver.auth import authenticate
from receiver.compression import ENCODINGS, decompress
from receiver.cors import Cors, Headers
from receiver.ingest import Ingest, Work
from receiver.otlp.json import to_protobuf
from receiver.responses import MediaType, encode_error, encode_response
from receiver.status import retry_after_of, status_of
from receiver.store.keys import ApiKeys
from receiver.telemetry import Telemetry

_PATHS: Final = {
    "/v1/metrics": Signal.METRIC,
    "/v1/traces": Signal.SPAN,
    "/v1/logs": Signal.LOG,
}
_PROFILES: Final = "/v1development/profiles"

_ON_LOOP_BYTES: Final = 256 * 1024
"""Decompressed on the event loop up to this size: others wait less than a millisecond."""

_ON_LOOP_JSON_BYTES: Final = 16 * 1024
"""JSON of this size is about a millisecond, too."""

_DECODERS: Final = 2

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

_log = logging.getLogger(__name__)


class HttpApp:
    """The ASGI application."""

    def __init__(
        self,
        ingest: Ingest,
        keys: ApiKeys,
        *,
        max_request_bytes: int,
        read_timeout_seconds: float,
        cors: Cors,
        telemetry: Telemetry | None = None,
    ) -> None:
        self._ingest = ingest
        self._keys = keys
        self._max_request_bytes = max_request_bytes
        self._telemetry = telemetry or Telemetry()
        self._read_timeout_seconds = read_timeout_seconds
        self._cors = cors
        self._decoders = ThreadPoolExecutor(_DECODERS, thread_name_prefix="otlp-decode")

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            return
        headers = {
            name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]
        }
        if self._cors.is_preflight(scope["method"], headers):
            await _respond(send, 204, self._cors.preflight(headers))
            return
        extra = self._cors.response(headers)
        media_type = _media_type(headers)
        request = self._telemetry.request("http", _PATHS.get(scope["path"]))
        try:
            answer = await self._answer(scope["path"], scope["method"], headers, receive)
            request.acknowledge()
            await _respond(send, 200, extra, media_type, answer)
        except MeteringError as error:
            request.refuse(error)
            await _respond_error(send, extra, media_type, error)
        except Exception as error:  # noqa: BLE001 - 500 would destroy the sender's data
            request.refuse(error)
            _log.error("A request failed", exc_info=error, extra={"event": "http_failed"})
            failed = UnavailableError("the receiver failed")
            await _respond_error(send, extra, media_type, failed)
        finally:
            request.end()

    async def _answer(
        self, path: str, method: str, headers: Mapping[str, str], receive: Receive
    ) -> bytes:
        signal, media_type = _route(path, method, headers)
        sender = authenticate(headers, self._keys, "http")
        encoding = headers.get("content-encoding", "").strip().lower() or "identity"
        if encoding not in ENCODINGS:
            raise errors.MalformedPayloadError(
                f"content encoding {encoding[:64]!r} is not supported; use {', '.join(ENCODINGS)}"
            )
        body = await self._read(headers, receive)
        if encoding != "identity":
            body = await self._decompress(encoding, body)
        if media_type is MediaType.JSON:
            body = await self._to_protobuf(signal, body)
        outcome = await self._ingest.request(Work(sender=sender, signal=signal, body=body))
        return encode_response(outcome, media_type)

    async def _read(self, headers: Mapping[str, str], receive: Receive) -> bytes:
        limit = self._max_request_bytes
        if int(headers.get("content-length") or 0) > limit:
            raise errors.PayloadTooLargeError(limit)
        parts: list[bytes] = []
        size, more = 0, True
        try:
            async with asyncio.timeout(self._read_timeout_seconds):
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise UnavailableError("the sender closed the connection")
                    parts.append(message.get("body", b""))
                    size += len(parts[-1])
                    more = message.get("more_body", False)
                    if size > limit:
                        raise errors.PayloadTooLargeError(limit)
        except TimeoutError as error:
            raise errors.SlowRequestError(self._read_timeout_seconds) from error
        return b"".join(parts)

    async def _decompress(self, encoding: str, body: bytes) -> bytes:
        limit = self._max_request_bytes
        if len(body) <= _ON_LOOP_BYTES:
            with suppress(errors.PayloadTooLargeError):
                return decompress(encoding, body, min(limit, _ON_LOOP_BYTES))
        return await self._off_loop(decompress, encoding, body, limit)

    async def _to_protobuf(self, signal: Signal, body: bytes) -> bytes:
        if len(body) <= _ON_LOOP_JSON_BYTES:
            return to_protobuf(signal, body)
        return await self._off_loop(to_protobuf, signal, body)

    async def _off_loop(self, decode: Callable[..., bytes], *arguments: object) -> bytes:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._decoders, decode, *arguments)


def _route(path: str, method: str, headers: Mapping[str, str]) -> tuple[Signal, MediaType]:
    if path == _PROFILES:
        raise errors.UnknownPathError(errors.NO_PROFILES)
    signal = _PATHS.get(path)
    if signal is None:
        known = ", ".join(_PATHS)
        raise errors.UnknownPathError(f"{path[:128]} is not an OTLP path; known are {known}")
    if method != "POST":
        raise errors.MethodNotAllowedError(f"{method} is not supported here; use POST")
    media_type = _media_type(headers)
    if media_type is None:
        given, known = headers.get("content-type", "")[:128], " or ".join(MediaType)
        raise errors.UnsupportedMediaTypeError(
            f"content type {given!r} is not supported; use {known}"
        )
    return signal, media_type


def _media_type(headers: Mapping[str, str]) -> MediaType | None:
    named = headers.get("content-type", "").partition(";")[0].strip().lower()
    return next((media_type for media_type in MediaType if media_type == named), None)


async def _respond_error(
    send: Send, extra: Headers, media_type: MediaType | None, error: MeteringError
) -> None:
    headers = list(extra)
    seconds = retry_after_of(error)
    if seconds is not None:
        headers.append((b"retry-after", str(seconds).encode()))
    if isinstance(error, errors.MethodNotAllowedError):
        headers.append((b"allow", b"POST"))
    if isinstance(error, errors.SlowRequestError):
        headers.append((b"connection", b"close"))
    chosen = media_type or MediaType.JSON
    await _respond(send, status_of(error).http, headers, chosen, encode_error(error, chosen))


async def _respond(
    send: Send,
    status: int,
    extra: Headers,
    media_type: MediaType | None = None,
    body: bytes = b"",
) -> None:
    headers = list(extra)
    if media_type is not None:
        headers.append((b"content-type", media_type.encode()))
        headers.append((b"content-length", str(len(body)).encode()))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
