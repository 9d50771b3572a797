"""The fast way through a metric and protobuf's own parser see the same numbers."""

import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
)
from opentelemetry.proto.metrics.v1.metrics_pb2 import Exemplar, NumberDataPoint

from receiver.errors import MalformedPayloadError
from receiver.otlp import lazy_pb2, metrics
from tests.otlp import key_values

uint64 = st.integers(0, 2**64 - 1)
values = st.one_of(
    st.none(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(allow_nan=False),
)
points = st.lists(
    st.tuples(
        uint64,
        uint64,
        values,
        st.dictionaries(st.text(max_size=3), st.integers(0, 9) | st.text(max_size=3), max_size=3),
        st.booleans(),
        st.integers(0, 1),
    ),
    min_size=1,
    max_size=8,
)


def request_of(drawn: list[tuple]) -> ExportMetricsServiceRequest:  # type: ignore[type-arg]  # what `points` draws
    request = ExportMetricsServiceRequest()
    metric = request.resource_metrics.add().scope_metrics.add().metrics.add(name="m")
    for start, time, value, attributes, has_exemplar, flags in drawn:
        point = metric.sum.data_points.add(
            start_time_unix_nano=start,
            time_unix_nano=time,
            attributes=key_values(attributes),
            flags=flags,
            exemplars=[Exemplar(as_int=3)] if has_exemplar else [],
        )
        if isinstance(value, int):
            point.as_int = value
        elif value is not None:
            point.as_double = value
    return request


@given(drawn=points)
def test_numbers_and_attributes_are_those_that_were_sent(drawn: list[tuple]) -> None:  # type: ignore[type-arg]
    (group,) = metrics.decode_metrics(request_of(drawn).SerializeToString())

    for i, (start, time, value, attributes, _, flags) in enumerate(drawn):
        kind = {int: metrics.INT, float: metrics.DOUBLE}.get(type(value), metrics.NO_VALUE)
        packed = struct.pack(
            "<d" if kind == metrics.DOUBLE else "<q", 0 if value is None else value
        )
        assert (int(group.start_ns[i]), int(group.time_ns[i])) == (start, time)
        assert group.kinds[i] == kind
        assert group.bits[i : i + 1].tobytes() == packed
        tail = lazy_pb2.NumberDataPoint.FromString(group.tails[i])
        assert tail.flags == flags
        assert sorted(tail.attributes) == sorted(
            pair.SerializeToString() for pair in key_values(attributes)
        )


@given(drawn=points)
def test_both_ways_agree(drawn: list[tuple]) -> None:  # type: ignore[type-arg]
    (group,) = metrics.decode_metrics(request_of(drawn).SerializeToString())

    again = metrics.reparse(group)

    for name in ("start_ns", "time_ns", "bits", "kinds"):
        assert np.array_equal(getattr(group, name), getattr(again, name))


def test_usual_points_take_the_fast_way() -> None:
    request = request_of([(1, 2, 3, {"a": "b"}, False, 0), (1, 2, 3.5, {}, False, 0)])

    (group,) = metrics.decode_metrics(request.SerializeToString())

    # Views of one buffer: nothing was parsed one by one.
    assert group.start_ns.base is group.bits.base is not None


def test_the_last_of_repeated_numbers_counts_as_protobuf_has_it() -> None:
    repeated = NumberDataPoint(start_time_unix_nano=1, time_unix_nano=2, as_int=3)
    encoded = repeated.SerializeToString() + NumberDataPoint(as_int=4).SerializeToString()
    request = request_of([(1, 2, 3, {}, False, 0)])
    header = metrics.decode_metrics(request.SerializeToString())[0].header

    group = metrics.decode_metrics(metrics.encode_single(header, encoded))[0]

    assert metrics.reparse(group).bits.tolist() == [4]


@given(body=st.binary(max_size=200))
def test_random_bytes_are_groups_or_malformed(body: bytes) -> None:
    try:
        groups = metrics.decode_metrics(body)
    except MalformedPayloadError:
        return
    assert all(len(group.tails) == len(group.points) > 0 for group in groups)


def test_a_single_point_can_be_sent_again() -> None:
    body = request_of([(1, 2, 3, {"a": "b"}, False, 0)]).SerializeToString()
    (group,) = metrics.decode_metrics(body)

    assert metrics.encode_single(group.header, group.points[0]) == body


@pytest.mark.parametrize("kind", ["histogram", "exponential_histogram", "summary", "gauge"])
def test_points_of_other_types_are_seen_with_their_attributes(kind: str) -> None:
    request = ExportMetricsServiceRequest()
    metric = request.resource_metrics.add().scope_metrics.add().metrics.add(name="m")
    pairs = key_values({"tenant.id": "t"})
    getattr(metric, kind).data_points.add(time_unix_nano=2, attributes=pairs)

    (group,) = metrics.decode_metrics(request.SerializeToString())

    assert group.header.type.name.lower() == kind
    assert group.time_ns.tolist() == [2]
    tail = lazy_pb2.NumberDataPoint.FromString(group.tails[0])
    assert list(tail.attributes) == [pairs[0].SerializeToString()]
