"""OTLP/JSON -> the same export request in protobuf, so that both are read, metered and kept in one way.

Rules that live here (OTLP specification, "JSON Protobuf Encoding"; proto3 JSON mapping), beyond the
fields, which come from the descriptors of `opentelemetry-proto`:

- `traceId`, `spanId` and `parentSpanId` are hexadecimal; other bytes are base64.
- Names in lowerCamelCase and in snake_case both count: the specification knows only the first, but to
  skip `as_int` as unknown would destroy usage. Other unknown names are skipped, with all that is in them.
- Enums come as numbers, and as names too (the Go receiver takes both). Unknown numbers are kept.
- Integers come as numbers or text, also as 5.0 and 1e3, and never pass through a float.
- `null` is the default. Of a repeated name, and of the members of a oneof, the last counts.
- Fields are written in the order of their numbers, and defaults are left out, as protobuf does it.
- Text that is not Unicode (bad UTF-8, a lone surrogate) keeps its bytes: it never fails a request.
"""

import binascii
import codecs
import json
import math
import re
import struct
from collections.abc import Callable
from contextlib import suppress
from decimal import Decimal, InvalidOperation
from typing import Any, Final

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from opentelemetry.proto.collector.logs.v1 import logs_service_pb2
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2

from otel_metering.contract.meter import Signal
from receiver.errors import MalformedPayloadError

MAX_DEPTH: Final = 200
"""Messages within messages; a value may nest arrays and maps to about half of it."""

Encode = Callable[[Any, int], bytes]
"""(a JSON value, its depth) -> the encoded field, or the encoded message."""

_ID_BYTES: Final = {"trace_id": 16, "span_id": 8, "parent_span_id": 8}
_MAX_DIGITS: Final = 40
"""Characters of an integer in text that are looked at; 20 are needed."""

_NUMBER: Final = re.compile(r"[+-]?[0-9]+(\.[0-9]+)?([eE][+-]?[0-9]+)?", re.ASCII)
_NOT_FINITE: Final = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
_URL_SAFE: Final = str.maketrans("-_", "+/")
_NAMES: Final = {dict: "an object", list: "an array", str: "text", bool: "a boolean"}


class _ProblemError(Exception):
    """What is wrong, and where; the path is collected from the inside out."""

    def __init__(self, expected: str, value: object) -> None:
        kind = _NAMES.get(type(value), "a number")
        shown = "" if isinstance(value, dict | list) else f": {str(value)[:40]!r}"
        super().__init__(f"expected {expected}, found {kind}{shown}")
        self.path: list[str] = []


def to_protobuf(signal: Signal, body: bytes) -> bytes:
    """An export request of `signal` in OTLP/JSON -> the same in protobuf. Empty stays empty.

    Raises:
        MalformedPayloadError: It is not JSON, or not this request; its `field` says where.
    """
    if not body:
        return b""
    try:
        return _REQUESTS[signal](_parse(body), 0)
    except _ProblemError as problem:
        path = "".join(reversed(problem.path)).removeprefix(".")
        raise MalformedPayloadError(f"{path or 'the body'}: {problem}", field=path) from problem
    except (ValueError, InvalidOperation) as error:
        raise MalformedPayloadError(f"the body is not JSON: {str(error)[:200]}") from error
    except RecursionError as error:
        raise MalformedPayloadError("the body is not OTLP/JSON: it is nested too deep") from error


def _parse(body: bytes) -> object:
    # Bad UTF-8 becomes surrogates, which `_odd_utf8` turns back into the same bytes.
    text = body.removeprefix(codecs.BOM_UTF8).decode("utf-8", "surrogateescape")
    return json.loads(
        text,
        object_pairs_hook=_object,
        parse_float=Decimal,
        parse_constant=_refuse_constant,
    )


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    # As the parser would do without it. But this is Python: the one place where the parser, which holds the
    # interpreter from begin to end, lets the event loop answer others while it reads a large body.
    return dict(pairs)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} without quotes")


def _odd_utf8(text: str) -> bytes:
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return text.encode("utf-8", "surrogatepass")


def _varint(number: int) -> bytes:
    if number < 128:
        return _SMALL[number]
    encoded = bytearray()
    while number > 127:
        encoded.append(number & 127 | 128)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)


_SMALL: Final = [bytes([number]) for number in range(128)]


def _integer(value: Any, low: int, high: int) -> int:  # noqa: ANN401 - any JSON
    number = value
    if value.__class__ is str and len(value) <= _MAX_DIGITS:
        if value.isdigit() and value.isascii():
            number = int(value)
        elif _NUMBER.fullmatch(value):
            number = Decimal(value)
    kind = number.__class__
    # Compared before it is made an int: 1e999999 is a short text and a long number.
    if (kind is int or kind is Decimal) and low <= number <= high:
        whole = int(number)
        if whole == number:
            return whole
    raise _ProblemError(f"an integer from {low} to {high}", value)


