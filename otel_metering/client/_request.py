"""Requests as values, and times, quantities and filters as the query API reads them."""

import json
from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Final, TypeVar

from otel_metering.client._answers import Answer
from otel_metering.errors import InvalidUsageError

T = TypeVar("T")

PREFIX: Final = "/v1/meter"

Time = datetime | date | str
"""An aware datetime, a date (its begin, in the time zone of the request), or RFC 3339."""

Number = int | float | Decimal
"""A float means the number it prints as: 0.1 is one tenth."""

Parameters = Sequence[tuple[str, str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One request.

    Attributes:
        path: Behind the URL of the service, quoted.
        body: JSON; None: no body.
        is_repeatable: Whether sending it twice does what sending it once does.
    """

    method: str
    path: str
    parameters: Parameters = ()
    body: bytes | None = None
    is_repeatable: bool = True


Operation = Generator[Request, Answer, T]
"""Yields requests, is sent their answers, and returns a result."""


@dataclass(frozen=True, slots=True)
class Prefix:
    """A filter: texts that begin with `text`."""

    text: str


@dataclass(frozen=True, slots=True)
class Not:
    """A filter: any text but `text`. Several: none of them."""

    text: str


Match = str | Prefix | Not
"""A filter: this very text, or what `Prefix` and `Not` say."""

Filters = Mapping[str, Match | Iterable[Match]]
"""Name -> what it may be. Several texts: any of them. All names have to fit."""


def get(path: str, parameters: Parameters = ()) -> Request:
    """A request that only reads."""
    return Request(method="GET", path=PREFIX + path, parameters=parameters)


def send(
    method: str, path: str, body: object = None, *, is_repeatable: bool, parameters: Parameters = ()
) -> Request:
    """A request that changes something."""
    return Request(
        method=method,
        path=PREFIX + path,
        parameters=parameters,
        body=None if body is None else _dumps(body),
        is_repeatable=is_repeatable,
    )


def given(**parameters: str | int | None) -> list[tuple[str, str]]:
    """Those that are not None. `from_` is called `from`, which is a word of Python."""
    return [
        (name.rstrip("_"), str(value)) for name, value in parameters.items() if value is not None
    ]


def present(**fields: object) -> dict[str, object]:
    """The fields of a body that are not None."""
    return {name: value for name, value in fields.items() if value is not None}


def moment(value: Time | None) -> str | None:
    """RFC 3339, or a date; text is left to the service to check.

    Raises:
        InvalidUsageError: A datetime has no zone.
    """
    if not isinstance(value, datetime):
        return value.isoformat() if isinstance(value, date) else value
    if value.utcoffset() is None:
        raise InvalidUsageError(
            f"the time {value.isoformat()} has no zone; write datetime(..., tzinfo=UTC)"
        )
    return value.astimezone(UTC).isoformat().replace("+00:00", "Z")


def decimal_text(value: Number) -> str:
    """The exact number, without an exponent.

    Raises:
        InvalidUsageError: It is no finite number.
    """
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal):
        raise InvalidUsageError(
            f"a quantity is of type {type(value).__name__}; give an int, a Decimal or a float"
        )
    # Not repr(value): subclasses such as numpy.float64 print more than the number.
    number = Decimal(float.__repr__(value)) if isinstance(value, float) else Decimal(value)
    if not number.is_finite():
        raise InvalidUsageError(f"quantity {number} is not a finite number; give a number")
    return format(number, "f")


def filtered(kind: str, filters: Filters | None) -> list[tuple[str, str]]:
    """Filters as parameters: `kind[name]`, `kind[name][prefix]`, `kind[name][not]`."""
    found: list[tuple[str, str]] = []
    for name, matches in (filters or {}).items():
        some = [matches] if isinstance(matches, str | Prefix | Not) else matches
        found += [_filter(f"{kind}[{name}]", match) for match in some]
    return found


def _filter(name: str, match: Match) -> tuple[str, str]:
    match match:
        case Prefix(text):
            return f"{name}[prefix]", text
        case Not(text):
            return f"{name}[not]", text
        case str():
            return name, match


def _dumps(body: object) -> bytes:
    try:
        return json.dumps(body, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, TypeError) as error:
        raise InvalidUsageError(f"the request cannot be written as JSON: {error}") from error
