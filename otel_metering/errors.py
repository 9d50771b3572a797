"""The error tree. The type tells who is at fault, and so what a caller does.

MeteringError
├── InvalidUsageError        the sender: reject, do not retry
├── ConfigurationError       the operator: refuse to start
│   ├── DefinitionError      a field of a definition; knows its path in the document
│   └── SpoolInUseError      a file of which another process is the owner
├── ApiError                 the query API says no; knows the status and the request
├── QuotaExceededError       a quota denies what was to be reserved
└── UnavailableError         us: retry later
    ├── SpoolFullError       us: nothing may be accepted until the spool drained
    └── NoAnswerError        the query API gave no answer, however often it was asked
"""

from datetime import datetime
from decimal import Decimal


class MeteringError(Exception):
    """Base of every error that otel-metering raises on purpose."""


class InvalidUsageError(MeteringError):
    """Usage that can never be counted as it is; sending it again does not help."""


class ConfigurationError(MeteringError):
    """A setting, a file or an argument is wrong; the message names it and the remedy."""


class DefinitionError(ConfigurationError):
    """A field of a document of definitions, such as `meters.yaml`, is wrong.

    Attributes:
        path: Keys and positions that lead to the field, e.g. ("meters", 3, "source", "kind").
    """

    def __init__(self, path: tuple[str | int, ...], message: str) -> None:
        super().__init__(message)
        self.path = path


class SpoolInUseError(ConfigurationError):
    """A spool belongs to another running process."""


class ApiError(MeteringError):
    """The query API says no, or something else answers in its place.

    Attributes:
        status: Of HTTP.
        title: What kind of error it is.
        detail: The fact, the limit, and the remedy.
        request_id: What the service calls this request in its log; empty: it did not say.
    """

    def __init__(self, *, status: int, title: str, detail: str, request_id: str = "") -> None:
        super().__init__(f"{detail} (HTTP {status})")
        self.status = status
        self.title = title
        self.detail = detail
        self.request_id = request_id


class QuotaExceededError(MeteringError):
    """A quota denies what was to be reserved; nothing is held.

    Attributes:
        reason: Why, as the service names it, for example `limit_exceeded`.
        remaining: What the quota still allows; None: it did not say.
        resets_at: When the quota begins anew; None: never, or it did not say.
    """

    def __init__(
        self, message: str, *, reason: str, remaining: Decimal | None, resets_at: datetime | None
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.remaining = remaining
        self.resets_at = resets_at


class UnavailableError(MeteringError):
    """Not now: nothing was stored, unless a subclass says so; the same request may be sent again."""


class SpoolFullError(UnavailableError):
    """The spool holds as many bytes as it may.

    Attributes:
        used_bytes: Bytes waiting in the spool.
        limit_bytes: The bound that was reached.
    """

    def __init__(self, used_bytes: int, limit_bytes: int) -> None:
        super().__init__(
            f"the spool holds {used_bytes} bytes and may hold {limit_bytes}; "
            "it drains as soon as its destination answers, or raise the bound"
        )
        self.used_bytes = used_bytes
        self.limit_bytes = limit_bytes


class NoAnswerError(UnavailableError):
    """The query API gave no answer, or "not now", however often it was asked.

    Whether it did what the last request asked for is not known.

    Attributes:
        attempts: How often it was asked.
        status: Of its last answer; None: there was none.
        request_id: As in `ApiError`.
    """

    def __init__(
        self, message: str, *, attempts: int, status: int | None = None, request_id: str = ""
    ) -> None:
        super().__init__(message)
        self.attempts = attempts
        self.status = status
        self.request_id = request_id
