"""What a sender did wrong, by what it may do next. Everything else is `UnavailableError`.

MeteringError
├── InvalidUsageError
│   └── MalformedPayloadError     the bytes are not OTLP: the request is refused as a whole
└── RequestError                  the request is refused before its bytes were looked at
    ├── PayloadTooLargeError
    ├── UnauthenticatedError
    ├── PermissionDeniedError
    ├── UnsupportedMediaTypeError
    ├── MethodNotAllowedError
    └── UnknownPathError
"""

from otel_metering.errors import InvalidUsageError, MeteringError


class MalformedPayloadError(InvalidUsageError):
    """The bytes are not what they claim to be: not protobuf, not gzip, cut off."""


class RequestError(MeteringError):
    """The request is refused as a whole; sending it again as it is does not help."""


class PayloadTooLargeError(RequestError):
    """The body is larger than the limit, before or after decompression."""

    def __init__(self, limit_bytes: int) -> None:
        super().__init__(
            f"the request is larger than {limit_bytes} bytes; send fewer points in one request, "
            "or raise METERING_MAX_REQUEST_BYTES"
        )


class UnauthenticatedError(RequestError):
    """There is no API key, or nobody has the one that was sent."""


class PermissionDeniedError(RequestError):
    """The API key is good, but not for this."""


class UnsupportedMediaTypeError(RequestError):
    """The content type is not one that is spoken here."""


class MethodNotAllowedError(RequestError):
    """OTLP is sent by POST."""


class UnknownPathError(RequestError):
    """No OTLP signal has this path."""
