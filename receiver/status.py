"""The one table from error to answer, for gRPC and HTTP.

An OTLP client drops its data on any status that is not retryable (OTLP specification, "Failures"). So
whatever is not listed here is UNAVAILABLE / 503: the sender keeps its data and tries again.
"""

import math
from dataclasses import dataclass
from typing import Final

from otel_metering.errors import InvalidUsageError
from receiver import errors


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """How one kind of error is answered.

    Attributes:
        code: Name of the google.rpc.Code, which is also gRPC's.
        number: Its number.
        http: HTTP status.
        is_retryable: Whether the same request may succeed later.
    """

    code: str
    number: int
    http: int
    is_retryable: bool = False


UNAVAILABLE: Final = Status(code="UNAVAILABLE", number=14, http=503, is_retryable=True)

RETRY_AFTER_SECONDS: Final = 1
"""Small: an OpenTelemetry SDK gives up at once when the advice exceeds its ten seconds in all."""

_TABLE: Final[dict[type[BaseException], Status]] = {
    InvalidUsageError: Status(code="INVALID_ARGUMENT", number=3, http=400),
    errors.MalformedPayloadError: Status(code="INVALID_ARGUMENT", number=3, http=400),
    errors.PayloadTooLargeError: Status(code="RESOURCE_EXHAUSTED", number=8, http=413),
    errors.RateLimitedError: Status(
        code="RESOURCE_EXHAUSTED", number=8, http=429, is_retryable=True
    ),
    errors.UnauthenticatedError: Status(code="UNAUTHENTICATED", number=16, http=401),
    errors.PermissionDeniedError: Status(code="PERMISSION_DENIED", number=7, http=403),
    errors.UnsupportedMediaTypeError: Status(code="INVALID_ARGUMENT", number=3, http=415),
    errors.MethodNotAllowedError: Status(code="UNIMPLEMENTED", number=12, http=405),
    errors.UnknownPathError: Status(code="UNIMPLEMENTED", number=12, http=404),
}


def status_of(error: BaseException) -> Status:
    """How `error` is answered."""
    return _TABLE.get(type(error), UNAVAILABLE)


def retry_after_of(error: BaseException) -> int | None:
    """Seconds after which the same request may succeed; None: it never will."""
    if isinstance(error, errors.RateLimitedError):
        return max(0, math.ceil(error.retry_after_seconds))
    return RETRY_AFTER_SECONDS if status_of(error).is_retryable else None
