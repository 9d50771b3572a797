"""JSON becomes usage events: exact numbers, and one bad event never costs its neighbours.

Written by hand, because a list may have 10,000 events: no float is ever made of a number, and what an
event may not have is said in one sentence.
"""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Final, TypeVar

from otel_metering.contract import attributes as wire
from otel_metering.contract.event import (
    MAX_EVENT_ID_LENGTH,
    UsageEvent,
    check_name,
    check_quantity,
)
from otel_metering.errors import InvalidUsageError
from query_api.periods import parse_instant
from query_api.problems import TooLargeError
from query_api.schemas import decimal_text

_Item = TypeVar("_Item")

MAX_EVENTS: Final = 10_000
"""Events of one request."""

MAX_NUMBER_LENGTH: Final = 64
"""Characters of a quantity: 19 digits, a point and nine decimals need 30."""

MAX_REASON_LENGTH: Final = 400
"""Characters of a reason: it may quote the event."""

_FIELDS: Final = frozenset(
    {"event_id", "tenant_id", "meter", "quantity", "timestamp", "attributes"}
)
_NUMBER: Final = re.compile(r"-?\d+(?:\.\d+)?(?:[eE][+-]?\d{1,3})?", re.ASCII)
_FIELD_OF: Final = {
    wire.TENANT_ID: "the field tenant_id",
    wire.EVENT_ID: "the field event_id",
    wire.QUANTITY: "the field quantity",
    wire.QUANTITY_SCALE: "decimals in the field quantity",
}
"""Attributes that would say a second time what a field says."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Intake:
    """What a request body holds.

    Attributes:
        events: The valid ones, in order.
        positions: Where each of `events` stood in the body.
        rejected: (index in the body, reason) of all others, by index.
    """

    events: Sequence[UsageEvent]
    positions: Sequence[int]
    rejected: Sequence[tuple[int, str]]


def parse_events(body: bytes, bound_tenant_id: str | None) -> Intake:
    """Read one event, or a list of them.

    Args:
        body: JSON.
        bound_tenant_id: The only tenant that the sender may write; None: each event names its own.

    Raises:
        InvalidUsageError: The body is no JSON, or neither an object nor a list.
        TooLargeError: The list is too long.
    """
    return gather(as_events(load_json(body)), lambda item: _event(item, bound_tenant_id))


def gather(items: Sequence[_Item], read: Callable[[_Item], UsageEvent]) -> Intake:
    """Read each item; one that `read` refuses (InvalidUsageError) is rejected alone."""
    events: list[UsageEvent] = []
    positions: list[int] = []
    rejected: list[tuple[int, str]] = []
    for i, item in enumerate(items):
        try:
            events.append(read(item))
            positions.append(i)
        except InvalidUsageError as error:
            rejected.append((i, str(error)[:MAX_REASON_LENGTH]))
    return Intake(events=events, positions=positions, rejected=rejected)


def as_events(document: object) -> Sequence[object]:
    """The events of a document that is one, or a list of them.

    Raises:
        InvalidUsageError: It is neither an object nor a list.
        TooLargeError: The list is too long.
    """
    if isinstance(document, dict):
        return [document]
    if not isinstance(document, list):
        raise InvalidUsageError("the body is neither an object nor a list; send one event, or many")
    if len(document) > MAX_EVENTS:
        raise TooLargeError(
            f"the list has {len(document)} events; the limit is {MAX_EVENTS}; send several requests"
        )
    return document


def load_json(body: bytes) -> object:
    """A JSON document without floats: numbers are Decimal, or text if they are too long.

    Raises:
        InvalidUsageError: It is none.
    """
    try:
        return json.loads(body, parse_float=_number, parse_int=_number, parse_constant=_no_constant)
    except RecursionError:
        raise InvalidUsageError("the body is nested too deeply; send events") from None
    except ValueError as error:
        raise InvalidUsageError(f"the body is not JSON: {error}; send events") from None


def _number(text: str) -> Decimal | str:
    # A number that no quantity can be stays text, so that only its own event is rejected.
    return Decimal(text) if _is_number(text) else text


def _no_constant(text: str) -> None:
    raise ValueError(f"{text} is no JSON number")


def _event(item: object, bound_tenant_id: str | None) -> UsageEvent:
    if not isinstance(item, dict):
        raise InvalidUsageError("the event is not an object; send {tenant_id, meter, quantity, …}")
    if not item.keys() <= _FIELDS:
        unknown = ", ".join(sorted(item.keys() - _FIELDS))
        raise InvalidUsageError(
            f"the event has unknown fields: {unknown}; known are {', '.join(sorted(_FIELDS))}"
        )
    timestamp = _text(item, "timestamp")
    return UsageEvent(
        tenant_id=parse_tenant(_text(item, "tenant_id"), bound_tenant_id),
        meter=check_name("meter", _text(item, "meter") or ""),
        quantity=parse_quantity(item.get("quantity")),
        event_id=_event_id(_text(item, "event_id")),
        timestamp_ns=None if timestamp is None else parse_instant(timestamp),
        attributes=parse_attributes(item.get("attributes")),
    )


def _text(item: dict[str, Any], name: str) -> str | None:
    value = item.get(name)
    if value is None or isinstance(value, str):
        return value
    raise InvalidUsageError(f"{name} is not a string; put it in quotes")


def parse_tenant(tenant_id: str | None, bound_tenant_id: str | None) -> str:
    """The tenant of an event: the one it names, else the one that the key is bound to.

    Raises:
        InvalidUsageError: There is none, it is no tenant id, or another than the key may write.
    """
    named = tenant_id if tenant_id is not None else bound_tenant_id
    if named is None:
        raise InvalidUsageError("tenant_id is missing; name the tenant, or use a key bound to one")
    check_name("tenant_id", named)
    if bound_tenant_id not in {None, named}:
        raise InvalidUsageError(
            f"tenant_id is {named!r}, and the key is bound to {bound_tenant_id!r}; use another key"
        )
    return named


def parse_quantity(value: object) -> Decimal:
    """A quantity of JSON: a number, or a string that holds one; None: 1.

    Raises:
        InvalidUsageError: It is none, or cannot be stored exactly.
    """
    if value is None:
        return Decimal(1)
    if isinstance(value, Decimal):
        return check_quantity(value)
    if not isinstance(value, str):
        raise InvalidUsageError("quantity is no number; send it as a string with decimals")
    if not _is_number(value):
        raise InvalidUsageError(
            f"quantity {value[:MAX_NUMBER_LENGTH]!r} is not a decimal number of at most "
            f"{MAX_NUMBER_LENGTH} characters and three digits of exponent; write it like 12.5"
        )
    return check_quantity(Decimal(value))


def _is_number(text: str) -> bool:
    return len(text) <= MAX_NUMBER_LENGTH and _NUMBER.fullmatch(text) is not None


def _event_id(text: str | None) -> str | None:
    if text is None or (0 < len(text) <= MAX_EVENT_ID_LENGTH and is_storable(text)):
        return text
    raise InvalidUsageError(
        f"event_id has {len(text)} characters; it must be 1 to {MAX_EVENT_ID_LENGTH} of Unicode"
    )


def parse_attributes(value: object) -> dict[str, str]:
    """Names and texts of a JSON object; a null is as if it were absent.

    Raises:
        InvalidUsageError: It is no object, or one of its members cannot be an attribute.
    """
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise InvalidUsageError("attributes is not an object; send names and values")
    found: dict[str, str] = {}
    for name, item in value.items():
        text = parse_attribute(name, item)
        if text is not None:
            found[name] = text
    return found


def parse_attribute(name: str, value: object) -> str | None:
    """The text of an attribute; None: there is none.

    Raises:
        InvalidUsageError: It is reserved, nested, or no valid Unicode.
    """
    if name in _FIELD_OF:
        raise InvalidUsageError(f"attribute {name} is reserved; use {_FIELD_OF[name]}")
    if value is None:
        return None
    text = value if isinstance(value, str) else scalar_text(name, value)
    if not name or not is_storable(name) or not is_storable(text):
        raise InvalidUsageError(
            f"attribute {name!r} is empty, or no valid Unicode; correct its name or value"
        )
    return text


def scalar_text(name: str, value: object) -> str:
    """How a boolean or number of JSON is shown as the attribute `name`.

    Raises:
        InvalidUsageError: It is neither.
    """
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Decimal) and value.adjusted() <= MAX_NUMBER_LENGTH:
        return decimal_text(value)
    raise InvalidUsageError(
        f"attribute {name!r} is neither a string, nor a boolean, nor a number; flatten it"
    )


def is_storable(text: str) -> bool:
    """Whether it is Unicode that UTF-8 can hold."""
    # JSON can spell half of a surrogate pair, which no UTF-8 column can hold.
    return text.isascii() or not any("\ud800" <= character <= "\udfff" for character in text)
