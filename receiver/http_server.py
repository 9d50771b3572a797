"""OTLP/HTTP with protobuf: an ASGI application, and what serves it.

In order (OTLP specification, "OTLP/HTTP"): path, method, content type, key, size, decompression. The body
of every error is a google.rpc.Status in the encoding of the request, JSON where that is unknown.
"""

import asyncio
import json
import logging
import zlib
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final

from google.rpc.status_pb2 import Status as RpcStatus

from otel_metering.contract.meter import Signal
from otel_metering.errors import MeteringError, UnavailableError
from receiver import errors
from receiver.auth import authenticate
from receiver.ingest import Ingest, Work
from receiver.responses import encode_response
from receiver.status import RETRY_AFTER_SECONDS, status_of
from receiver.store.keys import ApiKeys
from receiver.telemetry import Telemetry

PROTOBUF: Final = "application/x-protobuf"

_PATHS: Final = {
    "/v1/metrics": Signal.METRIC,
    "/v1/traces": Signal.SPAN,
    "/v1/logs": Signal.LOG,
}

_OFF_LOOP_BYTES: Final = 256 * 1024
"""Compressed bodies from here on are decompressed in a thread: others wait less than a millisecond."""

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
        telemetry: Telemetry | None = None,
    ) -> None:
        self._ingest = ingest
        self._keys = keys
        self._max_request_bytes = max_request_bytes
        self._telemetry = telemetry or Telemetry()

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            return
        headers = {
            name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]
        }
        request = self._telemetry.request("http", _PATHS.get(scope["path"]))
        try:
            answer = await self._answer(scope["path"], scope["method"], headers, receive)
            request.acknowledge()
            await _respond(send, 200, PROTOBUF, answer)
        except MeteringError as error:
            request.refuse(error)
            await _respond_error(send, headers, error)
        except Exception as error:  # noqa: BLE001 - 500 would destroy the sender's data
            request.refuse(error)
            _log.error("A request failed", exc_info=error, extra={"event": "http_failed"})
            await _respond_error(send, headers, UnavailableError("the receiver failed"))
        finally:
            request.end()

    async def _answer(
        self, path: str, method: str, headers: MutableMapping[str, str], receive: Receive
    ) -> bytes:
        signal = _PATHS.get(path)
        if signal is None:
            known = ", ".join(_PATHS)
            raise errors.UnknownPathError(f"{path[:128]} is not an OTLP path; known are {known}")
        if method != "POST":
            raise errors.MethodNotAllowedError(f"{method} is not supported here; use POST")
        if _media_type(headers) != PROTOBUF:
            raise errors.UnsupportedMediaTypeError(
                f"content type {headers.get('content-type', '')[:128]!r} is not supported; use {PROTOBUF}"
            )
        sender = authenticate(headers, self._keys)
        body = await self._body(headers, receive)
        outcome = await self._ingest.request(Work(sender=sender, signal=signal, body=body))
        return encode_response(outcome)

    async def _body(self, headers: MutableMapping[str, str], receive: Receive) -> bytes:
        limit = self._max_request_bytes
        if int(headers.get("content-length") or 0) > limit:
            raise errors.PayloadTooLargeError(limit)
        parts: list[bytes] = []
        size, more = 0, True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise UnavailableError("the sender closed the connection")
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            more = message.get("more_body", False)
            if size > limit:
                raise errors.PayloadTooLargeError(limit)
        body = b"".join(parts)
        encoding = headers.get("content-encoding", "identity").strip().lower()
        if encoding == "identity":
            return body
        if encoding != "gzip":
            raise errors.MalformedPayloadError(
                f"content encoding {encoding[:64]!r} is not supported; use gzip or none"
            )
        if len(body) < _OFF_LOOP_BYTES:
            return gunzip(body, limit)
        return await asyncio.to_thread(gunzip, body, limit)


def gunzip(body: bytes, max_bytes: int) -> bytes:
    """Decompress gzip, of one or several members, to at most `max_bytes`.

    Raises:
        MalformedPayloadError: It is not gzip, or cut off.
        PayloadTooLargeError: It would be larger; memory for it was never taken.
    """
    parts: list[bytes] = []
    size, rest = 0, body
    while rest:
        member = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)
        try:
            parts.append(member.decompress(rest, max_bytes - size + 1))
        except zlib.error as error:
            raise errors.MalformedPayloadError(f"the body is not gzip: {error}") from error
        size += len(parts[-1])
        if size > max_bytes:
            raise errors.PayloadTooLargeError(max_bytes)
        if not member.eof:
            break
        rest = member.unused_data
    else:
        if parts:
            return b"".join(parts)
    raise errors.MalformedPayloadError("the gzip body is cut off")


def _media_type(headers: MutableMapping[str, str]) -> str:
    return headers.get("content-type", "").partition(";")[0].strip().lower()


async def _respond_error(
    send: Send, headers: MutableMapping[str, str], error: MeteringError
) -> None:
    status, message = status_of(error), str(error)
    if _media_type(headers) == PROTOBUF:
        media_type = PROTOBUF
        body = RpcStatus(code=status.number, message=message).SerializeToString()
    else:
        media_type = "application/json"
        body = json.dumps({"code": status.number, "message": message}).encode()
    extra = [(b"retry-after", str(RETRY_AFTER_SECONDS).encode())] if status.is_retryable else []
    if isinstance(error, errors.MethodNotAllowedError):
        extra.append((b"allow", b"POST"))
    await _respond(send, status.http, media_type, body, extra)


async def _respond(
    send: Send,
    status: int,
    media_type: str,
    body: bytes,
    extra: list[tuple[bytes, bytes]] | None = None,
) -> None:
    headers = [
        (b"content-type", media_type.encode()),
        (b"content-length", str(len(body)).encode()),
        *(extra or []),
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
