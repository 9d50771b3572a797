"""Rules of OTLP/JSON (OTLP specification 1.11, "JSON Protobuf Encoding"; proto3 JSON mapping).

What JSON means is taken from the official classes: what is decoded must parse to the message given beside
it. Tables of numbers and wrong types mirror Go's (pdata, iterator_test.go).
"""

from pathlib import Path
from typing import Any

import pytest
from google.protobuf import text_format
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from otel_metering.contract.meter import Signal
from receiver.errors import MalformedPayloadError
from receiver.otlp.json import MAX_DEPTH, to_protobuf
from tests.conformance.wire import (
    LOGS,
    METRICS,
    TRACES,
)

GOLDEN = Path(__file__).with_name("golden")
KINDS = {METRICS: Signal.METRIC, TRACES: Signal.SPAN, LOGS: Signal.LOG}
ID = "5b8efff798038103d269b633813fc60c"


def point_of(text: str) -> Any:
    """The first point of a sum whose JSON, between its braces, is `text`."""
    return _metrics(f'{{"sum": {{"dataPoints": [{{{text}}}]}}}}').sum.data_points[0]


def span_of(text: str) -> Any:
    body = f'{{"resourceSpans": [{{"scopeSpans": [{{"spans": [{{{text}}}]}}]}}]}}'
    encoded = to_protobuf(Signal.SPAN, body.encode())
    parsed = ExportTraceServiceRequest.FromString(encoded)
    return parsed.resource_spans[0].scope_spans[0].spans[0]


def value_of(text: str) -> Any:
    return point_of(f'"attributes": [{{"key": "k", "value": {text}}}]').attributes[0].value


def _metrics(text: str) -> Any:
    body = f'{{"resourceMetrics": [{{"scopeMetrics": [{{"metrics": [{text}]}}]}}]}}'
    encoded = to_protobuf(Signal.METRIC, body.encode())
    parsed = ExportMetricsServiceRequest.FromString(encoded)
    return parsed.resource_metrics[0].scope_metrics[0].metrics[0]


def refused(text: str) -> str:
    with pytest.raises(MalformedPayloadError) as caught:
        point_of(text)
    return caught.value.field.removeprefix(
        "resourceMetrics[0].scopeMetrics[0].metrics[0].sum.dataPoints[0]."
    )


# Identifiers and bytes


@pytest.mark.parametrize("shown", [ID, ID.upper(), ID.title()])
def test_trace_and_span_ids_are_hexadecimal_in_any_case(shown: str) -> None:
    span = span_of(
        f'"traceId": "{shown}", "spanId": "{shown[:16]}", "parentSpanId": "{shown[16:]}", '
        f'"links": [{{"traceId": "{shown}", "spanId": "{shown[:16]}"}}]'
    )

    assert (span.trace_id, span.links[0].trace_id) == (bytes.fromhex(ID),) * 2
    assert (span.span_id, span.links[0].span_id) == (bytes.fromhex(ID[:16]),) * 2
    assert span.parent_span_id == bytes.fromhex(ID[16:])


def test_an_empty_id_is_absent() -> None:
    assert not span_of('"traceId": "", "spanId": null').ListFields()


@pytest.mark.parametrize(
    "shown",
    [ID[:-1], ID + "0", ID[:16], ID[:-2], "zz" + ID[2:], "  " + ID[2:], "W47/95gDgQPSabYzgT/GDA=="],
)
def test_an_id_of_another_length_or_alphabet_is_refused(shown: str) -> None:
    with pytest.raises(MalformedPayloadError, match="traceId: expected 32 hexadecimal digits"):
        span_of(f'"traceId": "{shown}"')


@pytest.mark.parametrize("shown", ["+/+/AQ==", "-_-_AQ==", "+/+/AQ", "-_-_AQ"])
def test_other_bytes_are_base64_standard_or_url_safe_padded_or_not(shown: str) -> None:
    assert value_of(f'{{"bytesValue": "{shown}"}}').bytes_value == b"\xfb\xff\xbf\x01"


@pytest.mark.parametrize("shown", ["A", "A===", "AA=A", "A A=", "é"])
def test_what_is_not_base64_is_refused(shown: str) -> None:
    field = refused(f'"attributes": [{{"value": {{"bytesValue": "{shown}"}}}}]')

    assert field == "attributes[0].value.bytesValue"


# Enums


@pytest.mark.parametrize("shown", ["1", '"AGGREGATION_TEMPORALITY_DELTA"', '"1"', "1.0"])
def test_enums_are_numbers_and_names_are_taken_too(shown: str) -> None:
    """Names MUST NOT be sent; Go takes them."""
    assert (
        _metrics(f'{{"sum": {{"aggregationTemporality": {shown}}}}}').sum.aggregation_temporality
        == 1
    )


def test_an_unknown_number_of_an_enum_is_kept() -> None:
    assert _metrics('{"sum": {"aggregationTemporality": 77}}').sum.aggregation_temporality == 77