def _double(value: object) -> float:
    number = math.nan
    match value:
        case bool():
            raise _ProblemError("a number", value)
        case str() if value in _NOT_FINITE:
            return _NOT_FINITE[value]
        case str() if _NUMBER.fullmatch(value):
            number = float(value)
        case Decimal():
            number = float(value)
        case int():
            with suppress(OverflowError):
                number = float(value)
        case _:
            pass
    if not math.isfinite(number):
        raise _ProblemError("a double", value)
    return number


def _integers(low: int, high: int, encode: Callable[[int], bytes]) -> Callable[[Any], bytes]:
    def convert(value: object) -> bytes:
        return encode(_integer(value, low, high))

    return convert


def _packed(low: int, high: int, layout: str) -> Callable[[Any], bytes]:
    return _integers(low, high, struct.Struct(layout).pack)


def _bool(value: object) -> bytes:
    if value.__class__ is not bool:
        raise _ProblemError("true or false", value)
    return _SMALL[1] if value else _SMALL[0]


_INT32, _UINT32 = (-(2**31), 2**31 - 1), (0, 2**32 - 1)
_INT64, _UINT64 = (-(2**63), 2**63 - 1), (0, 2**64 - 1)
_pack_double = struct.Struct("<d").pack

# Type of a field -> (wire type, JSON value -> its bytes).
_SCALARS: Final[dict[int, tuple[int, Callable[[Any], bytes]]]] = {
    FieldDescriptor.TYPE_DOUBLE: (1, lambda value: _pack_double(_double(value))),
    FieldDescriptor.TYPE_FIXED64: (1, _packed(*_UINT64, "<Q")),
    FieldDescriptor.TYPE_SFIXED64: (1, _packed(*_INT64, "<q")),
    FieldDescriptor.TYPE_FIXED32: (5, _packed(*_UINT32, "<I")),
    FieldDescriptor.TYPE_UINT32: (0, _integers(*_UINT32, _varint)),
    FieldDescriptor.TYPE_UINT64: (0, _integers(*_UINT64, _varint)),
    FieldDescriptor.TYPE_INT32: (0, _integers(*_INT32, lambda n: _varint(n & 2**64 - 1))),
    FieldDescriptor.TYPE_INT64: (0, _integers(*_INT64, lambda n: _varint(n & 2**64 - 1))),
    FieldDescriptor.TYPE_SINT32: (0, _integers(*_INT32, lambda n: _varint(n << 1 ^ n >> 31))),
    FieldDescriptor.TYPE_BOOL: (0, _bool),
}
_DEFAULTS: Final = frozenset((b"\0", bytes(4), bytes(8)))


def _string(value: Any) -> bytes:  # noqa: ANN401 - any JSON
    if value.__class__ is not str:
        raise _ProblemError("text", value)
    try:
        return value.encode()
    except UnicodeEncodeError:
        return _odd_utf8(value)


def _bytes(value: object) -> bytes:
    if isinstance(value, str):
        digits = value.translate(_URL_SAFE).rstrip("=")
        try:
            return binascii.a2b_base64(digits + "=" * (-len(digits) % 4), strict_mode=True)
        except ValueError:
            pass
    raise _ProblemError("base64", value)


def _hex(size: int) -> Callable[[Any], bytes]:
    def convert(value: object) -> bytes:
        if value == "":
            return b""
        if isinstance(value, str) and len(value) == 2 * size:
            try:
                decoded = bytes.fromhex(value)
            except ValueError:
                decoded = b""
            if len(decoded) == size:  # else there were spaces in it
                return decoded
        raise _ProblemError(f"{2 * size} hexadecimal digits", value)

    return convert


def _enum(field: FieldDescriptor) -> Callable[[Any], bytes]:
    kind = field.enum_type
    assert kind is not None  # noqa: S101 - for the type checker: its type is TYPE_ENUM
    names = {name: value.number for name, value in kind.values_by_name.items()}
    expected = f"a number or name of {kind.name}"

    def convert(value: object) -> bytes:
        number = names.get(value) if isinstance(value, str) else None
        if number is None:
            try:
                number = _integer(value, *_INT32)
            except _ProblemError as problem:
                raise _ProblemError(expected, value) from problem
        return _varint(number & 2**64 - 1)

    return convert


def _scalar(field: FieldDescriptor) -> tuple[int, Callable[[Any], bytes]]:
    """Wire type of a field that is no message, and what converts its values."""
    match field.type:
        case FieldDescriptor.TYPE_STRING:
            return 2, _string
        case FieldDescriptor.TYPE_BYTES:
            size = _ID_BYTES.get(field.name)
            return 2, _bytes if size is None else _hex(size)
        case FieldDescriptor.TYPE_ENUM:
            return 0, _enum(field)
        case _:
            return _SCALARS[field.type]


