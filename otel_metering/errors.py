"""The error tree. The type tells who is at fault, and so what a caller does.

MeteringError
├── InvalidUsageError        the sender: reject, do not retry
├── ConfigurationError       the operator: refuse to start
│   └── DefinitionError      a field of a definition; knows its path in the document
└── UnavailableError         us: retry later
    └── SpoolFullError       us: nothing may be accepted until the spool drained
"""


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


class UnavailableError(MeteringError):
    """Not now: nothing was stored, and the same request may be sent again."""


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