@pytest.mark.parametrize(
    "shown", ['"DELTA"', '"aggregation_temporality_delta"', "true", "1.5", "[]"]
)
def test_an_unknown_name_of_an_enum_is_refused(shown: str) -> None:
    with pytest.raises(MalformedPayloadError, match=r"sum\.aggregationTemporality: expected"):
        _metrics(f'{{"sum": {{"aggregationTemporality": {shown}}}}}')


# Names of fields


def test_names_in_snake_case_count_as_well() -> None:
    """The specification knows lowerCamelCase only; Go takes both. To skip `as_int` would destroy usage."""
    camel = point_of('"asInt": "5", "timeUnixNano": "6", "startTimeUnixNano": "7"')
    snake = point_of('"as_int": "5", "time_unix_nano": "6", "start_time_unix_nano": "7"')

    assert (camel.as_int, camel.time_unix_nano, camel.start_time_unix_nano) == (5, 6, 7)
    assert snake == camel


def test_unknown_names_are_skipped_with_all_that_is_in_them() -> None:
    unknown = '"new": {"asInt": 7, "x": [[{"y": [null, 1.5e300, "\\ud800"]}]]}, "Asint": 3'

    assert point_of(f'{unknown}, "asInt": 5') == point_of('"asInt": 5')


def test_of_a_repeated_name_the_last_counts() -> None:
    assert point_of('"asInt": 1, "asInt": 2').as_int == 2
    assert point_of('"asInt": 1, "as_int": 2').as_int == 2


def test_of_the_members_of_a_oneof_the_last_counts() -> None:
    both = point_of('"asInt": 1, "asDouble": 2')

    assert (both.WhichOneof("value"), both.as_double) == ("as_double", 2.0)
    assert point_of('"asDouble": 2, "asInt": 1, "asDouble": null').as_int == 1


# Numbers


@pytest.mark.parametrize(
    ("shown", "value"),
    [
        ("5", 5),
        ('"5"', 5),
        ("-5", -5),
        ('"-5"', -5),
        ("5.0", 5),
        ("1e3", 1000),
        ('"1e3"', 1000),
        ("250e-1", 25),
        ("-0", 0),
        ('"007"', 7),
        ("9007199254740993", 2**53 + 1),
        ('"9223372036854775807"', 2**63 - 1),
        ("9223372036854775807", 2**63 - 1),
        ("9223372036854775807.0", 2**63 - 1),
        ("9.223372036854775807e18", 2**63 - 1),
        ("-9223372036854775808", -(2**63)),
    ],
)
def test_integers_are_numbers_or_text_and_exact(shown: str, value: int) -> None:
    assert point_of(f'"asInt": {shown}').as_int == value


@pytest.mark.parametrize(
    "shown",
    [
        "9223372036854775808",
        '"9223372036854775808"',
        "-9223372036854775809",
        "1e19",
        "1e999999999",
        '"1e999999999"',
        "1e-999999999",
        "1.5",
        '"1.5"',
        '""',
        '" 5"',
        '"5 "',
        '"1_000"',
        '"0x5"',
        '"٣"',
        '"²"',
        '"five"',
        '"NaN"',
        "true",
        "[]",
        "{}",
        '"' + "1" * 5000 + '"',
    ],
)
def test_what_is_no_integer_of_64_bits_is_refused_and_named(shown: str) -> None:
    assert refused(f'"asInt": {shown}') == "asInt"


@pytest.mark.parametrize("shown", ["-1", '"-1"', "18446744073709551616", "4.5"])
def test_unsigned_integers_are_not_negative(shown: str) -> None:
    assert refused(f'"timeUnixNano": {shown}') == "timeUnixNano"
    assert point_of('"timeUnixNano": 18446744073709551615').time_unix_nano == 2**64 - 1


@pytest.mark.parametrize("shown", ["4294967296", "-1", '"4294967296"', "0.5"])
def test_integers_of_32_bits_have_their_own_range(shown: str) -> None:
    assert refused(f'"flags": {shown}') == "flags"
    assert point_of('"flags": "4294967295"').flags == 2**32 - 1


@pytest.mark.parametrize(
    ("shown", "value"),
    [
        ("0.1", "0.1"),
        ("5", "5.0"),
        ('"0.1"', "0.1"),
        ('"-1e-3"', "-0.001"),
        ("1E+3", "1000.0"),
        ("-0.0", "-0.0"),
        ('"NaN"', "nan"),
        ('"Infinity"', "inf"),
        ('"-Infinity"', "-inf"),
        ("1e-400", "0.0"),
        ("123456789012345678901234567890", "1.2345678901234568e+29"),
    ],
)
def test_doubles_are_numbers_or_text_also_not_finite(shown: str, value: str) -> None:
    point = point_of(f'"asDouble": {shown}')

    assert point.WhichOneof("value") == "as_double"
    assert repr(point.as_double) == value


@pytest.mark.parametrize(
    "shown",
    [
        '"nan"',
        '"inf"',
        '""',
        '" 1"',
        '"1,5"',
        '"0x1p3"',
        "true",
        "{}",
        "1e400",
        '"1e400"',
        "9" * 400,
    ],
)
def test_what_is_no_double_is_refused_and_named(shown: str) -> None:
    assert refused(f'"asDouble": {shown}') == "asDouble"


