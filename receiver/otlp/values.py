"""Attributes: bytes of the wire -> canonical bytes (identity) and text (rows).

An attribute list is a set: order does not matter, and of a repeated key the last counts. Bad UTF-8 is
shown as U+FFFD and kept apart in the identity; it never fails a request (Go senders do not check it).
"""

import base64
import json
import operator
import struct
from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple

from google.protobuf.message import DecodeError

from receiver.errors import MalformedPayloadError
from receiver.otlp import lazy_pb2 as lazy

MAX_DEPTH: Final = 32
"""Nesting of arrays and maps that is looked into; deeper values stay opaque bytes."""


class Attribute(NamedTuple):
    """One attribute, in the forms that rules ask for.

    Attributes:
        key: Name, as sent.
        name: Name as text.
        text: Value as people read it, see `text_of`.
        value: Encoded AnyValue.
        canonical: Key and value, the same bytes for the same typed attribute.
    """

    key: bytes
    name: str
    text: str
    value: bytes
    canonical: bytes


Attributes = Mapping[bytes, Attribute]
"""By key."""


class Parser:
    """Parses attributes, and knows those again that it saw before: most come with every item."""

    def __init__(self) -> None:
        self._known: dict[bytes, Attribute] = {}

    def __len__(self) -> int:
        return len(self._known)

    def clear(self) -> None:
        """Forget what was seen."""
        self._known.clear()

    def attributes(self, encoded: Iterable[bytes]) -> dict[bytes, Attribute]:
        """Encoded KeyValues -> attributes, sorted by key; of a repeated key the last one.

        Raises:
            MalformedPayloadError: One is not a KeyValue.
        """
        known = self._known
        found = [known.get(one) or self._parse(one) for one in encoded]
        found.sort(key=_KEY)
        return {one.key: one for one in found}

    def _parse(self, encoded: bytes) -> Attribute:
        try:
            pair = lazy.KeyValue.FromString(encoded)
        except DecodeError as error:
            raise MalformedPayloadError("an attribute is not a KeyValue message") from error
        attribute = Attribute(
            pair.key,
            decode_text(pair.key),
            text_of(pair.value),
            pair.value,
            _sized(pair.key) + _sized(_canonical_value(pair.value, 0)),
        )
        self._known[encoded] = attribute
        return attribute


_KEY: Final = operator.itemgetter(0)


def text_of(value: bytes) -> str:
    """An encoded AnyValue as people read it: text as it is, numbers in decimal, the rest as JSON.

    Raises:
        MalformedPayloadError: It is not an AnyValue.
    """
    plain = _plain(value, 0)
    return (
        plain if isinstance(plain, str) else json.dumps(plain, ensure_ascii=False, sort_keys=True)
    )


def number_of(value: bytes) -> int | float | str | None:
    """An encoded AnyValue as a number, or as text that may be one; None: it is neither.

    Raises:
        MalformedPayloadError: It is not an AnyValue.
    """
    plain = _plain(value, 0)
    return None if isinstance(plain, bool | list | dict) else plain


def canonical(attributes: Attributes) -> bytes:
    """The same bytes for the same set of typed attributes (sorted by key), other bytes for any other."""
    return b"".join([one.canonical for one in attributes.values()])


def decode_text(raw: bytes) -> str:
    """UTF-8, with U+FFFD for what is not."""
    return raw.decode("utf-8", "replace")


def _sized(part: bytes) -> bytes:
    return struct.pack("<I", len(part)) + part


def _any_value(value: bytes) -> tuple[lazy.AnyValue, str | None]:
    try:
        message = lazy.AnyValue.FromString(value)
    except DecodeError as error:
        raise MalformedPayloadError("an attribute value is not an AnyValue message") from error
    return message, message.WhichOneof("value")


def _list(value: bytes) -> list[bytes]:
    try:
        return list(lazy.ValueList.FromString(value).values)
    except DecodeError as error:
        raise MalformedPayloadError("an attribute value is not a list of values") from error


def _pairs(value: bytes) -> dict[bytes, bytes]:
    try:
        parsed = [lazy.KeyValue.FromString(item) for item in _list(value)]
    except DecodeError as error:
        raise MalformedPayloadError("an attribute value is not a list of KeyValues") from error
    return {pair.key: pair.value for pair in parsed}


def _plain(value: bytes, depth: int) -> str | int | float | bool | list[object] | dict[str, object]:
    message, kind = _any_value(value)
    match kind:
        case "string_value":
            return decode_text(message.string_value)
        case "bool_value":
            return message.bool_value
        case "int_value":
            return message.int_value
        case "double_value":
            return message.double_value
        case "bytes_value":
            return base64.b64encode(message.bytes_value).decode()
        case "array_value" if depth < MAX_DEPTH:
            return [_plain(item, depth + 1) for item in _list(message.array_value)]
        case "kvlist_value" if depth < MAX_DEPTH:
            return {
                decode_text(key): _plain(item, depth + 1)
                for key, item in _pairs(message.kvlist_value).items()
            }
        case None:
            return ""
        case _:
            return base64.b64encode(value).decode()


def _canonical_value(value: bytes, depth: int) -> bytes:
    message, kind = _any_value(value)
    match kind:
        case "string_value":
            return b"s" + message.string_value
        case "bool_value":
            return b"b1" if message.bool_value else b"b0"
        case "int_value":
            return b"i" + struct.pack("<q", message.int_value)
        case "double_value":
            return b"d" + struct.pack("<d", message.double_value)
        case "bytes_value":
            return b"y" + message.bytes_value
        case "array_value" if depth < MAX_DEPTH:
            return b"a" + b"".join(
                _sized(_canonical_value(item, depth + 1)) for item in _list(message.array_value)
            )
        case "kvlist_value" if depth < MAX_DEPTH:
            pairs = _pairs(message.kvlist_value)
            return b"m" + b"".join(
                _sized(key) + _sized(_canonical_value(pairs[key], depth + 1))
                for key in sorted(pairs)
            )
        case None:
            return b"n"
        case _:
            return b"o" + value
