"""Errors as ClickHouse tells them: a number, a name, and the status that it has over HTTP."""

from typing import Final

from otel_metering.errors import MeteringError

NAMES: Final = {
    36: "BAD_ARGUMENTS",
    48: "NOT_IMPLEMENTED",
    60: "UNKNOWN_TABLE",
    62: "SYNTAX_ERROR",
    73: "UNKNOWN_FORMAT",
    81: "UNKNOWN_DATABASE",
    89: "UNKNOWN_COMPRESSION_METHOD",
    164: "READONLY",
    194: "REQUIRED_PASSWORD",
    201: "QUOTA_EXCEEDED",
    202: "TOO_MANY_SIMULTANEOUS_QUERIES",
    210: "NETWORK_ERROR",
    271: "CANNOT_DECOMPRESS",
    307: "TOO_MANY_BYTES",
    497: "ACCESS_DENIED",
    516: "AUTHENTICATION_FAILED",
}

BAD_ARGUMENTS: Final = 36
NOT_IMPLEMENTED: Final = 48
UNKNOWN_TABLE: Final = 60
SYNTAX_ERROR: Final = 62
UNKNOWN_FORMAT: Final = 73
UNKNOWN_DATABASE: Final = 81
UNKNOWN_COMPRESSION_METHOD: Final = 89
READONLY: Final = 164
REQUIRED_PASSWORD: Final = 194
QUOTA_EXCEEDED: Final = 201
TOO_MANY_SIMULTANEOUS_QUERIES: Final = 202
NETWORK_ERROR: Final = 210
CANNOT_DECOMPRESS: Final = 271
QUERY_IS_TOO_LARGE: Final = 307
ACCESS_DENIED: Final = 497
AUTHENTICATION_FAILED: Final = 516

# ClickHouse, src/Server/HTTP/exceptionCodeToHTTPStatus.cpp. A rate and a full queue have statuses that clients
# take for "later" (ClickHouse says 500).
_STATUSES: Final = {
    401: frozenset({194}),
    403: frozenset({192, 193, 497, 511, 516}),
    400: frozenset(
        {6, 10, 15, 25, 26, 27, 36, 38, 41, 44, 53, 62, 69, 72, 117, 157, 167, 168, 190, 321, 376}
        | {427, 441, 675, 676}
    ),
    404: frozenset({23, 46, 47, 50, 56, 60, 63, 73, 78, 81, 115, 184, 336}),
    413: frozenset({307}),
    501: frozenset({48}),
    503: frozenset({76, 202, 209, 210, 439}),
    429: frozenset({201}),
    411: frozenset({381}),
    408: frozenset({159}),
    415: frozenset({89}),
}


class ClickHouseError(MeteringError):
    """A statement is refused or has failed.

    Attributes:
        code: ClickHouse's number of the error.
        retry_after_seconds: When it may be sent again; None: nobody knows.
    """

    def __init__(self, code: int, message: str, *, retry_after_seconds: int | None = None) -> None:
        ending = f" ({NAMES[code]})" if code in NAMES else ""
        super().__init__(message if message.endswith(ending) else message + ending)
        self.code = code
        self.retry_after_seconds = retry_after_seconds


class NotReadableError(ClickHouseError):
    """A reader asks for a table that it cannot read.

    Attributes:
        table: Its qualified name.
    """

    def __init__(self, table: str) -> None:
        super().__init__(ACCESS_DENIED, f"Not enough privileges: there is no grant to read {table}")
        self.table = table


def status_of(code: int) -> int:
    """The HTTP status of an error."""
    return next((status for status, codes in _STATUSES.items() if code in codes), 500)


def text_of(code: int, message: str, version: str) -> str:
    """The body of the answer, in ClickHouse's words."""
    return f"Code: {code}. DB::Exception: {message} (version {version})\n"