def _field(field: FieldDescriptor) -> Encode:
    """What encodes a field, tag and all; of a field that is repeated, all of it."""
    if field.message_type is not None:
        tag, message = _varint(field.number << 3 | 2), _message(field.message_type)
        return _repeated(tag, message) if field.is_repeated else _sized(tag, message)
    wire, convert = _scalar(field)
    tag = _varint(field.number << 3 | wire)
    if field.is_repeated and wire != 2:
        return _packed_list(_varint(field.number << 3 | 2), convert)
    if field.is_repeated:
        return _repeated(tag, lambda value, _: convert(value))
    has_presence = field.has_presence
    if wire == 2:
        heads = _heads(tag)

        def encode_sized(value: object, _: int) -> bytes:
            encoded = convert(value)
            size = len(encoded)
            if not size and not has_presence:
                return b""
            return (heads[size] if size < 128 else tag + _varint(size)) + encoded

        return encode_sized

    def encode(value: object, _: int) -> bytes:
        encoded = convert(value)
        return b"" if encoded in _DEFAULTS and not has_presence else tag + encoded

    return encode


def _heads(tag: bytes) -> list[bytes]:
    """Tag and size, for each size of one byte."""
    return [tag + size for size in _SMALL]


def _sized(tag: bytes, message: Encode) -> Encode:
    heads = _heads(tag)

    def encode(value: object, depth: int) -> bytes:
        encoded = message(value, depth)
        size = len(encoded)
        return (heads[size] if size < 128 else tag + _varint(size)) + encoded

    return encode


def _repeated(tag: bytes, element: Encode) -> Encode:
    heads = _heads(tag)

    def encode(value: Any, depth: int) -> bytes:  # noqa: ANN401 - any JSON
        if value.__class__ is not list:
            raise _ProblemError("an array", value)
        parts: list[bytes] = []
        try:
            for item in value:
                encoded = element(item, depth)
                size = len(encoded)
                parts.append(heads[size] if size < 128 else tag + _varint(size))
                parts.append(encoded)
        except _ProblemError as problem:
            problem.path.append(f"[{len(parts) // 2}]")
            raise
        return b"".join(parts)

    return encode


def _packed_list(tag: bytes, convert: Callable[[Any], bytes]) -> Encode:
    def encode(value: Any, _: int) -> bytes:  # noqa: ANN401 - any JSON
        if value.__class__ is not list:
            raise _ProblemError("an array", value)
        parts: list[bytes] = []
        try:
            for item in value:
                parts.append(convert(item))  # noqa: PERF401 - the index of a bad one is its length
        except _ProblemError as problem:
            problem.path.append(f"[{len(parts)}]")
            raise
        encoded = b"".join(parts)
        return tag + _varint(len(encoded)) + encoded if encoded else b""

    return encode


Fields = dict[str, tuple[int, tuple[int, ...], Encode]]
"""Name -> (number, numbers of the other members of its oneof, encoder)."""

_messages: dict[str, Encode] = {}


def _message(descriptor: Descriptor) -> Encode:
    """What encodes a message, without tag and size."""
    known = _messages.get(descriptor.full_name)
    if known is not None:
        return known
    fields: Fields = {}
    _messages[descriptor.full_name] = encode = _fields_encoder(fields)
    for field in descriptor.fields:  # only now: messages contain each other
        oneof = field.containing_oneof
        rivals = tuple(f.number for f in oneof.fields if f != field) if oneof else ()
        fields[field.name] = fields[field.json_name] = field.number, rivals, _field(field)
    return encode


def _fields_encoder(fields: Fields) -> Encode:
    def encode(value: Any, depth: int) -> bytes:  # noqa: ANN401 - any JSON
        if value.__class__ is not dict:
            if value is None:
                return b""
            raise _ProblemError("an object", value)
        if depth > MAX_DEPTH:
            raise _ProblemError(f"at most {MAX_DEPTH} messages within each other", value)
        depth += 1
        found: dict[int, bytes] = {}
        key = ""
        try:
            for key, item in value.items():
                if item is None or key not in fields:
                    continue
                number, rivals, encode_field = fields[key]
                if rivals and found:
                    for rival in rivals:
                        found.pop(rival, None)
                found[number] = encode_field(item, depth)
        except _ProblemError as problem:
            problem.path.append(f".{key}")
            raise
        return b"".join([found[number] for number in sorted(found)])

    return encode


_REQUESTS: Final[dict[Signal, Encode]] = {
    Signal.METRIC: _message(metrics_service_pb2.ExportMetricsServiceRequest.DESCRIPTOR),
    Signal.SPAN: _message(trace_service_pb2.ExportTraceServiceRequest.DESCRIPTOR),
    Signal.LOG: _message(logs_service_pb2.ExportLogsServiceRequest.DESCRIPTOR),
}
