"""ExportMetricsServiceRequest -> columns of points, one group for each metric in it.

Rules that live here: which bytes of a point are its numbers, and which its attributes.

Encoders write a NumberDataPoint's fields in the order of their numbers, so nearly every point begins
with the same 27 bytes: start, time, value. A whole metric is then read with numpy, and the rest of each
point, untouched, is the key under which the stream cache knows its attributes. A point with another
layout (no start, exemplars before an integer) takes its whole metric through protobuf's parser instead:
same result, five times the cost.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import Final, NamedTuple

import numpy as np
from google.protobuf.message import DecodeError
from numpy.typing import NDArray

from receiver.errors import MalformedPayloadError
from receiver.otlp import lazy_pb2 as lazy

INT, DOUBLE, NO_VALUE = 0, 1, 2
"""Which kind of number `PointGroup.bits` holds."""

FLAG_NO_RECORDED_VALUE: Final = 1
"""DataPointFlags: the value is to be ignored (data model, "No recorded value")."""

_HEAD = np.dtype(
    [
        ("start_tag", "u1"),
        ("start", "<u8"),
        ("time_tag", "u1"),
        ("time", "<u8"),
        ("value_tag", "u1"),
        ("bits", "<i8"),
    ]
)
_START_TAG, _TIME_TAG, _DOUBLE_TAG, _INT_TAG = 0x11, 0x19, 0x21, 0x31
"""Protobuf tags of fields 2, 3, 4 and 6, each with eight bytes after it."""


class MetricType(IntEnum):
    """Field numbers of `Metric.data`."""

    NONE = 0
    GAUGE = 5
    SUM = 7
    HISTOGRAM = 9
    EXPONENTIAL_HISTOGRAM = 10
    SUMMARY = 11


class Temporality(IntEnum):
    """OTLP's AggregationTemporality; any other number is treated as UNSPECIFIED."""

    UNSPECIFIED = 0
    DELTA = 1
    CUMULATIVE = 2


class MetricHeader(NamedTuple):
    """All that the points of one metric have in common; with a point's attributes, its stream."""

    resource: bytes
    scope: bytes
    name: bytes
    unit: bytes
    type: MetricType
    temporality: int
    is_monotonic: bool


@dataclass(slots=True)
class PointGroup:
    """The points of one metric of one request, as columns of one length.

    Attributes:
        header: What they share.
        points: Each point, encoded.
        tails: What identifies each point's attributes and flags: an encoded NumberDataPoint
            without its numbers.
        start_ns: StartTimeUnixNano; 0: unknown.
        time_ns: TimeUnixNano; 0: missing.
        bits: The value: an int64, or the bits of a double; of histograms and summaries their sum.
        kinds: INT, DOUBLE or NO_VALUE.
        counts: How many measurements each point stands for; None: they are numbers, one each.
            Counts beyond an int64 are negative here.
    """

    header: MetricHeader
    points: list[bytes]
    tails: list[bytes]
    start_ns: NDArray[np.uint64]
    time_ns: NDArray[np.uint64]
    bits: NDArray[np.int64]
    kinds: NDArray[np.uint8]
    counts: NDArray[np.int64] | None = None


def decode_metrics(body: bytes) -> list[PointGroup]:
    """One group for each metric that has points, in the order of the request.

    Raises:
        MalformedPayloadError: `body` is not an ExportMetricsServiceRequest.
    """
    try:
        request = lazy.MetricsRequest.FromString(body)
        return [_decode_group(header, points) for header, points in _metrics(request)]
    except DecodeError as error:
        raise MalformedPayloadError("the body is not an ExportMetricsServiceRequest") from error


def reparse(group: PointGroup) -> PointGroup:
    """The same group through protobuf's parser: for points whose tail has numbers in it."""
    return _parse_numbers(group.header, group.points)


def encode_single(header: MetricHeader, point: bytes) -> bytes:
    """An ExportMetricsServiceRequest with this one point, so that it can be sent again."""
    data = lazy.Points(
        data_points=[point],
        aggregation_temporality=header.temporality,
        is_monotonic=header.is_monotonic,
    )
    metric = lazy.Metric(name=header.name, unit=header.unit)
    if header.type is not MetricType.NONE:
        getattr(metric, _FIELD_NAMES[header.type]).CopyFrom(data)
    return lazy.MetricsRequest(
        resource_metrics=[
            lazy.ResourceMetrics(
                resource=header.resource,
                scope_metrics=[lazy.ScopeMetrics(scope=header.scope, metrics=[metric])],
            )
        ]
    ).SerializeToString()


