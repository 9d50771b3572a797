"""Errors as RFC 9457 problems: one table from error to status, read by nothing else.

MeteringError
├── UnauthenticatedError   no key, or one that is known to be bad
├── ForbiddenError         the key does not reach that far
├── NotFoundError          there is no such thing, or not for this key
├── RateLimitedError       the key sends too many requests now
├── TooLargeError          the request, or its answer, is beyond a limit
├── ConflictError          it contradicts what is there already
├── UnsupportedMediaTypeError  a format that is not read here
├── LostError              another process had the request, and did not answer
├── InvalidUsageError      the request can never succeed as it is
└── UnavailableError       us: send it again

Anything else is our fault: 500, logged, without a word about the inside.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from http import HTTPStatus
from typing import Final

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from otel_metering.errors import InvalidUsageError, MeteringError, UnavailableError
from query_api.access_log import current_request_id
from query_api.key_requests import note_refused
from receiver.store.keys import KeyStateError, Refused

MEDIA_TYPE: Final = "application/problem+json"

_log = logging.getLogger(__name__)


class UnauthenticatedError(MeteringError):
    """Nobody is known by this key."""


class ForbiddenError(MeteringError):
    """The key is good, and does not allow this.

    Attributes:
        reason: What it lacks.
    """

    def __init__(self, message: str, reason: Refused = Refused.SCOPE) -> None:
        super().__init__(message)
        self.reason = reason


class NotFoundError(MeteringError):
    """It does not exist, or the key may not know that it does."""


class TooLargeError(MeteringError):
    """A limit was passed; the message names it."""


class UnsupportedMediaTypeError(MeteringError):
    """The body is in a format that is not read here."""


class ConflictError(MeteringError):
    """What is there already does not allow it."""


class LostError(MeteringError):
    """The request was handed on, and there is no answer: whether it was done is unknown."""


class RateLimitedError(MeteringError):
    """The key sends more requests than it may.

    Attributes:
        retry_after_seconds: When the same request is welcome.
    """

    def __init__(self, message: str, *, retry_after_seconds: int) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


@dataclass(frozen=True, slots=True)
class _Kind:
    status: int
    name: str
    title: str
    headers: Mapping[str, str] | None = None


_CONFLICT: Final = _Kind(409, "conflict", "It contradicts what is there")
_KINDS: Final[Mapping[type[MeteringError], _Kind]] = {
    InvalidUsageError: _Kind(400, "invalid-request", "The request cannot be understood"),
    UnauthenticatedError: _Kind(
        401, "unauthenticated", "No valid API key", {"WWW-Authenticate": "Bearer"}
    ),
    ForbiddenError: _Kind(403, "forbidden", "The API key does not allow this"),
    NotFoundError: _Kind(404, "not-found", "There is no such thing"),
    ConflictError: _CONFLICT,
    KeyStateError: _CONFLICT,
    TooLargeError: _Kind(413, "too-large", "A limit was passed"),
    RateLimitedError: _Kind(429, "rate-limited", "Too many requests of this API key"),
    UnsupportedMediaTypeError: _Kind(415, "unsupported-media-type", "This format is not read here"),
    UnavailableError: _Kind(
        503, "unavailable", "Send the same request again", {"Retry-After": "1"}
    ),
    LostError: _Kind(502, "lost", "Whether it was done is unknown"),
    # Starlette raises the error again for the server to log, which then drops the connection.
    MeteringError: _Kind(500, "internal", "We failed", {"Connection": "close"}),
}
"""The status table. An error is what its nearest class in here says."""


def install(app: FastAPI) -> None:
    """Answer every error of `app` with a problem."""
    app.add_exception_handler(MeteringError, _on_metering_error)
    app.add_exception_handler(RequestValidationError, _on_validation_error)
    app.add_exception_handler(HTTPException, _on_http_error)
    app.add_exception_handler(Exception, _on_unexpected_error)


def documented(*kinds: type[MeteringError]) -> dict[int | str, dict[str, object]]:
    """OpenAPI: the problems of a route: those of every route, and `kinds`."""
    always = (
        InvalidUsageError,
        UnauthenticatedError,
        ForbiddenError,
        RateLimitedError,
        UnavailableError,
    )
    shown: list[type[MeteringError]] = [*always, *kinds]
    return {
        _KINDS[kind].status: {
            "description": _KINDS[kind].title,
            "content": {
                MEDIA_TYPE: {
                    "schema": {"$ref": "#/components/schemas/Problem"},
                    "example": _body(_KINDS[kind], "a fact, the limit, and the remedy", "0f3c"),
                }
            },
        }
        for kind in shown
    }


async def _on_metering_error(request: Request, error: Exception) -> JSONResponse:
    kind = next(_KINDS[base] for base in type(error).__mro__ if base in _KINDS)
    if kind.status == HTTPStatus.INTERNAL_SERVER_ERROR:
        return await _on_unexpected_error(request, error)
    if isinstance(error, ForbiddenError):
        note_refused(request, error.reason)
    if isinstance(error, RateLimitedError):
        kind = replace(kind, headers={"Retry-After": str(error.retry_after_seconds)})
    return _answer(kind, str(error))


async def _on_validation_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)  # noqa: S101 - registered for it
    faults = [
        f"{'.'.join(str(part) for part in fault['loc'][1:]) or fault['loc'][0]}: {fault['msg']}"
        for fault in error.errors()
    ]
    return _answer(_KINDS[InvalidUsageError], "; ".join(faults))


async def _on_http_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)  # noqa: S101 - registered for it
    title = HTTPStatus(error.status_code).phrase
    other = _Kind(error.status_code, title.lower().replace(" ", "-"), title, error.headers)
    kind = next((kind for kind in _KINDS.values() if kind.status == error.status_code), other)
    return _answer(kind, f"{request.method} {request.url.path}: {error.detail}; see /docs")


async def _on_unexpected_error(request: Request, error: Exception) -> JSONResponse:
    extra = {"event": "api_request_failed", "request_id": current_request_id()}
    _log.error("request failed", exc_info=error, extra=extra)
    return _answer(
        _KINDS[MeteringError], "the request failed here; the log of the service says why"
    )


def _answer(kind: _Kind, detail: str) -> JSONResponse:
    return JSONResponse(
        _body(kind, detail, current_request_id()),
        status_code=kind.status,
        media_type=MEDIA_TYPE,
        headers=dict(kind.headers or {}),
    )


def _body(kind: _Kind, detail: str, request_id: str) -> dict[str, object]:
    return {
        "type": f"urn:otel-metering:problem:{kind.name}",
        "title": kind.title,
        "status": kind.status,
        "detail": detail,
        "request_id": request_id,
    }