@pytest.mark.parametrize("shown", ["NaN", "Infinity", "-Infinity"])
def test_a_number_that_is_not_finite_needs_quotes(shown: str) -> None:
    with pytest.raises(MalformedPayloadError, match="without quotes"):
        point_of(f'"asDouble": {shown}')


# null, types, depth, text


def test_null_is_the_default() -> None:
    assert point_of('"asInt": null, "attributes": null, "flags": null') == point_of("")
    assert to_protobuf(Signal.METRIC, b'{"resourceMetrics": null}') == b""


def test_zero_in_a_oneof_is_a_value() -> None:
    """A point with neither value is invalid (metrics.proto), and one with 0 is not."""
    assert point_of('"asInt": 0').WhichOneof("value") == "as_int"
    assert value_of('{"stringValue": ""}').WhichOneof("value") == "string_value"
    assert value_of("{}").WhichOneof("value") is None


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ('"attributes": {}', "attributes"),
        ('"attributes": [[]]', "attributes[0]"),
        ('"attributes": [{}, {"key": 5}]', "attributes[1].key"),
        ('"attributes": [{"value": "text"}]', "attributes[0].value"),
        ('"attributes": [{"value": {"boolValue": "true"}}]', "attributes[0].value.boolValue"),
        ('"attributes": [{"value": {"boolValue": 1}}]', "attributes[0].value.boolValue"),
        (
            '"attributes": [{"value": {"arrayValue": {"values": [{}, {"intValue": []}]}}}]',
            "attributes[0].value.arrayValue.values[1].intValue",
        ),
        ('"exemplars": [{"spanId": "0"}]', "exemplars[0].spanId"),
    ],
)
def test_a_wrong_type_is_refused_and_its_path_is_named(text: str, field: str) -> None:
    assert refused(text) == field


@pytest.mark.parametrize(
    "body",
    [
        b"1234",
        b'"text"',
        b"[]",
        b"true",
        b"{",
        b"{}x",
        b"\xff",
        b"{'a': 1}",
        b"nonsense",
        b"\0",
        b" ",
    ],
)
def test_what_is_no_json_object_is_refused(body: bytes) -> None:
    with pytest.raises(MalformedPayloadError):
        to_protobuf(Signal.METRIC, body)


@pytest.mark.parametrize("body", [b"", b"{}", b" {} ", b"\xef\xbb\xbf{}"])
def test_nothing_and_an_empty_object_are_an_empty_request(body: bytes) -> None:
    assert to_protobuf(Signal.LOG, body) == b""


@pytest.mark.parametrize(
    "bomb",
    [
        "[" * 1_000_000,
        '{"resourceMetrics":' * 100_000,
        '{"x": ' + "[" * 100_000 + "]" * 100_000 + "}",
    ],
)
def test_nesting_without_end_is_refused(bomb: str) -> None:
    with pytest.raises(MalformedPayloadError):
        to_protobuf(Signal.METRIC, bomb.encode())


def test_values_nest_to_a_depth_and_no_further() -> None:
    """Further than metering looks into them; protobuf's own bound is 100 messages."""

    def nested(count: int) -> bytes:
        value = '{"arrayValue": {"values": [' * count + '{"intValue": 1}' + "]}}" * count
        return f'{{"resourceLogs": [{{"resource": {{"attributes": [{{"value": {value}}}]}}}}]}}'.encode()

    assert len(to_protobuf(Signal.LOG, nested(MAX_DEPTH // 2 - 3))) > MAX_DEPTH
    with pytest.raises(MalformedPayloadError, match=f"at most {MAX_DEPTH} messages"):
        to_protobuf(Signal.LOG, nested(MAX_DEPTH // 2))


def test_text_that_is_not_unicode_keeps_its_bytes() -> None:
    """Go puts U+FFFD in its place. As over protobuf, it is kept, and shown as U+FFFD."""
    head, tail = b'{"resourceMetrics": [{"schemaUrl": "', b'"}]}'

    assert b"\x1a\x02\xff\xfe" in to_protobuf(Signal.METRIC, head + b"\xff\xfe" + tail)
    assert b"\x1a\x03\xed\xa0\x80" in to_protobuf(Signal.METRIC, head + b"\\ud800" + tail)


def test_a_pair_of_surrogates_is_one_character() -> None:
    assert value_of('{"stringValue": "\\ud83d\\udeb2"}').string_value == "🚲"


# Examples


@pytest.mark.parametrize("signal", KINDS.values())
def test_golden_examples_mean_what_their_protobuf_says(signal: Signal) -> None:
    """Shaped like the examples of opentelemetry-proto; the other side is protobuf's text format."""
    kind = next(key for key, value in KINDS.items() if value is signal)
    name = kind.path.rpartition("/")[2]
    expected = text_format.Parse((GOLDEN / f"{name}.txtpb").read_text("utf-8"), kind.request())

    found = kind.request.FromString(to_protobuf(signal, (GOLDEN / f"{name}.json").read_bytes()))

    # Compared as text: NaN is not equal to itself.
    assert text_format.MessageToString(found) == text_format.MessageToString(expected)
