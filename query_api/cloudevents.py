"""CloudEvents 1.0 become usage events: structured, batched and binary mode of HTTP, JSON data.

| CloudEvent | usage event |
|---|---|
| `source` and `id` | `event_id`, see `event_id_of` |
| `type` | meter |
| `subject` | tenant |
| `time` | timestamp |
| `data.quantity`, else `data.value` | quantity; default 1 |
| other strings, numbers and booleans in `data` | attributes |
| extension attributes | attributes, behind those of `data` |

Objects and lists in `data`, `dataschema` and the trace context (`traceparent`, `tracestate`, which differ
from event to event) are not kept.

Rules: CloudEvents 1.0.2, its JSON event format, and its HTTP protocol binding.
"""

import base64
import binascii
import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from enum import StrEnum
from typing import Final
from urllib.parse import quote, unquote

from otel_metering.contract.event import MAX_EVENT_ID_LENGTH, UsageEvent, check_name
from otel_metering.errors import InvalidUsageError
from query_api.intake import (
    MAX_REASON_LENGTH,
    Intake,
    as_events,
    gather,
    is_storable,
    load_json,
    parse_attributes,
    parse_quantity,
    parse_tenant,
    scalar_text,
)
from query_api.periods import parse_instant
from query_api.problems import UnsupportedMediaTypeError

STRUCTURED: Final = "application/cloudevents+json"
BATCH: Final = "application/cloudevents-batch+json"

MAX_ATTRIBUTE_LENGTH: Final = 4_096
"""Characters of one context attribute; a URI of a source has far less."""

_PREFIX: Final = "application/cloudevents"
_HEADER_PREFIX: Final = "ce-"
_CORE: Final = frozenset(
    {"id", "source", "specversion", "type", "subject", "time", "datacontenttype", "dataschema"}
)
_NOT_KEPT: Final = frozenset({"traceparent", "tracestate"})
_ATTRIBUTE_NAME: Final = re.compile(r"[a-z0-9]+", re.ASCII)
_JSON_TYPE: Final = re.compile(r"[^;]*[/+]json\s*(?:;.*)?", re.IGNORECASE | re.DOTALL)
_QUOTED: Final = re.compile(r'"(?:[^"\\]|\\.)*"', re.DOTALL)
_ESCAPE: Final = re.compile(r"%(?![0-9A-Fa-f]{2})")


class Mode(StrEnum):
    """How a request carries CloudEvents (HTTP binding 1.3)."""

    STRUCTURED = "structured"
    BATCHED = "batched"
    BINARY = "binary"


@dataclass(frozen=True, slots=True, kw_only=True)
class CloudEvent:
    """One event, checked; `data` is a JSON object without floats."""

    id: str
    source: str
    type: str
    subject: str | None = None
    time_ns: int | None = None
    data: Mapping[str, object] = field(default_factory=dict)
    extensions: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """What a request holds.

    Attributes:
        events: (place in the body, event) of those that are valid.
        rejected: (place, reason) of all others.
    """

    events: Sequence[tuple[int, CloudEvent]]
    rejected: Sequence[tuple[int, str]]


def mode_of(headers: Mapping[str, str]) -> Mode | None:
    """Which mode a request is in; None: it is no CloudEvent (HTTP binding 3).

    Args:
        headers: By name in lower case.

    Raises:
        UnsupportedMediaTypeError: It is one in an event format other than JSON.
    """
    given = headers.get("content-type", "").partition(";")[0].strip().lower()
    if given.startswith(_PREFIX):
        if given not in {STRUCTURED, BATCH}:
            raise UnsupportedMediaTypeError(
                f"the event format {given[:64]!r} is not supported; send {STRUCTURED} or {BATCH}"
            )
        return Mode.BATCHED if given == BATCH else Mode.STRUCTURED
    return Mode.BINARY if "ce-specversion" in headers else None


