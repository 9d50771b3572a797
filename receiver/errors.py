"""What a sender did wrong, by what it may do next. Everything else is `UnavailableError`.

MeteringError
├── InvalidUsageError
│   └── MalformedPayloadError     the bytes are not OTLP: the request is refused as a whole
├── UnavailableError
│   └── SlowRequestError          the bytes did not come in time
└── RequestError                  the request is refused before its bytes were looked at
    ├── PayloadTooLargeError
    ├── RateLimitedError          the one that may be sent again, in a while
    ├── UnauthenticatedError
    ├── PermissionDeniedError
    ├── UnsupportedMediaTypeError
    ├── MethodNotAllowedError
    └── UnknownPathError
"""

from otel_metering.errors import InvalidUsageError, MeteringError, UnavailableError


class MalformedPayloadError(InvalidUsageError):
    """The bytes are not what they claim to be: not protobuf, not gzip, cut off.

    Attributes:
        field: Path of what is wrong, in JSON; empty: the body as a whole.
    """

    def __init__(self, message: str, *, field: str = "") -> None:
        super().__init__(message)
        self.field = field


class RequestError(MeteringError):
    """The request is refused as a whole; unless it says when, sending it again as it is does not help."""


class PayloadTooLargeError(RequestError):
    """The body is larger than the limit, before or after decompression."""

    def __init__(self, limit_bytes: int) -> None:
        super().__init__(
            f"the request is larger than {limit_bytes} bytes; send fewer points in one request, "
            "or raise METERING_MAX_REQUEST_BYTES"
        )


class RateLimitedError(RequestError):
    """The sender has sent more than it may; the same request is welcome a little later.

    Attributes:
        retry_after_seconds: When. Keep it below ten: an OpenTelemetry SDK gives up at once beyond that.
    """

    def __init__(self, message: str, *, retry_after_seconds: float) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


class UnauthenticatedError(RequestError):
    """There is no API key, or nobody has the one that was sent."""


class PermissionDeniedError(RequestError):
    """The API key is good, but not for this."""


class UnsupportedMediaTypeError(RequestError):
    """The content type is not one that is spoken here."""


class MethodNotAllowedError(RequestError):
    """OTLP is sent by POST."""


NO_PROFILES = "profiles hold no usage and are not taken; send metrics, traces or logs"
"""What is answered to OTLP's fourth signal, over gRPC and HTTP."""


class UnknownPathError(RequestError):
    """No OTLP signal has this path."""


class SlowRequestError(UnavailableError):
    """The body did not arrive in time. 503: a client would give up for good on 408."""

    def __init__(self, seconds: float) -> None:
        super().__init__(f"the body did not arrive within {seconds:g} s; send it again")
