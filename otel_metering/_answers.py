"""What a receiver's answer means for a request: it is delivered, refused, or to be sent again.

A refusal ends a request, and usage with it until somebody looks. So only what says that the request
itself is wrong is one; whatever can heal (a key, a route, a proxy, a receiver's version) waits.
"""

from dataclasses import dataclass
from typing import Final, Protocol

from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceResponse,
)

_MAX_WAIT_SECONDS: Final = 300.0
"""Whatever the receiver asks for, its data is offered again within five minutes."""

GZIP_LEVEL: Final = 3
"""Points of one request are alike: higher levels cost more time than they save bytes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivered:
    """The receiver has it; `rejected_points` of it it will never count."""

    rejected_points: int
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """The receiver will never take it."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class NotNow:
    """To be sent again, unchanged; `after_seconds` at the earliest."""

    reason: str
    after_seconds: float = 0.0


Answer = Delivered | Refused | NotNow


class Destination(Protocol):
    """The receiver: one connection, kept open. One thread; `abort` from any.

    It belongs to the process that made it: a forked child makes its own.
    """

    def send(self, signal: str, payload: bytes) -> Answer:
        """Send one request of `signal`, "metrics" or "logs", and wait for its answer."""
        ...

    def abort(self) -> None:
        """Make a `send` of another thread return soon."""
        ...

    def close(self) -> None:
        """Close the connection; the next `send` opens a new one."""
        ...


def read_response(content: bytes, source: str) -> Answer:
    """What the body of a success says; `source` (such as "HTTP 200") is for the reason if it is none.

    OTLP specification, "Partial Success": what was rejected must not be sent again.
    """
    response = ExportMetricsServiceResponse()
    try:
        # The answer to logs has the same fields by number.
        response.ParseFromString(content)
    except DecodeError:
        # Whatever this is, a login page or the wrong port, no receiver said that it has the usage.
        return NotNow(reason=f"{source}, but not an OTLP answer: {readable(content)}")
    partial = response.partial_success
    return Delivered(rejected_points=partial.rejected_data_points, message=partial.error_message)


def readable(content: bytes) -> str:
    """What people can read of an answer; a Status message in protobuf has its text in it."""
    text = content[:200].decode("utf-8", "replace")
    return "".join(char for char in text if char.isprintable() and char != "\ufffd")


def within_reason(seconds: float) -> float:
    """A pause that the receiver asks for, as long as it is honoured."""
    # min and max in this order: NaN becomes 0.
    return max(0.0, min(seconds, _MAX_WAIT_SECONDS))