def parse_batch(headers: Mapping[str, str], body: bytes, mode: Mode | None) -> Batch:
    """Read the CloudEvents of a request; None: one or a list of them in the JSON format.

    Raises:
        InvalidUsageError: The body is not what its mode says.
        TooLargeError: It has too many events.
    """
    if mode is Mode.BINARY:
        return _read([body], lambda _: _binary(headers, body))
    document = load_json(body)
    is_list = isinstance(document, list)
    if (mode is Mode.BATCHED and not is_list) or (mode is Mode.STRUCTURED and is_list):
        wanted = BATCH if is_list else STRUCTURED
        raise InvalidUsageError(f"the body does not fit its media type; send it as {wanted}")
    return _read(as_events(document), _structured)


def parse_cloudevents(
    headers: Mapping[str, str], body: bytes, mode: Mode, bound_tenant_id: str | None
) -> Intake:
    """Read the CloudEvents of a request as usage events.

    Raises:
        InvalidUsageError: The body is not what its mode says.
        TooLargeError: It has too many events.
    """
    batch = parse_batch(headers, body, mode)
    places = [place for place, _ in batch.events]
    intake = gather(
        [event for _, event in batch.events], lambda event: to_usage(event, bound_tenant_id)
    )
    rejected = [*batch.rejected, *((places[i], reason) for i, reason in intake.rejected)]
    return Intake(
        events=intake.events,
        positions=[places[i] for i in intake.positions],
        rejected=sorted(rejected),
    )


def to_usage(event: CloudEvent, bound_tenant_id: str | None) -> UsageEvent:
    """The usage that a CloudEvent is by itself: of the meter named like its type.

    Raises:
        InvalidUsageError: It is none.
    """
    name = "quantity" if event.data.get("quantity") is not None else "value"
    scalars = {
        key: value
        for key, value in event.data.items()
        if key != name and not isinstance(value, dict | list)
    }
    extensions = {key: value for key, value in event.extensions.items() if key not in _NOT_KEPT}
    return UsageEvent(
        tenant_id=tenant_of(event, bound_tenant_id),
        meter=check_name("type", event.type),
        quantity=parse_quantity(event.data.get(name)),
        event_id=event_id_of(event.source, event.id),
        timestamp_ns=event.time_ns,
        attributes=parse_attributes({**extensions, **scalars}),
    )


def tenant_of(event: CloudEvent, bound_tenant_id: str | None) -> str:
    """The tenant that the subject names; without one: that of the key.

    Raises:
        InvalidUsageError: There is none, or the key may not write it.
    """
    if event.subject is None and bound_tenant_id is None:
        raise InvalidUsageError("subject is missing; it names the tenant")
    return parse_tenant(event.subject, bound_tenant_id)


def event_id_of(source: str, event_id: str) -> str:
    """Both as one text: the source with its spaces and percent signs escaped, a space, the id.

    No two pairs give the same text. What would be longer than an event id may be is a SHA-256 instead,
    which has no space in it.
    """
    text = f"{_escape(source)} {event_id}"
    if len(text) <= MAX_EVENT_ID_LENGTH:
        return text
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()


def split_event_id(text: str) -> tuple[str, str] | None:
    """(source, id) of what `event_id_of` made; None: it is no such text, or a hash."""
    source, space, event_id = text.partition(" ")
    return (unquote(source), event_id) if space and source and event_id else None


def _escape(source: str) -> str:
    return source.replace("%", "%25").replace(" ", "%20")


def _read(items: Sequence[object], read: Callable[[object], CloudEvent]) -> Batch:
    events: list[tuple[int, CloudEvent]] = []
    rejected: list[tuple[int, str]] = []
    for i, item in enumerate(items):
        try:
            events.append((i, read(item)))
        except InvalidUsageError as error:
            rejected.append((i, str(error)[:MAX_REASON_LENGTH]))
    return Batch(events=events, rejected=rejected)


def _structured(item: object) -> CloudEvent:
    """JSON event format, 2 and 3."""
    if not isinstance(item, dict):
        raise InvalidUsageError("the event is not an object; send a CloudEvent")
    given = {name: value for name, value in item.items() if value is not None}
    data = given.pop("data", None)
    encoded = given.pop("data_base64", None)
    content_type = given.get("datacontenttype", "application/json")
    if data is not None and encoded is not None:
        raise InvalidUsageError("the event has data and data_base64; send one of them")
    _check_json(content_type, has_data=data is not None or encoded is not None)
    if encoded is not None:
        data = load_json(_decode_base64(encoded))
    return _checked(given, data)


