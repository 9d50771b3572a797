"""What usage is added up by, checked; and as bytes."""

import json
from collections.abc import Hashable, Mapping
from typing import Final, NamedTuple, TypeVar

from otel_metering._dimensions import Dimensions, dimensions_of
from otel_metering._shared import shared
from otel_metering.contract.event import MAX_EVENT_ID_LENGTH, check_name
from otel_metering.errors import InvalidUsageError

_EXACT_KEY_TYPES: Final = frozenset({str, bool, int, type(None)})
"""Values that mean the same whenever they are equal and of one type. (NaN, and objects, do not.)"""

_T = TypeVar("_T", bound=Hashable)


class Series(NamedTuple):
    """What usage is added up by."""

    meter: str
    tenant: str | None
    dimensions: Dimensions


class Event(NamedTuple):
    """One piece of usage with an id of its own."""

    time_ns: int
    series: Series
    nanos: int
    event_id: str


def series_of(meter: str, tenant: str | None, attributes: Mapping[str, object] | None) -> Series:
    """What usage is added up by.

    Raises:
        InvalidUsageError: `meter` or `tenant` is not a valid name.
    """
    return Series(
        _name("meter", meter),
        checked_tenant(tenant),
        dimensions_of(attributes),
    )


def checked_tenant(tenant: object) -> str | None:
    """Return `tenant` if it can be one.

    Raises:
        InvalidUsageError: It is not a valid name.
    """
    return None if tenant is None else _name("tenant", tenant)


def describe(series: Series) -> bytes:
    """`series` as bytes."""
    return json.dumps(series, ensure_ascii=False, separators=(",", ":")).encode()


def described(data: bytes) -> Series:
    """The series that `describe` was given."""
    meter, tenant, dimensions = json.loads(data)
    return Series(meter, tenant, tuple((name, kind, value) for name, kind, value in dimensions))


def check_event_id(event_id: object) -> str:
    """Return `event_id` if it can be one.

    Raises:
        InvalidUsageError: It is not 1 to 256 characters of text that UTF-8 can express.
    """
    if isinstance(event_id, str) and 0 < len(event_id) <= MAX_EVENT_ID_LENGTH:
        text = str.__str__(event_id)
        # A lone surrogate would make the whole request impossible to build; replaced, two ids could
        # become one.
        if text == text.encode("utf-8", "replace").decode():
            return text
    raise InvalidUsageError(f"event_id must be text of 1 to {MAX_EVENT_ID_LENGTH} characters")


def _name(kind: str, text: object) -> str:
    if not isinstance(text, str):
        raise InvalidUsageError(f"{kind} is of type {type(text).__name__}; give text")
    # A plain str, not an enum's member, which would print as its name.
    return shared(check_name(kind, str.__str__(text)))


def fast_key(
    meter: str, tenant: str | None, attributes: Mapping[str, object] | None
) -> tuple[Hashable | None, tuple[type, ...] | None]:
    """The key that `record` looks under, and the types of its values; no key if it could mislead."""
    meter, tenant = _shared_text(meter), _shared_text(tenant)
    if not attributes:
        return (meter, tenant), None
    types = tuple(map(type, attributes.values()))
    if not (_EXACT_KEY_TYPES.issuperset(types) and all(type(name) is str for name in attributes)):
        return None, None
    if set(types) == {str}:
        return (meter, tenant, shared(tuple(map(shared, attributes.items())))), None
    # Not shared: True would become 1, and the types would not be those of the key any more.
    return (meter, tenant, tuple(attributes.items())), types


def _shared_text(text: _T) -> _T:
    # A subclass of str may be equal to what it does not mean.
    return shared(text) if type(text) is str else text
