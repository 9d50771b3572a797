"""Laws of OTLP/JSON: of any request it is its protobuf, and of any bytes it is that or a refusal."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import (
    AnyValue,
    ArrayValue,
    KeyValue,
    KeyValueList,
)

from otel_metering.contract.meter import Signal
from receiver.errors import MalformedPayloadError
from receiver.otlp.json import to_protobuf
from tests.conformance.test_same_rows import CASES, SIGNALS
from tests.conformance.wire import otlp_json

KINDS = {"m": Signal.METRIC, "s": Signal.SPAN, "l": Signal.LOG}


@pytest.mark.parametrize("letter", SIGNALS)
def test_json_of_every_pairwise_case_is_byte_for_byte_its_protobuf(letter: str) -> None:
    signal = KINDS[letter]
    for case in CASES:
        message = SIGNALS[letter](case, "tenant")
        assert to_protobuf(signal, otlp_json(message)) == message.SerializeToString(), case


VALUES: st.SearchStrategy[AnyValue] = st.recursive(
    st.one_of(
        st.builds(AnyValue),
        st.builds(AnyValue, string_value=st.text(st.characters(exclude_categories=["Cs"]))),
        st.builds(AnyValue, bool_value=st.booleans()),
        st.builds(AnyValue, int_value=st.integers(-(2**63), 2**63 - 1)),
        st.builds(AnyValue, double_value=st.floats(allow_nan=False)),
        st.builds(AnyValue, bytes_value=st.binary()),
    ),
    lambda inner: st.one_of(
        st.builds(
            lambda values: AnyValue(array_value=ArrayValue(values=values)),
            st.lists(inner, max_size=3),
        ),
        st.builds(
            lambda pairs: AnyValue(
                kvlist_value=KeyValueList(
                    values=[KeyValue(key=key, value=value) for key, value in pairs]
                )
            ),
            st.lists(st.tuples(st.sampled_from("abc"), inner), max_size=3),
        ),
    ),
    max_leaves=8,
)
FIXED64 = st.integers(0, 2**64 - 1)


@given(
    values=st.lists(VALUES, max_size=3),
    times=st.tuples(FIXED64, FIXED64),
    as_int=st.none() | st.integers(-(2**63), 2**63 - 1),
    as_double=st.floats(allow_nan=False),
    flags=st.integers(0, 2**32 - 1),
    buckets=st.lists(FIXED64, max_size=4),
    offset=st.integers(-(2**31), 2**31 - 1),
)
def test_json_of_any_metric_is_its_protobuf(
    values: list[AnyValue],
    times: tuple[int, int],
    as_int: int | None,
    as_double: float,
    flags: int,
    buckets: list[int],
    offset: int,
) -> None:
    message = ExportMetricsServiceRequest()
    metrics = message.resource_metrics.add().scope_metrics.add().metrics
    point = metrics.add(name="n").sum.data_points.add(flags=flags)
    point.start_time_unix_nano, point.time_unix_nano = times
    if as_int is None:
        point.as_double = as_double
    else:
        point.as_int = as_int
    point.attributes.extend(KeyValue(key="k", value=value) for value in values)
    other = metrics.add().exponential_histogram.data_points.add(scale=offset, sum=as_double)
    other.positive.offset = offset
    other.positive.bucket_counts.extend(buckets)
    metrics.add().histogram.data_points.add(bucket_counts=buckets, explicit_bounds=[as_double])

    found = to_protobuf(Signal.METRIC, otlp_json(message))

    assert ExportMetricsServiceRequest.FromString(found) == message


@given(
    values=st.lists(VALUES, max_size=2),
    number=st.integers(-(2**31), 2**31 - 1),
    id_=st.binary(min_size=16, max_size=16),
)
def test_json_of_any_log_record_and_span_is_its_protobuf(
    values: list[AnyValue], number: int, id_: bytes
) -> None:
    logs = ExportLogsServiceRequest()
    record = (
        logs.resource_logs.add().scope_logs.add().log_records.add(trace_id=id_, span_id=id_[:8])
    )
    record.severity_number = number  # type: ignore[assignment]  # any number
    record.attributes.extend(KeyValue(key="k", value=value) for value in values)
    traces = ExportTraceServiceRequest()
    span = (
        traces.resource_spans.add()
        .scope_spans.add()
        .spans.add(trace_id=id_, parent_span_id=id_[8:])
    )
    span.kind = number  # type: ignore[assignment]  # any number
    span.events.add().attributes.extend(KeyValue(key="k", value=value) for value in values)

    found_logs = to_protobuf(Signal.LOG, otlp_json(logs))
    found_spans = to_protobuf(Signal.SPAN, otlp_json(traces))

    assert ExportLogsServiceRequest.FromString(found_logs) == logs
    assert ExportTraceServiceRequest.FromString(found_spans) == traces


def is_protobuf_or_refused(signal: Signal, body: bytes) -> bool:
    try:
        to_protobuf(signal, body)
    except MalformedPayloadError:
        return False
    return True


@given(signal=st.sampled_from(list(KINDS.values())), body=st.binary(max_size=200))
def test_random_bytes_are_refused_and_nothing_else(signal: Signal, body: bytes) -> None:
    is_protobuf_or_refused(signal, body)


JSON_VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.sampled_from(["NaN", "1e999999999", "-1", "\ud800", "5b8efff798038103d269b633813fc60c"]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=6,
)


@given(data=st.data())
def test_mutated_requests_are_decoded_or_refused_and_nothing_else(data: st.DataObject) -> None:
    letter = data.draw(st.sampled_from(sorted(SIGNALS)))
    signal = KINDS[letter]
    request = json.loads(otlp_json(SIGNALS[letter](data.draw(st.sampled_from(CASES)), "tenant")))
    for _ in range(data.draw(st.integers(1, 3))):
        _mutate(request, data)

    is_protobuf_or_refused(signal, json.dumps(request).encode())


def _mutate(node: Any, data: st.DataObject) -> None:
    """Put any JSON in the place of something within `node`."""
    while node:
        places = sorted(node) if isinstance(node, dict) else list(range(len(node)))
        place = data.draw(st.sampled_from(places))
        if not isinstance(node[place], dict | list) or data.draw(st.integers(0, 5)) == 0:
            node[place] = data.draw(JSON_VALUES)
            return
        node = node[place]


@given(data=st.data())
def test_requests_with_flipped_bytes_are_decoded_or_refused_and_nothing_else(
    data: st.DataObject,
) -> None:
    body = bytearray(otlp_json(SIGNALS["m"](data.draw(st.sampled_from(CASES)), "tenant")))
    for place in data.draw(st.lists(st.integers(0, len(body) - 1), min_size=1, max_size=4)):
        body[place] ^= data.draw(st.integers(1, 255))

    is_protobuf_or_refused(Signal.METRIC, bytes(body))