def _binary(headers: Mapping[str, str], body: bytes) -> CloudEvent:
    """HTTP binding 3.1."""
    if "ce-datacontenttype" in headers:
        raise InvalidUsageError("the header ce-datacontenttype is not allowed; use Content-Type")
    given: dict[str, object] = {
        name[len(_HEADER_PREFIX) :]: _header_value(name, value)
        for name, value in headers.items()
        if name.startswith(_HEADER_PREFIX)
    }
    content_type = headers.get("content-type") or "application/json"
    _check_json(content_type, has_data=bool(body))
    return _checked(given, load_json(body) if body else None)


def _header_value(name: str, text: str) -> str:
    """HTTP binding 3.1.3.2: unquoted, then percent-decoded once."""
    text = text.strip(" \t")
    if _QUOTED.fullmatch(text):
        text = re.sub(r"\\(.)", r"\1", text[1:-1], flags=re.DOTALL)
    if _ESCAPE.search(text):
        raise InvalidUsageError(f"the header {name} has a % without two hexadecimal digits")
    try:
        # Headers are Latin-1 here; what is not ASCII in them was sent against the rule, as UTF-8.
        return unquote(quote(text.encode("latin-1"), safe="%"), errors="strict")
    except UnicodeError:
        raise InvalidUsageError(f"the header {name} is not UTF-8 when it is decoded") from None


def _check_json(content_type: object, *, has_data: bool) -> None:
    if not isinstance(content_type, str) or (has_data and not _JSON_TYPE.fullmatch(content_type)):
        raise InvalidUsageError(
            f"datacontenttype is {str(content_type)[:64]!r}; data must be JSON: application/json"
        )


def _decode_base64(text: object) -> bytes:
    try:
        return base64.b64decode(str(text), validate=True)
    except (binascii.Error, ValueError):
        raise InvalidUsageError("data_base64 is not base64; send data as JSON") from None


def _checked(given: Mapping[str, object], data: object) -> CloudEvent:
    if data is not None and not isinstance(data, dict):
        raise InvalidUsageError('data is not an object; send members, like {"quantity": 3}')
    if given.get("specversion") != "1.0":
        raise InvalidUsageError(
            f"specversion is {str(given.get('specversion'))[:16]!r}; it must be '1.0'"
        )
    time = _text(given, "time")
    return CloudEvent(
        id=_required(given, "id"),
        source=_required(given, "source"),
        type=_required(given, "type"),
        subject=_text(given, "subject"),
        time_ns=None if time is None else parse_instant(time),
        data=data or {},
        extensions=_extensions(given),
    )


def _required(given: Mapping[str, object], name: str) -> str:
    text = _text(given, name)
    if not text:
        raise InvalidUsageError(f"{name} is missing or empty; a CloudEvent needs it")
    return text


def _text(given: Mapping[str, object], name: str) -> str | None:
    value = given.get(name)
    if value is None:
        return None
    if not isinstance(value, str) or len(value) > MAX_ATTRIBUTE_LENGTH or not is_storable(value):
        raise InvalidUsageError(
            f"{name} is no string of at most {MAX_ATTRIBUTE_LENGTH} characters of Unicode"
        )
    return value


def _extensions(given: Mapping[str, object]) -> dict[str, object]:
    """CloudEvents 3.1: names are lower-case letters and digits; values are scalars."""
    found: dict[str, object] = {}
    for name, value in given.items():
        if name in _CORE:
            continue
        if not _ATTRIBUTE_NAME.fullmatch(name):
            raise InvalidUsageError(
                f"attribute {name[:64]!r} is not named with lower-case letters and digits; rename it"
            )
        if not isinstance(value, str | bool | Decimal):
            raise InvalidUsageError(f"attribute {name!r} is neither string, boolean nor number")
        found[name] = value if isinstance(value, str) else scalar_text(name, value)
    return found