_FIELD_NAMES: Final = {
    MetricType.GAUGE: "gauge",
    MetricType.SUM: "sum",
    MetricType.HISTOGRAM: "histogram",
    MetricType.EXPONENTIAL_HISTOGRAM: "exponential_histogram",
    MetricType.SUMMARY: "summary",
}
_TYPES: Final = {name: kind for kind, name in _FIELD_NAMES.items()}


def _metrics(request: lazy.MetricsRequest) -> Iterator[tuple[MetricHeader, list[bytes]]]:
    for resource_metrics in request.resource_metrics:
        resource = resource_metrics.resource
        for scope_metrics in resource_metrics.scope_metrics:
            scope = scope_metrics.scope
            for metric in scope_metrics.metrics:
                field = metric.WhichOneof("data")
                if field is None:
                    continue
                data = getattr(metric, field)
                points = list(data.data_points)
                if points:
                    yield (
                        MetricHeader(
                            resource,
                            scope,
                            metric.name,
                            metric.unit,
                            _TYPES[field],
                            data.aggregation_temporality,
                            data.is_monotonic,
                        ),
                        points,
                    )


def _decode_group(header: MetricHeader, points: list[bytes]) -> PointGroup:
    parser = DISTRIBUTIONS.get(header.type)
    if parser is not None:
        return _parse_distributions(header, points, parser)
    heads = b"".join([point[: _HEAD.itemsize] for point in points])
    if len(heads) == _HEAD.itemsize * len(points):
        columns = np.frombuffer(heads, _HEAD)
        value_tag = columns["value_tag"]
        is_double = value_tag == _DOUBLE_TAG
        if (
            (columns["start_tag"] == _START_TAG).all()
            and (columns["time_tag"] == _TIME_TAG).all()
            and (is_double | (value_tag == _INT_TAG)).all()
        ):
            return PointGroup(
                header=header,
                points=points,
                tails=[point[_HEAD.itemsize :] for point in points],
                start_ns=columns["start"],
                time_ns=columns["time"],
                bits=columns["bits"],
                kinds=is_double.view(np.uint8),
            )
    return _parse_numbers(header, points)


def _parse_numbers(header: MetricHeader, points: list[bytes]) -> PointGroup:
    count = len(points)
    start, time = np.zeros(count, np.uint64), np.zeros(count, np.uint64)
    bits, kinds = np.zeros(count, np.int64), np.full(count, NO_VALUE, np.uint8)
    doubles = bits.view(np.float64)
    tails = []
    for i, encoded in enumerate(points):
        point = lazy.NumberDataPoint.FromString(encoded)
        start[i], time[i] = point.start_time_unix_nano, point.time_unix_nano
        value = point.WhichOneof("value")
        if value == "as_int":
            bits[i], kinds[i] = point.as_int, INT
        elif value == "as_double":
            doubles[i], kinds[i] = point.as_double, DOUBLE
        tails.append(
            lazy.NumberDataPoint(attributes=point.attributes, flags=point.flags).SerializeToString()
        )
    return PointGroup(header, points, tails, start, time, bits, kinds)


_Distribution = lazy.HistogramDataPoint | lazy.ExponentialHistogramDataPoint | lazy.SummaryDataPoint
DISTRIBUTIONS: Final[dict[MetricType, type[_Distribution]]] = {
    MetricType.HISTOGRAM: lazy.HistogramDataPoint,
    MetricType.EXPONENTIAL_HISTOGRAM: lazy.ExponentialHistogramDataPoint,
    MetricType.SUMMARY: lazy.SummaryDataPoint,
}
"""Types whose points stand for many measurements, and what parses one of them."""


def _parse_distributions(
    header: MetricHeader, points: list[bytes], parser: type[_Distribution]
) -> PointGroup:
    count = len(points)
    start, time = np.zeros(count, np.uint64), np.zeros(count, np.uint64)
    sums, kinds = np.zeros(count, np.float64), np.full(count, DOUBLE, np.uint8)
    counts = np.zeros(count, np.uint64)
    tails = []
    for i, encoded in enumerate(points):
        point = parser.FromString(encoded)
        start[i], time[i] = point.start_time_unix_nano, point.time_unix_nano
        counts[i], sums[i] = point.count, point.sum
        if not isinstance(point, lazy.SummaryDataPoint) and not point.HasField("sum"):
            kinds[i] = NO_VALUE
        tails.append(
            lazy.NumberDataPoint(attributes=point.attributes, flags=point.flags).SerializeToString()
        )
    return PointGroup(
        header, points, tails, start, time, sums.view(np.int64), kinds, counts.view(np.int64)
    )
